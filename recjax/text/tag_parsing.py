"""Lists of tags out of a language model's replies, and several replies pooled into one list."""
import collections
import re

_NUMBER = re.compile(r'(?<![\w.])(?=\d+\.\s)')  # before '12. ' but not inside '3.5. '

_PREFIX = re.compile(r'\d+\s*[.):]\s*')

_BULLET = re.compile(r'[-•–·]+\s+')


def is_numbered(text: str) -> bool:
  """True if the reply holds a numbered list; otherwise its tags are a guess worth flagging. text:
  the reply."""
  return bool(_numbered_lines(text))


def parse_tag_list(text: str, cut: bool = False) -> list[str]:
  """Tags of one reply: its numbered lines, else its parts between commas and line ends.

  text: the reply. cut: whether it ended before its model had, so that its last tag may be half of
  one; that is left out.

  Quotes, asterisks and numbers go; repeats that differ only in case count once.
  """
  lines = _numbered_lines(text)
  if lines:
    parts = [_PREFIX.sub('', line, count=1) if _PREFIX.match(line) else line for line in lines]
  else:
    lines = [line for line in _unmarked(text).splitlines() if not line.rstrip().endswith(':')]
    parts = [_BULLET.sub('', part.strip(), count=1) for line in lines
             for part in re.split('[,;]', line)]
  tags = {}
  for part in parts[:-1] if cut else parts:
    tag = ' '.join(part.split()).strip(' .,;')
    tags.setdefault(tag.casefold(), tag)
  return [tag for key, tag in tags.items() if key]


def _unmarked(text):
  return re.sub('["*“”]', '', text)


def _numbered_lines(text):
  lines = (line.strip() for line in _NUMBER.sub('\n', _unmarked(text)).splitlines())
  return [line for line in lines if line[:1].isdigit()]


def pool_samples(samples: list[list[str]], cap: int = 15) -> list[str]:
  """At most cap tags of several replies: by number of replies that name it, then by first place.

  samples: tags of each reply.

  Case does not tell tags apart; the first spelling stays.
  """
  counts, spelling = collections.Counter(), {}
  for sample in samples:
    names = {tag.casefold(): tag for tag in reversed(sample)}
    counts.update(names.keys())
    for tag in sample:
      spelling.setdefault(tag.casefold(), tag)
  ranked = sorted(spelling, key=lambda name: -counts[name])
  return [spelling[name] for name in ranked[:cap]]
