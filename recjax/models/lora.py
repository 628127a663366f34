"""Low-rank adapters as a tree of their own: fresh ones, and folding them into the weights.

The scale s is `models/llm.Config.lora_scale`. Hu et al., ICLR 2022: y = x W + s (x A) B, which the
layers in `llm` compute.
"""
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from recjax.errors import ConfigError
from recjax.models import llm, quantize


@functools.partial(jax.jit, static_argnums=0, inline=True)
def init_lora(cfg: llm.Config, key: Key[Array, '']) -> PyTree:
  """Fresh adapters, which change nothing yet: A uniform in +-1/sqrt(in) as PEFT draws it, B zero.

  cfg: the model's shape. key: of the draws. -> {'blocks': {name: {'a': (L, in, R), 'b': (L, R,
  out)}}} float32, or {} if cfg.lora_rank is 0
  """
  if not cfg.lora_rank:
    return {}
  blocks = {}
  for name in cfg.lora_targets:
    size_in, size_out, _ = cfg.linear[name]
    # Keyed by the layer's place, so that adding a target leaves the others' draws alone.
    layer_key = jax.random.fold_in(key, list(cfg.linear).index(name))
    bound = 1 / math.sqrt(size_in)
    shape = (cfg.layers, size_in, cfg.lora_rank)
    blocks[name] = {'a': jax.random.uniform(layer_key, shape, jnp.float32, -bound, bound),
                    'b': jnp.zeros((cfg.layers, cfg.lora_rank, size_out), jnp.float32)}
  return {'blocks': blocks}


def merge(params: PyTree, lora: PyTree, cfg: llm.Config) -> PyTree:
  """W + s A B for every adapted layer, computed in float32 and stored in W's type; of a kernel in
  8 bits the sum is quantized anew.

  params, lora: trees of `llm`. cfg: of the adapted model. -> a tree like params, for a config with
  lora_rank=0. Raises ConfigError if the adapters do not have cfg's rank.
  """
  blocks = dict(params['blocks'])
  for name, adapter in lora.get('blocks', {}).items():
    rank = adapter['a'].shape[-1]
    if rank != cfg.lora_rank:
      raise ConfigError(f'adapter of {name} has rank {rank}, the configuration says '
                        f'lora_rank={cfg.lora_rank}')
    stored = {leaf: blocks[name][leaf] for leaf in ('kernel', 'scale') if leaf in blocks[name]}
    blocks[name] = {**blocks[name], **jax.lax.map(
        functools.partial(_merge_layer, cfg.lora_scale), (stored, adapter['a'], adapter['b']))}
  return {**params, 'blocks': blocks}


def _merge_layer(scale, weights):
  """One layer at a time, so that one layer's float32 numbers are there beside the weights."""
  stored, a, b = weights
  kernel = stored['kernel']
  delta = scale * jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)
  if 'scale' in stored:
    numbers, scales = quantize.to_int8(quantize.to_float(kernel, stored['scale']) + delta)
    return {'kernel': numbers, 'scale': scales}
  return {'kernel': (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)}
