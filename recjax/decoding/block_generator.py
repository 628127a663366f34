"""A language model that reads prompts in blocks, and what it has read before not again.

The floats of a product depend on its shape, so what a block of a prompt gives would depend on how
much is read together. Here every block is read by itself, in a program of its place alone: always
one row, always `BLOCK` tokens, and as much room as the tokens before it and it need. So a block of
the same tokens behind the same tokens is the same to the bit, read now or kept by the memory.
"""
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from recjax.decoding.generate import Generated, Search, generate
from recjax.decoding.prefix_generator import PrefixGenerator
from recjax.decoding.prefix_memory import Block, PrefixMemory
from recjax.decoding.sampling import Draws, Sampling
from recjax.decoding.streaming import stream
from recjax.models import llm, llm_decoder
from recjax.models.attention import KVBlock
from recjax.models.llm_decoder import BlockKeys, Keys
from recjax.protocols import Constraint

BLOCK = 128  # tokens that are read together; fewer cost more each, more are filled up more often
AnyKeys = tuple[Float[Array, 'L 1 G _ Dh'], Float[Array, 'L 1 G _ Dh']]  # of any room
MIN_ROOM = 128  # tokens that the shortest prompt has room for; twice as many is the next room


class BlockGenerator:
  """The LLM behind prompts that are read in blocks.

  model, variables, tokenizer: of the LLM. memory: keeps blocks of these variables and no others.
  opening: tokens that most prompts begin with; a block ends where it ends. longest: tokens that all
  prompts have room for at least, so that one program serves them.
  """

  def __init__(self, model: llm.LM, variables: PyTree, tokenizer: Any, memory: PrefixMemory,
               opening: Sequence[int] = (), longest: int = 0):
    self.model, self.variables, self.tokenizer = model, variables, tokenizer
    self.memory, self.opening, self.longest = memory, list(opening), longest
    self.decoder = _decoder(cast(Any, model))

  def keep_opening(self) -> None:
    """Reads the opening, which the memory then keeps for good."""
    blocks = split(self.opening)
    if blocks:
      self.memory.add(blocks, self._read_blocks(blocks)[2], pin=True)

  def generate(self, prompts: Sequence, search: Search, constraint: Constraint | None = None,
               seed: int | Draws = 0) -> Generated:
    """As `generate.generate`; rows end in the tokenizer's pads. prompts: token lists, one at least.
    search, constraint, seed: as of `generate.generate`."""
    search = dataclasses.replace(search, pad_id=self.tokenizer.pad_id)
    params, last_tokens = self._params(prompts)
    return generate(self.decoder, params, last_tokens, search, constraint, seed=seed, bucket=1)

  def stream(self, prompts: Sequence, search: Sampling, constraint: Constraint, on_rows: Callable,
             seed: int | Draws = 0) -> Generated:
    """As `streaming.stream`. prompts: token lists, one at least. search, constraint, on_rows, seed:
    as of `streaming.stream`."""
    search = dataclasses.replace(search, pad_id=self.tokenizer.pad_id)
    params, last_tokens = self._params(prompts)
    return stream(self.decoder, params, last_tokens, search, constraint, on_rows, seed=seed,
                  bucket=1)

  def states(self, prompts: Sequence) -> Float[Array, 'B D']:
    """The state after each prompt's last token. prompts: token lists."""
    return jnp.concatenate([state for state, _ in self._read_all(prompts)])

  def own(self, prompt: Sequence | np.ndarray) -> Sequence | np.ndarray:
    """What of a prompt `generate` and `stream` are given: all of it."""
    return prompt

  def room(self, prompt: Sequence[int]) -> int:
    """Tokens that a prompt is given room for; prompts of one room share programs."""
    blocks = self.blocks(prompt)
    return room_for(max(self.longest, sum(map(len, blocks[:-1])) + BLOCK))

  def blocks(self, prompt: Sequence[int]) -> list[Block]:
    """A prompt in blocks: those of the opening, where it begins with it, then the others."""
    ids, size = list(map(int, prompt)), len(self.opening)
    if len(ids) > size and ids[:size] == self.opening:
      return split(ids[:size]) + split(ids[size:])
    return split(ids)

  def _params(self, prompts: Sequence) -> tuple[PyTree, list]:
    """The decoder's params of prompts, and their last tokens."""
    rows = self._read_all(prompts)
    room = max(keys[0].shape[3] for _, keys in rows)
    keys = [_grow(keys, room) for _, keys in rows]
    k, v = keys[0] if len(keys) == 1 else (jnp.concatenate(part, 1) for part in zip(*keys))
    lengths = np.array([len(prompt) for prompt in prompts])
    params = {'variables': self.variables, 'state': jnp.concatenate([state for state, _ in rows]),
              'prompt': KVBlock(k, v, jnp.asarray(np.arange(room) < lengths[:, None]))}
    return params, [prompt[-1:] for prompt in prompts]

  def _read_all(self, prompts: Sequence) -> list[tuple[Float[Array, '1 D'], AnyKeys]]:
    """The state after each prompt, and its keys and values; prompts that are equal once."""
    rows: dict[Block, tuple] = {}
    keys = [tuple(map(int, prompt)) for prompt in prompts]
    for key in keys:
      if key not in rows:
        rows[key] = self._read(key)
    return [rows[key] for key in keys]

  def _read(self, prompt: Sequence[int]) -> tuple[Float[Array, '1 D'], AnyKeys]:
    blocks = self.blocks(prompt)
    found = self.memory.find(blocks[:-1])
    state, keys, values = self._read_blocks(blocks, found)
    is_whole = len(blocks[-1]) == BLOCK
    num_kept = len(blocks) - (not is_whole)
    self.memory.add(blocks[:num_kept], values[:num_kept])
    num_found = sum(map(len, blocks[:len(found)]))
    self.memory.on_prompt(num_found, len(prompt) - num_found)
    return state, _grow(keys, self.room(prompt))

  def _read_blocks(self, blocks: Sequence[Block], found: Sequence[AnyKeys] = ()
                   ) -> tuple[Any, AnyKeys, list[AnyKeys]]:
    """Reads blocks behind those that are found, the first ones. -> the state after the last, keys
    and values of all, and of each"""
    values, state = list(found), None
    start = sum(map(len, blocks[:len(found)]))
    keys = llm_decoder.empty_keys(self.model.cfg, room_for(start + BLOCK))
    place = 0
    for block, value in zip(blocks, found):
      keys = _write(keys, value, place)
      place += len(block)
    for block in blocks[len(found):]:
      tokens = np.full((1, BLOCK), self.tokenizer.pad_id, np.int32)
      tokens[0, :len(block)] = block
      state, keys, value = _read_block(
        self.model, self.variables, _grow(keys, room_for(start + BLOCK)), tokens, np.int32(start),
        np.int32(len(block)))
      values.append(value)
      start += len(block)
    return state, keys, values


