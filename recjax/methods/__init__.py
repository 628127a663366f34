"""The methods, each a package of its own."""
import importlib
import pathlib
from types import ModuleType

from recjax.errors import ConfigError

NAMES = tuple(sorted(p.parent.name for p in pathlib.Path(__file__).parent.glob('*/__init__.py')))


def find(name: object, where: object) -> ModuleType:
  """The package of a method. where: what names it, for the message. name: of the method. Raises
  ConfigError."""
  full = f'recjax.methods.{name}'
  try:
    if isinstance(name, str) and name.isidentifier():
      return importlib.import_module(full)
  except ModuleNotFoundError as error:
    if error.name != full:  # something that the method imports
      raise
  raise ConfigError(f'{where} names the method {name!r:.100}, and there is none of that name; '
                    f'choose one of {", ".join(NAMES)}')
