"""Docstrings for the site: what is not Markdown in them is not read as such.

Shapes such as [B][k] would be taken for links, <name> for HTML and * for emphasis; a list wants an
empty line before it.
"""
import re

import griffe

# Between backticks, or indented by four behind an empty line.
CODE = re.compile(r'(``.*?``|`[^`]*`|(?<=\n\n) {4}[^\n]*(?:\n+ {4}[^\n]*)*)', re.DOTALL)
# An underscore between letters is none of Markdown's.
READ = re.compile(r'[\[\]<*]|(?<!\w)_+|_+(?!\w)')
BEFORE_LIST = re.compile(r'^(?!- )(\S.*)\n(?= {0,3}- )', re.MULTILINE)


class PlainText(griffe.Extension):
  """Escapes the text of every docstring outside of code."""

  def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
    """Called for each module, class, function and attribute that was read."""
    del kwargs
    if obj.docstring:
      obj.docstring.value = plain(obj.docstring.value)


def plain(text: str) -> str:
  """Text of a docstring with what Markdown would read in it escaped, but for code."""
  text = BEFORE_LIST.sub(r'\1\n\n', text)
  parts = CODE.split(text)
  return ''.join(part if i % 2 else READ.sub(escaped, part) for i, part in enumerate(parts))


def escaped(found: re.Match) -> str:
  """A match of READ as Markdown takes it for text."""
  return '&lt;' if found[0] == '<' else '\\' + '\\'.join(found[0])
