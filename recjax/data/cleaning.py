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
from collections.abc import Iterable, Iterator

# Columns that become texts, and lists of texts, wherever a source has them.
CLEANED_TEXTS = ('title', 'brand', 'description', 'features', 'main_category', 'city', 'state')
CLEANED_LISTS = ('categories', 'tags', 'neighborhoods')
LONG_TEXTS = ('description', 'features')  # where script is only told at the beginning
CODE_WITHIN = 80
EMPTY_TEXTS = frozenset(('none', 'null', 'nan', 'n/a', '#n/a', '<na>', 'nat', 'undefined', 'n.a.',
                         '[]', '{}', '()', '""', "''", '[none]', '[null]', '[nan]', '\\n'))
EMPTY_IDS = frozenset(('nan', 'NaN', 'None', 'null', 'NULL', '<NA>', 'NaT', '#N/A'))
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


def new_counts() -> dict:
  """What cleaning counts: under 'cleaned' what was done to each column, under 'ids' to ids."""
  return {'cleaned': collections.defaultdict(collections.Counter), 'ids': collections.Counter()}


def clean_item(columns: dict, counts: dict, decimal: str = '') -> dict:
  """The `columns` of an item as they stand in the catalog; what is left empty is left out.

  counts: as `new_counts`, counts what was done. decimal: ',' or '.', which sign of a price is the
  decimal one where 1,299 and 1.299 could be either; '' if nothing tells.
  """
  cleaned = {}
  for name, value in columns.items():
    count = counts['cleaned'][name]
    if name == 'brand' and isinstance(value, str) and (by := _BY.match(value)):
      count['the word `by` of a page taken off'] += 1
      value = value[by.end():]
    if name in CLEANED_LISTS:
      value = clean_list(value, count)
    elif name in CLEANED_TEXTS:
      value = clean_text(value, count, name in LONG_TEXTS)
    elif name == 'price':
      value = clean_price(value, count, decimal)
    elif isinstance(value, str) and is_empty_text(value):
      count['None, [] or a dash'] += bool(value.strip())
      value = None
    if value is not None and value == value:
      cleaned[name] = value
  return cleaned


def is_empty_text(value: str) -> bool:
  """Whether the text `value` only says that there is none."""
  value = value.strip()
  return value.casefold() in EMPTY_TEXTS or bool(_DASHES.fullmatch(value)) or not value


def clean_text(value: object, count: collections.Counter, long: bool = False) -> str | None:
  """A text on one line without markup, None where nothing is left of `value`.

  Lists, also those written as texts, are joined. count: a Counter of what was done. long: script
  is told at the beginning alone.
  """
  if isinstance(value, str):
    parts = parse_list(value)
    if parts == [] or parts and _QUOTED.search(value):  # [1408] may well be a title
      count['lists written as texts'] += bool(parts)
      count['None, [] or a dash'] += not parts
      value = parts
  if isinstance(value, list | tuple):
    value = ' '.join(str(part) for part in flatten_list(value) if part is not None and part == part)
  if value is None or value != value:
    return None
  raw = ' '.join(_SURROGATE.sub('', str(value)).split())
  if not raw:
    return None
  if is_empty_text(raw):
    count['None, [] or a dash'] += 1
    return None
  cleaned = strip_markup(raw, count)
  if is_code(cleaned, long):
    count['page script or CSS'] += 1
    return None
  if not cleaned or is_empty_text(cleaned):
    count['nothing but markup'] += 1
    return None
  return cleaned


def strip_markup(value: str, count: collections.Counter) -> str:
  """The text `value` without tags and entities, blanks collapsed. count: as in `clean_text`."""
  if '<' not in value and '&' not in value:
    return value
  untagged = _untagged(value)
  decoded = untagged
  for _ in range(3):  # as `&amp;amp;`
    if '&' not in decoded:
      break
    decoded = _ENTITY.sub(lambda match: html.unescape(match[0]), decoded)
  count['entities decoded'] += decoded != untagged
  again = _untagged(decoded)
  count['markup taken off'] += untagged != value or again != decoded
  return ' '.join(_SURROGATE.sub('', again).split())


