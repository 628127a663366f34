"""Rotary positions in the half-split layout, with the length scalings that checkpoints in use name.

Su et al., arXiv 2104.09864: the rotation turns pairs (i, i + Dh/2) of a head by position *
frequency_i. Frequencies and the factor on cosine and sine are constants of the configuration,
computed in numpy at trace time.
"""
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from recjax.errors import ConfigError
from recjax.protocols import AnyArray

# What each scaling reads, and what it needs; anything else in a file is an error, not ignored.
SCALINGS = {
    'linear': {'factor'},
    'llama3': {'factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'},
    'yarn': {'factor', 'original_max_position_embeddings'},
}
OPTIONAL = {'yarn': {'attention_factor', 'beta_fast', 'beta_slow', 'mscale', 'mscale_all_dim',
                     'truncate'}}


@runtime_checkable
class RotaryConfig(Protocol):
  """What is read of a model's configuration, such as `llm.Config`."""

  @property
  def head_dim(self) -> int: ...

  @property
  def rope_theta(self) -> float: ...

  @property
  def rope_scaling(self) -> tuple[tuple[str, Any], ...]: ...


def check_scaling(scaling: Mapping) -> None:
  """Raises ConfigError where `scaling`, with its 'rope_type', is not one that is implemented."""
  kind = scaling.get('rope_type', '')
  if kind not in SCALINGS:
    raise ConfigError(f'rope_scaling of type {kind!r} is not supported; these are: '
                      f'{", ".join(SCALINGS)}')
  present = set(scaling) - {'rope_type'}
  if missing := SCALINGS[kind] - present:
    raise ConfigError(f'rope_scaling of type {kind!r} lacks {", ".join(sorted(missing))}')
  wrong = [k for k in sorted(present) if type(scaling[k]) not in (int, float) and k != 'truncate']
  if wrong:
    raise ConfigError(f'rope_scaling of type {kind!r} has {wrong[0]}={scaling[wrong[0]]!r}, which '
                      'is no number')
  if extra := present - SCALINGS[kind] - OPTIONAL.get(kind, set()):
    raise ConfigError(f'rope_scaling of type {kind!r} has {", ".join(sorted(extra))}, '
                      'which is not supported')


def frequencies(cfg: RotaryConfig) -> tuple[Float[np.ndarray, ' half'], float]:
  """The angle per position of each pair, float32, and the factor on cosine and sine. cfg: of the
  model."""
  scaling = dict(cfg.rope_scaling)
  freq = 1.0 / cfg.rope_theta ** (np.arange(0, cfg.head_dim, 2) / cfg.head_dim)
  scale = 1.0
  if scaling:
    check_scaling(scaling)
    kind = scaling['rope_type']
    if kind == 'linear':
      freq = freq / scaling['factor']
    elif kind == 'llama3':
      freq = llama3(freq, scaling)
    else:
      freq, scale = _yarn(freq, scaling, cfg)
  return freq.astype(np.float32), scale


def llama3(freq: Float[np.ndarray, ' half'], scaling: Mapping) -> Float[np.ndarray, ' half']:
  """Keeps fast frequencies, divides slow ones by the factor, and blends those between.

  freq: without scaling. scaling: of the kind llama3. As transformers computes Llama 3.1's
  (modeling_rope_utils.py).
  """
  low, high = scaling['low_freq_factor'], scaling['high_freq_factor']
  turns = scaling['original_max_position_embeddings'] * freq / (2 * math.pi)
  keep = np.clip((turns - low) / (high - low), 0, 1)
  return freq * (keep + (1 - keep) / scaling['factor'])


def _yarn(freq, scaling, cfg):
  """Blends over a range of dimensions that is given in turns over the original length.

  Peng et al., ICLR 2024 (YaRN).
  """
  length, half = scaling['original_max_position_embeddings'], cfg.head_dim // 2

  def dimension(turns: float | int) -> float:
    return half * math.log(length / (turns * 2 * math.pi)) / math.log(cfg.rope_theta)
  low = dimension(scaling.get('beta_fast') or 32)
  high = dimension(scaling.get('beta_slow') or 1)
  if scaling.get('truncate', True):
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, cfg.head_dim - 1)
  stretch = np.clip((np.arange(half) - low) / max(high - low, 1e-3), 0, 1)
  freq = freq * (1 - stretch + stretch / scaling['factor'])
  return freq, _yarn_scale(scaling)


def _yarn_scale(scaling):
  """The factor on cosine and sine: YaRN 3.4, or DeepSeek's quotient where mscale is set."""
  if scaling.get('attention_factor') is not None:
    return scaling['attention_factor']

  def grow(m: float | int) -> float:
    return 1.0 if scaling['factor'] <= 1 else 0.1 * m * math.log(scaling['factor']) + 1.0
  if scaling.get('mscale') and scaling.get('mscale_all_dim'):
    return grow(scaling['mscale']) / grow(scaling['mscale_all_dim'])
  return grow(1.0)


def angles(
    cfg: RotaryConfig, positions: Int[AnyArray, 'B S'],
) -> tuple[Float[Array, 'B S 1 half'], Float[Array, 'B S 1 half']]:
  """Cosine and sine of the angles of tokens at `positions`, times the factor, float32. cfg: of the
  model."""
  freq, scale = frequencies(cfg)
  turn = positions[..., None, None].astype(jnp.float32) * freq
  return jnp.cos(turn) * scale, jnp.sin(turn) * scale


def rotate(
    x: Float[Array, 'B S H Dh'], cos: Float[Array, '#B S 1 half'], sin: Float[Array, '#B S 1 half'],
) -> Float[Array, 'B S H Dh']:
  """x, whose pairs are turned by the angles of `angles`. cos, sin: of `angles`. -> x.dtype"""
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
