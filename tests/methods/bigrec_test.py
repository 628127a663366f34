"""BIGRec and D3 whole, on a ring of fifty titles whose next one is certain; what they refuse."""
import contextlib
import importlib.util
import json
import pathlib
import tempfile
import types
import unicodedata
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from recjax import recommend
from recjax.data import dataset as dataset_lib
from recjax.data import loading, splits, windows
from recjax.data.formats import bigrec as files
from recjax.errors import ConfigError, DataError
from recjax.methods import bigrec
from recjax.methods.bigrec import (
  cf_assistant,
  d3,
  evaluate,
  export,
  grounding,
  instruction_data,
  prompts,
)
from recjax.methods.bigrec import generate as gen
from recjax.models import huggingface, llm
from recjax.retrieval import nearest
from recjax.split_rule import SplitRule
from recjax.text import tokenizer as tokenizer_lib
from recjax.training import workdir as workdir_lib
from tests import beside_rows, later, served_faces, told
from tests.long import long

ROOT = pathlib.Path(__file__).parents[2]
SHARED = ROOT.parent / 'shared' / 'data' / 'formats' / 'bigrec'
COLORS = ('red', 'blue', 'green', 'white', 'black')
THINGS = ('kettle', 'lamp', 'rope', 'drill', 'mug', 'tent', 'stove', 'chair', 'saw', 'pump')
TITLES = [f'{c} {t}' for c in COLORS for t in THINGS]


def write_ring(folder, users=150):
  folder.mkdir(parents=True, exist_ok=True)
  items = [{'item_id': f'i{n}', 'title': t} for n, t in enumerate(TITLES)]
  rows = [{'user_id': f'u{n}', 'items': [f'i{(17 * n + k) % 50}' for k in range(5 + n % 7)]}
          for n in range(users)]
  for name, lines in (('items', items), ('sequences', rows)):
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in lines))
  return folder


def config(name, data, **changes):
  spec = importlib.util.spec_from_file_location('c', ROOT / 'configs' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config(f'data={data}')
  c.mesh.data = 1
  c.tiny.update(vocab=400, width=48, layers=2, ffn=96, row_tokens=128, batch=4, epochs=2.0)
  c.prompt.template = 'bigrec'
  c.train.update(mode='full', epochs=40, batch=16, row_tokens=128, patience=0, valid_sample=20)
  c.optim.update(lr=6e-3, warmup=10, save_every=200, beta2=0.98)
  c.lora.update(rank=4, alpha=8.0, targets=('q', 'v'))
  c.assist.train.update(epochs=2, patience=2, batch=32)
  c.assist.model.update(width=16, hidden=16, max_history=10)
  c.decode.batch = 16
  c.eval.update(max_valid_users=32, max_test_users=100, classical=False)
  for key, value in changes.items():
    c[key].update(value)
  return c


def run(cfg, path):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ('data', 'fsdp', 'model'),
                           axis_types=(jax.sharding.AxisType.Auto,) * 3)
  facts = {'command': 'test', 'devices': '1', 'versions': {}, 'revision': '', 'overrides': {}}
  with workdir_lib.open_work(path, {'config': cfg.to_dict(), 'facts': facts}, mesh) as work:
    bigrec.run(cfg, work)
  results = json.loads((path / 'results.json').read_text())
  told.check(results)
  return results


