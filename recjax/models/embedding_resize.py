"""New tokens of a language model: rows for them, trained and stored beside frozen weights."""
import dataclasses

import jax.numpy as jnp

from recjax.errors import ConfigError, DataError


def add_tokens(params, cfg, ids, like):
  """Weights with rows for new tokens, each the mean of the rows of other tokens.

  ids: of the new tokens. like: for each the tokens it shall resemble. Input and output rows alike;
  a vocabulary that has spare rows keeps its size. -> params, Config. Raises ConfigError where an
  id between the old rows and the new ones is nobody's.
  """
  size = max(cfg.vocab, max(ids) + 1)
  if unfilled := set(range(cfg.vocab, size)) - set(ids):
    raise ConfigError(f'the new tokens end at {size - 1} and the model has {cfg.vocab} rows: '
                      f'{len(unfilled)} tokens from {min(unfilled)} on would have none')
  rows = {name: jnp.stack([table[jnp.asarray(some)].astype(jnp.float32).mean(0) for some in like])
          for name, table in _tables(params).items()}
  more = size - cfg.vocab
  params = {**params, 'embed': jnp.pad(params['embed'], [(0, more), (0, 0)])}
  if 'head' in params:
    params['head'] = jnp.pad(params['head'], [(0, 0), (0, more)])
  return set_rows(params, rows, ids), dataclasses.replace(cfg, vocab=size)


def check_rows(folder, tokenizer, rows):
  """Raises DataError where a tokenizer has ids that a model of `rows` embeddings has not.

  folder: for the message. Spare rows are usual: sizes are rounded up.
  """
  size = tokenizer.vocab_size
  if size > rows:
    known = tokenizer.backend.id_to_token(size - 1)
    raise DataError(
        f'{folder}: the tokenizer has ids up to {size - 1} ({known!r}), and the model has '
        f'{rows} rows of embeddings (vocab_size); take the files of both from the same model, or '
        f'give it rows for them (transformers: model.resize_token_embeddings({size}))')
  above = [i for i in (*tokenizer.eos_ids, tokenizer.pad_id) if not 0 <= i < rows]
  if above:
    raise DataError(f'{folder}: the end or padding token {above[0]} is none of the {rows} rows of '
                    'embeddings; correct eos_token_id in its generation_config.json, or pad_token '
                    'in tokenizer_config.json')


def _tables(params):
  """Input and output rows by token, each (V, D)."""
  return {'embed': params['embed'], **({'head': params['head'].T} if 'head' in params else {})}


def token_rows(params, ids):
  """The rows of some tokens. -> {'embed': (n, D)} and 'head' where it is not tied, float32"""
  return {name: table[jnp.asarray(ids)].astype(jnp.float32)
          for name, table in _tables(params).items()}


def set_rows(params, rows, ids):
  """The weights with other rows for some tokens. rows: as from `rows_of`."""
  at = jnp.asarray(ids)
  out = {**params, 'embed': params['embed'].at[at].set(rows['embed'].astype(params['embed'].dtype))}
  if 'head' in rows:
    out['head'] = params['head'].at[:, at].set(rows['head'].T.astype(params['head'].dtype))
  return out
