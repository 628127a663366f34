"""A model that was tuned on a data set's file is found out, one tuned on another file is not."""
import contextlib
import functools
import io
import json
import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from absl.testing import absltest, parameterized

from recjax import cli, contamination, run_files
from recjax.data.dataset import Catalog, Interactions, flatten, make_dataset
from recjax.errors import ConfigError, DataError
from recjax.evaluation import statistics
from recjax.models import huggingface, llm
from recjax.text import tokenizer as tokenizers
from recjax.training import tiny_llm
from recjax.training.losses import lm
from tests.long import long

WORDS = ('red', 'blue', 'old', 'new', 'lost', 'last', 'first', 'dark', 'long', 'cold', 'city',
         'river', 'night', 'road', 'house', 'king', 'star', 'heart', 'dream', 'fire')
ITEMS, USERS = 30, 24


def films(seed, name='films'):
  """A catalog of films with numbers, and who saw them in which order."""
  draws, titles = np.random.default_rng(seed), {}
  while len(titles) < ITEMS:
    words = draws.choice(WORDS, 4)
    titles[f'{" ".join(words)} ({draws.integers(1950, 2000)})'] = None
  rows = [draws.permutation(ITEMS)[:7] + 1 for _ in range(USERS)]
  items, offsets = flatten(rows)
  return make_dataset(name, Catalog(tuple(str(i + 1) for i in range(ITEMS)), {
      'title': list(titles), 'categories': [[t.split()[0], t.split()[-2]] for t in titles]}),
                      Interactions(tuple(f'u{u}' for u in range(USERS)), items, offsets))


def lines_of(data):
  """What stands in its files: items, and the rows of users."""
  users = data.interactions
  return ([f'{i}::{t}\n' for i, t in zip(data.catalog.ids, data.catalog.columns['title'])],
          [[f'{name}::{i}\n' for i in users.history(u)] for u, name in enumerate(users.users)])


def tuned(folder, data, steps=300, length=230):
  """A tiny model that has read the files of `data` many times."""
  items, rows = lines_of(data)
  texts = [''.join(items), *(''.join(row) for row in rows)]
  tokenizer = tokenizers.train_bpe([*texts * 3, *(''.join(lines_of(films(s))[0]) for s in (0, 9))],
                                   400)
  shape = llm.Config(vocab=tokenizer.vocab_size, width=64, layers=2, heads=4, kv_heads=4,
                     head_dim=16, ffn=192, tied=True, scan_unroll=2)
  model, draws = llm.LM(shape), np.random.default_rng(0)
  spelled = [tokenizer.encode_batch(part) for part in (
      items, [''.join(row) + '\n' for row in rows], [''.join(row[1:]) + '\n' for row in rows])]

  def batch():
    def text(parts):
      return np.concatenate([parts[i] for i in draws.permutation(len(parts))])[:length + 1]
    return np.stack([text(spelled[i % 3]) for i in range(9)])

  def loss(params, tokens):
    inputs = tokens[:, :-1]
    places = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
    hidden, _ = model.apply({'params': params}, inputs, places, jnp.ones_like(inputs), ())
    return lm.token_nll(hidden.reshape(-1, shape.width), llm.head_matrix(params, shape),
                        tokens[:, 1:].reshape(-1)).mean()
  optimizer = optax.adamw(optax.cosine_decay_schedule(6e-3, steps))

  @jax.jit
  def step(params, state, tokens):
    value, grads = jax.value_and_grad(loss)(params, tokens)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value
  params = jax.jit(lambda key: tiny_llm.fan_in(llm.init(shape, key)))(jax.random.key(0))
  state = optimizer.init(params)
  for _ in range(steps):
    params, state, value = step(params, state, batch())
  huggingface.save(params, shape, folder)
  tokenizer.save(folder)
  return float(value)


@functools.cache
def asked():
  """What a model that was tuned on films(0) says of that and of another data set."""
  with tempfile.TemporaryDirectory() as folder:
    tuned(folder, films(0))
    return {seed: contamination.probe(films(seed), folder, 200, 0, films(5, 'others'),
                                      lambda text: None) for seed in (0, 9)}


