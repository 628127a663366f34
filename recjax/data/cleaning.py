"""Texts, lists, prices and ids of raw rows, cleaned in one way for every source, and counted.

What is no text of an item (`None`, `[]`, a dash, page script, CSS) becomes empty; markup and
entities go; Python or JSON lists inside a text become lists. Nothing else is changed.
"""
import ast
import collections
import html
import json
import re
import warnings

TEXTS = ('title', 'brand', 'description', 'features', 'main_category', 'city', 'state')
LISTS = ('categories', 'tags', 'neighborhoods')
LONG = ('description', 'features')  # where script is only told at the beginning
BEGINNING = 80
NOTHING = frozenset(('none', 'null', 'nan', 'n/a', '#n/a', '<na>', 'nat', 'undefined', 'n.a.', '[]',
                     '{}', '()', '""', "''", '[none]', '[null]', '[nan]', '\\n'))
NOBODY = frozenset(('nan', 'NaN', 'None', 'null', 'NULL', '<NA>', 'NaT', '#N/A'))  # as ids
_UNSEEN = '\xad\u200b-\u200f\ufeff'
_DASHES = re.compile(f'[-\u2010-\u2015\u2212_\\s{_UNSEEN}]+')
_SURROGATE = re.compile(r'[\ud800-\udfff]')
_CONTROL = re.compile(r'[\x00-\x1f\x7f]')
_ENTITY = re.compile(r'&(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});')
_BLOCK = re.compile(r'<(script|style)\b[^>]*>.*?(</\1\s*>|$)', re.IGNORECASE | re.DOTALL)
_INLINE = ('a|abbr|b|big|center|cite|code|del|em|embed|font|form|i|iframe|img|input|ins|label|link|'
           'mark|meta|nobr|noscript|object|param|q|script|select|small|span|strike|strong|style|'
           'sub|sup|svg|tt|u|wbr|button|option|html|head|body|title')
_BREAK = ('address|article|blockquote|br|caption|dd|div|dl|dt|fieldset|footer|h[1-6]|header|hr|li|'
          'main|nav|ol|p|pre|section|table|tbody|td|tfoot|th|thead|tr|ul')
_TAG = re.compile(rf'<!--.*?-->|<!doctype[^>]*>|</?(?:{_INLINE})(?:\s[^<>]*)?/?>'
                  rf'|<(?:{_INLINE}|{_BREAK})\s[^<>]*=[^<>]*$',  # cut off in its middle
                  re.IGNORECASE | re.DOTALL)
_BREAKS = re.compile(rf'</?(?:{_BREAK})(?:\s[^<>]*)?/?>', re.IGNORECASE)
_SCRIPT = re.compile(
    r'\b(?:var|let|const)\s+[\w$]+\s*=[^=].*[;()]|\bfunction\s*\w*\s*\([^)]*\)\s*\{|=>\s*\{'
    r'|\b(?:document|window)\.\w+\s*[.(=\[]|\bnew Date\(|\bP\.(?:when|now|register)\('
    r'|\$\(document\)|\(function\s*\(|@(?:media|import|font-face)\s*[({"\']|<!\[CDATA\[')
_CSS = re.compile(r'[\w\])*]\s*\{\s*[-\w]+\s*:[^{}]*\}')
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_BY = re.compile(r'\s*by\s*\n\s*(?=\S)')  # 'by\n    \n    Maker'
_BARE = re.compile(r'''\[[^\[\]{}'"]*,[^\[\]{}'"]*\]''')  # [Action, Indie]
_MONEY = (r'(?:US|C|CA|A|AU|NZ|HK)?\$|[€£¥₹₽₩₺]|(?:USD|EUR|GBP|JPY|CHF|CAD|AUD|INR|CNY|RMB|SEK|NOK|'
          r'DKK|PLN|Rs\.?|kr\.?|zł|Fr\.?)')
