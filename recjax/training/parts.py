"""Parts of one job: processes that know nothing of each other and see the same folder."""
import re

from recjax.errors import ConfigError


def parse(text):
  """What --part says: '2/8' -> (1, 8), which part this is, from 0, and of how many; None without.

  Raises ConfigError for anything else.
  """
  if not text:
    return None
  found = re.fullmatch(r'([0-9]+)/([0-9]+)', text)
  index, count = map(int, found.groups()) if found else (0, 0)
  if not 1 <= index <= count:
    raise ConfigError(f'--part={text}: give I/N, this part and how many there are, with I from 1 '
                      'to N, e.g. --part=2/8')
  return index - 1, count
