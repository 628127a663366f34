"""Replies to conversations that clients keep: many at once, nothing remembered between them."""
import dataclasses
import re
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from recjax.decoding.prefix_generator import PrefixGenerator
from recjax.errors import ConfigError, DataError
from recjax.methods.reclm import generation, sft_data, train

BUCKET = 128  # tokens that prompts are padded to a multiple of

SIZES = (1, 8)  # conversations of a batch, padded up

WARMTHS = (0.0, 0.5, 1.0)  # temperatures that are programs of their own

MOST = 10  # items of a reply

LETTERS = 32  # of a token at most, about

UNSURE = '\ufffd \t\r\n'  # at the end of a text: half a character, or space that may be cut

LEAST = (0, 3)  # of which so many must come, padded up


@dataclasses.dataclass(frozen=True)
class Said:
  """A conversation that waits for a reply. turns: ({'role', 'content'}, ...), the last a user's.

  domain: a catalogue's name, '' the first. history: item ids that the last turn is about. least,
  most: items of the reply. tokens: at most so many. temperature: None takes the run's. tell: called
  with the text so far, to which more is only ever added, while the reply is made. gone: whether
  nobody waits for the reply any more, which then ends where it is.
  """
  turns: tuple
  domain: str = ''
  history: tuple = ()
  least: int = 0
  most: int = MOST
  tokens: int = 0
  temperature: float | None = None
  seed: int = 0
  tell: Callable | None = None
  gone: Callable = lambda: False


@dataclasses.dataclass(frozen=True)
class Answer:
  """A reply. items: ids in the order that the text names them, titles: of these. domain: whose."""
  text: str
  domain: str
  items: tuple
  titles: tuple
  complete: bool
  tokens_in: int
  tokens_out: int


class ChatBatcher:
  """One model for many conversations. domains: {name: Shelf}. system: what it is told first."""

  def __init__(self, cfg, domains, system, mesh):
    self.cfg, self.domains, self.system, self.mesh = cfg, domains, system, mesh
    shelf = next(iter(domains.values()))
    speaker = shelf.speaker
    with jax.set_mesh(mesh):
      self.writer = PrefixGenerator(speaker.model, speaker.variables, speaker.tokenizer, [], BUCKET)
    self.quoted = {name: s.stocks[0].index for name, s in domains.items()}

  def shelf(self, said):
    """-> its catalogue's name, Shelf. Raises ConfigError naming the known ones."""
    name = said.domain or next(iter(self.domains))
    if name not in self.domains:
      raise ConfigError(f'there is no catalogue {name!r:.60}; known are {", ".join(self.domains)}')
    return name, self.domains[name]

  def prompt(self, said):
    """The tokens of a conversation, its oldest rounds dropped where it is too long.

    Raises ConfigError where the last turn alone is.
    """
    name, shelf = self.shelf(said)
    stock = shelf.stocks[0]
    turns = [dict(t) for t in said.turns]
    if turns[0]['role'] != 'system':
      turns.insert(0, sft_data.said('system', self.system))
    fit = self.cfg.prompt.max_prompt_tokens
    long = LETTERS * fit  # more letters never fit, and take long to see
    while sum(len(t['content']) for t in turns) > long and drop(turns):
      pass
    if said.history:
      rows = [stock.catalog.index(i) for i in said.history][-sft_data.LONGEST:]
      turns[-1]['content'] = sft_data.about(self.cfg, stock, rows, turns[-1]['content'])
    turns = [sft_data.said(t['role'], recalled(t['content'], self.quoted[name]))
             if t['role'] == 'assistant' else t for t in turns]
    turn = train.renderer(self.cfg, shelf.speaker, stock)
    ids = turn.tokens(turns)
    while len(ids) > fit:
      if not drop(turns):
        raise ConfigError(f'the last turn takes {len(ids)} tokens, {fit} fit; say it in '
                          'fewer words')
      ids = turn.tokens(turns)
    return ids

  def __call__(self, asked, settle=lambda row, answer: None):
    """Replies to a batch. asked: [Said]. settle: called with the row and the Answer of each whose
    reply ends before others'. -> [Answer]. Raises ConfigError or DataError of any.
    """
    out, alike = [None] * len(asked), {}
    prompts = [self.prompt(s) for s in asked]
    for row, s in enumerate(asked):
      least = next(n for n in LEAST if n >= min(s.least, LEAST[-1]))
      key = self.shelf(s)[0], least, self.warmth(s), s.seed, len(prompts[row]) // BUCKET
      alike.setdefault(key, []).append(row)
    for (name, least, warmth, seed, _), rows in alike.items():
      for start in range(0, len(rows), SIZES[-1]):
        some = rows[start:start + SIZES[-1]]
        found = self.batch(
            self.domains[name], [asked[r] for r in some], [prompts[r] for r in some], least, warmth,
            seed, lambda at, answer, some=some: settle(some[at], answer))
        for row, one in zip(some, found):
          out[row] = one
    return out

  def batch(self, shelf, asked, prompts, least, warmth, seed, settle):
    """Replies to conversations that one program takes together. -> [Answer]"""
    count = next(s for s in SIZES if s >= len(asked))
    given = ConfigDict({**self.cfg.decode.to_dict(), 'count': MOST, 'temperature': warmth})
    over = np.arange(count) >= len(asked)

    def made(at, reply):
      return self.made(shelf, asked[at], reply, len(prompts[at]))

    def told(rows):
      for at, (said, ids) in enumerate(zip(asked, rows)):
        if not over[at]:
          over[at] = self.heard(shelf, said, ids)
          if over[at]:
            settle(at, made(at, shelf.read(ids)))
      return ~over
    with jax.set_mesh(self.mesh):
      found = generation.replies(shelf, self.writer, given,
                             prompts + prompts[-1:] * (count - len(prompts)), least=least,
                             seed=seed, told=told)
    return [made(at, reply) for at, reply in enumerate(found[:len(asked)])]

  def asked(self, turns, **how):
    """A conversation, checked before it waits. turns: [{'role', 'content'}]. how: of Said. -> Said

    Raises DataError or ConfigError for turns that no template takes, a catalogue or an item that
    is not there, a last turn that is too long.
    """
    said = Said(checked(turns), **how)
    self.prompt(said)
    return said

  def known(self, ids, domain=''):
    """Those of some item ids that a catalogue has. -> tuple"""
    shelf = self.domains.get(domain or next(iter(self.domains)))
    return tuple(i for i in ids if shelf and shelf.stocks[0].catalog.find(i))

  def own(self, answer):
    """Whether a reply is about the catalogue that the model was trained on."""
    return answer.domain == next(iter(self.domains))

  def warmth(self, said):
    """The temperature that is used: the run's, or the nearest of WARMTHS."""
    if said.temperature is None:
      return float(self.cfg.decode.temperature)
    return min(WARMTHS, key=lambda w: abs(w - said.temperature))

  def heard(self, shelf, said, ids):
    """Tells a client the text of a reply's tokens so far. -> whether the reply is at its end"""
    if said.gone():
      return True
    size, over = ending(said, shelf.speaker, ids)
    if said.tell:
      ends = [i + 1 for i, t in enumerate(ids[:size]) if t == shelf.speaker.eoi]
      if len(ends) >= said.most:  # what follows is left out where another item follows it
        size = ends[said.most - 1]
      said.tell(shelf.read(ids[:size]).text.rstrip(UNSURE))
    return over or ids[-1] in shelf.speaker.tokenizer.eos_ids

  def made(self, shelf, said, reply, tokens_in):
    """The Answer, cut where fewer items or tokens were asked for; a cut item is left out."""
    size, _ = ending(said, shelf.speaker, reply.ids)
    if size < len(reply.ids):
      reply = shelf.read(reply.ids[:size])
    stock = shelf.stocks[0]
    return Answer(reply.text, self.shelf(said)[0],
                  tuple(stock.catalog.id_of(i) for i in reply.items),
                  tuple(stock.titles[i - 1] for i in reply.items), reply.complete, tokens_in,
                  len(reply.ids))

  def warm(self):
    """Compiles the programs of short conversations."""
    for size in SIZES:
      for least in LEAST:
        self([Said((sft_data.said('user', 'Hello'),), least=least)] * size)