class PullTest(parameterized.TestCase):
  """Lists and ranks by the paper's score: the normalized distance times (1 + W) ** -gamma, small
  first (BIGRec, arXiv 2308.08434), in plain numpy."""

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.n, self.vectors = 40, rng.normal(size=(40, 6))
    self.items = nearest.center(self.vectors)
    self.counts = rng.integers(0, 30, 40)
    self.popular = nearest.popularity(self.counts)
    self.queries = self.vectors[:9] + rng.normal(size=(9, 6)).astype(np.float32)
    self.table = rng.normal(size=(41, 40)).astype(np.float32)
    rows = [rng.permutation(np.arange(1, 41))[:3] for _ in range(9)]
    self.cases = splits.Cases(np.arange(9), (np.concatenate(rows).astype(np.int32), np.arange(
        0, 28, 3)), rng.integers(1, 41, 9).astype(np.int32))

  def score(self, items, offsets):
    return self.table[np.asarray(items)[np.asarray(offsets)[1:] - 1]]

  def want(self, kind, gamma, case):
    """The score of all items, the smallest first."""
    far = np.sqrt(((self.queries[case] - self.vectors) ** 2).sum(-1))
    scaled = lambda x: (x - x.min()) / (x.max() - x.min())  # noqa: E731
    weight = {'none': np.zeros(self.n), 'pop': scaled(self.counts / self.counts.sum()),
              'cf': scaled(self.table[self.cases.history(case)[-1]].astype(np.float64))}[kind]
    return scaled(far) * (1 + weight) ** -gamma

  @parameterized.parameters(('none', 0.0), ('pop', 0.0), ('pop', 1.0), ('pop', 9.0), ('cf', 0.5),
                            ('cf', 20.0), ('pop', 100.0))
  def test_lists_are_in_the_order_of_the_papers_score(self, kind, gamma):
    for mask in (False, True):
      found, scores = grounding.top(self.items, self.popular, self.score, self.queries, self.cases,
                                 self.n, 12, kind, gamma, mask)
      for case in range(9):
        value = self.want(kind, gamma, case)
        value[self.cases.history(case)[:3 * mask] - 1] = np.inf
        order = np.argsort(value, kind='stable')[:12]
        self.assertEqual(found[case].tolist(), (order + 1).tolist())
        np.testing.assert_allclose(scores[case], 1 - value[order], atol=2e-5)

  def test_a_strong_pull_brings_popular_items_up(self):
    mean = [
      self.counts[
        grounding.top(
          self.items,
          self.popular,
          self.score,
          self.queries,
          self.cases,
          self.n,
          5,
          'pop',
          gamma,
          False,
        )[0]
        - 1
      ].mean()
      for gamma in (0.0, 3.0, 30.0)
    ]
    self.assertEqual(mean, sorted(mean))
    self.assertGreater(mean[2], mean[0] + 5)

  def test_ranks_of_all_gammas_are_places_in_those_lists(self):
    cfg = ConfigDict({'ground': {'step': .5, 'max_gamma': 3}, 'eval': {
        'max_valid_users': 0, 'max_test_users': 0}, 'seed': 0})
    data = types.SimpleNamespace(catalog=range(self.n), cases=types.SimpleNamespace(
        known=types.SimpleNamespace(items=np.repeat(np.arange(1, 41), self.counts)),
        valid=self.cases, test=self.cases))
    folder = pathlib.Path(self.create_tempdir().full_path)
    for name, x in (('items', self.vectors), ('valid', self.queries), ('test', self.queries)):
      np.save(folder / f'{name}.npy', x)
    with workdir_lib.open_work(folder / 'run', {}) as work, mock.patch.multiple(
        grounding, instruction_data=mock.Mock(asked_rows=lambda *_: np.arange(9),
                                              masked=lambda *_: False),
        cf_assistant=mock.Mock(scorer=lambda *_: self.score)):
      found = grounding.rank_all(work, cfg, data, folder, None)[0]
    for kind in grounding.KINDS:
      self.assertEqual(found['test'][kind].shape, (5, 9))
      for gamma, ranks in zip((0, .5, 1, 2, 3), found['test'][kind]):
        for case in range(9):
          value = self.want(kind, gamma, case)
          self.assertEqual(ranks[case], (value < value[self.cases.targets[case] - 1]).sum())


class RingTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.room = contextlib.ExitStack()
    cls.folder = pathlib.Path(cls.room.enter_context(tempfile.TemporaryDirectory()))
    cls.data = write_ring(cls.folder / 'ring')

  @classmethod
  def tearDownClass(cls):
    cls.room.close()
    super().tearDownClass()

  @long
  def test_d3(self):
    path = self.folder / 'run'  # the tuned model of the same folder, where it is there, is used
    self.decoded(path)
    self.perfect_assistant(path)

  @long
  def test_one_prompt_at_a_time_and_later_items(self):
    path = self.folder / 'run'
    run(config('bigrec_games', self.data), path)
    written = workdir_lib.find_stage(path, 'generate')
    want = (written / 'test.json').read_bytes()
    single = run(config('bigrec_games', self.data, decode={'batch': 1},
                        eval={'max_valid_users': 8, 'max_test_users': 12}), path)
    self.assertEqual(told.check(single), (12, 150))
    self.assertIn('12 of 150 users, those with 3 items or more; drawn by seed 42 out of 150',
                  (path / 'report.html').read_text())
    few = json.loads((workdir_lib.find_stage(path, 'generate') / 'test.json').read_text())
    all_of_them = {r['input']: r for r in json.loads(want)}
    for row in few:
      self.assertEqual(row['predict'], all_of_them[row['input']]['predict'])
      np.testing.assert_allclose(row['predict_score'],
                                 all_of_them[row['input']]['predict_score'], atol=1e-3)
    self.later(path, recommend.load(path)[0])

  def test_a_run_of_few_steps(self):
    path = self.folder / 'brief'
    found, _ = self.grounded(path, train={'epochs': 1}, eval={
        'max_valid_users': 16, 'max_test_users': 16, 'classical': True}, tiny={'epochs': 1.0})
    self.assertEqual(told.check(found), (16, 150))
    beside_rows.check(self, path, loading.load_data(self.data), masked=True)

  @long
  def test_bigrec(self):
    found, items = self.grounded(self.folder / 'run')
    self.assertGreater(found['rows']['bigrec']['HR@1']['value'], 0.9)
    self.assertLess(found['invalid_titles'], 1)
    served_faces.check(self, bigrec, self.folder / 'run')
    self.assertEqual(items[0][0], 'i6')

  def grounded(self, path, **changes):
    """Runs BIGRec and looks at what it leaves. -> results, the items of two histories"""
    found = run(config('bigrec_games', self.data, **changes), path)
    self.assertIn('sasrec', found['rows'])
    ask, _ = recommend.load(path)
    both, scores = ask([['i3', 'i4', 'i5'], ['i20']], 5)
    self.assertEqual((len(both[1]), scores.shape), (5, (2, 5)))
    self.assertNotIn('i5', both[0])
    items, _ = ask([['i3', 'i4', 'i5']], 3, allowed={'i9', 'i4'})
    self.assertEqual(items, [['i9']])
    with self.assertRaisesRegex(DataError, 'history 1 is empty'):
      ask([['i1'], []], 3)
    page = (path / 'report.html').read_text()
    for said in ('Grounding', 'Beams, before grounding', 'bao2025bigrec'):
      self.assertIn(said, page)
    return found, both

  def later(self, path, ask):
    """New items in both ways, after no training; the old ones keep what they had."""
    data = self.folder / 'later'
    if not data.exists():
      later.write(self.data, data, [{'item_id': 'n0', 'title': 'red spoon'},
                                    {'item_id': 'n1', 'title': 'blue kettle'},
                                    {'item_id': 'n2', 'title': 'green drill mug'}], retired=['i6'])
    more, shop = recommend.load(path, data)
    self.assertLen(shop.catalog, 53)
    for history in (['i3', 'i4'], ['i3', 'n0'], ['n2']):
      items, scores = more([history], 3, allowed={'n1', 'i4', 'i6'})
      self.assertCountEqual(items[0], {'n1', 'i4'} - set(history))
      self.assertTrue(np.isfinite(scores[0, :len(items[0])]).all())
    some = [f'i{n}' for n in (9, 17, 25, 33)]
    old, before = ask([['i3', 'i4'], ['i20']], 4, allowed=some)
    new, after = more([['i3', 'i4'], ['i20']], 4, allowed=some)
    self.assertEqual(new, old)
    np.testing.assert_allclose(after, before, atol=.1)
    items, _ = more([['i3', 'i4', 'i5']], 8)
    self.assertNotIn('i6', items[0])
    wrong = self.folder / 'wrong'
    if not wrong.exists():
      later.write(self.data, wrong, [], swap=True)
    with self.assertRaisesRegex(DataError, "item 1 was 'i0', now it is 'i1'.*--update"):
      recommend.load(path, wrong)

  def decoded(self, path):
    cfg = config('d3_scientific', self.data, prompt={'noun': 'goods'},
                 decode={'alphas': (1.0, 0.5), 'beams': 10, 'ghost_cases': 16})
    found = run(cfg, path)
    self.assertGreater(found['rows']['d3:no_mixing']['HR@1']['value'], 0.9)
    self.assertEqual(found['invalid_titles'], 0)
    self.assertNotIn('HR@20', found['rows']['d3'])  # ten beams cannot tell
    ask, _ = recommend.load(path)
    items, scores = ask([['i3', 'i4', 'i5']], 20)
    self.assertLen(set(items[0]), 20)  # more than decode.beams
    self.assertFalse(set(items[0]) & {'i3', 'i4', 'i5'})
    self.assertTrue((np.diff(scores[0][:len(items[0])]) <= 0).all())
    items, _ = ask([['i3', 'i4', 'i5']], 3, allowed={'i9', 'i4'})
    self.assertEqual(items, [['i9']])
    served_faces.check(self, bigrec, path)
    self.later(path, ask)
    page = (path / 'report.html').read_text()
    for said in ('Ghost tokens', 'The LLM alone wrote', 'bao2024d3'):
      self.assertIn(said, page)
    for kind in ('merged', 'peft'):
      with contextlib.ExitStack() as room:
        if kind == 'peft':
          room.enter_context(self.assertRaisesRegex(ConfigError, 'choose merged'))
        export.convert(path, kind, self.folder / kind)
    self.assertTrue((self.folder / 'merged' / 'config.json').exists())

  def perfect_assistant(self, path):
    data = instruction_data.load(self.data, config('d3_scientific', self.data).samples)
    scores = {part: np.zeros((len(getattr(data.cases, part)), 50), np.float32)
              for part in ('valid', 'test')}
    for part, table in scores.items():
      table[np.arange(len(table)), getattr(data.cases, part).targets - 1] = 30
    order = np.random.default_rng(0).permutation(50)  # columns in another order
    file = self.folder / 'scores.npz'
    np.savez(file, item_ids=np.array(data.catalog.ids)[order],
             **{k: v[:, order] for k, v in scores.items()})
    cfg = config('d3_scientific', self.data, prompt={'noun': 'goods'}, assist={'source': str(file)},
                 decode={'alphas': (0.02,), 'beams': 10, 'ghost_cases': 16},
                 eval={'max_valid_users': 8, 'max_test_users': 24})
    found = run(cfg, path)
    self.assertEqual(found['rows']['d3']['HR@1']['value'], 1)
    np.savez(file, item_ids=np.array(data.catalog.ids), valid=scores['valid'][:3],
             test=scores['test'])
    with self.assertRaisesRegex(DataError, r'valid has shape \(3, 50\), it must be \(150, 50\)'):
      cf_assistant.read_scores(file, data)
    np.savez(file, item_ids=np.array(data.catalog.ids[:-1]), **scores)
    with self.assertRaisesRegex(DataError, 'item_ids has 49 ids, the catalog 50'):
      cf_assistant.read_scores(file, data)


