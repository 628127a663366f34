"""What users meet when files are damaged, foreign or in the way: a sentence, never a traceback."""
import atexit
import contextlib
import errno
import functools
import importlib.util
import io
import json
import os
import pathlib
import random
import resource
import shutil
import socket
import sys
import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from configs import sequential_beauty
from recjax import cli, errors, experiment, main, run_files
from recjax.data.prepare import duckdb_engine
from recjax.errors import ConfigError, DataError, WorkdirError
from recjax.evaluation import results as results_lib
from recjax.models import seqrec
from recjax.serving import served_model, server
from recjax.serving.service import ServerSettings
from recjax.training import sequential
from recjax.training import workdir as workdir_lib
from tests.methods import etegrec_test
from tests.serving import fake_service

ROOT = pathlib.Path(__file__).parents[1]
# Set to try every damage of every file with every verb, which takes minutes.
EVERYTHING = bool(os.environ.get('RECJAX_EVERY_DAMAGE'))


def small(data, seed=0):
  cfg = sequential_beauty.get_config(f'data={data}')
  cfg.model.update(max_history=8, width=8, hidden=8, layers=1)
  cfg.train.update(epochs=1, batch=64)
  cfg.eval.classical = False
  cfg.seed = seed
  return cfg


def ended(call):
  """Runs a call as the command line does. -> exit code, standard output, standard error"""
  out, err, code = io.StringIO(), io.StringIO(), 0
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      call()
    except SystemExit as end:
      code = end.code
  return code or 0, out.getvalue(), err.getvalue()


def verb(*words):
  """A command `recjax ...` in this process, as `ended` gives it."""
  with mock.patch.object(sys, 'argv', ['recjax', *map(str, words)]):
    return ended(cli.main)


def everything_below(folder):
  return {p: p.read_bytes() for p in sorted(pathlib.Path(folder).rglob('*')) if p.is_file()}


@contextlib.contextmanager
def limited(size):
  """Files of this process do not grow past `size` bytes meanwhile."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


DAMAGE = {
    'cut': lambda data, rng: data[:len(data) // 2],
    'without its last byte': lambda data, rng: data[:-1],
    'emptied': lambda data, rng: b'',
    'a list': lambda data, rng: b'[]',
    'null': lambda data, rng: b'null',
    'a number': lambda data, rng: b'17',
    'an object': lambda data, rng: b'{}',
    'deep': lambda data, rng: b'[' * 100_000,
    'deep objects': lambda data, rng: b'{"a":' * 50_000,
    'other text': lambda data, rng: b'\xffhello',
}


def flipped(data, rng):
  at = rng.randrange(len(data))
  return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:]


def untrained(work, cfg, items, *_, **__):
  """What training gives, without training: nothing here asks how good a model is."""
  model = sequential.model_config(cfg, items)
  params = seqrec.init(model, jax.random.key(cfg.seed))
  return jax.tree.map(lambda x: np.asarray(x)[None], params), np.array([.5]), np.array([1])


@functools.cache
def finished():
  """A folder with a shop and two finished runs, one for all tests here. -> path"""
  room = pathlib.Path(tempfile.mkdtemp())
  atexit.register(shutil.rmtree, room, ignore_errors=True)
  (room / 'shop').mkdir()
  etegrec_test.shop_folder(room / 'shop')
  with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(sequential, 'fit', untrained):
    for seed, name in enumerate(('made', 'other')):
      experiment.train(small(room / 'shop', seed), room / name)
  return room


class RunTest(parameterized.TestCase):
  """A finished run, and another beside it."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.room = finished()
    cls.data = cls.room / 'shop'

  def setUp(self):
    super().setUp()
    self.run_at = self.room / 'run'
    self.fresh()

  def fresh(self):
    shutil.rmtree(self.run_at, ignore_errors=True)
    shutil.copytree(self.room / 'made', self.run_at)

  def asked(self):
    """Every verb that reads a run, by name."""
    def load():
      for model in served_model.open_models([self.run_at]).values():
        model.close(1)
    out = self.room / 'out.npz'
    out.unlink(missing_ok=True)
    return {
        'recommend': lambda: verb('recommend', self.run_at, '--user=u1', '--k=3'),
        'serve': lambda: ended(lambda: errors.guard(load)),
        'compare': lambda: verb('compare', self.run_at, self.room / 'other'),
        'convert': lambda: verb('convert', self.run_at, '--to=npz', f'--out={out}')}

  def judge(self, found, good, name):
    """Right results, or one sentence that names a file."""
    code, out, err = found
    if code == 0:
      self.assertEqual(out, good)
      return
    self.assertEqual(code, 2, err)
    self.assertRegex(err, r'\Aerror: .+\n\Z')
    self.assertIn(name, err)


