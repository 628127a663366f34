"""Times of raw rows: what a column holds is told from all its values, then read as whole numbers.

Order is kept to the resolution of the file: fractions of a second are written in a finer unit, down
to nanoseconds. A value that is not like the others is no time; nothing is guessed.
"""
import dataclasses
import datetime
import decimal
import functools
import pathlib
import re
import time
from typing import NamedTuple

import numpy as np

from recjax.errors import ConfigError, DataError

UNITS = {'s': 1, 'ms': 10 ** 3, 'us': 10 ** 6, 'ns': 10 ** 9}
NUMERIC = (*UNITS, 'days', 'number', 'ymd', 'ymdhm', 'ymdhms')  # kinds that are numbers
FIRST, END = 315_532_800, 4_102_444_800  # 1980 and 2100, between which epoch numbers are plausible
DAYS = 7305, 25_568                      # 1990 and 2040, as days since 1970
DAY = 86_400
MAX_TIME = 2 ** 62
MAX_STRAYS = .1     # share of values unlike the others above which the whole column is refused
SHOWN_LINES = 3     # lines of each kind that are named
DESCRIPTIONS = {
    's': 'seconds since 1970', 'ms': 'milliseconds since 1970', 'us': 'microseconds since 1970',
    'ns': 'nanoseconds since 1970', 'days': 'days since 1970', 'ymd': 'days written YYYYMMDD',
    'ymdhm': 'times written YYYYMMDDhhmm', 'ymdhms': 'times written YYYYMMDDhhmmss',
    'number': 'plain numbers, which are no dates', 'iso': 'dates like 2024-03-31',
    'odd': 'dates before 1980 or after 2099', 'd/m/y': 'dates, day first, like 31/03/2024',
    'm/d/y': 'dates, month first, like 03/31/2024', 'x/y': 'dates of either order, like 02/03/2024',
    'words': 'dates with names of months', 'clock': 'hours of a day without the day',
    '': 'no time that is understood'}
FORMATS = ('s', 'ms', 'us', 'ns', 'days', 'number', 'iso', 'd/m/y', 'm/d/y')
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MONTHS = ('january', 'february', 'march', 'april', 'may', 'june', 'july', 'august', 'september',
           'october', 'november', 'december')
_WHOLE = re.compile(r'[+-]?\d{1,30}')
_NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?')
_COMMA = re.compile(r'[+-]?\d{4,},\d+')  # 1700000000,5
_REGION = re.compile(r'\[[\w/+-]+\]$')  # as Java adds it: 2024-03-31T10:00:00Z[UTC]
_FRACTION = re.compile(r'(:\d\d)[.,](\d+)')
_CLOCK = re.compile(r'(\d{1,2}):(\d\d)(?::(\d\d))?\s*([ap])?\.?(?:m\.?)?\s*'
                    r'(z|utc|gmt|[+-]\d\d:?\d\d)?', re.IGNORECASE)
_PARTED = re.compile(r'(\d{1,4})([./-])(\d{1,2})\2(\d{1,4})(?:(?:[T ]|, ?)\s*(\S.*))?')
_WEEKDAY = r'(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*,? +)?'
_DAY_MONTH = re.compile(_WEEKDAY + r'(\d{1,2})[ -]([a-z]{3,9})\.?[ ,-]+(\d{4}|\d\d)(?:,? +(\S.*))?',
                        re.IGNORECASE)
_MONTH_DAY = re.compile(_WEEKDAY + r'([a-z]{3,9})\.?[ -]+(\d{1,2})(?:st|nd|rd|th)?,?[ -]+'
                        r'(\d{4}|\d\d)(?:,? +(\S.*))?', re.IGNORECASE)
_CTIME = re.compile(_WEEKDAY + r'([a-z]{3}) +(\d{1,2}) +(\d[\d:]+)((?: +\S+)?) +(\d{4})',
                    re.IGNORECASE)