def _untagged(value: str) -> str:
  if '<' not in value:
    return value
  return _TAG.sub('', _BREAKS.sub(' ', _BLOCK.sub(' ', value)))


def is_code(value: str, long: bool = False) -> bool:
  """Whether the text `value` is page script or CSS. long: as in `clean_text`."""
  if not any(sign in value for sign in '{(=@;'):
    return False
  match = _SCRIPT.search(value) or _CSS.search(value)
  return bool(match) and (not long or match.start() < CODE_WITHIN)


def parse_list(value: str) -> list | None:
  """The list that the text `value` spells, as Python, JSON or numpy write it; None for another."""
  value = value.strip()
  if len(value) < 2 or value[0] + value[-1] not in ('[]', '()', '{}'):
    return None
  if value[0] != '[' and value[1:-1].strip()[:1] not in ('"', "'"):
    return None
  try:
    parsed = json.loads(value)
  except (ValueError, RecursionError):
    try:
      parsed = _literal(value)
    except ValueError:
      parsed = _loose(value)
  if isinstance(parsed, set):
    parsed = sorted(parsed, key=value.index if all(isinstance(x, str) for x in parsed) else str)
  if not isinstance(parsed, list | tuple):
    return None
  quoted = _QUOTED.findall(value)
  if len(quoted) > len(parsed) and all(isinstance(x, str) for x in parsed):
    parsed = [_literal(part) for part in quoted]  # numpy: blanks, where Python has commas
  return list(parsed)


