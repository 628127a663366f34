"""RQ-VAE: item vectors to residual codes by an encoder, codebooks and a decoder.

Lee et al., CVPR 2022; Rajput et al., NeurIPS 2023 (TIGER); Liu et al., SIGIR 2025 (ETEGRec). Plain
functions over {'encoder', 'decoder': {'0': {'w', 'b'}, ...}, 'codebooks': (Q, C, E)}. Distances are
float32 at the highest precision. See docs/etegrec.md.

Shape letters: B vectors, d their width, Q levels, C codes a level, E their width, N items.
"""
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from recjax.errors import ConfigError, DataError
from recjax.protocols import AnyArray
from recjax.retrieval import kmeans

CHUNK = 2048  # items that are given codes together

CHOICES = {'residual': ('ste', 'sg'), 'distance': ('l2', 'dot', 'cos'),
           'recon': ('mse', 'l1', 'infonce'), 'reduction': ('mean', 'sum'),
           'estimator': ('ste', 'rotation', 'gumbel'), 'encoder': ('mlp', 'residual', 'none')}
constant = lax.stop_gradient
Weight = Shaped[AnyArray, ' B'] | None  # how much each row counts; None for equal ones


@dataclasses.dataclass(frozen=True)
class Config:
  """Shape and losses; hashable. Raises ConfigError.

  dim: d. hidden: inner widths of the encoder; the decoder mirrors it. width: E. levels, size: Q and
  C. beta: weight of the commitment loss. alpha: weight of both quantization losses. reduction: of
  the losses over a vector's numbers. residual: what is taken off before the next level, the
  straight-through value ('ste', as released) or the code ('sg'). distance: of codes. recon: the
  loss of the decoder. estimator: how gradients pass a code; 'rotation' as Fifty et al., ICLR 2025.
  encoder: 'mlp'; 'residual' adds the input (RQ-KMeans+), 'none' has no networks (R-VQ). sinkhorn:
  eps of balanced assignment in training for each level, 0 for none, or (). tau: of 'cos' and
  'infonce'.
  """
  dim: int
  hidden: tuple[int, ...] = (512, 256)
  width: int = 128
  levels: int = 3
  size: int = 256
  beta: float = 0.25
  alpha: float = 1.0
  reduction: str = 'mean'
  residual: str = 'ste'
  distance: str = 'l2'
  recon: str = 'mse'
  estimator: str = 'ste'
  encoder: str = 'mlp'
  sinkhorn: tuple[float, ...] = ()
  tau: float = 0.1

  def __post_init__(self):
    for name, known in CHOICES.items():
      if getattr(self, name) not in known:
        raise ConfigError(f'semantic_ids.{name}={getattr(self, name)!r}; choose one of '
                          f'{", ".join(known)}')
    if min(self.dim, self.width, self.levels, self.size, *self.hidden, 9) < 1:
      raise ConfigError(f'the tokenizer has an empty part: {self}')
    if self.encoder != 'mlp' and self.width != self.dim:
      raise ConfigError(f'a tokenizer with encoder={self.encoder!r} needs codes as wide as the '
                        f'item vectors, {self.dim}, not {self.width}')
    if self.sinkhorn and len(self.sinkhorn) != self.levels:
      raise ConfigError(f'semantic_ids.sinkhorn={self.sinkhorn} must have {self.levels} numbers')


@functools.partial(jax.jit, static_argnums=0, inline=True)
def init(cfg: Config, key: Key[Array, '']) -> PyTree:
  """Xavier-normal weights, zero biases, uniform codebooks (then `init_codebooks`). cfg: its
  settings. key: of the draws."""
  sizes = (cfg.dim, *cfg.hidden, cfg.width)
  keys = jax.random.split(key, 3)
  codebooks = jax.random.uniform(
      keys[2], (cfg.levels, cfg.size, cfg.width), minval=-1 / cfg.size, maxval=1 / cfg.size)
  if cfg.encoder == 'none':
    return {'codebooks': codebooks}
  params = {'encoder': _layers(keys[0], sizes), 'decoder': _layers(keys[1], sizes[::-1])}
  if cfg.encoder == 'residual':  # the network begins as nothing
    for net in params.values():
      net[str(len(sizes) - 2)]['w'] *= 0
  return {**params, 'codebooks': codebooks}


