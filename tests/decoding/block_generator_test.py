"""Prompts that are read in blocks: what the whole prompt gives, the same to the bit whatever the
memory holds."""
import concurrent.futures
import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.decoding.beam_search import BeamSearch
from recjax.decoding.block_generator import BLOCK, BlockGenerator, room_for
from recjax.decoding.constraints import Unconstrained
from recjax.decoding.generate import generate
from recjax.decoding.prefix_memory import PrefixMemory
from recjax.decoding.sampling import Sampling, own_draws
from recjax.models import llm, llm_decoder

SHAPE = llm.Config(vocab=90, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, ffn=24)
OPENING = [7, 1, 8] * 30  # ends within a block
MANY = 1 << 30
BLOCK_BYTES = 2 * SHAPE.layers * SHAPE.kv_heads * BLOCK * SHAPE.head_dim * 4


class Tokens:
  pad_id, eos_ids = 0, [89]


@functools.cache
def language_model(seed=0):
  return llm.LM(SHAPE), {'params': jax.tree.map(lambda x: 4 * x, llm.init(
      SHAPE, jax.random.key(seed)))}


def generator(max_bytes=MANY, opening=OPENING, seed=0, **more):
  """-> BlockGenerator, [(tokens found, tokens read)] of its prompts so far"""
  counts = []
  memory = PrefixMemory(max_bytes, lambda *given: counts.append(given))
  return BlockGenerator(*language_model(seed), Tokens(), memory, opening, **more), counts


def conversations(seed, count):
  """Prompts that go on from earlier ones, fork from their middle, or begin anew."""
  rng, prompts = random.Random(seed), []
  for _ in range(count):
    start = rng.choice([OPENING, [], *prompts])
    if start and rng.random() < 0.4:
      start = start[:rng.randrange(1, len(start) + 1)]
    prompts.append([*start, *(rng.randrange(90) for _ in range(rng.choice([1, 40, 64, 150])))])
  return prompts


@functools.cache
def whole_states():
  """The states of prompts that one pass reads whole."""
  model, variables = language_model()
  return jax.jit(
      lambda tokens, sizes: llm_decoder.prefill_states(model, variables, tokens, sizes)[0])


def bits(array):
  return np.asarray(array).tobytes()


class ReadingTest(parameterized.TestCase):

  @parameterized.parameters(1, 63, 64, 65, 90, 91, 154, 200, 300)
  def test_states_are_those_of_the_whole_prompt(self, size):
    prompt = ([*OPENING] * 4)[:size]
    whole = whole_states()(jnp.array([prompt + [0] * (300 - size)]), jnp.array([size]))
    some, _ = generator()
    for _ in range(2):
      np.testing.assert_allclose(some.states([prompt]), whole, atol=3e-5)

  @parameterized.parameters((0,), (3 * BLOCK_BYTES,), (3 * BLOCK_BYTES + 1,), (MANY,))
  def test_the_memory_changes_no_bit(self, max_bytes):
    """Over forks, with room for nothing, for a few blocks, for all; beside what reads all anew."""
    some, counts = generator(max_bytes)
    some.keep_opening()
    for prompt in conversations(max_bytes % 7, 25):
      fresh, _ = generator(0)
      (state, keys), = some._read_all([prompt])
      (want, want_keys), = fresh._read_all([prompt])
      self.assertEqual(bits(state), bits(want))
      for kept, read in zip(keys, want_keys):
        self.assertEqual(kept.shape[3], some.room(prompt))
        self.assertEqual(bits(kept[:, :, :, :len(prompt)]), bits(read[:, :, :, :len(prompt)]))
      self.assertLessEqual(some.memory.num_bytes, max_bytes)
    found, _ = map(sum, zip(*counts))
    self.assertEqual(found > 0, max_bytes > 0)

  def test_only_what_is_new_is_read(self):
    some, counts = generator()
    first = [*OPENING, *range(10, 80), *range(60)]  # 90 + 128 + 2
    some.states([first])
    some.states([[*first, *range(70)]])
    some.states([[*first[:200], 3]])
    some.states([[9, *first[1:]]])  # as many tokens, the first another
    some.states([first, first])
    self.assertEqual(counts, [(0, 220), (218, 72), (90, 111), (0, 220), (218, 2)])

  def test_tokens_of_equal_number_are_not_the_same(self):
    some, _ = generator(opening=[])
    plain, _ = generator(0, opening=[])
    base = [5] * 260
    some.states([base])
    for place in (0, 127, 128, 255):
      other = [*base[:place], 6, *base[place + 1:]]
      self.assertEqual(bits(some.states([other])), bits(plain.states([other])))
      self.assertNotEqual(bits(some.states([other])), bits(some.states([base])))

  def test_the_opening_stays(self):
    some, counts = generator(2 * BLOCK_BYTES)
    some.keep_opening()
    for prompt in conversations(3, 12):
      some.states([prompt])
    counts.clear()
    some.states([[*OPENING, 1]])
    self.assertEqual(counts, [(90, 1)])
    some.memory.clear()
    self.assertEqual(some.memory.num_bytes, BLOCK_BYTES)

  def test_other_weights_have_a_memory_of_their_own(self):
    old, _ = generator()
    new, _ = generator(seed=1)
    prompt = list(range(80)) * 2
    old.states([prompt])
    self.assertEqual(bits(new.states([prompt])), bits(generator(0, seed=1)[0].states([prompt])))
    self.assertNotEqual(bits(new.states([prompt])), bits(old.states([prompt])))

  def test_rooms_are_few_and_hold_every_block(self):
    self.assertEqual([room_for(n) for n in (1, 128, 129, 1000)], [128, 128, 256, 1024])
    some, _ = generator(longest=200)
    self.assertEqual([some.room([1] * n) for n in (1, 250, 257)], [256, 256, 512])
    some, _ = generator()
    for size in range(100, 300, 7):
      prompt = [*OPENING, *[1] * size]
      last = sum(map(len, some.blocks(prompt)[:-1]))
      self.assertGreaterEqual(some.room(prompt), last + BLOCK)


