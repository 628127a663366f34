"""`recjax convert`: the trained model for other programs, a GGUF file as a Hugging Face folder."""
import argparse
import pathlib

from recjax import base_config, file_io, gguf_file, run_files, settings
from recjax.errors import ConfigError

HELP = 'the trained model for other programs'
EXAMPLES = (
    'checkpoints/betag_scientific --to=peft --out=adapter',
    'model.gguf --to=hf --out=models/mine',
)
WRITES = 'out'
LAYOUTS = ('peft', 'merged', 'npz', 'samples', 'index', 'vectors', 'hf')


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of the verb. parser: takes them."""
  parser.add_argument('workdir', help='the folder of a finished run; for vectors, of a sentence '
                      'encoder (sentence-transformers) or another checkpoint; for hf, a .gguf file')
  parser.add_argument('--to', required=True, choices=LAYOUTS,
                      help='a PEFT adapter folder or a whole Hugging Face checkpoint; plain '
                      'arrays, of methods without a language model; what RecLM was trained on; '
                      'the semantic IDs of all items; vectors of the texts of --data, a .npy; or a '
                      '.gguf file as a Hugging Face folder')
  parser.add_argument('--data', default='', help="of vectors: a data set, or 'sample'")
  parser.add_argument('--out', required=True, help='folder or file to make')


def run(args: argparse.Namespace) -> None:
  """Writes the trained model in a layout that other programs read. args: of the command line."""
  if args.to == 'vectors':
    return embed(args)
  if args.to == 'hf':
    return unpack(args)
  from recjax import recommend
  method, _ = recommend.method_of(args.workdir)
  with run_files.opening(args.workdir), settings.reading(args.workdir):
    method.convert(args.workdir, args.to, args.out)
  print(f'{args.to}: {args.out}')


def embed(args: argparse.Namespace) -> None:
  """Writes the vectors of a catalog's texts by an encoder, row i - 1 of item i, float32. args: of
  the command line."""
  import numpy as np
  from ml_collections import ConfigDict

  from recjax.data import dataset, loading
  from recjax.distributed import sharding
  from recjax.progress import PlainProgress
  from recjax.training import text_embedding
  out = pathlib.Path(args.out)
  if not args.data:
    raise ConfigError('--to=vectors embeds the items of a data set; add --data=FOLDER')
  if out.suffix != '.npy':
    raise ConfigError(f'--out={out}: name a .npy file that does not exist yet')
  run_files.absent(out, '--out')
  data = loading.load_data(args.data)
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  encoder = text_embedding.load(args.workdir, ConfigDict(base_config.llm('sample')), mesh)
  advance = PlainProgress(print, 'embedding', len(data.catalog), 0, 'item')
  vectors, about = text_embedding.embed(
      encoder, dataset.item_texts(data.catalog), mesh, advance=advance)
  with run_files.new_file(out, '--out') as fresh, open(fresh, 'wb') as file:
    np.save(file, vectors.astype(np.float32), allow_pickle=False)
  cut = f'; {about["cut"]:,} texts were cut' if about['cut'] else ''
  print(f'{out}: {len(vectors):,} items, {vectors.shape[1]} numbers each{cut}')


def unpack(args: argparse.Namespace) -> None:
  """Writes a GGUF file's model, dequantized, and its tokenizer as a Hugging Face folder. args: of
  the command line."""
  from recjax.models import huggingface
  from recjax.text import tokenizer
  if not gguf_file.is_gguf(args.workdir):
    raise ConfigError(f'--to=hf reads a .gguf file, and {args.workdir} is none; for the model of a '
                      'run take --to=merged')
  run_files.absent(args.out, '--out', folder=True)
  words = tokenizer.load(args.workdir)
  with run_files.new_folder(args.out, '--out') as fresh:
    huggingface.convert_gguf(args.workdir, fresh)
    words.save(fresh)
    file_io.write_json(fresh / 'generation_config.json', {
        'eos_token_id': list(words.eos_ids), 'pad_token_id': words.pad_id})
  print(f'hf: {args.out}')
