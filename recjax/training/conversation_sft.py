"""Conversations in rows: many turns, a loss on the assistant's tokens alone, marks on some of them.

What all conversations begin with runs once a step and its gradient flows; the rest of each stands
beside others in rows, told apart by segments.
"""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from recjax.data.batches import Batches
from recjax.distributed import sharding
from recjax.errors import DataError
from recjax.models import llm
from recjax.text import packing

ROW_STEP = 64  # rows are a multiple of this long


@dataclasses.dataclass(frozen=True)
class Example:
  """One conversation. ids: (n,) int32. weights: (n,) bool, the tokens that are learnt. marks:
  {name: (n,) int32}, further facts about each token."""
  ids: np.ndarray
  weights: np.ndarray
  marks: dict


@dataclasses.dataclass(frozen=True)
class Packed:
  """Examples laid into rows of `row` tokens behind a shared prefix. members: the examples of each
  row. fills: {mark: its value where there is no token}."""
  prefix: list
  examples: list
  members: list
  row: int
  fills: dict

  def arrays(self, rows, size):
    """Some rows as a batch of `size`, the rest of it counting nothing. -> dict of (size, row)"""
    shape, start = (size, self.row), len(self.prefix)
    out = {k: np.zeros(shape, np.int32) for k in ('tokens', 'positions', 'segments', 'targets')}
    out['weights'] = np.zeros(shape, np.float32)
    for name, fill in self.fills.items():
      out[name] = np.full(shape, fill, np.int32)
    for line, r in enumerate(rows):
      at = 0
      for s, i in enumerate(self.members[r], 1):
        one = self.examples[i]
        here = slice(at, at + len(one.ids) - start - 1)
        out['tokens'][line, here] = one.ids[start:-1]
        out['targets'][line, here] = one.ids[start + 1:]
        out['weights'][line, here] = one.weights[start + 1:]
        out['positions'][line, here] = np.arange(start, len(one.ids) - 1)
        out['segments'][line, here] = s
        for name in self.fills:
          out[name][line, here] = one.marks[name][start + 1:]
        at = here.stop
    return out


def shared_prefix(examples):
  """Tokens that all examples begin with, short of the first that is learnt."""
  first, last = (min(examples, key=lambda e: e.ids.tolist()).ids,
                 max(examples, key=lambda e: e.ids.tolist()).ids)
  most = min(int(np.argmax(e.weights)) for e in examples) - 1
  size = max(0, min(most, len(first), len(last)))
  same = np.flatnonzero(first[:size] != last[:size])
  return first[:same[0] if len(same) else size].tolist()


def pack(examples, row, prefix, fills):
  """Lays examples into rows of `row` tokens, or more where one is longer. -> Packed

  Raises DataError without examples, or where one learns nothing.
  """
  if not examples:
    raise DataError('there is no conversation to learn from')
  for i, one in enumerate(examples):
    if not one.weights.any():
      raise DataError(f'conversation {i} has no answer to learn')
  sizes = [len(e.ids) - len(prefix) - 1 for e in examples]
  row = -(-max(row, *sizes) // ROW_STEP) * ROW_STEP
  return Packed(prefix, examples, packing.pack(sizes, row), row, fills)


def batches(packed, examples, mesh, seed):
  """Shuffled batches of about so many examples, the same for any number of devices.

  -> (Batches, batches that see all once, a float)
  """
  count, ways = len(packed.members), sharding.num_batch_shards(mesh)
  rows = max(1, round(examples * count / len(packed.examples)))

  def collate(some):
    return packed.arrays(some, -(-len(some) // ways) * ways)
  return Batches(collate, count, rows, seed), count / rows


def once(packed, rows):
  """Every row once, in batches of one shape; the last is filled with rows that count nothing."""
  for start in range(0, len(packed.members), rows):
    yield packed.arrays(range(start, min(start + rows, len(packed.members))), rows)


def states(model, prefix, variables, batch):
  """Hidden states of a batch's tokens behind the prefix. -> (R * L, D)"""
  past = ()
  if prefix:
    past = (llm.prefill_prefix(model, variables, prefix)[1],)
  hidden, _ = model.apply(variables, batch['tokens'], batch['positions'], batch['segments'], past)
  return hidden.reshape(-1, model.cfg.width)


def shares(weights, segments):
  """Weights under which every conversation counts alike: those of one sum to 1.

  weights: (R, L) float32, of tokens. segments: (R, L), the conversation of each token of a row, 0
  for none. -> (R, L)
  """
  def whole(row, of):
    return jax.ops.segment_sum(row, of, len(row) + 1)[of]
  return weights / jnp.maximum(jax.vmap(whole)(weights, segments), 1e-9)


def judge_by(sums, packed, rows):
  """{name: value} over all of `packed`, by sums(train, frozen, batch) -> ({name: sum}, count)."""
  run = jax.jit(sums)

  def judge(train, frozen):
    total, count = {}, 0.0
    for batch in once(packed, rows):
      some, of = run(train, frozen, batch)
      count += float(of)
      total = {k: total.get(k, 0.0) + float(v) for k, v in some.items()}
    return {k: v / max(count, 1) for k, v in total.items()}
  return judge
