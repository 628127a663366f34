"""Texts as a tokenizer spells them, so that what is decoded is found again.

A tokenizer may write a text in another form: Unicode's NFC or NFKC, small letters, no accents, less
white space. Titles are compared in the form that comes back from their tokens, and a tokenizer that
cannot write one at all is refused before anything is trained.
"""
import difflib
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from recjax.errors import DataError
from recjax.text import tokenizer

ROUNDS = 3  # of encoding and decoding until a text stays as it is
SHOWN = 4   # code points of a difference that are named


def round_trip(encode_decode: Callable[[list[str]], list[str]], texts: Iterable[str],
               items: Sequence[object], what: str = 'title') -> list[str]:
  """Texts in the form that their tokens give back.

  encode_decode: gives what comes back of each of a list of texts. items, what: whose texts they
  are, and as what, for messages. Raises DataError naming the item and the code points where letters
  are lost or become others, and where a text changes with every encoding.
  """
  texts = list(texts)
  out, changing = list(texts), list(range(len(texts)))
  for _ in range(ROUNDS):
    decoded = encode_decode([out[i] for i in changing])
    changed = [(i, new) for i, new in zip(changing, decoded) if new != out[i]]
    for i, new in changed:
      out[i] = new
    changing = [i for i, _ in changed]
  lost = [i for i, (old, new) in enumerate(zip(texts, out))
          if letters_of(old) != letters_of(new) or not new]
  for i in lost or changing:
    fault = (f'vanishes in its tokens: {code_points(texts[i])}' if not out[i] else
             f'comes back from its tokens as {out[i]!r:.80}: {difference(texts[i], out[i])}')
    if not lost:
      fault = f'changes with every encoding, now {out[i]!r:.80}: {difference(texts[i], out[i])}'
    count = len(lost or changing)
    more = f' ({count} {what}s are so)' if count > 1 else ''
    raise DataError(f'the {what} of item {items[i]}, {texts[i]!r:.80}, {fault}{more}; change its '
                    'spelling, or use another tokenizer')
  return out


def letters_of(text: str) -> str:
  """What no form of a text takes away: its letters without case and accents, no white space."""
  text = unicodedata.normalize('NFKD', tokenizer.clean(text)).casefold()
  return ''.join(c for c in unicodedata.normalize('NFKD', text)
                 if unicodedata.category(c)[0] not in 'MCZ')


def difference(old: str, new: str) -> str:
  """Where a text first became another one, by code points. old, new: the texts."""
  matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
  for kind, start, end, new_start, new_end in matcher.get_opcodes():
    if kind != 'equal':
      return (f'at character {start + 1} {code_points(old[start:end])} became '
              f'{code_points(new[new_start:new_end])}')
  return 'nothing differs'


def code_points(text: str) -> str:
  """Code points with their names, the first few. text: the code points. -> 'U+00E9 LATIN SMALL
  LETTER E WITH ACUTE'"""
  named = [f'U+{ord(c):04X} {unicodedata.name(c, "without a name")}' for c in text[:SHOWN]]
  return ', '.join([*named, *['...'] * (len(text) > SHOWN)]) or 'nothing'


def count_changes(before: Sequence[str], after: Sequence[str]) -> dict[str, int]:
  """What becomes of texts in a tokenizer's form, counted; {} where all stay as they are. before,
  after: the same texts, in order."""
  changed = sum(a != b for a, b in zip(before, after))
  return {'titles_as_the_tokenizer_spells_them': changed,
          'titles_alike_to_the_tokenizer': len(set(before)) - len(set(after))} if changed else {}
