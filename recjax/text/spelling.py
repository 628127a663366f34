"""Texts as a tokenizer spells them, so that what is decoded is found again.

A tokenizer may write a text in another form: Unicode's NFC or NFKC, small letters, no accents, less
white space. Titles are compared in the form that comes back from their tokens, and a tokenizer that
cannot write one at all is refused before anything is trained.
"""
import difflib
import unicodedata

from recjax.errors import DataError
from recjax.text import tokenizer

ROUNDS = 3  # of encoding and decoding until a text stays as it is
SHOWN = 4   # code points of a difference that are named


def settled(back, texts, items, what='title'):
  """Texts in the form that their tokens give back.

  back: function of a list of texts to what comes back of each. items: the item of each text, for
  messages. -> list of str. Raises DataError naming the item and the code points where letters are
  lost or become others, and where a text changes with every encoding.
  """
  out, open_ = list(texts), list(range(len(texts)))
  for _ in range(ROUNDS):
    again = back([out[i] for i in open_])
    changed = [(i, new) for i, new in zip(open_, again) if new != out[i]]
    for i, new in changed:
      out[i] = new
    open_ = [i for i, _ in changed]
  lost = [i for i, (old, new) in enumerate(zip(texts, out)) if bare(old) != bare(new) or not new]
  for i in lost or open_:
    said = (f'vanishes in its tokens: {points(texts[i])}' if not out[i] else
            f'comes back from its tokens as {out[i]!r:.80}: {difference(texts[i], out[i])}')
    if not lost:
      said = f'changes with every encoding, now {out[i]!r:.80}: {difference(texts[i], out[i])}'
    count = len(lost or open_)
    more = f' ({count} {what}s are so)' if count > 1 else ''
    raise DataError(f'the {what} of item {items[i]}, {texts[i]!r:.80}, {said}{more}; change its '
                    'spelling, or use another tokenizer')
  return out


def bare(text):
  """What no form of a text takes away: its letters without case and accents, no white space."""
  text = unicodedata.normalize('NFKD', tokenizer.clean(text)).casefold()
  return ''.join(c for c in unicodedata.normalize('NFKD', text)
                 if unicodedata.category(c)[0] not in 'MCZ')


def difference(old, new):
  """Where a text first became another one, by code points. -> str"""
  for how, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
    if how != 'equal':
      return f'at character {a + 1} {points(old[a:b])} became {points(new[c:d])}'
  return 'nothing differs'


def points(text):
  """Code points with their names, the first few. -> 'U+00E9 LATIN SMALL LETTER E WITH ACUTE'"""
  some = [f'U+{ord(c):04X} {unicodedata.name(c, "without a name")}' for c in text[:SHOWN]]
  return ', '.join([*some, *['...'] * (len(text) > SHOWN)]) or 'nothing'


def notes(before, after):
  """What becomes of texts in a tokenizer's form, counted; {} where all stay as they are."""
  changed = sum(a != b for a, b in zip(before, after))
  return {'titles_as_the_tokenizer_spells_them': changed,
          'titles_alike_to_the_tokenizer': len(set(before)) - len(set(after))} if changed else {}
