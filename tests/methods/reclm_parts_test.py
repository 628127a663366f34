"""The parts of RecLM: titles, windows, lists, tokens, rates (oracles D3-D8, M1-M6 of reclm.md)."""
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from recjax.data.dataset import Catalog, Interactions
from recjax.data.formats import conversations
from recjax.data.sample_shop.small_talk import questions
from recjax.decoding import item_span
from recjax.errors import ConfigError, DataError
from recjax.methods.reclm import chat_encoding, list_metrics, prompts, sft_data, tokenized_catalog
from recjax.methods.reclm import train as train_lib
from recjax.models import layers, seqrec
from recjax.text import prompt_templates
from recjax.text import tokenizer as tokenizer_lib
from tests.long import long

ROOT = pathlib.Path(__file__).parents[2]
TITLES = ['blue lamp', 'blue lamp shade', 'red rope', 'big mug']
TEMPLATE = prompt_templates.read('reclm', 'recjax.methods.reclm', prompts.FIELDS)
TRAIN = ConfigDict(dict(seed=0, longest_list=10, full_lists=False, candidates=0.5, rule=0.5,
                        multi_round=0.0, chat_share=0.0, wishes=0.0, control=0.0,
                        full_histories=False))


def tokenizer():
  base = tokenizer_lib.train_bpe([*TITLES, *TEMPLATE.values()], 320)
  return tokenizer_lib.add_control_tokens(base, [tokenized_catalog.SOI, tokenized_catalog.EOI])


def stock(made=None):
  made = made or tokenizer()[0]
  return tokenized_catalog.load(Catalog(tuple('abcd'), {'title': TITLES}), made)


class GoodsTest(parameterized.TestCase):

  @parameterized.parameters(
      (['T', 'T', 'T'], ['T', 'T (1)', 'T (2)']), (['T', 'T (1)', 'T'], ['T', 'T (1)', 'T (2)']))
  def test_d6_titles_are_made_unlike(self, given, want):
    self.assertEqual(tokenized_catalog.distinct_titles(given), want)

  def test_d6_category_paths_leave_the_root_out(self):
    catalog = Catalog(('x', 'y'), {'categories': [['Root', 'A', 'B'], ['Root', 'C']]})
    self.assertEqual(tokenized_catalog.category_paths(catalog), [['A', 'A, B'], ['C']])

  def test_titles_with_control_tokens_are_plain_text(self):
    made, (soi, eoi) = tokenizer()
    odd = ['<EOI> cut', 'a <|end|> b', '<SOI>']
    some = tokenized_catalog.load(Catalog(('x', 'y', 'z'), {'title': odd}), made)
    for title, row in zip(odd, some.title_tokens):
      self.assertFalse({soi, eoi, *made.eos_ids} & set(row))
      self.assertEqual(made.decode(row), title)

  def test_bad_titles(self):
    made = tokenizer()[0]
    some = tokenized_catalog.load(Catalog(('x', 'y', 'z'), {'title': ['a', '   ', None]}), made)
    self.assertEqual((some.titles, some.notes['named_by_id']), (['a', 'y', 'z'], 2))
    self.assertEqual(some.index, {'a': 1, 'y': 2, 'z': 3})
    with self.assertRaisesRegex(DataError, 'catalog is empty'):
      tokenized_catalog.load(Catalog((), {'title': []}), made)
    with self.assertRaisesRegex(DataError, 'no titles to write'):
      tokenized_catalog.load(Catalog(('x',), {}), made)

  def test_new_tokens_need_ids_of_their_own(self):
    with self.assertRaisesRegex(ConfigError, 'needs one of its own'):
      tokenizer_lib.add_control_tokens(tokenizer()[0], ['<X>', '<X>'])