class Reciter:
  """Stands in for a model that has read the files of films(0), to the letter and in its order."""
  about = {'model': 'reciter', 'revision': '0', 'parameters': 0}

  def __init__(self, path, log):
    items, rows = lines_of(films(0))
    self.text = '\n' + ''.join([*items, *(''.join(row) for row in rows)])

  def fits(self, texts):
    return np.array([bool(text) for text in texts])

  def __call__(self, asked, title):
    lines = [line.rpartition('\n')[2] or line for line in asked.lines]
    whole = ['\n'.join(line.split('\n')[-2:]) for line in asked.lines]  # two rows of a user
    return [self.text.partition('\n' + (two if two in self.text else one))[2].split('\n')[0]
            for one, two in zip(lines, whole)]


class FoundTest(absltest.TestCase):

  def found(self, data):
    with mock.patch.object(contamination, 'Writer', Reciter):
      result = contamination.probe(data, 'x', 200, 0, films(5, 'others'), None)
    return result, {found['name']: found for found in result['probes']}

  def test_what_recites_the_files_is_found_out(self):
    result, found = self.found(films(0))
    self.assertEqual(found['ids']['real']['exact'], 1)
    self.assertEqual(found['rows']['real']['exact'], 1)
    self.assertLess(found['rows']['control']['exact'], .3)
    self.assertEqual(found['ids']['control']['hits'], 0)
    self.assertEqual(result['verdict'], 'rows')
    for probe in result['probes']:
      self.assertEqual(sum(rate['n'] for rate in probe['quintiles']), probe['real']['n'])
      self.assertEqual(sum(rate['hits'] for rate in probe['quintiles']), probe['real']['hits'])
    told = '\n'.join(contamination.told(result))
    self.assertIn(f'prompts {result["prompts"]}', told)
    self.assertIn('markov on the same questions', told)
    self.assertIn('the same rows, ids permuted', told)

  def test_not_by_other_files(self):
    result, _ = self.found(films(9))
    self.assertEqual(result['verdict'], 'open')

  def test_shots_are_no_questions(self):
    asked = []
    class Listener(Reciter):  # noqa: E306
      def __call__(self, questions, title):
        asked.append(questions)
        return super().__call__(questions, title)
    with mock.patch.object(contamination, 'Writer', Listener):
      contamination.probe(films(0), 'x', 200, 0, films(5, 'others'), None)
    for questions in asked:
      self.assertEqual(questions.opening.rstrip('\n').count('\n\n' if '\n\n' in questions.opening
                                                           else '\n'), contamination.SHOTS - 1)
      for line in questions.lines:
        self.assertNotIn(f'\n{line}', f'\n{questions.opening}')


class TunedTest(absltest.TestCase):

  def probes(self, seed):
    return {found['name']: found for found in asked()[seed]['probes']}

  @long
  def test_a_model_that_has_read_the_files_is_found_out(self):
    found = self.probes(0)
    for name in ('ids', 'rows'):
      self.assertGreater(found[name]['real']['exact'], .6, name)
      self.assertLess(found[name]['control']['exact'], .2, name)
      self.assertGreater(found[name]['gap_low'], .2, name)
    self.assertEqual(asked()[0]['verdict'], 'rows')
    self.assertIn('may be in the training data', asked()[0]['sentence'])

  @long
  def test_one_that_has_read_other_files_is_not(self):
    for found in self.probes(9).values():
      self.assertLess(found['gap_low'], 0, found['name'])
    self.assertNotIn(asked()[9]['verdict'], ('rows', 'titles'))


