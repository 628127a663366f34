"""Both sides of ETEGRec's training, who moves and who stands still; the fit of the tokenizer."""
import functools
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from ml_collections import ConfigDict

from recjax.distributed import sharding
from recjax.errors import ConfigError, DataError, Preempted
from recjax.methods.etegrec import joint_training, rqvae_training
from recjax.methods.etegrec import joint_training as training
from recjax.models import rqvae, semantic_id_t5, semantic_ids, t5
from recjax.training import fault_tolerance
from recjax.training import workdir as workdir_lib
from tests import devices
from tests.long import long

ID = rqvae.Config(6, (8,), 8, 2, 4)

NET = semantic_id_t5.Config(
  t5.Config(width=16, layers=1, decoder_layers=1, heads=2, head_dim=8, ffn=16, dropout=0.0),
  levels=3,
  size=4,
  item=6,
  code=8,
)


@functools.cache
def parts(items=9):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(items, 6)), jnp.float32)
  ids = rqvae.init_codebooks(ID, rqvae.init(ID, jax.random.key(0)), x, jax.random.key(1))
  table = semantic_ids.padded_table(rqvae.assign_codes(ID, ids, x))[0]
  rec = jax.jit(semantic_id_t5.init, static_argnums=0)(NET, jax.random.key(2))
  rng = np.random.default_rng(1)
  some = [(jnp.asarray(rng.integers(0, items + 1, (4, 3))), jnp.asarray([3, 5, 3, 0]),
           jnp.zeros((4, 1), jnp.int32))]
  return x, ids, table, rec, some


@functools.cache
def program(side, weights):
  tx = optax.sgd(1e-2)
  return tx, training.make_epoch(side, NET, weights, ID, tx, lambda key: jnp.arange(2),
                                 lambda data, at: data)


def epoch(side, weights, state, some, x, number=0):
  tx, run = program(side, weights)
  state = {'params': state, 'opt': {side: tx.init(state[side])}}
  new, means = run(state, jax.random.key(0), some, x, jnp.zeros((1, 1)), jnp.int32(number))
  return new['params'], means


class Stopped(Exception):
  pass


class SidesTest(absltest.TestCase):

  def test_only_one_side_moves(self):
    x, ids, table, rec, some = parts()
    state = {'rec': rec, 'id': ids, 'table': table}
    for side, still in (('rec', 'id'), ('id', 'rec')):
      new, means = epoch(side, training.AlignmentWeights(0.1, 0.1), state, some, x)
      same = jax.tree.map(lambda a, b: bool((a == b).all()), new[still], state[still])
      self.assertTrue(all(jax.tree.leaves(same)))
      moved = jax.tree.map(lambda a, b: bool((a != b).any()), new[side], state[side])
      self.assertTrue(any(jax.tree.leaves(moved)))
      self.assertEqual(int(means['bad']), -1)
    self.assertEqual(new['table'].shape, table.shape)  # made anew by the tokenizer's epoch
    self.assertIn('largest_group', means)

  @long
  def test_devices_that_do_not_divide_a_step_learn_what_one_does(self):
    x, ids, table, rec, some = parts()
    state, found = {'rec': rec, 'id': ids, 'table': table}, []
    for count in (1, 3):
      mesh = devices.mesh(data=count)
      with jax.set_mesh(mesh):
        found.append(
          [
            jax.device_get(epoch(side, training.AlignmentWeights(0.1, 0.1), state, some, x))
            for side in ('rec', 'id')
          ]
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)

  @long
  def test_warm_epochs_do_without_alignment(self):
    x, ids, table, rec, some = parts()
    state = {'rec': rec, 'id': ids, 'table': table}
    alone, _ = epoch('rec', training.AlignmentWeights(), state, some, x)
    for number, same in ((0, True), (2, False)):
      new, _ = epoch('rec', training.AlignmentWeights(1.0, 1.0, warm=2), state, some, x, number)
      gap = max(float(jnp.abs(a - b).max()) for a, b in zip(
          jax.tree.leaves(alone['rec']), jax.tree.leaves(new['rec'])))
      (self.assertLess if same else self.assertGreater)(gap, 1e-7)

  def test_loss_is_that_of_the_distinct_targets(self):
    x, ids, table, rec, some = parts()
    value, found = training.id_loss(NET, training.AlignmentWeights(), ID, x, None, ids,
                                    {'rec': rec, 'table': table}, some, None, jnp.float32(0))
    want, _ = rqvae.loss(ID, ids, x[jnp.array([2, 4])])
    self.assertAlmostEqual(float(value), float(want), places=5)
    self.assertAlmostEqual(float(found['vq']), float(want), places=5)
    self.assertEqual(
      joint_training.first_occurrences(some[0][1]).tolist(), [True, True, False, False]
    )

  def test_large_groups_are_refused(self):
    training.check_collisions({'largest_group': [4]}, 4)
    with self.assertRaisesRegex(DataError, '5 items share'):
      training.check_collisions({'largest_group': [2, 5]}, 4)


