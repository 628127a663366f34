"""What a request states in numbers: how many items, and what they may cost.

Numbers count where words around them say so ('three items', 'not over 50', 'between 20 and 40
euros'); '50 ml bottles', 'for 3 people' and 'people over 18' are no limits. Decoding then keeps to
them: what is read here is not left to the model. English alone.
"""
import collections
import dataclasses
import math
import re

import numpy as np
from jaxtyping import Bool, Float

from recjax.data import cleaning
from recjax.data.dataset import Catalog

SMALL = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten',
         'eleven', 'twelve', 'thirteen', 'fourteen', 'fifteen', 'sixteen', 'seventeen', 'eighteen',
         'nineteen']
TENS = ['twenty', 'thirty', 'forty', 'fifty', 'sixty', 'seventy', 'eighty', 'ninety']
VALUES = {**{word: value for value, word in enumerate(SMALL)},
          **{word: 10 * value for value, word in enumerate(TENS, 2)}, 'a': 1}
_TWO = rf'(?:(?:{"|".join(TENS)})(?:[- ](?:{"|".join(SMALL[1:10])}))?|{"|".join(SMALL[::-1])})'
NUMBER_WORDS = re.compile(
  rf'\b(?:(?P<hundreds>a|{_TWO}) hundred(?: and)?(?: (?P<rest>{_TWO}))?|(?P<plain>{_TWO}))\b')

NUMBER = r'(?<![\w.,])\d+(?:[.,]\d+)*(?![\w%°"/])'
SIGNS = r'[$€£¥₹]'
CURRENCY = (rf'(?:{SIGNS}|(?:euros?|eur|dollars?|usd|bucks?|pounds?(?! (?:of|heavy))|quid|gbp|chf|'
            r'francs?|yen|rupees?)\b)')
AMOUNT = (rf'(?:(?:{SIGNS}|\b(?:usd|eur|gbp|chf)\b) ?\d+(?:[.,]\d+)*|'
          rf'(?<![\w.,])\d+(?:[.,]\d+)* ?{CURRENCY}|{NUMBER})')
# What may follow a number without a currency for it to be a price.
END = (r'(?= *(?:$|[,;:)\'"]|-(?: |$)|(?:and|or|but|please|each|apiece|per|for|in|with|if|then|so|'
       r'that|which|to|from|total|altogether|because|since|i|we|a piece|an item|max|thanks)\b))')
OF = (r'(?: (?:a|the))?(?: (?:total|price|cost|budget|sum|limit)(?: (?:is|of|at))?)?'
      r'(?: (?:about|around|only|just))? ?:? ?')
NEGATION = (r"(?:\b(?:not|no|nothing|none|never|without|cannot|\w+n't|dont|doesnt)"
            r"(?: (?:be|go|going|cost|costs|costing|spend|spending|anything|is|are|priced|to|"
            r'the|price|much|all)){0,3} )')
OVER = (r'(?:over|above|beyond|exceed(?:ing|s)?|more(?: expensive)? than|dearer than|'
        r'pricier than|higher than|greater than)')
UNDER = r'(?:under|below|beneath|less(?: expensive)? than|fewer than|cheaper than|lower than)'
AT_MOST = (r'(?:up to|at(?: the)? most|max(?:imum)?|(?:price )?limit(?: is)?|'
           r'(?:my |a |the )?budget(?: is)?)')
AT_LEAST = r'(?:at least|min(?:imum)?|starting at)'
# Words before a comparison that make it one of people, places or heat, not of prices.
OTHER_SUBJECTS = re.compile(
  r"(?:\b(?:people|persons?|adults?|child(?:ren)?|kids?|anyone|everyone|someone|men|women|boys?|"
  r"girls?|students?|guests?|aged?|ages|temperatures?|heat(?:ed)?|speeds?|weigh\w*|i'm|am|was|were|"
  r'(?!that|which|it|price|they|items|products|everything|each|all|cost)\w+ (?:is|are))) ?$')

