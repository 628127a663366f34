"""`recjax prepare`: raw files to a data set; its sources stand in `data.prepare.cli`."""
import argparse
import pathlib
import re
from collections.abc import Sequence

from recjax.data.prepare import cli as sources
from recjax.errors import ConfigError

HELP = 'raw files to a data set'
EXAMPLES = (
    'table log.csv --columns=user=customer,item=sku --out=data/mine',
    'table more.csv --update=data/mine --out=data/newer',
)
WRITES = 'out'
READ = ('interactions', 'items', 'reviews', 'meta', 'games', 'file', 'folder')  # flags of what is
MADE = ('prepared.json', 'README.md')  # beside items and sequences

add_flags = sources.add_flags


def run(args: argparse.Namespace) -> None:
  """Writes the canonical data set and says what was left out. args: of the command line."""
  if getattr(args, 'overwrite', False):
    check_overwrite(args.out, [value for name in READ if (value := getattr(args, name, ''))])
  sources.run(args)


def check_overwrite(out: str, sources: Sequence[str]) -> None:
  """Raises ConfigError where --overwrite would remove what `recjax prepare` did not make, or what
  it is to read.

  out: the folder to write. sources: the paths that are read.
  """
  folder = pathlib.Path(out)
  if not folder.is_dir():
    return
  for source in sources:
    if pathlib.Path(source).resolve().is_relative_to(folder.resolve()):
      raise ConfigError(f'--overwrite would remove {source}, which is read; name another --out')
  odd = sorted(p.name for p in folder.iterdir() if not (
      p.name in MADE or p.name.partition('.')[0] in ('items', 'sequences') and p.is_file()
      or re.fullmatch(r'\.(README\.md|prepared\.json)\..+\.tmp', p.name)))
  if odd or any(folder.iterdir()) and not (folder / 'prepared.json').is_file():
    what = f'{odd[0]}, which' if odd else 'a data set that'
    raise ConfigError(f'--overwrite: {folder} holds {what} `recjax prepare` did not make; name '
                      'another --out, or remove it yourself')
