"""Mesh, path rules, activation constraints, several processes: one code path from CPU to pod."""
import math
import re

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from recjax.errors import ConfigError


def make_mesh(axes):
  """Builds a mesh with Auto axes from {name: size}; one size may be -1, which takes what is left.

  axes: {'data': -1, 'fsdp': 1, 'model': 1}. Raises ConfigError if the sizes do not fit the devices.
  """
  axes = dict(axes)
  count = jax.device_count()
  fixed = math.prod(n for n in axes.values() if n > 0)
  if sum(n < 0 for n in axes.values()) > 1:
    raise ConfigError(f'mesh {axes} leaves two sizes open; only one of them may be -1')
  shape = tuple(n if n > 0 else count // fixed for n in axes.values())
  if math.prod(shape) != count:
    raise ConfigError(
        f'mesh {axes} does not cover {count} devices; set one axis to -1, '
        'e.g. --config.mesh.data=-1')
  auto = (jax.sharding.AxisType.Auto,) * len(shape)
  return jax.make_mesh(shape, tuple(axes), axis_types=auto)


def path_of(path):
  """'a/b/c' for a tree path as jax.tree_util gives it."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def shardings(tree, rules, mesh):
  """The sharding of every leaf: the first rule whose regex matches the end of its path decides.

  rules: pairs (regex, PartitionSpec). Leaves of fewer than two axes, and those that no rule names,
  are replicated. Optimiser moments end in their parameter's path and so follow it.
  """
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: NamedSharding(mesh, present(mesh, spec_of(path, leaf, rules))), tree)


def spec_of(path, leaf, rules):
  """The PartitionSpec that `rules` give a leaf."""
  if len(leaf.shape) < 2:
    return P()
  return next((s for r, s in rules if re.search(f'(^|/){r}$', path_of(path))), P())


def device_bytes(tree, rules, axes):
  """Bytes of a tree on each device of a mesh that need not exist. axes: {'data': 1, 'fsdp': 8}"""
  def one(path, leaf):
    spec = [*spec_of(path, leaf, rules), *[None] * len(leaf.shape)]
    names = [a if isinstance(a, tuple) else (a,) for a in spec]
    return leaf.dtype.itemsize * math.prod(
        math.ceil(n / math.prod(axes.get(a, 1) for a in of if a))
        for n, of in zip(leaf.shape, names))
  return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(one, tree)))


def present(mesh, axes):
  """The spec without the axes that `mesh` lacks."""
  def one(axis):
    if isinstance(axis, tuple):
      return tuple(a for a in axis if a in mesh.axis_names) or None
    return axis if axis in mesh.axis_names else None
  return P(*map(one, axes))


def num_batch_shards(mesh):
  """Over how many devices, or groups of them, the rows of a batch divide."""
  return math.prod(mesh.shape.get(a, 1) for a in ('data', 'fsdp'))


def shard(x, *axes):
  """Constrains `x` to the mesh axes; does nothing where no mesh is set."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, present(mesh, axes))
