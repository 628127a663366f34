"""Tables of semantic IDs: health, what is done about equal ones, and tokenizers without networks.

A table is (N, L) int32, row i - 1 for item i, codes from 0. C codes a level.
(specification: semantic_ids.md 2.9, 3, 4)
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from recjax.errors import ConfigError, DataError
from recjax.retrieval import kmeans

POLICIES = ('suffix', 'random', 'nearest', 'sinkhorn', 'balance', 'none')


def check_vectors(x):
  """Item vectors as float32. Raises DataError naming the first row that is not finite."""
  x = np.asarray(x, np.float32)
  if x.ndim != 2 or not len(x):
    raise DataError(f'item vectors have shape {x.shape}; they must be (items, numbers)')
  bad = np.flatnonzero(~np.isfinite(x).all(1))
  if len(bad):
    raise DataError(f'the vector of item {bad[0] + 1} is not finite ({len(bad)} such items: '
                    f'{", ".join(str(b + 1) for b in bad[:5])})')
  return x


def codebook_stats(codes, size):
  """How good a table is, before equal rows are told apart. -> {name: number or list by level}"""
  codes = np.asarray(codes)
  n, levels = codes.shape
  _, counts = np.unique(codes, axis=0, return_counts=True)
  each = [np.bincount(codes[:, at], minlength=size) for at in range(levels)]
  share = [c[c > 0] / n for c in each]
  return {
      'items': n, 'collision_rate': round(1 - len(counts) / n, 6), 'max_group': int(counts.max()),
      'colliding_items': int(counts[counts > 1].sum()),
      'usage': [round(float((c > 0).mean()), 4) for c in each],
      'perplexity': [round(float(np.exp(-(p * np.log(p)).sum())), 2) for p in share],
      'balance': [round(float(1 - np.abs(c - n // size).sum() / (2 * n)), 4) for c in each]}


def groups(codes):
  """Equal rows, as lists of two items or more. -> [array of row numbers, ascending]"""
  _, name, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
  order = np.argsort(name.reshape(-1), kind='stable')
  parts = np.split(order, np.cumsum(counts)[:-1])
  return [p for p in parts if len(p) > 1]


@jax.jit
def suffix(codes):
  """How many rows before are equal, in the order of items, on the device. codes: (N, L) -> (N,)"""
  n, levels = codes.shape
  at = jnp.arange(n, dtype=jnp.int32)
  *columns, order = lax.sort([*codes.T, at], num_keys=levels + 1)
  new = jnp.zeros(n, bool).at[0].set(True)
  for column in columns:
    new |= column != jnp.roll(column, 1)
  begin = lax.cummax(jnp.where(new, at, 0))
  return jnp.zeros(n, jnp.int32).at[order].set(at - begin)


@jax.jit
def table(codes):
  """What a recommender reads, on the device: with the suffix, and a row 0 of -1 for padding.

  codes: (N, L) int32 -> (N + 1, L + 1) int32, the largest group (), to be checked on the host
  """
  extra = suffix(codes)
  whole = jnp.concatenate([codes, extra[:, None]], 1).astype(jnp.int32)
  return jnp.pad(whole, [(1, 0), (0, 0)], constant_values=-1), extra.max() + 1


def with_suffix(codes, size):
  """The table with one level more that tells equal rows apart. -> (N, L + 1)

  Raises DataError naming the group that has more items than a level has codes.
  """
  extra = np.asarray(suffix(jnp.asarray(codes)))
  if extra.max() >= size:
    bad = codes[int(extra.argmax())]
    raise DataError(f'{int((codes == bad).all(1).sum())} items share the codes '
                    f'{tuple(map(int, bad))}, more than the {size} of a level; their vectors are '
                    'all but equal: use better ones, or more codes')
  return np.concatenate([codes, extra[:, None]], 1).astype(np.int32)


def resolve_collisions(codes, size, policy='suffix', dist=None, seed=0):
  """Makes rows unique, or nearly, by one of POLICIES.

  suffix: a level more that counts. random: the same with drawn codes. nearest, sinkhorn: members of
  a group move to other codes of the last level by dist (N, C), as near as can be, or spread by
  Sinkhorn with what still collides left. balance: the last level dealt out in turn below each
  prefix, an ablation. none: left as they are. -> (N, L) or (N, L + 1)
  """
  codes = np.asarray(codes, np.int32)
  if policy == 'suffix':
    return with_suffix(codes, size)
  if policy == 'none':
    return codes
  rng = np.random.default_rng(seed)
  if policy == 'random':
    extra = np.zeros(len(codes), np.int32)
    for group in groups(codes):
      if len(group) > size:
        return with_suffix(codes, size)  # raises, with the group's name
      extra[group] = rng.permutation(size)[:len(group)]
    return np.concatenate([codes, extra[:, None]], 1)
  if policy == 'balance':
    return _dealt(codes, size)
  if policy not in ('nearest', 'sinkhorn'):
    raise ConfigError(f'semantic_ids.dedupe={policy!r}; choose one of {", ".join(POLICIES)}')
  if dist is None:
    raise ConfigError(
      f'semantic_ids.dedupe={policy} moves codes of the last level by distance, which '
      'this tokenizer has none of; choose suffix'
    )
  return _moved(codes, np.asarray(dist)) if policy == 'nearest' else _spread(codes, dist)


def _dealt(codes, size):
  out = codes.copy()
  _, name = np.unique(codes[:, :-1], axis=0, return_inverse=True)
  count, start = {}, {}
  for i, prefix in enumerate(name.reshape(-1)):
    start.setdefault(prefix, int(prefix) * 2654435761 % size)
    out[i, -1] = (start[prefix] + count.get(prefix, 0)) % size
    count[prefix] = count.get(prefix, 0) + 1
  return out


def _moved(codes, dist):
  """Later members of a group take the nearest free last code. Left where none is free."""
  out, taken = codes.copy(), {tuple(c) for c in codes.tolist()}
  for group in groups(codes):
    for i in group[1:]:
      prefix = tuple(out[i, :-1].tolist())
      for code in np.argsort(dist[i], kind='stable').tolist():
        if (*prefix, code) not in taken:
          taken.add((*prefix, code))
          out[i, -1] = code
          break
  return out


def _spread(codes, dist, rounds=20, eps=0.003):
  """Groups are encoded again by Sinkhorn among themselves, as LETTER and LC-Rec do."""
  out = codes.copy()
  for _ in range(rounds):
    again = groups(out)
    if not again:
      break
    for group in again:
      plan = kmeans.sinkhorn(jnp.asarray(dist[group]), eps)
      out[group, -1] = np.asarray(plan.argmax(-1))
  return out


# Tokenizers without networks. Each: (x (N, d), levels, size, seed) -> codes, state of arrays.


def centres_of(x, size, seed, run):
  """Clusters of one level; with fewer items than codes the rest stays dead."""
  found = run(jax.random.key(seed), x, min(size, len(x)))
  return jnp.pad(found[0], [(0, size - len(found[0])), (0, 0)], constant_values=1e6), found[1]


def residual(x, levels, size, seed, run=kmeans.fit, unit=False):
  """Residual k-means; unit: residuals get length one before every level (RK-Means of GRID)."""
  x, codes, books = jnp.asarray(x), [], []
  for level in range(levels):
    x = normed(x) if unit else x
    centres, assigned = centres_of(x, size, seed + level, run)
    x = x - centres[assigned]
    codes.append(np.asarray(assigned))
    books.append(np.asarray(centres))
  return np.stack(codes, 1).astype(np.int32), {'codebooks': np.stack(books)}


def normed(x):
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def encode_residual(x, codebooks, unit=False):
  """Nearest-centre codes of residuals, level by level. -> codes (N, L), distances of the last"""
  x, codes = jnp.asarray(x), []
  for book in codebooks:
    x = normed(x) if unit else x
    d = kmeans.distances(x, book)
    codes.append(d.argmin(-1))
    x = x - book[codes[-1]]
  return np.asarray(jnp.stack(codes, 1), np.int32), np.asarray(d)


def mapped(x, levels, size, seed, tau=0.1):
  """Plain residual k-means, then every level dealt out evenly by transport (MiniOneRec)."""
  x = jnp.asarray(x)
  books = residual(x, levels, size, seed)[1]['codebooks']
  codes, rng = [], np.random.default_rng(seed)
  for book in books:
    d = np.asarray(kmeans.distances(x, book))
    room = kmeans.capacities(len(d), size)
    some = d[rng.permutation(len(d))[:4000]]
    scale = max(1e-6, tau * float(np.median(
        np.quantile(some - some.min(1, keepdims=True), 0.9, axis=1))))
    shares = jnp.maximum(jnp.asarray(room) / len(d), 1e-30)
    plan = _transport(jnp.asarray(d), scale, shares)
    codes.append(kmeans.place(plan, room, rng.permutation(len(d))))
    x = x - book[codes[-1]]
  return np.stack(codes, 1).astype(np.int32), {'codebooks': books}


@jax.jit
def _transport(d, scale, shares):
  log = -d / scale
  def turn(_, log):
    log = log - jax.nn.logsumexp(log, 1, keepdims=True)
    return log - jax.nn.logsumexp(log, 0) + jnp.log(shares * len(d))
  return lax.fori_loop(0, 50, turn, log)


def product(x, levels, size, seed):
  """PQ: k-means on each of `levels` pieces of a vector; codes have no order."""
  x = jnp.asarray(x)
  if x.shape[1] % levels:
    raise ConfigError(f'{x.shape[1]} numbers do not divide into {levels} pieces; change '
                      'semantic_ids.levels or the width of the item vectors')
  pieces = jnp.split(x, levels, 1)
  found = [centres_of(p, size, seed + at, kmeans.fit) for at, p in enumerate(pieces)]
  return (np.stack([np.asarray(a) for _, a in found], 1).astype(np.int32),
          {'codebooks': np.stack([np.asarray(c) for c, _ in found])})


def rebuilt(codes, codebooks):
  """Vectors of PQ codes. -> (N, d)"""
  return np.concatenate([book[codes[:, at]] for at, book in enumerate(codebooks)], 1)


def rotated(x, levels, size, seed, rounds=8):
  """OPQ: a rotation learnt with the pieces, each in turn. -> codes, {'rotation', 'codebooks',
  'errors': after each round}"""
  x = np.asarray(x, np.float32)
  turn, errors = np.eye(x.shape[1], dtype=np.float32), []
  codes, state = product(x, levels, size, seed)
  books = state['codebooks']
  for _ in range(rounds):
    y = rebuilt(codes, books)
    errors.append(float(((x @ turn - y) ** 2).sum()))
    u, _, v = np.linalg.svd(x.T @ y)
    turn = u @ v
    books = np.stack([_moved_centres(p, codes[:, at], books[at]) for at, p in enumerate(
        np.split(x @ turn, levels, 1))])
    codes = np.stack([np.asarray(kmeans.nearest(jnp.asarray(p), jnp.asarray(books[at]))[0])
                      for at, p in enumerate(np.split(x @ turn, levels, 1))], 1)
  return codes.astype(np.int32), {'rotation': turn, 'codebooks': books, 'errors': errors}


def _moved_centres(x, assigned, centres):
  count = np.bincount(assigned, minlength=len(centres))
  total = np.zeros_like(centres)
  np.add.at(total, assigned, x)
  return np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], centres)


def drawn(x, levels, size, seed):
  """Random codes: what an ID without meaning is worth."""
  return np.random.default_rng(seed).integers(0, size, (len(x), levels), np.int32), {}


def hashed(x, levels, size, seed):
  """Signs of random projections, log2(C) of them a level (LSH). C must be a power of two."""
  bits = int(size).bit_length() - 1
  if size != 1 << bits:
    raise ConfigError(f'lsh needs a power of two for semantic_ids.size, not {size}')
  planes = np.random.default_rng(seed).normal(size=(x.shape[1], levels * bits)).astype(np.float32)
  signs = (np.asarray(x) @ planes > 0).reshape(len(x), levels, bits)
  return (signs << np.arange(bits)).sum(-1).astype(np.int32), {'planes': planes}


PLAIN = {
    'rqkmeans': residual,
    'rkmeans': functools.partial(residual, run=kmeans.fit_batches, unit=True),
    'rkmeans_balanced': functools.partial(residual, run=kmeans.fit_balanced),
    'rkmeans_mapped': mapped, 'pq': product, 'opq': rotated, 'random': drawn, 'lsh': hashed}