class DamageTest(RunTest):

  def files(self):
    made = self.room / 'made'
    return [p.relative_to(made) for p in sorted(made.rglob('*')) if p.is_file()
            and p.relative_to(made).parts[0] not in ('checkpoints', 'tb')]

  def test_any_file_damaged_in_any_way(self):
    good = {name: call()[1] for name, call in self.asked().items()}
    rng = random.Random(0)
    jobs = [(path, what, name) for path in self.files() for what in (*DAMAGE, 'flipped')
            for name in good]
    read = [j for j in jobs if j[0].suffix in ('.json', '.npz') or j[0].name == 'ranks.parquet']
    refused = 0
    for path, what, name in jobs if EVERYTHING else rng.sample(read, 24):
      self.fresh()
      at = self.run_at / path
      at.write_bytes(DAMAGE.get(what, flipped)(at.read_bytes(), rng))
      with self.subTest(file=str(path), damage=what, verb=name):
        found = self.asked()[name]()
        self.judge(found, good[name], path.name)
        refused += found[0] == 2
    self.assertGreater(refused, 5)  # the damage was looked at

  @parameterized.parameters(
      ('stages/01-train/model.npz', 'recommend', 'model.npz is damaged .*delete .*01-train and'),
      ('stages/01-train/valid.json', 'serve', 'valid.json is damaged .*delete .*01-train'),
      ('stages/02-evaluate/results.json', 'recommend', 'results.json is damaged .*02-evaluate'),
      ('results.json', 'compare', 'results.json is not what the evaluation wrote'),
      ('ranks.parquet', 'compare', 'ranks.parquet is not what the evaluation wrote'),
      ('config.json', 'convert', 'config.json is not as the run wrote it'))
  def test_one_digit_or_bit_is_enough(self, path, name, said):
    at = self.run_at / path
    data = at.read_bytes()
    if path.endswith('.json'):
      place = max(i for i, c in enumerate(data) if chr(c) in '12345678')
      data = data[:place] + bytes([data[place] + 1]) + data[place + 1:]
      json.loads(data)  # still JSON
    else:
      data = data[:len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1:]
    at.write_bytes(data)
    code, _, err = self.asked()[name]()
    self.assertEqual(code, 2)
    self.assertRegex(err, said)

  def test_what_is_missing_or_of_another_kind(self):
    for path in ('config.json', 'stages/01-train/DONE.json', 'stages/01-train/model.npz',
                 'results.json', 'ranks.parquet'):
      for folder in (False, True):
        self.fresh()
        (self.run_at / path).unlink()
        if folder:
          (self.run_at / path).mkdir()
        name = 'compare' if '/' not in path and path != 'config.json' else 'recommend'
        code, _, err = self.asked()[name]()
        self.assertEqual(code, 2)
        self.assertIn(path.rpartition('/')[2], err)

  def unsigned(self):
    """As runs were before they kept sums of their files."""
    for done in self.run_at.glob('stages/*/DONE.json'):
      saved = json.loads(done.read_text())
      done.write_text(json.dumps({k: v for k, v in saved.items() if k != 'files'}))
    at = self.run_at / 'config.json'
    saved = json.loads(at.read_text())
    at.write_text(json.dumps({'config': saved['config'], 'facts': saved['facts']}))
    return at, saved['config']

  @parameterized.parameters(
      ('method', '../../etc/passwd', 'there is none of that name'),
      ('method', 'os', 'none of that name'),
      ('method', ['sequential'], 'none of that name'), ('method', None, 'none of that name'),
      ('method', 'sequential.evaluate', 'none of that name'), ('data', 5, '"data" is 5'),
      ('data', None, '"data" is None'), ('model', None, 'cannot be used'),
      ('model', {'kind': 'sasrec'}, 'cannot be used'), ('eval', [], 'cannot be used'))
  def test_a_config_of_odd_values(self, key, value, said):
    at, config = self.unsigned()
    at.write_text(json.dumps({'config': {**config, key: value}, 'facts': {}}))
    code, _, err = self.asked()['recommend']()
    self.assertEqual(code, 2)
    self.assertRegex(err, rf'\Aerror: .*config.json.*{said}')

  def test_a_config_that_lacks_settings(self):
    at, config = self.unsigned()
    for key in ('method', 'data'):
      at.write_text(json.dumps({'config': {k: v for k, v in config.items() if k != key}}))
      code, _, err = self.asked()['recommend']()
      self.assertEqual(code, 2)
      self.assertRegex(err, rf"config.json lacks '{key}'")

  def test_damage_without_sums_is_told_with_the_file(self):
    rng = random.Random(1)
    for path, what in (('stages/01-train/model.npz', 'cut'),
                       ('stages/01-train/model.npz', 'a list'),
                       ('stages/01-train/valid.json', 'an object'),
                       ('stages/01-train/valid.json', 'deep'),
                       ('stages/02-evaluate/results.json', 'a list'),
                       ('stages/02-evaluate/results.json', 'an object')):
      self.fresh()
      self.unsigned()
      at = self.run_at / path
      at.write_bytes(DAMAGE[what](at.read_bytes(), rng))
      with self.subTest(file=path, damage=what):
        code, _, err = self.asked()['recommend']()
        self.assertEqual(code, 2)
        self.assertRegex(err, rf'\Aerror: .*{path}.*delete .*{path.split("/")[1]}')

  def test_a_mistake_of_ours_stays_visible(self):
    with mock.patch('recjax.methods.sequential.recommender', side_effect=KeyError('ours')), \
        self.assertRaisesRegex(KeyError, 'ours'):
      self.asked()['recommend']()
    self.unsigned()  # nothing proves the folder now: the place in the code is said
    with mock.patch('recjax.methods.sequential.recommender', side_effect=KeyError('ours')):
      code, _, err = self.asked()['recommend']()
    self.assertEqual(code, 2)
    self.assertRegex(err, r"config.json cannot be used \(KeyError: 'ours', in mock.py line")

  def trained(self):
    with mock.patch.object(sequential, 'fit', untrained):
      return ended(lambda: errors.guard(
          lambda: experiment.run(small(self.data), self.run_at, {
              'command': '', 'overrides': {}, 'versions': {}, 'devices': '', 'revision': ''})))

  def test_the_run_itself_refuses_a_damaged_stage_and_goes_on_when_it_is_deleted(self):
    results = (self.run_at / 'results.json').read_bytes()
    for path in ('stages/01-train/model.npz', 'stages/02-evaluate/results.json',
                 'stages/01-train/DONE.json'):
      self.fresh()
      at = self.run_at / path
      at.write_bytes(at.read_bytes()[:-9])
      before = everything_below(self.run_at / 'stages')
      code, _, err = self.trained()
      self.assertEqual(code, 2)
      self.assertRegex(err, rf'{at} is damaged .*delete {at.parent} and run')
      self.assertEqual(everything_below(self.run_at / 'stages'), before)
    shutil.rmtree(at.parent)
    self.assertEqual(self.trained()[0], 0)
    self.assertEqual((self.run_at / 'results.json').read_bytes(), results)

  def test_the_run_itself_writes_the_files_at_the_top_anew(self):
    good = everything_below(self.run_at)
    for name in ('config.json', 'results.json', 'ranks.parquet', 'report.html'):
      (self.run_at / name).write_bytes(b'[]')
    with open(self.run_at / 'metrics.jsonl', 'ab') as f:
      f.write(b'\xff{"step"\n[]\n7\n')
    code, out, err = self.trained()
    self.assertEqual((code, err), (0, ''))
    self.assertIn('metrics.jsonl: line 1, 2, 3 cannot be read', out)
    for name in ('results.json', 'ranks.parquet'):
      self.assertEqual((self.run_at / name).read_bytes(), good[self.run_at / name])
    self.assertEqual(run_files.read_config(self.run_at)['config']['method'], 'sequential')


