"""RecLM's samples: requests about categories, files of samples, and what a mask is judged by."""
import dataclasses
import importlib.util
import json
import pathlib
import tempfile
import types

import jax
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from recjax.data.dataset import Catalog, Interactions, make_dataset
from recjax.data.formats import sft
from recjax.data.loading import load_data
from recjax.errors import ConfigError, DataError
from recjax.methods.reclm import (
  chat_encoding,
  control_tasks,
  offline_samples,
  prompts,
  sft_data,
  teacher,
  tokenized_catalog,
)
from recjax.methods.reclm import train as train_lib
from recjax.models import embedding_resize, llm
from recjax.text import prompt_templates
from recjax.text import tokenizer as tokenizer_lib
from recjax.training import microbatch
from recjax.training import sft as tuning
from recjax.training.losses import trie_masked
from tests.long import long

ROOT = pathlib.Path(__file__).parents[2]
SHARED = ROOT.parent / 'shared/data/formats/reclm-cgen'
TEMPLATE = prompt_templates.read(
  'reclm', 'recjax.methods.reclm', {**prompts.FIELDS, **control_tasks.FIELDS}
)
N = 12
CATALOG = Catalog(tuple(f'i{n}' for n in range(N)), {
    'title': [f'thing {chr(97 + n)}' for n in range(N)],
    'categories': [['Root', 'odd' if n % 2 else 'even', f'third {n % 3}'] for n in range(N)]})


def teach(histories, k, signs=None):
  """Items in their order, without the history; those of a category, or the others."""
  groups, out = teacher.category_masks(CATALOG), np.zeros((len(histories), k), np.int32)
  for b, history in enumerate(histories):
    row = [i for i in range(1, N + 1) if i not in history and (
        signs is None or groups[signs[b][1:]][i] == (signs[b][0] == '+'))][:k]
    out[b, :len(row)] = row
  return out


def shop(users=40):
  items = [(7 * u + 5 * j) % N + 1 for u in range(users) for j in range(6)]
  return make_dataset('things', CATALOG, Interactions(
      tuple(f'u{n}' for n in range(users)), np.array(items, np.int32),
      np.arange(0, 6 * users + 1, 6)), {})


def tokenizer():
  return tokenizer_lib.train_bpe([*CATALOG.columns['title'], *TEMPLATE.values()], 320)


def config(**changes):
  c = ConfigDict(dict(seed=0, prompt=dict(template='reclm', max_prompt_tokens=1024, variables={}),
                      control=dict(share=0.0, users=4)))
  c.train = dict(epochs=2, longest_list=5, full_lists=False, candidates=0.3, rule=0.5,
                 multi_round=0.5, chat_share=0.2, wishes=0.0, sample=0, valid_users=8, static='',
                 scope='all', scope_end=True, gamma=0.0, focus='title', mode='full', prompt=0.0,
                 free=0.0, full_histories=False, average='tokens')
  c.grounding = 'cgen'
  c.update(changes)
  return c


