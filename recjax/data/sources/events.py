"""What counts of a log: kinds of events, their weights, quantities, returns; gaps and spikes.

A row counts unless it is a return: an event of that kind, or a quantity of 0 or less.
"""
import collections
import datetime
import functools
import re
import statistics
from collections.abc import Collection, Iterator
from typing import NamedTuple

from recjax.data import cleaning, raw_reader
from recjax.errors import ConfigError

# Words of events; the first kind of which one is found counts, so that `removefromcart` is no cart.
KINDS = {
    'return': ('return', 'refund', 'cancel', 'void', 'voided', 'chargeback', 'remove', 'retoure',
               'storn', 'rückgabe', 'erstattet', 'devol', 'reembols', 'rembours', 'annul',
               'reso', 'zwrot', 'iade', 'возврат', '返品', '退货', '반품'),
    'cart': ('cart', 'basket', 'warenkorb', 'panier', 'carrito', 'carrello', 'koszyk', 'sepet',
             'корзин', 'カート', '加购', '장바구니'),
    'purchase': ('purchase', 'buy', 'bought', 'order', 'transaction', 'sale', 'sold', 'checkout',
                 'paid', 'complete', 'kauf', 'bestell', 'bezahlt', 'achat', 'commande', 'compra',
                 'pedido', 'acquist', 'ordine', 'zakup', 'köp', 'koop', 'satın', 'покупк', 'заказ',
                 '購入', '购买', '구매'),
    'view': ('view', 'pv', 'click', 'visit', 'impression', 'detail', 'ansicht', 'klick', 'aufruf',
             'vue', 'vista', 'visita', 'wyświetl', 'просмотр', '閲覧', '浏览', '点击', '조회'),
}
ALONE = {'void', 'voided', 'reso', 'pv', 'vue'}  # words that stand inside of others: 'resolved'
LISTED = 30     # values of a column of events that are told one by one
ENOUGH = 14     # days with interactions that tell what is usual
GAP_DAYS = 3    # at least
FAR_APART = 5   # times the usual distance is a gap
MANY = 10       # times the usual number is a spike
SPIKE_ROWS = 50


def kind_of(value: str) -> str:
  """The kind of the event `value`, as in KINDS, or ''."""
  text = value.casefold()
  apart = re.split(r'[\W\d_]+', text)
  return next((kind for kind, words in KINDS.items() if any(
      word in (apart if word in ALONE else text) for word in words)), '')


def is_events(values: Collection) -> bool:
  """Whether `values` of a column look like kinds of events: few texts, one at least a known one."""
  texts = {value.strip() for value in values if isinstance(value, str) and value.strip()}
  return 0 < len(texts) <= LISTED and any(kind_of(text) for text in texts)


def is_quantity(values: Collection) -> bool:
  """Whether all `values` of a column that are not empty are numbers."""
  texts = [value for value in values if value is not None and value != '']
  return bool(texts) and all(parse_quantity(value) is not None for value in texts)


def parse_quantity(value: object) -> float | None:
  """The number `value`, or its text with a decimal point or comma; None for another."""
  if isinstance(value, str):
    return _amount(value)
  return float(value) if isinstance(value, int | float) and value == value else None


@functools.lru_cache(1 << 12)
def _amount(value: str) -> float | None:
  amount = cleaning.parse_amount(value) if re.fullmatch(r"\s*[+-]?[\d.,']+\s*", value) else None
  return None if amount is None else float(amount)


def parse_rule(text: str) -> dict[str, float]:
  """{'view': 1, 'purchase': 3} of 'view=1,purchase=3', weight 1 where none is given; {} of ''.

  Raises ConfigError for another `text`.
  """
  rule = {}
  for part in filter(None, text.split(',')):
    name, equals, weight = (p.strip() for p in part.rpartition('=')) if '=' in part else (
        part.strip(), '', '1')
    try:
      rule[name.casefold()] = float(weight)
      if not name or not 0 < rule[name.casefold()] < 1e9:
        raise ValueError(weight)
    except ValueError as error:
      raise ConfigError(f'--events: {part!r} is no kind of event with a weight above 0; write '
                        'KIND or KIND=WEIGHT, as in view=1,cart=2,purchase=4') from error
  return rule


class Counted(NamedTuple):
  """What a row counts. left_out: why it does not, '' where it does. weight: how much."""
  left_out: str
  weight: float