class ParquetTest(absltest.TestCase):

  def test_other_columns_kinds_and_holes_are_told(self):
    import pyarrow as pa
    import pyarrow.parquet as pq
    path = pathlib.Path(self.create_tempdir().full_path) / 'ranks.parquet'
    for table in ({'user': ['a']}, {'user': ['a'], 'row': ['r'], 'rank': ['x']},
                  {'user': ['a'], 'row': ['r'], 'rank': [None]},
                  {'user': [None], 'row': ['r'], 'rank': [1]},
                  {'user': [['a']], 'row': ['r'], 'rank': [1]},
                  {'user': ['a'], 'row': ['r'], 'rank': [2.5]}):
      pq.write_table(pa.table(table), path)
      with self.assertRaisesRegex(DataError, 'ranks.parquet is no Parquet file with columns'):
        results_lib.read_ranks(path)

  def test_any_flipped_bit_is_found_or_harms_nothing(self):
    path = pathlib.Path(self.create_tempdir().full_path) / 'ranks.parquet'
    results_lib.write_ranks(path, [f'u{i}' for i in range(300)], {'r': np.arange(300) % 7})
    data, good = path.read_bytes(), results_lib.read_ranks(path)
    rng = random.Random(0)
    for _ in range(150):
      path.write_bytes(flipped(data, rng))
      with contextlib.suppress(DataError):
        users, rows = results_lib.read_ranks(path)
        self.assertEqual(users, good[0])
        self.assertEqual(rows[next(iter(rows))].tolist(), good[1]['r'].tolist())


