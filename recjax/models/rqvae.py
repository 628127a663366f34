"""RQ-VAE: item vectors to residual codes by an encoder, codebooks and a decoder.

Lee et al., CVPR 2022; Rajput et al., NeurIPS 2023 (TIGER); Liu et al., SIGIR 2025 (ETEGRec). Plain
functions over {'encoder', 'decoder': {'0': {'w', 'b'}, ...}, 'codebooks': (L, C, E)}. B vectors, L
levels, C codes, E their width. Distances are float32 at the highest precision.
(specification: semantic_ids.md 2)
"""
import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from recjax.errors import ConfigError, DataError
from recjax.retrieval import kmeans
from recjax.retrieval.top_k import argmin

CHUNK = 2048  # items that are given codes together

CHOICES = {'residual': ('ste', 'sg'), 'distance': ('l2', 'dot', 'cos'),
           'recon': ('mse', 'l1', 'infonce'), 'reduction': ('mean', 'sum'),
           'estimator': ('ste', 'rotation', 'gumbel'), 'encoder': ('mlp', 'residual', 'none')}
sg = lax.stop_gradient


@dataclasses.dataclass(frozen=True)
class Config:
  """Shape and losses; hashable. Raises ConfigError.

  residual: what is taken off before the next level, the straight-through value ('ste', as released)
  or the code ('sg'). estimator: how gradients pass a code. encoder: 'mlp'; 'residual' adds the
  input (RQ-KMeans+), 'none' has no networks (R-VQ). sinkhorn: (L,) eps of balanced assignment in
  training, 0 for none, or (). tau: of 'cos' and 'infonce'.
  """
  dim: int
  hidden: tuple = (512, 256)
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
  sinkhorn: tuple = ()
  tau: float = 0.1

  def __post_init__(self):
    for name, known in CHOICES.items():
      if getattr(self, name) not in known:
        raise ConfigError(f'tokenizer.{name}={getattr(self, name)!r}; choose one of '
                          f'{", ".join(known)}')
    if min(self.dim, self.width, self.levels, self.size, *self.hidden, 9) < 1:
      raise ConfigError(f'the tokenizer has an empty part: {self}')
    if self.encoder != 'mlp' and self.width != self.dim:
      raise ConfigError(f'a tokenizer with encoder={self.encoder!r} needs codes as wide as the '
                        f'item vectors, {self.dim}, not {self.width}')
    if self.sinkhorn and len(self.sinkhorn) != self.levels:
      raise ConfigError(f'semantic_ids.sinkhorn={self.sinkhorn} must have {self.levels} numbers')


def init(cfg, key):
  """Xavier-normal weights, zero biases, uniform codebooks (start from k-means by `seed_codes`)."""
  sizes = (cfg.dim, *cfg.hidden, cfg.width)
  keys = jax.random.split(key, 3)
  books = jax.random.uniform(keys[2], (cfg.levels, cfg.size, cfg.width), minval=-1 / cfg.size,
                             maxval=1 / cfg.size)
  if cfg.encoder == 'none':
    return {'codebooks': books}
  params = {'encoder': _layers(keys[0], sizes), 'decoder': _layers(keys[1], sizes[::-1])}
  if cfg.encoder == 'residual':  # the network begins as nothing
    for net in params.values():
      net[str(len(sizes) - 2)]['w'] *= 0
  return {**params, 'codebooks': books}


def _layers(key, sizes):
  weights = [jax.random.normal(jax.random.fold_in(key, i), (a, b)) * (2 / (a + b)) ** 0.5
             for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:]))]
  return {str(i): {'w': w, 'b': jnp.zeros(w.shape[1])} for i, w in enumerate(weights)}


def _mlp(net, x):
  for i in range(len(net)):
    x = jnp.dot(x, net[str(i)]['w'], precision=lax.Precision.HIGHEST) + net[str(i)]['b']
    x = jax.nn.relu(x) if i + 1 < len(net) else x
  return x


def encode(cfg, params, x):
  """x: (B, d) -> (B, E)"""
  if cfg.encoder == 'none':
    return x
  y = _mlp(params['encoder'], x)
  return x + y if cfg.encoder == 'residual' else y


def decode(cfg, params, q):
  """q: (B, E) -> (B, d)"""
  if cfg.encoder == 'none':
    return q
  y = _mlp(params['decoder'], q)
  return q + y if cfg.encoder == 'residual' else y


