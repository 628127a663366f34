"""The public face: prompts in, rows and items out, one compiled program for each shape."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from recjax.decoding.beam_search import BeamConfig, beam_search
from recjax.decoding.constraints import LIVE, CatalogConstraint, Unconstrained
from recjax.decoding.device_trie import forced_token
from recjax.decoding.diverse_beam_search import SearchConfig, diverse_beam_search
from recjax.decoding.forced_sampling import sample_runs
from recjax.decoding.item_span import ItemSpanConstraint
from recjax.decoding.lm_head import lm_head_of, stages
from recjax.decoding.lookahead_beam_search import TreeConfig, lookahead_beam_search
from recjax.decoding.retrieval_constraint import RetrievalConstraint
from recjax.decoding.sampling import SampleConfig, sample
from recjax.distributed import multihost
from recjax.errors import ConfigError, DataError, UserError


@dataclasses.dataclass(frozen=True)
class Generated:
  """Rows of every request, best first (sampled rows in order). K rows, T new tokens.

  tokens: (B, K, T) int32, padded. scores: (B, K) float32. lengths: (B, K). exists: (B, K) bool,
  false where there are fewer rows than asked for. complete: (B, K) bool, ended and not cut at T.
  places: (B, K, 2), the interval of each title, or None. steps: how often the model was asked.
  token_scores: (B, K, T) float32 where asked for.
  """
  tokens: np.ndarray
  scores: np.ndarray
  lengths: np.ndarray
  exists: np.ndarray
  complete: np.ndarray
  places: np.ndarray | None
  steps: int
  token_scores: np.ndarray | None = None

  def row(self, request, rank):
    """The tokens of one row, its end token included. -> list of int"""
    return self.tokens[request, rank, :self.lengths[request, rank]].tolist()

  def items(self, trie, limits=None, every=False):
    """The items of each request, best first. -> [B][(item, score)], fewer where fewer exist

    Items that share a title share a row; of those the first open one is given, or with `every` all.
    """
    out = []
    for b, (spans, scores) in enumerate(zip(self.places, self.scores)):
      found = []
      for (lo, hi), score, good in zip(spans, scores, self.exists[b] & self.complete[b]):
        if good:
          places = [p for p in range(lo, hi) if limits is None or _open(limits, b, p)]
          found += [(int(trie.item[p]), float(score)) for p in places[:None if every else 1]]
      out.append(found)
    return out

  def best(self, most, trie, limits=None, every=True):
    """`items` as arrays: items 1..N and scores, 0 and -inf where there are fewer than `most`.

    -> (B, most) int32, (B, most) float32
    """
    items = np.zeros((len(self.scores), most), np.int32)
    scores = np.full(items.shape, -np.inf, np.float32)
    for b, row in enumerate(self.items(trie, limits, every)):
      row = row[:most]
      items[b, :len(row)] = [i + 1 for i, _ in row]
      scores[b, :len(row)] = [s for _, s in row]
    return items, scores


def _open(limits, request, place):
  """Whether one place is open, on the host."""
  good = True
  if limits.bits is not None:
    word = np.asarray(limits.bits[limits.use[request], place >> 5])
    good = bool(word >> np.uint32(place & 31) & np.uint32(1))
  return good and (limits.taken is None or place not in np.asarray(limits.taken[request]))


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What decides the program besides shapes; hashable."""
  kind: str
  config: object
  keep_scores: bool
  pad_id: int = 0
  runs: int = 0