class TargetTest(RunTest):
  """Nothing that a command did not make is written over."""

  def setUp(self):
    super().setUp()
    self.here = pathlib.Path(self.create_tempdir().full_path)
    self.users = self.here / 'in.jsonl'
    self.users.write_text('{"user_id": "a", "items": ["i1"]}\n')

  def refused(self, *words, said):
    before = everything_below(self.here) | everything_below(self.run_at)
    links = {p: os.readlink(p) for p in self.here.iterdir() if p.is_symlink()}
    code, _, err = verb(*words)
    self.assertEqual(code, 2)
    self.assertRegex(err, rf'\Aerror: .*{said}')
    self.assertEqual(everything_below(self.here) | everything_below(self.run_at), before)
    self.assertEqual({p: os.readlink(p) for p in self.here.iterdir() if p.is_symlink()}, links)

  def answer(self, output, *more, source=None, said=''):
    words = ('recommend', self.run_at, f'--input={source or self.users}', f'--output={output}',
             *more)
    if said:
      self.refused(*words, said=said)
      return None
    return verb(*words)

  def test_answers_do_not_replace_what_is_read(self):
    link, hard = self.here / 'link.jsonl', self.here / 'hard.jsonl'
    link.symlink_to(self.users)
    os.link(self.users, hard)
    for output in (self.users, link, hard, self.here / '..' / self.here.name / 'in.jsonl'):
      for part in ((), ('--part=1/2',)):
        self.answer(output, *part, said='is what is read')
    self.answer(self.users, source=link, said='is what is read')
    with contextlib.chdir(self.here):
      self.answer('in.jsonl', said='is what is read')

  def test_answers_do_not_replace_other_files_or_finished_answers(self):
    for name, text in (('a.jsonl', 'mine\n'), ('b.parquet', ''), ('c.jsonl', '{"user_id": 1}\n')):
      (self.here / name).write_text(text)
      for part in ((), ('--part=1/1',)):
        self.answer(self.here / name, *part, said=f'{name} is there already')
    (self.here / 'broken.jsonl').symlink_to(self.here / 'nowhere')
    self.answer(self.here / 'broken.jsonl', said='is there already')
    (self.here / 'folder.jsonl').mkdir()
    self.answer(self.here / 'folder.jsonl', said='is there already')
    self.answer(self.here / 'none' / 'out.jsonl', said='none does not exist; make it first')
    self.assertEqual(self.answer(self.here / 'out.jsonl')[0], 0)
    self.answer(self.here / 'out.jsonl', said='out.jsonl is there already')

  @parameterized.parameters('mine\n', 'mine', '{"a": 1}\n', '[]\n', 'mine\n' * 300,
                            '{"source": 1, "k": 3}\n{}\n')
  def test_a_journal_is_known_by_what_it_holds(self, text):
    (self.here / 'out.jsonl.partial').write_text(text)
    self.answer(self.here / 'out.jsonl', said='out.jsonl.partial was not made by this command')
    (self.here / 'two.jsonl.parts').mkdir()
    (self.here / 'two.jsonl.parts' / 'request.json').write_text(text)
    self.answer(self.here / 'two.jsonl', '--part=1/2', said='was not made by this command')
    (self.here / 'two.jsonl.parts' / 'request.json').rename(
        self.here / 'two.jsonl.parts' / 'notes.txt')
    self.answer(self.here / 'two.jsonl', '--part=1/2', said='was not made by this command')

  def test_its_own_journal_goes_on_and_that_of_another_request_stays(self):
    self.users.write_text(''.join(json.dumps({'user_id': n, 'items': ['i1']}) + '\n'
                                  for n in range(300)))
    with mock.patch('recjax.batch_recommend.write_answers', side_effect=KeyboardInterrupt):
      self.assertEqual(self.answer(self.here / 'out.jsonl')[0], 130)
    self.answer(self.here / 'out.jsonl', '--k=3', said='holds 300 answers to another request')
    (self.here / 'out.jsonl').write_text('somebody else')
    self.answer(self.here / 'out.jsonl', said='out.jsonl is there already')
    (self.here / 'out.jsonl').unlink()
    journal = self.here / 'out.jsonl.partial'
    whole = journal.read_bytes()
    journal.write_bytes(whole.replace(b'"recommended"', b'"recommendet"', 1))
    self.answer(self.here / 'out.jsonl', said='out.jsonl.partial line 2 is damaged')
    journal.write_bytes(whole)
    code, out, _ = self.answer(self.here / 'out.jsonl')
    self.assertEqual(code, 0)
    self.assertIn('0 users answered', out)
    self.assertLen((self.here / 'out.jsonl').read_text().splitlines(), 300)

  def test_a_file_that_comes_while_answers_are_made_stays(self):
    target = self.here / 'out.jsonl'
    whole = (self.here / 'ok.jsonl')
    self.assertEqual(self.answer(whole)[0], 0)
    from recjax import batch_recommend
    own = batch_recommend.answer_rows

    def slow(*given):
      target.write_text('came meanwhile')
      return own(*given)
    with mock.patch('recjax.batch_recommend.answer_rows', slow):
      code, _, err = self.answer(target)
    self.assertEqual((code, target.read_text()), (2, 'came meanwhile'))
    self.assertIn('out.jsonl is there already', err)

  def test_compare_and_convert(self):
    other, mine = self.room / 'other', self.here / 'mine.html'
    mine.write_text('mine')
    self.refused('compare', self.run_at, other, f'--html={mine}', said='mine.html is there already')
    self.refused('compare', self.run_at, f'--html={self.run_at}/report.html',
                 said='report.html is there already')
    self.assertEqual(verb('compare', self.run_at, other, f'--html={self.here}/new.html')[0], 0)
    self.refused('compare', self.run_at, f'--html={self.here}/new.html', said='is there already')
    (self.here / 'link').symlink_to(self.here / 'nowhere')
    for out in (mine, self.users, self.here / 'link',
                self.run_at / 'stages' / '01-train' / 'model.npz'):
      self.refused('convert', self.run_at, '--to=npz', f'--out={out}', said='is there already')
      self.refused('convert', self.run_at, '--to=vectors', '--data=sample:1:50', f'--out={out}',
                   said='name a .npy file')
    (self.here / 'v.npy').write_text('mine')
    self.refused('convert', self.run_at, '--to=vectors', '--data=sample:1:50',
                 f'--out={self.here}/v.npy', said='v.npy is there already')

  def test_folders_that_are_made_appear_whole_or_not_at_all(self):
    for name in ('file', 'full', 'link'):
      out = self.here / name
      if name == 'file':
        out.write_text('mine')
      elif name == 'full':
        out.mkdir()
        (out / 'x').write_text('mine')
      else:
        out.symlink_to(self.here / 'nowhere')
      with self.assertRaisesRegex(ConfigError, f'{name} is there already'), \
          run_files.new_folder(out, '--out'):
        self.fail('opened')
    (self.here / 'empty').mkdir()
    for out in (self.here / 'empty', self.here / 'deep' / 'er'):
      with self.assertRaises(KeyError), run_files.new_folder(out, '--out') as fresh:
        (fresh / 'half').write_text('x')
        raise KeyError
      with run_files.new_folder(out, '--out') as fresh:
        (fresh / 'all').write_text('x')
      self.assertEqual(os.listdir(out), ['all'])
      self.assertEqual([p for p in out.parent.iterdir() if p.name.startswith('.')], [])

  def test_a_run_does_not_start_among_what_it_would_write_over(self):
    for name, text in (('config.json', '{"architectures": ["x"]}'), ('results.json', '{}'),
                       ('lock', 'mine'), ('run.log', 'mine'), ('report.html', 'mine')):
      folder = self.here / f'of-{name}'
      folder.mkdir()
      (folder / name).write_text(text)
      with self.assertRaisesRegex(WorkdirError, f'holds {name}, which no run'), \
          workdir_lib.open_work(folder, {'config': {}}):
        self.fail('opened')
      self.assertEqual(everything_below(folder), {folder / name: text.encode()})
    with self.assertRaisesRegex(WorkdirError, 'choose another --workdir'), \
        workdir_lib.open_work(self.users, {'config': {}}):
      self.fail('opened')
    with workdir_lib.open_work(self.here / 'notes', {'config': {}}):
      pass
    cfg = small(self.data)
    cfg.method = 'betag'
    with self.assertRaisesRegex(WorkdirError, 'holds a run of sequential; name another'):
      experiment.run(cfg, self.run_at, {})

  def test_a_sweep_does_not_start_among_other_files(self):
    for name in ('sweep.csv', 'notes.txt'):
      folder = self.here / f'of-{name}'
      folder.mkdir()
      (folder / name).write_text('mine')
      self.refused('sweep', '--config=configs/sequential_beauty.py', f'--out={folder}',
                   said=f'{name} was made by no sweep')
    self.refused('sweep', '--config=configs/sequential_beauty.py', f'--out={self.users}',
                 said='in.jsonl is no folder')
    (self.here / 's').mkdir()
    (self.here / 's' / 'sweep.json').write_text('{"config": "other.py", "rows": []}')
    self.refused('sweep', '--config=configs/sequential_beauty.py', f'--out={self.here}/s',
                 said='holds a sweep of other.py, not of configs/sequential_beauty.py')

  def test_prepare_overwrites_nothing_that_it_reads_or_did_not_make(self):
    data = self.here / 'data'
    data.mkdir()
    log = data / 'log.csv'
    log.write_text('user,item,time\n' + ''.join(f'u{i % 9},i{i % 7},{i}\n' for i in range(90)))
    self.refused('prepare', 'table', log, f'--out={data}', said='exists already')
    self.refused('prepare', 'table', log, f'--out={data}', '--overwrite',
                 said='--overwrite would remove .*log.csv, which is read')
    self.refused('prepare', 'table', log, f'--out={log}', '--overwrite', said='exists already')
    made = self.here / 'made'
    self.assertEqual(verb('prepare', 'table', log, f'--out={made}')[0], 0)
    self.assertEqual(verb('prepare', 'table', log, f'--out={made}', '--overwrite')[0], 0)
    (made / 'notes.txt').write_text('mine')
    self.refused('prepare', 'table', log, f'--out={made}', '--overwrite', said='holds notes.txt')


