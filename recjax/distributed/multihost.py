"""Several processes: each runs the same program on its own host and holds a part of the mesh."""
import json
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree


def to_host(tree: PyTree) -> PyTree:
  """`jax.device_get`, also of arrays that several processes hold together. -> tree of numpy

  Every process must call it for the same arrays, in the same order.
  """
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  def gather(x: Any) -> np.ndarray:
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
      return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)
  return jax.tree.map(gather, tree)


def local_values(tree: PyTree) -> PyTree:
  """`tree` as this process can compute with alone: as it is where no other process holds a part."""
  return tree if jax.process_count() == 1 else to_host(tree)


def put_global(x: np.ndarray | np.generic | jax.Array,
               sharding: jax.sharding.Sharding) -> jax.Array:
  """A host array x that every process has whole, on the devices of `sharding`."""
  if jax.process_count() == 1:
    return jax.device_put(x, sharding)
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def broadcast(value: Any) -> Any:
  """What process 0 says, in all processes; also waits until all are here. value: plain JSON."""
  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  text = np.resize(text, size) if len(text) else np.zeros(size, np.uint8)
  return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())


def allgather(values: Any) -> np.ndarray:
  """A few numbers of every process, one row for each. values: of this process, as many as of any
  other."""
  if jax.process_count() == 1:
    return np.asarray(values)[None]
  from jax.experimental import multihost_utils
  return np.asarray(multihost_utils.process_allgather(np.asarray(values)))