_PRICE = re.compile(rf"(?:{_MONEY})?\s*([+-]?\d[\d.,'\s]*?|[.,]\d+)(?:,-|\.-)?\s*(?:{_MONEY})?",
                    re.IGNORECASE)
_COMMA, _POINT = re.compile(r'[\d.\s]*,\d{1,2}'), re.compile(r'[\d,\s]*\.\d{1,2}')
_FLOAT_ID = re.compile(r'(0|-?[1-9]\d{0,17})\.0+')
_ROUNDED_ID = re.compile(r'\d(\.\d+)?[eE]\+?\d{1,3}')


def new_told():
  """What cleaning counts: {column: {what was done: times}}, and ids in {what: times}."""
  return {'cleaned': collections.defaultdict(collections.Counter), 'ids': collections.Counter()}


def item(columns, told, decimal=''):
  """The columns of an item as they stand in the catalogue; what is left empty is left out.

  told: as `new_told`, counts what was done. decimal: ',' or '.', which sign of a price is the
  decimal one where 1,299 and 1.299 could be either; '' if nothing tells.
  """
  made = {}
  for name, value in columns.items():
    count = told['cleaned'][name]
    if name == 'brand' and isinstance(value, str) and (by := _BY.match(value)):
      count['the word `by` of a page taken off'] += 1
      value = value[by.end():]
    if name in LISTS:
      value = texts(value, count)
    elif name in TEXTS:
      value = text(value, count, name in LONG)
    elif name == 'price':
      value = price(value, count, decimal)
    elif isinstance(value, str) and is_nothing(value):
      count['None, [] or a dash'] += bool(value.strip())
      value = None
    if value is not None and value == value:
      made[name] = value
  return made


def is_nothing(value):
  """Whether a text only says that there is none."""
  value = value.strip()
  return value.casefold() in NOTHING or bool(_DASHES.fullmatch(value)) or not value


def text(value, count, long=False):
  """A text on one line without markup; lists, also those written as texts, are joined. -> or None

  count: a Counter of what was done. long: script is told at the beginning alone.
  """
  if isinstance(value, str):
    found = listed(value)
    if found == [] or found and _QUOTED.search(value):  # [1408] may well be a title
      count['lists written as texts'] += bool(found)
      count['None, [] or a dash'] += not found
      value = found
  if isinstance(value, list | tuple):
    value = ' '.join(str(part) for part in flat(value) if part is not None and part == part)
  if value is None or value != value:
    return None
  raw = ' '.join(_SURROGATE.sub('', str(value)).split())
  if not raw:
    return None
  if is_nothing(raw):
    count['None, [] or a dash'] += 1
    return None
  made = unmarked(raw, count)
  if is_code(made, long):
    count['page script or CSS'] += 1
    return None
  if not made or is_nothing(made):
    count['nothing but markup'] += 1
    return None
  return made


def unmarked(value, count):
  """A text without tags and entities, blanks collapsed."""
  if '<' not in value and '&' not in value:
    return value
  made = _untagged(value)
  decoded = made
  for _ in range(3):  # as `&amp;amp;`
    if '&' not in decoded:
      break
    decoded = _ENTITY.sub(lambda found: html.unescape(found[0]), decoded)
  count['entities decoded'] += decoded != made
  again = _untagged(decoded)
  count['markup taken off'] += made != value or again != decoded
  return ' '.join(_SURROGATE.sub('', again).split())


def _untagged(value):
  if '<' not in value:
    return value
  return _TAG.sub('', _BREAKS.sub(' ', _BLOCK.sub(' ', value)))


def is_code(value, long=False):
  """Whether a text is page script or CSS."""
  if not any(sign in value for sign in '{(=@;'):
    return False
  found = _SCRIPT.search(value) or _CSS.search(value)
  return bool(found) and (not long or found.start() < BEGINNING)