class ConfigFileTest(parameterized.TestCase):

  @parameterized.parameters(
      ('def get_config(arg=""\n', r'c.py line 1 .*SyntaxError'),
      ('import no_such_module_here\n', r'c.py line 1 .*no_such_module_here'),
      ('\nraise SystemExit(3)\n', r'c.py line 2 .*SystemExit'),
      ('x = 1\n', 'c.py has no function get_config'), ('get_config = 5\n', 'has no function'),
      ('def get_config(arg=""):\n  return 1 / 0\n', 'c.py line 2 .*division by zero'),
      ('def get_config(arg=""):\n  return {}\n', 'gives dict; it must give a ConfigDict'),
      ('\0', 'c.py .*null bytes'), ('\xff\xfe', 'c.py .*SyntaxError'))
  def test_a_broken_file_is_told_with_its_line(self, text, said):
    path = pathlib.Path(self.create_tempdir().full_path) / 'c.py'
    path.write_bytes(text.encode('latin-1'))
    with self.assertRaisesRegex(ConfigError, said):
      experiment.read_config(str(path))
    for words in (('doctor', 'sample:1:50', f'--config={path}'),
                  ('sweep', f'--config={path}', f'--out={path.parent}/s')):
      code, _, err = verb(*words)
      self.assertEqual(code, 2)
      self.assertRegex(err, said)
    for more in ((), ('--config.seed=1',)):
      parse = functools.partial(main.parse, ['main', f'--config={path}', *more])
      code, _, err = ended(lambda: errors.guard(lambda: main.run(parse()[1:])))  # noqa: B023
      self.assertEqual(code, 2)
      self.assertRegex(err, said)
      self.assertNotIn('Traceback', err)

  def test_settings_that_are_lacking_and_methods_that_are_none(self):
    path = pathlib.Path(self.create_tempdir().full_path) / 'c.py'
    for values, said in (('method="sequential"', "'split'"), ('method="../x"', 'none of that name'),
                         ('seed=1', "'method'")):
      path.write_text('from ml_collections import ConfigDict\n'
                      f'def get_config(arg=""):\n  return ConfigDict(dict({values}))\n')
      code, _, err = verb('doctor', 'sample:1:50', f'--config={path}')
      self.assertEqual(code, 2)
      self.assertIn(said, err)