class TokenizerTest(absltest.TestCase):
  """A checkpoint whose tokenizer writes titles in another form, or not at all."""

  def folder(self, normalizer):
    from tokenizers import Tokenizer
    path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / 'llm'
    made = tokenizer_lib.train_bpe(TITLES * 4, 330)
    backend = Tokenizer.from_str(made.backend.to_str())
    backend.normalizer = normalizer
    made = tokenizer_lib.wrap(backend, made.special_tokens, made.chat_template)
    shape = llm.Config(vocab=made.vocab_size, width=32, layers=1, heads=2, kv_heads=1, head_dim=16,
                       ffn=48, max_positions=4096)
    huggingface.save(llm.init(shape, jax.random.key(0)), shape, path)
    made.save(path)
    return path

  def data(self, odd):
    path = write_ring(pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / 'ring', 40)
    lines = (path / 'items.jsonl').read_text().splitlines()
    lines[:len(odd)] = [json.dumps({'item_id': f'i{n}', 'title': t}) for n, t in enumerate(odd)]
    (path / 'items.jsonl').write_text('\n'.join(lines) + '\n')
    return path

  def config(self, name, odd, normalizer, **changes):
    return config(name, self.data(odd), llm={'weights': str(self.folder(normalizer))},
                  eval={'max_valid_users': 4, 'max_test_users': 8}, train={'epochs': 1}, **changes)

  @long
  def test_decomposed_titles_are_decoded_after_training(self):
    from tokenizers import normalizers
    odd, reached = ['10 k\u2126 resistor', 'Cafe\u0301 scale'], []
    cfg = self.config('d3_scientific', odd, normalizers.NFC(), prompt={'noun': 'goods'},
                      decode={'alphas': (1.0,), 'beams': 10})

    def choose(work, cfg, data, *rest):
      search = d3.Search(work, cfg, data, *rest)
      reached.append((len(search.catalog[0]), data.titles[:2],
                      data.notes['titles_as_the_tokenizer_spells_them']))
      raise ConfigError('far enough')
    path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    with mock.patch.object(d3, 'choose', choose), \
        self.assertRaisesRegex(ConfigError, 'far enough'):
      run(cfg, path)
    self.assertEqual(reached, [(50, ['10 k\u03a9 resistor', 'Caf\u00e9 scale'], 2)])

  def test_lost_letters_are_named_before_training(self):
    from tokenizers import normalizers
    for name in ('d3_scientific', 'bigrec_games'):
      cfg = self.config(name, ['Don\u2019t'], normalizers.Replace('\u2019', ''))
      path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
      with self.assertRaisesRegex(DataError, r'item i0, .*at character 4 U\+2019'):
        run(cfg, path)
      self.assertFalse(list(path.glob('stages/*')))


