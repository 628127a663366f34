"""Times of raw rows: what a column holds is told from all its values, then read as whole numbers.

Order is kept to the resolution of the file: fractions of a second are written in a finer unit, down
to nanoseconds. A value that is not like the others is no time; nothing is guessed.
"""
import dataclasses
import datetime
import decimal
import re

from recjax.errors import ConfigError, DataError

UNITS = {'s': 1, 'ms': 10 ** 3, 'us': 10 ** 6, 'ns': 10 ** 9}
FIRST, END = 315_532_800, 4_102_444_800  # 1980 and 2100, between which epoch numbers are plausible
DAYS = 7305, 25_568                      # 1990 and 2040, as days since 1970
DAY = 86_400
MOST = 2 ** 62
STRAYS = .1     # share of values unlike the others above which the whole column is refused
SHOWN = 3       # lines of each kind that are named
WORDS = {
    's': 'seconds since 1970', 'ms': 'milliseconds since 1970', 'us': 'microseconds since 1970',
    'ns': 'nanoseconds since 1970', 'days': 'days since 1970', 'ymd': 'days written YYYYMMDD',
    'ymdhm': 'times written YYYYMMDDhhmm', 'ymdhms': 'times written YYYYMMDDhhmmss',
    'number': 'plain numbers, which are no dates', 'iso': 'dates like 2024-03-31',
    'odd': 'dates before 1980 or after 2099', 'd/m/y': 'dates, day first, like 31/03/2024',
    'm/d/y': 'dates, month first, like 03/31/2024', 'x/y': 'dates of either order, like 02/03/2024',
    'words': 'dates with names of months', 'clock': 'hours of a day without the day',
    '': 'no time that is understood'}
NAMED = ('s', 'ms', 'us', 'ns', 'days', 'number', 'iso', 'd/m/y', 'm/d/y')
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
_DAY_MONTH = re.compile(_WEEKDAY + r'(\d{1,2})[ -]([a-z]{3,9})\.?[ ,-]+(\d{4})(?:,? +(\S.*))?',
                        re.IGNORECASE)
_MONTH_DAY = re.compile(_WEEKDAY + r'([a-z]{3,9})\.? +(\d{1,2})(?:st|nd|rd|th)?,? +(\d{4})'
                        r'(?:,? +(\S.*))?', re.IGNORECASE)
_CTIME = re.compile(_WEEKDAY + r'([a-z]{3}) +(\d{1,2}) +(\d[\d:]+)((?: +\S+)?) +(\d{4})',
                    re.IGNORECASE)
_AMAZON = re.compile(r'(\d{1,2}) (\d{1,2}), (\d{4})')


def exact(value):
  """A number, or its text, as (whole part, digits behind the point); None where it is none."""
  if isinstance(value, bool):
    return None
  if isinstance(value, int):
    return value, ''
  if isinstance(value, float):
    value = repr(value)
  elif isinstance(value, decimal.Decimal):
    value = str(value)
  elif not isinstance(value, str):
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


def kind_of(whole):
  """What a number looks like: a unit of UNITS, 'ymd', 'ymdhm', 'ymdhms', or 'number'."""
  for unit, many in UNITS.items():
    if FIRST * many <= whole < END * many:
      return unit
  text = str(whole)
  form = {8: 'ymd', 12: 'ymdhm', 14: 'ymdhms'}.get(len(text))
  if form and text[:2] in ('19', '20'):
    try:
      _calendar(text)
      return form
    except ValueError:
      pass
  return 'number'


def _calendar(text):
  """'YYYYMMDD', with hhmm or hhmmss behind or not. -> seconds. Raises ValueError."""
  parts = [int(text[:4]), *(int(text[at:at + 2]) for at in range(4, len(text), 2))]
  return _seconds(datetime.datetime(*parts))


def _seconds(when):
  when = when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
  return (when - _EPOCH) // datetime.timedelta(seconds=1)


def _stripped(value):
  """A text without the fraction of its seconds. -> (text, digits of the fraction)"""
  if ':' not in value:
    return value, ''
  value = _REGION.sub('', value)
  found = _FRACTION.search(value)
  return (_FRACTION.sub(r'\1', value, count=1), found[2].rstrip('0')) if found else (value, '')


