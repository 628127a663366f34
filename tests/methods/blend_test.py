"""Blends as runs: files, ranks, kills, parts that move or change, lists, serving, bad input."""
import dataclasses
import functools
import json
import pathlib
import shutil
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from recjax import batch_recommend, cli, experiment, file_io, methods, recommend, run_files
from recjax.data import loading, splits
from recjax.errors import ConfigError, DataError, WorkdirError
from recjax.evaluation import classical, compare, results
from recjax.methods.blend import evaluate, parts
from recjax.serving import served_model
from recjax.split_rule import SplitRule
from tests import told
from tests.long import long

FEW = '--classical-minutes=0.00025'  # for chains and titles, and little else
CONFIG = f'{pathlib.Path(__file__).parents[2]}/configs/sequential_scientific.py'
DATA = 'sample:1:150'


@functools.cache
def room():
  """A folder with two runs on a small shop and a blend, for all tests of this process."""
  made = tempfile.TemporaryDirectory()
  for name, kind in (('sasrec', 'sasrec'), ('gru', 'gru4rec')):
    experiment.train(f'{CONFIG}:data={DATA},model={kind}', pathlib.Path(made.name) / name, {
        'train.epochs': 3, 'model.width': 16, 'model.hidden': 16, 'eval.classical': False})
  here = pathlib.Path(made.name)
  blend(here / 'sasrec', 'classical:text', '--weights=0.5,0.5', f'--out={here / "half"}')
  return made


def blend(*words):
  """`recjax blend`. words: of the command line."""
  args = cli.parser().parse_args(['blend', FEW, *map(str, words)])
  cli.blend.run(args)


class BlendTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.here = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 'runs'
    shutil.copytree(room().name, self.here)

  def blend(self, *words, out='mix'):
    blend(*(self.here / word if (self.here / str(word)).is_dir() else word for word in words),
          f'--out={self.here / out}')
    return json.loads((self.here / out / 'results.json').read_text())

  def ranks(self, name):
    return results.read_ranks(self.here / name / 'ranks.parquet')

  def test_a_blend_is_a_run(self):
    found = self.blend('sasrec', 'classical:id_text')
    told.check(found)
    rows = list(found['rows'])
    self.assertEqual(rows[:3], ['blend', 'sasrec', 'id_text'])
    self.assertContainsSubset(['popularity', 'random', 'markov_k', 'text'], rows)
    for name in ('report.html', 'ranks.parquet', 'predictions.parquet', 'config.json', 'run.log'):
      self.assertTrue((self.here / 'mix' / name).exists(), name)
    self.assertIn('blend>id_text', found['tests'])
    # chosen among all that was tried, on validation; both modes competed
    tried = json.loads(next((self.here / 'mix').glob('stages/*-choose/chosen.json')).read_text())
    self.assertLen(tried['tried'], 2 + 9 + 24)
    self.assertEqual(found['blend']['valid'], max(rule['valid'] for rule in tried['tried']))
    self.assertEqual(found['blend']['tried'], tried['tried'][:10])
    # the cases are those by which the part chose its own epoch
    valid = json.loads(next((self.here / 'sasrec').glob('stages/*-train/valid.json')).read_text())
    alone = next(r['valid'] for r in tried['tried'] if r['rule'].get('weights') == [1., 0.])
    self.assertAlmostEqual(alone, max(valid['NDCG@10']), 5)
    # what the part ranked in its own run, it ranks here
    users, own = self.ranks('sasrec')
    again, mixed = self.ranks('mix')
    self.assertEqual(users, again)
    np.testing.assert_array_equal(own['sasrec'], mixed['sasrec'])
    table = compare.compare([self.here / 'sasrec', self.here / 'mix'])
    self.assertIn('mix:blend', table['rows'])
    page = (self.here / 'mix' / 'report.html').read_text()
    self.assertIn('How it is mixed', page)
    log = (self.here / 'mix' / 'run.log').read_text()
    self.assertIn(f'{found["blend"]["told"]}, chosen', log)
    # the same command finds all done
    self.blend('sasrec', 'classical:id_text')
    self.assertGreaterEqual((self.here / 'mix' / 'run.log').read_text().count('done before'), 3)

  def test_it_recommends_and_serves_what_it_was_judged_by(self):
    import pyarrow.parquet as pq
    listed = {}
    for line in pq.read_table(self.here / 'half' / 'predictions.parquet').to_pylist():
      listed.setdefault(line['user'], []).append(line['item'])
    face, data = recommend.load(self.here / 'half')
    users = list(listed)[:40]
    histories = [recommend.history_of(data, user)[:-1] for user in users]
    found, scores = face(histories, 20)
    self.assertEqual(found, [listed[user] for user in users])
    self.assertTrue((np.diff(scores) <= 0).all() and (scores <= 1).all())
    few = set(data.catalog.ids[:9])
    for row, history in zip(face(histories[:5], 5, allowed=few)[0], histories):
      self.assertContainsSubset(row, few)
      self.assertNoCommonElements(row, history)
    model = served_model.open_models([self.here / 'half'])['half']
    rows = [[data.catalog.index(item) for item in history] for history in histories[:3]]
    mask = np.ones((3, len(data.catalog)), bool)
    for row, history in zip(mask, rows):
      row[np.array(history) - 1] = False
    answers = model.answer([served_model.RecommendQuery(history, 10, allowed)
                            for history, allowed in zip(rows, mask)])
    self.assertEqual([[data.catalog.id_of(item) for item, _ in answer] for answer in answers],
                     [listed[user][:10] for user in users[:3]])
    source, target = self.here / 'in.jsonl', self.here / 'out.jsonl'
    source.write_text(''.join(json.dumps({'user_id': user, 'items': history}) + '\n'
                              for user, history in zip(users, histories)))
    batch_recommend.run(face, data, source, target, 5, log=lambda line: None)
    self.assertLen(target.read_text().splitlines(), 40)

  def test_all_weight_on_a_part_is_that_part(self):
    found = self.blend('gru', 'sasrec', '--weights=0,1')
    np.testing.assert_array_equal(self.ranks('mix')[1]['blend'], self.ranks('sasrec')[1]['sasrec'])
    self.assertEqual(found['rows']['blend'], found['rows']['sasrec'])
    mix, _ = recommend.load(self.here / 'mix')
    alone, data = recommend.load(self.here / 'sasrec')
    history = [recommend.history_of(data, data.interactions.users[0])]
    for one, other in zip(mix(history, 7), alone(history, 7)):
      np.testing.assert_array_equal(one, other)

  @long
  def test_a_stop_costs_the_stage_that_ran(self):
    whole = self.blend('sasrec', 'gru', out='whole')
    with mock.patch.object(evaluate, 'choose', side_effect=KeyboardInterrupt), (
        self.assertRaises(KeyboardInterrupt)):
      self.blend('sasrec', 'gru')
    with mock.patch.object(evaluate, 'rank_beside', side_effect=AssertionError):
      again = self.blend('sasrec', 'gru')
    self.assertEqual(again, whole)
    for row, ranks in self.ranks('whole')[1].items():
      np.testing.assert_array_equal(self.ranks('mix')[1][row], ranks)

  def test_parts_move_with_it_and_may_not_change(self):
    recommend.load(self.here / 'half')  # copied with its parts, away from where it was made
    done = next((self.here / 'sasrec').glob(f'stages/*-evaluate/{run_files.DONE}'))
    file_io.write_json(done, {**json.loads(done.read_text()), 'fingerprint': 'f' * 32})
    with self.assertRaisesRegex(WorkdirError, 'sasrec was trained again since .*recjax blend'):
      recommend.load(self.here / 'half')
    self.blend('sasrec', 'classical:text', '--weights=0.5,0.5', out='half')  # which mends it
    recommend.load(self.here / 'half')
    shutil.rmtree(self.here / 'sasrec')
    with self.assertRaisesRegex(WorkdirError, 'mixes the run sasrec, which is not there.*copy'):
      recommend.load(self.here / 'half')

  def lists_alone(self, size=12):
    """Makes the run `gru` one that gives lists alone, as beams do."""
    opened = parts.opened

    def as_beams(part, *args, **more):
      made = opened(part, *args, **more)
      if part.name != 'gru':
        return made
      return dataclasses.replace(made, score_fn=None, logits=False, masks_by_row=False,
                                 list_size=size)
    return mock.patch.object(parts, 'opened', as_beams)

  def test_parts_that_give_lists(self):
    with self.lists_alone():
      found = self.blend('gru', 'sasrec', '--weights=0.5,0.5')
      self.assertIn('gru gives lists of 12', found['note'])
      self.assertTrue(list((self.here / 'mix').glob('stages/*-lists-gru/test.npz')))
      face, data = recommend.load(self.here / 'mix')
      user = data.interactions.users[5]
      history = recommend.history_of(data, user)[:-1]
      items, _ = face([history], 20)
    import pyarrow.parquet as pq
    lines = pq.read_table(self.here / 'mix' / 'predictions.parquet',
                          filters=[('user', '==', user)]).to_pylist()
    self.assertEqual(items[0], [line['item'] for line in lines])
    # inside its list a part has the ranks of its run, and the others the last place
    own, here = self.ranks('gru')[1]['gru4rec'], self.ranks('mix')[1]['gru']
    np.testing.assert_array_equal(here[own < 12], own[own < 12])
    self.assertTrue((here[own >= 12] >= len(data.catalog) - 60).all())

  @long
  def test_lists_go_on_after_a_kill(self):
    asked, of_cases = [], evaluate.lists_of

    def stopped(recommender, cases, rows, *more):
      asked.append(rows.start)
      if len(asked) == 2:
        raise KeyboardInterrupt
      return of_cases(recommender, cases, rows, *more)
    with self.lists_alone(), mock.patch.object(evaluate, 'PIECE', 50):
      with mock.patch.object(evaluate, 'lists_of', stopped), self.assertRaises(KeyboardInterrupt):
        self.blend('gru', 'sasrec')
      with mock.patch.object(evaluate, 'lists_of', wraps=of_cases) as calls:
        self.blend('gru', 'sasrec')
      pieces = -(-150 // 50)
      self.assertEqual(calls.call_count, 2 * pieces - 1)

  @long
  def test_the_indicator_needs_logits(self):
    found = self.blend('sasrec', 'classical:text', '--mode=indicator')
    self.assertIn('sigmoid', found['blend']['told'])
    face, data = recommend.load(self.here / 'mix')
    self.assertLen(face([recommend.history_of(data, data.interactions.users[0])], 3)[0][0], 3)
    with self.lists_alone():
      found = self.blend('gru', 'classical:text', out='lists')
      self.assertIn('gru and text give lists, or scores that are no logits',
                    found['blend']['indicator'])
      with self.assertRaisesRegex(ConfigError, '--mode=indicator cannot be: it needs the largest'):
        self.blend('gru', 'classical:text', '--mode=indicator', out='lists')
    with self.assertRaisesRegex(ConfigError, 'an ID model and another; 3 are given'):
      self.blend('sasrec', 'gru', 'classical:text', '--mode=indicator', out='three')

  @long
  def test_a_blend_is_a_part_too(self):
    found = self.blend('half', 'gru', '--valid-users=40')
    self.assertEqual(list(found['rows'])[:3], ['blend', 'half', 'gru'])
    np.testing.assert_array_equal(self.ranks('mix')[1]['half'], self.ranks('half')[1]['blend'])
    self.assertEqual(found['blend']['cases'], 40)
    recommend.load(self.here / 'mix')

  @long
  def test_one_moment_for_everybody(self):
    experiment.train(f'{CONFIG}:data={DATA},split=global_time', self.here / 'later', {
        'train.epochs': 2, 'model.width': 16, 'eval.classical': False, 'split.refit': False,
        'split.target': 'successive', 'split.at': '0.8'})
    found = self.blend('later', 'classical:text')
    self.assertStartsWith(found['protocol'], 'global time: train to ')
    cases, ranks = self.ranks('mix')
    self.assertGreater(len(cases), found['users'])
    _, own = self.ranks('later')
    np.testing.assert_array_equal(ranks['later'], own['sasrec'])
    recommend.load(self.here / 'mix')
    with self.assertRaisesRegex(ConfigError, 'later and .*sasrec differ in their'):
      self.blend('later', 'sasrec', out='both')

  def test_a_row_is_chosen_by_what_it_was_before_the_refit(self):
    shop = loading.load_data(DATA)
    split = splits.global_time(shop.interactions, SplitRule('global_time', '0.8'))
    opened = object.__new__(evaluate.Opened)
    opened.dataset, opened.split, opened.settings = shop, split, {'markov': {}}
    made = opened._row(parts.Part('classical:markov', 'markov'))
    for score, known in ((made.score_fn, split.refit), (made.choice_fn, split.for_choice)):
      want = classical.markov(known, len(shop.catalog))
      for user in range(20):
        history = shop.interactions.history(user)
        asked = history, np.array([0, len(history)])
        np.testing.assert_array_equal(np.asarray(score(*asked)), np.asarray(want(*asked)))

  @long
  def test_refitted_runs_choose_by_what_they_were_before(self):
    experiment.train(f'{CONFIG}:data={DATA},split=global_time', self.here / 'again', {
        'train.epochs': 2, 'model.width': 16, 'eval.classical': False, 'split.at': '0.8'})
    found = self.blend('again', 'classical:text', out='both')
    np.testing.assert_array_equal(self.ranks('both')[1]['again'], self.ranks('again')[1]['sasrec'])
    # chosen by what the run was before it learned from what validation asks for
    valid = json.loads(next((self.here / 'again').glob('stages/*-train/valid.json')).read_text())
    tried = json.loads(next((self.here / 'both').glob('stages/*-choose/chosen.json')).read_text())
    alone = next(r['valid'] for r in tried['tried'] if r['rule'].get('weights') == [1., 0.])
    self.assertAlmostEqual(alone, max(valid['NDCG@10']), 5)
    opened = parts.opened
    with mock.patch.object(parts, 'opened', lambda *args, **more: dataclasses.replace(
        opened(*args, **more), choice_fn=None)):
      with self.assertRaisesRegex(ConfigError, 'no weights can be chosen: again was refitted'):
        self.blend('again', 'classical:text', out='unjudged')
      found = self.blend('again', 'classical:text', '--weights=0.5,0.5', out='given')
    self.assertIsNone(found['blend']['valid'])

  @parameterized.parameters(
      (['sasrec'], ConfigError, 'two parts or more'),
      (['sasrec', 'sasrec'], ConfigError, 'named twice'),
      (['sasrec', 'nowhere'], WorkdirError, 'nowhere does not exist'),
      (['sasrec', 'classical:idtext'], ConfigError, 'classical:markov, .*classical:id_text'),
      (['classical:text', 'classical:markov'], ConfigError, 'name a run too'),
      (['sasrec', 'gru', '--weights=0.5'], ConfigError, 'one for each of the 2 parts'),
      (['sasrec', 'gru', '--weights=0.5,0.5', '--mode=indicator'], ConfigError, 'leave one'),
      (['sasrec', 'gru', '--weights=0.5,0.6'], ConfigError, 'sum is 1.1'),
      (['sasrec', 'gru', 'classical:text', '--mode=indicator'], ConfigError, 'weighs two parts'),
      (['sasrec', 'gru', '--weights=-1,2'], ConfigError, '0 or more'),
      (['sasrec', 'gru', '--weights=a,b'], ConfigError, 'give numbers'),
      (['sasrec', 'gru', '--weights=nan,1'], ConfigError, '0 or more'),
  )
  def test_bad_words(self, words, error, said):
    with self.assertRaisesRegex(error, said):
      self.blend(*[self.here / w if w == 'nowhere' else w for w in words])
    self.assertFalse((self.here / 'mix').exists())

  def test_parts_that_do_not_belong_together(self):
    path = self.here / 'gru' / 'results.json'
    found = json.loads(path.read_text())
    for change, said in (
        ({'data_fingerprint': 'another'}, 'sasrec and .*gru differ in their data set'),
        ({'protocol': found['protocol'].replace('history masked', 'history not masked')},
         'sasrec and .*gru differ in their protocol.*history not masked')):
      file_io.write_json(path, {**found, **change})
      with self.assertRaisesRegex(ConfigError, said):
        self.blend('sasrec', 'gru')
    path.unlink()
    with self.assertRaisesRegex(WorkdirError, 'no run has ended there'):
      self.blend('sasrec', 'gru')
    shutil.rmtree(self.here / 'gru')
    (self.here / 'gru').mkdir()
    with self.assertRaisesRegex(WorkdirError, 'holds no config.json'):
      self.blend('sasrec', 'gru')
    self.assertFalse((self.here / 'mix').exists())

  def test_data_that_changed(self):
    changed = loading.load_data('sample:2:150')
    with mock.patch('recjax.methods.blend.load_for_config', return_value=changed), (
        self.assertRaisesRegex(DataError, 'has changed since .*sasrec was made')):
      self.blend('sasrec', 'gru')

  def test_an_out_that_holds_something_else(self):
    with self.assertRaisesRegex(ConfigError, 'holds a run of sequential'):
      self.blend('sasrec', 'classical:text', out='gru')
    with self.assertRaisesRegex(ConfigError, 'is inside of .*gru, which is a run'):
      self.blend('sasrec', 'classical:text', out='gru/mix')
    self.assertFalse((self.here / 'gru' / 'mix').exists())
    (self.here / 'mix').mkdir()
    (self.here / 'mix' / 'photo.jpg').write_bytes(b'')
    with self.assertRaisesRegex(ConfigError, 'holds other things'):
      self.blend('sasrec', 'gru')
    (self.here / 'file').write_text('')
    with self.assertRaisesRegex(ConfigError, 'is no folder'):
      self.blend('sasrec', 'gru', out='file')
    with self.assertRaisesRegex(ConfigError, r'holds a blend of \.\./sasrec, classical:text'):
      self.blend('gru', 'sasrec', out='half')

  def test_what_else_a_method_says(self):
    blending = methods.find('blend', 'a test')
    with self.assertRaisesRegex(ConfigError, 'is a blend and trained nothing'):
      blending.convert('mix', 'npz', 'out')
    with self.assertRaisesRegex(ConfigError, 'knows items by their numbers alone'):
      recommend.load(self.here / 'half', DATA)


if __name__ == '__main__':
  absltest.main()