class PromptTest(parameterized.TestCase):

  def test_templates_hold_what_records_need(self):
    for name in ('bigrec', 'd3'):
      template = prompts.load_template(name)
      record = template.record('games', ['A {x}', 'B'], 'C')
      text = template.text(record)
      self.assertIn('"A {x}", "B"', text)
      self.assertNotIn('{history}', text)
      self.assertEqual(prompts.title_of(template.reply('C')), 'C')
    self.assertTrue(prompts.load_template('d3').text(record).endswith('### Response: '))
    self.assertTrue(prompts.load_template('d3').reply('C').endswith('"C"\n'))

  @parameterized.parameters(
      ('[instruction]\nx\n[input]\n{history}\n[prompt]\n{instruction}{input}\n', r'\[answer\] is'),
      ('[instruction]\nx\n[input]\nno\n[prompt]\n{instruction}{input}\n[answer]\n{title}\n',
       r'\[input\] lacks \{history\}'))
  def test_templates_that_lack_something(self, text, what):
    path = pathlib.Path(tempfile.mkdtemp()) / 't.txt'
    path.write_text(text)
    with self.assertRaisesRegex(ConfigError, what):
      prompts.load_template(str(path))
    with self.assertRaisesRegex(ConfigError, 'is unknown'):
      prompts.load_template('other')
    with self.assertRaisesRegex(ConfigError, 'does not exist'):
      prompts.load_template('none.txt')

  def test_too_long_prompts_lose_their_oldest_titles_alone(self):
    template = prompts.load_template('bigrec')
    record = template.record('games', ['one', 'two', 'three'], 'four')
    tokenizer = tokenizer_lib.train_bpe([template.text(record)] * 5, 300)
    (ids,), cut = prompts.encode_prompts(tokenizer, template, [record], 10**6)
    (short,), was = prompts.encode_prompts(tokenizer, template, [record], len(ids) - 1)
    self.assertEqual((cut, was), (0, 1))
    self.assertIn('"two", "three"', tokenizer.decode(short))
    self.assertNotIn('"one"', tokenizer.decode(short))
    with self.assertRaisesRegex(DataError, 'raise prompt.max_prompt_tokens'):
      prompts.encode_prompts(tokenizer, template, [record], 5)

  def test_records_of_ones_own_stay_as_they_are(self):
    folder = pathlib.Path(tempfile.mkdtemp())
    rows = [{'instruction': 'Say.', 'input': 'Had:"A", "X", "B"\n ', 'output': '"C"'}]
    for part in ('train', 'valid', 'test'):
      files.write_records(folder / f'{part}.json', rows)
    files.write_id2name(folder / 'id2name.txt', ['A', 'B', 'C', 'A'])
    data = instruction_data.load(
        folder, ConfigDict(dict(window='game', split='auto', max_history=10)))
    template = prompts.load_template('bigrec')
    self.assertEqual(data.records_of('test', template, 'x'), rows)
    self.assertEqual(data.cases.test.history(0).tolist(), [1, 2])
    self.assertEqual(data.notes, {'items_with_a_shared_title': 1, 'unknown_history_titles': 3})
    self.assertEqual(data.cases.known.items.tolist(), [1, 2, 3])
    files.write_records(folder / 'test.json', [dict(rows[0], output='"Z"')])
    with self.assertRaisesRegex(DataError, 'test.json: the targets of 1 records are no title'):
      instruction_data.load(folder, ConfigDict(dict(window='game', split='auto', max_history=10)))