class PortTest(parameterized.TestCase):

  @parameterized.parameters(99999, 65536, -5, -1)
  def test_a_port_out_of_range(self, port):
    with mock.patch.object(served_model, 'open_models', side_effect=AssertionError('too late')):
      code, _, err = verb('serve', 'anything', f'--port={port}')
    self.assertEqual(code, 2)
    self.assertRegex(err, f'error: --port={port}: a port is a number from 1 to 65535')

  def test_a_port_in_use_and_hosts_that_are_none(self):
    with socket.socket() as used:
      used.bind(('127.0.0.1', 0))
      used.listen(1)
      port = used.getsockname()[1]
      for flags, said in (((f'--port={port}',), f'--port={port}: another program listens there'),
                          (('--port=0', '--host=256.1.1.1'), '--host=256.1.1.1 is no address'),
                          (('--port=0', '--host=192.0.2.1'), '192.0.2.1 is no address of this'),
                          (('--port=0', '--most=0'), '--most: 0 must be at least 1'),
                          (('--port=0', '--timeout=nan'), '--timeout: ')):
        code, _, err = verb('serve', 'anything', *flags)
        self.assertEqual(code, 2)
        self.assertIn(said, err)

  def test_one_who_comes_between(self):
    first = server.bind_sockets(ServerSettings(port=0))[0]
    port = first.getsockname()[1]
    second = server.bind_sockets(ServerSettings(port=port))  # nobody listens yet
    first.listen(1)
    with self.assertRaisesRegex(ConfigError, 'another program listens there'):
      server.listen(fake_service.service(port=port), sockets=second)
    for one in (first, *second):
      one.close()