def date(value, order=''):
  """A date, or its text. -> (kind, seconds since 1970, digits of the fraction, zone named or not)

  order: 'd/m/y' or 'm/d/y', which part of 02/03/2024 is the day; without it the seconds of such a
  text are None. kind: as in WORDS, '' where it is no date.
  """
  if isinstance(value, datetime.datetime):
    digits = f'{value.microsecond:06d}'.rstrip('0')
    return 'iso', _seconds(value), digits, value.tzinfo is not None
  if isinstance(value, datetime.date):
    return 'iso', _seconds(datetime.datetime(value.year, value.month, value.day)), '', False
  if not isinstance(value, str):
    return '', None, '', False
  text, digits = _stripped(value.strip())
  try:
    when = datetime.datetime.fromisoformat(text)
    return 'iso', _seconds(when), digits, when.tzinfo is not None
  except (ValueError, OverflowError):
    pass
  try:
    kind, seconds, zone = _parted(text, order) or _worded(text) or ('', None, False)
  except (ValueError, OverflowError):
    kind, seconds, zone = '', None, False
  if not kind and _CLOCK.fullmatch(text):
    kind = 'clock'
  return kind, seconds, digits, zone


def _parted(text, order):
  found = _PARTED.fullmatch(text)
  if not found:
    return None
  a, _, b, c, rest = found.groups()
  if len(a) == 4 and len(c) <= 2:
    return 'iso', *_moment(a, b, c, rest)
  if len(a) > 2 or len(c) != 4:
    return None
  kind = 'd/m/y' if int(a) > 12 else 'm/d/y' if int(b) > 12 else 'x/y'
  if kind != 'x/y' or not order:
    seconds, zone = _moment(c, *((b, a) if kind == 'd/m/y' else (a, b)), rest)
    return kind, seconds if kind != 'x/y' else None, zone
  return kind, *_moment(c, *((b, a) if order == 'd/m/y' else (a, b)), rest)


def _worded(text):
  if found := _DAY_MONTH.fullmatch(text):
    day, month, year, rest = found.groups()
  elif found := _CTIME.fullmatch(text):
    month, day, clock, zone, year = found.groups()
    rest = clock + zone
  elif found := _MONTH_DAY.fullmatch(text):
    month, day, year, rest = found.groups()
  elif found := _AMAZON.fullmatch(text):
    return 'words', *_moment(found[3], found[1], found[2], '')
  else:
    return None
  names = [n for n, name in enumerate(_MONTHS, 1)
           if month.lower() in (name, name[:3], name[:4] if n == 9 else name)]
  return ('words', *_moment(year, names[0], day, rest)) if names else None


def _moment(year, month, day, rest):
  """-> (seconds since 1970, whether a zone is named). Raises ValueError."""
  hour = minute = second = 0
  zone = None
  if rest:
    found = _CLOCK.fullmatch(rest.strip())
    if not found:
      raise ValueError('no time of day')
    hour, minute, second = int(found[1]), int(found[2]), int(found[3] or 0)
    if found[4]:
      if not 1 <= hour <= 12:
        raise ValueError('no hour of twelve')
      hour = hour % 12 + 12 * (found[4].lower() == 'p')
    zone = found[5]
  when = datetime.datetime(int(year), int(month), int(day), hour, minute, second)
  seconds = _seconds(when)
  if zone and zone[0] in '+-':
    away = int(zone[1:3]) * 3600 + int(zone[-2:]) * 60
    seconds -= away if zone[0] == '+' else -away
  return seconds, zone is not None


@dataclasses.dataclass
class Seen:
  """What is known of the values of one kind."""
  count: int = 0
  decimals: int = 0
  least: int | None = None
  greatest: int | None = None
  zones: int = 0
  lines: list = dataclasses.field(default_factory=list)
  example: object = ''


