"""Batch recommendation: both formats, kills at any byte, and rows that are wrong."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from recjax import batch_recommend
from recjax.data import dataset
from recjax.errors import ConfigError, DataError, WorkdirError
from recjax.training import job_parts
from tests.long import long, long_but

ITEMS = [f'i{n}' for n in range(40)]


def shop():
  titles = [f'title {n}' if n else '' for n in range(40)]
  goods = dataset.Catalog(tuple(ITEMS), {'title': titles})
  data = dataset.Interactions(('u',), np.array([1, 2, 3], np.int32), np.array([0, 3], np.int64))
  return dataset.make_dataset('x', goods, data)


def ask(histories, k):
  """Items after the last one; scores depend on who else is in the block, as in floating point."""
  first = [ITEMS.index(h[-1]) for h in histories]
  scores = np.array([[1 / (1 + r) + len(histories) * 1e-4 for r in range(k)] for _ in first])
  return [[ITEMS[(f + 1 + r) % 40] for r in range(k)] for f in first], scores


def write_users(path, count):
  path.write_text(''.join(json.dumps({'user_id': f'u{n}', 'items': [ITEMS[n % 40]], 'note': n})
                          + '\n' for n in range(count)))


class BatchTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.source = self.folder / 'in.jsonl'

  def batch(self, name, k=3, ask=ask, **kw):
    return batch_recommend.run(ask, shop(), self.source, self.folder / name, k, log=lambda _: None,
                           **kw)

  def test_lines_hold_the_row_and_items_titles_scores(self):
    write_users(self.source, 3)
    self.assertEqual(self.batch('out.jsonl', 2), 3)
    rows = [json.loads(line) for line in (self.folder / 'out.jsonl').read_text().splitlines()]
    self.assertEqual(rows[1], {'user_id': 'u1', 'items': ['i1'], 'note': 1, 'recommended': [
        {'item': 'i2', 'title': 'title 2', 'score': 1.0003},
        {'item': 'i3', 'title': 'title 3', 'score': .5003}]})
    self.assertEqual(os.listdir(self.folder), ['in.jsonl', 'out.jsonl'])

  def test_parquet_holds_a_row_an_answer_and_can_be_read_in(self):
    import pyarrow as pa
    import pyarrow.parquet as pq
    write_users(self.source, 3)
    self.batch('out.parquet', 2)
    table = pq.read_table(self.folder / 'out.parquet')
    self.assertEqual(table.column_names, ['user', 'rank', 'item', 'title', 'score'])
    self.assertEqual(table.slice(2, 1).to_pylist()[0] | {'score': 0}, {
        'user': 'u1', 'rank': 1, 'item': 'i2', 'title': 'title 2', 'score': 0})
    rows = [json.loads(line) for line in self.source.read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), self.folder / 'in.parquet')
    self.batch('one.jsonl', 2)
    self.source = self.folder / 'in.parquet'
    self.batch('two.jsonl', 2)
    self.assertEqual((self.folder / 'one.jsonl').read_text(),
                     (self.folder / 'two.jsonl').read_text())

  @parameterized.product(ending=('jsonl', 'parquet'), share=(0, .1, .5, .77, .999, 1))
  @long_but(1, 9)
  def test_whatever_a_kill_left_the_end_has_equal_bytes(self, ending, share):
    write_users(self.source, 600)
    self.batch(f'whole.{ending}')
    calls = []
    def dying(histories, k):
      calls.append(len(histories))
      if len(calls) == 3:
        raise KeyboardInterrupt
      return ask(histories, k)
    with self.assertRaises(KeyboardInterrupt):
      self.batch(f'out.{ending}', ask=dying)
    partial = self.folder / f'out.{ending}.partial'
    os.truncate(partial, int(partial.stat().st_size * share))
    left = self.batch(f'out.{ending}')
    self.assertIn(left, (88, 344, 600))
    if share == 1:
      self.assertEqual(left, 88)
    self.assertEqual((self.folder / f'out.{ending}').read_bytes(),
                     (self.folder / f'whole.{ending}').read_bytes())
    self.assertFalse(partial.exists())

  @long
  def test_kill_9_in_the_middle_and_again(self):
    write_users(self.source, 3000)
    self.batch('whole.parquet')
    code = ('import sys, time\nfrom tests import batch_recommend_test as t\n'
            'def slow(h, k):\n  time.sleep(.05)\n  return t.ask(h, k)\n'
            't.batch_recommend.run(slow, t.shop(), *sys.argv[1:], 3)')
    command = [sys.executable, '-c', code, str(self.source), str(self.folder / 'out.parquet')]
    partial = self.folder / 'out.parquet.partial'
    for _ in range(2):
      before = partial.stat().st_size if partial.exists() else 0
      run = subprocess.Popen(command, cwd=pathlib.Path(__file__).parents[1])
      while not partial.exists() or partial.stat().st_size <= max(before, 1000):
        self.assertIsNone(run.poll())
        time.sleep(.01)
      run.send_signal(signal.SIGKILL)
      run.wait()
    self.assertLess(self.batch('out.parquet'), 3000)
    self.assertEqual((self.folder / 'out.parquet').read_bytes(),
                     (self.folder / 'whole.parquet').read_bytes())

  def test_answers_to_another_request_are_not_mixed_in(self):
    write_users(self.source, 300)
    calls = []
    def dying(histories, k):
      calls.append(1)
      if len(calls) % 2 == 0:
        raise KeyboardInterrupt
      return ask(histories, k)
    with self.assertRaises(KeyboardInterrupt):
      self.batch('out.jsonl', ask=dying, model='first')
    for changed in (dict(k=4, model='first'), dict(model='second')):
      with self.assertRaisesRegex(WorkdirError, 'another request'):
        self.batch('out.jsonl', **changed)
    self.assertEqual(self.batch('out.jsonl', model='first'), 44)

  @parameterized.parameters(
      (b'{"user_id": "a", "items": ["nope"]}', "in.jsonl line 3: item 'nope' is not in"),
      (b'', 'in.jsonl line 3 is empty; remove it'),
      (b'{"user_id": "a", "items": ["i1"]', 'in.jsonl line 3, column .* not valid JSON'),
      (b'{"items": ["i1"]}', 'in.jsonl line 3: user_id is missing'),
      (b'{"user_id": "a"}', 'in.jsonl line 3: items must be a list'),
      (b'{"user_id": "a", "items": []}', 'in.jsonl line 3: items must be a list of one'),
      (b'{"user_id": "a", "items": [1.5]}', 'in.jsonl line 3: an item is 1.5'),
      (b'["i1"]', 'in.jsonl line 3: a JSON object is expected, found a list'),
      (b'{"user_id": "a", "items": ["\xff"]}', 'in.jsonl line 3, column .* not UTF-8'))
  def test_a_wrong_row_is_named_before_anything_is_answered(self, line, words):
    write_users(self.source, 2)
    with open(self.source, 'ab') as f:
      f.write(line + b'\n')
    with self.assertRaisesRegex(DataError, words):
      self.batch('out.jsonl')
    self.assertEqual(os.listdir(self.folder), ['in.jsonl'])

  def test_times_reach_a_recommender_that_reads_them_in_the_order_of_rows(self):
    told = []

    def timed(histories, k, times=()):
      told.append(times)
      return ask(histories, k)
    timed.timed = True
    more = {'times': [5], 'now': 0}, {}, {'times': [5], 'now': 9}, {'times': None}, {'times': [5]}
    self.source.write_text(''.join(json.dumps({'user_id': f'u{n}', 'items': [f'i{n}'], **row})
                                   + '\n' for n, row in enumerate(more)))
    with self.assertRaisesRegex(DataError, 'line 1: the time 0 comes behind 5'):
      self.batch('out.jsonl', ask=timed)  # now, of which 0 is one
    self.source.write_text(self.source.read_text().replace('"now": 0', '"now": 7'))
    self.batch('out.jsonl', ask=timed)
    self.assertEqual(told, [(), [[5, 7], [5, 9], [5, 5]]])
    rows = [json.loads(line) for line in (self.folder / 'out.jsonl').read_text().splitlines()]
    self.assertEqual([row['recommended'][0]['item'] for row in rows],
                     ['i1', 'i2', 'i3', 'i4', 'i5'])

  @parameterized.parameters(
      ('"times": 5', 'one for each of 2 items'), ('"times": [1]', 'one for each of 2 items'),
      ('"now": 5', 'one for each of 2 items'), ('"times": ["1", "2"]', "a time is '1'"),
      ('"times": [1, 2], "now": "x"', "a time is 'x'"), ('"times": [1, null]', 'a time is None'),
      ('"times": [true, 2]', 'a time is True'), ('"times": [1, 2.5]', 'a time is 2.5'),
      (f'"times": [1, {10 ** 30}]', f'a time is {10 ** 30}'),
      ('"times": [2, 1]', 'the time 1 comes behind 2'),
      ('"times": [2, 3], "now": 1', 'the time 1 comes behind 3'),
      ('"times": [1600000000000, 1600000000001]', 'looks like milliseconds since 1970'))
  def test_wrong_times_are_named_where_they_are_read(self, fields, words):
    self.source.write_text(f'{{"user_id": "a", "items": ["i1", "i2"], {fields}}}\n')
    timed = mock.Mock(timed=True)
    with self.assertRaisesRegex(DataError, f'in.jsonl line 1: .*{words}'):
      self.batch('out.jsonl', ask=timed)
    timed.assert_not_called()
    self.assertEqual(self.batch('out.jsonl'), 1)  # a column like any other

  def test_a_folder_without_a_run_is_named(self):
    done = subprocess.run([sys.executable, '-m', 'recjax', 'convert', self.folder, '--to=npz',
                           '--out=x.npz'], capture_output=True, text=True)
    self.assertEqual(done.returncode, 2, done.stderr)
    self.assertRegex(done.stderr, f'^error: {self.folder} holds no config.json')

  @long
  def test_a_reader_that_has_enough_ends_a_verb_quietly(self):
    for buffered in ('', '1'):
      child = subprocess.Popen(
          [sys.executable, '-m', 'recjax', 'doctor', 'sample:1:50'], stdout=subprocess.PIPE,
          stderr=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONUNBUFFERED': buffered})
      child.stdout.close()
      with child.stderr:
        said = child.stderr.read()
      self.assertEqual((child.wait(), said), (141, ''))

  def test_files_that_cannot_be_used_are_named(self):
    with self.assertRaisesRegex(DataError, 'in.jsonl does not exist'):
      self.batch('out.jsonl')
    with self.assertRaisesRegex(ConfigError, r'ends in .jsonl or .parquet'):
      self.batch('out.csv')
    write_users(self.source, 2)
    self.source = self.source.rename(self.folder / 'in.parquet')
    with self.assertRaisesRegex(DataError, 'in.parquet cannot be read as Parquet'):
      self.batch('out.jsonl')


class PartsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.source, self.said = self.folder / 'in.jsonl', []

  def part(self, text, name='out.jsonl', k=3, ask=ask, **kw):
    return batch_recommend.run(
      ask,
      shop(),
      self.source,
      self.folder / name,
      k,
      log=self.said.append,
      part=job_parts.parse(text),
      **kw,
    )

  def one(self, name):
    (self.folder / f'whole-{name}').unlink(missing_ok=True)
    batch_recommend.run(ask, shop(), self.source, self.folder / f'whole-{name}', 3,
                    log=lambda _: None)
    return (self.folder / f'whole-{name}').read_bytes()

  @parameterized.product(count=(0, 1, 256, 257, 1000), name=('out.jsonl', 'out.parquet'))
  def test_parts_in_any_order_have_the_bytes_of_one_process(self, count, name):
    write_users(self.source, count)
    answered = [self.part(f'{i}/3', name) for i in (2, 3, 1)]
    self.assertEqual(sum(answered), count)
    self.assertEqual((self.folder / name).read_bytes(), self.one(name))
    if count == 1000:
      self.assertEqual(answered, [256, 488, 256])
      first = next(line for line in self.said if 'to come' in line)
      self.assertIn('to come: 1, 3', first)
    self.assertEqual(sorted(os.listdir(self.folder / f'{name}.parts')),
                     ['merged.json', 'request.json'])

  def test_more_parts_than_blocks_and_the_answers_row_group_by_row_group(self):
    write_users(self.source, 300)
    for i in range(1, 6):
      self.part(f'{i}/5', 'out.parquet')
    self.assertEqual((self.folder / 'out.parquet').read_bytes(), self.one('out.parquet'))

  def test_a_part_after_the_merge_says_so_and_asks_nobody(self):
    write_users(self.source, 300)
    self.part('1/2')
    self.part('2/2')
    before = (self.folder / 'out.jsonl').stat()
    self.assertEqual(self.part('1/2', ask=None), 0)
    self.assertIn('merged from 2 parts before', self.said[-1])
    self.assertEqual((self.folder / 'out.jsonl').stat(), before)
    (self.folder / 'out.jsonl').write_text('another file took its place')
    with self.assertRaisesRegex(ConfigError, 'out.jsonl is there already'):
      self.part('1/2')
    self.assertEqual((self.folder / 'out.jsonl').read_text(), 'another file took its place')
    (self.folder / 'out.jsonl').unlink()
    self.assertEqual((self.part('1/2'), self.part('2/2')), (256, 44))
    self.assertEqual((self.folder / 'out.jsonl').read_bytes(), self.one('out.jsonl'))

  @parameterized.parameters(0, .3, .9, 1)
  def test_a_part_that_was_killed_goes_on(self, share):
    write_users(self.source, 1300)
    calls = []
    def dying(histories, k):
      calls.append(1)
      if len(calls) == 3:
        raise KeyboardInterrupt
      return ask(histories, k)
    with self.assertRaises(KeyboardInterrupt):
      self.part('2/2', ask=dying)
    partial = self.folder / 'out.jsonl.parts' / '2-of-2.partial'
    os.truncate(partial, int(partial.stat().st_size * share))
    self.part('1/2')
    self.assertFalse((self.folder / 'out.jsonl').exists())
    self.assertEqual(self.part('2/2'), {0: 532, .3: 532, .9: 276, 1: 20}[share])
    self.assertEqual((self.folder / 'out.jsonl').read_bytes(), self.one('out.jsonl'))

  def test_whatever_a_kill_leaves_of_the_merge_is_mended_by_any_part(self):
    write_users(self.source, 300)
    for name in (
      'write_answers',
      'write_json',
    ):  # before the answers stand there; before that is noted
      shutil.rmtree(self.folder / 'out.jsonl.parts', ignore_errors=True)
      (self.folder / 'out.jsonl').unlink(missing_ok=True)
      self.part('1/2')
      with mock.patch.object(batch_recommend, name, side_effect=KeyboardInterrupt), \
          self.assertRaises(KeyboardInterrupt):
        self.part('2/2')
      self.assertEqual(self.part('1/2'), 0)
      self.assertIn('merged in', self.said[-1])
      self.assertEqual((self.folder / 'out.jsonl').read_bytes(), self.one('out.jsonl'))

  @long
  def test_parts_that_finish_at_once_merge_once(self):
    write_users(self.source, 1100)
    code = ('import sys, time\nfrom tests import batch_recommend_test as t\n'
            'def gather(journals, target):\n'
            '  print("MERGES")\n  time.sleep(1)\n  return own(journals, target)\n'
            'own, t.batch_recommend.write_answers = t.batch_recommend.write_answers, gather\n'
            'open(sys.argv[3] + ".ready", "w").close()\n'
            'while len(list(t.pathlib.Path(sys.argv[1]).parent.glob("*.ready"))) < 4:\n'
            '  time.sleep(.01)\n'
            't.batch_recommend.run(t.ask, t.shop(), *sys.argv[1:3], 3, part=(int(sys.argv[4]), 4))')
    runs = [subprocess.Popen(
        [sys.executable, '-c', code, str(self.source), str(self.folder / 'out.jsonl'),
         str(self.folder / str(i)), str(i)], cwd=pathlib.Path(__file__).parents[1],
        stdout=subprocess.PIPE, text=True) for i in range(4)]
    said = [run.communicate()[0] for run in runs]
    self.assertEqual([run.returncode for run in runs], [0] * 4)
    self.assertEqual(''.join(said).count('MERGES'), 1)
    self.assertEqual((self.folder / 'out.jsonl').read_bytes(), self.one('out.jsonl'))

  def test_the_one_that_waited_for_a_merge_finds_it_done(self):
    write_users(self.source, 300)
    self.part('1/2')
    own = batch_recommend.hold_parts
    def later(folder, request):
      if (folder / '2-of-2.jsonl').exists() and not (folder / 'merged.json').exists():
        with mock.patch.object(batch_recommend, 'hold_parts', own):
          self.part('1/2')  # gets there first
      return own(folder, request)
    with mock.patch.object(batch_recommend, 'hold_parts', later):
      self.assertEqual(self.part('2/2'), 44)
    self.assertIn('merged by another', self.said[-1])
    self.assertEqual((self.folder / 'out.jsonl').read_bytes(), self.one('out.jsonl'))

  def test_parts_of_another_request_or_number_are_refused(self):
    write_users(self.source, 300)
    self.part('1/2', model='a')
    for text, words, kw in (('1/3', 'in 2 parts, not 3', dict(model='a')),
                            ('2/2', 'another request', dict(model='b')),
                            ('2/2', 'another request', dict(model='a', k=4))):
      with self.assertRaisesRegex(WorkdirError, words):
        self.part(text, **kw)
    write_users(self.source, 299)
    with self.assertRaisesRegex(WorkdirError, 'another request'):
      self.part('2/2', model='a')

  def test_a_part_that_runs_already_is_not_run_beside_itself(self):
    write_users(self.source, 300)
    def again(histories, k):
      with self.assertRaisesRegex(WorkdirError, 'another process'):
        self.part('1/2')
      return ask(histories, k)
    self.assertEqual(self.part('1/2', ask=again), 256)

  @parameterized.parameters('0/4', '5/4', 'a/b', '1', '1/0', '-1/4', '1/4/4', '1.0/4', ' 1/4')
  def test_what_is_no_part_is_refused(self, text):
    with self.assertRaisesRegex(ConfigError, 'with I from 1 to N'):
      job_parts.parse(text)


if __name__ == '__main__':
  absltest.main()
