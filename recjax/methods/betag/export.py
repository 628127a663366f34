"""A run's tuned model in other programs' layouts."""
import os
import pathlib

from recjax import run_files
from recjax.errors import ConfigError
from recjax.training import llm_loading
from recjax.training.workdir import find_stage, saved_config


def convert(workdir: str | os.PathLike, to: str, out: str | os.PathLike) -> None:
  """Writes the tuned model: 'peft' as an adapter folder, 'merged' as a whole checkpoint.

  workdir: the run's folder. Raises WorkdirError where the run has not finished tuning, ConfigError
  where `out` exists or `to` is another.
  """
  if to not in ('peft', 'merged'):
    raise ConfigError(f'--to={to} is unknown for this method; choose peft or merged')
  run_files.absent(out, '--out', folder=True)
  config = saved_config(workdir)
  adapter_at = find_stage(workdir, 'tune')
  weights = config['llm']['weights']
  folder = find_stage(workdir, 'llm') if weights == 'tiny' else pathlib.Path(weights)
  with run_files.new_folder(out, '--out') as fresh:
    llm_loading.export_adapted(folder, adapter_at, to, fresh)