class WishTest(parameterized.TestCase):

  @parameterized.parameters(
      ('with', 0, [2, 4], True), ('with', 0, [2, 1], False), ('with', 0, [], False),
      ('without', 0, [1, 3], True), ('without', 0, [1, 2], False), ('without', 0, [], False),
      ('at_most', 1, [1, 2], True), ('at_most', 1, [4, 2], False), ('at_most', 1, [], False),
      ('at_least', 2, [1, 2, 4], True), ('at_least', 2, [1, 2], False),
      ('about', 2, [1, 2], True), ('about', 2, [1, 3], False), ('about', 0, [1, 2], True))
  def test_when_a_wish_is_followed(self, kind, wanted, items, want):
    self.assertEqual(
      control_tasks.CategoryRequest(kind, 'even', wanted).followed(items, {2, 4}), want
    )

  def test_lists_that_are_learned_follow_their_wishes(self):
    stock = tokenized_catalog.load(CATALOG, tokenizer())
    groups, rng, kinds = control_tasks.category_members(stock), np.random.default_rng(0), []
    for _ in range(40):
      kinds += control_tasks.LIST_KINDS
    histories = [rng.permutation(N)[:3] + 1 for _ in kinds]
    targets = [int(rng.choice(np.setdiff1d(np.arange(1, N + 1), h))) for h in histories]
    made = control_tasks.make_lists(
      stock, histories, targets, teach, list(range(len(kinds))), kinds, 5
    )
    wanted = set()
    for kind, target, history, (labels, wish) in zip(kinds, targets, histories, made):
      own = groups[wish.category]
      self.assertEqual((wish.kind, labels[0]), (kind, target))
      self.assertTrue(wish.followed(labels, own), (labels, wish))
      self.assertLen(set(labels), len(labels))
      self.assertFalse(set(labels) & set(history.tolist()))
      self.assertEqual(target in own, kind != 'without')
      inside = sum(i in own for i in labels)
      if kind in ('at_most', 'at_least', 'about'):
        self.assertLen(labels, 5)
        self.assertIn(wish.wanted - inside, {'at_most': (0, 1), 'at_least': (-1, 0),
                                             'about': (0,)}[kind])
        wanted.add(wish.wanted)
    self.assertGreater(len(wanted), 3)

  def test_items_without_categories_are_asked_plainly(self):
    bare = tokenized_catalog.load(
      Catalog(CATALOG.ids, {'title': CATALOG.columns['title']}), tokenizer()
    )
    found = control_tasks.make_lists(
      bare,
      [[1], [1]],
      [2, 3],
      lambda h, k, s=None: np.array([[4, 5]] * 2),
      [0, 1],
      ['with', 'without'],
      3,
    )
    self.assertEqual(found, [None, None])
    self.assertEqual(control_tasks.make_lists(bare, [], [], None, [], [], 3), [])
    with self.assertRaisesRegex(DataError, 'add `categories`'):
      offline_samples.draw_samples(config(control=dict(share=0.1)), shop(), bare, teach, [])

  def test_share_of_an_epoch(self):
    stock, train = tokenized_catalog.load(CATALOG, tokenizer()), shop(300).interactions
    given = {**config().train.to_dict(), 'seed': 0, 'multi_round': 0.0}
    make = lambda share, n=0: sft_data.epoch_samples(  # noqa: E731
        ConfigDict({**given, 'control': share}), stock, train, teach, n, TEMPLATE, [])
    none, half = make(0.0), make(0.5)
    self.assertEqual({s.task for s in none}, {'recommend'})
    self.assertEqual({s.task for s in half},
                     {'recommend', *(f'control:{k}' for k in control_tasks.KINDS)})
    about = [s.task.startswith('control') for s in half]
    self.assertBetween(np.mean(about), 0.4, 0.6)
    self.assertEqual([s for s, a in zip(none, about) if not a],
                     [s for s, a in zip(half, about) if not a])  # the others stay as they were
    self.assertEqual(repr(half), repr(make(0.5)))
    self.assertNotEqual(repr(half), repr(make(0.5, 1)))
    for s in half:
      text = s.turns[1]['content']
      if s.task == 'control:with':
        self.assertIn('All of them should be of this kind: ', text)
      if s.task == 'control:category_of':
        self.assertIn(s.turns[2]['content'][0], ['odd, third 0', 'odd, third 1', 'odd, third 2',
                                                 'even, third 0', 'even, third 1', 'even, third 2'])

  def test_a_template_without_the_sentences_is_refused_only_where_they_are_needed(self):
    path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / 't.txt'
    path.write_text(''.join(f'[{k}]\n{v}\n' for k, v in TEMPLATE.items() if k in prompts.FIELDS))
    cfg = config(prompt=dict(template=str(path)))
    self.assertIn('system', prompts.read_template(cfg))
    cfg.control.share = 0.1
    with self.assertRaisesRegex(ConfigError, r'part \[with\] is missing'):
      prompts.read_template(cfg)


