"""Recommendation with language models, on JAX.

    import recjax
    run = recjax.run('sequential_beauty', 'checkpoints/mine')
    recommend, data = recjax.load('checkpoints/mine')
    found = recjax.generate(decoder, params, prompts, constraint)

`run` is `recjax.experiment.train` and gives a `Run`, `load` is `recjax.recommend.load`, `generate`
is `recjax.decoding.generate.generate`. Each is imported when it is first asked for, so `import
recjax` itself loads nothing else and touches no device.
"""
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from recjax.decoding.generate import generate as generate
  from recjax.experiment import Run as Run
  from recjax.experiment import train as run
  from recjax.recommend import load as load

__version__ = '0.2.0'  # the one place: setup.py reads this line

__all__ = ['Run', '__version__', 'generate', 'load', 'run']

_HOMES = {'Run': ('recjax.experiment', 'Run'), 'run': ('recjax.experiment', 'train'),
          'load': ('recjax.recommend', 'load'),
          'generate': ('recjax.decoding.generate', 'generate')}


def __getattr__(name: str) -> object:
  """A public name, imported at its first use. Raises AttributeError for any other."""
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module, attribute = _HOMES[name]
  found = getattr(importlib.import_module(module), attribute)
  globals()[name] = found  # so that this runs once for each name
  return found


def __dir__() -> list[str]:
  """The names of the module, the ones that are not imported yet among them."""
  return sorted({*globals(), *__all__})
