"""What a run of an LLM takes on this CPU: seconds of each stage from pieces of the model that are
measured here, at the shapes of the run, and memory at its peak.

A data sheet says little about a CPU: what it reaches depends on the rows of a product, on what else
runs, and on the many operations between the products. So two layers of the model, its output layer
and a step of decoding run for a moment each, forward and backward, and a stage is counted from
them: layers times tokens. Compiling is not in it.
"""
import dataclasses
import functools
import math
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from recjax.models import llm, llm_decoder, lora
from recjax.models.attention import KVBlock
from recjax.text import packing, tokenizer
from recjax.training import cost_model, llm_loading
from recjax.training.losses import lm

LAYERS = 2       # of the model that is measured

MOST = 1024      # tokens that go through it at once, or a row's

LEAST = 0.25     # seconds that each piece runs for

LETTERS = 3.0    # of a token, where no tokenizer is there yet

COPIES = 7       # reads and writes of a parameter in an update by Adam

ROW = 'this CPU'  # in what `recjax doctor` prints


@dataclasses.dataclass(frozen=True)
class Training:
  """A stage that trains.

  rows, row, prefix: as of `cost_model.LLMRun`. steps: of all epochs. forwards: batches that
  validation looks at. head: whether logits are part of the loss. parts: pieces of a batch, each of
  which runs forward once more where there are several. name: of the stage.
  """
  name: str
  rows: int
  row: int
  prefix: int
  steps: int
  forwards: int = 0
  head: bool = True
  parts: int = 1


@dataclasses.dataclass(frozen=True)
class Embedding:
  """A stage that embeds so many tokens, of texts of `length` tokens. name: of the stage."""
  name: str
  tokens: float
  length: int


@dataclasses.dataclass(frozen=True)
class Search:
  """A stage that generates. name: of the stage. passes: of the model for a batch, each of `width`
  tokens of a beam. requests, batch, beams, prompt, prefix: as of `cost_model.LLMRun`, `prompt` as
  it is padded."""
  name: str
  requests: int
  batch: int
  beams: int
  prompt: int
  passes: float
  prefix: int = 0
  width: int = 1


Stage = Training | Embedding | Search


# Tokens of a run.


def counter(cfg: ConfigDict) -> Callable[[Sequence[str]], Int[np.ndarray, ' N']]:
  """Tokens of texts: by the tokenizer of llm.weights, or typical ones where it is still to be
  trained. cfg: the run's config. -> texts to their numbers of tokens"""
  if cfg.llm.weights == 'tiny':
    return lambda texts: np.array([math.ceil(len(t) / LETTERS) for t in texts], int)
  tokens = tokenizer.load(cfg.llm.weights)
  return lambda texts: np.array([len(ids) for ids in tokens.encode_batch(list(texts))], int)


def some(values: Sequence, most: int = 256) -> list:
  """At most so many of the values, evenly spread."""
  return [values[i] for i in np.unique(np.linspace(0, len(values) - 1, most, dtype=int))]


def padded(tokens: float, step: int = 32) -> int:
  """A prompt as searches pad it. step: what it becomes a multiple of. tokens: of the prompt."""
  return max(1, math.ceil(tokens / step)) * step


def packed(name: str, lengths: Int[np.ndarray, ' N'], prefix: int, count: float, train: ConfigDict,
           valid: int = 0) -> Training:
  """A training of packed rows (`text.packing`).

  lengths: tokens of some samples behind the prefix. count: samples of an epoch. train: row_tokens,
  batch, epochs. valid: samples of validation. name: of the stage.
  """
  row = packing.round_row(max(train.row_tokens, int(lengths.max())))
  rows_of_sample = len(packing.pack(lengths, row)) / len(lengths)
  rows = max(1, round(train.batch * rows_of_sample))
  steps = max(1, round(train.epochs * count * rows_of_sample / rows))
  forwards = train.epochs * math.ceil(valid * rows_of_sample / rows)
  return Training(name, rows, row, prefix, steps, round(forwards))


# Pieces, measured.