def _layers(key, sizes):
  weights = [jax.random.normal(jax.random.fold_in(key, i), (a, b)) * (2 / (a + b)) ** 0.5
             for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:]))]
  return {str(i): {'w': w, 'b': jnp.zeros(w.shape[1])} for i, w in enumerate(weights)}


def _mlp(net, x):
  for i in range(len(net)):
    x = jnp.dot(x, net[str(i)]['w'], precision=lax.Precision.HIGHEST) + net[str(i)]['b']
    x = jax.nn.relu(x) if i + 1 < len(net) else x
  return x


def encode(cfg: Config, params: PyTree, x: Float[AnyArray, 'B d']) -> Float[AnyArray, 'B E']:
  """The encoder's outputs for item vectors x. cfg, params: of the RQ-VAE."""
  if cfg.encoder == 'none':
    return x
  y = _mlp(params['encoder'], x)
  return x + y if cfg.encoder == 'residual' else y


def decode(
    cfg: Config, params: PyTree, quantized: Float[AnyArray, 'B E']) -> Float[AnyArray, 'B d']:
  """The decoder's item vectors. cfg, params: of the RQ-VAE. quantized: 'out' of `quantize`."""
  if cfg.encoder == 'none':
    return quantized
  y = _mlp(params['decoder'], quantized)
  return quantized + y if cfg.encoder == 'residual' else y


def distances(
    cfg: Config, x: Float[AnyArray, 'B E'], codebook: Float[AnyArray, 'C E'],
) -> Float[Array, 'B C']:
  """What the argmin over a level's codes is taken of. x: residuals. cfg: its settings. codebook: of
  the level."""
  if cfg.distance == 'l2':  # no floor at 0 here: it would stop gradients of near codes
    dot = jnp.dot(x, codebook.T, precision=lax.Precision.HIGHEST)
    return (x * x).sum(-1, keepdims=True) + (codebook * codebook).sum(-1) - 2 * dot
  if cfg.distance == 'cos':
    return -jnp.dot(_unit(x), _unit(codebook).T, precision=lax.Precision.HIGHEST) / cfg.tau
  return -jnp.dot(x, codebook.T, precision=lax.Precision.HIGHEST)


def _size(x):
  return jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _unit(x):
  return x / _size(x)


def rotate(x: Float[AnyArray, 'B E'], code: Float[AnyArray, 'B E']) -> Float[Array, 'B E']:
  """`code` as a turned and stretched x, with turn and stretch held constant.

  The rotation trick of Fifty et al., ICLR 2025.
  """
  def dot(a: AnyArray, b: AnyArray) -> AnyArray:
    return (a * b).sum(-1, keepdims=True)
  x_unit, code_unit = constant(_unit(x)), constant(_unit(code))
  scale = constant(_size(code) / _size(x))
  between = constant(_unit(x_unit + code_unit))
  return scale * (x - 2 * between * dot(between, x) + 2 * code_unit * dot(x_unit, x))


def quantize(
    cfg: Config, codebooks: Float[AnyArray, 'Q C E'], x: Float[AnyArray, 'B E'],
    key: Key[Array, ''] | None = None, weight: Weight = None) -> dict[str, Any]:
  """The codes of all levels.

  x: outputs of the encoder. key: of training's Gumbel noise and Sinkhorn; None is plain argmin.
  weight: how much a row counts in the loss. cfg: its settings. codebooks: of all levels.

  -> {'codes': (B, Q), 'dist': (B, Q, C), 'out': (B, E) what the decoder gets, 'parts': [(B, E)],
  the codes' vectors, 'loss': ()}
  """
  residual, codes, dists, parts, losses, outs = x, [], [], [], [], []
  for level in range(cfg.levels):
    codebook = codebooks[level]
    dist = distances(cfg, residual, codebook)
    eps = cfg.sinkhorn[level] if cfg.sinkhorn and key is not None else 0
    code = kmeans.sinkhorn(constant(dist), eps).argmax(-1) if eps else kmeans.argmin(dist)
    part = codebook[code]
    if cfg.estimator == 'gumbel' and key is not None:
      noise = jax.random.gumbel(jax.random.fold_in(key, level), dist.shape)
      part = jax.nn.softmax((noise - dist) / 0.2, -1) @ codebook
    losses.append(_level_loss(cfg, residual, part, dist, code, weight))
    if cfg.estimator == 'rotation':
      out = rotate(residual, part)
    else:
      out = residual + constant(part - residual)
    codes.append(code)
    dists.append(dist)
    parts.append(part)
    outs.append(out)
    residual = residual - (out if cfg.residual == 'ste' else constant(part))
  total = functools.reduce(jnp.add, parts)
  if cfg.estimator == 'gumbel' and key is not None:
    out = total
  elif cfg.residual == 'ste':
    out = functools.reduce(jnp.add, outs)
  else:  # once for the sum: per level it would count the gradient Q times
    out = rotate(x, total) if cfg.estimator == 'rotation' else x + constant(total - x)
  return {'codes': jnp.stack(codes, 1).astype(jnp.int32), 'dist': jnp.stack(dists, 1), 'out': out,
          'parts': parts, 'loss': sum(losses) / (cfg.levels if cfg.reduction == 'mean' else 1)}