def distances(cfg, v, book):
  """What the argmin is taken of. v: (B, E), book: (C, E) -> (B, C)"""
  if cfg.distance == 'l2':  # no floor at 0 here: it would stop gradients of near codes
    cross = jnp.dot(v, book.T, precision=lax.Precision.HIGHEST)
    return (v * v).sum(-1, keepdims=True) + (book * book).sum(-1) - 2 * cross
  if cfg.distance == 'cos':
    v, book = (y / jnp.maximum(jnp.linalg.norm(y, axis=-1, keepdims=True), 1e-12)
               for y in (v, book))
    return -jnp.dot(v, book.T, precision=lax.Precision.HIGHEST) / cfg.tau
  return -jnp.dot(v, book.T, precision=lax.Precision.HIGHEST)


def rotate(v, e):
  """The rotation trick: e as a turned and stretched v, with turn and stretch held constant."""
  size = lambda y: jnp.maximum(jnp.linalg.norm(y, axis=-1, keepdims=True), 1e-12)  # noqa: E731
  vh, eh, scale = sg(v / size(v)), sg(e / size(e)), sg(size(e) / size(v))
  w = sg((vh + eh) / size(vh + eh))
  dot = lambda a, b: (a * b).sum(-1, keepdims=True)  # noqa: E731
  return scale * (v - 2 * w * dot(w, v) + 2 * eh * dot(vh, v))


def quantize(cfg, books, v, key=None, weight=None):
  """All levels. v: (B, E). key: of training's Gumbel noise and Sinkhorn; None is plain argmin.
  weight: (B,), how much a row counts in the loss.

  -> {'codes': (B, L), 'dist': (B, L, C), 'out': (B, E) what the decoder gets, 'parts': [(B, E)],
  'loss': ()}
  """
  first, codes, dist, parts, losses, outs = v, [], [], [], [], []
  for level in range(cfg.levels):
    book = books[level]
    d = distances(cfg, v, book)
    eps = cfg.sinkhorn[level] if cfg.sinkhorn and key is not None else 0
    code = kmeans.sinkhorn(sg(d), eps).argmax(-1) if eps else argmin(d)
    e = book[code]
    if cfg.estimator == 'gumbel' and key is not None:
      noise = jax.random.gumbel(jax.random.fold_in(key, level), d.shape)
      e = jax.nn.softmax((noise - d) / 0.2, -1) @ book
    losses.append(_level_loss(cfg, v, e, d, code, weight))
    s = rotate(v, e) if cfg.estimator == 'rotation' else v + sg(e - v)
    codes.append(code)
    dist.append(d)
    parts.append(e)
    outs.append(s)
    v = v - (s if cfg.residual == 'ste' else sg(e))
  total = sum(parts)
  if cfg.estimator == 'gumbel' and key is not None:
    out = total
  elif cfg.residual == 'ste':
    out = sum(outs)
  else:  # once for the sum: per level it would count the gradient L times
    out = rotate(first, total) if cfg.estimator == 'rotation' else first + sg(total - first)
  return {'codes': jnp.stack(codes, 1).astype(jnp.int32), 'dist': jnp.stack(dist, 1), 'out': out,
          'parts': parts, 'loss': sum(losses) / (cfg.levels if cfg.reduction == 'mean' else 1)}


def _mean(each, weight):
  """The mean of one number a row. each, weight: (B,), or None for equal ones"""
  if weight is None:
    return each.mean()
  return (each * weight).sum() / jnp.maximum(weight.sum(), 1)


def _level_loss(cfg, v, e, d, code, weight):
  if cfg.distance != 'l2':
    each = -jnp.take_along_axis(jax.nn.log_softmax(-d), code[:, None], 1)[:, 0]
    return cfg.beta * _mean(each, weight)
  over = jnp.mean if cfg.reduction == 'mean' else jnp.sum
  far = lambda y: _mean(over(y ** 2, -1), weight)  # noqa: E731
  return far(e - sg(v)) + cfg.beta * far(sg(e) - v)


def forward(cfg, params, x, key=None, weight=None):
  """-> `quantize`'s dict, with 'recon': (B, d)"""
  found = quantize(cfg, params['codebooks'], encode(cfg, params, x), key, weight)
  return {**found, 'recon': decode(cfg, params, found['out'])}


def recon_loss(cfg, recon, x, weight=None):
  """How far the decoder's vectors are from the items'. -> ()"""
  if cfg.recon == 'infonce':
    a, b = (y / jnp.maximum(jnp.linalg.norm(y, axis=-1, keepdims=True), 1e-12) for y in (recon, x))
    logits = a @ b.T / cfg.tau
    if weight is not None:
      logits = jnp.where(weight > 0, logits, -1e30)
    return _mean(jax.nn.logsumexp(logits, 1) - (a * b).sum(-1) / cfg.tau, weight)
  gap = jnp.abs(recon - x) if cfg.recon == 'l1' else (recon - x) ** 2
  return _mean(gap.mean(-1) if cfg.reduction == 'mean' else gap.sum(-1), weight)