class QuestionTest(absltest.TestCase):

  def test_candidates_and_wishes_stand_in_the_request(self):
    stock = tokenized_catalog.load(CATALOG, tokenizer())
    ask = lambda **kw: prompts.request_turns(  # noqa: E731
        stock, TEMPLATE, [1, 2], 'plain', 3, **kw)[-1]['content']
    self.assertIn("Out of these products: 'thing c', 'thing e', name 3", ask(candidates=(3, 5)))
    self.assertNotIn('Out of these', ask())
    self.assertEqual(ask(wish=' All red.'), ask() + ' All red.')


  def test_d8_chat_never_always_and_on_both_sides(self):
    stock, train = tokenized_catalog.load(CATALOG, tokenizer()), shop(400).interactions
    sides = {}
    for ratio in (0.0, 1.0):
      cfg = ConfigDict({**config().train.to_dict(), 'seed': 0, 'control': 0.0, 'chat_share': 0.0,
                        'multi_round': ratio})
      made = sft_data.epoch_samples(cfg, stock, train, teach, 0, TEMPLATE, [('How?', 'So.')])
      sides[ratio] = [[t['content'] for t in s.turns].index('How?')
                      if len(s.turns) == 5 else None for s in made]
    self.assertEqual(set(sides[0.0]), {None})
    self.assertEqual(set(sides[1.0]), {1, 3})
    self.assertBetween(np.mean([s == 1 for s in sides[1.0]]), 0.42, 0.58)