PromptGenerator = PrefixGenerator | BlockGenerator


def split(ids: Sequence[int]) -> list[Block]:
  """Tokens in blocks, the last of which may be shorter."""
  return [tuple(ids[start:start + BLOCK]) for start in range(0, len(ids), BLOCK)]


def room_for(tokens: int) -> int:
  """The room, one of few, in which so many tokens fit."""
  room = MIN_ROOM
  while room < tokens:
    room *= 2
  return room


def _grow(keys: AnyKeys, room: int) -> AnyKeys:
  """Keys and values with more room."""
  more = room - keys[0].shape[3]
  return _pad(keys, more) if more > 0 else keys


@functools.partial(jax.jit, static_argnums=1)
def _pad(keys: AnyKeys, more: int) -> AnyKeys:
  return jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * 3 + [(0, more), (0, 0)]), keys)


_decoder = functools.lru_cache(8)(llm_decoder.decoder_of_read_prompts)  # programs are by decoder

_write = jax.jit(llm_decoder.write_keys, donate_argnums=0)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _read_block(model: llm.LM, variables: PyTree, keys: Keys, tokens: Int[Array, '1 S'],
                start: Int[Array, ''], count: Int[Array, '']
                ) -> tuple[Float[Array, '1 D'], Keys, BlockKeys]:
  return llm_decoder.read_block(model, variables, keys, tokens, start, count)
