"""Lists out of the language model: titles between control symbols, real ones alone."""
import dataclasses

import jax
import numpy as np

from recjax.decoding import constraints, device_trie, item_span, retrieval_constraint
from recjax.decoding.beam_search import BeamSearch
from recjax.decoding.prefix_generator import PrefixGenerator
from recjax.decoding.sampling import Sampling
from recjax.distributed import multihost
from recjax.errors import ConfigError
from recjax.methods.reclm import tokenized_catalog, train
from recjax.training import journal, sft

BEAMS = 20    # of which ranked lists are made, or more where more are asked for

PASS_WIDTH = 8   # tokens of a row that go through the model together where they are forced


@dataclasses.dataclass(frozen=True)
class Reply:
  """One answer. ids: its tokens. items: item indices 1..N in order. text: without control symbols,
  titles in double quotes. complete: it ended by itself. unfinished: a title was cut at the end."""
  ids: list
  items: list
  text: str
  complete: bool
  unfinished: bool


class Shelf:
  """One or several catalogues, planted for a speaker. stocks: list of Goods, named by `names`."""

  def __init__(self, speaker, stocks, names=('',), kind='cgen'):
    self.speaker, self.stocks, self.names, self.kind = speaker, list(stocks), list(names), kind
    self.trees = [s.plant(speaker.eoi, speaker.model.cfg.vocab) for s in self.stocks]
    self.planted = device_trie.to_device_trie(self.trees)
    if kind == 'ret' and len(self.stocks) > 1:
      raise ConfigError('RecLM-ret has vectors of its own catalogue alone; give one catalogue')
    self.known = retrieval_constraint.items_by_title(self.stocks[0].rows) if kind == 'ret' else None

  def constraint(self, cfg, batch, closed=None, allowed=None, least=0, root=None):
    """The rule of one batch. closed: list of (n,) item indices that may not come. allowed: (N,)
    bool. root: (B,), the catalogue of each request."""
    speaker = self.speaker
    how = item_span.SpanSettings(speaker.soi, speaker.eoi, tuple(speaker.tokenizer.eos_ids),
                                 cfg.new_tokens, cfg.count, least, speaker.tokenizer.pad_id)
    if self.kind == 'ret':
      return retrieval_constraint.build_retrieval_constraint(
        self.stocks[0].rows, speaker.extra['items'], speaker.extra['project'], train.project, how,
        self.shut(batch, closed, allowed))
    limits = None
    if closed is not None or allowed is not None:
      limits = tokenized_catalog.limits(self.trees[0], closed or [()] * batch, allowed)
    return item_span.item_span_constraint(self.trees, self.planted, how, batch, catalog=root,
                                          item_filter=limits)

  def shut(self, batch, closed, allowed):
    """Items that requests of `fetch` may not have. -> (B, N) bool or None"""
    if closed is None and allowed is None:
      return None
    out = np.zeros((batch, len(self.stocks[0].titles)), bool)
    if allowed is not None:
      out |= ~np.asarray(allowed)
    for row, items in zip(out, closed or ()):
      row[np.asarray(items, np.int64) - 1] = True
    return out

  def read(self, ids, root=0):
    """The Reply that tokens make."""
    speaker, stock = self.speaker, self.stocks[root]
    if self.kind == 'ret':
      found, open_ = retrieval_constraint.parse(self.known, ids, speaker.soi, speaker.eoi)
    else:
      found, open_ = item_span.parse(self.trees[root], ids, speaker.soi)
    complete = bool(ids) and ids[-1] in speaker.tokenizer.eos_ids
    return Reply(list(ids), [i + 1 for i in found], self.text(ids, found, stock), complete, open_)

  def text(self, ids, found, stock):
    """What a person reads: titles in double quotes, a cut one left out."""
    out, plain, titles, inside = [], [], iter(found), False
    speaker = self.speaker

    def flush():
      out.append(speaker.tokenizer.decode(plain))
      plain.clear()
    for token in ids:
      if token == speaker.soi:
        flush()
        inside = True
      elif token == speaker.eoi:
        out.append(f'"{stock.titles[next(titles)]}"')
        inside = False
      elif not inside:
        plain.append(token)
    flush()
    return ''.join(out).strip()


def replies(shelf, writer, cfg, prompts, closed=None, allowed=None, least=0, root=None, *,
            seed, told=None):
  """Answers to a batch of prompts, token lists. cfg: count, new_tokens, temperature, top_p.

  least: items before a reply may end. told: see `decoding.stream`. -> [Reply]
  """
  rule = shelf.constraint(cfg, len(prompts), closed, allowed, least, root)
  own, search = [writer.own(p) for p in prompts], sampling(cfg)
  if told:
    found = writer.stream(own, search, rule, told, seed)
  else:
    found = writer.generate(own, search, rule, seed)
  return [shelf.read(found.row(b, 0), 0 if root is None else int(root[b]))
          for b in range(len(prompts))]


