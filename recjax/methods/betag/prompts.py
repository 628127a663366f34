"""BETag's texts: prompts, training samples, parsing of what was generated, selection of tags."""
import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from recjax.errors import ConfigError, DataError
from recjax.text import spelling
from recjax.text.tokenizer import Tokenizer

HEADING = 'Products that follow:\n'

MESSAGES = (
    {'role': 'system', 'content': 'You foresee what a shopper looks at next.'},
    {'role': 'user', 'content': """\
Each product is a line of tags. Carry the list on with the products that are looked at next.

Looked at:
1. tent| camping
2. sleeping mat| foam

Carried on:
1. tent| camping
2. sleeping mat| foam
3. stove| gas
4. water bag| hiking

Now another shopper."""})

# Our own wording of the authors' structure: the user turn holds no item.


def respell(tokenizer: Tokenizer, tags: dict[str, list[str]]) -> dict[str, list[str]]:
  """Tags as they come back from their tokens, as generated ones do, so that equal ones are equal.

  tags: {item id: [tag]}. -> the same. Raises DataError naming an item with a tag that the tokenizer
  cannot write.
  """
  items = {t: i for i, item_tags in tags.items() for t in item_tags}

  def back(texts: Sequence[str]) -> list[str]:
    return [tokenizer.decode(ids).strip() for ids in tokenizer.encode_batch(texts)]
  spelled = dict(zip(items, spelling.round_trip(back, list(items), list(items.values()), 'tag')))
  same = all(old == new for old, new in spelled.items())
  return tags if same else {
      i: list(dict.fromkeys(spelled[t] for t in item_tags)) for i, item_tags in tags.items()}


def keep_range(n_tags: int, keep: tuple) -> tuple[int, int]:
  """How many of an item's tags a line may show: (lowest, highest), both possible.

  keep: () for all; two floats, shares of n_tags; two ints (lo, hi), meaning lo..hi-1 tags.
  """
  if not keep:
    return n_tags, n_tags
  lo, hi = keep
  if isinstance(lo, int) and isinstance(hi, int):
    low, high = lo, hi - 1
  else:
    low, high = int(max(lo * n_tags, 1)), int(hi * n_tags)
  if not 1 <= low <= high:
    raise ConfigError(
        f'train.keep={keep} leaves between {low} and {high} of {n_tags} tags; give shares like '
        '(0.8, 1.0), counts like (2, 6), or () for all')
  return low, high


def window(length: int, longest: int, rng: np.random.Generator) -> tuple[int, int]:
  """A random contiguous part of a sequence.

  length: of the sequence. longest: items of the part. rng: of the draw. -> (start, stop)
  """
  if length <= longest:
    return 0, length
  start = int(rng.integers(0, length - longest + 1))
  return start, start + longest


def item_line(position: int, tags: Sequence[str], sep: str) -> str:
  """'2. tag| tag', the spelling of one item.

  position: the number in front. tags: the item's. sep: what parts tags.
  """
  return f'{position}. ' + sep.join(tags)


def training_sample(tag_lists: Sequence[Sequence[str]], sep: str, keep: tuple,
                    rng: np.random.Generator | None = None) -> tuple[str, str]:
  """The assistant's text for one sequence, split where generation will begin.

  tag_lists: one list of tags per item, in order. With `rng` the tags are shuffled and thinned. sep:
  what parts tags. keep: as in `keep_range`. -> (prompt, output): prompt ends in a newline and '2.',
  output begins with the space after it.
  """
  lines = []
  for i, tags in enumerate(tag_lists, 1):
    if rng is not None:
      low, high = keep_range(len(tags), keep)
      count = int(rng.integers(low, high + 1))
      tags = [tags[j] for j in rng.permutation(len(tags))[:count]]
    lines.append(item_line(i, tags, sep))
  return lines[0] + '\n2.', '\n'.join(lines)[len(lines[0]) + 3:]


def generation_prompt(tags: Sequence[str], sep: str, most: int) -> str:
  """What the tuned model sees of an item: its own line, and the start of the next one.

  tags: the item's. sep: what parts tags. most: tags at most.
  """
  return item_line(1, tags[:most], sep) + '\n2.'


def parse_beam(text: str, sep: str, drop_truncated: bool = True) -> tuple[list[str], bool]:
  """The tags of a generated second line. -> (tags, whether it was cut)

  text: '1. a| b\n2. c| d\n3. ...'. No second line, or an empty one, gives []. A line that no
  newline ends was cut by the token limit; its last tag is then dropped, as it may be half a tag.
  sep: what parts tags. drop_truncated: whether a cut line's last tag is left out.
  """
  _, mark, rest = text.partition('\n2.')
  line, ended, _ = rest.partition('\n')
  tags = [t.strip() for t in line.split(sep)]
  cut = bool(mark) and not ended
  if cut and drop_truncated:
    tags = tags[:-1]
  return [t for t in tags if t], cut


def parse_raw(raw: dict[str, list[str]], sep: str, beams: int = 0,
              drop_truncated: bool = True) -> tuple[dict[str, list[list[str]]], dict[str, int]]:
  """Turns generated strings into rows of tags: row 0 the item's own, then one per beam.

  raw: {item id: [text of each beam, best first]}. beams: how many must be there (0: any). sep: what
  parts tags. drop_truncated: whether a cut line's last tag is left out. -> ({item id: [[tag]]},
  counts). Raises DataError where an item has fewer beams than that.
  """
  rows, counts = {}, collections.Counter(items=len(raw), beams=0, without_line=0, cut_lines=0)
  for item, texts in raw.items():
    texts = [texts] if isinstance(texts, str) else texts
    if not texts or len(texts) < beams:
      raise DataError(f'item {item} has {len(texts)} generated texts, {beams or 1} are needed; '
                      'generate it again')
    item_line_text = texts[0].partition('\n')[0].partition('1. ')[2]
    rows[item] = [[t.strip() for t in item_line_text.split(sep) if t.strip()]]
    for text in texts:
      tags, cut = parse_beam(text, sep, drop_truncated)
      counts.update(beams=1, cut_lines=int(cut), without_line=int(not tags))
      if tags:
        rows[item].append(tags)
  return rows, dict(counts)


def select(rows: list[list[str]], top_m: int = 0, top_k: int = 0, casefold: bool = False,
           dedup_within_beam: bool = False) -> list[tuple[str, int]]:
  """Tags with the number of rows' uses, most used first, ties by first appearance.

  rows: row 0 the base tags, then beams. top_m: beams to keep (0: all). top_k: tags to keep.
  casefold: whether case is ignored. dedup_within_beam: whether a tag counts once a beam. -> [(tag,
  count)]
  """
  kept = rows[:top_m + 1] if top_m else rows
  counts = collections.Counter()
  for row in kept:
    row = [t.casefold() for t in row] if casefold else row
    counts.update(list(dict.fromkeys(row)) if dedup_within_beam else row)
  return counts.most_common(top_k or None)


def draw_sample(sequence: list[list[str]], draw: int, cfg: Any) -> tuple[str, str]:
  """The sample of one draw: window, shuffle and thinning depend on the draw's number alone.

  sequence: the tag list of each item, in order. cfg: a DrawSettings. -> (prompt, output)
  """
  rng = np.random.default_rng((cfg.seed, draw))
  start, stop = window(len(sequence), cfg.max_seq_len, rng)
  return training_sample(sequence[start:stop], cfg.sep, cfg.keep, rng)
