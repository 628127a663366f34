"""Docstrings for the site: what is not Markdown in them is not read as such.

Shapes such as [B][k] would be taken for links, <name> for HTML and * for emphasis; a list wants an
empty line before it.
"""
import re

import griffe

CODE = re.compile(r'(``.*?``|`[^`]*`|^    .*$)', re.DOTALL | re.MULTILINE)


class PlainText(griffe.Extension):
  """Escapes the text of every docstring outside of code."""

  def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
    """Called for each module, class, function and attribute that was read."""
    del kwargs
    if obj.docstring:
      obj.docstring.value = plain(obj.docstring.value)


def plain(text: str) -> str:
  """Text of a docstring with what Markdown would read in it escaped, but for code."""
  text = re.sub(r'^(?!\s*- )(.*\S)\n(?=- )', r'\1\n\n', text, flags=re.MULTILINE)  # before a list
  parts = CODE.split(text)
  return ''.join(part if i % 2 else re.sub(r'([\[\]<*_~$])', r'\\\1', part)
                 for i, part in enumerate(parts))
