"""Mesh, path rules, activation constraints, several processes: one code path from CPU to pod."""
import json

import jax
import numpy as np

# Several processes: each runs the same program on its own host and holds a part of the mesh.


def to_host(tree):
  """`jax.device_get`, also of arrays that several processes hold together. -> tree of numpy

  Every process must call it for the same arrays, in the same order.
  """
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  def one(x):
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
      return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)
  return jax.tree.map(one, tree)


def local_values(tree):
  """`tree` as this process can compute with alone: as it is where no other process holds a part."""
  return tree if jax.process_count() == 1 else to_host(tree)


def put_global(x, where):
  """A host array that every process has whole, on the devices of `where`. -> jax.Array"""
  if jax.process_count() == 1:
    return jax.device_put(x, where)
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, where, lambda index: x[index])


def broadcast(value):
  """What process 0 says, in all processes. value: plain JSON. Also waits until all are here."""
  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  text = np.resize(text, size) if len(text) else np.zeros(size, np.uint8)
  return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())


def allgather(values):
  """Small numbers of all processes side by side. values: (n,) -> (processes, n) numpy"""
  if jax.process_count() == 1:
    return np.asarray(values)[None]
  from jax.experimental import multihost_utils
  return np.asarray(multihost_utils.process_allgather(np.asarray(values)))