def sampling(cfg, pass_width=PASS_WIDTH):
  """One reply of a prompt. cfg: new_tokens, temperature, top_p."""
  return Sampling(1, cfg.new_tokens, float(cfg.temperature), top_p=float(cfg.top_p),
                  pass_width=pass_width)


def ranked(shelf, writer, prompts, k, closed=None, allowed=None):
  """The k best first items of a list, which a greedy list shows one of: beams over the catalogue,
  or with fetching the nearest vectors.

  prompts: up to where the assistant begins. -> items (B, k) int32 1..N, 0 where fewer may come,
  scores (B, k): log-probabilities of titles as training has them, or products with the projected
  state
  """
  speaker = shelf.speaker
  start = [*speaker.tokenizer.encode('1. ')]
  if shelf.kind == 'ret':
    return nearest(shelf, writer, [[*p, *start] for p in prompts], k, closed, allowed)
  tree = shelf.trees[0]
  limits = tokenized_catalog.limits(tree, closed or [()] * len(prompts), allowed)
  found = writer.generate(
    [writer.own([*p, *start, speaker.soi]) for p in prompts],
    BeamSearch(max(k, BEAMS), length_penalty=0.0),
    constraints.CatalogConstraint(shelf.planted, limits, normalization=speaker.scoring),
  )
  return found.best(k, tree, limits)


def nearest(shelf, writer, prompts, k, closed, allowed):
  """The items whose vectors go best with the state at the end of prompts."""
  extra, n = shelf.speaker.extra, len(shelf.stocks[0].titles)
  z = train.project(extra['project'], writer.states([writer.own(p) for p in prompts]))
  scores = np.array(multihost.to_host(z @ extra['items'].T), np.float32)
  shut = shelf.shut(len(prompts), closed, allowed)
  if shut is not None:
    scores[shut] = -np.inf
  order = np.argsort(-scores, 1, kind='stable')[:, :min(k, n)]
  best = np.take_along_axis(scores, order, 1)
  return np.where(best > -np.inf, order + 1, 0).astype(np.int32), best


def writer_of(speaker, prompts):
  """The LLM with what these prompts share run once."""
  return PrefixGenerator(speaker.model, speaker.variables, speaker.tokenizer,
                sft.common_prefix(prompts), max(map(len, prompts)))


def ranked_many(work, name, shelf, cfg, prompts, closed, k):
  """`ranked` for all prompts, in batches, resumable. -> items (n, k) int32, scores (n, k)"""
  writer = writer_of(shelf.speaker, prompts)

  def run(some):
    items, scores = ranked(shelf, writer, [prompts[i] for i in some], k,
                           None if closed is None else [closed[i] for i in some])
    return [[i.tolist(), [round(float(x), 5) for x in s]] for i, s in zip(items, scores)]
  with jax.set_mesh(work.mesh):
    found = journal.answer_all(work, name, work.folder / f'{name}.jsonl', prompts, cfg.batch, run)
  return (np.array([i for i, _ in found], np.int32), np.array([s for _, s in found], np.float32))


def many(work, name, shelf, cfg, prompts, closed, seed, writer=None):
  """All prompts, in batches, resumable: a journal in the stage's folder. -> [Reply]"""
  writer = writer or writer_of(shelf.speaker, prompts)

  def run(some):
    found = replies(shelf, writer, cfg, [prompts[i] for i in some],
                    None if closed is None else [closed[i] for i in some], seed=seed)
    return [[r.ids] for r in found]
  with jax.set_mesh(work.mesh):
    rows = journal.answer_all(work, name, work.folder / f'{name}.jsonl', prompts, cfg.batch, run)
  return [shelf.read(ids) for ids, in rows]


def free(work, name, shelf, cfg, prompts, seed):
  """Replies that nothing constrains, in batches, resumable. -> token lists"""
  writer = writer_of(shelf.speaker, prompts)
  ends = tuple(shelf.speaker.tokenizer.eos_ids)

  def run(some):
    found = writer.generate([writer.own(prompts[i]) for i in some], sampling(cfg, 0),
                            constraints.Unconstrained(ends), seed)
    rows = [list(map(int, found.row(b, 0))) for b in range(len(some))]
    return [[r[:-1] if r and r[-1] in ends else r] for r in rows]
  with jax.set_mesh(work.mesh):
    rows = journal.answer_all(work, name, work.folder / f'{name}.jsonl', prompts, cfg.batch, run)
  return [ids for ids, in rows]
