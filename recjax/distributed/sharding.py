"""Mesh, path rules, activation constraints: one code path from CPU to pod."""
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from recjax.errors import ConfigError

Rules = Sequence[tuple[str, P]]  # pairs of a regular expression and a spec
TreePath = tuple[Any, ...]


def make_mesh(axes: Mapping[str, int]) -> Mesh:
  """Builds a mesh with Auto axes from {name: size}; one size may be -1, which takes what is left.

  axes: such as {'data': -1, 'fsdp': 1, 'model': 1}. Raises ConfigError if the
  sizes do not fit the devices.
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


def generation_axes(axes: Mapping[str, int], heads: int) -> dict[str, int]:
  """The sizes of `generation_mesh`. axes: of the mesh. heads: of keys and values."""
  fsdp, model = axes.get('fsdp', 1), axes.get('model', 1)
  more = max(n for n in range(1, fsdp + 1)
             if fsdp % n == 0 and (n == 1 or heads % (n * model) == 0))
  return {**axes, 'fsdp': fsdp // more, 'model': model * more}


def generation_mesh(mesh: Mesh, heads: int) -> Mesh:
  """The devices of `mesh` with 'fsdp' turned into 'model' as far as that divides the heads.

  heads: of keys and values. Weights split over 'fsdp' are gathered at every token that is written,
  over 'model' only what a block gives is added up. A mesh without both axes stays as it is.
  """
  if not {'fsdp', 'model'} <= set(mesh.axis_names):
    return mesh
  axes = generation_axes(mesh.shape, heads)
  if axes == dict(mesh.shape):
    return mesh
  names = mesh.axis_names
  first = [n for n in names if n not in ('fsdp', 'model')] + ['fsdp', 'model']
  devices = mesh.devices.transpose([names.index(n) for n in first])
  devices = devices.reshape([axes[n] for n in first])
  order = [first.index(n) for n in names]
  return Mesh(devices.transpose(order), names, axis_types=mesh.axis_types)


def shard_rows(x: jax.Array, *axes: str | None) -> jax.Array:
  """Keeps rows on the data axes of the mesh; a row that all devices share stays where it is.

  axes: mesh axes of the other dimensions of x; none by default.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if x.shape[0] % num_batch_shards(mesh):
    return x
  return shard(x, ('data', 'fsdp'), *(axes or (None,) * (x.ndim - 1)))


def path_of(path: TreePath) -> str:
  """'a/b/c' for a tree path as jax.tree_util gives it."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def shardings(tree: PyTree, rules: Rules, mesh: Mesh) -> PyTree:
  """The sharding of every leaf: the first rule whose regex matches the end of its path decides.

  tree: of arrays or shapes. rules: for `mesh` or more axes than it has. Leaves of fewer
  than two axes, and those that no rule names, are replicated. Optimizer moments end in their
  parameter's path and so follow it.
  """
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: NamedSharding(mesh, present(mesh, spec_of(path, leaf, rules))), tree)


def spec_of(path: TreePath, leaf: Any, rules: Rules) -> P:
  """The PartitionSpec that `rules` give a leaf. path: of the leaf. leaf: an array or its shape."""
  if len(leaf.shape) < 2:
    return P()
  return next((s for r, s in rules if re.search(f'(^|/){r}$', path_of(path))), P())


def device_bytes(tree: PyTree, rules: Rules, axes: Mapping[str, int]) -> int:
  """Bytes of a tree on each device of a mesh that need not exist.

  tree: of arrays or shapes. rules: as in `shardings`. axes: such as {'data': 1, 'fsdp': 8}.
  """
  def leaf_bytes(path: TreePath, leaf: Any) -> int:
    spec = [*spec_of(path, leaf, rules), *[None] * len(leaf.shape)]
    names = [axis if isinstance(axis, tuple) else (axis,) for axis in spec]
    return leaf.dtype.itemsize * math.prod(
        math.ceil(size / math.prod(axes.get(name, 1) for name in of_dim if name))
        for size, of_dim in zip(leaf.shape, names))
  return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(leaf_bytes, tree)))


def present(mesh: Mesh | jax.sharding.AbstractMesh, axes: Iterable) -> P:
  """The spec of `axes`, without those that `mesh` lacks."""
  def keep(axis: Any) -> Any:
    if isinstance(axis, tuple):
      return tuple(name for name in axis if name in mesh.axis_names) or None
    return axis if axis in mesh.axis_names else None
  return P(*map(keep, axes))


def num_batch_shards(mesh: Mesh | jax.sharding.AbstractMesh) -> int:
  """Over how many devices, or groups of them, the rows of a batch divide. mesh: the devices."""
  return math.prod(mesh.shape.get(axis, 1) for axis in ('data', 'fsdp'))


def shard(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
  """Constrains x to mesh axes, one for each dimension; does nothing where no mesh is set."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, present(mesh, axes))