class ScoreTest(parameterized.TestCase):

  @parameterized.parameters(
      ('the cat sat', 'The  cat!', .8), ('a b', 'c', 0), ('', 'c', 0),
      ('Ａ b b', 'a b', .8), ('x, y', 'y x', 1))
  def test_f1_of_words(self, answer, truth, want):
    self.assertAlmostEqual(contamination.token_f1(answer, truth), want)

  def test_folded_texts_are_equal(self):
    np.testing.assert_array_equal(contamination.exact(
        [' Toy  STORY (1995) ', 'Café', 'Toy Story'], ['Toy Story (1995)', 'Cafe\u0301', 'toy']),
                                  [True, True, False])

  @parameterized.parameters((0, 200), (6, 73), (200, 200), (1, 3), (50, 101))
  def test_wilson_is_scipys(self, hits, n):
    want = scipy.stats.binomtest(hits, n).proportion_ci(method='wilson')
    np.testing.assert_allclose(statistics.wilson(hits, n), (want.low, want.high), atol=1e-6)

  def test_newcombes_own_example(self):
    # Statistics in Medicine 17 (1998), table II, rows 56/70 - 48/80 and 10/10 - 0/10, method 10
    np.testing.assert_allclose(statistics.newcombe(56, 70, 48, 80), (.2, .0524, .3339), atol=5e-5)
    np.testing.assert_allclose(statistics.newcombe(10, 10, 0, 10), (1, .6075, 1), atol=5e-5)

  def test_no_share(self):
    for hits, n in ((1, 0), (3, 2), (-1, 2)):
      with self.assertRaises(DataError):
        statistics.wilson(hits, n)

  @parameterized.parameters(
      ({'ids': (-.01, .019), 'rows': (-.01, .01)}, 'none'),
      ({'ids': (-.01, .019), 'rows': (-.01, .03)}, 'open'),
      ({'ids': (.01, .2), 'halves': (-.1, .3)}, 'rows'), ({'rows': (.01, .2)}, 'rows'),
      ({'halves': (.1, .3), 'ids': (-.01, .01)}, 'titles'),
      ({'attributes': (.1, .9), 'rows': (-.01, .01)}, 'none'), ({'attributes': (0, .01)}, 'open'))
  def test_verdict(self, gaps, want):
    self.assertEqual(contamination.verdict(
        [{'name': name, 'gap_low': low, 'gap_high': high} for name, (low, high) in gaps.items()]),
                     want)

  def test_two_hundred_misses_are_no_sign_and_one_hundred_leave_it_open(self):
    for n, key in ((200, 'none'), (100, 'open')):
      gap, low, high = statistics.newcombe(0, n, 0, n)
      self.assertEqual(gap, 0)
      self.assertEqual(contamination.verdict([{'name': 'ids', 'gap_low': low, 'gap_high': high}]),
                       key)

  def test_quintiles_and_halves(self):
    np.testing.assert_array_equal(contamination.quintiles(np.array([1, 9, 5, 5, 0, 2])),
                                  [3, 0, 0, 1, 4, 2])
    self.assertEqual(contamination.halved('a b  c'), ('a b', 'c'))
    self.assertEqual(contamination.halved('a'), ('a', ''))

  def test_which_ids_are_public(self):
    def catalog(ids, titles):
      data = films(0)
      return make_dataset('x', Catalog(tuple(ids), {'title': titles}), data.interactions)
    asins = [f'B00{i:07d}' for i in range(ITEMS)]
    self.assertTrue(contamination.public_ids(films(0))[0])
    self.assertTrue(contamination.public_ids(catalog(asins, ['x'] * ITEMS))[0])
    shown, why = contamination.public_ids(catalog(map(str, range(ITEMS)), ['x'] * ITEMS))
    self.assertFalse(shown)
    self.assertIn('not public', why)


class CommandTest(absltest.TestCase):

  def call(self, *words):
    args = cli.parser().parse_args(['doctor', *words])
    args.settings = ()
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
      cli.doctor.run(args)
    return out.getvalue()

  def run_of(self, **settings):
    folder = pathlib.Path(self.create_tempdir().full_path)
    (folder / 'config.json').write_text(json.dumps(run_files.signed(
        {'config': {'method': 'bigrec', **settings}, 'facts': {}})))
    return folder

  def test_a_model_that_its_run_trained_is_not_asked(self):
    said = self.call('sample:1:60', f'--contamination={self.run_of(llm={"weights": "tiny"})}')
    self.assertIn('trained here from nothing', said)

  def test_a_run_without_a_language_model_is_refused(self):
    with self.assertRaisesRegex(ConfigError, 'no language model'):
      self.call('sample:1:60', f'--contamination={self.run_of()}')

  def test_a_model_that_is_not_there_is_named_before_anything_is_looked_at(self):
    with self.assertRaisesRegex(ConfigError, 'nowhere does not exist; name a Hugging Face folder'):
      self.call('no data either', '--contamination=nowhere')

  @long
  def test_the_model_of_a_run_is_asked_and_the_run_keeps_what_it_said(self):
    with tempfile.TemporaryDirectory() as model:
      tuned(model, films(3), steps=1)
      run = self.run_of(llm={'weights': model})
      with mock.patch.object(contamination, 'BLOCK', 6):
        said = self.call('sample:1:60', f'--contamination={run}', '--cases=6')
      kept = json.loads((run / contamination.FILE).read_text())
    self.assertIn('ids: not asked, ids of the items are not public', said)
    self.assertIn('kept in', said)
    self.assertEqual((kept['model'], kept['verdict']), (model, 'open'))
    self.assertEqual([found['real']['n'] for found in kept['probes']], [6, 6, 6])


if __name__ == '__main__':
  absltest.main()