ITEMS = r'(?:items?|products?|articles?)'
IDEAS = (r'(?:suggestions?|recommendations?|options?|ideas|picks?|things?|choices?|titles?|gifts?|'
         r'presents?)')
_NO_ADJECTIVE = (r'(?:people|persons?|guests|players|children|kids|students|friends|of|for|to|and|'
                 r'or|in|with|bought|ml|cl|l|lit\w+|k?g|mg|[cmk]?m|inch\w*|v|volts?|w|watts?|'
                 r'minutes?|hours?|days?|weeks?|months?|years?|times|per|from|x)\b')
COUNTED = rf'(?: (?!{_NO_ADJECTIVE})[a-z][a-z-]*){{0,2}}? (?P<noun>{ITEMS}|{IDEAS})\b'
ASKS = (r'\b(?:recommend|suggest|name|list|(?:give|show|find|sell|get|bring|pick|send|offer)'
        r'(?: me| us)|i (?:want|need)|top)(?: me| us)?')
COMPARED = {'least': AT_LEAST, 'most': AT_MOST, 'over': OVER, 'under': UNDER}
# Words before a number of items that tell of items there are, and ask for none.
TOLD = re.compile(
  r"(?:\b(?:bought|have|had|has|own|owns|ordered|got|holds?|contains?|costs?|sold|sells?|buys?|"
  r"gives|gave|returned|used|broke|lost|these|those|my|your|our|his|her|their|last|per|every|each|"
  r"(?:pack|packs|box|boxes|set|kit|bag|case|crate|out|one|some|all) of)"
  r'(?: (?:already|just|only|also|about|the|first|last))*) ?$')
READ_CHARS = 2000  # the last ones of a request, in which limits are looked for
BEFORE = 80  # signs before a number that say what it counts
QUESTION = re.compile(r'\bhow (?:many|much)\b')
TOTAL = re.compile(r'\b(?:in total|altogether|together|in all|overall|for all of them)\b')


@dataclasses.dataclass(frozen=True)
class ItemLimits:
  """What a request states of items: how many, and at which price.

  least, most: items that it asks for, 0 where it does not say. low, high: what an item may cost,
  both included. words: how the request puts the price. of_sum: whether that is said of all items
  together.
  """
  least: int = 0
  most: int = 0
  low: float = -math.inf
  high: float = math.inf
  words: str = ''
  of_sum: bool = False

  def meets(self, prices: Float[np.ndarray, ' N']) -> Bool[np.ndarray, ' N']:
    """Which items a stated price allows: all without one; an item of unknown price never has one.

    prices: of the items, NaN where unknown.
    """
    if not self.words:
      return np.ones(len(prices), bool)
    return (prices >= self.low) & (prices <= self.high)  # NaN is neither


def read(text: str) -> ItemLimits:
  """The limits that a request states. text: as a person typed it."""
  least, most, bare_least, low, high, words = 0, 0, 0, -math.inf, math.inf, []
  of_sum = False
  for sentence in sentences(text):
    if QUESTION.search(sentence):
      continue
    sentence, counts = _counts(sentence)
    for fewest, largest, is_sure in counts:
      least, bare_least = (max(least, fewest), bare_least) if is_sure else (
        least, max(bare_least, fewest))
      most = min(filter(None, (most, largest)), default=0)
    for start, stop, said in _prices(sentence):
      low, high, of_sum = max(low, start), min(high, stop), of_sum or bool(TOTAL.search(sentence))
      words.append(said)
  least = max(least, bare_least) if words else least  # with a price it is goods that are asked for
  return ItemLimits(min(least, most) if most else least, most, low, high, ', '.join(words), of_sum)


def sentences(text: str) -> list[str]:
  """Sentences in lower case, number words as digits. text: as a person typed it."""
  text = re.sub(r'[ \t\u00a0\u202f]+', ' ', text[-READ_CHARS:].lower().replace('\u2019', "'"))
  text = re.sub(r'\b(max|min|approx)\.', r'\1', text)
  text = NUMBER_WORDS.sub(lambda match: str(_value(match)), text)
  return [part.strip() for part in re.split(r'[!?\n]+|\.(?=\s|$)|\.-', text) if part.strip()]


