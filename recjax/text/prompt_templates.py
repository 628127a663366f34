"""Template files: parts under their names in brackets, with {fields} to fill in.

A part reaches to the line before the next name; white space counts. A method's own templates stand
beside its code, and a user gives the path of another file.
"""
import importlib.resources
import pathlib
import re
from collections.abc import Iterable, Mapping

from recjax.errors import ConfigError


def read(name: str, home: str, fields: Mapping[str, Iterable[str]]) -> dict[str, str]:
  """Reads a template file.

  name: of one in package `home`, folder templates, or a file's path. fields: {part: the fields it
  must hold}, 'a|b' for one of two. -> {part: text}. Raises ConfigError for what it lacks.
  """
  path = pathlib.Path(name)
  if not path.suffix:
    path = importlib.resources.files(home) / 'templates' / f'{name}.txt'
  if not path.is_file():
    known = sorted(f.name.removesuffix('.txt') for f in (
        importlib.resources.files(home) / 'templates').iterdir() if f.name.endswith('.txt'))
    what = 'does not exist' if pathlib.Path(name).suffix else 'is unknown'
    raise ConfigError(f'prompt.template={name!r} {what}; choose {", ".join(known)}, or name a file')
  cut = re.split(r'^\[(\w+)\]\n', path.read_text(encoding='utf-8'), flags=re.M)
  parts = {k: v[:-1] if v.endswith('\n') else v for k, v in zip(cut[1::2], cut[2::2])}
  for part, wanted in fields.items():
    if part not in parts:
      raise ConfigError(f'template {name}: part [{part}] is missing; it needs '
                        f'{", ".join(f"[{p}]" for p in fields)}')
    for field in wanted:
      choices = [f'{{{f}}}' for f in field.split('|')]
      if not any(choice in parts[part] for choice in choices):
        raise ConfigError(f'template {name}: part [{part}] lacks {" or ".join(choices)}')
  return parts


def fill(text: str, **values: object) -> str:
  """Puts values into {names}; braces in the values, or around other words, stay as they are. text:
  the template."""
  return re.sub(r'\{(\w+)\}', lambda m: str(values.get(m[1], m[0])), text)
