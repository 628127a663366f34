"""Whether a model's weights fit, said before any of them is read, with what would fit."""
import math
import os
import pathlib

import jax
from jaxtyping import PyTree

from recjax.errors import ConfigError

GIB = 2**30

# Files of a control group: its limit, what it uses, and of that what the system may take back.
GROUPS = (
    ('sys/fs/cgroup/memory.max', 'sys/fs/cgroup/memory.current', 'sys/fs/cgroup/memory.stat',
     'inactive_file'),
    ('sys/fs/cgroup/memory/memory.limit_in_bytes', 'sys/fs/cgroup/memory/memory.usage_in_bytes',
     'sys/fs/cgroup/memory/memory.stat', 'total_inactive_file'))


def free(root: str | os.PathLike = '/') -> float:
  """Bytes that this process may still take of the machine, infinite where the system does not say.

  root: of the file system. What the machine has left, or what the control group (a container's
  limit) has left where that is less.
  """
  root = pathlib.Path(root)
  left = [1024 * count for count in _counts(root / 'proc/meminfo', 'MemAvailable:')]
  for limit, used, stat, unneeded in GROUPS:
    most, now = (_counts(root / name) for name in (limit, used))
    if most and now:
      left.append(most[0] - now[0] + sum(_counts(root / stat, unneeded)))
  return max(0, min(left, default=math.inf))


def _counts(path, name=''):
  """The number of a file, or that behind `name` in one of its lines: one, or none. -> list"""
  try:
    lines = [line.split() for line in path.read_text().splitlines()]
  except (OSError, UnicodeDecodeError):
    return []
  found = [line[1] for line in lines if len(line) > 1 and line[0] == name] if name else lines[0][:1]
  return [int(word) for word in found if word.isdigit()]


def check(folder: str | os.PathLike, shapes: PyTree, shardings: PyTree) -> None:
  """Raises ConfigError where weights do not fit what the devices of this host have left.

  folder: of the model, for the message. shapes: of the weights, in the types that they are kept in.
  shardings: a tree alike. All devices of a CPU share its memory.
  """
  leaves = list(zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings)))
  count = sum(math.prod(x.shape) for x, _ in leaves)
  needed = sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in leaves)
  devices = [d for d in leaves[0][1].device_set if d.process_index == jax.process_index()]
  on_cpu = devices[0].platform == 'cpu'
  if on_cpu:
    needed, left = needed * len(devices), free()
  else:
    left = min(_left(device) for device in devices)
  if needed <= left:
    return
  width = max(x.dtype.itemsize for x, _ in leaves)
  most = count * left / needed * width / 2
  fits = ('--config.llm.dtype=bfloat16 takes half of that, and fits' if width > 2 and
          needed / 2 <= left else
          f'a model of up to {most / 1e9:.2g} billion weights fits in bfloat16 (llm.dtype)'
          + ('' if on_cpu else ', or shard it over more devices (mesh.model, mesh.fsdp)'))
  if all(x.dtype.itemsize > 1 for x, _ in leaves):
    fits += '; --config.llm.quantize=int8 keeps the linear layers of an LLM in a byte a weight'
  raise ConfigError(
      f'{folder}: {count / 1e9:.3g} billion weights take {needed / GIB:.3g} GiB as '
      f'{leaves[0][0].dtype}, and {left / GIB:.3g} GiB of {"memory" if on_cpu else "a device"} are '
      f'free: {fits}. A run takes more than its weights: `recjax doctor DATA --config=...` tells')


def _left(device):
  """Bytes that a device has left, infinite where it does not say."""
  stats = device.memory_stats() or {}
  return stats.get('bytes_limit', math.inf) - stats.get('bytes_in_use', 0)
