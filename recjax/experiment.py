"""One experiment: its config, its folder, its run. What `recjax.main` and notebooks share.

    from recjax import experiment
    run = experiment.train('configs/sequential_beauty.py', 'checkpoints/mine', {'train.epochs': 5})
    run.results['rows']['sasrec']['NDCG@10'], run.recommend([['P0001', 'P0002']], k=5)
"""
import dataclasses
import functools
import importlib.util
import os
import pathlib
import platform
import re
import shlex
import subprocess
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from recjax import errors, file_io, methods, run_files
from recjax import settings as parser
from recjax.errors import ConfigError, WorkdirError

ROOT = pathlib.Path(__file__).parents[1]  # of a checkout
CONFIGS = next((folder for folder in (pathlib.Path(__file__).parent / 'configs', ROOT / 'configs')
                if folder.is_dir()), ROOT / 'configs')  # what came with recjax: wheel, or checkout


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished run's folder. workdir: its path."""
  workdir: pathlib.Path

  @functools.cached_property
  def results(self) -> dict:
    """What results.json holds: 'rows' {row: {metric: {value, low, high, n}}}, 'tests', ..."""
    return run_files.need_json(self.workdir / 'results.json')

  @functools.cached_property
  def _recommender(self):
    from recjax import recommend as recommend_lib
    return recommend_lib.load(self.workdir)

  @property
  def data(self) -> Any:
    """The data.dataset.Dataset that it was trained on."""
    return self._recommender[1]

  def recommend(self, histories: Sequence[Sequence[str]], k: int = 10, exclude_seen: bool = True,
                allowed: Iterable[str] | None = None) -> tuple[list[list[str]], Any]:
    """Items for people whose histories are item ids, oldest first.

    k: items for each. exclude_seen: whether those of the history are left out. allowed: ids of the
    only items that may come, None for all. -> item ids [B][k], scores [B, k]
    """
    return self._recommender[0](histories, k, exclude_seen, allowed)

  def table(self) -> str:
    """Rows of the first cut-offs with intervals, as text."""
    from recjax.evaluation import compare
    return compare.text_table(self.results)

  def _repr_html_(self):
    """The report's table, as notebooks show it."""
    from recjax.report import result_tables
    return str(result_tables.results_table(self.results, main='HR@10'))


def train(config: str | ConfigDict, workdir: str | os.PathLike,
          settings: Mapping[str, object] | None = None) -> Run:
  """Runs a config from its first unfinished stage to its report, as `python -m recjax.main` does.

  config: 'configs/NAME.py:ARGUMENT' or 'NAME:ARGUMENT', as `find_config` finds it, or a ConfigDict.
  workdir: the run's folder; the same call goes on where it was stopped. settings: {'a.b': value},
  each of its setting's type. Raises the errors of recjax.errors.
  """
  named = isinstance(config, str)
  cfg = read_config(config) if named else config.copy_and_resolve_references()
  changed = parser.change(cfg, settings or {})
  if named:
    words = [f'--config.{k}={v}' for k, v in changed.items()]
    command = 'python -m recjax.main ' + shlex.join(
        [f'--config={config}', f'--workdir={workdir}', *words])
  else:
    command = 'from Python, with the settings below'
  run(cfg, workdir, facts(command, changed))
  return Run(pathlib.Path(workdir))


def open_run(workdir: str | os.PathLike) -> Run:
  """A run that has ended before. workdir: its folder. Raises WorkdirError where none has."""
  workdir = pathlib.Path(workdir)
  if not (workdir / 'results.json').exists():
    raise WorkdirError(f'{workdir} holds no results.json, so no run has ended there')
  return Run(workdir)


def run(cfg: ConfigDict, workdir: str | os.PathLike, about: dict, guards: Any = None,
        part: tuple[int, int] | None = None) -> None:
  """Opens the run's folder, says what runs, and hands over to the method.

  about: as `facts` gives. guards: a training.fault_tolerance.Guards, None for its defaults. part:
  (i, n), where this process is one of n that share its shards. cfg: the experiment. workdir: the
  run's folder. Raises ConfigError where there are none, and for a setting that is out of its range,
  WorkdirError for a folder that is not for this.
  """
  parser.check(cfg)
  import jax

  from recjax.distributed import sharding
  from recjax.training import continuation, fault_tolerance
  from recjax.training import workdir as workdir_lib
  if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update('jax_compilation_cache_dir', str(file_io.cache_folder() / 'xla'))
  for key in ('method', 'data', 'preset', 'seed', 'mesh', 'start'):
    if key not in cfg:
      raise ConfigError(f'the config has no setting {key!r}; compare it with a file of configs/')
  config = {'config': cfg.to_dict(), 'facts': about}
  method = methods.find(cfg.method, 'the config')
  if part and not hasattr(method, 'SHARED'):
    raise ConfigError(f'--part: no stage of {cfg.method} is made of shards; leave it out')
  continuation.check(cfg, workdir)
  before = run_files.method_before(workdir)
  if before not in (None, cfg.method):
    raise WorkdirError(f'{workdir} holds a run of {before}; name another --workdir, so that '
                       'nothing of it is written over')
  with workdir_lib.open_work(workdir, config, sharding.make_mesh(cfg.mesh),
                             guards or fault_tolerance.Guards(), part) as work:
    announce(work, cfg, about)
    try:
      with parser.reading():
        method.run(cfg, work)
    except errors.PartDone as done:
      work.log(f'{done}; run folder {workdir}')
      return
    except Exception as error:
      if text := errors.disk_error(error):
        raise WorkdirError(f'{workdir}: {text}') from error
      if text := errors.memory_error(error, cfg):
        raise errors.UserError(text) from error
      raise
    work.log(f'all in {workdir}: report.html, results.json')