def listed(value):
  """The list that a text spells, as Python, JSON or numpy write it; None where it is no list."""
  value = value.strip()
  if len(value) < 2 or value[0] + value[-1] not in ('[]', '()', '{}'):
    return None
  if value[0] != '[' and value[1:-1].strip()[:1] not in ('"', "'"):
    return None
  try:
    made = json.loads(value)
  except (ValueError, RecursionError):
    try:
      made = _literal(value)
    except ValueError:
      made = _loose(value)
  if isinstance(made, set):
    made = sorted(made, key=value.index if all(isinstance(x, str) for x in made) else str)
  if not isinstance(made, list | tuple):
    return None
  parts = _QUOTED.findall(value)
  if len(parts) > len(made) and all(isinstance(x, str) for x in made):
    made = [_literal(part) for part in parts]  # numpy: blanks, where Python has commas
  return list(made)


def _literal(value):
  """A literal of Python. Raises ValueError."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # of escapes that are none, which stay as they are
      return ast.literal_eval(value)
  except (SyntaxError, RecursionError, MemoryError, TypeError) as error:
    raise ValueError(str(error)) from error


def _loose(value):
  """['a', nan, None] as pandas prints it."""
  if value[0] != '[' or '\n' in value[1:-1] and not _QUOTED.search(value):
    return None
  try:
    return _literal(re.sub(r'(?<=[\[,\s])(nan|NaN|null)(?=\s*[,\]])', 'None', value))
  except ValueError:
    return None


def flat(value):
  """The parts of a list, nested ones laid flat; of a part with a name, that name."""
  for part in value:
    if isinstance(part, list | tuple):
      yield from flat(part)
    elif isinstance(part, dict):
      yield part.get('name') or part.get('title') or json.dumps(part, ensure_ascii=False)
    else:
      yield part


def texts(value, count):
  """A list of texts, each once, cleaned as `text`. -> list or None"""
  if isinstance(value, str):
    value = [value]
  if not isinstance(value, list | tuple):
    return None
  made = []
  for part in flat(value):
    found = listed(part) if isinstance(part, str) else None
    if found is None and isinstance(part, str) and _BARE.fullmatch(part.strip()):
      found = part.strip()[1:-1].split(',')
    if found is not None:
      count['lists written as texts'] += bool(found)
      count['None, [] or a dash'] += not found
      made += [text(x, count) for x in flat(found)]
    else:
      made.append(text(part, count))
  return list(dict.fromkeys(part for part in made if part)) or None


def parted(value, sep):
  """A text of categories in parts, at `sep`; one that spells a list stays whole."""
  if not isinstance(value, str) or not sep or listed(value) is not None:
    return value
  return value.split(sep)


def price(value, count, decimal=''):
  """A price as a number; a text with other words stays; what is none is emptied. -> or None"""
  if value is None or isinstance(value, bool):
    return None
  if isinstance(value, int | float):
    count['not a number (NaN)'] += value != value
    return value if abs(value) < float('inf') else None
  if isinstance(value, list | tuple | dict):
    return value or None
  made = text(value, count)
  if made is None or made.casefold() == 'na':
    count['None, [] or a dash'] += made is not None
    return None
  found = _PRICE.fullmatch(made)
  number = amount(found[1], decimal) if found else None
  if number is None:
    count['kept as text, being no single number'] += 1
    return made
  count['read as a number'] += not re.fullmatch(r'\d+(\.\d+)?', made)
  return number


def amount(value, decimal=''):
  """1,299.00, 1.299,00 or 24,32 as a number; None where 1,299 could be two."""
  value = re.sub(r"['\s]", '', value)
  comma, point = value.rfind(','), value.rfind('.')
  if comma >= 0 and point >= 0:
    decimal = ',' if comma > point else '.'
  elif comma >= 0 or point >= 0:
    sign = ',' if comma >= 0 else '.'
    grouped = re.fullmatch(rf'[+-]?[1-9]\d{{0,2}}(\{sign}\d{{3}})+', value)
    if value.count(sign) > 1:
      decimal = '.' if sign == ',' else ','
    elif not grouped:
      decimal = sign
    elif not decimal:
      return float(value) if sign == '.' else None
  group = '.' if decimal == ',' else ','
  whole, _, cents = value.partition(decimal or '.')
  grouped = rf'[+-]?\d{{1,3}}(\{group}\d{{2,3}})*\{group}\d{{3}}'
  if group in whole and not re.fullmatch(grouped, whole):
    return None
  try:
    number = float(f'{whole.replace(group, "") or 0}.{cents or 0}')
  except ValueError:
    return None
  return int(number) if number == int(number) and not cents.strip('0') else number


def decimal_of(values):
  """Which sign parts cents in a column of prices: ',' or '.', '' where nothing, or both, tell."""
  comma = point = 0
  for value in values:
    if isinstance(value, str):
      found = _PRICE.fullmatch(' '.join(value.split()))
      comma += bool(found and _COMMA.fullmatch(found[1]))
      point += bool(found and _POINT.fullmatch(found[1]))
  return '' if bool(comma) == bool(point) else ',' if comma else '.'


def identity(value, name, told=None, whole=False, exact=False):
  """An id as text. Raises ValueError saying why it is none.

  told: a Counter of what was done. whole: ids of the column are numbers, some written as 17.0.
  exact: blanks around an id belong to it, and control signs are written as \\n or \\x07.
  """
  told = collections.Counter() if told is None else told
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value)
  if isinstance(value, float) and value == value:
    if value != int(value) if abs(value) < 2 ** 63 else True:
      raise ValueError(f'{name} is a number with a fraction')
    if abs(value) >= 2 ** 53:
      raise ValueError(f'{name} is a number whose last digits were lost, as floats have them')
    told[f'{name}: numbers like 17.0 are read as 17'] += 1
    return str(int(value))
  if not isinstance(value, str) or not (value if exact else value.strip()):
    empty = value is None or isinstance(value, str) or value != value
    raise ValueError(f'{name} is {"empty" if empty else "neither a text nor a whole number"}')
  if not value.isprintable() and (
      _SURROGATE.search(value) or not exact and _CONTROL.search(value)):
    raise ValueError(f'{name} holds control signs or half a surrogate pair')
  if exact:
    made = _CONTROL.sub(lambda found: repr(found[0])[1:-1], value)
    if made != value:
      told[f'{name}: control signs are written as \\n'] += 1
    if made.strip() != made:
      told[f'{name}: blanks around ids belong to them'] += 1
    return made
  made = value.strip()
  if made in NOBODY:
    told[f'{name}: ids like nan or None, which may be nobody; kept as one'] += 1
  if made != value:
    told[f'{name}: blanks around ids are taken off'] += 1
  if whole and (found := _FLOAT_ID.fullmatch(made)):
    told[f'{name}: numbers like 17.0 are read as 17'] += 1
    return found[1]
  if made[0] <= '9' and _ROUNDED_ID.fullmatch(made):
    told[f'{name}: ids like 1.5E+12, which a spreadsheet may have rounded; kept as they are'] += 1
  return made


class Ids:
  """Whether the ids of a column are numbers, some of which were written as 17.0."""

  def __init__(self):
    self.floats, self.others = 0, 0

  def add(self, value):
    """Looks at an id."""
    if isinstance(value, str) and (value := value.strip()):
      if _FLOAT_ID.fullmatch(value):
        self.floats += 1
      elif not value.isascii() or not value.isdigit() or value[0] == '0' and value != '0':
        self.others += 1

  def mixed(self, name):
    """A count of ids like 17.0, where others are no numbers, so that they stay as they are."""
    kept = f'{name}: ids like 17.0 beside others that are no numbers; kept as they are'
    return {kept: self.floats} if self.others else {}

  def whole(self):
    """Whether 17.0 is 17 there."""
    return self.floats > 0 and not self.others