def seconds_of(fn: Callable, *args: object,
               clock: Callable[[], float] = time.perf_counter) -> float:
  """Seconds of a call of `fn` once it is compiled, by `clock`. args: of the call."""
  run = jax.jit(fn)
  jax.block_until_ready(run(*args))
  start, count = clock(), 0
  began = time.perf_counter()
  while not count or time.perf_counter() - began < LEAST:
    jax.block_until_ready(run(*args))
    count += 1
  return (clock() - start) / count


def _filled(shapes):
  """Arrays of such shapes. Numbers do not change what a product takes."""
  def fill(x: Any) -> Any:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.split(jax.random.key(0), x.shape)
    value = 0.01 if jnp.issubdtype(x.dtype, jnp.inexact) else 1
    return jnp.asarray(np.full(x.shape, value, x.dtype))
  return jax.tree.map(fill, shapes)


def _array(dtype, *shape):
  return _filled(jax.ShapeDtypeStruct(shape, dtype))


def update_seconds(parameters: int, clock: Callable[[], float] = time.perf_counter) -> float:
  """Seconds of an update of so many `parameters` by Adam, which memory bounds, by `clock`."""
  size = 1 << 22
  copy = seconds_of(lambda x: x + 1, _array(np.float32, size), clock=clock) / 2 / size
  return COPIES * copy * parameters


