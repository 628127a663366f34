"""The loop over epochs: which epoch is kept, when it ends, and that a kill changes nothing."""
import pathlib
import types

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.training import epoch_loop
from recjax.training import workdir as workdir_lib
from tests import devices
from tests.long import long_but


class Stopped(Exception):
  pass


class EpochsTest(parameterized.TestCase):

  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path) / 'run'

  def fit(self, scores, path=None, stop=0, **changes):
    """Trains a number that each epoch adds one to. scores: of each epoch and seed, as validation
    gives them. stop: the epoch in which validation breaks. -> best params, scores, epochs, epochs
    run, rows"""
    cfg = types.SimpleNamespace(**{**dict(epochs=len(scores), patience=2, save_every=2), **changes})
    seeds, run = len(scores[0]), []

    def epoch(state, number):
      run.append(int(number))
      return ({'params': {'w': state['params']['w'] + 1}, 'opt': state['opt']},
              {'loss': jnp.ones(seeds)})

    def validate(params):
      if len(run) and run[-1] + 1 == stop:
        raise Stopped
      self.assertEqual(np.asarray(params['w']).tolist(), [run[-1] + 1] * seeds)
      return scores[run[-1]]
    with workdir_lib.open_work(path or self.folder(), {}, devices.mesh(data=2)) as work:
      work.current = 'train'
      best, value, at = epoch_loop.fit_epochs(
          lambda: {'params': {'w': jnp.zeros(seeds)}, 'opt': jnp.zeros(seeds)}, epoch, validate,
          cfg=cfg, work=work)
      rows = [{k: v for k, v in r.items() if not k.startswith(('seconds', 'with_'))}
              for r in work.metrics()]
    return np.asarray(best['w']).tolist(), value.tolist(), at.tolist(), run, rows

  def test_the_first_of_equal_epochs_is_kept(self):
    tenth = float(np.float32(.1))
    best, score, at, _, _ = self.fit([[.1], [.05], [.1]], patience=9)  # .1 is no float32
    self.assertEqual((best, score, at), ([1], [tenth], [1]))

  def test_patience_counts_epochs_without_a_better_one(self):
    for patience, ran in ((1, 2), (2, 3), (3, 7)):
      best, _, at, run, _ = self.fit([[.5], [.4], [.5], [.6], [.6], [.5], [.1], [.9]],
                                     patience=patience)
      self.assertLen(run, ran)
      self.assertEqual((best, at), ([1 if patience < 3 else 4],) * 2)

  def test_every_seed_keeps_its_own_and_the_last_to_get_better_ends_training(self):
    best, score, at, run, _ = self.fit([[.5, .1], [.4, .2], [.6, .3], [.5, .4], [.5, .4], [.5, .4],
                                        [.9, .9]])
    self.assertEqual((best, at), ([3, 4],) * 2)
    np.testing.assert_allclose(score, [.6, .4])
    self.assertLen(run, 6)

  def test_a_refit_takes_each_seed_at_its_epoch_and_goes_by_another_name(self):
    def epoch(state, number):
      del number
      return ({'params': {'w': state['params']['w'] + 1}, 'opt': state['opt']},
              {'loss': jnp.ones(3)})
    cfg = types.SimpleNamespace(epochs=50, patience=2, save_every=2)
    init = lambda: {'params': {'w': jnp.zeros(3)}, 'opt': jnp.zeros(3)}  # noqa: E731
    with workdir_lib.open_work(self.folder(), {}, devices.mesh(data=2)) as work:
      work.current = 'train'
      work.record(1, {'loss': 0.5})  # of the training before
      best, _, at = epoch_loop.fit_epochs(init, epoch, cfg=cfg, work=work,
                                          stop_at=np.array([5, 1, 3]))
      self.assertEqual((np.asarray(best['w']).tolist(), at.tolist()), ([5, 1, 3],) * 2)
      self.assertEqual([(r['stage'], r['step']) for r in work.metrics()],
                       [('train', 1), *(('train.refit', e) for e in range(1, 6))])
      self.assertNotIn('valid_0', work.metrics()[-1])
      self.assertTrue((work.path / 'checkpoints' / 'train.refit').is_dir())
      work.begin('train', work.path / 'stages' / 'partial', 'another')
      self.assertEqual(work.metrics(), [])
      self.assertFalse((work.path / 'checkpoints' / 'train.refit').exists())

  def test_an_epoch_that_is_not_judged_is_never_the_best(self):
    best, _, at, run, _ = self.fit([[np.nan], [.2], [np.nan], [.1], [.3]])
    self.assertEqual((best, at), ([2], [2]))
    self.assertLen(run, 4)

  @parameterized.product(patience=(2, 3), stop=(1, 2, 4, 5))
  @long_but(2)
  def test_a_run_stopped_anywhere_ends_where_an_uninterrupted_one_ends(self, patience, stop):
    scores = [[.1, .5], [.1, .5], [.3, .2], [.3, .1], [.2, .5], [.4, .5], [.1, .1], [.1, .1]]
    straight, path = self.fit(scores, patience=patience), self.folder()
    with self.assertRaises(Stopped):
      self.fit(scores, path, stop, patience=patience)
    again = self.fit(scores, path, patience=patience)
    self.assertEqual(again[3], list(range((stop - 1) // 2 * 2, len(straight[3]))))
    self.assertEqual([*again[:3], again[4]], [*straight[:3], straight[4]])
    once_more = self.fit(scores, path, patience=patience)  # nothing is left to do
    self.assertEqual(once_more[:4], (*straight[:3], []))


if __name__ == '__main__':
  absltest.main()