def loss(cfg, params, x, key=None, weight=None):
  """Reconstruction and alpha times quantisation. -> (), `forward`'s dict"""
  found = forward(cfg, params, x, key, weight)
  return recon_loss(cfg, found['recon'], x, weight) + cfg.alpha * found['loss'], found


def codes_of(cfg, params, x):
  """x: (N, d) -> codes (N, L) int32, by plain argmin, CHUNK items at a time (what they need stays
  in a CPU's cache: 1.5x faster)"""
  def some(rows):
    return quantize(cfg, params['codebooks'], encode(cfg, params, rows))['codes']
  if len(x) <= CHUNK:
    return some(x)
  parts = jnp.pad(x, [(0, -len(x) % CHUNK), (0, 0)]).reshape(-1, CHUNK, x.shape[1])
  return lax.map(some, parts).reshape(-1, cfg.levels)[:len(x)]


def seed_codes(cfg, params, x, key, steps=25):
  """The parameters with codebooks from k-means++ on the encoder's outputs, level by level."""
  v, books = encode(cfg, params, x), []
  for level in range(cfg.levels):
    centres, assigned, _ = kmeans.fit(jax.random.fold_in(key, level), v, min(cfg.size, len(x)),
                                      steps)
    spare = params['codebooks'][level][len(centres):]  # fewer items than codes: the rest is dead
    books.append(jnp.concatenate([centres, spare + 1e3]) if len(spare) else centres)
    v = v - centres[assigned]
  return {**params, 'codebooks': jnp.stack(books)}


# LETTER's regularisers.


def collaborative(q, cf):
  """Quantised vectors must pick out their item's collaborative one in the batch. (B, E) each"""
  return -jnp.diagonal(jax.nn.log_softmax(q @ cf.T)).mean()


def diversity(books, parts, codes, group, key):
  """Codes are drawn to others of their group. books: (L, C, E), group: (L, C) int -> ()

  parts: [(B, E)]. The positive is a random other code of the chosen one's group; a code that is
  alone in its group counts for nothing.
  """
  total = 0.0
  for level, q in enumerate(parts):
    code = codes[:, level]
    same = group[level][code][:, None] == group[level][None]
    own = jnp.arange(len(group[level])) == code[:, None]
    noise = jax.random.uniform(jax.random.fold_in(key, level), same.shape)
    other = jnp.where(same & ~own, noise, -1).argmax(-1)
    logits = jnp.where(own, -1e12, q @ books[level].T)
    each = -jnp.take_along_axis(jax.nn.log_softmax(logits), other[:, None], 1)[:, 0]
    total += jnp.where((same & ~own).any(-1), each, 0).mean()
  return total / len(parts)


# Published weights.


def from_state(state, path='the state dict'):
  """Config and parameters of ETEGRec's tensors, {name: array}. -> Config, params

  Raises DataError where no tensor, or not all, of an RQ-VAE are there.
  """
  state = {k.removeprefix('module.'): v for k, v in state.items()}
  params, books = {'encoder': {}, 'decoder': {}}, []
  for name, value in state.items():
    side, *rest = name.split('.')
    if side in params and rest[0] == 'mlp_layers' and rest[2] in ('weight', 'bias'):
      layer = params[side].setdefault(int(rest[1]), {})
      layer['w' if rest[2] == 'weight' else 'b'] = jnp.asarray(
          value.T if rest[2] == 'weight' else value, jnp.float32)
    elif side == 'rq' and rest[0] == 'vq_layers':
      books.append((int(rest[1]), jnp.asarray(value, jnp.float32)))
  if not books or not all(params.values()):
    raise DataError(f'{path} holds no RQ-VAE: of {len(state)} tensors none is named '
                    'encoder.mlp_layers.*, decoder.mlp_layers.* or rq.vq_layers.*')
  nets = {side: {str(i): net[at] for i, at in enumerate(sorted(net))}
          for side, net in params.items()}
  table = jnp.stack([b for _, b in sorted(books, key=lambda pair: pair[0])])
  widths = [net['w'].shape[1] for net in nets['encoder'].values()]
  cfg = Config(nets['encoder']['0']['w'].shape[0], tuple(widths[:-1]), widths[-1], *table.shape[:2])
  return cfg, {**nets, 'codebooks': table}
