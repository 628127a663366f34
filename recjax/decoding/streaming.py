"""Samples that are read while they are made: `generate` with forced tokens, in short calls."""
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from recjax.decoding.constraints import with_new_tokens
from recjax.decoding.forced_sampling import ForcedState, first_tokens, run_passes
from recjax.decoding.generate import Generated, as_chance, pad_prompts, raise_on_nan
from recjax.decoding.lm_head import bind
from recjax.decoding.sampling import Chance, Draws, Sampling
from recjax.distributed import multihost
from recjax.errors import ConfigError
from recjax.protocols import Constraint, Decoder

PASSES = 4  # of a call, so that text comes soon and calls are few


def stream(decoder: Decoder, params: PyTree, prompts: Sequence, search: Sampling,
           constraint: Constraint, on_rows: Callable[[list], Sequence], *, passes: int = PASSES,
           seed: int | Draws = 0, bucket: int = 64) -> Generated:
  """One row of each prompt, token for token as `generate` gives it.

  decoder, params, prompts, seed, bucket: as in `generate`. search: of one sample, with pass_width.
  constraint: `ItemSpanConstraint` or `RetrievalConstraint`. on_rows: called after every `passes`
  model passes with the rows so far, [B] token lists; says which requests go on, [B] bool. A request
  that does not ends where it is. Raises UserError where the model gives NaN, ConfigError for
  another search.
  """
  if search.samples != 1 or not search.pass_width:
    raise ConfigError(f'samples={search.samples} and pass_width={search.pass_width}: a stream is '
                      'one sample, in passes of one token or more')
  tokens, lengths = pad_prompts(prompts, bucket, 0, search.pad_id)
  search, key = with_new_tokens(search, constraint), as_chance(seed)
  state = _first_tokens(decoder, search, params, tokens, lengths, constraint, key)
  wanted, ended = np.ones(len(tokens), bool), np.zeros(len(tokens), bool)
  while True:
    rows, lengths, complete, nan_step = multihost.to_host(
        (state.rows.tokens, state.rows.lengths, state.rows.complete, state.rows.nan_step))
    raise_on_nan(np.where(wanted, nan_step, -1))
    ended |= complete[:, 0] & wanted  # the device counts those that nobody wants as ended
    wanted &= on_rows([row[0, :n].tolist() for row, (n,) in zip(rows, lengths)])
    if not (wanted & ~ended & (lengths[:, 0] < search.new_tokens)).any():
      break
    state = _run_passes(decoder, search, passes, params, constraint, key, state.rows, state.cache,
                        wanted)
  scores, steps = multihost.to_host((state.rows.scores, state.rows.steps))
  return Generated(rows, scores, lengths, lengths > 0, ended[:, None], None, int(steps))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _first_tokens(decoder: Decoder, search: Sampling, params: PyTree, tokens: Int[Array, 'B P'],
                  lengths: Int[Array, ' B'], constraint: Constraint, key: Chance
                  ) -> ForcedState:
  """Reads prompts and draws one token for each."""
  first, cache = decoder.start(params, tokens, lengths, 1, search.new_tokens + 1)
  return ForcedState(first_tokens(bind(decoder, params), first, constraint, search, key), cache)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=7)
def _run_passes(decoder: Decoder, search: Sampling, passes: int, params: PyTree,
                constraint: Constraint, key: Chance, rows, cache: PyTree,
                wanted: Bool[Array, ' B']) -> ForcedState:
  """A few passes more; the cache is given up."""
  rows = rows._replace(complete=rows.complete | ~wanted[:, None])
  return run_passes(bind(decoder, params), constraint, search, key, ForcedState(rows, cache),
                    passes)
