"""`recjax sweep`: a grid of settings and seeds, the best by validation."""
import argparse
import itertools
import pathlib
import sys

from recjax import experiment, settings

HELP = 'a grid of settings and seeds, the best by validation'
EXAMPLES = (
    '--config=configs/sequential_beauty.py --set optim.lr=1e-3,3e-3 --seeds=3',
    '--config=configs/tiger_beauty.py --set train.batch=128,256 --out=checkpoints/sweep',
)
WRITES = 'out'


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of the verb. parser: takes them."""
  parser.add_argument('--config', required=True, help='a config file, as recjax.main takes it')
  parser.add_argument('--set', action='append', default=[], metavar='KEY=V1,V2', help='values of a '
                      'setting, e.g. optim.lr=1e-3,3e-4; several --set make a grid')
  parser.add_argument('--seeds', type=settings.flag(int, 'at least 1'), default=1,
                      help='runs of each setting (default 1)')
  parser.add_argument('--out', default='', help="the sweep's folder; default: checkpoints/sweep- "
                      "and the config's name. The same command goes on where it was stopped")


def run(args: argparse.Namespace) -> None:
  """Runs a grid and chooses by validation; exit code 1 where runs failed. args: of the command
  line."""
  from recjax import sweep
  out = args.out or f'checkpoints/sweep-{pathlib.Path(args.config.partition(":")[0]).stem}'
  sweep.check_folder(out, args.config)
  points = sweep.grid(args.set)
  cfgs = {}
  for (place, point), shift in itertools.product(enumerate(points), range(args.seeds)):
    cfg = experiment.read_config(args.config)
    with settings.reading():
      cfg.seed += shift
    cfgs[place, cfg.seed] = experiment.changed(cfg, [f'{k}={v}' for k, v in point.items()])
  sweep.check_points(points, [cfgs[key] for key in cfgs if key[1] == cfg.seed])
  sys.exit(sweep.run(args.config, points, cfgs, out) > 0)
