"""RecLM whole on a ring of thirty titles, trained and untrained: items exist, none comes twice."""
import contextlib
import functools
import importlib.util
import io
import json
import pathlib
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict
from rich.console import Console

from recjax import chat, recommend, run_files
from recjax.data.dataset import Catalog
from recjax.data.loading import load_data
from recjax.errors import ConfigError, DataError
from recjax.methods import reclm
from recjax.methods.reclm import (
  control_tasks,
  conversation,
  generate,
  offline_samples,
  planning,
  prompts,
  teacher,
  tokenized_catalog,
  train,
)
from recjax.models import huggingface
from recjax.models import llm as llm_lib
from recjax.text import prompt_templates, tokenizer
from recjax.training import llm_loading
from recjax.training import workdir as workdir_lib
from tests import devices, later, served_faces, told
from tests.long import long, long_but

ROOT = pathlib.Path(__file__).parents[2]
TITLES = [f'{c} {t}' for c in ('red', 'blue', 'green') for t in (
    'kettle', 'lamp', 'rope', 'drill', 'mug', 'tent', 'stove', 'chair', 'saw', 'pump')]
TEMPLATE = prompt_templates.read('reclm', 'recjax.methods.reclm', prompts.FIELDS)


def write_ring(folder, users=90):
  folder.mkdir(parents=True, exist_ok=True)
  items = [{'item_id': f'i{n}', 'title': t, 'categories': ['goods', t.split()[1]]}
           for n, t in enumerate(TITLES)]
  rows = [{'user_id': f'u{n}', 'items': [f'i{(7 * n + k) % 30}' for k in range(5 + n % 5)]}
          for n in range(users)]
  for name, lines in (('items', items), ('sequences', rows)):
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in lines))
  return folder