class MisreadTest(parameterized.TestCase):
  """Records that were written from a movies.dat read as Latin-1, as the authors' are."""
  TITLES = ['Misérables, Les (1995)', 'Voilà (1999)', 'Á köldum klaka (1994)', 'Schindler’s List',
            'Toy Story', 'Łódź, 東京 (2001)', 'CAFÉ®']

  def load(self, catalog, written, code='utf-8', told=None):
    """written: function of a title to how the records spell it. -> Data, raw records"""
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    told = [written(t) for t in told or self.TITLES]
    rows = [{'instruction': 'Say.', 'input': f'Vu :{files.quote_titles(told[:n] or told[-1:])}\n ',
             'output': f'"{told[n]}"'} for n in range(len(told))]
    for part in ('train', 'valid', 'test'):
      files.write_records(folder / f'{part}.json', rows)
    (folder / 'movies.dat').write_bytes(''.join(
        f'{n}::{t}::Drama\n' for n, t in enumerate(catalog, 1)).encode(code))
    data = instruction_data.load(
        folder, ConfigDict(dict(window='movie', split='auto', max_history=10)))
    return data, rows

  def check(self, data):
    self.assertEqual(data.titles, self.TITLES)
    self.assertEqual(data.cases.train.targets.tolist(), [1, 2, 3, 4, 5, 6, 7])
    self.assertEqual(data.cases.test.history(6).tolist(), [1, 2, 3, 4, 5, 6])
    self.assertEqual(data.notes['unknown_history_titles'], 0)
    record = data.records['test'][6]
    self.assertEqual(record, {'instruction': 'Say.', 'output': '"CAFÉ®"',
                              'input': f'Vu :{files.quote_titles(self.TITLES[:6])}\n '})

  @staticmethod
  def windows(title):
    return ''.join(bytes([b]).decode('cp1252', 'ignore') or chr(b) for b in title.encode())

  @parameterized.named_parameters(
      ('latin', lambda t: t.encode().decode('latin-1')), ('windows', windows),
      ('twice', lambda t: t.encode().decode('latin-1').encode().decode('latin-1')),
      ('decomposed', lambda t: unicodedata.normalize('NFD', t).replace('’', '\u00e2\u20ac\u2122')),
      ('spaces', lambda t: ' '.join(t.encode().decode('latin-1').split())))
  def test_records_alone_are_misread(self, written):
    data, _ = self.load(self.TITLES, written)
    self.check(data)
    # Six are not plain ASCII; they stand in 1 output and 5, 4, 3, 2, 0 histories, the last in one.
    self.assertEqual(data.notes['misread_titles_of_records'],
                     3 * (6 + sum(6 - n for n in (0, 1, 2, 3, 5)) + 1))
    self.assertNotIn('misread_titles_of_the_catalog', data.notes)

  def test_the_catalog_alone_is_misread(self):
    data, rows = self.load([t.encode().decode('latin-1') for t in self.TITLES], lambda t: t)
    self.check(data)
    self.assertEqual(data.notes['misread_titles_of_the_catalog'], 6)
    self.assertEqual(data.records['test'], rows)

  def test_both_are_misread(self):
    titles = ['Misérables, Les (1995)', 'Voilà (1999)', 'Café', 'Toy Story']
    wrong = lambda t: t.encode().decode('latin-1')  # noqa: E731
    data, _ = self.load([wrong(t) for t in titles], wrong, told=titles)
    self.assertEqual(data.titles, titles)
    self.assertEqual(data.notes['misread_titles_of_the_catalog'], 3)
    self.assertEqual(data.records['test'][1]['output'], '"Voilà (1999)"')

  @parameterized.parameters('utf-8', 'cp1252')
  def test_what_is_right_stays(self, code):
    titles = [t for t in self.TITLES if '東' not in t]
    titles += ['MINHA IRMÃ…', 'NÃO', '«Ürgüp»', 'Â', 'É®']
    data, rows = self.load(titles, lambda t: t, code, titles)
    self.assertEqual(data.titles, titles)
    self.assertEqual(data.records['test'], rows)
    self.assertEqual({k for k in data.notes if 'misread' in k}, set())

  def test_one_that_was_misread_among_others(self):
    data, _ = self.load(self.TITLES, lambda t: (
        t.encode().decode('latin-1') if t.startswith('V') else t))
    self.check(data)

  def test_what_means_no_title_is_refused(self):
    with self.assertRaisesRegex(DataError, 'record 0: "MisÃ©'):
      self.load(['Toy Story'], lambda t: t.encode().decode('latin-1'))

  @absltest.skipUnless(SHARED.is_dir(), f'needs {SHARED}')
  def test_published_layout(self):
    settings = ConfigDict(dict(window='movie', split='auto', max_history=10))
    want = instruction_data.load(SHARED / 'movie', settings)
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    (folder / 'movies.dat').write_bytes((SHARED / 'movie' / 'movies.dat').read_bytes())
    for part in ('train', 'valid', 'test'):
      text = (SHARED / 'movie' / f'{part}.json').read_text(encoding='utf-8')
      rows = json.loads(text)
      files.write_records(folder / f'{part}.json', [
          {k: v.encode().decode('latin-1') for k, v in r.items()} for r in rows])
    found = instruction_data.load(folder, settings)
    self.assertEqual(found.records, want.records)
    odd = sum(not t.isascii() for rows in want.records.values() for r in rows
              for t in (r['output'], *files.unquote_titles(r['input'])))
    self.assertGreater(odd, 5)
    self.assertEqual(found.notes.pop('misread_titles_of_records'), odd)
    self.assertEqual((found.titles, found.notes), (want.titles, want.notes))