_ROMANCE = re.compile(r'(\d{1,2})\.?(?: de)? ([^\W\d_]{3,12})\.?(?: de)? (\d{4})'
                      r'(?:(?:,| a las?| um| à)? +(\d{1,2}:\S+))?(?: *(?:hs?|uhr)\.?)?',
                      re.IGNORECASE)
# Beginnings of months in other languages, as long as they tell them apart; 'listopad' is November
# to some and October to others.
_MONTH_STEMS = (
    ('ene', 'janv', 'jän', 'jan', 'gen', 'sty', 'янв'), ('feb', 'fev', 'fév', 'lut', 'фев'),
    ('mar', 'mär', 'maa', 'mrt', 'мар'), ('abr', 'avr', 'apr', 'kwi', 'апр'),
    ('may', 'mai', 'mei', 'mag', 'maj', 'мая', 'май'), ('jun', 'juin', 'giu', 'cze', 'июн'),
    ('jul', 'juil', 'lug', 'lipc', 'июл'), ('ago', 'aoû', 'aou', 'aug', 'sie', 'авг'),
    ('sep', 'set', 'wrz', 'сен'), ('oct', 'out', 'okt', 'ott', 'paź', 'окт'),
    ('nov', 'ноя'), ('dic', 'déc', 'dec', 'dez', 'gru', 'дек'))
_AMAZON = re.compile(r'(\d{1,2}) (\d{1,2}), (\d{4})')


def parse_number(value: object) -> tuple[int, str] | None:
  """The whole part of the number `value`, or of its text, and the digits behind; or None."""
  if isinstance(value, bool):
    return None
  if isinstance(value, int):
    return value, ''
  if isinstance(value, float):
    value = repr(value)
  elif isinstance(value, decimal.Decimal):
    value = str(value)
  elif not isinstance(value, str) or ':' in value:
    return None
  if _WHOLE.fullmatch(value):
    return int(value), ''
  if _COMMA.fullmatch(value):
    value = value.replace(',', '.')
  if not _NUMBER.fullmatch(value):
    return None
  number = decimal.Decimal(value)
  if number.adjusted() > 30:
    return None
  whole = int(number.to_integral_value(decimal.ROUND_FLOOR))
  return whole, f'{number - whole:f}'.partition('.')[2].rstrip('0')


def number_kind(whole: int) -> str:
  """What the number `whole` looks like: a unit of UNITS, 'ymd', 'ymdhm', 'ymdhms', or 'number'."""
  for unit, factor in UNITS.items():
    if FIRST * factor <= whole < END * factor:
      return unit
  text = str(whole)
  compact = {8: 'ymd', 12: 'ymdhm', 14: 'ymdhms'}.get(len(text))
  if compact and text[:2] in ('19', '20'):
    try:
      _compact_date(text)
      return compact
    except ValueError:
      pass
  return 'number'


def _compact_date(text: str) -> int:
  """Seconds of 'YYYYMMDD', with hhmm or hhmmss behind or not. Raises ValueError."""
  month, day, *clock = (int(text[start:start + 2]) for start in range(4, len(text), 2))
  hour, minute, second = (*clock, 0, 0, 0)[:3]
  return _seconds(datetime.datetime(int(text[:4]), month, day, hour, minute, second))


def _seconds(when: datetime.datetime) -> int:
  when = when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
  return (when - _EPOCH) // datetime.timedelta(seconds=1)


def _split_fraction(value: str) -> tuple[str, str]:
  """A text without the fraction of its seconds, and the digits of that."""
  if ':' not in value:
    return value, ''
  value = _REGION.sub('', value)
  match = _FRACTION.search(value)
  return (_FRACTION.sub(r'\1', value, count=1), match[2].rstrip('0')) if match else (value, '')