class ExtraTest(parameterized.TestCase):

  @parameterized.parameters('fastapi', 'uvicorn', 'httptools', 'prometheus_client',
                            'fastapi_offline')
  def test_serving_without_its_packages(self, name):
    with mock.patch.dict(sys.modules):
      for module in [m for m in sys.modules if m.startswith('recjax.serving')]:
        del sys.modules[module]
      sys.modules[name] = None  # as where it is not installed
      code, _, err = verb('serve', 'x')
    self.assertEqual(code, 2)
    self.assertRegex(err, rf"error: this needs the package {name}, .*'recjax\[serve\]'")

  def test_the_table_of_extras_is_that_of_the_package(self):
    spec = importlib.util.spec_from_file_location('setup', ROOT / 'setup.py')
    made = importlib.util.module_from_spec(spec)
    with mock.patch('setuptools.setup') as setup:
      spec.loader.exec_module(made)
    extras = setup.call_args.kwargs['extras_require']
    for extra, modules in errors.EXTRAS.items():
      for word in extras[extra]:
        self.assertIn(word.partition('>')[0].replace('-', '_'), modules)

  def test_another_module_that_is_missing_is_a_mistake_of_ours(self):
    def broken():
      import recjax.no_such_module  # noqa: F401
    with self.assertRaises(ModuleNotFoundError):
      errors.guard(broken)