class TeacherTest(absltest.TestCase):

  def test_categories_in_process(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    data = shop()
    self.enter_context(absltest.mock.patch.object(
        teacher, 'scorer', lambda *_: lambda items, offsets: np.tile(
            np.arange(N, 0, -1.0, np.float32), (len(offsets) - 1, 1))))
    ask = teacher.make_teacher(folder, data)
    histories = [np.array([1, 2]), np.array([5])]
    np.testing.assert_array_equal(ask(histories, 4), teach(histories, 4))
    signs = ['+even', '-even, third 0']
    np.testing.assert_array_equal(ask(histories, 9, signs), teach(histories, 9, signs))


class FileTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def parts(self, cfg, data, stock, ask):
    return offline_samples.run_samples(
      cfg, data, stock, ask, [('How many <SOI>?', 'Two.'), ('So?', 'So.')]
    )

  @parameterized.parameters('reclm', 'last')
  def test_what_is_written_is_read(self, template):
    data, stock = shop(), tokenized_catalog.load(CATALOG, tokenizer())
    cfg = config(control=dict(share=0.3), prompt=dict(template=template))
    made = self.parts(cfg, data, stock, teach)
    offline_samples.write(self.folder, made, data, stock)
    cfg.train.static = str(self.folder)
    again = self.parts(cfg, data, stock, None)  # no teacher is asked
    self.assertEqual(again, made)
    self.assertLen(made['train'], 2)
    cfg.train.epochs = 1
    self.assertEqual(self.parts(cfg, data, stock, None)['train'], made['train'][:1])
    cfg.train.epochs = 3
    with self.assertRaisesRegex(ConfigError, 'holds 2 epochs'):
      self.parts(cfg, data, stock, None)

  def test_the_published_data_set(self):
    if not SHARED.is_dir():
      self.skipTest('no sample of the published files here')
    data = load_data(str(SHARED))
    stock = tokenized_catalog.load(
      data.catalog, tokenizer_lib.train_bpe(data.catalog.columns['title'], 600)
    )
    n = len(data.catalog)
    ask = lambda histories, k, signs=None: np.array([  # noqa: E731
        [(7 * int(h[-1]) + j) % n + 1 for j in range(k)] for h in histories], np.int32)
    made = self.parts(config(), data, stock, ask)
    offline_samples.write(self.folder, made, data, stock)
    back = offline_samples.read(self.folder, data, stock, 'unused')
    self.assertEqual(back, made)
    self.assertLen([s for s in made['train'][0] if s.task == 'recommend'], 189)
    row = json.loads((self.folder / 'train.jsonl').read_text().split('\n')[0])
    self.assertEqual(row['task'], 'SFTSeqRec-CS-MR')
    self.assertEqual(row['input_field_data']['user'], data.interactions.users[0])
    self.assertIn(row['output_field_data']['item_title_list'][0], row['output_texts'][-1]
                  + row['output_texts'][0])

  @parameterized.parameters('nested lines', 'one list', 'single text')
  def test_published_layouts(self, layout):
    data, stock = shop(), tokenized_catalog.load(CATALOG, tokenizer())
    one = {'input_text': 'Name one.', 'output_text': '1. <SOI>thing c<EOI>\n'}
    other = {'input_texts': ['Hello'], 'output_texts': ['Hi']}
    epochs = [[one, other], [other]]
    text = {'nested lines': '\n'.join(map(json.dumps, epochs)), 'one list': json.dumps(epochs),
            'single text': '\n'.join(json.dumps({'epoch': n, **s}) for n, e in enumerate(epochs)
                                     for s in e)}[layout]
    name = 'train.json' if layout == 'one list' else 'train.jsonl'
    (self.folder / name).write_text(text)
    found = offline_samples.read(self.folder, data, stock, 'Be kind.')
    self.assertEqual([[s.task for s in e] for e in found['train']], [['recommend', 'chat'],
                                                                     ['chat']])
    first = found['train'][0][0]
    self.assertEqual(first.labels, (3,))
    self.assertEqual([t['content'] for t in first.turns],
                     ['Be kind.', 'Name one.', ['1. ', 3, '\n']])
    self.assertNotIn('valid', found)

  @parameterized.parameters(
      ({'output_text': 'x'}, 'needs input_text'),
      ({'input_text': 'x', 'output_texts': ['a', 'b']}, '1 inputs and 2 outputs'),
      ({'input_text': 'x', 'output_text': '<SOI>thing zz<EOI>'}, "line 1: <SOI> 'thing zz' is no"),
      ({'input_text': 'x', 'output_text': '<SOI>thing a'}, 'never closed'),
      ({'input_text': 'x', 'output_text': 'y', 'input_field_data': {'user': 'who'}}, "user 'who'"),
      ({'input_text': 'x', 'output_text': 'y', 'input_field_data': {'sub_sequential': ['i99']}},
       'line 1, sub_sequential'),
      ({'input_text': 'x', 'output_text': 'y', 'input_field_data': 3}, 'must be an object'),
      ({'epoch': 1, 'input_text': 'x', 'output_text': 'y'}, 'no sample of epoch 0'),
      ({'epoch': 'a', 'input_text': 'x', 'output_text': 'y'}, 'an `epoch` from 0'), (3, '`epoch`'))
  def test_what_is_wrong_is_named(self, row, what):
    (self.folder / 'train.jsonl').write_text(json.dumps(row) + '\n')
    with self.assertRaisesRegex(DataError, what):
      offline_samples.read(self.folder, shop(), tokenized_catalog.load(CATALOG, tokenizer()), '')

  def test_folders_that_hold_nothing(self):
    with self.assertRaisesRegex(DataError, 'holds no train.jsonl'):
      offline_samples.read(self.folder, shop(), tokenized_catalog.load(CATALOG, tokenizer()), '')
    with self.assertRaisesRegex(ConfigError, 'is no folder'):
      offline_samples.check(config(train=dict(static='/nowhere/at/all')))
    (self.folder / 'train.jsonl').write_text('\n')
    with self.assertRaisesRegex(DataError, 'holds no sample'):
      sft.read(self.folder, 'train')

  def test_titles_with_the_symbols(self):
    made = tokenizer()
    some = tokenized_catalog.load(Catalog(('x', 'y'), {'title': ['<EOI> cut', 'a<SOI>']}), made)
    parts = ['1. ', 1, '\n 2. ', 2, '\n']
    self.assertEqual(
      offline_samples.parse_answer(offline_samples.spell_items(parts, some), some, 'here'), parts
    )


def log_softmax(logits):
  top = logits.max()
  return logits - top - np.log(np.exp(logits - top).sum())


class AverageTest(parameterized.TestCase):
  """The loss against the release's formula (RecAI, RecLM-cgen, trainer.py and loss.py) in NumPy:
  one sample a device, its mean over labels, summed up over 64 samples and divided by them."""

  def setUp(self):
    super().setUp()
    base = tokenizer()
    made, ids = tokenizer_lib.add_control_tokens(
      base, [tokenized_catalog.SOI, tokenized_catalog.EOI]
    )
    shape = llm.Config(
      vocab=base.vocab_size, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=16
    )
    params, shape = embedding_resize.add_tokens(
      llm.init(shape, jax.random.key(2)), shape, ids, [[5], [6]]
    )
    params = jax.tree.map(lambda x: x * 4, params)  # far from even
    self.chat_model = train_lib.ChatModel(llm.LM(shape), params, None, made, *ids, [])
    self.stock = tokenized_catalog.load(CATALOG, made)
    self.tree = self.stock.to_trie(ids[1], shape.vocab)
    nodes = trie_masked.title_nodes(self.tree.first, self.tree.tok,
                              [[*r, ids[1]] for r in self.stock.title_tokens])
    self.table = trie_masked.scope_of(self.tree.first, self.tree.tok, shape.vocab)
    turn = chat_encoding.ChatEncoder(made, self.stock.title_tokens, *ids, nodes)
    said, written = prompts.message, prompts.numbered_list
    talks = [[said('user', 'One?'), said('assistant', written([3]))],
             [said('user', 'Four?'), said('assistant', written([1, 2, 4, 5]))],
             [said('user', 'Why so?'), said('assistant', ['Because of that.']),
              said('user', 'Two?'), said('assistant', written([6, 1]))]]
    self.examples = [one for t in talks for one in turn.examples(t)]
    self.packed = tuning.pack_conversations(self.examples, 192, [], chat_encoding.MARKS)
    self.hidden = jax.jit(lambda params, ids: self.chat_model.model.apply(
        {'params': params}, ids, jax.numpy.arange(192)[None], ids * 0 + 1)[0])
    keys = jax.random.split(jax.random.key(1))
    self.parts = {
      'params': params,
      'items': jax.random.normal(keys[0], (len(self.stock.title_tokens), 4)),
      'project': [{'kernel': jax.random.normal(keys[1], (16, 4)), 'bias': np.zeros(4, np.float32)}],
    }

  def by_hand(self, one, masked):
    """-> negative log-likelihoods of the labels, whether each stands in a title, of its items"""
    params, ids = self.parts['params'], one.ids
    hidden = np.array(self.hidden(params, np.pad(ids, (0, 192 - len(ids)))[None])[0])
    logits = hidden @ np.array(llm.head_matrix(params, self.chat_model.model.cfg))
    rows = [[*r, self.chat_model.eoi] for r in self.stock.title_tokens]
    nll, inside, fetched, prefix = [], [], [], None
    for at in np.flatnonzero(one.learned):
      label, scores = ids[at], logits[at - 1].copy()
      title = prefix is not None
      if title and masked and label != self.chat_model.eoi:
        open_ = {r[len(prefix)] for r in rows if r[:len(prefix)] == prefix}
        scores[[i for i in range(len(scores)) if i not in open_]] = -np.inf
      nll.append(-log_softmax(scores)[label])
      inside.append(title)
      if label == self.chat_model.soi:
        prefix = []
        z = hidden[at - 1] @ np.array(self.parts['project'][0]['kernel'])
        fetched.append(-log_softmax(np.array(self.parts['items']) @ z)[
            one.marks['item'][at] - 1])
      elif label == self.chat_model.eoi:
        prefix = None
      elif title:
        prefix = [*prefix, int(label)]
    return np.array(nll), np.array(inside), np.array(fetched)

  def loss(self, average, grounding='cgen', parts=1, **changes):
    cfg = config(grounding=grounding, ret=dict(alpha=2.0), train=dict(
        {'average': average, 'prompt': 0.0, 'free': 0.0, 'scope': 'all', 'scope_end': False,
         'gamma': 0.0}, **changes))
    batch = self.packed.batch(num_rows=len(self.packed.rows) + 1)
    sums = lambda *a: train_lib.loss_sums(cfg, self.chat_model, [], self.table, 16, *a)  # noqa: E731
    learned = lambda *a: (sums(*a)[0]['valid_loss'], sums(*a)[1])  # noqa: E731
    run = microbatch.accumulate_sums(learned)(parts) if parts > 1 else microbatch.mean(learned)
    return float(jax.jit(lambda p, b: run(p, (), b, None)[0])(self.parts, batch))

  @long
  def test_cgen(self):
    each = [self.by_hand(one, True)[0] for one in self.examples]
    released = np.mean([nll.mean() for nll in each])
    self.assertAlmostEqual(self.loss('samples'), released, delta=1e-4)
    self.assertAlmostEqual(self.loss('samples', parts=2), released, delta=1e-4)
    self.assertAlmostEqual(self.loss('tokens'), np.concatenate(each).mean(), delta=1e-4)
    self.assertGreater(abs(np.concatenate(each).mean() - released), .01)

  def test_without_the_mask(self):
    each = [self.by_hand(one, False)[0].mean() for one in self.examples]
    self.assertAlmostEqual(self.loss('samples', scope='none'), np.mean(each), delta=1e-4)

  def test_ret(self):
    each = [self.by_hand(one, False) for one in self.examples]
    released = np.mean([nll[~inside].mean() + 2 * fetched.mean() for nll, inside, fetched in each])
    self.assertAlmostEqual(self.loss('samples', 'ret'), released, delta=1e-4)
    together = np.concatenate([nll[~inside] for nll, inside, _ in each]).mean()
    together += 2 * np.concatenate([f for *_, f in each]).mean()
    self.assertAlmostEqual(self.loss('tokens', 'ret'), together, delta=1e-4)
    self.assertGreater(abs(together - released), .01)

  def test_requests_count_within_their_sample(self):
    def with_requests(one):
      nll = self.by_hand(dataclasses.replace(one, learned=np.arange(len(one.ids)) > 0), False)[0]
      weight = np.where(one.learned[1:], 1, .5)
      return (nll * weight).sum() / weight.sum()
    want = np.mean([with_requests(one) for one in self.examples])
    self.assertAlmostEqual(self.loss('samples', scope='none', prompt=.5), want, delta=1e-4)

  def test_presets(self):
    spec = importlib.util.spec_from_file_location('c', ROOT / 'configs' / 'reclm_toys.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    self.assertEqual([module.get_config(p).train.average for p in ('', 'paper')],
                     ['tokens', 'samples'])


class ApartTest(absltest.TestCase):

  def test_answers_that_a_template_lays_out_anew_are_counted(self):
    """Samples stay conversations; one too long leaves with all its rows."""
    base = dataclasses.replace(tokenizer(), chat_template=tokenizer_lib.CHAT_TEMPLATE.replace(
        '<|start|>assistant\\n', "<|start|>assistant\\n' ~ ('' if think else '<none>') ~ '"))
    found = {}
    for think in (True, False):
      made, (soi, eoi) = tokenizer_lib.add_control_tokens(
        base, [tokenized_catalog.SOI, tokenized_catalog.EOI]
      )
      speaker = types.SimpleNamespace(tokenizer=made, soi=soi, eoi=eoi)
      stock = tokenized_catalog.load(CATALOG, made)
      cfg = config()
      cfg.train.update(multi_round=1.0, epochs=1)
      cfg.prompt.variables = {'think': think}
      parts, counts = train_lib.encode_samples(cfg, shop(12), stock, speaker,
                                    stock.to_trie(eoi, made.vocab_size), teach, [('Why?', 'So.')])
      found[think] = parts['train'], counts
    self.assertEqual(found[True][1]['samples'], found[False][1]['samples'])
    self.assertLen(found[True][0], found[True][1]['samples'])
    self.assertNotIn('answers_learned_apart', found[True][1])
    self.assertEqual(found[False][1]['answers_learned_apart'], 12)  # every user's conversation
    self.assertLen(found[False][0], found[False][1]['samples'] + 12)


class MaskTest(absltest.TestCase):

  @long
  def test_title_nll_is_the_same_whatever_the_loss_is(self):
    """An untrained model judged under every `train.scope`: one figure, over the same tokens."""
    base = tokenizer()
    made, ids = tokenizer_lib.add_control_tokens(
      base, [tokenized_catalog.SOI, tokenized_catalog.EOI]
    )
    shape = llm.Config(
      vocab=base.vocab_size, width=16, layers=1, heads=1, kv_heads=1, head_dim=16, ffn=16
    )
    params, shape = embedding_resize.add_tokens(
      llm.init(shape, jax.random.key(0)), shape, ids, [[5], [6]]
    )
    speaker = train_lib.ChatModel(llm.LM(shape), params, None, made, *ids, [])
    stock = tokenized_catalog.load(CATALOG, made)
    tree = stock.to_trie(speaker.eoi, shape.vocab)
    nodes = trie_masked.title_nodes(
      tree.first, tree.tok, [[*r, speaker.eoi] for r in stock.title_tokens]
    )
    table = trie_masked.scope_of(tree.first, tree.tok, shape.vocab)
    cfg = config()
    turn = chat_encoding.ChatEncoder(made, stock.title_tokens, speaker.soi, speaker.eoi, nodes)
    drawn = offline_samples.run_samples(cfg, shop(12), stock, teach, [('Why?', 'So.')])
    made = [one for e in drawn['train'] for s in e for one in turn.examples(s.turns)]
    packed = tuning.pack_conversations(made, 256, [], chat_encoding.MARKS)

    def judged(rows, **changes):
      sums = lambda *a: train_lib.loss_sums(  # noqa: E731
          config(train=changes), speaker, [], table, 64, *a)
      return train_lib.make_validator(sums, packed, rows)({'params': params}, ())
    whole = judged(2, scope='all')
    for changes in (dict(scope='none'), dict(scope='branches'), dict(scope_end=False),
                    dict(gamma=2.0)):
      found = judged(2, **changes)
      self.assertAlmostEqual(found['title_nll'], whole['title_nll'], places=5)
      self.assertNotAlmostEqual(found['valid_loss'], whole['valid_loss'], places=3)
    self.assertLess(whole['valid_loss'], judged(2, scope='none')['valid_loss'])  # S10
    self.assertAlmostEqual(judged(3)['title_nll'], whole['title_nll'], places=5)  # other batches
    self.assertNotIn('titles', whole)
    fetched = config(grounding='ret', ret=dict(alpha=2.0))
    keys = jax.random.split(jax.random.key(1))
    parts = {
      'params': params,
      'items': jax.random.normal(keys[0], (len(stock.title_tokens), 4)),
      'project': [{'kernel': jax.random.normal(keys[1], (16, 4)), 'bias': np.zeros(4, np.float32)}],
    }
    few, many = (
      train_lib.make_validator(
        lambda *a: train_lib.loss_sums(fetched, speaker, [], table, 64, *a),
        packed,
        rows,
        fetched.ret.alpha,
      )(parts, ())
      for rows in (2, 5)
    )
    self.assertGreater(few['item_nll'], 0)
    self.assertSameElements(few, ['valid_loss', 'item_nll'])
    for name, value in few.items():  # batches are larger on more devices
      self.assertAlmostEqual(many[name], value, places=5)
    everything = packed.batch()
    answers = everything['weights'].sum()
    requests = (everything['segments'] > 0).sum() - answers
    alone, once, twice = (judged(2, prompt=w)['valid_loss'] for w in (0.0, 1.0, 2.0))
    read = once * (answers + requests) - alone * answers  # what the requests' tokens add
    self.assertGreater(read, 0)
    self.assertAlmostEqual(twice, (alone * answers + 2 * read) / (answers + 2 * requests), places=4)
    self.assertAlmostEqual(judged(2, prompt=1.0)['title_nll'], whole['title_nll'], places=5)


if __name__ == '__main__':
  absltest.main()