class Date(NamedTuple):
  """A date. kind: as in DESCRIPTIONS, '' for none. seconds: since 1970. digits: of the fraction.
  has_zone: whether it names a time zone."""
  kind: str
  seconds: int | None
  digits: str = ''
  has_zone: bool = False


def parse_date(value: object, order: str = '') -> Date:
  """Reads the date `value`, or its text.

  order: 'd/m/y' or 'm/d/y', which part of 02/03/2024 is the day; without it the seconds of such a
  text are None.
  """
  if isinstance(value, datetime.datetime):
    digits = f'{value.microsecond:06d}'.rstrip('0')
    return Date('iso', _seconds(value), digits, value.tzinfo is not None)
  if isinstance(value, datetime.date):
    return Date('iso', _seconds(datetime.datetime(value.year, value.month, value.day)))
  if not isinstance(value, str):
    return Date('', None)
  text, digits = _split_fraction(value.strip())
  if text[:4].isdigit():
    try:
      moment = datetime.datetime.fromisoformat(text)
      return Date('iso', _seconds(moment), digits, moment.tzinfo is not None)
    except (ValueError, OverflowError):
      pass
  try:
    kind, seconds, has_zone = _numeric_date(text, order) or _worded_date(text) or ('', None, False)
  except (ValueError, OverflowError):
    kind, seconds, has_zone = '', None, False
  if not kind and _CLOCK.fullmatch(text):
    kind = 'clock'
  return Date(kind, seconds, digits, has_zone)


def _numeric_date(text: str, order: str) -> tuple[str, int | None, bool] | None:
  match = _PARTED.fullmatch(text)
  if not match:
    return None
  a, sign, b, c, clock = match.groups()
  if len(a) <= 2 and len(c) == 2 and (sign == '.' or sign == '/' and int(a) <= 12):
    c = _century(c)  # otherwise the year may stand first
  if len(a) == 4 and len(c) <= 2:
    return 'iso', *_date_seconds(a, b, c, clock)
  if len(a) > 2 or len(c) != 4:
    return None
  kind = 'd/m/y' if int(a) > 12 else 'm/d/y' if int(b) > 12 else 'x/y'
  if kind != 'x/y' or not order:
    seconds, has_zone = _date_seconds(c, *((b, a) if kind == 'd/m/y' else (a, b)), clock)
    return kind, seconds if kind != 'x/y' else None, has_zone
  return kind, *_date_seconds(c, *((b, a) if order == 'd/m/y' else (a, b)), clock)


def _century(year: str) -> str:
  """A year of two digits with the other two, as strptime reads them."""
  return f'{"19" if year >= "69" else "20"}{year}' if len(year) == 2 else year


def _worded_date(text: str) -> tuple[str, int, bool] | None:
  if match := _DAY_MONTH.fullmatch(text):
    day, month, year, clock = match.groups()
    year = _century(year)
  elif match := _CTIME.fullmatch(text):
    month, day, time_of_day, zone, year = match.groups()
    clock = time_of_day + zone
  elif match := _MONTH_DAY.fullmatch(text):
    month, day, year, clock = match.groups()
    year = _century(year)
  elif match := _ROMANCE.fullmatch(text):
    day, month, year, clock = match.groups()
  elif match := _AMAZON.fullmatch(text):
    return 'words', *_date_seconds(match[3], match[1], match[2], '')
  else:
    return None
  number = _month(month.lower())
  return ('words', *_date_seconds(year, number, day, clock)) if number else None


def _month(name: str) -> int:
  """The number of a month by its name or abbreviation, 0 for other words. name: in small letters.
  """
  for number, english in enumerate(_MONTHS, 1):
    if name in (english, english[:3], english[:4] if number == 9 else english):
      return number
  return next((number for number, stems in enumerate(_MONTH_STEMS, 1) if name.startswith(stems)), 0)


@functools.lru_cache(1 << 15)
def _midnight(year: str, month: str | int, day: str) -> int:
  """Seconds from 1970 to the beginning of a day. Raises ValueError."""
  return _seconds(datetime.datetime(int(year), int(month), int(day)))