class Rule:
  """Which rows count, and how much, by columns of events and quantities.

  event, quantity: those columns, '' for none. text: of --events, '' for everything but returns.
  weighted: whether weights are given, and become ratings.
  """

  def __init__(self, event: str, quantity: str, text: str):
    self.event, self.quantity = event, quantity
    self.rule = {} if text == 'all' else parse_rule(text)
    self.all, self.weighted = text == 'all', '=' in text
    self.seen: collections.Counter = collections.Counter()
    self.returns = 0
    self._known: dict[str, Counted] = {}

  def count(self, row: dict) -> Counted:
    """What `row`, by columns, counts."""
    counted = Counted('', 1.)
    if self.event:
      value = str(row.get(self.event) or '').strip()
      self.seen[value if value in self.seen or len(self.seen) < LISTED else '(others)'] += 1
      counted = self._known.get(value) or self._event(value)
    if self.quantity and not counted.left_out:
      amount = parse_quantity(row.get(self.quantity))
      if amount is not None and amount <= 0 and not self.all:
        return Counted('returns: a quantity of 0 or less', 0.)
      return Counted('', counted.weight * (amount or 1.))
    return counted

  def _event(self, value: str) -> Counted:
    """What an event called `value` counts; remembered."""
    kind = kind_of(value)
    weight = self.rule.get(value.casefold(), self.rule.get(kind))
    if self.rule:
      counted = Counted('', weight) if weight else Counted(f'events of other kinds than '
                                                            f'--events: {value or "(empty)"}', 0.)
    elif kind == 'return' and not self.all:
      counted = Counted(f'returns: {value}', 0.)
    else:
      counted = Counted('', 1.)
    if len(self._known) < 1000:
      self._known[value] = counted
    return counted

  def said(self) -> str:
    """What counts, in words."""
    if self.rule:
      weights = ', '.join(f'{name} {weight:g}' for name, weight in self.rule.items())
      return f'as --events says, {weights}' + (
          ', times the quantity' if self.weighted and self.quantity else '') + (
              ', written as ratings' if self.weighted else '')
    return 'all count' if self.all else ('all but returns count; --events=purchase or '
                                         'view=1,purchase=4 chooses')

  def check(self) -> None:
    """Raises ConfigError where --events names a kind that no row has."""
    lacking = [name for name in self.rule if not any(
        name in (value.casefold(), kind_of(value)) for value in self.seen)]
    if lacking and '(others)' not in self.seen:
      raise ConfigError(f'--events: no row is {", ".join(lacking)}; column {self.event!r} has '
                        f'{", ".join(self.seen)}, and the kinds are {", ".join(KINDS)}')


def calendar_notes(days: collections.Counter) -> list[str]:
  """Gaps and spikes of interactions, in sentences. days: how many on each, from 1970."""
  if len(days) < ENOUGH:
    return []
  ordered = sorted(days)
  steps = [b - a for a, b in zip(ordered, ordered[1:])]
  wide = max(GAP_DAYS, FAR_APART * statistics.median(steps))
  gaps = sorted(((b - a - 1, a + 1, b - 1) for a, b in zip(ordered, ordered[1:])
                 if b - a - 1 >= wide), reverse=True)
  usual = statistics.median(days.values())
  spikes = [(count, day) for day, count in days.most_common(4)
            if count >= max(SPIKE_ROWS, MANY * usual)]
  notes = [f'gap: no interaction from {_day(first)} to {_day(last)} ({length} days)'
           for length, first, last in gaps[:3]]
  if len(gaps) > 3:
    notes.append(f'gap: {len(gaps) - 3} more of {wide:g} days or longer')
  return notes + [f'spike: {_day(day)} has {count:,} interactions, {count / usual:.0f} times a '
                  'usual day' for count, day in spikes[:3]]


def _day(day: int) -> str:
  return str(datetime.date(1970, 1, 1) + datetime.timedelta(days=day))


def counting(rows: Iterator[raw_reader.InteractionRow], per_second: int, notes: dict
             ) -> Iterator[raw_reader.InteractionRow]:
  """Hands on interactions (rows), and adds gaps and spikes to `notes` when all have come.

  per_second: of their times; 0 where these are no dates.
  """
  days: collections.Counter = collections.Counter()
  width = 86_400 * per_second
  for row in rows:
    if width and row[2] is not None and row[2][2] is not None:
      days[row[2][2] // width] += 1
    yield row
  if told := calendar_notes(days):
    notes['calendar'] = told