def ending(said, speaker, ids):
  """How many of a reply's tokens count, and whether more would not: enough were asked for, or an
  item more than may come is begun."""
  ends = [i + 1 for i, t in enumerate(ids) if t == speaker.eoi]
  size, over = len(ids), False
  if sum(t == speaker.soi for t in ids) > said.most:
    size, over = ends[said.most - 1], True
  if said.tokens and size >= said.tokens:
    size, over = said.tokens, True
  return size, over


def drop(turns):
  """Takes the oldest round out, in place. -> whether there was one besides the last"""
  at = next((i for i in range(2, len(turns)) if turns[i]['role'] == 'user'), None)
  if at is not None:
    del turns[1:at]
  return at is not None


def recalled(text, titles):
  """An earlier reply as it was: quoted titles become the items they are. -> [str or item index]"""
  out = []
  for part in re.split(r'("[^"\n]{1,400}")', text):
    item = titles.get(part[1:-1]) if part[:1] == '"' else None
    if item is not None:
      out.append(item)
    elif out and isinstance(out[-1], str):
      out[-1] += part
    elif part:
      out.append(part)
  return out or ['']


def checked(turns):
  """Turns in an order that a template takes: system first if at all, then user and assistant by
  turns, a user last; neighbours of one role are joined. -> tuple of turns. Raises DataError."""
  out = []
  for turn in turns:
    role = 'system' if turn['role'] == 'developer' else turn['role']
    if role not in ('system', 'user', 'assistant'):
      raise DataError(f'a message has the role {role!r:.40}; give system, user or assistant')
    if role == 'system' and out and out[-1]['role'] != 'system':
      raise DataError('the system message stands first, before the others')
    if out and out[-1]['role'] == role:
      out[-1] = sft_data.said(role, out[-1]['content'] + '\n' + turn['content'])
    else:
      out.append(sft_data.said(role, turn['content']))
  if not out or out[-1]['role'] != 'user':
    raise DataError('the last message must be of the user')
  if out[0]['role'] == 'assistant' or out[0]['role'] == 'system' and len(out) > 1 and (
      out[1]['role'] == 'assistant'):
    raise DataError('the first message after the system message must be of the user')
  return tuple(out)