def _date_seconds(year: str, month: str | int, day: str, clock: str | None) -> tuple[int, bool]:
  """Seconds since 1970, and whether a zone is named. Raises ValueError."""
  hour = minute = second = 0
  zone = None
  if clock:
    match = _CLOCK.fullmatch(clock.strip())
    if not match:
      raise ValueError('no time of day')
    hour, minute, second = int(match[1]), int(match[2]), int(match[3] or 0)
    if match[4]:
      if not 1 <= hour <= 12:
        raise ValueError('no hour of twelve')
      hour = hour % 12 + 12 * (match[4].lower() == 'p')
    zone = match[5]
  if not (hour < 24 and minute < 60 and second < 60):
    raise ValueError('no time of day')
  seconds = _midnight(year, month, day) + 3600 * hour + 60 * minute + second
  if zone and zone[0] in '+-':
    offset = int(zone[1:3]) * 3600 + int(zone[-2:]) * 60
    seconds -= offset if zone[0] == '+' else -offset
  return seconds, zone is not None


@dataclasses.dataclass
class KindProfile:
  """What is known of the values of one kind.

  count: values. decimals: digits of the finest fraction. least, greatest: seconds since 1970.
  zones: values that name a time zone. lines: the first that hold one. example: one value.
  """
  count: int = 0
  decimals: int = 0
  least: int | None = None
  greatest: int | None = None
  zones: int = 0
  lines: list = dataclasses.field(default_factory=list)
  example: object = ''

  def stretch(self, whole: int) -> None:
    """Widens the ends so that `whole` lies between them."""
    self.least = whole if self.least is None else min(self.least, whole)
    self.greatest = whole if self.greatest is None else max(self.greatest, whole)

  def largest(self) -> int:
    """The greatest of the values without their signs, 0 where there are none."""
    return max(abs(self.least or 0), abs(self.greatest or 0))


class ColumnProfile:
  """What the values of a column look like, each counted under its kind, as in DESCRIPTIONS."""

  def __init__(self):
    self.kinds: dict[str, KindProfile] = {}

  def add(self, value: object, line: int) -> None:
    """Counts a `value` that stands in the line numbered `line`; empty ones are no values."""
    if isinstance(value, str):
      if len(value) == 10 and value.isdigit() and '1' <= value[0] <= '3' and self._seconds(value):
        return
      value = value.strip()
    if value is None or value != value or value == '':
      return
    number, has_zone = parse_number(value), False
    if number:
      kind, whole, digits = number_kind(number[0]), *number
    else:
      kind, whole, digits, has_zone = parse_date(value)
      if kind == 'iso' and whole is not None and not FIRST <= whole < END:
        kind = 'odd'
    profile = self.kinds.get(kind)
    if profile is None:
      profile = self.kinds[kind] = KindProfile(example=value)
    profile.count += 1
    profile.zones += has_zone
    profile.decimals = max(profile.decimals, len(digits))
    if len(profile.lines) < SHOWN_LINES:
      profile.lines.append(line)
    if whole is not None:
      profile.stretch(whole)

  def _seconds(self, value: str) -> bool:
    """Counts ten digits, mostly seconds, where these have been seen before, and says whether."""
    profile = self.kinds.get('s')
    if profile is None or len(profile.lines) < SHOWN_LINES or not value.isascii():
      return False
    profile.count += 1
    profile.stretch(int(value))
    return True

  def total(self) -> int:
    """How many values were counted."""
    return sum(profile.count for profile in self.kinds.values())

  def _numbered(self, kind: str) -> bool:
    """Whether numbers that could be times since 1970 are those of orders: of years to come, or all
    but one moment."""
    profile, unit = self.kinds[kind], UNITS.get(kind, 0)
    if not unit or profile.greatest is None or profile.least is None:
      return False
    return profile.greatest > (time.time() + 2 * 366 * DAY) * unit or (
        profile.count >= 20 and profile.greatest - profile.least < 60 * unit)

  def like_times(self) -> bool:
    """Whether nearly all values are dates, or numbers that are plausible as times."""
    likely = sum(profile.count for kind, profile in self.kinds.items()
               if kind not in ('number', 'clock', '') and not self._numbered(kind))
    return bool(self.total()) and likely >= (1 - MAX_STRAYS) * self.total()

  def days_alone(self) -> bool:
    """Whether no value has a time of day."""
    return all(kind in ('ymd', 'days') or kind not in NUMERIC and all(
        end is None or end % DAY == 0 for end in (profile.least, profile.greatest))
        for kind, profile in self.kinds.items())

  def dated(self) -> bool:
    """Whether nearly all values are texts of dates."""
    likely = sum(profile.count for kind, profile in self.kinds.items()
               if kind in ('iso', 'odd', 'd/m/y', 'm/d/y', 'x/y', 'words'))
    return bool(self.total()) and likely >= (1 - MAX_STRAYS) * self.total()