class Profile:
  """What the values of a column look like, each counted under its kind, as in WORDS."""

  def __init__(self):
    self.kinds = {}

  def add(self, value, line):
    """Counts a value that stands in a line; empty ones are no values."""
    if isinstance(value, str):
      if len(value) == 10 and value.isdigit() and '1' <= value[0] <= '3' and self._seconds(value):
        return
      value = value.strip()
    if value is None or value != value or value == '':
      return
    number, zone = exact(value), False
    if number:
      kind, whole, digits = kind_of(number[0]), *number
    else:
      kind, whole, digits, zone = date(value)
      if kind == 'iso' and not FIRST <= whole < END:
        kind = 'odd'
    seen = self.kinds.get(kind)
    if seen is None:
      seen = self.kinds[kind] = Seen(example=value)
    seen.count += 1
    seen.zones += zone
    seen.decimals = max(seen.decimals, len(digits))
    if len(seen.lines) < SHOWN:
      seen.lines.append(line)
    if whole is not None:
      seen.least = whole if seen.least is None else min(seen.least, whole)
      seen.greatest = whole if seen.greatest is None else max(seen.greatest, whole)

  def _seconds(self, value):
    """Counts ten digits, mostly seconds, where these have been seen before. -> whether it did"""
    seen = self.kinds.get('s')
    if seen is None or len(seen.lines) < SHOWN or not value.isascii():
      return False
    whole, seen.count = int(value), seen.count + 1
    seen.least, seen.greatest = min(seen.least, whole), max(seen.greatest, whole)
    return True

  def total(self):
    """How many values were counted."""
    return sum(seen.count for seen in self.kinds.values())

  def like_times(self):
    """Whether nearly all values are dates, or numbers that are plausible as times."""
    good = sum(seen.count for kind, seen in self.kinds.items()
               if kind not in ('number', 'clock', ''))
    return bool(self.total()) and good >= (1 - STRAYS) * self.total()

  def dated(self):
    """Whether nearly all values are texts of dates."""
    good = sum(seen.count for kind, seen in self.kinds.items()
               if kind in ('iso', 'odd', 'd/m/y', 'm/d/y', 'x/y', 'words'))
    return bool(self.total()) and good >= (1 - STRAYS) * self.total()