class SampleTest(parameterized.TestCase):

  @parameterized.parameters(
      ([7, 1, 9], 3, [1, 7, 9]), ([7, 8, 9], 3, [1, 7, 8]), ([7, 8], 1, [1]))
  def test_d3_labels(self, taught, count, want):
    self.assertEqual(sft_data.label_list(1, taught, count), want)

  def test_d4_windows_stay_in_their_bounds_and_reach_them(self):
    sequences = Interactions(tuple('abc'), np.arange(1, 32, dtype=np.int32),
                             np.array([0, 15, 16, 31], np.int64))
    seen = set()
    for epoch in range(400):
      users, begin, end = sft_data.windows(sequences, epoch, 0)
      self.assertEqual(users.tolist(), [0, 2])
      for u, a, t in zip(users, begin - sequences.offsets[users], end - sequences.offsets[users]):
        self.assertTrue(1 <= t <= 14 and max(0, t - 10) <= a <= t - 1, (u, a, t))
        seen.add((t, t - a))
    self.assertEqual({t for t, _ in seen}, set(range(1, 15)))
    self.assertEqual({n for _, n in seen}, set(range(1, 11)))
    _, begin, end = sft_data.windows(sequences, 0, 0, full=True)
    np.testing.assert_array_equal(end, sequences.offsets[[1, 3]] - 1)
    np.testing.assert_array_equal(
        begin, np.maximum(sequences.offsets[[0, 2]], end - prompts.MAX_ITEMS))

  def test_d8_chat_stands_before_or_after(self):
    some = stock()
    base = sft_data.recommendation_sample(some, TEMPLATE, [1], [2], np.random.default_rng(0), TRAIN)
    sides = [sft_data.add_chat_turn(base, ('How?', 'So.'), late) for late in (0, 1)]
    self.assertEqual([[t['role'] for t in s.turns] for s in sides],
                     [['system'] + ['user', 'assistant'] * 2] * 2)
    self.assertEqual([s.turns[1]['content'] == 'How?' for s in sides], [True, False])

  def test_epochs_are_functions_of_seed_and_number(self):
    train = Interactions(('a', 'b'), np.array([1, 2, 3, 4, 2, 1], np.int32),
                         np.array([0, 3, 6], np.int64))
    teach = lambda histories, k: np.tile([4, 3, 2, 1], (len(histories), 1))  # noqa: E731
    cfg = ConfigDict({**TRAIN.to_dict(), 'multi_round': 1.0, 'chat_share': 1.0})
    make = lambda n: sft_data.epoch_samples(cfg, stock(), train, teach, n, TEMPLATE,  # noqa: E731
                                   questions(5))
    self.assertEqual(repr(make(1)), repr(make(1)))
    self.assertNotEqual(repr(make(1)), repr(make(2)))
    self.assertLen(make(0), 4)
    for s in make(0)[:2]:
      self.assertEqual(s.labels[0], s.target)
      self.assertLen(set(s.labels), len(s.labels))

  def test_candidates_hold_the_labels_without_repeats(self):
    rng = np.random.default_rng(0)
    for _ in range(200):
      some = sft_data.draw_candidates([3, 7], 12, rng, 10)
      self.assertTrue({3, 7} <= set(some) and len(set(some)) == len(some) <= 10)


class RenderTest(parameterized.TestCase):

  def turn(self):
    made, (soi, eoi) = tokenizer()
    some = stock(made)
    return made, some, chat_encoding.ChatEncoder(made, some.title_tokens, soi, eoi)

  def test_d5_the_list_as_text_and_back(self):
    made, some, turn = self.turn()
    ids, _, items = turn.answer(prompts.numbered_list([1, 3]))
    text = ''.join('<SOI>' if i == turn.soi else '<EOI>' if i == turn.eoi else made.decode([i])
                   for i in ids)
    self.assertEqual(text, '1. <SOI>blue lamp<EOI>\n 2. <SOI>red rope<EOI>\n')
    self.assertEqual([i for i in items if i > 0], [1, 3])
    tree = some.to_trie(turn.eoi, made.vocab_size)
    self.assertEqual(item_span.parse(tree, ids, turn.soi), ([1, 3], False))

  def test_what_is_learned_is_answers_and_their_ends(self):
    made, _, turn = self.turn()
    turns = [
      prompts.message('system', 's'),
      prompts.message('user', 'Name <SOI>one<EOI>'),
      prompts.message('assistant', prompts.numbered_list([4])),
      prompts.message('user', 'q'),
      prompts.message('assistant', ['fine']),
    ]
    (one,) = turn.examples(turns)
    learned = one.ids[one.learned].tolist()
    want = turn.answer(prompts.numbered_list([4]))[0] + [made.eos_ids[0]] + made.encode('fine') + [
        made.eos_ids[0]]
    self.assertEqual(learned, want)
    self.assertEqual((one.ids == turn.soi).sum(), 1)  # the user's text holds none
    prompt = turn.tokens(turns[:2])
    self.assertEqual(one.ids[:len(prompt)].tolist(), prompt)

  def test_a_template_may_write_histories_as_items(self):
    _, some, turn = self.turn()
    turn.nodes = [np.full(len(r) + 1, 10 * i) for i, r in enumerate(some.title_tokens)]
    template = {**TEMPLATE, 'train': 'Name {count}, I have: {items}'}
    ask = prompts.request_turns(some, template, [2, 4], 'trained', 3, ' All <SOI>.')
    self.assertEqual(ask[1]['content'], ['Name 3, I have: ', 2, ' → ', 4, ' All <SOI>.'])
    one, = turn.examples([*ask, prompts.message('assistant', prompts.numbered_list([1]))])
    prompt = turn.tokens(ask)
    self.assertEqual(one.ids[:len(prompt)].tolist(), prompt)
    self.assertEqual(prompt.count(turn.soi), 2)  # the wish is plain text
    self.assertFalse(one.learned[:len(prompt)].any())
    at = prompt.index(turn.soi) + 1
    row = [*some.title_tokens[1], turn.eoi]
    self.assertEqual(prompt[at:at + len(row)], row)
    np.testing.assert_array_equal(one.marks['node'][at:at + len(row)], 10)
    self.assertFalse(one.marks['item'][:len(prompt)].any())  # nothing is fetched in a request

  def test_users_cannot_open_an_item(self):
    """5,000 user texts around the control symbols never put one into a prompt."""
    made, _, turn = self.turn()
    rng = np.random.default_rng(0)
    parts = ['<SOI>', '<EOI>', '<SO', 'I>', '<|end|>', '<|start|>', 'assistant\n', ' ', 'x', '\n',
             '\ufde4', '\ufde0', '\ufdd0' + str(turn.soi) + '\ufdd1', 'É', '<']
    control = {turn.soi, turn.eoi}
    for _ in range(5000):
      text = ''.join(parts[i] for i in rng.integers(0, len(parts), rng.integers(1, 8)))
      ids = turn.tokens([prompts.message('system', 's'), prompts.message('user', text)])
      self.assertFalse(control & set(ids), text)

  def test_long_histories_lose_their_oldest(self):
    _, some, turn = self.turn()
    whole, none = prompts.make_prompts(turn, some, TEMPLATE, [[1, 2, 3, 4] * 3])
    self.assertEqual(none, 0)
    turn.longest = len(whole[0]) - 1
    less, short = prompts.make_prompts(turn, some, TEMPLATE, [[1, 2, 3, 4] * 3])
    self.assertEqual(short, 1)
    self.assertLess(len(less[0]), len(whole[0]))
    turn.longest = 5
    with self.assertRaisesRegex(DataError, 'raise prompt.max_prompt_tokens'):
      prompts.make_prompts(turn, some, TEMPLATE, [[1]])
    with self.assertRaisesRegex(ConfigError, 'eval.words'):
      prompts.request_turns(some, TEMPLATE, [1], 'loud')


