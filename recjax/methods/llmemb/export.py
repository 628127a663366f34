"""What a run trained, in files for other programs."""
import pathlib
import shutil
from pathlib import Path

from recjax import run_files
from recjax.errors import ConfigError
from recjax.methods.llmemb import variants as variants_lib
from recjax.models import huggingface, lora
from recjax.text import tokenizer as tokenizer_lib
from recjax.training.workdir import find_stage, saved_config


def convert(workdir: Path, kind: str, out: Path) -> None:
  """Writes the trained recommender ('npz'), or the tuned LLM as 'peft' adapter or 'merged'.

  workdir: of the run. kind: which of these. out: a new file or folder. Raises ConfigError where
  `out` is there already, WorkdirError where that was not trained.
  """
  if kind == 'npz':
    run_files.absent(out, '--out')
    model = variants_lib.main_stage(workdir) / 'model.npz'
    with run_files.new_file(out, '--out') as target:
      shutil.copyfile(model, target)
    return
  if kind not in ('peft', 'merged'):
    raise ConfigError(f'--to={kind} is unknown for this method; choose npz, peft or merged')
  run_files.absent(out, '--out', folder=True)
  scft_dir = find_stage(workdir, 'scft-tuned')
  weights = saved_config(workdir).llm.weights
  llm_dir = find_stage(workdir, 'llm') if weights == 'tiny' else pathlib.Path(weights)
  base = huggingface.read_config(llm_dir)
  shape = huggingface.adapter_config(scft_dir, base)
  adapter = huggingface.load_adapter(scft_dir, shape)
  with run_files.new_folder(out, '--out') as target:
    if kind == 'peft':
      huggingface.save_adapter(adapter, shape, target, base=str(llm_dir.resolve()))
      return
    huggingface.save(lora.merge(huggingface.load(llm_dir, base), adapter, shape), base, target)
    tokenizer_lib.load(llm_dir).save(target)
