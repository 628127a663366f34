"""Instruction tuning: packed rows with a shared opening lose exactly what separate samples lose."""
import dataclasses
import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from recjax.errors import ConfigError, DataError
from recjax.models import huggingface, layers, llm
from recjax.training import loop, microbatch, optim, sft
from recjax.training import workdir as workdir_lib
from tests import devices as several
from tests.long import long, long_but

SHAPE = llm.Config(vocab=40, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, ffn=24, tied=True)

OPTIM = ConfigDict(dict(lr=1e-2, warmup=2, schedule='linear', decay=0.0, clip=1.0, beta2=0.98,
                        log_every=2, save_every=3))


def samples(count, seed=0):
  rng = np.random.default_rng(seed)
  prompts = [[1, 2, 3, *rng.integers(4, 38, rng.integers(1, 9)).tolist()] for _ in range(count)]
  answers = [[*rng.integers(4, 38, rng.integers(1, 5)).tolist(), 39] for _ in range(count)]
  return prompts, answers


def alone(params, prompts, answers, loss_on):
  """Each sample run by itself, without packing. -> summed loss, tokens"""
  model, total, count = llm.LM(SHAPE), 0.0, 0
  width = max(len(p + a) for p, a in zip(prompts, answers))

  @jax.jit
  def log_probs(ids):  # what follows a sample plays no part
    hidden, _ = model.apply({'params': params}, ids[None], jnp.arange(width)[None],
                            jnp.ones((1, width), int))
    return jax.nn.log_softmax(model.apply({'params': params}, hidden, method='logits'))[0]
  for p, a in zip(prompts, answers):
    logp = log_probs(np.pad(p + a, (0, width - len(p + a))))
    start = 1 if loss_on == 'all' else len(p)
    at = np.arange(start, len(p + a))
    total -= float(logp[at - 1, np.array(p + a)[at]].sum())
    count += len(at)
  return total, count


class PackTest(parameterized.TestCase):

  @parameterized.product(loss_on=('all', 'response'), row=(0, 128))
  @long_but(1)
  def test_packed_loss_is_the_loss_of_samples_one_at_a_time(self, loss_on, row):
    params = llm.init(SHAPE, jax.random.key(1))
    prompts, answers = samples(13)
    packed = sft.pack_pairs(prompts, answers, loss_on, row)
    self.assertEqual(packed.prefix, [1, 2, 3])
    total, count = jax.jit(functools.partial(sft.loss_sums, llm.LM(SHAPE), packed.prefix))(
      {'params': params}, packed.batch())
    want, tokens = alone(params, prompts, answers, loss_on)
    self.assertEqual((int(count), packed.tokens), (tokens, tokens))
    self.assertAlmostEqual(float(total), want, delta=1e-3 * want)

  def test_labels_b9(self):
    prompt, answer = list(range(1, 7)), [7, 8, 9, 39]  # 6 tokens, 3 and the end
    every = sft.pack_pairs([prompt], [answer], 'all', prefix=[])
    some = sft.pack_pairs([prompt], [answer], 'response', prefix=[])
    self.assertEqual((every.tokens, some.tokens), (9, 4))  # the first of 10 is predicted by none

  def test_common_prefix_stops_short_of_the_shortest_prompt(self):
    self.assertEqual(sft.common_prefix([[1, 2, 3], [1, 2]]), [1])
    self.assertEqual(sft.common_prefix([[1, 2], [3, 2]]), [])

  def test_wrong_settings_and_nothing_to_train_on(self):
    with self.assertRaisesRegex(ConfigError, 'train.loss_on'):
      sft.pack_pairs([[1]], [[2]], 'some')
    with self.assertRaisesRegex(DataError, 'no sample'):
      sft.pack_pairs([], [], 'all')


