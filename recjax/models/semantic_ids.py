"""Tables of semantic IDs: health, what is done about equal ones, and tokenizers without networks.

A table holds the codes of items 1..N in order, int32, counted from 0; see docs/etegrec.md. Shape
letters: N items, Q levels, C codes a level, d the width of item vectors.
"""
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Num

from recjax.errors import ConfigError, DataError
from recjax.protocols import AnyArray
from recjax.retrieval import kmeans

POLICIES = ('suffix', 'random', 'nearest', 'sinkhorn', 'balance', 'none')
Codes = Int[np.ndarray, 'N Q']
State = dict[str, Any]  # arrays: what a tokenizer has learned


def check_vectors(x: Num[AnyArray, '...']) -> Float[np.ndarray, 'N d']:
  """Item vectors as float32. x: the vectors, of any type of number. Raises DataError naming the
  first row that is not finite."""
  x = np.asarray(x, np.float32)
  if x.ndim != 2 or not len(x):
    raise DataError(f'item vectors have shape {x.shape}; they must be (items, numbers)')
  bad = np.flatnonzero(~np.isfinite(x).all(1))
  if len(bad):
    raise DataError(f'the vector of item {bad[0] + 1} is not finite ({len(bad)} such items: '
                    f'{", ".join(str(b + 1) for b in bad[:5])})')
  return x


