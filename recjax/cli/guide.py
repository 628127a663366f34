"""`recjax guide`: which method for these data on this machine."""
import argparse
import pathlib

from recjax.errors import ConfigError

HELP = 'which method for these data on this machine, how long it takes, and its command'
EXAMPLES = (
    'data/mine',
    'data/mine --weights=models/SmolLM2-135M-Instruct',
)
WRITES = ''


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of the verb. parser: takes them."""
  parser.add_argument('data', help="folder of a data set, or 'sample'")
  parser.add_argument('--weights', metavar='FOLDER', default='', help='the language model that is '
                      'to be tuned, a Hugging Face folder or a .gguf file (default: a tiny one, '
                      'trained on the titles)')


def run(args: argparse.Namespace) -> None:
  """Prints the methods, what each takes, and what to begin with. args: of the command line. Raises
  ConfigError where --weights is nowhere."""
  import jax

  from recjax import guide
  from recjax.data import array_record, loading
  if args.weights and not pathlib.Path(args.weights).exists():
    raise ConfigError(f'--weights={args.weights} does not exist; name a Hugging Face folder or a '
                      '.gguf file')
  if array_record.is_record_folder(args.data):
    raise ConfigError(f'{args.data} holds records, which the sequential method alone reads; run '
                      f'recjax run sequential_scientific:paper,data={args.data}')
  data = loading.load_data(args.data)
  for line in guide.lines(args.data, data, args.weights, jax.default_backend() != 'cpu'):
    print(line, flush=True)
