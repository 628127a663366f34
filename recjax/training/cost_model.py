"""What a run takes before it runs: bytes a device, operations, time, the smallest mesh.

Two estimates, neither of which allocates anything. A run of an LLM (`LLMRun`) is counted from its
shapes and sharding rules, which `benchmarks/compile_8b.py` holds against the compiler's own
figures. A small model, whole on each device with its rows divided, is traced (`TracedStep`).
Below them, the collectives of a program that is compiled.
"""
import collections
import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from recjax.distributed import sharding
from recjax.models import layers, llm, lora
from recjax.models.layers import check_dtype

GIB = 2**30

USED = 0.4     # share of the peak that training reaches, typical

FILL = 0.92    # share of a device's memory that a program may plan with

CHUNK_QUERIES = 128  # of a row that attend at a time (models.attention)

CHUNK = 1 << 28  # bytes of logits on a device at a time (losses.token_nll)


class Chip(NamedTuple):
  """One chip, from the vendors' data sheets.

  peak: dense bfloat16 FLOP/s. memory: bytes. speed: bytes/s of memory. link: bytes/s that a chip
  sends to others at most.
  """
  peak: float
  memory: float
  speed: float
  link: float


HARDWARE = {
    'TPU v5e': Chip(197e12, 16 * GIB, 819e9, 200e9),
    'TPU v5p': Chip(459e12, 95 * GIB, 2765e9, 600e9),
    'TPU v6e': Chip(918e12, 32 * GIB, 1640e9, 400e9),
    'A100 80 GB': Chip(312e12, 80 * GIB, 2039e9, 300e9),
    'H100': Chip(989e12, 80 * GIB, 3350e9, 450e9),
    'H200': Chip(989e12, 141 * GIB, 4800e9, 450e9)}

ADAM = 2  # moments of a parameter


# A run of an LLM, counted from shapes.


@dataclasses.dataclass(frozen=True)
class LLMRun:
  """What is trained and generated. shape: with the adapter's rank, 0 where all weights train.

  rows, row, prefix: rows of a step, tokens of a row, tokens of the prefix that they share. tokens:
  of an epoch, all that go through the model. requests, batch, beams, prompt, new_tokens: of
  generation, 0 requests for none. epochs: at most.
  """
  shape: llm.Config
  rows: int
  row: int
  prefix: int
  tokens: float
  epochs: float
  requests: int = 0
  batch: int = 1
  beams: int = 1
  prompt: int = 0
  new_tokens: int = 0


def numerics(shape: llm.Config, cfg: ConfigDict) -> llm.Config:
  """The shape as a run on an accelerator has it. cfg: dtype ('auto': bfloat16), remat,
  quantize."""
  check_dtype('llm.dtype', cfg.dtype, ('auto',))
  dtype = 'bfloat16' if cfg.dtype == 'auto' else cfg.dtype
  return dataclasses.replace(shape, dtype=dtype, param_dtype=dtype, remat=cfg.remat,
                             quantize=cfg.quantize)


def trained_shapes(shape: llm.Config) -> PyTree:
  """The tree that is trained: adapters, or all weights in float32 where there is no rank. shape: as
  of `LLMRun`."""
  if shape.lora_rank:
    return jax.eval_shape(lambda k: lora.init_lora(shape, k), jax.random.key(0))
  return llm.shapes(dataclasses.replace(shape, param_dtype='float32', quantize='none'))


def training_bytes(shape: llm.Config, axes: Mapping[str, int], rows: int, row: int,
                   prefix: int = 0) -> dict[str, float]:
  """Bytes of each device while a step runs, by what they hold.

  axes: of the mesh, {'data': 1, ...}. rows, row, prefix: as of LLMRun. shape: as of `LLMRun`.
  """
  weights = _weights(shape, axes) if shape.lora_rank else 0  # else they are what is trained
  trained = _trained(shape, axes)
  if prefix and not shape.lora_rank:  # a gradient of the prefix's pass, until both are added up
    trained['gradients'] *= 2
  return {'weights': weights, **trained,
          'activations': _activations(shape, axes, rows, row, prefix),
          'logits': _logits(shape, axes, rows * row), 'gathered': _gathered(shape, axes)}