def _mean(values: Float[Array, ' B'], weight: Weight) -> Float[Array, '']:
  """The mean of one number a row."""
  if weight is None:
    return values.mean()
  return (values * weight).sum() / jnp.maximum(weight.sum(), 1)


def _level_loss(cfg, residual, part, dist, code, weight):
  """Codebook and commitment loss of a level (TIGER 3.1), or cross-entropy where it is not 'l2'."""
  if cfg.distance != 'l2':
    nll = -jnp.take_along_axis(jax.nn.log_softmax(-dist), code[:, None], 1)[:, 0]
    return cfg.beta * _mean(nll, weight)
  reduce = jnp.mean if cfg.reduction == 'mean' else jnp.sum

  def squared(gap: AnyArray) -> AnyArray:
    return _mean(reduce(gap ** 2, -1), weight)
  return squared(part - constant(residual)) + cfg.beta * squared(constant(part) - residual)


def forward(
    cfg: Config, params: PyTree, x: Float[AnyArray, 'B d'], key: Key[Array, ''] | None = None,
    weight: Weight = None) -> dict[str, Any]:
  """`quantize`'s dict for item vectors x, with 'recon': (B, d). key, weight: as there. cfg, params:
  of the RQ-VAE."""
  quantized = quantize(cfg, params['codebooks'], encode(cfg, params, x), key, weight)
  return {**quantized, 'recon': decode(cfg, params, quantized['out'])}


def recon_loss(
    cfg: Config, recon: Float[AnyArray, 'B d'], x: Float[AnyArray, 'B d'], weight: Weight = None,
) -> Float[Array, '']:
  """How far the decoder's vectors are from the items' vectors x. cfg: its settings. recon: the
  decoder's vectors. weight: how much a row counts."""
  if cfg.recon == 'infonce':
    a, b = _unit(recon), _unit(x)
    logits = a @ b.T / cfg.tau
    if weight is not None:
      logits = jnp.where(weight > 0, logits, -1e30)
    return _mean(jax.nn.logsumexp(logits, 1) - (a * b).sum(-1) / cfg.tau, weight)
  gap = jnp.abs(recon - x) if cfg.recon == 'l1' else (recon - x) ** 2
  return _mean(gap.mean(-1) if cfg.reduction == 'mean' else gap.sum(-1), weight)


def loss(
    cfg: Config, params: PyTree, x: Float[AnyArray, 'B d'], key: Key[Array, ''] | None = None,
    weight: Weight = None) -> tuple[Float[Array, ''], dict[str, Any]]:
  """Reconstruction and alpha times quantization, and `forward`'s dict, whose parameters it has.
  cfg, params: of the RQ-VAE. x, key, weight: as of `quantize`, x before the encoder."""
  quantized = forward(cfg, params, x, key, weight)
  total = recon_loss(cfg, quantized['recon'], x, weight) + cfg.alpha * quantized['loss']
  return total, quantized


def assign_codes(cfg: Config, params: PyTree, x: Float[AnyArray, 'N d']) -> Int[Array, 'N Q']:
  """The codes of item vectors x by plain argmin, int32.

  cfg, params: of the RQ-VAE.

  CHUNK items at a time: what they need stays in a CPU's cache, which is 1.5x faster.
  """
  def of_chunk(rows: AnyArray) -> Array:
    return quantize(cfg, params['codebooks'], encode(cfg, params, rows))['codes']
  if len(x) <= CHUNK:
    return of_chunk(x)
  chunks = jnp.pad(x, [(0, -len(x) % CHUNK), (0, 0)]).reshape(-1, CHUNK, x.shape[1])
  return lax.map(of_chunk, chunks).reshape(-1, cfg.levels)[:len(x)]