def generate(decoder, params, prompts, constraint=None, *, beams=1, new_tokens=0, groups=1,
             diversity_penalty=1.0, length_penalty=1.0, length_offset=0, early_stopping=False,
             samples=0, temperature=1.0, top_k=0, top_p=1.0, eos_ids=(), pad_id=0,
             min_new_tokens=0, seed=0, token_scores=False, runs=(), lookahead=0, bucket=64,
             longest_prompt=0):
  """Continues prompts by beam search (beams=1 is greedy), group beam search or sampling.

  decoder: a `Decoder`. prompts: lists of token ids, of any lengths. constraint: None,
  `CatalogConstraint`, `ItemSpanConstraint` or `RetrievalConstraint`. new_tokens: 0 takes the
  longest title of the constraint. groups: above 1 for diverse beam search. length_offset: (B,)
  tokens that the penalty of plain beams counts besides the new ones, such as the prompts'. samples:
  above 0 draws so many rows of each prompt. runs: tokens a request may feed in one pass, e.g. (8,
  32), to find the same rows by `lookahead_beam_search`; for samples in item mode, e.g. (8,), tokens
  of a row. lookahead: tokens that passes of `lookahead_beam_search` are filled up to. bucket:
  prompts are padded to a multiple of it, and share a program that way. longest_prompt: refuse
  longer ones (0: no bound). -> Generated. Raises DataError for an empty or too long prompt,
  UserError where the model gives NaN, ConfigError for settings that contradict.
  """
  tokens, lengths = padded(prompts, bucket, longest_prompt, pad_id)
  if isinstance(constraint, CatalogConstraint):
    new_tokens = new_tokens or constraint.forest.longest
    constraint = dataclasses.replace(constraint, min_new_tokens=min_new_tokens)
  if new_tokens < 1:
    raise ConfigError('new_tokens is missing: without titles nothing bounds the rows')
  if constraint is None:
    constraint = Unconstrained(tuple(eos_ids), min_new_tokens)
  ends = 1 if isinstance(constraint, CatalogConstraint) else max(1, len(eos_ids))
  if token_scores and (groups > 1 or runs and not samples):
    raise ConfigError('token_scores come with beams and samples, not with groups or runs')
  if lookahead and (samples or not runs):
    raise ConfigError(f'lookahead={lookahead} fills the passes of runs with beams; set runs, or 0')
  if np.any(length_offset) and (samples or runs or groups > 1):
    raise ConfigError('length_offset comes with plain beams')
  if samples:
    if runs and not (
      isinstance(constraint, ItemSpanConstraint | RetrievalConstraint) and decoder.extend
    ):
      raise ConfigError('runs with samples need ItemMode or Fetch, and a decoder with extend')
    plan = _Plan('sample', SampleConfig(samples, new_tokens, temperature, top_k, top_p, pad_id),
                 token_scores, runs=max(runs, default=0))
  elif isinstance(constraint, RetrievalConstraint):
    raise ConfigError('items are fetched with samples (temperature 0 is greedy), not with beams')
  elif groups > 1:
    if isinstance(constraint, ItemSpanConstraint):
      raise ConfigError('group beam search takes titles or free text, not item mode')
    plan = _Plan('groups', SearchConfig(beams, groups, diversity_penalty, new_tokens,
                                        min_new_tokens, tuple(eos_ids), pad_id, length_penalty),
                 token_scores)
  elif runs:
    if not isinstance(constraint, CatalogConstraint) or not decoder.extend or min_new_tokens:
      raise ConfigError('runs need Titles without min_new_tokens, and a decoder with extend')
    plan = _Plan('tree', TreeConfig(beams, new_tokens, length_penalty, early_stopping,
                                    tuple(runs), lookahead), False, pad_id)
  else:
    plan = _Plan('beam', BeamConfig(beams, new_tokens, length_penalty, early_stopping, ends, pad_id,
                                    token_scores), token_scores)
  key, before = jax.random.key(seed), np.broadcast_to(np.int32(length_offset), len(tokens))
  out = multihost.to_host(_run(decoder, plan, params, tokens, lengths, constraint, key, before))
  whole(out.pop('broken'))
  return Generated(steps=int(out.pop('steps')), **out)


def whole(broken):
  """Raises UserError where a request met NaN. broken: (B,) int32, the new token or -1."""
  for bad in np.flatnonzero(broken >= 0)[:1]:
    raise UserError(f'the model gave NaN for request {bad} at new token {broken[bad]}; its weights '
                    'or their type are broken: try float32, then check the checkpoint')


