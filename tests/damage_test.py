"""Damaged files of any method's run, against every verb and the run: right, or a sentence."""
import atexit
import contextlib
import functools
import io
import pathlib
import random
import shutil
import tempfile

from absl.testing import parameterized

from configs import tiger_beauty
from recjax import errors, experiment
from recjax.serving import served_model
from tests import hostile_test
from tests.hostile_test import DAMAGE, EVERYTHING, ended, flipped, small, untrained, verb
from tests.long import long
from tests.methods import betag_test, etegrec_test

KINDS = {**DAMAGE, 'flipped': flipped}
OF_NO_USE = ('checkpoints', 'tb')  # what only training itself reads; a stage that is done does not


@functools.cache
def finished(method):
  """A folder with a small data set and a finished run of a method. -> (path, config)"""
  folder = pathlib.Path(tempfile.mkdtemp())
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  if method == 'betag':
    cfg = betag_test.toy_config(betag_test.write_toy(folder / 'data'))
    cfg.tiny.epochs, cfg.train.epochs, cfg.mesh.data = 2.0, 1, -1
    cfg.decode.batch = 8
  else:
    (folder / 'data').mkdir()
    data = etegrec_test.shop_folder(folder / 'data')
    cfg = (small(data) if method == 'sequential' else
           etegrec_test.small(tiger_beauty.get_config(), data))
    cfg.train.epochs = 1
  train(cfg, folder / 'run')
  return folder, cfg


def train(cfg, folder):
  """What `recjax.main` does with a config, as `ended` gives it; SASRec stays untrained."""
  def call():
    with hostile_test.mock.patch.object(hostile_test.sequential, 'fit', untrained):
      experiment.train(cfg, folder)
  return ended(lambda: errors.guard(call))


class AnyMethodTest(parameterized.TestCase):

  def verbs(self, method, folder, run):
    """-> {name: call}, each as `ended` gives it"""
    def load():
      with contextlib.closing(io.StringIO()):
        for model in served_model.open_models([run]).values():
          model.close(1)
    kind = {'sequential': 'npz', 'tiger': 'index', 'betag': 'peft'}[method]

    def convert():
      out = folder / 'out'
      shutil.rmtree(out, ignore_errors=True)
      out.unlink(missing_ok=True)
      return verb('convert', run, f'--to={kind}', f'--out={out}')
    user = 'u0' if method == 'betag' else 'u1'
    return {'recommend': lambda: verb('recommend', run, f'--user={user}', '--k=3'),
            'serve': lambda: ended(lambda: errors.guard(load)),
            'compare': lambda: verb('compare', run, folder / 'run'), 'convert': convert}

  def damaged(self, method, folder, run, rng, count, calls, judge):
    """Draws damages of files of a run and judges what each call says of them. -> how many were
    refused"""
    paths = [p.relative_to(folder / 'run') for p in sorted((folder / 'run').rglob('*'))
             if p.is_file() and p.relative_to(folder / 'run').parts[0] not in OF_NO_USE]
    jobs = [(path, kind, name) for path in paths for kind in KINDS for name in calls]
    refused = 0
    for path, kind, name in jobs if EVERYTHING else rng.sample(jobs, count):
      shutil.rmtree(run, ignore_errors=True)
      shutil.copytree(folder / 'run', run)
      data = (run / path).read_bytes()
      if not data:
        continue
      (run / path).write_bytes(KINDS[kind](data, rng))
      with self.subTest(method=method, file=str(path), damage=kind, verb=name):
        code, out, err = calls[name]()
        refused += code == 2
        if code:
          self.assertEqual(code, 2, err)
          self.assertRegex(err, r'\Aerror: .+\n\Z')
          self.assertIn(path.name, err)
        else:
          judge(name, out)
    return refused

  @parameterized.parameters('tiger', 'betag')
  @long
  def test_every_verb_answers_rightly_or_names_the_file(self, method):
    folder, _ = finished(method)
    run = folder / 'damaged'
    calls = self.verbs(method, folder, run)
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folder / 'run', run)
    good = {}
    for name, call in calls.items():
      code, good[name], err = call()
      self.assertEqual((code, err), (0, ''), name)
    self.assertGreater(self.damaged(
        method, folder, run, random.Random(0), 40, calls,
        lambda name, out: self.assertEqual(out, good[name])), 3)

  @parameterized.parameters('sequential', 'tiger', 'betag')
  @long
  def test_the_run_itself_ends_with_the_same_results_or_names_the_file(self, method):
    folder, cfg = finished(method)
    run, good = folder / 'damaged', (folder / 'run' / 'results.json').read_bytes()

    def same(name, out):
      self.assertEqual((run / 'results.json').read_bytes(), good)
    self.assertGreater(self.damaged(method, folder, run, random.Random(1), 12,
                                    {'main': lambda: train(cfg, run)}, same), 1)


if __name__ == '__main__':
  hostile_test.absltest.main()
