"""`recjax blend`: finished runs and classical rows mixed into one recommender, itself a run."""
import argparse
import math
import os
import pathlib
import shlex
import sys

from recjax import run_files, settings
from recjax.errors import ConfigError

HELP = 'finished runs and classical rows mixed into one recommender, itself a run'
EXAMPLES = (
    'checkpoints/sasrec checkpoints/llmemb classical:id_text --out=checkpoints/mix',
    'checkpoints/sasrec checkpoints/betag --weights=0.7,0.3 --out=checkpoints/mix',
)
WRITES = 'out'


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of the verb. parser: takes them."""
  parser.add_argument('parts', nargs='+', metavar='part', help='the folder of a finished run of '
                      'any method, or classical:NAME, a row such as classical:id_text')
  parser.add_argument('--out', required=True, help='folder of the blend; the same command goes on '
                      'where it was stopped')
  parser.add_argument('--mode', default='best', choices=('best', 'weights', 'indicator'),
                      help='fixed weights, or of two parts weights by how sure the ID model is '
                      '(memorization indicator); best: whichever validation prefers (default)')
  parser.add_argument('--weights', metavar='W,W,…', help='these, instead of choosing any: one a '
                      'part, 0 or more, with the sum 1')
  parser.add_argument('--top', type=settings.flag(int, 'at least 0'), default=0,
                      help='make scores comparable by the best so many items of a part alone '
                      '(default 0: by all that it scores)')
  parser.add_argument('--valid-users', type=settings.flag(int, 'at least 0'), default=0,
                      help='choose by so many validation cases at most (default 0: all)')
  parser.add_argument('--classical-minutes', type=settings.flag(float, 'at least 0'), default=5.0,
                      help='of two cores, by a count of operations, that the classical rows may '
                      'take (default 5)')


def run(args: argparse.Namespace) -> None:
  """Mixes the parts, and ranks and reports as a run does. args: of the command line."""
  from recjax import experiment
  from recjax.methods.blend import config, parts
  if args.weights is not None and args.mode == 'indicator':
    raise ConfigError('--mode=indicator weighs by the model, so --weights say nothing; leave one '
                      'of them out')
  if args.mode == 'indicator' and len(args.parts) != 2:
    raise ConfigError('--mode=indicator weighs two parts, an ID model and another; '
                      f'{len(args.parts)} are given')
  out = pathlib.Path(args.out)
  refs = [parts.ref_of(out, part) for part in args.parts]
  check_out(out, refs)
  first = next(part for part in parts.read(out, refs) if part.is_run)
  of_run = run_files.read_config(first.path)['config']
  cfg = config.make(refs, of_run, 'history not masked' not in first.protocol)
  cfg.mix.update(mode=args.mode, top=args.top, valid_users=args.valid_users,
                 weights=weights_of(args.weights, len(refs)))
  cfg.eval.classical_minutes = args.classical_minutes
  experiment.run(cfg, out, experiment.facts(f'recjax {shlex.join(sys.argv[1:])}', {}))


def weights_of(text: str | None, count: int) -> tuple[float, ...]:
  """The weights that --weights gives, () for none. text: of the flag. count: of the parts. Raises
  ConfigError for others than `count` numbers of 0 or more with the sum 1."""
  if text is None:
    return ()
  try:
    weights = tuple(float(word) for word in text.split(','))
  except ValueError:
    raise ConfigError(f'--weights={text}: give numbers with commas between, e.g. 0.3,0.7') from None
  if len(weights) != count:
    raise ConfigError(f'--weights={text}: give one for each of the {count} parts, in their order')
  if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
    raise ConfigError(f'--weights={text}: a weight is 0 or more')
  if abs(sum(weights) - 1) > 1e-6:
    raise ConfigError(f'--weights={text}: their sum is {sum(weights):g}; give weights whose sum '
                      'is 1')
  return weights


def check_out(out: pathlib.Path, refs: list[str]) -> None:
  """Raises ConfigError where --out holds something else than a blend of these parts. out: the
  folder. refs: of the parts."""
  around = next((folder for folder in out.absolute().parents
                 if run_files.is_config(folder / 'config.json')), None)
  if around:
    raise ConfigError(f'--out={out} is inside of {around}, which is a run; name a folder beside it')
  if not os.path.lexists(out):
    return
  if not out.is_dir():
    raise ConfigError(f'--out={out} is there already and is no folder; name another')
  if {path.name for path in out.iterdir()} <= {'lock'}:
    return
  before = run_files.read_json(out / 'config.json')['config'] if run_files.is_config(
      out / 'config.json') else {}
  if before.get('method') != 'blend':
    what = f'a run of {before["method"]}' if before.get('method') else 'other things'
    raise ConfigError(f'--out={out} holds {what}, which is not written over; name another folder')
  if list(before.get('parts', [])) != refs:
    raise ConfigError(f'--out={out} holds a blend of {", ".join(before.get("parts", []))}, which '
                      'is not written over; name another folder, or remove that one')
