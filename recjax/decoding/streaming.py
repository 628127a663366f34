"""Samples in item mode that are read while they are made: `generate` with runs, in short calls."""
import functools

import jax
import numpy as np

from recjax.decoding.forced_sampling import State, advance, begin
from recjax.decoding.generate import Generated, padded, whole
from recjax.decoding.lm_head import lm_head_of
from recjax.decoding.sampling import SampleConfig
from recjax.distributed import multihost

PASSES = 4  # of a call, so that text comes soon and calls are few


def stream(decoder, params, prompts, constraint, told, *, new_tokens, width, passes=PASSES,
           temperature=1.0, top_p=1.0, pad_id=0, seed=0, bucket=64):
  """One row of each prompt, token for token as `generate` with samples=1 and runs=(width,).

  told: called after every few passes with the rows so far, [B] token lists; says which requests go
  on, [B] bool. A request that does not ends where it is. constraint: `ItemSpanConstraint` or
  `RetrievalConstraint`. -> Generated. Raises UserError where the model gives NaN
  """
  tokens, lengths = padded(prompts, bucket, 0, pad_id)
  cfg, key = SampleConfig(1, new_tokens, temperature, 0, top_p, pad_id), jax.random.key(seed)
  found, cache = _begin(decoder, cfg, params, tokens, lengths, constraint, key)
  wanted, ended = np.ones(len(tokens), bool), np.zeros(len(tokens), bool)
  while True:
    rows, sizes, over, broken = multihost.to_host(
        (found.tokens, found.lengths, found.complete, found.broken))
    whole(np.where(wanted, broken, -1))
    ended |= over[:, 0] & wanted  # the device counts those that nobody wants as ended
    wanted &= told([row[0, :n].tolist() for row, (n,) in zip(rows, sizes)])
    if not (wanted & ~ended & (sizes[:, 0] < new_tokens)).any():
      break
    found, cache = _advance(decoder, cfg, width, passes, params, constraint, key, found, cache,
                            wanted)
  scores, steps = multihost.to_host((found.scores, found.steps))
  return Generated(rows, scores, sizes, sizes > 0, ended[:, None], None, int(steps))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _begin(decoder, cfg, params, tokens, lengths, constraint, key):
  """Reads prompts. -> Sampled, cache"""
  first, cache = decoder.start(params, tokens, lengths, 1, cfg.new_tokens + 1)
  return begin(first, constraint, cfg, key, functools.partial(lm_head_of, decoder, params)), cache


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=8)
def _advance(decoder, cfg, width, passes, params, constraint, key, found, cache, wanted):
  """A few passes more. -> Sampled, cache"""
  found = found._replace(complete=found.complete | ~wanted[:, None])
  return advance(functools.partial(decoder.extend, params),
                 functools.partial(lm_head_of, decoder, params), constraint, cfg, key, width,
                 State(found, cache), passes)