class Pieces:
  """Seconds of parts of a model on this machine, each measured when it is first asked for.

  shape: the run's, as the CPU computes it. clock: in seconds.
  """

  def __init__(self, shape: llm.Config, clock: Callable[[], float] = time.perf_counter):
    self.shape, self.clock = shape, clock
    self.model = llm.LM(dataclasses.replace(shape, layers=LAYERS, vocab=8))
    self.params, self.adapter = _filled(llm.shapes(self.model.cfg)), _filled(
        jax.eval_shape(functools.partial(lora.init_lora, self.model.cfg), jax.random.key(0)))
    self.forward, self.backward = functools.cache(self._forward), functools.cache(self._backward)
    self.step, self.head = functools.cache(self._step), functools.cache(self._head)
    self.choice = functools.cache(self._choice)

  def _variables(self, adapter, params):
    return {'params': params, **({'lora': adapter} if self.shape.lora_rank else {})}

  def _seconds(self, fn, *args):
    return seconds_of(fn, *args, clock=self.clock)

  def _states(self, rows, length, prefix):
    """How rows of tokens run behind a prefix, and how many do at once."""
    rows = max(1, min(rows, MOST // length))
    ids = np.ones((rows, length), np.int32)
    past = (self._block(None, prefix),) if prefix else ()

    def run(adapter, params):
      states, kv = self.model.apply(self._variables(adapter, params), ids,
                                    jnp.broadcast_to(jnp.arange(length), ids.shape), ids, past)
      return states, kv
    return run, rows * length

  def _block(self, rows, length):
    cfg = self.model.cfg
    rows = () if rows is None else (rows,)
    keys = _array(cfg.dtype, cfg.layers, *rows, cfg.kv_heads, length, cfg.head_dim)
    mask: Any = np.ones((*rows, length), bool)
    return KVBlock(keys, keys, mask)

  def _forward(self, rows: int, length: int, prefix: int = 0) -> float:
    """Of a token in a layer. rows, length, prefix: tokens that run together."""
    run, tokens = self._states(rows, length, prefix)
    return self._seconds(run, self.adapter, self.params) / tokens / LAYERS

  def _backward(self, rows: int, length: int, prefix: int = 0) -> float:
    """Of a token in a layer, forward and backward. rows, length, prefix: as of `forward`."""
    run, tokens = self._states(rows, length, prefix)
    adapted = bool(self.shape.lora_rank)

    def loss(trained, frozen):
      states, _ = run(trained, frozen) if adapted else run(frozen, trained)
      return (states.astype(jnp.float32) ** 2).sum()
    trees = (self.adapter, self.params) if adapted else (self.params, self.adapter)
    return self._seconds(jax.grad(loss), *trees) / tokens / LAYERS

  def _head(self, tokens: int, chunks: int) -> float:
    """Of a token in the loss, forward and backward. tokens: of a batch, in so many chunks."""
    cfg, tokens = self.shape, min(tokens, MOST // 2)
    hidden, table = _array(cfg.dtype, tokens, cfg.width), _array(cfg.dtype, cfg.vocab, cfg.width)
    chunk_bytes = tokens * cfg.vocab * 4 if chunks == 1 else tokens * cfg.vocab * 2

    def loss(hidden, table):
      return lm.token_nll(hidden, table.T, np.zeros(tokens, np.int32), chunk_bytes).sum()
    wanted = 0 if cfg.lora_rank else (0, 1)
    return self._seconds(jax.grad(loss, wanted), hidden, table) / tokens

  def _step(self, batch: int, beams: int, prompt: int, room: int) -> float:
    """Of a layer in a step of decoding. batch, beams, prompt: as of `cost_model.LLMRun`. room:
    tokens that a beam has a place for."""
    cfg, past = self.model.cfg, self._block(batch, prompt)
    tokens = np.ones((batch, beams), np.int32)
    suffix = (_array(cfg.dtype, cfg.layers, batch, beams, cfg.kv_heads, room, cfg.head_dim),) * 2

    def run(adapter, params, suffix, past):
      return llm_decoder.suffix_step(self.model, self._variables(adapter, params), (past,), suffix,
                                     tokens, room // 2)
    return self._seconds(run, self.adapter, self.params, suffix, past) / LAYERS

  def _choice(self, rows: int, most: int) -> float:
    """Of logits of so many rows, their sum and the `most` best tokens of each."""
    cfg = self.shape
    states, table = _array(cfg.dtype, rows, cfg.width), _array(cfg.dtype, cfg.vocab, cfg.width)

    def run(states, table):
      logits = jnp.matmul(states, table.T, preferred_element_type=jnp.float32)
      return jax.lax.top_k(logits, most), jax.nn.logsumexp(logits, -1)
    return self._seconds(run, states, table)

  def seconds(self, stage: Stage) -> float:
    """What a stage takes."""
    layers, vocab = self.shape.layers, self.shape.vocab
    if isinstance(stage, Embedding):
      return stage.tokens * layers * self.forward(MOST, stage.length)
    if isinstance(stage, Training):
      places = stage.rows * stage.row + stage.prefix
      step = places * layers * self.backward(stage.rows, stage.row, stage.prefix)
      look = places * layers * self.forward(stage.rows, stage.row, stage.prefix)
      if stage.parts > 1:
        step += look
      if stage.head:
        head = places * self.head(places, min(2, math.ceil(places * vocab * 4 / cost_model.CHUNK)))
        step, look = step + head, look + head / 2
      if not self.shape.lora_rank:
        step += self._update()
      return stage.steps * step + stage.forwards * look
    batches = math.ceil(stage.requests / stage.batch)
    prompts = stage.batch * stage.prompt * layers * self.forward(stage.batch, stage.prompt,
                                                                 stage.prefix)
    rows = stage.batch * stage.beams
    step = layers * self.step(stage.batch, stage.beams * stage.width, stage.prompt + stage.prefix,
                              math.ceil(stage.passes)) + self.choice(rows, 2 * stage.beams)
    return batches * (prompts + stage.passes * step)

  def _update(self) -> float:
    """Of an update of all weights by Adam."""
    return update_seconds(
        sum(math.prod(p.shape) for p in jax.tree.leaves(llm.shapes(self.shape))), self.clock)


# What `recjax doctor` prints.


def memory() -> float:
  """Bytes of this machine."""
  return float(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))


def own_memory() -> float:
  """Bytes that Python and its packages hold already."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak(shape: llm.Config, stages: Sequence[Stage]) -> float:
  """Bytes of the largest stage, with what Python and its packages hold already. shape: the model's.
  stages: of the run."""
  axes, sizes = {'data': 1}, [0.0]
  for stage in stages:
    if isinstance(stage, Training):
      parts = cost_model.training_bytes(shape, axes, stage.rows, stage.row, stage.prefix)
    elif isinstance(stage, Search):
      parts = cost_model.generation_bytes(shape, axes, stage.batch, stage.beams, stage.prompt,
                                          math.ceil(stage.passes), stage.prefix)
    else:
      parts = cost_model.generation_bytes(shape, axes, 1, 1, MOST, 1)
    sizes.append(sum(parts.values()))
  return max(sizes) + own_memory()


@dataclasses.dataclass(frozen=True)
class Estimate:
  """What a run takes on this CPU, without compiling.

  seconds: {stage: its seconds}, {} where it does not fit. need: bytes at the peak. what: what the
  seconds are of, in words. more: what else to say.
  """
  seconds: Mapping[str, float]
  need: float
  what: str
  more: str = ''

  @property
  def fits(self) -> bool:
    """Whether the machine has the memory."""
    return self.need <= memory()

  def __str__(self) -> str:
    size = (f'about {self.need / cost_model.GIB:,.1f} GiB of {memory() / cost_model.GIB:,.1f} at '
            'the peak')
    if not self.fits:
      return f'does not fit: {size}; {self.more}'
    each = ', '.join(f'{name} {duration(s)}' for name, s in self.seconds.items())
    each = f' ({each})' if len(self.seconds) > 1 else ''
    return f'{duration(sum(self.seconds.values()))} {self.what}{each}, {self.more}; {size}'


def lines(cfg: ConfigDict, shape: llm.Config,
          make_stages: Callable[[], Sequence[Stage]]) -> dict[str, Estimate]:
  """The row of the CPU at hand, {} where a run would have an accelerator.

  cfg: the run's config. shape: of the model, with the adapter's rank. make_stages: gives the stages
  that use it.
  """
  if jax.default_backend() != 'cpu':
    return {}
  dtype = llm_loading.dtype_of(cfg.llm)
  shape = dataclasses.replace(shape, dtype=dtype, param_dtype=dtype, remat=cfg.llm.remat,
                              quantize=cfg.llm.quantize)
  stages = make_stages()
  need, what = peak(shape, stages), 'of the language model'
  if need > memory():
    return {ROW: Estimate({}, need, what, 'try --config.llm.remat=full, '
                          '--config.llm.dtype=bfloat16, smaller batches or a smaller model')}
  pieces = Pieces(shape)
  took = {stage.name: pieces.seconds(stage) for stage in stages}
  rate = llm.flops_per_token(dataclasses.replace(shape, vocab=1), 0) / shape.layers
  used = pieces.forward(MOST, min(MOST, 256))
  return {ROW: Estimate(took, need, what, 'compiling and all else aside, at '
                        f'{rate / used / 1e9:,.0f} GFLOP/s in a layer as measured now')}


def traced_lines(step: cost_model.TracedStep, steps: int, epochs: float, seeds: int
                 ) -> dict[str, Estimate]:
  """The row of the CPU at hand for a small model, whose step runs for a moment; {} where a run
  would have an accelerator.

  step: of one seed. steps: of an epoch. epochs: at most. seeds: trained at once.
  """
  if jax.default_backend() != 'cpu':
    return {}
  need = sum(cost_model.device_bytes(step, seeds, 1).values()) + own_memory()
  what, more = f'for {epochs:g} epochs at most', 'compiling, validation and the test aside'
  if need > memory():
    return {ROW: Estimate({}, need, what, 'fewer seeds or smaller batches need less')}
  one = seconds_of(step.run, *_filled(step.arguments)) + update_seconds(step.parameters)
  return {ROW: Estimate({'training': one * seeds * steps * epochs}, need, what,
                        f'{1e3 * one * seeds:,.0f} ms a step as measured now, {more}')}


def duration(seconds: float) -> str:
  """'42 s', '12 min' or '3.4 h'. seconds: how long."""
  if seconds < 120:
    return f'{seconds:.0f} s'
  return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'
