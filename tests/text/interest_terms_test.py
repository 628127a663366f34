"""Interests: the spec's formula by hand, its promises on any input, and a model that misbehaves."""
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl.testing import absltest, parameterized

from recjax.data import loading
from recjax.data.formats import etegrec
from recjax.errors import ServiceError
from recjax.text import interest_terms
from tests.long import examples
from tests.text import llm_api_test

TITLES = ['Copper Wire', 'Copper Wire', 'Copper Pot', 'Steel Pot', 'Glass Jar', 'Glass Lid',
          *(f'Filler{chr(97 + i)} Thing' for i in range(14))]

COLUMNS = {'title': TITLES, 'categories': [['Shop', 'Cables']] * 2 + [None] * 18}


def found(history, most=5):
  return interest_terms.interests(history, interest_terms.read_terms(COLUMNS, 20), most)


class LocalTest(parameterized.TestCase):

  def test_worths_by_hand(self):
    # Newest first: Pot (idf ln 10, age 0) beats Steel's ln 20 only with item 3 at age 1 added.
    pot, steel, copper = np.log(10) * 1.85, np.log(20), np.log(20 / 3) * .85
    self.assertGreater(pot, steel)
    self.assertGreater(steel, copper)
    self.assertEqual(found([3, 4]), ['Pot', 'Steel', 'Copper'])

  def test_a_pair_takes_the_place_of_its_words(self):
    self.assertEqual(found([1]), ['Cables', 'Copper Wire'])

  def test_old_items_fade(self):
    self.assertEqual(found([5, *[4] * 8], 1), ['Steel'])
    self.assertEqual(found([4, 5], 1), ['Jar'])

  def test_common_terms_say_nothing(self):
    self.assertNotIn('Thing', found([7, 8, 9]))

  def test_items_that_are_not_there_are_skipped(self):
    self.assertEqual(found([0, 3, 99, 4, -1]), found([3, 4]))
    self.assertEqual(found([]), [])

  def test_singular_and_plural_are_one(self):
    terms = interest_terms.read_terms({'title': ['Glass Burette', 'Jar', 'Pot'],
                                  'categories': [['Burettes'], None, None]}, 3)
    self.assertEqual(interest_terms.interests([1], terms), ['Burettes', 'Glass'])

  def test_sample_shop_is_quick_and_says_why(self):
    shop = loading.load_data('sample')
    terms = interest_terms.read_terms(shop.catalog.columns, len(shop.catalog))
    history = shop.interactions.items[:400]
    interest_terms.interests(history, terms)
    start = time.thread_time()  # what this thread computes: others may be busy
    for _ in range(20):
      out = interest_terms.interests(history, terms)
    self.assertLess((time.thread_time() - start) / 20, .02)
    self.assertLen(out, 5)
    some = [interest_terms.shared_terms(int(i), out, terms) for i in history[-50:]]
    self.assertEqual({w for row in some for w in row}, set(out))

  @examples(20, 100)
  @hypothesis.given(
      st.lists(st.tuples(st.one_of(st.none(), st.text(max_size=30)),
                         st.one_of(st.none(), st.lists(st.text(max_size=9), max_size=2))),
               max_size=8), st.lists(st.integers(-2, 12), max_size=70))
  def test_never_raises_and_keeps_the_contract(self, rows, history):
    columns = {'title': [t for t, _ in rows], 'categories': [c for _, c in rows]}
    terms = interest_terms.read_terms(columns, len(rows))
    out = interest_terms.interests(history, terms)
    self.assertEqual(out, interest_terms.interests(history, terms))
    self.assertLessEqual(len(out), 5)
    self.assertEqual([t.strip() for t in out], out)
    self.assertLen({t.lower() for t in out}, len(out))


class ModelTest(parameterized.TestCase):

  def test_the_question_shows_the_history_alone_on_one_line_an_item(self):
    columns = {'title': ['a\nb', 'target'], 'description': ['x' * 999, None]}
    text = interest_terms.interest_messages([1], columns)[-1]['content']
    self.assertNotIn('target', text)
    self.assertEqual(text.count('\n'), 1)
    self.assertLess(len(text), 600)

  def ask(self, timeout=5., **step):
    text = interest_terms.interest_messages([1, 3], COLUMNS)[-1]['content']
    with llm_api_test.serving({text: [step]}) as server:
      api = llm_api_test.config(server, n=1, retries=1, timeout=timeout)
      return interest_terms.ask_model([1, 3], COLUMNS, api, '', etegrec.parse_interests)

  def test_an_answer(self):
    body = llm_api_test.reply(['<interest>Wires</interest>\n<interest> wires</interest>'])
    self.assertEqual(self.ask(body=body), ['Wires'])
    self.assertEqual(self.ask(body=llm_api_test.reply(['{"interests": ["Pots"]}'])), ['Pots'])
    self.assertEqual(interest_terms.ask_model([], COLUMNS, None, '', None), [])

  @parameterized.parameters(
      (dict(status=429, timeout=1.), 'rate_limited'), (dict(body='{"broken'), 'malformed'),
      (dict(body=llm_api_test.reply([''])), 'empty'), (dict(status=401), 'refuses'),
      (dict(body=llm_api_test.reply(['Pots, I think.'])), 'without interests'))
  def test_failures_are_named(self, step, what):
    with self.assertRaisesRegex(ServiceError, what):
      self.ask(**step)

  @parameterized.parameters(dict(wait=200), dict(status=429, headers={'Retry-After': '500'}))
  def test_it_gives_up_in_time(self, **step):
    start = time.monotonic()
    with self.assertRaises(ServiceError):
      self.ask(timeout=.3, **step)
    self.assertLess(time.monotonic() - start, 60)  # under a second alone


if __name__ == '__main__':
  absltest.main()