def step_bytes(shape: tuple[llm.Config, int], axes: Mapping[str, int], tokens: np.ndarray,
               parts: int = 1) -> float:
  """Bytes of each device in a step that goes through in parts (`training.microbatch`).

  shape: the model and tokens of the prefix. axes: of the mesh. tokens: the batch's (..., S), of all
  devices.
  """
  cfg, prefix = shape
  row = tokens.shape[-1]
  rows = max(_ways(axes), math.ceil(tokens.size / row / parts))
  more = _trained(cfg, axes)['gradients'] if parts > 1 else 0  # the sum, beside a part's own
  return sum(training_bytes(cfg, axes, rows, row, prefix).values()) + more


def generation_bytes(shape: llm.Config, axes: Mapping[str, int], batch: int, beams: int,
                     prompt: int, new_tokens: int, prefix: int = 0) -> dict[str, float]:
  """Bytes of each device while a batch is generated, by what they hold. axes: of the mesh. shape,
  batch, beams, prompt, new_tokens, prefix: as of `LLMRun`."""
  ways, model = _ways(axes), axes.get('model', 1)
  size = _size(shape)
  heads = math.ceil(shape.kv_heads / model)
  token = 2 * shape.layers * heads * shape.head_dim * size
  device_rows = math.ceil(batch / ways)
  rules = llm.RULES
  adapter = sharding.device_bytes(trained_shapes(shape), rules, axes) if shape.lora_rank else 0
  # Room for tokens doubles as a search goes on, so the old room stands beside the new one.
  cache = device_rows * beams * new_tokens * token * 1.5
  return {'weights': _weights(shape, axes), 'adapters': adapter,
          'prompts': (device_rows * prompt + prefix) * token, 'beams': cache,
          'logits': device_rows * beams * math.ceil(shape.vocab / model) * 4,
          'a layer': _layer(shape, axes), 'gathered': _gathered(shape, axes)}


def _size(shape):
  return 4 if shape.dtype == 'float32' else 2


def _ways(axes):
  return axes.get('data', 1) * axes.get('fsdp', 1)


def _weights(shape, axes):
  """Weights as stored."""
  return sharding.device_bytes(llm.shapes(shape), llm.RULES, axes)


def _trained(shape, axes):
  one = sharding.device_bytes(trained_shapes(shape), llm.RULES, axes)
  return {'trained': one, 'optimizer': ADAM * one, 'gradients': one}


def _activations(shape, axes, rows, row, prefix):
  """What is kept for the backward pass, and what one block needs while it runs."""
  model, size = axes.get('model', 1), _size(shape)
  tokens = math.ceil(rows / _ways(axes)) * row + prefix
  block = (2 * shape.width + sum(_outputs(shape, model).values())) * tokens * size
  heads = math.ceil(shape.heads / model)
  scores = math.ceil(rows / _ways(axes)) * heads * min(row, CHUNK_QUERIES) * (row + prefix) * 4
  kept = shape.layers * tokens * kept_bytes(shape, row, prefix, model)
  if shape.remat == 'none' and not shape.lora_rank and shape.dtype != 'float32':
    kept += shape.layers * size / model * sum(n * out for n, out, _ in shape.linear.values())
  return kept + block + scores


def _outputs(shape, model):
  """Numbers of a token that the linear layers give on one device."""
  return {name: out / (1 if name in ('o', 'down') else model)
          for name, (_, out, _) in shape.linear.items()}


def kept_bytes(shape: llm.Config, row: int, prefix: int = 0, model: int = 1) -> float:
  """Bytes that a layer keeps of a token for the backward pass.

  shape: with its remat and dtype. row, prefix: tokens of a row and before all rows. model: devices
  that a layer is split over. Without remat also norms, rotated q and k, scores of each head with
  every key (their weights in both types), and six arrays of a feed-forward layer's inner width.
  Weights that train need their layers' inputs again.
  """
  size, width, outputs = _size(shape), shape.width, _outputs(shape, model)
  if shape.remat == 'full':
    return width * size
  if shape.remat == 'dots':
    return (width + sum(outputs.values()) - outputs['down']) * size
  trained = not shape.lora_rank
  short = (6 * outputs['up'] + (3 + 3 * trained) * width + outputs['q'] + 2 * outputs['k']
           + 7 * shape.lora_rank)
  seen = (row + min(row, CHUNK_QUERIES)) / 2 + prefix  # keys of a query, those after it included
  weights = shape.heads / model * (4 + size % 4) + 5 * shape.heads / shape.kv_heads
  return short * size + 4 * ((2 + 2 * trained) * width + outputs['q']) + seen * weights


