"""What a run trained, in files for other programs."""
import os
import shutil

from recjax import run_files
from recjax.errors import ConfigError
from recjax.training.workdir import find_stage


def convert(workdir: str | os.PathLike, kind: str, out: str | os.PathLike) -> None:
  """Writes the trained parameters as one .npz.

  workdir: the run's folder. kind: 'npz'. out: the file. Raises ConfigError for others, or a file
  there.
  """
  if kind != 'npz':
    raise ConfigError(f'--to={kind} is unknown for this method; npz writes all parameters')
  run_files.absent(out, '--out')
  model = find_stage(workdir, 'train') / 'model.npz'
  with run_files.new_file(out, '--out') as fresh:
    shutil.copyfile(model, fresh)