def codebook_stats(codes: Int[AnyArray, 'N Q'], size: int) -> dict[str, int | float | list[float]]:
  """How good a table is, before equal rows are told apart. -> {name: number or list by level}

  codes: the table. size: C. usage: share of codes that occur. perplexity: exp of their entropy.
  balance: 1 where all occur equally often.
  """
  codes = np.asarray(codes)
  n, levels = codes.shape
  _, counts = np.unique(codes, axis=0, return_counts=True)
  by_level = [np.bincount(codes[:, level], minlength=size) for level in range(levels)]
  shares = [c[c > 0] / n for c in by_level]
  return {
      'items': n, 'collision_rate': round(1 - len(counts) / n, 6), 'max_group': int(counts.max()),
      'colliding_items': int(counts[counts > 1].sum()),
      'usage': [round(float((c > 0).mean()), 4) for c in by_level],
      'perplexity': [round(float(np.exp(-(p * np.log(p)).sum())), 2) for p in shares],
      'balance': [round(float(1 - np.abs(c - n // size).sum() / (2 * n)), 4) for c in by_level]}


def colliding_groups(codes: Codes) -> list[Int[np.ndarray, ' _']]:
  """Equal rows, as lists of two items or more: row numbers, ascending. codes: of all items."""
  _, group, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
  order = np.argsort(group.reshape(-1), kind='stable')
  parts = np.split(order, np.cumsum(counts)[:-1])
  return [part for part in parts if len(part) > 1]


@jax.jit
def collision_suffix(codes: Int[Array, 'N Q']) -> Int[Array, ' N']:
  """How many rows before are equal, in the order of items, on the device. codes: of all items."""
  n, levels = codes.shape
  index = jnp.arange(n, dtype=jnp.int32)
  *columns, order = lax.sort([*codes.T, index], num_keys=levels + 1)
  new = jnp.zeros(n, bool).at[0].set(True)
  for column in columns:
    new |= column != jnp.roll(column, 1)
  first = lax.cummax(jnp.where(new, index, 0))
  return jnp.zeros(n, jnp.int32).at[order].set(index - first)


@jax.jit
def padded_table(codes: Int[Array, 'N Q']) -> tuple[Int[Array, 'N+1 Q+1'], Int[Array, '']]:
  """What a recommender reads, on the device: with the suffix, and a row 0 of -1 for padding.

  codes: of all items. -> the table, the size of the largest group, to be checked on the host
  """
  suffix = collision_suffix(codes)
  table = jnp.concatenate([codes, suffix[:, None]], 1).astype(jnp.int32)
  return jnp.pad(table, [(1, 0), (0, 0)], constant_values=-1), suffix.max() + 1


def with_suffix(codes: Codes, size: int) -> Int[np.ndarray, 'N Q+1']:
  """The table with one level more that tells equal rows apart.

  size: C. Raises DataError naming the group that has more items than a level has codes.
  """
  suffix = np.asarray(collision_suffix(jnp.asarray(codes)))
  if suffix.max() >= size:
    worst = codes[int(suffix.argmax())]
    raise DataError(f'{int((codes == worst).all(1).sum())} items share the codes '
                    f'{tuple(map(int, worst))}, more than the {size} of a level; their vectors are '
                    'all but equal: use better ones, or more codes')
  return np.concatenate([codes, suffix[:, None]], 1).astype(np.int32)


def resolve_collisions(
    codes: Int[AnyArray, 'N Q'], size: int, policy: str = 'suffix',
    dist: Float[AnyArray, 'N C'] | None = None, seed: int = 0) -> Int[np.ndarray, 'N _']:
  """Makes rows unique, or nearly, by one of POLICIES. -> a table of Q or Q + 1 levels

  codes: the table. size: C. policy: 'suffix', a level more that counts (TIGER). 'random', the same
  with drawn codes. 'nearest', 'sinkhorn', members of a group move to other codes of the last level
  by `dist`, as near as can be, or spread by Sinkhorn with what still collides left (LC-Rec).
  'balance', the last level dealt out in turn below each prefix, an ablation. 'none', left as they
  are. dist: of items to the codes of the last level. seed: of 'random'. Raises ConfigError for
  another policy or one that lacks `dist`, DataError for a group above `size`.
  """
  codes = np.asarray(codes, np.int32)
  if policy == 'suffix':
    return with_suffix(codes, size)
  if policy == 'none':
    return codes
  rng = np.random.default_rng(seed)
  if policy == 'random':
    suffix = np.zeros(len(codes), np.int32)
    for group in colliding_groups(codes):
      if len(group) > size:
        return with_suffix(codes, size)  # raises, with the group's name
      suffix[group] = rng.permutation(size)[:len(group)]
    return np.concatenate([codes, suffix[:, None]], 1)
  if policy == 'balance':
    return _deal_out(codes, size)
  if policy not in ('nearest', 'sinkhorn'):
    raise ConfigError(f'semantic_ids.dedupe={policy!r}; choose one of {", ".join(POLICIES)}')
  if dist is None:
    raise ConfigError(
      f'semantic_ids.dedupe={policy} moves codes of the last level by distance, which '
      'this tokenizer has none of; choose suffix'
    )
  return (
    _move_to_nearest(codes, np.asarray(dist))
    if policy == 'nearest'
    else _spread_by_sinkhorn(codes, dist)
  )


def _deal_out(codes: Codes, size: int) -> Codes:
  """The last level dealt out in turn below each prefix."""
  dealt = codes.copy()
  _, prefixes = np.unique(codes[:, :-1], axis=0, return_inverse=True)
  count, start = {}, {}
  for i, prefix in enumerate(prefixes.reshape(-1)):
    start.setdefault(prefix, int(prefix) * 2654435761 % size)
    dealt[i, -1] = (start[prefix] + count.get(prefix, 0)) % size
    count[prefix] = count.get(prefix, 0) + 1
  return dealt


def _move_to_nearest(codes: Codes, dist: np.ndarray) -> Codes:
  """Later members of a group take the nearest free last code. Left where none is free."""
  moved, taken = codes.copy(), {tuple(c) for c in codes.tolist()}
  for group in colliding_groups(codes):
    for i in group[1:]:
      prefix = tuple(moved[i, :-1].tolist())
      for code in np.argsort(dist[i], kind='stable').tolist():
        if (*prefix, code) not in taken:
          taken.add((*prefix, code))
          moved[i, -1] = code
          break
  return moved


def _spread_by_sinkhorn(
    codes: Codes, dist: Float[AnyArray, 'N C'], rounds: int = 20, eps: float = 0.003) -> Codes:
  """Groups are encoded again by Sinkhorn among themselves, as LETTER and LC-Rec do."""
  spread = codes.copy()
  for _ in range(rounds):
    groups = colliding_groups(spread)
    if not groups:
      break
    for group in groups:
      plan = kmeans.sinkhorn(jnp.asarray(dist[group]), eps)
      spread[group, -1] = np.asarray(plan.argmax(-1))
  return spread


# Tokenizers without networks. Each: (vectors (N, d), levels, size, seed) -> codes, what it learned.


def _level_centers(x, size, seed, run):
  """Clusters of one level; with fewer items than codes the rest stays dead."""
  centers, assigned = run(jax.random.key(seed), x, min(size, len(x)))[:2]
  dead = [(0, size - len(centers)), (0, 0)]
  return jnp.pad(centers, dead, constant_values=1e6), assigned


def residual_kmeans(
    x: Float[AnyArray, 'N d'], levels: int, size: int, seed: int, run: Callable = kmeans.fit,
    unit: bool = False) -> tuple[Codes, State]:
  """k-means on what the levels before leave over. -> codes, {'codebooks'}

  x: item vectors. levels, size: Q and C. run: a `fit` of `kmeans`. unit: residuals get length one
  before every level (RK-Means of github.com/snap-research/GRID). seed: of the draws.
  """
  residuals, codes, codebooks = jnp.asarray(x), [], []
  for level in range(levels):
    residuals = _unit_rows(residuals) if unit else residuals
    centers, assigned = _level_centers(residuals, size, seed + level, run)
    residuals = residuals - centers[assigned]
    codes.append(np.asarray(assigned))
    codebooks.append(np.asarray(centers))
  return np.stack(codes, 1).astype(np.int32), {'codebooks': np.stack(codebooks)}


def _unit_rows(x):
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def encode_residual(
    x: Float[AnyArray, 'N d'], codebooks: Float[AnyArray, 'Q C d'], unit: bool = False,
) -> tuple[Codes, Float[np.ndarray, 'N C']]:
  """Nearest-center codes of residuals, level by level. -> codes, distances of the last level

  x: item vectors. codebooks, unit: of `residual_kmeans`.
  """
  residuals, codes, dist = jnp.asarray(x), [], None
  for centers in codebooks:
    residuals = _unit_rows(residuals) if unit else residuals
    dist = kmeans.distances(residuals, centers)
    codes.append(dist.argmin(-1))
    residuals = residuals - centers[codes[-1]]
  return np.asarray(jnp.stack(codes, 1), np.int32), np.asarray(dist)


def mapped_kmeans(
    x: Float[AnyArray, 'N d'], levels: int, size: int, seed: int, tau: float = 0.1,
) -> tuple[Codes, State]:
  """Residual k-means, then every level dealt out evenly by transport (MiniOneRec).

  github.com/AkaliKong/MiniOneRec. x, levels, size, seed: as in `residual_kmeans`. tau: of the
  transport's entropy. -> codes, {'codebooks'}
  """
  residuals = jnp.asarray(x)
  codebooks = residual_kmeans(x, levels, size, seed)[1]['codebooks']
  codes, rng = [], np.random.default_rng(seed)
  for centers in codebooks:
    dist = np.asarray(kmeans.distances(residuals, centers))
    capacity = kmeans.capacities(len(dist), size)
    sample = dist[rng.permutation(len(dist))[:4000]]
    scale = max(1e-6, tau * float(np.median(
        np.quantile(sample - sample.min(1, keepdims=True), 0.9, axis=1))))
    shares = jnp.maximum(jnp.asarray(capacity) / len(dist), 1e-30)
    plan = _transport(jnp.asarray(dist), scale, shares)
    codes.append(kmeans.assign_to_capacity(plan, capacity, rng.permutation(len(dist))))
    residuals = residuals - centers[codes[-1]]
  return np.stack(codes, 1).astype(np.int32), {'codebooks': codebooks}


@jax.jit
def _transport(dist, scale, shares):
  """The logarithm of a transport plan whose columns have the shares given."""
  def step(_: Array | int, log: Array) -> Array:
    log = log - jax.nn.logsumexp(log, 1, keepdims=True)
    return log - jax.nn.logsumexp(log, 0) + jnp.log(shares * len(dist))
  return lax.fori_loop(0, 50, step, -dist / scale)


def product_quantize(
    x: Float[AnyArray, 'N d'], levels: int, size: int, seed: int) -> tuple[Codes, State]:
  """PQ (Jegou et al., TPAMI 2011): k-means on each piece of a vector; codes have no order.

  x, size, seed: as in `residual_kmeans`. levels: how many pieces. -> codes, {'codebooks'}. Raises
  ConfigError where the vectors do not divide.
  """
  x = jnp.asarray(x)
  if x.shape[1] % levels:
    raise ConfigError(f'{x.shape[1]} numbers do not divide into {levels} pieces; change '
                      'semantic_ids.levels or the width of the item vectors')
  clusters = [_level_centers(piece, size, seed + level, kmeans.fit)
              for level, piece in enumerate(jnp.split(x, levels, 1))]
  return (np.stack([np.asarray(assigned) for _, assigned in clusters], 1).astype(np.int32),
          {'codebooks': np.stack([np.asarray(centers) for centers, _ in clusters])})


def decode_product(
    codes: Codes, codebooks: Float[np.ndarray, 'Q C piece']) -> Float[np.ndarray, 'N d']:
  """The vectors that PQ's codes stand for. codes: of N items. codebooks: of Q parts of the vectors.
  """
  pieces = [centers[codes[:, level]] for level, centers in enumerate(codebooks)]
  return np.concatenate(pieces, 1)


def rotated_product_quantize(
    x: Float[AnyArray, 'N d'], levels: int, size: int, seed: int, rounds: int = 8,
) -> tuple[Codes, State]:
  """OPQ (Ge et al., CVPR 2013): a rotation learned with the pieces, each in turn.

  x, levels, size, seed: as in `product_quantize`. rounds: of both. -> codes, {'rotation',
  'codebooks', 'errors': after each round}
  """
  x = np.asarray(x, np.float32)
  rotation, errors = np.eye(x.shape[1], dtype=np.float32), []
  codes, state = product_quantize(x, levels, size, seed)
  codebooks = state['codebooks']
  for _ in range(rounds):
    decoded = decode_product(codes, codebooks)
    errors.append(float(((x @ rotation - decoded) ** 2).sum()))
    u, _, v = np.linalg.svd(x.T @ decoded)
    rotation = u @ v
    pieces = np.split(x @ rotation, levels, 1)
    codebooks = np.stack([_moved_centers(piece, codes[:, level], codebooks[level])
                          for level, piece in enumerate(pieces)])
    codes = np.stack([np.asarray(kmeans.nearest(jnp.asarray(piece), jnp.asarray(centers))[0])
                      for piece, centers in zip(pieces, codebooks)], 1)
  return codes.astype(np.int32), {'rotation': rotation, 'codebooks': codebooks, 'errors': errors}


def _moved_centers(x, assigned, centers):
  """Means of the clusters; empty ones stay."""
  count = np.bincount(assigned, minlength=len(centers))
  total = np.zeros_like(centers)
  np.add.at(total, assigned, x)
  return np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], centers)


def random_codes(
    x: Float[AnyArray, 'N d'], levels: int, size: int, seed: int) -> tuple[Codes, State]:
  """Random codes: what an ID without meaning is worth. x, levels, size, seed: as in
  `residual_kmeans`."""
  return np.random.default_rng(seed).integers(0, size, (len(x), levels), np.int32), {}


def hashed_codes(
    x: Float[AnyArray, 'N d'], levels: int, size: int, seed: int) -> tuple[Codes, State]:
  """Signs of random projections, log2(C) of them a level (LSH; Charikar, STOC 2002).

  x, levels, size, seed: as in `residual_kmeans`. -> codes, {'planes'}. Raises ConfigError where
  size is no power of two.
  """
  bits = int(size).bit_length() - 1
  if size != 1 << bits:
    raise ConfigError(f'lsh needs a power of two for semantic_ids.size, not {size}')
  planes = np.random.default_rng(seed).normal(size=(x.shape[1], levels * bits)).astype(np.float32)
  signs = (np.asarray(x) @ planes > 0).reshape(len(x), levels, bits)
  return (signs << np.arange(bits)).sum(-1).astype(np.int32), {'planes': planes}


TOKENIZERS = {
    'rqkmeans': residual_kmeans,
    'rkmeans': functools.partial(residual_kmeans, run=kmeans.fit_minibatch, unit=True),
    'rkmeans_balanced': functools.partial(residual_kmeans, run=kmeans.fit_balanced),
    'rkmeans_mapped': mapped_kmeans, 'pq': product_quantize, 'opq': rotated_product_quantize,
    'random': random_codes, 'lsh': hashed_codes}