def _logits(shape, axes, tokens):
  """One chunk of logits in float32 and its gradient."""
  each = math.ceil(tokens / _ways(axes)) * math.ceil(shape.vocab / axes.get('model', 1)) * 4
  return 2 * min(each, CHUNK)


def _layer(shape, axes):
  """The weights of one layer, which a GPU copies out of their stack before it multiplies."""
  if axes.get('fsdp', 1) > 1:
    return 0  # gathered, which is counted
  return sum(n * out for n, out, _ in shape.linear.values()) / axes.get('model', 1) * _size(shape)


def _gathered(shape, axes):
  """Under 'fsdp': the token tables and the weights of one layer, whole but for 'model'."""
  if axes.get('fsdp', 1) == 1:
    return 0
  tables = shape.vocab * shape.width * (1 if shape.tied else 2)
  layer = sum(n * out for n, out, _ in shape.linear.values())
  return (tables + layer) / axes.get('model', 1) * _size(shape)


# Operations and time.


def flops_per_trained_token(shape: llm.Config, context: float) -> float:
  """Of a training step, without what remat computes twice. context: as `llm.flops_per_token`.
  shape: as of `LLMRun`."""
  return (2 if shape.lora_rank else 3) * llm.flops_per_token(shape, context)


def epoch_seconds(run: LLMRun, chips: int, peak: float) -> float:
  """Time of an epoch at USED of the peak; full remat runs the forward pass once more.

  peak: FLOP/s of a chip. run: what is trained. chips: how many.
  """
  flops = flops_per_trained_token(run.shape, run.row / 2 + run.prefix)
  if run.shape.remat == 'full':
    flops += llm.flops_per_token(run.shape, run.row / 2 + run.prefix)
  return run.tokens * flops / (USED * peak * chips)


def generation_seconds(run: LLMRun, axes: Mapping[str, int], chip: Chip) -> float:
  """Time of all requests: of each step, what is slowest, to compute it, to read the weights or to
  gather those that 'fsdp' spreads.

  axes: of the mesh. run: what is generated. chip: of what kind.
  """
  fsdp, chips = axes.get('fsdp', 1), math.prod(axes.values())
  peak, weights = chip.peak, _weights(run.shape, {'model': axes.get('model', 1)})
  read = weights / fsdp / chip.speed
  gather = weights * (1 - 1 / fsdp) / chip.link
  steps = math.ceil(run.requests / run.batch) * run.new_tokens
  forward = llm.flops_per_token(run.shape, run.prefix + run.prompt + run.new_tokens / 2)
  prompts = run.requests * run.prompt * forward / (USED * peak * chips)
  compute = run.batch * run.beams * forward / (USED * peak * chips)
  return prompts + steps * max(compute, read, gather)


