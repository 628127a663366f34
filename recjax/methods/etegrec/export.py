"""What a run trained, in files for other programs."""
import shutil
from pathlib import Path

import numpy as np

from recjax import run_files
from recjax.data.formats import etegrec as files
from recjax.errors import ConfigError
from recjax.methods.etegrec.inference import model_stage, open_run


def convert(workdir: Path, kind: str, out: Path) -> None:
  """Writes what was trained.

  workdir: of the run. kind: 'npz', all parameters; 'index', the items' codes as index JSON. out:
  the new file. Raises ConfigError for other kinds, or a file that is there.
  """
  if kind not in ('npz', 'index'):
    raise ConfigError(f'--to={kind} is unknown for this method; npz writes all parameters, index '
                      'the codes of all items as JSON')
  run_files.absent(out, '--out')
  _, dataset, _, params = open_run(workdir)
  with run_files.new_file(out, '--out') as path:
    if kind == 'index':
      files.write_index(path, np.asarray(params['table'])[1:], dataset.catalog.ids)
    else:
      shutil.copyfile(model_stage(workdir) / 'model.npz', path)
