"""What prompts begin with, remembered: blocks of tokens and what was computed for them.

A prompt is a path of blocks from a root, so prompts that begin alike share the nodes of what they
share, and what is found belongs to exactly these tokens behind exactly those before them. Of what
the memory has no room for, the block goes that was used longest ago, a later one before the one
that it follows.
"""
import collections
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

Block = tuple[int, ...]  # the tokens of one


@dataclasses.dataclass(eq=False)
class _Node:
  """A block behind those before it. siblings: all that stand behind those. value: what is kept for
  it, of so many bytes. is_pinned: whether it stays. children: blocks behind it."""
  siblings: dict[Block, '_Node']
  block: Block
  value: Any
  num_bytes: int
  is_pinned: bool = False
  children: dict[Block, '_Node'] = dataclasses.field(default_factory=dict)


class PrefixMemory:
  """Values of blocks of tokens, arrays of bounded bytes; many threads may use it.

  max_bytes: of all values, 0 keeps nothing. on_prompt: called for each prompt with how many tokens
  of it were found, and how many were not.

  num_bytes: of the values that are kept.
  """

  def __init__(self, max_bytes: int, on_prompt: Callable[[int, int], None] | None = None):
    self.max_bytes, self.num_bytes = max_bytes, 0
    self.on_prompt = on_prompt or (lambda found, missed: None)
    self._first_blocks: dict[Block, _Node] = {}
    self._by_use: collections.OrderedDict[_Node, None] = collections.OrderedDict()
    self._pinned_bytes, self._lock = 0, threading.Lock()

  def find(self, blocks: Sequence[Block]) -> list:
    """The values of the blocks that are kept, as many as the path begins with. blocks: of a prompt,
    in order."""
    with self._lock:
      nodes = list(self._walk(blocks))
      self._touch(nodes)
      return [node.value for node in nodes]

  def add(self, blocks: Sequence[Block], values: Sequence, pin: bool = False) -> None:
    """Keeps what is not kept yet, as far as there is room.

    blocks: of a prompt, in order. values: of each block, a pytree of arrays. pin: these stay until
    the end, as far as all that stay have room.
    """
    with self._lock:
      nodes = list(self._walk(blocks))
      for block, value in zip(blocks[len(nodes):], values[len(nodes):], strict=True):
        siblings = nodes[-1].children if nodes else self._first_blocks
        node = _Node(siblings, block, value, bytes_of(value))
        if node.num_bytes > self.max_bytes:
          break
        siblings[block] = node
        self.num_bytes += node.num_bytes
        nodes.append(node)
      for node in nodes if pin else ():
        if not node.is_pinned and self._pinned_bytes + node.num_bytes > self.max_bytes:
          break
        self._pinned_bytes += 0 if node.is_pinned else node.num_bytes
        node.is_pinned = True
        self._by_use.pop(node, None)
      self._touch(nodes)
      while self.num_bytes > self.max_bytes:
        self._drop_oldest()

  def clear(self) -> None:
    """Forgets all that is not pinned."""
    with self._lock:
      while self._by_use:
        self._drop_oldest()

  def _walk(self, blocks: Sequence[Block]) -> Iterator[_Node]:
    """The nodes of the blocks that are kept, in order."""
    here = self._first_blocks
    for block in blocks:
      if block not in here:
        return
      yield here[block]
      here = here[block].children

  def _touch(self, nodes: Sequence[_Node]) -> None:
    """Makes nodes of one path the last used, the first of them the very last, so that no node was
    used before those that follow it."""
    for node in reversed(nodes):
      if not node.is_pinned:
        self._by_use[node] = None
        self._by_use.move_to_end(node)

  def _drop_oldest(self) -> None:
    node, _ = self._by_use.popitem(last=False)
    del node.siblings[node.block]
    self.num_bytes -= node.num_bytes


def bytes_of(value: Any) -> int:
  """Bytes that the arrays of a pytree take in all devices of this process: one that each device has
  whole takes as many times as many."""
  return sum(
    sum(shard.data.nbytes for shard in leaf.addressable_shards)
    if isinstance(leaf, jax.Array) else leaf.nbytes for leaf in jax.tree.leaves(value))