def facts(command: str, overrides: Mapping[str, object]) -> dict:
  """What one needs to run this again: versions, devices, the command, and the settings that it
  overrides."""
  import flax
  import jax

  import recjax
  revision = ''
  if (ROOT / '.git').exists():  # else a wheel, perhaps inside somebody's own repository
    revision = subprocess.run(['git', 'describe', '--always', '--dirty', '--exclude=*'], cwd=ROOT,
                              capture_output=True, text=True, check=False).stdout.strip()
  devices = jax.devices()
  return {
      'command': command, 'overrides': {k: repr(v) for k, v in overrides.items()},
      'versions': {'recjax': recjax.__version__, 'jax': jax.__version__, 'flax': flax.__version__,
                   'python': platform.python_version()},
      'devices': f'{len(devices)} x {devices[0].device_kind}' + (
          f' of {jax.process_count()} processes' if jax.process_count() > 1 else ''),
      'revision': revision or 'unknown',
  }


def announce(work: Any, cfg: ConfigDict, about: dict) -> None:
  """Logs what runs, on what, with which settings of one's own.

  work: the open Workdir. about: as `facts` gives. cfg: the experiment.
  """
  versions = ', '.join(f'{k} {v}' for k, v in about['versions'].items())
  work.log(f'recjax {cfg.method}, preset {cfg.preset}, data {cfg.data}, seed {cfg.seed}')
  work.log(f'on {about["devices"]}, {versions}; run folder {work.path}')
  overrides = ', '.join(f'{k}={v}' for k, v in about['overrides'].items())
  work.log(f'settings that differ from the preset: {overrides or "none"}')


def find_config(name: str) -> pathlib.Path:
  """The file of a config: `name` itself, else configs/NAME.py here, else the one in recjax.

  name: a path, e.g. 'configs/betag_scientific.py', or one of configs/ without its ending, e.g.
  'betag_scientific'; no argument. Raises ConfigError, which lists the known ones, where there is
  no such file.
  """
  path = pathlib.Path(name)
  places = [path]
  if re.fullmatch(r'\w+', name):
    places += [pathlib.Path('configs', f'{name}.py'), CONFIGS / f'{name}.py']
  elif path.parent == pathlib.Path('configs'):
    places.append(CONFIGS / path.name)
  found = next((place for place in places if place.is_file()), None)
  if not found:
    known = sorted({p.stem for folder in (pathlib.Path('configs'), CONFIGS)
                    for p in folder.glob('[!_]*.py')})
    raise ConfigError(f'{name} is not a config file; name a file, e.g. '
                      f'configs/betag_scientific.py, or one of {", ".join(known)}')
  return found


def read_config(text: str) -> ConfigDict:
  """Runs a config file. text: 'configs/x.py:argument' or 'x:argument', as `find_config` finds it.

  Raises ConfigError where there is no such file or argument.
  """
  path, *argument = text.split(':', 1)
  found = find_config(path)
  spec = importlib.util.spec_from_file_location('config', found)
  if spec is None or spec.loader is None:
    raise ConfigError(f'{found} is no Python file; name a config, e.g. '
                      'configs/betag_scientific.py')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as error:  # somebody's own file may do anything
    raise broken(found, error) from error
  if not callable(getattr(module, 'get_config', None)):
    raise ConfigError(f'{found} has no function get_config(argument), which gives the config; see '
                      'configs/ for files that do')
  try:
    cfg = module.get_config(*argument)
  except errors.UserError:
    raise
  except ValueError as error:
    raise ConfigError(str(error)) from error
  except (Exception, SystemExit) as error:
    raise broken(found, error) from error
  if not isinstance(cfg, ConfigDict):
    raise ConfigError(f'{found}: get_config gives {type(cfg).__name__}; it must give a ConfigDict')
  return cfg


def broken(path: pathlib.Path, error: BaseException) -> ConfigError:
  """The error for a config file that raised one, with its line. path: of the file. error: what it
  raised."""
  lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
  if isinstance(error, SyntaxError) and error.filename == str(path):
    lines = [error.lineno]
  what = error.msg if isinstance(error, SyntaxError) else str(error).strip()[:300]
  return ConfigError(f'{path}{f" line {lines[-1]}" if lines else ""} is no config that can be run: '
                     f'{type(error).__name__}: {what or "no message"}; mend that file')


def changed(cfg: ConfigDict, settings: Sequence[str] | Mapping[str, object]) -> ConfigDict:
  """The config, some of its settings changed as `settings.change` does, with its errors. cfg: it
  changes in place."""
  parser.change(cfg, settings)
  return cfg