class DiskTest(parameterized.TestCase):
  # The words of libraries on a full tmpfs, as they were read there.
  TENSORSTORE = ('RESOURCE_EXHAUSTED: Failed writing: "/w/1.orbax-checkpoint-tmp/d/21d1": Failed '
                 "to write 1070010 bytes to file 11: No space left on device [os_error_code='28']")
  LIMIT = ('OUT_OF_RANGE: Failed writing: "/w/d/92c7": Failed to write 774301 bytes to file 11: '
           "File too large [os_error_code='27']")

  @parameterized.parameters(
      (ValueError(TENSORSTORE), 'the disk is full'), (ValueError(LIMIT), 'grow past the limit'),
      (OSError('100000 requested and 2032 written'), 'the disk is full'),  # numpy.save
      (OSError(28, 'No space left on device'), 'the disk is full'),
      (OSError(28, 'No space left on device', '/from', None, '/to'), 'full while writing /to'),
      (OSError(errno.EFBIG, 'File too large', '/x'), 'limit .* while writing /x'),
      (RuntimeError('Error while serializing: I/O error: No space left on device (os error 28)'),
       'the disk is full'),  # safetensors
      (shutil.Error([('/a', '/b', '[Errno 28] No space left on device')]), 'the disk is full'))
  def test_a_full_disk_is_no_lack_of_memory(self, error, said):
    self.assertRegex(errors.disk_error(error), said)
    self.assertEqual(errors.memory_error(error), '')
    wrapped = RuntimeError('while saving')
    wrapped.__cause__ = error
    self.assertRegex(errors.disk_error(wrapped), said)

  def test_a_lack_of_memory_is_no_full_disk(self):
    for error in (MemoryError(), RuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying')):
      self.assertEqual(errors.disk_error(error), '')
      self.assertIn('out of memory', errors.memory_error(error))

  def test_training_names_the_folder(self):
    cfg = small('sample:1:60')
    folder = pathlib.Path(self.create_tempdir().full_path) / 'w'
    with mock.patch('recjax.methods.sequential.run', side_effect=ValueError(self.TENSORSTORE)):
      code, _, err = ended(lambda: errors.guard(lambda: experiment.run(cfg, folder, {
          'overrides': {}, 'versions': {}, 'devices': '', 'revision': ''})))
    self.assertEqual(code, 2)
    self.assertRegex(err, rf'error: {folder}: the disk is full')
    self.assertNotIn('memory', err)

  def test_what_is_noted_past_a_limit_of_the_system(self):
    """TensorBoard's thread dies of it, and would be waited for."""
    folder = pathlib.Path(self.create_tempdir().full_path) / 'w'

    def noted():
      with workdir_lib.open_work(folder, {'config': {}}) as work:
        work.current = 'train'
        for step in range(10_000):
          with limited(3000):
            work.record(step, {'loss': 1.})
    with mock.patch.object(workdir_lib.run_files, 'read_metrics', return_value=[]):
      code, _, err = ended(lambda: errors.guard(noted))
    self.assertEqual(code, 2)
    self.assertRegex(err, r'error: .*(the disk is full|grow past .* limit)')

  def test_what_prepare_says(self):
    import duckdb
    full = duckdb.IOException('IO Error: Could not write file "/x/rows.duckdb": No space left on '
                              'device')
    spill = duckdb.OutOfMemoryException(
        "Out of Memory Error: failed to offload data block of size 256.0 KiB (0 bytes/3.5 KiB "
        "used).\nThis limit was set by the 'max_temp_directory_size' setting.")
    out = pathlib.Path(self.create_tempdir().full_path) / 'out'
    with mock.patch.object(duckdb, 'connect', side_effect=full), \
        self.assertRaisesRegex(WorkdirError, 'No space left on device'), \
        duckdb_engine.database(out, '2GB'):
      self.fail('opened')
    with self.assertRaisesRegex(WorkdirError, 'the disk is full beside .*out'), \
        duckdb_engine.database(out, '2GB'):
      raise spill
    with self.assertRaisesRegex(ConfigError, "memory='two' is no size"), \
        duckdb_engine.database(out, 'two'):
      self.fail('opened')

  def test_a_limit_in_every_verb_that_writes_is_told_with_its_flag(self):
    here = pathlib.Path(self.create_tempdir().full_path)
    log = here / 'log.csv'
    log.write_text('user,item,time\n' + ''.join(f'u{i % 9},i{i % 7},{i}\n' for i in range(900)))
    with limited(2000):
      code, _, err = verb('prepare', 'table', log, f'--out={here}/out')
    self.assertEqual(code, 2)
    self.assertRegex(err, rf'error: .*{here}/out')
    self.assertNotIn('is no size', err)
    self.assertEqual(os.listdir(here), ['log.csv'])


if __name__ == '__main__':
  absltest.main()
