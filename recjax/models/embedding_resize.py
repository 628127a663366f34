"""New tokens of a language model: rows for them, trained and stored beside frozen weights."""
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from recjax.errors import ConfigError, DataError
from recjax.models import llm
from recjax.protocols import AnyArray

TokenIds = Sequence[int] | Int[AnyArray, ' _']


@runtime_checkable
class TokenizerLike(Protocol):
  """What is read of a tokenizer, such as `recjax.text.tokenizer.Tokenizer`."""

  @property
  def backend(self) -> Any: ...

  @property
  def eos_ids(self) -> Sequence[int]: ...

  @property
  def pad_id(self) -> int: ...

  @property
  def vocab_size(self) -> Any: ...


def add_tokens(
    params: PyTree, cfg: llm.Config, ids: TokenIds, like: Sequence[TokenIds],
) -> tuple[PyTree, llm.Config]:
  """Weights with rows for new tokens, each the mean of the rows of other tokens.

  params, cfg: of the model. ids: of the new tokens. like: for each the tokens it shall resemble.
  Input and output rows alike; a vocabulary that has spare rows keeps its size. Tables are filled up
  where the axis 'model' of their mesh would not divide them. Raises ConfigError where an id between
  the old rows and the new ones is nobody's.
  """
  size = max(cfg.vocab, max(ids) + 1)
  if unfilled := set(range(cfg.vocab, size)) - set(ids):
    raise ConfigError(f'the new tokens end at {size - 1} and the model has {cfg.vocab} rows: '
                      f'{len(unfilled)} tokens from {min(unfilled)} on would have none')
  rows = {name: jnp.stack([table[jnp.asarray(similar)].astype(jnp.float32).mean(0)
                           for similar in like])
          for name, table in _tables(params).items()}
  old, where = params['embed'].shape[0], getattr(params['embed'], 'sharding', None)
  model = where.mesh.shape.get('model', 1) if isinstance(where, jax.NamedSharding) else 1
  more = llm.padded_rows(size, model) - old if size > old else 0
  params = {**params, 'embed': jnp.pad(params['embed'], [(0, more), (0, 0)])}
  if 'head' in params:
    params['head'] = jnp.pad(params['head'], [(0, 0), (0, more)])
  table_rows = 0 if old + more == size else old + more
  return set_rows(params, rows, ids), dataclasses.replace(cfg, vocab=size, table_rows=table_rows)


def check_rows(folder: str | os.PathLike, tokenizer: TokenizerLike, rows: int) -> None:
  """Raises DataError where a tokenizer has ids that a model of `rows` embeddings has not.

  folder: for the message. tokenizer: of the same model. Spare rows are usual: sizes are rounded up.
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


def _tables(params: PyTree) -> dict[str, Float[Array, 'V D']]:
  """Input and output rows by token."""
  return {'embed': params['embed'], **({'head': params['head'].T} if 'head' in params else {})}


def token_rows(params: PyTree, ids: TokenIds) -> dict[str, Float[Array, 'n D']]:
  """The rows of tokens `ids`, float32. params: of an `llm.LM`. -> {'embed': rows} and 'head' where
  it is not tied"""
  return {name: table[jnp.asarray(ids)].astype(jnp.float32)
          for name, table in _tables(params).items()}


def set_rows(params: PyTree, rows: Mapping[str, Float[AnyArray, 'n D']], ids: TokenIds) -> PyTree:
  """The weights with other rows for tokens `ids`. rows: as from `token_rows`. params: of an
  `llm.LM`."""
  ids = jnp.asarray(ids)
  embed = params['embed']
  params = {**params, 'embed': embed.at[ids].set(rows['embed'].astype(embed.dtype))}
  if 'head' in rows:
    head = params['head']
    params['head'] = head.at[:, ids].set(rows['head'].T.astype(head.dtype))
  return params
