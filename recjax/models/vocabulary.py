"""New tokens of a language model: rows for them, trained and stored beside frozen weights."""
import dataclasses

import jax.numpy as jnp


def grow(params, cfg, ids, like):
  """Weights with rows for new tokens, each the mean of the rows of other tokens.

  ids: of the new tokens. like: for each the tokens it shall resemble. Input and output rows alike;
  a vocabulary that has spare rows keeps its size. -> params, Config
  """
  size = max(cfg.vocab, max(ids) + 1)
  rows = {name: jnp.stack([table[jnp.asarray(some)].astype(jnp.float32).mean(0) for some in like])
          for name, table in _tables(params).items()}
  more = size - cfg.vocab
  params = {**params, 'embed': jnp.pad(params['embed'], [(0, more), (0, 0)])}
  if 'head' in params:
    params['head'] = jnp.pad(params['head'], [(0, 0), (0, more)])
  return put(params, rows, ids), dataclasses.replace(cfg, vocab=size)


def _tables(params):
  """Input and output rows by token, each (V, D)."""
  return {'embed': params['embed'], **({'head': params['head'].T} if 'head' in params else {})}


def rows_of(params, ids):
  """The rows of some tokens. -> {'embed': (n, D)} and 'head' where it is not tied, float32"""
  return {name: table[jnp.asarray(ids)].astype(jnp.float32)
          for name, table in _tables(params).items()}


def put(params, rows, ids):
  """The weights with other rows for some tokens. rows: as from `rows_of`."""
  at = jnp.asarray(ids)
  out = {**params, 'embed': params['embed'].at[at].set(rows['embed'].astype(params['embed'].dtype))}
  if 'head' in rows:
    out['head'] = params['head'].at[:, at].set(rows['head'].T.astype(params['head'].dtype))
  return out
