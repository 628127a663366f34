"""Low-rank adapters as a tree of their own: fresh ones, and folding them into the weights.

The layers that use them are in `llm`: y = x W + s (x A) B with s = alpha / rank.
"""
import math

import jax
import jax.numpy as jnp

from recjax.errors import ConfigError


def init_lora(cfg, key):
  """Fresh adapters, which change nothing yet: A uniform in +-1/sqrt(in) as PEFT draws it, B zero.

  -> {'blocks': {name: {'a': (L, in, R), 'b': (L, R, out)}}} float32, or {} if cfg.lora_rank is 0
  """
  if not cfg.lora_rank:
    return {}
  blocks = {}
  for name in cfg.lora_targets:
    n, out, _ = cfg.linear[name]
    # Keyed by the layer's place, so that adding a target leaves the others' draws alone.
    place = jax.random.fold_in(key, list(cfg.linear).index(name))
    bound = 1 / math.sqrt(n)
    a = jax.random.uniform(place, (cfg.layers, n, cfg.lora_rank), jnp.float32, -bound, bound)
    blocks[name] = {'a': a, 'b': jnp.zeros((cfg.layers, cfg.lora_rank, out), jnp.float32)}
  return {'blocks': blocks}


def merge(params, lora, cfg):
  """W + s A B for every adapted layer, computed in float32 and stored in W's type.

  params, lora: trees of `llm`. -> a tree like params, for a config with lora_rank=0
  Raises ConfigError if the adapters do not have cfg's rank.
  """
  blocks = dict(params['blocks'])
  for name, ab in lora.get('blocks', {}).items():
    if ab['a'].shape[-1] != cfg.lora_rank:
      raise ConfigError(f'adapter of {name} has rank {ab["a"].shape[-1]}, the configuration says '
                        f'lora_rank={cfg.lora_rank}')
    kernel = blocks[name]['kernel']
    delta = jnp.einsum('lnr,lro->lno', ab['a'], ab['b'], precision=jax.lax.Precision.HIGHEST)
    merged = kernel.astype(jnp.float32) + delta * (cfg.lora_alpha / cfg.lora_rank)
    blocks[name] = {**blocks[name], 'kernel': merged.astype(kernel.dtype)}
  return {**params, 'blocks': blocks}
