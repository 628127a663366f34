"""`recjax sweep`: grids, the choice by validation, real runs that fail, go on and are kept."""
import csv
import io
import json
import pathlib
import subprocess
import sys

import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from recjax import sweep
from recjax.errors import ConfigError, WorkdirError
from recjax.evaluation import metrics
from recjax.evaluation import results as results_lib
from recjax.run_files import read_json
from tests.long import long

ROOT = pathlib.Path(__file__).parents[1]


class GridTest(parameterized.TestCase):

  def test_every_combination_in_order(self):
    self.assertEqual(sweep.grid(['optim.lr=1e-3, 3e-4', 'model.width=64,64,32']), [
        {'optim.lr': '1e-3', 'model.width': '64'}, {'optim.lr': '1e-3', 'model.width': '32'},
        {'optim.lr': '3e-4', 'model.width': '64'}, {'optim.lr': '3e-4', 'model.width': '32'}])
    self.assertEqual(sweep.grid([]), [{}])

  @parameterized.parameters(
      (['optim.lr'], 'write --set'), (['=3'], 'write --set'), (['a='], 'write --set'),
      (['a=1', 'a=2'], 'all its values in one'), (['seed=1,2'], 'counted by --seeds'))
  def test_mistakes_are_said(self, settings, error):
    with self.assertRaisesRegex(ConfigError, error):
      sweep.grid(settings)

  def test_folders_take_any_value(self):
    self.assertEqual(sweep.folder_name({'llm.weights': '/a b/c', 'n': '1'}, 3),
                     'llm.weights=-a-b-c_n=1/seed=3')
    self.assertEqual(sweep.folder_name({}, 0), 'preset/seed=0')


class TableTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.room = pathlib.Path(self.create_tempdir().full_path)

  def made(self, name, cfg, ranks, lines):
    """A finished run as recjax.main leaves it, its metrics.jsonl being `lines`."""
    folder = self.room / name
    folder.mkdir(parents=True)
    users = [f'u{i}' for i in range(len(ranks))]
    results_lib.write_ranks(folder / 'ranks.parquet', users, {'sasrec': np.int32(ranks)})
    rows = {'sasrec': {m: {'value': float(v.mean())} for m, v in
                       metrics.per_case(np.int32(ranks)).items()}}
    for file, value in (('results.json', {'protocol': 'p', 'data_fingerprint': 'd', 'rows': rows}),
                        ('config.json', {'config': cfg.to_dict()})):
      (folder / file).write_text(json.dumps(value))
    (folder / 'report.html').write_text('')
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return folder

  def sweep_of(self, method, lines):
    """Two settings, two seeds. lines: {(place, seed): lines of metrics.jsonl} -> table"""
    points = sweep.grid(['x=1,2'])
    cfgs = {(p, s): ConfigDict({'method': method, 'x': p, 'seed': s}) for p in (0, 1)
            for s in (0, 1)}
    ranks = {0: [0, 30, 30, 30], 1: [0, 0, 30, 30]}  # the second setting is better on test
    runs = {(p, s): self.made(f'{p}-{s}', cfg, ranks[p], lines[p, s])
            for (p, s), cfg in cfgs.items()}
    return sweep.table(points, runs, cfgs)

  def test_validation_chooses_and_test_does_not(self):
    rows = self.sweep_of('sequential', {
        (p, s): [{'stage': 'train', 'step': 1, 'valid_0': .2 - .1 * p},
                 {'stage': 'train', 'step': 2, 'valid_0': .3 - .1 * p + .02 * s},
                 {'stage': 'other', 'step': 2, 'valid_0': 9.}] for p in (0, 1) for s in (0, 1)})
    self.assertEqual([r['best'] for r in rows], [True, False])
    self.assertAlmostEqual(rows[0]['validation']['mean'], .31)
    self.assertAlmostEqual(rows[0]['validation']['sd'], .02 / 2**.5)
    self.assertEqual([r['test']['HR@10']['value'] for r in rows], [.25, .5])
    self.assertEqual(rows[0]['test']['HR@10']['n'], 4)
    self.assertIn('best by validation: x=1', sweep.closing_table(rows))

  def test_the_lowest_loss_is_the_best(self):
    rows = self.sweep_of('bigrec', {
        (p, s): [{'stage': 'tune', 'step': n, 'valid_loss': 3 - p + n % 2} for n in range(3)]
        for p in (0, 1) for s in (0, 1)})
    self.assertEqual([r['best'] for r in rows], [False, True])
    self.assertEqual(rows[1]['validation'], {'metric': 'loss', 'mean': 2., 'sd': 0.,
                                             'more_is_better': False})

  @parameterized.parameters(('betag', 'holds nothing out'), ('reclm', 'does not tell'))
  def test_without_a_difference_none_is_called_best(self, method, said):
    rows = self.sweep_of(method, {(p, s): [{'stage': 'tune', 'step': 1, 'valid_loss': 1.}]
                                  for p in (0, 1) for s in (0, 1)})
    self.assertFalse(any(r['best'] for r in rows))
    self.assertIn(said, sweep.closing_table(rows))

  def test_a_run_of_another_config_is_not_finished(self):
    cfg = ConfigDict({'method': 'sequential', 'x': (1, 2)})
    folder = self.made('a', cfg, [0], [])
    self.assertTrue(sweep.finished(folder, cfg))
    cfg.x = (1, 3)
    self.assertFalse(sweep.finished(folder, cfg))
    with self.assertRaisesRegex(WorkdirError, 'the folder of a run'):
      sweep.check_folder(folder)