@dataclasses.dataclass(frozen=True)
class TimeParser:
  """How values of a column become whole numbers that keep their order.

  kind: as in DESCRIPTIONS, or a pattern of strptime. per_second: whole numbers to a second, 0 where
  the numbers are no dates. factor: whole numbers to one of the column's own. strict: what does not
  look like `kind` is refused.
  """
  kind: str
  per_second: int = 1
  factor: int = 1
  strict: bool = False

  def read(self, value: object) -> int:
    """The time `value` as a whole number. Raises ValueError saying why it is none of this kind."""
    if isinstance(value, str):
      value = value.strip()
    if value is None or value != value or value == '':
      raise ValueError('the time is empty')
    if self.kind in NUMERIC:
      time = self._number(value)
    else:
      time = self._date(value)
    if not -MAX_TIME < time < MAX_TIME:
      raise ValueError('the time is out of range')
    return time

  def _number(self, value: object) -> int:
    number = parse_number(value)
    if not number:
      raise self._other(parse_date(value)[0])
    whole, digits = number
    factor = UNITS.get(self.kind)
    if factor:
      if self.strict and not FIRST * factor <= whole < END * factor:
        raise self._other(number_kind(whole))
    elif self.kind.startswith('ymd') or self.strict:
      kind = number_kind(whole)
      if kind != self.kind and self.kind != 'days':
        raise self._other(kind)
    if self.kind.startswith('ymd'):
      return _compact_date(str(whole)) * self.per_second
    if self.kind == 'days':
      if self.strict and not DAYS[0] <= whole < DAYS[1]:
        raise self._other('number')
      share = int(digits or 0) * DAY * self.per_second // 10 ** len(digits)
      return whole * self.factor + share
    if not digits:
      return whole * self.factor
    return whole * self.factor + int(digits) * self.factor // 10 ** len(digits)

  def _date(self, value: object) -> int:
    if '%' in self.kind:
      return self._pattern(value)
    order = self.kind if self.kind in ('d/m/y', 'm/d/y') else ''
    number = parse_number(value)
    kind, seconds, digits, _ = Date('number', None) if number else parse_date(value, order)
    accepted = (order, 'x/y') if order else ('iso',) if self.kind == 'odd' else (self.kind,)
    if kind not in accepted or seconds is None:
      raise self._other(number_kind(number[0]) if number else kind)
    if self.strict and self.kind != 'odd' and not FIRST <= seconds < END:
      raise self._other('odd')
    return (seconds * self.per_second
            + int(digits or 0) * self.per_second // 10 ** len(digits))

  def _pattern(self, value: object) -> int:
    try:
      moment = datetime.datetime.strptime(str(value), self.kind)
    except ValueError as error:
      raise ValueError(f'the time is not as {self.kind}') from error
    return _seconds(moment) * self.per_second + moment.microsecond * self.per_second // 10 ** 6

  def _other(self, kind: str) -> ValueError:
    if not kind:
      return ValueError(
        'the time is neither a number nor a date like 2024-03-31 (--time-format '
        'names a pattern of its own)'
      )
    return ValueError(
      f'the time looks like {DESCRIPTIONS[kind]}, where {DESCRIPTIONS[self.kind]} are '
      'expected (--time-format says otherwise)'
    )


PLAIN = TimeParser('number', 0)


def published_parser(kind: str) -> TimeParser:
  """The parser of a published set, whose times are known as whole numbers of a unit, or ISO dates.

  kind: as in DESCRIPTIONS.
  """
  return TimeParser(kind, UNITS.get(kind, 1), 1, True)


def _unit_for(decimals: int) -> int:
  """The usual unit, as numbers to a second, that holds so many decimals of one."""
  return 10 ** min(9, 3 * -(-decimals // 3))


def make_parser(kind: str, decimals: int, greatest: int | None, strict: bool) -> TimeParser:
  """A parser whose numbers keep so many `decimals` of the column's own, of which `greatest` is one.

  kind, strict: as in TimeParser.
  """
  if kind in UNITS:
    unit = UNITS[kind]
    per_second = max(unit, _unit_for(len(str(unit)) - 1 + decimals))
    return TimeParser(kind, per_second, per_second // unit, strict)
  if kind == 'days':
    return TimeParser(kind, _unit_for(decimals), DAY * _unit_for(decimals), strict)
  if kind == 'number':
    while decimals and abs(greatest or 0) * 10 ** decimals >= MAX_TIME // 2:
      decimals -= 1
    return TimeParser(kind, 0, 10 ** decimals, strict)
  return TimeParser(kind, _unit_for(decimals), _unit_for(decimals), strict)


def choose_parser(profile: ColumnProfile, time_format: str, path: str | pathlib.Path,
                  column: str) -> tuple[TimeParser, str]:
  """Which parser reads all values of a `column`, of which `profile` is known, and how it was told.

  time_format: what --time-format names, '' for nothing. path: the file. Raises ConfigError where
  the values leave a choice, DataError where they do not go together; both name lines and the flag.
  """
  kinds, total = profile.kinds, profile.total()
  place = f'{path}: column {column!r}'
  if not total:
    raise DataError(f'{place} holds no times; name another: --columns=time=NAME, or say that the '
                    'rows stand in order: --order=file')
  if time_format:
    check_format(time_format)
    numbers = [seen for kind, seen in kinds.items() if kind in NUMERIC]
    alike = numbers if time_format in NUMERIC else kinds.values()
    decimals = max((seen.decimals for seen in alike), default=0)
    if '%' in time_format:
      decimals = 6 * ('%f' in time_format)
    greatest = max((seen.largest() for seen in numbers), default=0)
    return make_parser(time_format, decimals, greatest, False), 'as --time-format says'
  sizes = {kind: seen.count for kind, seen in kinds.items()}
  order, how = _day_month_order(sizes, kinds, place)
  kind = max(sizes, key=lambda k: sizes[k])
  if sizes[kind] < (1 - MAX_STRAYS) * total or kind in ('', 'clock'):
    what = 'times of several kinds' if len(kinds) > 1 else 'no times of day and year'
    raise DataError(f'{place} holds {what}: {_describe_kinds(kinds, path)}. Mend them, or say how '
                    f'all are meant: --time-format={"|".join(FORMATS)}, or a pattern as in '
                    '%d.%m.%Y')
  if kind == order:
    decimals = max(kinds[k].decimals for k in (order, 'x/y') if k in kinds)
    return make_parser(kind, decimals, 0, True), how
  seen = kinds[kind]
  if kind == 'number' and (seen.decimals or _of_days(column)) and (
      DAYS[0] <= (seen.least or 0) and seen.largest() < DAYS[1]):
    kind = 'days'
  strict = kind != 'number' or len(kinds) > 1
  how = f'told by all {total:,} values' if sizes.get(kind, total) == total else (
      f'told by {seen.count:,} of {total:,} values')
  if kind == 'number':
    how += '; if they are dates, --time-format names their unit'
  if 0 < seen.zones < seen.count:
    how += f'; {seen.count - seen.zones:,} name no zone and are taken as UTC'
  return make_parser(kind, seen.decimals, seen.largest(), strict), how


def _of_days(column: str) -> bool:
  return bool(re.search(r'(?<![a-z])(days?|date|tage?)(?![a-z])', str(column).lower()
                        .replace('_', ' ')))


def _day_month_order(sizes: dict[str, int], kinds: dict[str, KindProfile],
                     place: str) -> tuple[str, str]:
  """Day or month first, where dates like 02/03/2024 are most of a column, and how it was told.

  Merges the counts of both spellings in `sizes`.
  """
  day, month, either = (sizes.get(kind, 0) for kind in ('d/m/y', 'm/d/y', 'x/y'))
  if not day + month + either or max(
      (n for kind, n in sizes.items() if kind not in ('d/m/y', 'm/d/y', 'x/y')),
      default=0) >= day + month + either:
    return '', ''
  choice = '--time-format=d/m/y (day first) or --time-format=m/d/y (month first)'
  if day and month:
    lines = {kind: ', '.join(map(str, kinds[kind].lines)) for kind in ('d/m/y', 'm/d/y')}
    raise DataError(f'{place} holds dates of two orders: {day:,} with the day first (lines '
                    f'{lines["d/m/y"]}), {month:,} with the month first (lines {lines["m/d/y"]}). '
                    f'Mend them, or say which is meant: {choice}')
  if not day + month:
    raise ConfigError(f'{place} holds dates like {kinds["x/y"].example!r} (line '
                      f'{kinds["x/y"].lines[0]}), and none has a day over 12, so that nothing '
                      f'tells the day from the month; say {choice}')
  order = 'd/m/y' if day else 'm/d/y'
  sizes[order] += sizes.pop('x/y', 0)
  return order, (f'told by {day + month:,} of {day + month + either:,} with 13 or more in the '
                 f'day\'s place, e.g. {kinds[order].example!r} in line {kinds[order].lines[0]}')


def _describe_kinds(kinds: dict[str, KindProfile], path: str | pathlib.Path) -> str:
  parts, place = [], 'row' if str(path).endswith('.parquet') else 'line'
  for kind, seen in sorted(kinds.items(), key=lambda item: -item[1].count):
    lines = ', '.join(map(str, seen.lines)) + ', …' * (seen.count > len(seen.lines))
    parts.append(
      f'{seen.count:,} {DESCRIPTIONS[kind]} ({place} {lines}: {str(seen.example)!r:.40})'
    )
  return '; '.join(parts)


def check_format(time_format: str) -> None:
  """Raises ConfigError for a `time_format` that is none of --time-format."""
  if time_format in FORMATS or not time_format:
    return
  try:
    if '%' not in time_format:
      raise ValueError(time_format)
    datetime.datetime.strptime(datetime.datetime(2024, 3, 31).strftime(time_format), time_format)
  except (ValueError, re.error) as error:
    raise ConfigError(f'--time-format={time_format!r}: choose one of {", ".join(FORMATS)}, or a '
                      'pattern as in %d.%m.%Y %H:%M') from error


@dataclasses.dataclass(frozen=True)
class TimeScale:
  """What the numbers of a data set's times mean.

  kind: of the column that they came from. per_second, factor: as in TimeParser.
  """
  kind: str = 'number'
  per_second: int = 0
  factor: int = 1

  def shown(self, time: int | None) -> str | None:
    """The whole number `time` as a date, or as the number that it is; None for None."""
    if time is None:
      return None
    if not self.per_second:
      return str(time) if self.factor == 1 else f'{decimal.Decimal(time) / self.factor:f}'
    try:
      moment = _EPOCH + datetime.timedelta(seconds=time // self.per_second)
    except OverflowError:
      return str(time)
    return moment.strftime('%Y-%m-%d' if time % (DAY * self.per_second) == 0
                         else '%Y-%m-%d %H:%M:%S')

  def unit(self) -> str:
    """The unit in words."""
    plain = 'plain numbers' if self.factor == 1 else f'plain numbers, times {self.factor:,}'
    return {per_second: DESCRIPTIONS[unit] for unit, per_second in UNITS.items()}.get(
        self.per_second, plain)


NO_TIMES = TimeScale('')


def find_scale(least: int | None, greatest: int | None) -> TimeScale:
  """The scale of times from `least` to `greatest`, both None where there are none."""
  if least is None:
    return NO_TIMES
  kinds = {number_kind(end) for end in (least, greatest) if end is not None}
  kind = kinds.pop() if len(kinds) == 1 else 'number'
  return TimeScale(kind, UNITS[kind]) if kind in UNITS else TimeScale()


def in_seconds(times: np.ndarray) -> np.ndarray:
  """Times in whole seconds. times: of a data set; plain numbers, which have no unit, stay."""
  if not len(times):
    return times
  return times // (find_scale(int(times.min()), int(times.max())).per_second or 1)


def parse_bound(text: str, name: str, scale: TimeScale | None = None,
                closing: bool = False) -> int | None:
  """A bound as a time of the data set, None of ''.

  text: a date, or a number as the column has them. name: of the flag. scale: of the times; None
  looks at the text alone. closing: whether a day is meant up to its end. Raises ConfigError where
  it is neither, or cannot be compared with those times.
  """
  text = text.strip()
  if not text:
    return None
  if scale == NO_TIMES:
    raise ConfigError(f'--{name}={text}: the rows have no times')
  per_second = scale.per_second if scale else 1
  number = parse_number(text)
  if number and len(text) == 8 and number_kind(number[0]) == 'ymd' and (
      not scale or scale.kind != 'number'):
    text, number = f'{text[:4]}-{text[4:6]}-{text[6:]}', None
  if number:
    return _numeric_bound(number, text, name, scale)
  kind, seconds, digits, _ = parse_date(text)
  if kind != 'iso' or seconds is None:
    raise ConfigError(f'{name}={text!r} is neither a number nor a date like 2024-03-31')
  if scale and not per_second:
    raise ConfigError(f'--{name}={text}: the times are plain numbers, not dates; compare with '
                      'a number, or name their unit, e.g. --time-format=days')
  if closing and ':' not in text and len(text) <= 10:
    return (seconds + DAY) * per_second - 1
  return seconds * per_second + int(digits or 0) * per_second // 10 ** len(digits)


def _numeric_bound(number: tuple[int, str], text: str, name: str, scale: TimeScale | None) -> int:
  """A bare number as a bound, in units of the column that the times came from."""
  whole, digits = number
  if not scale:
    return whole
  column_kind, kind = scale.kind, number_kind(whole)
  if column_kind.startswith('ymd') and kind == column_kind:
    return _compact_date(text) * scale.per_second
  if column_kind not in NUMERIC:
    column_kind = 's'  # dates, which are seconds in the data set
  if scale.per_second and column_kind != 'days' and kind != column_kind and whole > 0:
    raise ConfigError(f'--{name}={text} looks like {DESCRIPTIONS[kind]}, and the times are '
                      f'{DESCRIPTIONS[column_kind]}; write the date, as in 2024-03-31')
  return whole * scale.factor + int(digits or 0) * scale.factor // 10 ** len(digits)