class TuneTest(parameterized.TestCase):

  def tune(self, folder, rank=0, patience=0, epochs=6, stop=0, devices=1, batch=4, count=16):
    shape = dataclasses.replace(SHAPE, lora_rank=rank)
    params = llm.init(SHAPE, jax.random.key(1))
    prompts, answers = samples(count)
    train, valid = (sft.pack_pairs(p, a, 'response', 0, [1, 2, 3]) for p, a in (
        (prompts, answers), samples(6, 9)))
    cfg = ConfigDict(dict(epochs=epochs, batch=batch, patience=patience, seed=0, optim=OPTIM))
    mesh = several.mesh(data=devices, fsdp=1, model=1)
    with workdir_lib.open_work(folder, {}, mesh) as work:
      work.current = 'tune'
      if stop:
        record, seen = work.record, []

        def dying(step, values):
          record(step, values)
          seen.append(step)
          if len(seen) == stop:
            raise KeyboardInterrupt
        work.record = dying
      trained, counts = sft.tune(work, cfg, llm.LM(shape), params, train, valid)
      return jax.device_get(trained), counts, work.metrics()

  @long
  def test_full_tuning_learns_and_does_not_touch_what_it_began_with(self):
    _, _, rows = self.tune(tempfile.mkdtemp(), epochs=24)
    losses = [r['loss'] for r in rows if 'loss' in r]
    self.assertLess(losses[-1], 0.7 * losses[0])

  @long
  def test_weights_of_a_bfloat16_model_train_in_float32(self):
    packed = sft.pack_pairs(*samples(16), 'response', 0, [1, 2, 3])
    batch = packed.batch(range(len(packed.rows)), len(packed.rows))
    shape = dataclasses.replace(SHAPE, dtype='bfloat16', param_dtype='bfloat16')
    start = llm.as_stored(llm.init(SHAPE, jax.random.key(1)), shape)
    tx, losses, states = optim.make(OPTIM, 30), [], []
    for cfg in (shape, SHAPE):
      task = loop.Task(init=None, batches=(), loss=microbatch.mean(
          lambda train, frozen, batch, cfg=cfg: sft.loss_sums(
              llm.LM(cfg), packed.prefix, {'params': train}, batch)))
      state = loop.fresh_state(task, tx, None, jax.tree.map(jnp.copy, start))
      update = loop.make_update(task, tx, jax.random.key(0))
      for step in range(30):
        state, values = update(state, (), batch, np.int32(step))
      losses.append(float(values['loss']))
      states.append(state)
    for path, x in jax.tree_util.tree_leaves_with_path(states[0]):
      self.assertIn(x.dtype, (np.float32, np.int32), path)
    self.assertAlmostEqual(losses[0], losses[1], delta=.02 * losses[1])
    # A scale of 1 moves by steps that bfloat16 would round away: 2 ** -7 is its next number.
    (norm, exact) = (np.asarray(state['train']['norm']) for state in states)
    self.assertTrue((norm != 1).all())
    self.assertLess(np.abs(norm - exact).max(), .2 * np.abs(exact - 1).max())
    folder = tempfile.mkdtemp()
    huggingface.save(llm.as_stored(states[0]['train'], shape), shape, folder)
    again = huggingface.load(folder, shape)
    self.assertEqual(again['norm'].dtype, jnp.bfloat16)
    np.testing.assert_array_equal(again['norm'], norm.astype(jnp.bfloat16))

  def test_an_adapter_is_all_that_is_trained(self):
    trained, counts, _ = self.tune(tempfile.mkdtemp(), rank=2)
    self.assertEqual(counts['trained'], layers.count_params(trained))
    self.assertIn('a', trained['blocks']['q'])

  @long
  def test_patience_ends_training_and_gives_the_best_tree(self):
    trained, _, rows = self.tune(tempfile.mkdtemp(), patience=2, epochs=60)
    valid = [(r['step'], r['valid_loss']) for r in rows if 'valid_loss' in r]
    best = min(valid, key=lambda v: v[1])
    self.assertLess(valid[-1][0], rows[-1]['step'] + 1)
    every = valid[1][0] - valid[0][0]
    self.assertEqual(valid[-1][0], best[0] + 2 * every)
    prompts, answers = samples(6, 9)
    loss, count = alone(trained, prompts, answers, 'response')
    self.assertAlmostEqual(loss / count, best[1], places=4)

  @long
  def test_a_killed_run_ends_where_an_uninterrupted_one_does(self):
    whole, _, _ = self.tune(tempfile.mkdtemp(), patience=3, epochs=8)
    folder = tempfile.mkdtemp()
    for stop in (3, 6):
      with self.assertRaises(KeyboardInterrupt):
        self.tune(folder, patience=3, epochs=8, stop=stop)
    again, _, _ = self.tune(folder, patience=3, epochs=8)
    jax.tree.map(np.testing.assert_array_equal, whole, again)

  @long
  def test_eight_devices_learn_what_one_does(self):
    one, eight = (self.tune(tempfile.mkdtemp(), epochs=2, batch=74, devices=n, count=128)
                  for n in (1, 8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), one[0],
                 eight[0])
    losses = [[r['loss'] for r in rows if 'loss' in r] for _, _, rows in (one, eight)]
    self.assertNotEmpty(losses[0])
    np.testing.assert_allclose(*losses, rtol=1e-5)

  def test_every_row_comes_once(self):
    packed = sft.pack_pairs(*samples(9), 'response', 0, [1, 2, 3])
    rows = list(sft.batches_once(packed, 2))
    self.assertTrue(all(len(r['tokens']) == 2 for r in rows))
    self.assertEqual(sum(float(r['weights'].sum()) for r in rows), packed.tokens)


if __name__ == '__main__':
  absltest.main()
