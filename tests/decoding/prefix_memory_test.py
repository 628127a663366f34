"""The memory of prefixes against a plain list of what was used, and under many threads."""
import concurrent.futures
import random

import jax
import numpy as np
from absl.testing import absltest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from jax.sharding import NamedSharding, PartitionSpec

from recjax.decoding.prefix_memory import PrefixMemory

BYTES = 4  # of a value
BLOCKS = st.lists(st.sampled_from([(1, 2), (2, 1), (1,)]), min_size=1, max_size=3).map(tuple)


def value_of(path):
  """What is kept for the last block of a path: told apart by all of the path."""
  return np.array([hash(path) % 2**31], np.int32)


def values_of(path):
  return [value_of(path[:end + 1]) for end in range(len(path))]


class AgainstPlain(RuleBasedStateMachine):
  """{path: when it was used}, searched from end to end; the same clock for all of one use."""

  @initialize(room=st.integers(0, 7))
  def begin(self, room):
    self.memory, self.room, self.clock = PrefixMemory(room * BYTES + 1), room, 0
    self.used, self.pinned = {}, set()

  def use(self, path):
    self.clock += 1
    for end in range(1, len(path) + 1):
      self.used[path[:end]] = self.clock, -end  # of one use the first block is used last

  def shrink(self):
    while len(self.used) > self.room:
      leaves = [path for path in self.used if path not in self.pinned and not any(
          other[:-1] == path for other in self.used)]
      del self.used[min(leaves, key=self.used.get)]

  @rule(path=BLOCKS)
  def find(self, path):
    found = self.memory.find(path)
    size = next((n for n in range(len(path)) if path[:n + 1] not in self.used), len(path))
    np.testing.assert_array_equal(found, values_of(path)[:size])
    self.use(path[:size])

  @rule(path=BLOCKS, pin=st.booleans())
  def add(self, path, pin):
    self.memory.add(path, values_of(path), pin)
    if self.room:
      self.use(path)
    for end in range(1, len(path) + 1 if pin else 0):
      if path[:end] not in self.pinned and len(self.pinned) == self.room:
        break
      self.pinned.add(path[:end])
    self.shrink()

  @rule()
  def clear(self):
    self.memory.clear()
    self.used = {path: self.used[path] for path in self.pinned}

  @invariant()
  def bytes_are_bounded_and_counted(self):
    assert self.memory.num_bytes == len(self.used) * BYTES <= self.memory.max_bytes
    assert self.pinned <= set(self.used)


AgainstPlainTest = AgainstPlain.TestCase
AgainstPlainTest.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


class ThreadsTest(absltest.TestCase):

  def test_values_are_of_the_very_path(self):
    memory = PrefixMemory(20 * BYTES)

    def work(seed):
      rng, found_any = random.Random(seed), 0
      for _ in range(400):
        path = tuple((rng.randrange(3),) for _ in range(rng.randrange(1, 5)))
        found = memory.find(path)
        np.testing.assert_array_equal(found, values_of(path)[:len(found)])
        found_any += len(found)
        memory.add(path, values_of(path))
        self.assertLessEqual(memory.num_bytes, memory.max_bytes)
      return found_any
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
      self.assertGreater(min(pool.map(work, range(6))), 100)
    memory.clear()
    self.assertEqual(memory.num_bytes, 0)

  def test_a_value_that_has_no_room_is_not_kept(self):
    memory = PrefixMemory(7)
    memory.add([(1,), (2,), (3,)], [np.zeros(4, np.int8), np.zeros(8, np.int8), np.zeros(1)])
    self.assertLen(memory.find([(1,), (2,), (3,)]), 1)
    PrefixMemory(0).add([(1,)], [np.zeros(1)])

  def test_what_all_devices_hold_whole_counts_for_each(self):
    mesh = jax.make_mesh((8,), ('data',))
    value = np.zeros((8, 4), np.float32)
    whole, shared = (jax.device_put(value, NamedSharding(mesh, PartitionSpec(*spec)))
                     for spec in ((), ('data',)))
    memory = PrefixMemory(8 * value.nbytes)
    memory.add([(1,), (2,)], [whole, shared])
    self.assertLen(memory.find([(1,), (2,)]), 1)  # the whole one takes all the room
    self.assertEqual(memory.num_bytes, 8 * value.nbytes)
    memory.add([(3,)], [(shared, jax.device_put(value))])
    self.assertEqual(memory.num_bytes, 2 * value.nbytes)


if __name__ == '__main__':
  absltest.main()