def init_codebooks(
    cfg: Config, params: PyTree, x: Float[AnyArray, 'N d'], key: Key[Array, ''], steps: int = 25,
) -> PyTree:
  """The parameters with codebooks from k-means on the encoder's outputs, level by level.

  x: item vectors. steps: of `kmeans.fit`. cfg, params: of the RQ-VAE. key: of the draws.
  """
  residuals, codebooks = encode(cfg, params, x), []
  for level in range(cfg.levels):
    centers, assigned, _ = kmeans.fit(
        jax.random.fold_in(key, level), residuals, min(cfg.size, len(x)), steps)
    spare = params['codebooks'][level][len(centers):]  # fewer items than codes: the rest is dead
    codebooks.append(jnp.concatenate([centers, spare + 1e3]) if len(spare) else centers)
    residuals = residuals - centers[assigned]
  return {**params, 'codebooks': jnp.stack(codebooks)}


# LETTER's regularizers (Wang et al., CIKM 2024).


def collaborative_loss(
    quantized: Float[AnyArray, 'B E'], collaborative: Float[AnyArray, 'B E']) -> Float[Array, '']:
  """Quantized vectors must pick out their item's collaborative one in the batch. quantized: of
  `quantize`. collaborative: vectors of the same items."""
  return -jnp.diagonal(jax.nn.log_softmax(quantized @ collaborative.T)).mean()


def diversity_loss(
    codebooks: Float[AnyArray, 'Q C E'], parts: Sequence[Float[AnyArray, 'B E']],
    codes: Int[AnyArray, 'B Q'], group: Int[AnyArray, 'Q C'], key: Key[Array, ''],
) -> Float[Array, '']:
  """Codes are drawn to others of their group.

  parts, codes: of `quantize`. group: of each code. key: the positive is a random other code of the
  chosen one's group; a code that is alone in its group counts for nothing. codebooks: of all
  levels.
  """
  total = jnp.float32(0)
  for level, part in enumerate(parts):
    code = codes[:, level]
    same_group = group[level][code][:, None] == group[level][None]
    itself = jnp.arange(len(group[level])) == code[:, None]
    others = same_group & ~itself
    noise = jax.random.uniform(jax.random.fold_in(key, level), others.shape)
    positive = jnp.where(others, noise, -1).argmax(-1)
    logits = jnp.where(itself, -1e12, part @ codebooks[level].T)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), positive[:, None], 1)[:, 0]
    total += jnp.where(others.any(-1), nll, 0).mean()
  return total / len(parts)


# Published weights.


def from_state_dict(
    state: Mapping[str, np.ndarray], path: Any = 'the state dict') -> tuple[Config, PyTree]:
  """Config and parameters of the tensors of ETEGRec's release (github.com/RUCAIBox/ETEGRec).

  state: tensors by name. path: of the file, for messages. Raises DataError where no tensor, or not
  all, of an RQ-VAE are there.
  """
  state = {k.removeprefix('module.'): v for k, v in state.items()}
  params, codebooks = {'encoder': {}, 'decoder': {}}, {}
  for name, value in state.items():
    side, *rest = name.split('.')
    if side in params and rest[0] == 'mlp_layers' and rest[2] in ('weight', 'bias'):
      layer = params[side].setdefault(int(rest[1]), {})
      layer['w' if rest[2] == 'weight' else 'b'] = jnp.asarray(
          value.T if rest[2] == 'weight' else value, jnp.float32)
    elif side == 'rq' and rest[0] == 'vq_layers':
      codebooks[int(rest[1])] = jnp.asarray(value, jnp.float32)
  if not codebooks or not all(params.values()):
    raise DataError(f'{path} holds no RQ-VAE: of {len(state)} tensors none is named '
                    'encoder.mlp_layers.*, decoder.mlp_layers.* or rq.vq_layers.*')
  nets = {side: {str(i): net[layer] for i, layer in enumerate(sorted(net))}
          for side, net in params.items()}
  table = jnp.stack([codebooks[level] for level in sorted(codebooks)])
  widths = [net['w'].shape[1] for net in nets['encoder'].values()]
  levels, size, _ = table.shape
  dim = nets['encoder']['0']['w'].shape[0]
  return Config(dim, tuple(widths[:-1]), widths[-1], levels, size), {**nets, 'codebooks': table}
