"""A run's tuned model in other programs' layouts."""
import os
import pathlib
import shutil

from recjax import run_files
from recjax.errors import ConfigError
from recjax.training import llm_loading
from recjax.training.workdir import find_stage, saved_config


def convert(workdir: str | os.PathLike, to: str, out: str | os.PathLike) -> None:
  """Writes the tuned model: 'peft' as an adapter folder, 'merged' as a whole checkpoint.

  workdir: the run's folder. Raises WorkdirError where the run has not finished tuning, ConfigError
  where `out` exists, or `to` is another or does not fit how the run was tuned.
  """
  config = saved_config(workdir)
  tuned, mode = find_stage(workdir, 'tune'), config['train']['mode']
  if to not in ('peft', 'merged') or (to == 'peft' and mode == 'full'):
    raise ConfigError(f'--to={to} does not fit this run, which was tuned with train.mode={mode}; '
                      + ('choose merged' if mode == 'full' else 'choose peft or merged'))
  run_files.absent(out, '--out', folder=True)
  if mode == 'full':
    with run_files.new_folder(out, '--out') as fresh:
      shutil.copytree(tuned, fresh, dirs_exist_ok=True,
                      ignore=shutil.ignore_patterns('DONE.json', '.*'))
    return
  weights = config['llm']['weights']
  folder = find_stage(workdir, 'llm') if weights == 'tiny' else pathlib.Path(weights)
  with run_files.new_folder(out, '--out') as fresh:
    llm_loading.export_adapted(folder, tuned, to, fresh)