class TokenizerTest(absltest.TestCase):

  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path) / 'run'

  def fit(self, x, cfg=ID, letter=rqvae_training.NO_LETTER, partners=None, path=None, **changes):
    how = ConfigDict(dict(steps=60, batch=64, eval_every=20, save_every=20, revive=True, lr=3e-3,
                          warmup=0, schedule='constant', decay=0.0, clip=1.0, beta2=0.999))
    how.update(changes)
    with workdir_lib.open_work(path or self.folder(), {}, sharding.make_mesh({'data': -1})) as work:
      work.current = 'tokenizer'
      return (*rqvae_training.fit(work, cfg, how, x, 0, letter, partners), work.metrics())

  @long
  def test_reconstruction_gets_better(self):
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    params, kept, rows = self.fit(x)
    self.assertLess(rows[-1]['loss'], rows[0]['loss'])
    self.assertEqual(kept['collision_rate'], min(r['collision_rate'] for r in rows))
    found = semantic_ids.codebook_stats(rqvae.assign_codes(ID, params, x), ID.size)
    self.assertEqual(found['collision_rate'], kept['collision_rate'])

  @long
  def test_a_run_stopped_at_any_look_ends_where_an_uninterrupted_one_ends(self):
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    more = dict(
      steps=110,
      save_every=40,
      letter=rqvae_training.LetterWeights(0.1, 1e-3),
      partners=np.tile(x, (1, 2))[:, :8],
    )
    straight, kept, rows = self.fit(x, **more)
    self.assertEqual([r['step'] for r in rows], [20, 40, 60, 80, 100, 110])
    for stop, back in ((1, 0), (3, 40), (5, 80), (6, 80)):
      path, looks, looked = self.folder(), [], rqvae_training.record_codes
      def breaks(*given, looks=looks, stop=stop, looked=looked):
        looks.append(given)
        if len(looks) == stop:
          raise Stopped
        return looked(*given)
      with self.assertRaises(Stopped), mock.patch.object(rqvae_training, 'record_codes', breaks):
        self.fit(x, path=path, **more)
      again, found, seen = self.fit(x, path=path, **more)
      if back:
        self.assertIn(f'going on from step {back}', (path / 'run.log').read_text())
      jax.tree.map(np.testing.assert_array_equal, again, straight)  # bit for bit
      self.assertEqual((found, seen), (kept, rows))
    with mock.patch.object(rqvae_training, '_steps', side_effect=Stopped):  # nothing is left to do
      again, found, _ = self.fit(x, path=path, **more)
    jax.tree.map(np.testing.assert_array_equal, again, straight)

  @long
  def test_what_was_best_before_a_kill_stays_so_against_an_equal_after_it(self):
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    path, looks = self.folder(), []
    def alike(*given):
      looks.append(given)
      if len(looks) == 3:
        raise Stopped
      return {'collision_rate': 0.1, 'usage': []}  # no float32 is equal to it
    with mock.patch.object(semantic_ids, 'codebook_stats', alike):
      with self.assertRaises(Stopped):
        self.fit(x, path=path)
      _, kept, rows = self.fit(x, path=path)
    self.assertEqual(kept, {'step': 20, 'collision_rate': 0.1})
    self.assertLen(rows, 3)

  @long
  def test_sigterm_saves_the_look_and_leaves(self):
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    straight, kept, rows = self.fit(x)
    path = self.folder()
    with (
      mock.patch.object(fault_tolerance, 'asked', side_effect=[True]),
      self.assertRaises(Preempted),
    ):
      self.fit(x, path=path, save_every=1000)
    self.assertTrue((path / 'checkpoints' / 'tokenizer' / '20').is_dir())
    again, found, seen = self.fit(x, path=path, save_every=1000)
    jax.tree.map(np.testing.assert_array_equal, again, straight)
    self.assertEqual((found, seen), (kept, rows))

  @long
  def test_every_look_and_every_step_draws_anew(self):
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    keys, steps = [], rqvae_training._steps
    def spied(*given):
      keys.append(jax.random.key_data(given[-1]).tolist())
      return steps(*given)
    with mock.patch.object(rqvae_training, '_steps', spied):
      self.fit(x, steps=100)
    self.assertLen(set(map(tuple, keys)), 5)
    tx, params = optax.sgd(0.0), rqvae.init(ID, jax.random.key(0))  # nothing is learned
    one, two = (
      float(
        rqvae_training._steps(
          ID,
          tx,
          count,
          8,
          rqvae_training.NO_LETTER,
          params,
          tx.init(params),
          x,
          x[:, :0],
          None,
          jax.random.key(1),
        )[2]
      )
      for count in (1, 2)
    )
    self.assertGreater(abs(2 * two - one - one), 1e-4)  # the second step reads other rows

  def test_cadences_below_one_are_refused(self):
    x = np.zeros((30, 6), np.float32)
    for changes in (dict(eval_every=0), dict(save_every=0)):
      with self.assertRaisesRegex(ConfigError, 'must be 1 or more'):
        self.fit(x, **changes)

  @long
  def test_letter_needs_partners_of_the_codes_width(self):
    x = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    with self.assertRaisesRegex(ConfigError, 'width 8'):
      self.fit(x, letter=rqvae_training.LetterWeights(0.1), partners=x)
    partners = np.random.default_rng(1).normal(size=(30, 8)).astype(np.float32)
    _, _, rows = self.fit(x, letter=rqvae_training.LetterWeights(0.1, 1e-3), partners=partners)
    self.assertTrue(np.isfinite(rows[-1]['loss']))

  def test_dead_codes_start_anew_from_the_worst_items(self):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 6)), jnp.float32)
    params = rqvae.init(ID, jax.random.key(0))
    far = params['codebooks'].at[0, 1:].set(1e3)
    params = {**params, 'codebooks': far}
    tx = optax.adam(1e-3)
    grads = jax.tree.map(jnp.ones_like, params)
    _, opt = tx.update(grads, tx.init(params), params)
    new, fresh = rqvae_training.reset_dead_codes(ID, params, opt, x)
    before = np.unique(rqvae.assign_codes(ID, params, x)[:, 0])
    after = np.unique(rqvae.assign_codes(ID, new, x)[:, 0])
    self.assertLen(before, 1)
    self.assertGreater(len(after), 2)
    self.assertEqual(float(jnp.abs(fresh[0].mu['codebooks'][0, 1:]).max()), 0)
    self.assertGreater(float(jnp.abs(fresh[0].mu['codebooks'][0, 0]).min()), 0)


if __name__ == '__main__':
  absltest.main()