def padded(prompts, bucket, longest=0, pad_id=0):
  """-> tokens (B, P) int32, padded on the right to a multiple of `bucket`, lengths (B,)"""
  lengths = np.array([len(p) for p in prompts], np.int32)
  if not len(lengths) or lengths.min() < 1:
    where = 'no prompt was given' if not len(lengths) else f'prompt {lengths.argmin()} is empty'
    raise DataError(f'{where}; a search continues at least one token')
  if longest and lengths.max() > longest:
    raise DataError(f'prompt {lengths.argmax()} has {lengths.max()} tokens, above longest_prompt='
                    f'{longest}; shorten the history or raise the bound')
  tokens = np.full((len(lengths), -(-int(lengths.max()) // bucket) * bucket), pad_id, np.int32)
  for row, prompt in zip(tokens, prompts):
    row[:len(prompt)] = prompt
  return tokens, lengths


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(decoder, plan, params, tokens, lengths, constraint, key, before):
  """The whole generation on the device. -> dict of arrays"""
  cfg = plan.config
  rows = cfg.rows if plan.kind == 'sample' else cfg.beams
  room = cfg.new_tokens
  if plan.kind in ('beam', 'groups') and decoder.grow:
    room = stages(room)[0]
  if plan.kind == 'tree':
    rows, room = 1, cfg.slots + 1
  elif plan.runs:
    rows, room = 1, cfg.rows * cfg.new_tokens + 1
  first, cache = decoder.start(params, tokens, lengths, rows, room)
  head = functools.partial(lm_head_of, decoder, params)

  def step(tokens, cache, t):
    return decoder.step(params, cache, tokens, t)
  if plan.kind == 'tree' or plan.runs:
    step = functools.partial(decoder.extend, params)
  if plan.kind == 'beam':
    return _beam(decoder, step, head, cache, first, constraint, plan, before)
  run = {'groups': _groups, 'sample': _sample, 'tree': _tree}[plan.kind]
  return run(decoder, step, head, cache, first, constraint, plan, key)


def _beam(decoder, step, head, cache, first, constraint, plan, before):
  found = beam_search(step, decoder.reorder, head, cache, first, constraint, plan.config,
                      decoder.grow, decoder.pick, before)
  rows = found.rows
  return _pack(rows.tokens, rows.scores, rows.lengths, found.exists, rows.complete,
               rows.state, constraint, found.steps, found.broken, rows.token_scores)


def _groups(decoder, step, head, cache, first, constraint, plan, key):
  del key

  def logits(tokens, cache, t):
    state, cache = step(tokens, cache, t)
    return head(state).full(), cache
  titles = constraint if isinstance(constraint, CatalogConstraint) else None
  found = diverse_beam_search(logits, cache, head(first[:, None]).full()[:, 0], plan.config,
                       decoder.reorder, titles, decoder.grow)
  exists = found.scores > LIVE
  ends = (constraint.ends(found.node, _last(found), found.lengths - 1) if titles
          else jnp.isin(_last(found), jnp.asarray(plan.config.eos_ids, jnp.int32)))
  return _pack(found.tokens, found.scores, found.lengths, exists, ends, found.node, constraint,
               found.lengths.max(), jnp.full(len(first), -1), None)


def _tree(decoder, extend, head, cache, first, titles, plan, key):
  del decoder, key
  found = lookahead_beam_search(extend, head, cache, first, titles, plan.config)
  done, forest = found.done, titles.forest
  at = jnp.arange(plan.config.new_tokens)
  tokens = forced_token(forest, done.node[..., None], jnp.broadcast_to(
      at, (*done.node.shape, len(at))))  # the first title below a node begins with its tokens
  exists = done.value > LIVE
  tokens = jnp.where((at < done.length[..., None]) & exists[..., None], tokens, plan.pad_id)
  return _pack(tokens, done.value, done.length, exists, done.complete, done.node, titles,
               found.passes.max() + 1, found.broken, None)


def _last(found):
  at = jnp.maximum(found.lengths - 1, 0)[..., None]
  return jnp.take_along_axis(found.tokens, at, 2)[..., 0]


def _sample(decoder, step, head, cache, first, constraint, plan, key):
  given = (step, cache, first, constraint, plan.config, key, head)
  found = sample_runs(*given, plan.runs) if plan.runs else sample(*given)
  return _pack(found.tokens, found.scores, found.lengths, found.lengths > 0, found.complete,
               found.state, constraint, found.steps, found.broken,
               found.token_scores if plan.keep_scores else None)


def _pack(tokens, scores, lengths, exists, complete, state, constraint, steps, broken, each):
  places = None
  if isinstance(constraint, CatalogConstraint):
    forest = constraint.forest
    places = jnp.stack([forest.lo[state], forest.hi[state]], -1)
  return {'tokens': tokens, 'scores': scores, 'lengths': lengths, 'exists': exists,
          'complete': complete, 'places': places, 'steps': steps, 'broken': broken,
          'token_scores': each}