def _value(match: re.Match) -> int:
  """The number that words make."""
  def two(words: str | None) -> int:
    return sum(VALUES[word] for word in re.split('[- ]', words or '') if word)
  if match['plain']:
    return two(match['plain'])
  return 100 * two(match['hundreds']) + two(match['rest'])


def _counts(sentence: str) -> tuple[str, list[tuple[int, int, bool]]]:
  """-> the sentence without what counts items, [(least, most, whether items are named)]"""
  number = r'(?P<{}>\d{{1,3}})(?![\d.,]*\d)'
  first, second = number.format('first'), number.format('second')
  compared = '|'.join(rf'(?P<{name}>{words})' for name, words in COMPARED.items())
  forms = [
    rf'\b(?:between )?{first} ?(?:to|or|and|-|\u2013) ?{second}{COUNTED}',
    rf'(?P<negated>{NEGATION})?\b(?:{compared})(?: of)? {first}{COUNTED}',
    rf'\b{first} or (?P<least>more){COUNTED}', rf'\b{first} or (?P<most>fewer|less){COUNTED}',
    rf'(?<![\w.,$€£]){first}{COUNTED}(?! (?:that |which )?(?:i|you|we|they) (?:bought|have|had))',
    rf'{ASKS} (?:(?:{compared}) )?{first}(?P<noun>)(?: of (?:them|these)\b|{END})'
    rf'(?! ?{CURRENCY})',
    rf'{ASKS} (?:(?:{compared}) )?{first}(?P<noun>)(?= (?!{_NO_ADJECTIVE}|{CURRENCY})[a-z]{{3,}})',
  ]
  counts = []
  for form in forms:
    while match := next((m for m in re.finditer(form, sentence)
                         if not TOLD.search(sentence[max(0, m.start() - BEFORE):m.start()])),
                       None):
      found = {'second': None, 'negated': None, **dict.fromkeys(COMPARED), **match.groupdict()}
      counts.append((*_bounds(found), bool(re.fullmatch(ITEMS, found['noun']))))
      sentence = sentence[:match.start()] + ' , ' + sentence[match.end():]
  return sentence, [count for count in counts if any(count[:2])]


def _bounds(found: dict) -> tuple[int, int]:
  """The least and the most of a number of items, 0 for no limit. found: groups of a form."""
  number = int(found['first'])
  if found['second']:
    return tuple(sorted((number, int(found['second']))))
  if found['negated'] and (found['over'] or found['under']):
    return (0, number) if found['over'] else (number, 0)
  if found['under']:
    return 0, max(1, number - 1)
  if found['over']:
    return number + 1, 0
  return (number, 0) if found['least'] else (0, number) if found['most'] else (number, number)


def _prices(sentence: str) -> list[tuple[float, float, str]]:
  """-> [(from, to, how it is said)]"""
  def amount(name: str, bare: bool = True) -> str:
    marked = rf'(?P<{name}>{AMOUNT})'
    return marked + (rf'(?:(?<=[^\d.,])|{END})' if bare else '')
  cost = r'\b(?:costs?|costing|price[ds]?|prices|pay|spend|spending|for)(?: of| from| is)? '
  forms = [
    (rf'\bbetween {OF}{amount("low", False)} (?:and|to) {amount("high")}', 'range'),
    (rf'(?:{cost}|\bfrom )?{amount("low", False)} ?(?:to|-|\u2013) ?{amount("high")}', 'priced'),
    (rf'(?P<negated>{NEGATION})?\b(?P<over>{OVER}){OF}{amount("high")}', 'over'),
    (rf'(?P<negated>{NEGATION})?\b(?P<under>{UNDER}){OF}{amount("high")}', 'under'),
    (rf'\b{AT_MOST}{OF}{amount("high")}', 'most'), (rf'\b{AT_LEAST}{OF}{amount("low")}', 'least'),
    (rf'{amount("high", False)} (?:or (?:less|under|below|cheaper)|at(?: the)? most|'
     r'max(?:imum)?|tops|budget)\b', 'most'),
    (rf'{amount("low", False)} (?:or (?:more|above|over)|at least|and up|upwards)\b', 'least'),
    (rf"(?:\b(?:spend|pay|afford|within|i have|i've got)){OF}{amount('high', False)}", 'priced'),
  ]
  limits = []
  for form, kind in forms:
    for match in reversed(list(re.finditer(form, sentence))):
      found = match.groupdict()
      texts = [found[name] for name in ('low', 'high') if found.get(name)]
      has_currency = any(re.search(rf'{SIGNS}|[a-z]', text) for text in texts)
      if not has_currency and (
          kind == 'priced' and not re.match(rf'{cost}', match[0])
          or OTHER_SUBJECTS.search(sentence[max(0, match.start() - BEFORE):match.start()])):
        continue
      numbers = [_amount(text) for text in texts]
      if None in numbers:
        continue
      limits.append((*_interval(kind, numbers, bool(found.get('negated'))), match[0].strip()))
      sentence = sentence[:match.start()] + ' , ' + sentence[match.end():]
  return limits