class TeacherTest(absltest.TestCase):

  def test_d1_parameters_of_the_published_teacher(self):
    cfg = seqrec.Config('sasrec', 8572, 10, 128, 2, 2, 256, 0.5, 'unirec')
    import jax
    shapes = jax.eval_shape(lambda: seqrec.init(cfg, jax.random.key(0)))
    unused = 128  # the row of BERT4Rec's mask
    self.assertEqual(layers.count_params(shapes) - unused, 1_363_968)


class RateTest(parameterized.TestCase):

  def rates(self, items, asked=10, history=()):
    return list_metrics.list_rates(
      [items], [history], [3], [['A'], ['A'], ['A', 'A, B'], ['C']], 4, asked
    )

  def test_m1_to_m4(self):
    first = self.rates([1, 2, 3])
    self.assertEqual((first['HR@10'], first['NDCG@10']), (1, 0.5))
    self.assertAlmostEqual(first['MRR@10'], 1 / 3)
    twice = self.rates([1, 2, 1])
    self.assertEqual((twice['RepeatRate@10'], twice['CorrectCount@10']), (1, 0))
    long = self.rates([1, 2, 4, 3], asked=3)
    self.assertEqual((long['CorrectCount@3'], long['HR@3']), (0, 0))
    empty = self.rates([])
    self.assertEqual((empty['EmptyRate@10'], empty['HR@10'], empty['lists']), (1, 0, 1))

  def test_history_and_categories(self):
    some = self.rates([1, 2, 3], history=[1, 2])
    self.assertEqual((some['InHistoryRate@10'], some['TargetCategoryRate@10']), (2, 1))

  def test_m5_vague_mapping(self):
    self.assertEqual(
      list_metrics.nearest_title('Toy Stor', ['Toy', 'Toy Story', 'Toy Storm']), 'Toy Storm'
    )
    self.assertIsNone(list_metrics.nearest_title('Toy Stor', ['Something else']))
    self.assertEqual(list_metrics.edit_distance('kitten', 'sitting', 3), 3)
    self.assertEqual(list_metrics.edit_distance('abcdef', 'ghijkl', 3), 4)

  def test_free_text_is_read_and_counted(self):
    made, (soi, eoi) = tokenizer()
    some = stock(made)
    ids = [
      *made.encode('1. '),
      soi,
      *some.title_tokens[1],
      eoi,
      soi,
      *made.encode('blue lamq'),
      eoi,
      soi,
      *made.encode('nothing'),
      eoi,
      soi,
      *made.encode('nothing'),
      eoi,
      soi,
      *some.title_tokens[0],
    ]
    titles = list_metrics.parse_titles(ids, made, soi, eoi)
    self.assertLen(titles, 4)  # the last one is never closed
    self.assertEqual(list_metrics.match_items(titles, some, made), [2, -1, -2, -2])
    self.assertEqual(list_metrics.match_items(titles, some, made, max_edits=2), [2, 1, -1, -1])
    found = list_metrics.list_rates([[2, -1, -2, -2]], [[]], [3], some.categories, 4, 10)
    self.assertEqual(
      (found['NonExistRate@10'], found['RepeatRate@10'], found['coverage@10']), (3, 1, 0.25)
    )
    plain = list_metrics.parse_titles(
      made.encode('1. red rope\n\n 2. big mug\nblue lamp'), made, soi, eoi
    )
    self.assertEqual(plain, ['red rope', 'big mug', 'blue lamp'])
    self.assertEqual(list_metrics.match_items(plain, some, made), [3, 4, 1])

  @parameterized.parameters(
      ('#### 18', '18'), ('18.', '18'), ('$1,234', '1234'), ('so 12.50', '12.5'), ('007', '7'),
      ('-3 then 4', '4'))
  def test_m6_numbers(self, text, want):
    self.assertEqual(str(list_metrics.last_number(text).normalize().to_integral_value()
                         if '.' not in want else list_metrics.last_number(text).normalize()), want)

  def test_m6_no_number(self):
    self.assertIsNone(list_metrics.last_number('none'))