class LengthTest(absltest.TestCase):

  def test_prompts_count_in_the_length_of_old_releases_alone(self):
    asked, given = [[1, 2, 3], [1, 2, 3, 4, 5]], []

    def answer(rows, search, constraint):
      given.append((rows, search))
      self.assertEqual(constraint.eos_ids, (0,))
      return types.SimpleNamespace(row=lambda b, k: [b, k], scores=np.zeros((2, 2)))
    writer = types.SimpleNamespace(
        own=lambda prompt: prompt[2:], generate=answer, tokenizer=types.SimpleNamespace(
            eos_ids=[0], decode=str))
    cfg = ConfigDict(dict(beams=2, new_tokens=4, length_penalty=1.0, length_norm='full'))
    self.assertEqual(gen.texts(writer, asked, cfg)[1][0], ['[1, 0]', '[1, 1]'])
    gen.texts(writer, asked, ConfigDict({**cfg, 'length_norm': 'generated'}))
    # the opening counts too
    self.assertEqual([np.asarray(s.length_offset).tolist() for _, s in given], [[3, 5], 0])
    with self.assertRaisesRegex(ConfigError, 'length_norm'):
      gen.texts(writer, asked, ConfigDict({**cfg, 'length_norm': 'none'}))


class JudgeTest(absltest.TestCase):

  def test_duplicate_titles_b8(self):
    titles = ['A', 'B', 'A']
    items, rank = np.array([[2, 1, 3], [1, 3, 2]]), lambda policy, t: evaluate.rank_in(  # noqa: E731
        items, [t, t], titles, policy, 9).tolist()
    self.assertEqual(rank('exact_id', 3), [2, 1])  # the last id, as the movie files judge
    self.assertEqual(rank('best', 3), [1, 0])      # the best of equal titles, as the game files do
    self.assertEqual(evaluate.rank_in(np.array([[1, 0, 0]]), [2], titles, 'best', 9).tolist(), [9])
    with self.assertRaisesRegex(ConfigError, 'duplicate_titles'):
      rank('some', 1)

  def test_titles_count_once_where_any_item_of_a_title_will_do(self):
    titles = ['pump', 'rope', 'pump', 'tray']
    rows = np.array([[1, 3, 2, 0], [4, 2, 0, 0], [3, 4, 1, 0]], np.int32)
    for targets, best, exact in (((2, 1, 1), (1, 9, 0), (2, 9, 2)),
                                 ((1, 4, 4), (0, 0, 1), (0, 0, 1))):
      self.assertEqual(evaluate.rank_in(rows, targets, titles, 'best', 9).tolist(), list(best))
      self.assertEqual(evaluate.rank_in(rows, np.array(targets), titles, 'exact_id', 9).tolist(),
                       list(exact))

  def test_likeness(self):
    self.assertEqual(evaluate.likeness(np.array([[1, 2]]), ['a b', 'a b']), 1)
    self.assertAlmostEqual(evaluate.likeness(np.array([[1, 2, 0]]), ['a b', 'a c']), 1 / 3)

  def test_settings_are_chosen_over_users_where_the_split_says_so(self):
    cases = splits.Cases(np.array([0, 0, 0, 1], np.int32), (np.ones(4, np.int32), np.arange(5)),
                         np.array([2, 3, 4, 2], np.int32))
    ranks = np.array([0, 0, 0, 9])
    self.assertEqual(evaluate.means(ranks, cases, (1,))['HR@1'], .5)
    self.assertEqual(evaluate.means(ranks, None, (1,))['HR@1'], .75)
    shop = loading.load_data('sample:1:60')
    shop = dataset_lib.with_rule(shop, SplitRule('global_time', '0.7', 'successive', refit=False))
    made = windows.make_samples(shop, 'x', 'game', 'auto', 10)
    data = instruction_data.Data('x', shop.catalog, [], made, 10, {}, '', {})
    found = instruction_data.of_users(data, 'valid', 0)
    np.testing.assert_array_equal(found.users, made.valid.users)
    self.assertIsNotNone(found.owners())

  def test_a_user_asked_twice_has_two_names(self):
    self.assertEqual(evaluate.case_names(['x', 'y'], [0, 0, 1]), ['x', 'x#2', 'y'])


class RefusalTest(parameterized.TestCase):

  @parameterized.parameters(
      ('variant', None, 'other', 'variant='), ('decode', 'beams', 0, 'decode.beams'),
      ('train', 'batch', 0, 'train.batch'))
  def test_wrong_settings(self, group, key, value, what):
    cfg = config('bigrec_games', 'sample')
    if key:
      cfg[group][key] = value
    else:
      cfg[group] = value
    with self.assertRaisesRegex(ConfigError, what):
      bigrec.check(cfg)

  def test_an_assistant_of_other_data_is_refused(self):
    cfg = config('d3_scientific', 'sample')
    cfg.assist.source = tempfile.mkdtemp()
    with self.assertRaisesRegex(ConfigError, "no run of the method 'sequential'"):
      cf_assistant.stage(None, cfg, None)


if __name__ == '__main__':
  absltest.main()