class ValidationTest(absltest.TestCase):

  def test_the_best_of_training_counts_not_the_last(self):
    room = pathlib.Path(self.create_tempdir().full_path)
    def told(method, *rows, policy='none'):
      (room / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
      return sweep.validation(room, ConfigDict({'method': method, 'policy': {'loss': policy}}))
    losses = [{'stage': 'tune', 'step': i, 'valid_loss': v} for i, v in enumerate((3., 1., 2.))]
    self.assertEqual(told('bigrec', *losses, {'stage': 'other', 'step': 1, 'valid_loss': 0.}),
                     ('loss', 1., False))
    gains = [{'stage': 'train', 'step': i, 'valid_0': a, 'valid_1': b}
             for i, (a, b) in enumerate(((.1, .3), (.4, .2)))]
    tuned = [{'stage': 'policy', 'step': 2, 'valid_0': .6, 'valid_1': .2}]
    self.assertEqual(told('etegrec', *gains, *tuned, policy='grpo'), ('NDCG@10', .4, True))
    name, value, more = told('etegrec', *gains, *tuned)
    self.assertEqual((name, more), ('NDCG@10', True))
    self.assertAlmostEqual(value, .35)


class RunTest(absltest.TestCase):

  def command(self, out, values):
    return subprocess.run(
        [sys.executable, '-m', 'recjax', 'sweep', '--config=configs/sequential_beauty.py',
         '--set', 'train.epochs=1', '--set', f'model.norm={values}', f'--out={out}'],
        capture_output=True, text=True, cwd=ROOT)

  @long
  def test_failed_runs_are_said_and_finished_ones_kept(self):
    out = pathlib.Path(self.create_tempdir().full_path)
    done = self.command(out, 'nosuch,pre')
    self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
    self.assertRegex(done.stdout, r'failed after \d+ s: exit code 2: error: .*nosuch')
    again = self.command(out, 'pre')
    self.assertEqual(again.returncode, 0, again.stdout + again.stderr)
    self.assertIn('1 of them done before', again.stdout)
    row = read_json(out / 'sweep.json')['rows'][0]
    self.assertEqual(row['settings'], {'train.epochs': '1', 'model.norm': 'pre'})
    run = out / 'train.epochs=1_model.norm=pre/seed=0'
    results = read_json(run / 'results.json')
    self.assertEqual({m: row['test']['HR@10'][m] for m in ('value', 'n')},
                     {m: results['rows']['sasrec']['HR@10'][m] for m in ('value', 'n')})
    lines = list(csv.DictReader(io.StringIO((out / 'sweep.csv').read_text())))
    self.assertEqual(float(lines[0]['HR@10']), row['test']['HR@10']['value'])
    self.assertEqual(float(lines[0]['validation']), row['validation']['mean'])
    self.assertIn('<table', (out / 'sweep.html').read_text())


if __name__ == '__main__':
  absltest.main()