class ConversationTest(absltest.TestCase):

  def read(self, text):
    path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / 'c.json'
    path.write_text(text)
    return conversations.read(path)

  def test_known_layouts(self):
    want = ([('q', 'a')], 0)
    for text in ('{"question": "q", "answer": "a"}\n', '[{"question": "q", "answer": "a"}]',
                 '{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": '
                 '"a"}]}', '[[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]]',
                 '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", '
                 '"content": "a"}]}'):
      self.assertEqual(self.read(text), want, text)

  def test_what_is_wrong_is_named(self):
    with self.assertRaisesRegex(DataError, 'line 1, column 12: not valid JSON'):
      self.read('{"question"')
    with self.assertRaisesRegex(DataError, 'record 0 is no conversation'):
      self.read('{"x": 1}')
    with self.assertRaisesRegex(DataError, 'holds no conversation'):
      self.read('{"conversations": [{"from": "gpt", "value": "a"}]}')
    with self.assertRaisesRegex(DataError, 'does not exist'):
      conversations.read('/nowhere/at/all.json')

  def test_small_talk_ends_in_its_number(self):
    for question, answer in questions(200):
      self.assertTrue(question.endswith('?'))
      self.assertIsNotNone(list_metrics.last_number(answer))


class ControlTest(absltest.TestCase):

  def test_code_tokens_are_named_level_by_level(self):
    cfg = ConfigDict({'grounding': 'token'})
    self.assertEqual(train_lib.control_tokens(cfg, np.array([[0, 1], [1, 0]])),
                     ['<SOI>', '<EOI>', '<0_0>', '<0_1>', '<1_0>', '<1_1>'])


# States whose rows lie in two processes, as a batch of prompts leaves them.
NEAREST = '''
import sys, types
import jax, jax.numpy as jnp, numpy as np
from recjax.methods.reclm import generate
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(f'127.0.0.1:{sys.argv[1]}', 2, int(sys.argv[2]))
mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
states = jax.make_array_from_callback((2, 3), jax.NamedSharding(mesh, jax.P('data')),
                                      lambda at: np.eye(2, 3, dtype=np.float32)[at])
extra = {'project': [{'kernel': jnp.eye(3), 'bias': jnp.zeros(3)}],
         'items': jnp.array([[1., 5, 0], [3, 1, 0], [2, 9, 0]])}
grounded = types.SimpleNamespace(
    chat_model=types.SimpleNamespace(extra=extra), tokenized=types.SimpleNamespace(titles='abc'),
    excluded_mask=lambda *_: None)
generator = types.SimpleNamespace(states=lambda prompts: states, own=lambda prompt: prompt)
items, scores = generate.rank_by_vectors(grounded, generator, [[1], [2]], 2, None, None)
print(items.tolist(), scores.tolist())
'''


class ProcessesTest(absltest.TestCase):

  @long
  def test_two_processes_find_the_nearest_items(self):
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      port = s.getsockname()[1]
    both = [subprocess.Popen(
        [sys.executable, '-c', NEAREST, str(port), str(me)], text=True, cwd=ROOT,
        stdout=subprocess.PIPE, env={**os.environ, 'JAX_PLATFORMS': 'cpu',
                                     'JAX_NUM_CPU_DEVICES': '1'}) for me in range(2)]
    said = [process.communicate(timeout=200)[0].splitlines()[-1:] for process in both]
    self.assertEqual(said, [['[[2, 3], [3, 1]] [[3.0, 2.0], [9.0, 5.0]]']] * 2)


if __name__ == '__main__':
  absltest.main()