class GenerationTest(parameterized.TestCase):

  @parameterized.parameters(
      (Sampling(1, 8, temperature=1.0),), (BeamSearch(4, 6, length_penalty=0.0),))
  def test_rows_and_scores_are_equal_to_the_bit(self, search):
    some, counts = generator(longest=500)
    fresh, _ = generator(0, longest=500)
    prompts = [prompt[:500] for prompt in conversations(11, 12)]
    ends = Unconstrained((89,))
    for start in range(0, 12, 4):
      for batch in (prompts[start:start + 1], prompts[start:start + 4]):
        found, want = (one.generate(batch, search, ends, seed=5) for one in (some, fresh))
        self.assertEqual(bits(found.scores), bits(want.scores))
        np.testing.assert_array_equal(found.tokens, want.tokens)
    self.assertGreater(sum(found for found, _ in counts), 1000)

  def test_a_search_goes_on_from_the_whole_prompt(self):
    """As from a decoder that reads prompts at once."""
    some, _ = generator()
    model, variables = language_model()
    prompts, search = conversations(5, 4), Sampling(1, 6, temperature=0.0)
    found = some.generate(prompts, search, Unconstrained((89,)))
    whole = generate(llm_decoder.decoder(model), variables, prompts, search, Unconstrained((89,)))
    np.testing.assert_array_equal(found.tokens, whole.tokens)
    np.testing.assert_allclose(found.scores, whole.scores, atol=1e-4)

  def test_many_threads_share_a_memory(self):
    some, _ = generator(6 * BLOCK_BYTES, longest=500)
    fresh, _ = generator(0, longest=500)
    prompts, search = [prompt[:500] for prompt in conversations(2, 16)], Sampling(1, 8)
    draws = own_draws([3], [0.7])
    want = [fresh.generate([prompt], search, Unconstrained((89,)), draws) for prompt in prompts]

    def work(seed):
      order = random.Random(seed).sample(range(16), 16)
      return {n: some.generate([prompts[n]], search, Unconstrained((89,)), draws) for n in order}
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
      for found in pool.map(work, range(3)):
        for n, one in found.items():
          self.assertEqual(bits(one.scores), bits(want[n].scores))
          np.testing.assert_array_equal(one.tokens, want[n].tokens)
    self.assertLessEqual(some.memory.num_bytes, 6 * BLOCK_BYTES)


if __name__ == '__main__':
  absltest.main()