def smallest_mesh(run: LLMRun, memory: float, most: int = 512) -> dict[str, int] | None:
  """The fewest chips on which training and generation fit. -> axes, or None beyond `most`

  memory: bytes of a chip. Rows are split before layers are, since that moves less between chips;
  for generation `sharding.generation_axes` turns that round. run: what is trained and generated.
  """
  chips = 1
  while chips <= most:
    for model in (1, 2, 4, 8):
      axes = {'data': 1, 'fsdp': chips // model, 'model': model}
      if model > min(chips, run.shape.kv_heads):
        break
      if max(_total(run, axes)) <= FILL * memory:
        return axes
    chips *= 2
  return None


def _total(run, axes):
  """Bytes a device of training and of generation."""
  ways = _ways(axes)  # every device has a row at least
  train = training_bytes(run.shape, axes, max(run.rows, ways), run.row, run.prefix)
  axes = sharding.generation_axes(axes, run.shape.kv_heads)
  write = generation_bytes(run.shape, axes, max(run.batch, _ways(axes)), run.beams, run.prompt,
                           run.new_tokens, run.prefix) if run.requests else {}
  return sum(train.values()), sum(write.values())


def llm_lines(run: LLMRun, mesh: Mapping[str, int], devices: int = 1) -> dict[str, str]:
  """What `recjax doctor` prints, as {what: text}. mesh: the config's axes, one of them -1. run:
  what is trained and generated. devices: that are there."""
  axes = dict(mesh)
  fixed = math.prod(n for n in axes.values() if n > 0)
  axes = {a: n if n > 0 else max(1, devices // fixed) for a, n in axes.items()}
  shape, context = run.shape, run.row / 2 + run.prefix
  step = run.rows * run.row * flops_per_trained_token(shape, context)
  named = ', '.join(f'{a}={n}' for a, n in axes.items())
  trained = layers.count_params(trained_shapes(shape))
  lines = {
      'parameters': f'{layers.count_params(llm.shapes(shape)):,}, of which trained: '
                    + (f'{trained:,} of adapters' if shape.lora_rank else 'all'),
      f'bytes a device in training ({named})': describe_bytes(training_bytes(
          shape, axes, max(run.rows, _ways(axes)), run.row, run.prefix)),
      'a step': f'{run.rows} rows of {run.row} tokens, {step / 1e12:,.2f} TFLOP',
      'an epoch': f'{run.tokens / 1e6:,.1f} M tokens, '
                  f'{run.tokens * step / (run.rows * run.row) / 1e12:,.1f} TFLOP; {run.epochs:g} '
                  'epochs at most'}
  if run.requests:
    writing = sharding.generation_axes(axes, shape.kv_heads)
    named = ', '.join(f'{a}={n}' for a, n in writing.items())
    lines[f'bytes a device in generation ({named})'] = describe_bytes(generation_bytes(
        shape, writing, max(run.batch, _ways(writing)), run.beams, run.prompt, run.new_tokens,
        run.prefix))
  for name, chip in HARDWARE.items():
    fits = smallest_mesh(run, chip.memory)
    if fits is None:
      lines[name] = 'does not fit 512 chips; try --config.llm.remat=full or a smaller batch'
      continue
    chips = math.prod(fits.values())
    lines[name] = (f'fits {chips} ' + ('chips' if chips > 1 else 'chip')
                   + f' (fsdp={fits["fsdp"]}, model={fits["model"]}): '
                   f'{epoch_seconds(run, chips, chip.peak):,.0f} s an epoch at {USED:.0%} of the '
                   'peak')
    if run.requests:
      writing = sharding.generation_axes(fits, shape.kv_heads)
      lines[name] += (f', {generation_seconds(run, writing, chip):,.0f} s to generate'
                      + f' (model={writing["model"]})' * (writing != fits))
  return lines


# A step of a small model, traced.


@dataclasses.dataclass(frozen=True)
class TracedStep:
  """One seed's step over the whole batch. parameters: those that train. kept: bytes that the
  backward pass reads. flops: of all matrix products, forward and backward. run: gives the loss and
  its gradient for `arguments`, of which these are the shapes."""
  parameters: int
  kept: int
  flops: int
  run: Callable = dataclasses.field(compare=False, repr=False)
  arguments: tuple = dataclasses.field(compare=False, repr=False)


def trace(loss: Callable, params: PyTree, *rest: PyTree) -> TracedStep:
  """A step of `loss(params, *rest) -> ()`, from shapes alone."""
  def back(params: PyTree, *rest) -> Callable:
    return jax.vjp(lambda p: loss(p, *rest), params)[1]
  left = collections.Counter(map(_kind, jax.tree.leaves(jax.eval_shape(back, params, *rest))))
  left -= collections.Counter(map(_kind, jax.tree.leaves(params)))  # they are there anyway
  kept = sum(count * math.prod(shape) * _width(dtype) for (shape, dtype), count in left.items())
  run = jax.value_and_grad(loss)
  return TracedStep(sum(math.prod(x.shape) for x in jax.tree.leaves(params)), kept,
                    flops(jax.make_jaxpr(run)(params, *rest).jaxpr), run, (params, *rest))


def _kind(x):
  return x.shape, x.dtype


def _width(dtype):
  return dtype.itemsize if isinstance(dtype, np.dtype) else 8  # a random key


def flops(jaxpr: Any) -> int:
  """Operations of all matrix products of a jaxpr, those of a loop as often as it runs."""
  total = 0
  for eqn in jaxpr.eqns:
    inner = [flops(j) for p in eqn.params.values() for j in _jaxprs(p)]
    if eqn.primitive.name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      left = eqn.invars[0].aval.shape
      total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    elif eqn.primitive.name == 'scan':
      total += eqn.params['length'] * sum(inner)
    elif eqn.primitive.name == 'cond':
      total += max(inner)
    else:
      total += sum(inner)
  return total


def _jaxprs(value):
  """The programs inside a parameter of an equation."""
  if isinstance(value, (tuple, list)):
    return [j for v in value for j in _jaxprs(v)]
  value = getattr(value, 'jaxpr', value)
  return [value] if hasattr(value, 'eqns') else []


def device_bytes(step: TracedStep, seeds: int, ways: int) -> dict[str, float]:
  """Bytes of a device by what they hold, all seeds at once. Rows divide over `ways` alone. step: of
  one seed. seeds: trained at once. ways: devices that rows divide over."""
  one = 4 * step.parameters * seeds
  return {'trained': one, 'optimizer': ADAM * one, 'gradients': one, 'best epoch': one,
          'activations': step.kept * seeds / ways}


def traced_lines(step: TracedStep, steps: int, places: int, epochs: float, seeds: int, ways: int,
                 generation: float = 0, unit: str = 'positions') -> dict[str, str]:
  """What `recjax doctor` prints, as {what: text}.

  steps, places: of an epoch, the latter named by `unit`. seeds: at once. ways: devices that rows
  divide over. generation: bytes of the KV caches of a batch, on all devices. step: of one seed.
  epochs: at most.
  """
  one = step.flops * seeds
  lines = {
      'parameters': f'{step.parameters:,} a seed; {seeds} ' + ('seeds' if seeds > 1 else 'seed')
                    + ' at once',
      f'bytes a device in training (data={ways})': describe_bytes(
          device_bytes(step, seeds, ways), GIB / 1024, 'MiB'),
      'a step': f'{one / 1e9:,.2f} GFLOP of matrix products',
      'an epoch': f'{steps:,} steps, {places:,} {unit}, {one * steps / 1e12:,.2f} TFLOP; '
                  f'{epochs:g} epochs at most'}
  if generation:
    lines[f'bytes a device in generation (data={ways})'] = describe_bytes(
        {'weights': 4 * step.parameters, 'KV caches': generation / ways}, GIB / 1024, 'MiB')
  for name, (peak, memory, *_) in HARDWARE.items():
    chips = next((n for n in (2**i for i in range(10)) if max(
        sum(device_bytes(step, seeds, n).values()), 4 * step.parameters + generation / n)
        <= FILL * memory), 0)
    lines[name] = (f'fits {chips} ' + ('chips' if chips > 1 else 'chip') + f' (data={chips}): '
                   f'{one * steps / (USED * peak * chips):,.3g} s an epoch at '
                   f'{USED:.0%} of the peak' if chips else
                   'does not fit 512 chips, weights being whole on each; fewer seeds train at once')
  return lines


# Both.


def describe_bytes(parts: Mapping[str, float], unit: float = GIB, name: str = 'GiB') -> str:
  """Bytes by what they hold, as text in a unit; what is next to nothing is left out. parts: bytes
  by what they hold. unit, name: of the unit."""
  total = sum(parts.values())
  return f'{total / unit:,.2f} {name}: ' + ', '.join(
      f'{what} {size / unit:,.2f}' for what, size in parts.items() if size >= unit / 200)


COLLECTIVE = re.compile(  # long tuples are numbered: /*index=5*/
    r'= \(?([a-z0-9]+\[(?:[^=]|(?<=index)=)*?) (all-gather|all-reduce|reduce-scatter|all-to-all|'
    r'collective-permute)(?:-start)?\(')

WIDTHS = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2, 's64': 8, 'u64': 8,
          'f64': 8}


def collectives(text: str) -> dict[str, tuple[int, int]]:
  """The collectives of a compiled program's text, a loop's body counted once.

  -> {kind: (how many, bytes of their results on a device)}
  """
  totals = {}
  for shapes, kind in COLLECTIVE.findall(text):
    size = sum(WIDTHS.get(dtype, 4) * math.prod(int(n) for n in dims.split(',') if n)
               for dtype, dims in re.findall(r'([a-z]+[0-9]*)\[([0-9,]*)\]', shapes))
    count, total = totals.get(kind, (0, 0))
    totals[kind] = count + 1, total + size
  return totals