def _literal(value: str) -> object:
  """A literal of Python. Raises ValueError."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # of escapes that are none, which stay as they are
      return ast.literal_eval(value)
  except (SyntaxError, RecursionError, MemoryError, TypeError) as error:
    raise ValueError(str(error)) from error


def _loose(value: str) -> object:
  """['a', nan, None] as pandas prints it."""
  if value[0] != '[' or '\n' in value[1:-1] and not _QUOTED.search(value):
    return None
  try:
    return _literal(re.sub(r'(?<=[\[,\s])(nan|NaN|null)(?=\s*[,\]])', 'None', value))
  except ValueError:
    return None


def flatten_list(value: list | tuple) -> Iterator:
  """Yields the parts of the list `value`, nested ones laid flat; of one with a name, that name."""
  for part in value:
    if isinstance(part, list | tuple):
      yield from flatten_list(part)
    elif isinstance(part, dict):
      yield part.get('name') or part.get('title') or json.dumps(part, ensure_ascii=False)
    else:
      yield part


def clean_list(value: object, count: collections.Counter) -> list[str] | None:
  """The texts of `value`, each once, cleaned as by `clean_text` with `count`; None for none."""
  if isinstance(value, str):
    value = [value]
  if not isinstance(value, list | tuple):
    return None
  cleaned = []
  for part in flatten_list(value):
    parts = parse_list(part) if isinstance(part, str) else None
    if parts is None and isinstance(part, str) and _BARE.fullmatch(part.strip()):
      parts = part.strip()[1:-1].split(',')
    if parts is not None:
      count['lists written as texts'] += bool(parts)
      count['None, [] or a dash'] += not parts
      cleaned += [clean_text(x, count) for x in flatten_list(parts)]
    else:
      cleaned.append(clean_text(part, count))
  return list(dict.fromkeys(part for part in cleaned if part)) or None


def split_categories(value: object, sep: str) -> object:
  """The parts of the text `value`, at `sep`; one that spells a list, or is no text, stays whole."""
  if not isinstance(value, str) or not sep or parse_list(value) is not None:
    return value
  return value.split(sep)


def clean_price(value: object, count: collections.Counter,
                decimal: str = '') -> float | str | list | tuple | dict | None:
  """The price `value` as a number; a text with other words stays; None for what is none.

  count: as in `clean_text`. decimal: as in `clean_item`.
  """
  if value is None or isinstance(value, bool):
    return None
  if isinstance(value, int | float):
    count['not a number (NaN)'] += value != value
    return value if abs(value) < float('inf') else None
  if isinstance(value, list | tuple | dict):
    return value or None
  cleaned = clean_text(value, count)
  if cleaned is None or cleaned.casefold() == 'na':
    count['None, [] or a dash'] += cleaned is not None
    return None
  match = _PRICE.fullmatch(cleaned)
  number = parse_amount(match[1], decimal) if match else None
  if number is None:
    count['kept as text, being no single number'] += 1
    return cleaned
  count['read as a number'] += not re.fullmatch(r'\d+(\.\d+)?', cleaned)
  return number


def parse_amount(value: str, decimal: str = '') -> float | None:
  """The text `value` like 1,299.00, 1.299,00 or 24,32 as a number; None where 1,299 could be two.

  decimal: as in `clean_item`.
  """
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


def decimal_sign(values: Iterable) -> str:
  """Which sign parts cents in the prices `values`: ',' or '.', '' where nothing, or both, tell."""
  comma = point = 0
  for value in values:
    if isinstance(value, str):
      match = _PRICE.fullmatch(' '.join(value.split()))
      comma += bool(match and _COMMA.fullmatch(match[1]))
      point += bool(match and _POINT.fullmatch(match[1]))
  return '' if bool(comma) == bool(point) else ',' if comma else '.'


def clean_id(value: object, name: str, counts: collections.Counter | None = None,
             whole: bool = False, exact: bool = False) -> str:
  """The id `value` of the column `name` as text. Raises ValueError saying why it is none.

  counts: a Counter of what was done. whole: ids of the column are numbers, some written as 17.0.
  exact: blanks around an id belong to it, and control signs are written as \\n or \\x07.
  """
  counts = collections.Counter() if counts is None else counts
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value)
  if isinstance(value, float) and value == value:
    if value != int(value) if abs(value) < 2 ** 63 else True:
      raise ValueError(f'{name} is a number with a fraction')
    if abs(value) >= 2 ** 53:
      raise ValueError(f'{name} is a number whose last digits were lost, as floats have them')
    counts[f'{name}: numbers like 17.0 are read as 17'] += 1
    return str(int(value))
  if not isinstance(value, str) or not (value if exact else value.strip()):
    empty = value is None or isinstance(value, str) or value != value
    raise ValueError(f'{name} is {"empty" if empty else "neither a text nor a whole number"}')
  if not exact and value[-1:] == '\t':  # so that spreadsheets take long numbers for texts
    value = value.rstrip('\t')
  if not value.isprintable() and (
      _SURROGATE.search(value) or not exact and _CONTROL.search(value)):
    raise ValueError(f'{name} holds control signs or half a surrogate pair')
  if exact:
    cleaned = _CONTROL.sub(lambda match: repr(match[0])[1:-1], value)
    if cleaned != value:
      counts[f'{name}: control signs are written as \\n'] += 1
    if cleaned.strip() != cleaned:
      counts[f'{name}: blanks around ids belong to them'] += 1
    return cleaned
  cleaned = value.strip()
  if cleaned in EMPTY_IDS:
    counts[f'{name}: ids like nan or None, which may be nobody; kept as one'] += 1
  if cleaned != value:
    counts[f'{name}: blanks around ids are taken off'] += 1
  if whole and (match := _FLOAT_ID.fullmatch(cleaned)):
    counts[f'{name}: numbers like 17.0 are read as 17'] += 1
    return match[1]
  if cleaned[0] <= '9' and _ROUNDED_ID.fullmatch(cleaned):
    counts[f'{name}: ids like 1.5E+12, which a spreadsheet may have rounded; kept as they are'] += 1
  return cleaned


class IdColumn:
  """Whether the ids of a column are numbers, some of which were written as 17.0."""

  def __init__(self):
    self.floats, self.others = 0, 0

  def add(self, value: object) -> None:
    """Looks at the id `value`."""
    if isinstance(value, str) and (value := value.strip()):
      if _FLOAT_ID.fullmatch(value):
        self.floats += 1
      elif not value.isascii() or not value.isdigit() or value[0] == '0' and value != '0':
        self.others += 1

  def mixed(self, name: str) -> dict[str, int]:
    """A count of ids of the column `name` like 17.0 that stay so, since others are no numbers."""
    text = f'{name}: ids like 17.0 beside others that are no numbers; kept as they are'
    return {text: self.floats} if self.others else {}

  def whole(self) -> bool:
    """Whether 17.0 is 17 there."""
    return self.floats > 0 and not self.others