@dataclasses.dataclass(frozen=True)
class Clock:
  """How values of a column become whole numbers that keep their order.

  kind: as in WORDS, or a pattern of strptime. per_second: whole numbers to a second, 0 where the
  numbers are no dates. factor: whole numbers to one of the column's own. strict: what does not look
  like `kind` is refused.
  """
  kind: str
  per_second: int = 1
  factor: int = 1
  strict: bool = False

  def read(self, value):
    """-> int. Raises ValueError saying why it is no time of this kind."""
    if isinstance(value, str):
      value = value.strip()
    if value is None or value != value or value == '':
      raise ValueError('the time is empty')
    if self.kind in UNITS or self.kind in ('days', 'number', 'ymd', 'ymdhm', 'ymdhms'):
      found = self._number(value)
    else:
      found = self._date(value)
    if not -MOST < found < MOST:
      raise ValueError('the time is out of range')
    return found

  def _number(self, value):
    number = exact(value)
    if not number:
      raise self._other(date(value)[0])
    whole, digits = number
    many = UNITS.get(self.kind)
    if many:
      if self.strict and not FIRST * many <= whole < END * many:
        raise self._other(kind_of(whole))
    elif self.kind.startswith('ymd') or self.strict:
      kind = kind_of(whole)
      if kind != self.kind and self.kind != 'days':
        raise self._other(kind)
    if self.kind.startswith('ymd'):
      return _calendar(str(whole)) * self.per_second
    if self.kind == 'days':
      if self.strict and not DAYS[0] <= whole < DAYS[1]:
        raise self._other('number')
      share = int(digits or 0) * DAY * self.per_second // 10 ** len(digits)
      return whole * self.factor + share
    if not digits:
      return whole * self.factor
    return whole * self.factor + int(digits) * self.factor // 10 ** len(digits)

  def _date(self, value):
    if '%' in self.kind:
      return self._pattern(value)
    order = self.kind if self.kind in ('d/m/y', 'm/d/y') else ''
    kind, seconds, digits, _ = date(value, order) if not exact(value) else ('number', *[None] * 3)
    taken = (order, 'x/y') if order else ('iso',) if self.kind == 'odd' else (self.kind,)
    if kind not in taken or seconds is None:
      raise self._other(kind if kind != 'number' else kind_of(exact(value)[0]))
    if self.strict and self.kind != 'odd' and not FIRST <= seconds < END:
      raise self._other('odd')
    return (seconds * self.per_second
            + int(digits or 0) * self.per_second // 10 ** len(digits))

  def _pattern(self, value):
    try:
      when = datetime.datetime.strptime(str(value), self.kind)
    except ValueError as error:
      raise ValueError(f'the time is not as {self.kind}') from error
    return _seconds(when) * self.per_second + when.microsecond * self.per_second // 10 ** 6

  def _other(self, kind):
    if not kind:
      return ValueError('the time is neither a number nor a date like 2024-03-31 (--time-format '
                        'names a pattern of its own)')
    return ValueError(f'the time looks like {WORDS[kind]}, where {WORDS[self.kind]} are '
                      'expected (--time-format says otherwise)')


PLAIN = Clock('number', 0)


def usual(kind):
  """The clock of a published set, whose times are known to be whole numbers or ISO dates."""
  return Clock(kind, UNITS.get(kind, 1), 1, True)


def fine(decimals):
  """The usual unit, as numbers to a second, that holds so many decimals of one."""
  return 10 ** min(9, 3 * -(-decimals // 3))


def clock_of(kind, decimals, greatest, strict):
  """A Clock whose numbers keep so many decimals of the column's own."""
  if kind in UNITS:
    base = UNITS[kind]
    per = max(base, fine(len(str(base)) - 1 + decimals))
    return Clock(kind, per, per // base, strict)
  if kind == 'days':
    return Clock(kind, fine(decimals), DAY * fine(decimals), strict)
  if kind == 'number':
    while decimals and abs(greatest or 0) * 10 ** decimals >= MOST // 2:
      decimals -= 1
    return Clock(kind, 0, 10 ** decimals, strict)
  return Clock(kind, fine(decimals), fine(decimals), strict)


def decide(profile, form, where, column):
  """Which clock reads all values of a column. -> (Clock, how it was told)

  form: what --time-format names, '' for nothing. where: the file. Raises ConfigError where the
  values leave a choice, DataError where they do not go together; both name lines and the flag.
  """
  kinds, total = profile.kinds, profile.total()
  place = f'{where}: column {column!r}'
  if not total:
    raise DataError(f'{place} holds no times; name another: --columns=time=NAME, or say that the '
                    'rows stand in order: --order=file')
  numbers = [seen for kind, seen in kinds.items() if kind in UNITS
             or kind in ('number', 'ymd', 'ymdhm', 'ymdhms')]
  if form:
    check(form)
    some = numbers if form in UNITS or form in ('days', 'number') else kinds.values()
    decimals = 6 * ('%f' in form) if '%' in form else max((s.decimals for s in some), default=0)
    ends = [abs(end) for s in numbers for end in (s.least, s.greatest)]
    return clock_of(form, decimals, max(ends, default=0), False), 'as --time-format says'
  sizes = {kind: seen.count for kind, seen in kinds.items()}
  order, how = _order(sizes, kinds, place)
  kind = max(sizes, key=sizes.get)
  if sizes[kind] < (1 - STRAYS) * total or kind in ('', 'clock'):
    what = 'times of several kinds' if len(kinds) > 1 else 'no times of day and year'
    raise DataError(f'{place} holds {what}: {_listed(kinds, where)}. Mend them, or say how all are '
                    f'meant: --time-format={"|".join(NAMED)}, or a pattern as in %d.%m.%Y')
  if kind == order:
    seen = [kinds[k] for k in (order, 'x/y') if k in kinds]
    return clock_of(kind, max(s.decimals for s in seen), 0, True), how
  seen = kinds[kind]
  if kind == 'number' and (seen.decimals or _of_days(column)) and (
      DAYS[0] <= seen.least and seen.greatest < DAYS[1]):
    kind = 'days'
  greatest = 0 if seen.least is None else max(abs(seen.least), abs(seen.greatest))
  strict = kind != 'number' or len(kinds) > 1
  how = f'told by all {total:,} values' if sizes.get(kind, total) == total else (
      f'told by {seen.count:,} of {total:,} values')
  if kind == 'number':
    how += '; if they are dates, --time-format names their unit'
  if 0 < seen.zones < seen.count:
    how += f'; {seen.count - seen.zones:,} name no zone and are taken as UTC'
  return clock_of(kind, seen.decimals, greatest, strict), how


def _of_days(column):
  return bool(re.search(r'(?<![a-z])(days?|date|tage?)(?![a-z])', str(column).lower()
                        .replace('_', ' ')))


def _order(sizes, kinds, place):
  """Day or month first, where dates like 02/03/2024 are most of a column. -> (order, how told)

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


def _listed(kinds, where):
  parts, place = [], 'row' if str(where).endswith('.parquet') else 'line'
  for kind, seen in sorted(kinds.items(), key=lambda found: -found[1].count):
    lines = ', '.join(map(str, seen.lines)) + ', …' * (seen.count > len(seen.lines))
    parts.append(f'{seen.count:,} {WORDS[kind]} ({place} {lines}: {str(seen.example)!r:.40})')
  return '; '.join(parts)


def check(form):
  """Raises ConfigError for a --time-format that is none."""
  if form in NAMED or not form:
    return
  try:
    if '%' not in form:
      raise ValueError(form)
    datetime.datetime.strptime(datetime.datetime(2024, 3, 31).strftime(form), form)
  except (ValueError, re.error) as error:
    raise ConfigError(f'--time-format={form!r}: choose one of {", ".join(NAMED)}, or a pattern as '
                      'in %d.%m.%Y %H:%M') from error


@dataclasses.dataclass(frozen=True)
class Scale:
  """What the numbers of a data set's times mean: `per_second` and `factor` as in Clock, and the
  kind of the column that they came from.
  """
  kind: str = 'number'
  per_second: int = 0
  factor: int = 1

  def shown(self, time):
    """A time as a date, or as the number that it is. -> str or None"""
    if time is None:
      return None
    if not self.per_second:
      return str(time) if self.factor == 1 else f'{decimal.Decimal(time) / self.factor:f}'
    try:
      when = _EPOCH + datetime.timedelta(seconds=time // self.per_second)
    except OverflowError:
      return str(time)
    return when.strftime('%Y-%m-%d' if time % (DAY * self.per_second) == 0
                         else '%Y-%m-%d %H:%M:%S')

  def unit(self):
    """The unit in words."""
    return next((WORDS[u] for u, many in UNITS.items() if many == self.per_second),
                'plain numbers' if self.factor == 1 else f'plain numbers, times {self.factor:,}')


NO_TIMES = Scale('')


def scale_of(least, greatest):
  """The scale of whole numbers of which only the ends are known; None: there are none."""
  if least is None:
    return NO_TIMES
  kinds = {kind_of(end) for end in (least, greatest) if end is not None}
  kind = kinds.pop() if len(kinds) == 1 else 'number'
  return Scale(kind, UNITS[kind]) if kind in UNITS else Scale()


def moment(text, name, scale=None):
  """A bound as a time of the data set. -> int, or None of ''. The end of a day is its last moment.

  text: a date, or a number as the column has them. scale: a Scale; None looks at the text alone.
  Raises ConfigError where it is neither, or cannot be compared with those times.
  """
  text = text.strip()
  if not text:
    return None
  if scale == NO_TIMES:
    raise ConfigError(f'--{name}={text}: the rows have no times')
  per = scale.per_second if scale else 1
  number = exact(text)
  if number and len(text) == 8 and kind_of(number[0]) == 'ymd' and (
      not scale or scale.kind != 'number'):
    text, number = f'{text[:4]}-{text[4:6]}-{text[6:]}', None
  if number:
    return _bound(number, text, name, scale)
  kind, seconds, digits, _ = date(text)
  if kind != 'iso':
    raise ConfigError(f'{name}={text!r} is neither a number nor a date like 2024-03-31')
  if scale and not per:
    raise ConfigError(f'--{name}={text}: the times are plain numbers, not dates; compare with '
                      'a number, or name their unit, e.g. --time-format=days')
  if name == 'end' and ':' not in text and len(text) <= 10:
    return (seconds + DAY) * per - 1
  return seconds * per + int(digits or 0) * per // 10 ** len(digits)


def _bound(number, text, name, scale):
  """A bare number as a bound, in units of the column that the times came from."""
  whole, digits = number
  if not scale:
    return whole
  own, kind = scale.kind, kind_of(whole)
  if own.startswith('ymd') and kind == own:
    return _calendar(text) * scale.per_second
  if own not in UNITS and own not in ('days', 'number', 'ymd', 'ymdhm', 'ymdhms'):
    own = 's'  # dates, which are seconds in the data set
  if scale.per_second and own != 'days' and kind != own and whole > 0:
    raise ConfigError(f'--{name}={text} looks like {WORDS[kind]}, and the times are '
                      f'{WORDS.get(own, own)}; write the date, as in 2024-03-31')
  return whole * scale.factor + int(digits or 0) * scale.factor // 10 ** len(digits)