def _interval(kind: str, numbers: list[float], negated: bool) -> tuple[float, float]:
  """From and to, both included. kind: of comparison. numbers: one or two. negated: 'not over'."""
  if len(numbers) == 2:
    return min(numbers), max(numbers)
  number, = numbers
  if kind == 'over':
    return (-math.inf, number) if negated else (math.nextafter(number, math.inf), math.inf)
  if kind == 'under':
    return (number, math.inf) if negated else (-math.inf, math.nextafter(number, -math.inf))
  return (number, math.inf) if kind == 'least' else (-math.inf, number)


def _amount(text: str) -> float | None:
  """The number of an amount of money."""
  digits = re.search(r'\d+(?:[.,]\d+)*', text)[0]
  value = cleaning.parse_amount(digits, '.')
  return None if value is None else float(value)


def prices_of(catalog: Catalog) -> Float[np.ndarray, ' N']:
  """The prices of a catalog's items, NaN where an item has none that is one number."""
  column, counts = catalog.columns.get('price') or [None] * len(catalog), collections.Counter()
  cleaned = [cleaning.clean_price(value, counts) for value in column]
  return np.array([value if isinstance(value, int | float) else math.nan for value in cleaned],
                  np.float64)


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a request is answered.

  allowed: items that may come. least, most: how many of them. note: what a person has to know
  before the reply, '' where all is done as stated. refusal: what is answered where no item is
  allowed, else ''.
  """
  allowed: Bool[np.ndarray, ' N']
  least: int
  most: int
  note: str = ''
  refusal: str = ''


def plan(text: str, prices: Float[np.ndarray, ' N'], may_come: Bool[np.ndarray, ' N'],
         least: int, most: int) -> Plan:
  """What decoding has to keep to, so that a request gets what it states.

  text: the request. prices: as from `prices_of`. may_come: items that the catalog offers. least,
  most: items of a reply, whatever the request says.
  """
  stated, notes = read(text), []
  allowed = may_come
  if stated.words and np.isnan(prices).all():
    notes.append(f'This catalog states no prices, so I cannot keep to "{stated.words}".')
  elif stated.words:
    allowed = may_come & stated.meets(prices)
    if not allowed.any():
      known = prices[may_come & ~np.isnan(prices)]
      span = f'prices go from {known.min():g} to {known.max():g}' if len(known) else (
        'no item on offer has a price')
      return Plan(allowed, 0, most, refusal=f'No item of this catalog fits "{stated.words}": '
                                            f'{span}.')
    if stated.of_sum:
      notes.append(f'I keep each item, not their sum, to "{stated.words}".')
  if max(stated.most, stated.least) > most:
    notes.append(f'I name at most {most} {"items" if most > 1 else "item"} in a reply.')
  largest = min(most, stated.most or most)
  return Plan(allowed, min(max(least, stated.least), largest), largest,
              ' '.join(notes) + '\n' if notes else '')
