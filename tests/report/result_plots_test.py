"""Pictures of a table and their numbers as files."""
import csv
import json
import pathlib
from unittest import mock
from xml.etree import ElementTree

from absl.testing import absltest

from recjax.errors import WorkdirError
from recjax.report import result_plots, run_section


def cells(value):
  return {f'{m}@{k}': {'value': value * k / 10, 'low': value * k / 11, 'high': value * k / 9,
                       'n': 50} for m in ('HR', 'NDCG') for k in (1, 5, 10)} | {
              'NDCG@10:tail': {'value': 9., 'low': 9., 'high': 9., 'n': 3}}


RESULTS = {'rows': {'ours': cells(.5), 'ease': cells(.7), 'popularity': cells(.1)},
           'classical': {'counted_seconds': {'ease': 2.5}}}


class PicturesTest(absltest.TestCase):

  def read(self, folder, name):
    with open(pathlib.Path(folder) / name, newline='') as file:
      return list(csv.reader(file))

  def test_files_hold_every_row_and_number(self):
    folder = self.create_tempdir().full_path
    made = result_plots.pictures(RESULTS, ['ours'], {'ease': 'EASE'}, {
        'seconds': {'ours': 60., 'ease': 2.5}, 'parameters': {'ours': 3e6, 'popularity': 1.}})
    result_plots.save(made, f'{folder}/new/plots')
    folder = pathlib.Path(folder) / 'new' / 'plots'
    self.assertEqual(sorted(p.name for p in folder.iterdir()), sorted(
        f'{name}.{kind}' for name in ('rows', 'by_k', 'cost', 'parameters')
        for kind in ('csv', 'svg')))
    self.assertEqual(self.read(folder, 'rows.csv'), [
        ['row', 'value', 'low', 'high', 'n'],
        *([row, str(v), str(v * 10 / 11), str(v * 10 / 9), '50'] for row, v in (
            ('ease', .7), ('ours', .5), ('popularity', .1)))])
    by_k = self.read(folder, 'by_k.csv')
    self.assertLen(by_k, 1 + 3 * 3)
    self.assertEqual(by_k[1][:3], ['ease', '1', str(.7 / 10)])
    self.assertEqual([row[:2] for row in self.read(folder, 'cost.csv')[1:]],
                     [['ours', '60.0'], ['ease', '2.5']])
    self.assertEqual([row[:2] for row in self.read(folder, 'parameters.csv')],
                     [['row', 'parameters'], ['ours', '3000000.0'], ['popularity', '1.0']])
    for path in folder.glob('*.svg'):
      words = ''.join(ElementTree.parse(path).getroot().itertext())
      self.assertIn({'rows': 'EASE', 'parameters': 'popularity'}.get(path.stem, 'ease'), words)

  def test_all_rows_stand_in_the_picture_of_the_table_and_few_in_that_of_k(self):
    rows = {f'row {i}': cells(.1 + i / 100) for i in range(17)}
    table, by_k = result_plots.pictures({'rows': rows}, ['row 0'], {}, {})
    words = ''.join(ElementTree.fromstring(table.svg).itertext())
    self.assertTrue(all(row in words for row in rows))
    words = ''.join(ElementTree.fromstring(by_k.svg).itertext())
    self.assertEqual(sum(row in words.split('\u2009') for row in rows), 6)
    self.assertIn('row 0', words)
    self.assertIn('the best of 17 rows', by_k.caption)
    self.assertLen(by_k.rows, 17 * 3)

  def test_a_run_keeps_them_beside_its_report(self):
    run = pathlib.Path(self.create_tempdir().full_path)
    for number, (stage, seconds) in enumerate((('train', 40.), ('evaluate', 9.))):
      (run / 'stages' / f'{number}-{stage}').mkdir(parents=True)
      (run / 'stages' / f'{number}-{stage}' / 'DONE.json').write_text(
          json.dumps({'stage': stage, 'seconds': seconds, 'counts': {'parameters': '1,234'}}))
    self.assertEqual(run_section.pictures_section(run), [])
    (run / 'results.json').write_text(json.dumps(RESULTS))
    section, = run_section.pictures_section(run)
    self.assertIn('against seconds', section.body)
    self.assertEqual(self.read(run / 'plots', 'cost.csv')[1][:2], ['ours', '40.0'])
    self.assertEqual(result_plots.costs_of(run, RESULTS)['parameters'], {'ours': 1234.})

  def test_a_folder_that_cannot_be_made(self):
    with mock.patch.object(pathlib.Path, 'mkdir', side_effect=PermissionError(13, 'no')), \
        self.assertRaisesRegex(WorkdirError, 'cannot be made'):
      result_plots.save([], '/x')


if __name__ == '__main__':
  absltest.main()
