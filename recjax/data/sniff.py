"""What parts the columns of a table, told from its first lines where its name does not say it."""
import csv
import itertools

from recjax.data import raw
from recjax.errors import ConfigError, DataError

LINES = 200
CANDIDATES = (',', ';', '\t', '|', '::', ' ')
NAMES = {'\t': 'a tab', ' ': 'blanks', ',': 'a comma', ';': 'a semicolon'}


def separator(path, encoding='utf-8', named=False):
  """What parts columns. -> (sign, '' or how it was told); ('', '') for Parquet and JSON Lines.

  The sign that the file's ending promises, if it parts the lines; else the one that parts most of
  them alike. named: whether the columns are named elsewhere, so that one column is no fault.
  Raises ConfigError where several do or none does.
  """
  ending = raw.kind(path)
  if ending in ('.parquet', '.jsonl'):
    return '', ''
  usual = raw.SEPARATORS.get(ending, '')
  some = itertools.islice(raw.lines(path, encoding=encoding), LINES)
  some = [text for _, line in some if line and (
      text := line.decode(raw.narrow(encoding), 'replace').rstrip('\r\n'))]
  if not some:
    raise DataError(f'{path} holds no row that can be read.')
  shares = {sign: parted(some, sign) for sign in CANDIDATES}
  if usual and (shares[usual] > .5 or named):
    return usual, ''
  good = [sign for sign in CANDIDATES if shares[sign] == max(shares.values()) > .5]
  if len(good) > 1 and ' ' in good:
    good.remove(' ')  # blanks inside texts
  if len(good) == 1:
    return good[0], f'columns are parted by {NAMES.get(good[0], good[0])}'
  if usual:
    return usual, ''
  known = ', '.join([*raw.SEPARATORS, *raw.JSON_LINES, '.parquet'])
  raise ConfigError(f'{path}: what kind of table is it? Known endings are {known}, the texts '
                    "also with .gz; for another, say what parts its columns: --sep=','")


def parted(lines, sign):
  """The share of lines that a sign parts into as many columns, at least 2, as the first one."""
  if sign == ' ':
    widths = [len(line.split()) for line in lines]
  elif len(sign) > 1 or sign == '\t':
    widths = [len(line.split(sign)) for line in lines]
  else:
    widths = []
    for line in lines:
      try:
        widths.append(len(next(csv.reader([line], delimiter=sign))))
      except (csv.Error, StopIteration):
        widths.append(0)
  return widths.count(widths[0]) / len(widths) if widths[0] > 1 else 0.
