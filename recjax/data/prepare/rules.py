"""The rules by which interactions stay or go, whichever engine applies them."""
import dataclasses

from recjax.data import times
from recjax.errors import ConfigError

# Which of equal ones comes first, in columns of DuckDB's tables: time, and number of the row.
REPEATS = {'keep': '', 'first': 't, n', 'last': 't DESC, n DESC', 'first-in-file': 'n'}
EQUAL_TIMES = {'file': 'n', 'item': 'item, n'}


@dataclasses.dataclass(frozen=True)
class Rules:
  """What stays, in the order in which it is applied; 0 and '' switch a rule off.

  start, end: dates or times, both included. untitled: 'keep' or 'drop' items without a title.
  repeats: which of a user's meetings with one item stay. user_k, item_k: interactions each needs,
  counted once or until nothing changes. max_length keeps a user's last or first items. sample:
  users drawn by seed. max_bad: the share of unusable rows that is still tolerated. min_rating:
  lower ones are dropped. min_length: interactions a user needs. cut: 'last' or 'first'. ties: what
  orders interactions of one time. all_items: whether items that nobody met stay.
  """
  min_rating: float = 0.0
  start: str = ''
  end: str = ''
  untitled: str = 'keep'
  repeats: str = 'keep'
  user_k: int = 0
  item_k: int = 0
  once: bool = False
  min_length: int = 0
  max_length: int = 0
  cut: str = 'last'
  sample: int = 0
  seed: int = 0
  ties: str = 'file'
  all_items: bool = False
  max_bad: float = 0.01


DEFAULT_RULES = Rules()


def check_rules(rules: Rules) -> None:
  """Raises ConfigError for `rules` that are none."""
  for name, allowed in (('untitled', ('keep', 'drop')), ('repeats', tuple(REPEATS)),
                        ('cut', ('last', 'first')), ('ties', tuple(EQUAL_TIMES))):
    if getattr(rules, name) not in allowed:
      raise ConfigError(f'{name}={getattr(rules, name)!r}; choose one of {", ".join(allowed)}')
  for name in ('start', 'end'):
    times.parse_bound(getattr(rules, name), name, closing=name == 'end')