def config(data, grounding='cgen', **changes):
  spec = importlib.util.spec_from_file_location('c', ROOT / 'configs' / 'reclm_scientific.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config(f'data={data},grounding={grounding}')
  c.mesh.data = 1
  c.tiny.update(vocab=400, width=32, layers=1, ffn=64, heads=2, row_tokens=128, epochs=1.0)
  c.train.update(epochs=2, batch=16, row_tokens=256, valid_users=16)
  c.teacher.train.update(epochs=2, batch=32)
  c.teacher.model.update(width=16, hidden=16, max_history=10)
  c.ret.update(hidden=0)
  c.semantic_ids.update(levels=2, size=8)
  c.decode.update(new_tokens=160, batch=16)
  c.eval.update(users=32, rounds=4, answer_tokens=16, cross_users=8, classical=False)
  for key, value in changes.items():
    c[key].update(value)
  return c


def one_device():
  return devices.mesh(data=1, fsdp=1, model=1)


def eight_devices():
  return devices.mesh(data=4, fsdp=2, model=1)


def run(cfg, path):
  facts = {'command': 'test', 'devices': '1', 'versions': {}, 'revision': '', 'overrides': {}}
  with (
    workdir_lib.open_work(path, {'config': cfg.to_dict(), 'facts': facts}, one_device()) as work,
    contextlib.redirect_stdout(io.StringIO()),
  ):
    reclm.run(cfg, work)


class WholeTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    write_ring(cls.folder / 'ring')

  @parameterized.parameters('cgen', 'ret', 'token')
  @long
  def test_lists_exist_and_a_face_recommends(self, grounding):
    path = self.folder / grounding
    more = {'eval': {'rounds': 0}}
    if grounding == 'cgen':
      more = {'eval': {'cross': str(self.folder / 'ring'), 'free': 8, 'candidates': 12},
              'control': {'share': 0.3, 'users': 8}}
    run(config(self.folder / 'ring', grounding, **more), path)
    found = run_files.read_json(path / 'results.json')
    self.assertEqual(told.check(found)[0], 32)
    self.assertEqual((found['rates']['NonExistRate@10'], found['rates']['RepeatRate@10']), (0, 0))
    self.assertEqual(list(found['rows'])[:3], [grounding, f'{grounding}:ranked', 'sasrec'])
    page = (path / 'report.html').read_text()
    for said in ('The reply', 'liao2026reclm'):
      self.assertIn(said, page)
    if grounding == 'cgen':
      self.assertEqual(found['rounds']['RepeatRate@10'], 0)
      self.assertEqual(found['cross']['NonExistRate@10'], 0)
      self.assertEqual(found['free']['lists'], 8)
      self.assertEqual(found['ranking']['candidates'], 12)
      self.assertBetween(found['ranking']['NotInCandidateRate@10'], 0, 10)
      self.assertEqual(list(found['control']), [*control_tasks.LIST_KINDS, 'category_of'])
      for kind in control_tasks.LIST_KINDS:
        self.assertEqual(found['control'][kind]['users'], 8)
        self.assertBetween(found['control'][kind]['followed'], 0, 1)
      self.assertIn('Requests about categories', page)
    face, shop = recommend.load(path)
    items, scores = face([['i3', 'i4'], ['i9']], 4)
    for history, row in zip((['i3', 'i4'], ['i9']), items):
      self.assertLen(set(row), 4)
      self.assertFalse(set(row) & set(history))
    self.assertTrue((np.diff(scores, axis=1) <= 0).all())
    if grounding != 'token':  # prompts are kept alike for all
      served_faces.check(self, reclm, path)
    self.assertEqual(face([['i3']], 4, allowed={'i1', 'i2'})[0][0].sort(), ['i1', 'i2'].sort())
    self.assertLess(set(face([['i3']], 4, allowed={'i1', 'i2'})[0][0]), {'i1', 'i2', 'i3'})
    self.later(path, grounding, face)

  def later(self, path, grounding, face):
    """New titles after no training, where titles are all that is known of an item."""
    data = self.folder / f'later-{grounding}'
    later.write(self.folder / 'ring', data, [
        {'item_id': 'n0', 'title': 'red spoon'}, {'item_id': 'n1', 'title': 'blue kettle drill'}],
        retired=['i6'])
    if grounding != 'cgen':
      with self.assertRaisesRegex(ConfigError, f'grounding={grounding} .* grounding=cgen'):
        recommend.load(path, data)
      return
    more, shop = recommend.load(path, data)
    self.assertLen(shop.catalog, 32)
    items, scores = more([['i3', 'n0'], ['n0']], 3, allowed={'n1', 'i6', 'n0'})
    self.assertEqual(items, [['n1'], ['n1']])
    self.assertTrue(np.isfinite(scores[:, 0]).all())
    some = {'i1', 'i2', 'i9', 'i20'}
    for old, new in zip(face([['i3'], ['i7']], 4, allowed=some),
                        more([['i3'], ['i7']], 4, allowed=some)):
      if isinstance(old, list):
        self.assertEqual(new, old)
      else:
        np.testing.assert_allclose(new, old, atol=1e-3)
    self.assertNotIn('i6', more([['i3', 'i4', 'i5']], 20)[0][0])
    later.write(self.folder / 'ring', self.folder / 'wrong', [], swap=True)
    with self.assertRaisesRegex(DataError, "item 1 was 'i0', now it is 'i1'.*--update"):
      recommend.load(path, self.folder / 'wrong')

  @long
  def test_eight_devices_learn_what_one_does(self):
    cfg = config(self.folder / 'ring', train=dict(batch=3, epochs=1), optim=dict(log_every=1))
    shop, found = load_data(cfg.data), []
    for number, mesh in enumerate((one_device(), eight_devices())):
      with (
        workdir_lib.open_work(
          self.folder / f'devices-{number}', {'config': {}, 'facts': {}}, mesh
        ) as work,
        contextlib.redirect_stdout(io.StringIO()),
      ):
        if not number:
          llm = llm_loading.folder(
            cfg, work, [prompts.message('system', 'x')], lambda: TITLES * 9, shop
          )
          helper = work.stage('teacher', teacher.stage, teacher.settings(cfg), shop)
        work.stage('tune', train.stage, train.settings(cfg), shop, llm, helper, None, None)
        found.append([r for r in work.metrics() if r['stage'] == 'tune'])
    one, eight = ([r['loss'] for r in rows if 'loss' in r] for rows in found)
    self.assertGreater(len(one), 5)
    np.testing.assert_allclose(one[:8], eight[:8], rtol=1e-5)
    last = [[r['title_nll'] for r in rows if 'title_nll' in r][-1] for rows in found]
    self.assertAlmostEqual(*last, delta=1e-3)

  @long
  def test_one_adapter_run_converts_and_talks(self):
    path = self.folder / 'lora'
    cfg = config(self.folder / 'ring', train=dict(mode='lora', epochs=1),
                 eval=dict(rounds=0))
    run(cfg, path)
    reclm.convert(path, 'merged', self.folder / 'merged')
    shape = huggingface.read_config(self.folder / 'merged')
    speaker = train.load_model(
      cfg, workdir_lib.find_stage(path, 'llm'), workdir_lib.find_stage(path, 'tune'), one_device()
    )
    ids = np.array([[5, 9, speaker.soi, 7]])
    at = np.arange(4)[None]
    ours = speaker.model.apply(speaker.variables, ids, at, np.ones_like(ids))[0]
    merged = huggingface.load(self.folder / 'merged', shape)
    theirs = llm_lib.LM(shape).apply({'params': merged}, ids, at, np.ones_like(ids))[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    reclm.convert(path, 'samples', self.folder / 'samples')
    shop = load_data(str(self.folder / 'ring'))
    kept = offline_samples.read(
      self.folder / 'samples', shop, tokenized_catalog.load(shop.catalog, speaker.tokenizer), ''
    )
    done = run_files.read_json(workdir_lib.find_stage(path, 'tune') / 'DONE.json')['counts']
    self.assertEqual(done['samples'], sum(map(len, kept['train'])))
    self.assertLen(kept['valid'], 16)
    with self.assertRaisesRegex(ConfigError, 'choose merged'):
      reclm.convert(path, 'peft', self.folder / 'other')
    shown = io.StringIO()
    chat.run(path, [], ['/about i1,i2', 'What now? <SOI>', '/json', 'More please', '/domain x',
                        '/clear', '/what', '/quit', 'never'], Console(file=shown, width=200))
    said = shown.getvalue()
    self.assertIn('This tiny model shows the method', said)
    self.assertIn("no catalog 'x'", said)
    self.assertIn('"items"', said)
    self.assertNotIn('never', said)


@functools.cache
def eager_speaker():
  made = tokenizer.train_bpe(TITLES + list(TEMPLATE.values()), 400)
  shape = llm_lib.Config(
    vocab=made.vocab_size,
    width=32,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=16,
    ffn=48,
    max_positions=4096,
  )
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    huggingface.save(llm_lib.init(shape, jax.random.key(0)), shape, folder)
    made.save(folder)
    speaker = train.new_chat_model(config('sample'), folder, one_device())
  p = speaker.params  # the first width is always large
  speaker.params = {**p, 'embed': p['embed'].at[:, 0].set(1.0),
                    'head': p['head'].at[0].set(0.0).at[0, speaker.soi].set(1.0)}
  return speaker


def eager():
  """An untrained model that likes to begin items. -> config, Speaker"""
  return config('sample'), eager_speaker()


class UntrainedTest(parameterized.TestCase):
  """A chat model as it is, over catalogs given at the start."""

  @parameterized.parameters(0.0, 2.0)
  @long_but(1)
  def test_two_catalogs_and_no_training(self, temperature):
    cfg, speaker = eager()
    cfg.decode.update(temperature=temperature, new_tokens=64, count=4)
    shelves = conversation.untrained_models(speaker, {
        'tools': Catalog(tuple(f't{i}' for i in range(30)), {'title': TITLES}),
        'two': Catalog(('x', 'y'), {'title': ['One', 'Two']})})
    some = conversation.Conversation(cfg, shelves, TEMPLATE['system'])
    total = 0
    for n, domain in enumerate(['tools', 'two', 'tools']):
      some.use(domain)
      reply = some.say(f'What do you have? {n}', max_items=4, seed=n)
      self.assertLen(set(reply.items), len(reply.items))
      self.assertLessEqual(len(reply.items), 2 if domain == 'two' else 4)
      total += len(reply.items)
    self.assertGreater(total, 2)

  @long
  def test_rounds_read_new_tokens_alone_and_say_the_same(self):
    cfg, speaker = eager()
    cfg.decode.update(new_tokens=24, count=3)
    shelves = conversation.untrained_models(speaker, {'tools': Catalog(
        tuple(f't{i}' for i in range(30)), {'title': TITLES})})
    kept = conversation.Conversation(cfg, shelves, TEMPLATE['system'])
    whole = conversation.Conversation(cfg, shelves, TEMPLATE['system'])
    for text in ('Hello', 'Something red?', 'Thanks'):
      whole.cached_ids, whole.cache = [], None  # reads everything again
      self.assertEqual(kept.say(text).ids, whole.say(text).ids)
    self.assertLess(kept.read_tokens, 0.7 * whole.read_tokens)

  @parameterized.parameters(0.0, 1.5)
  @long
  def test_a_reply_is_told_while_it_is_made(self, temperature):
    cfg, speaker = eager()
    cfg.decode.update(temperature=temperature, new_tokens=64, count=4)
    shelves = conversation.untrained_models(
      speaker, {'tools': Catalog(tuple(f't{i}' for i in range(30)), {'title': TITLES})}
    )
    some, told, shown = (
      conversation.Conversation(cfg, shelves, TEMPLATE['system']),
      [],
      io.StringIO(),
    )
    written = chat.Written(some, Console(file=shown, width=60))

    def tell(reply):
      told.append(reply)
      written(reply)
    reply = some.say('What do you have?', max_items=4, seed=3, tell=tell)
    written(reply)
    self.assertGreater(len({t.text for t in told}), 3)
    for before, after in zip(told, [*told[1:], reply]):
      self.assertStartsWith(after.text, before.text)
      self.assertEqual(after.items[:len(before.items)], before.items)
    self.assertNotEmpty(reply.items)
    self.assertEqual(shown.getvalue(), chat.shown(reply.text, chat.named(some, reply)).plain)
    again = conversation.Conversation(cfg, shelves, TEMPLATE['system'])
    self.assertEqual(again.say('What do you have?', max_items=4, seed=3), reply)

  @long
  def test_a_conversation_drops_its_oldest_rounds(self):
    cfg, speaker = eager()
    cfg.decode.update(new_tokens=16, count=2)
    cfg.prompt.max_prompt_tokens = 128
    shelves = conversation.untrained_models(
      speaker, {'': Catalog(('x', 'y'), {'title': ['One', 'Two']})}
    )
    some = conversation.Conversation(cfg, shelves, 'Be kind.')
    for n in range(6):
      some.say(f'Round {n} of a talk')
    self.assertLess(len(some.turns), 13)
    self.assertEqual(some.turns[0]['role'], 'system')
    with self.assertRaisesRegex(ConfigError, 'fewer words'):
      some.say('word ' * 400)


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(
      ('grounding', 'x', 'grounding'), ('train.scope', 'x', 'train.scope'),
      ('decode.num_items', 9, '10 or more'), ('decode.batch', 0, 'at least 1'),
      ('train.control_like', 'x', 'words, quotes'), ('train.static', '/nowhere', 'train.static'),
      ('control.share', 2.0, 'between 0 and 1'), ('talk.source', '/no/chat', 'talk.source'),
      ('talk.questions', '/no/sums', 'talk.questions'), ('eval.cross', '/no/data', 'eval.cross'),
      ('prompt.template', 'x', 'prompt.template'))
  def test_settings_that_cannot_work(self, key, value, what):
    cfg = config('sample')
    with cfg.unlocked():
      cfg.update(ConfigDict({key: value}) if '.' not in key else {})
      if '.' in key:
        group, name = key.split('.')
        cfg[group][name] = value
    with self.assertRaisesRegex(ConfigError, what):
      reclm.check(cfg)

  @long
  def test_cost_is_counted(self):
    found = planning.cost(config('sample:1:60'), load_data('sample:1:60'))
    self.assertIn('TFLOP', found['training'])

  def test_documents_name_every_title(self):
    text = '\n'.join(planning.documents(TEMPLATE, TITLES, 0, walks=1))
    self.assertTrue(all(t in text for t in TITLES))

  def test_ret_takes_one_catalog(self):
    made = tokenizer.train_bpe(TITLES, 400)
    made, (soi, eoi) = tokenizer.add_control_tokens(made, ['<SOI>', '<EOI>'])
    stock = tokenized_catalog.load(Catalog(('x',), {'title': ['One']}), made)
    model = llm_lib.LM(llm_lib.Config(made.vocab_size, 16, 1, 1, 1, 16, 16))
    speaker = train.ChatModel(model, {}, None, made, soi, eoi, [])
    with self.assertRaisesRegex(ConfigError, 'give one catalog'):
      generate.GroundedModel(speaker, [stock, stock], ['a', 'b'], 'ret')


if __name__ == '__main__':
  absltest.main()
