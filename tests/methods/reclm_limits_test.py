"""What a request states in numbers is read as meant, and kept to, whatever the model likes."""
import math
import time

import jax
import numpy as np
from absl.testing import absltest, parameterized

from recjax.data.dataset import Catalog
from recjax.decoding import streaming
from recjax.methods.reclm import chat_batcher, conversation, item_limits, prompts
from tests.long import long
from tests.methods.reclm_test import TEMPLATE, TITLES, eager, one_device

FREE = -math.inf, math.inf
PRICES = [5.0 * n for n in range(1, len(TITLES) + 1)]  # 5 to 150
PRICED = Catalog(tuple(f't{i}' for i in range(len(TITLES))), {'title': TITLES, 'price': PRICES})
UNPRICED = Catalog(PRICED.ids, {'title': TITLES})


class ReadTest(parameterized.TestCase):
  """Sentences as people write them; the limits beside them were written down by hand."""

  @parameterized.parameters(
      ('for a chemistry lab, three items, not over 50', 3, 3, -math.inf, 50),
      ('Three items for a chemistry lab, not over 50, please.', 3, 3, -math.inf, 50),
      ('I want five products between 10 and 30 euros.', 5, 5, 10, 30),
      ('at least three items, up to €25 each', 3, 0, -math.inf, 25),
      ('Give me at most 4 items, a maximum price of fifty dollars', 0, 4, -math.inf, 50),
      ('My budget is 40 euros, what can I get?', 0, 0, -math.inf, 40),
      ('Name a product that costs no more than twenty-five dollars.', 0, 0, -math.inf, 25),
      ('nothing above 1,299.00 please', 0, 0, -math.inf, 1299),
      ('ten items, max. 15 euros', 10, 10, -math.inf, 15),
      ('3-5 products, $20-$40', 3, 5, 20, 40),
      ('three to five products, 20 to 40 €', 3, 5, 20, 40),
      ('I can spend 30 dollars. One item.', 1, 1, -math.inf, 30),
      ('no more than 3 items, not under 5 EUR', 0, 3, 5, math.inf),
      ('fewer than four products', 0, 3, *FREE), ('more than four products', 5, 0, *FREE),
      ('3 or more items', 3, 0, *FREE), ('exactly 2 different items', 2, 2, *FREE),
      ('The price should not exceed a hundred and twenty.', 0, 0, -math.inf, 120),
      ("It mustn't cost more than 35 dollars, two items", 2, 2, -math.inf, 35),
      ('items for 50 euros or less', 0, 0, -math.inf, 50),
      ('at least 20 euros but no more than 40', 0, 0, 20, 40),
      ('Show me the three best items, 9.99 at most', 3, 3, -math.inf, 9.99),
      ('THREE ITEMS,\u00a0NOT OVER 50', 3, 3, -math.inf, 50),
      ('Recommend two beakers, no more than 20', 2, 2, -math.inf, 20),
  )
  def test_limits(self, text, least, most, low, high):
    found = item_limits.read(text)
    self.assertEqual((found.least, found.most, found.low, found.high), (least, most, low, high))

  @parameterized.parameters('under 20', 'Below $20!', 'less than 20 euros', 'cheaper than twenty')
  def test_under_leaves_the_number_itself_out(self, text):
    found = item_limits.read(text)
    np.testing.assert_array_equal(found.meets(np.array([19.99, 20.0, 20.01, math.nan])),
                                  [True, False, False, False])
    above = item_limits.read('over 20')
    np.testing.assert_array_equal(above.meets(np.array([19.99, 20.0, 20.01, math.nan])),
                                  [False, False, True, False])

  @parameterized.parameters(
      '50 ml bottles', 'a picnic for 3 people', 'I need 50 ml bottles for 3 people',
      'books for people over 18', 'My father is over 50 and likes chemistry', 'I am over 50.',
      'I bought three items last week, what next?', 'the 3 items that I bought are broken',
      'A box holds 5 items. How many items do 3 of them hold?',
      'Ada has 3 items and buys 5 more. How many items are there now?', 'a rope over 5 m',
      'it should work at temperatures below 100', 'less than 5 minutes', 'a pack of 10 items',
      'What is 7 times 8?', 'Which one is best?', 'this one or that one', 'up to 3 W at 12 V',
      'screws M3 up to 20 mm', 'Write a two-line poem.', 'In 2020 I had two items of yours',
      'Is 0.5 larger than 0.25?', 'more than 3 people came', 'not over 50%', 'under 18 years',
      'What are the three primary colors?', 'between 3 and 5 pm', 'a box of 3 by 5', '', '50', '$',
      'not over', 'three', 'a chair for two and a half people')
  def test_numbers_that_are_no_limits(self, text):
    self.assertEqual(item_limits.read(text), item_limits.ItemLimits())

  @parameterized.parameters('Give me three short tips for sleeping.', 'Name three planets.',
                            'three suggestions for a birthday speech')
  def test_nothing_has_to_be_sold_where_no_goods_are_asked_for(self, text):
    found = item_limits.read(text)
    self.assertEqual((found.least, found.words), (0, ''))

  def test_hostile_texts_are_read_soon(self):
    start = time.process_time()
    for piece in ('3 ', 'between ', 'three items ', '1,', 'a hundred and ', 'give me 3 ', ' '):
      item_limits.read(piece * (20_000 // len(piece)))
    self.assertLess(time.process_time() - start, 20)

  def test_prices_as_catalogs_have_them(self):
    prices = item_limits.prices_of(Catalog(tuple('abcdef'), {'price': [
        3, 4.5, '$1,200.00', 'from 3 to 4', None, [1, 2]]}))
    np.testing.assert_array_equal(prices, [3, 4.5, 1200, math.nan, math.nan, math.nan])
    self.assertTrue(np.isnan(item_limits.prices_of(Catalog(('a',), {}))).all())


class PlanTest(parameterized.TestCase):

  def plan(self, text, prices=tuple(PRICES), may_come=None, least=0, most=10):
    may_come = np.ones(len(prices), bool) if may_come is None else may_come
    return item_limits.plan(text, np.array(prices), may_come, least, most)

  def test_limits_add_to_what_may_come(self):
    retired = np.arange(30) % 2 == 0
    found = self.plan('three items, not over 50', may_come=retired)
    self.assertEqual(np.flatnonzero(found.allowed).tolist(), [0, 2, 4, 6, 8])
    self.assertEqual((found.least, found.most, found.note), (3, 3, ''))
    found = self.plan('three items', most=2)
    self.assertEqual((found.least, found.most), (2, 2))
    self.assertIn('at most 2 items', found.note)
    self.assertEqual(self.plan('', least=1, most=4).least, 1)

  def test_what_cannot_be_kept_to_is_said(self):
    found = self.plan('two items under 50', prices=[math.nan] * 3)
    self.assertTrue(found.allowed.all())
    self.assertIn('no prices, so I cannot keep to "under 50"', found.note)
    self.assertEqual((found.least, found.most), (2, 2))
    self.assertIn('not their sum', self.plan('under 50 in total').note)
    self.assertIn('at most 10 items', self.plan('twelve items').note)

  def test_a_limit_that_no_item_meets(self):
    found = self.plan('three items under 4')
    self.assertEqual(found.refusal,
                     'No item of this catalog fits "under 4": prices go from 5 to 150.')
    self.assertTrue(self.plan('over 20 and under 10').refusal)


class ReplyTest(absltest.TestCase):
  """A model that likes to begin items, over a catalog with prices and one without."""

  def setUp(self):
    super().setUp()
    self.cfg, speaker = eager()
    self.cfg.decode.update(new_tokens=96)
    self.domains = conversation.untrained_models(speaker, {'priced': PRICED, 'plain': UNPRICED})
    self.batcher = chat_batcher.ChatBatcher(self.cfg, self.domains, TEMPLATE['system'],
                                            one_device())

  def ask(self, text, **fields):
    return chat_batcher.ChatRequest((prompts.message('user', text),), **fields)

  def test_replies_keep_to_what_is_stated_in_one_program(self):
    told = []
    first, = self.batcher([self.ask('What now? Three items, not over 50.', tell=told.append)])
    self.assertLen(first.items, 3)
    self.assertTrue(first.complete)
    self.assertLessEqual(max(PRICES[item - 1] for item in first.items), 50)
    for text, longer in zip(told, [*told[1:], first.text]):
      self.assertEqual(longer[:len(text)], text)
    programs = streaming._run_passes._cache_size()
    asked = ['What now? Two items over 100.', 'One item between 60 and 70', 'What now?',
             'At least 4 items', 'Name items under 4']
    found = [self.batcher([self.ask(text)])[0] for text in asked]
    self.assertEqual(streaming._run_passes._cache_size(), programs)
    self.assertEqual(self.batcher([self.ask(text) for text in asked]), found)
    self.assertLen(found[0].items, 2)
    self.assertGreater(min(PRICES[item - 1] for item in found[0].items), 100)
    self.assertLen(found[1].items, 1)
    self.assertBetween(PRICES[found[1].items[0] - 1], 60, 70)
    self.assertGreater(len(found[2].items), 3)
    self.assertGreaterEqual(len(found[3].items), 4)
    self.assertEqual((found[4].items, found[4].complete), ((), True))
    self.assertIn('prices go from 5 to 150', found[4].text)

  @long
  def test_a_catalog_without_prices_says_so(self):
    found, = self.batcher([self.ask('Two items under 20, please', domain='plain')])
    self.assertStartsWith(found.text, 'This catalog states no prices, so I cannot keep to "under')
    self.assertLen(found.items, 2)

  @long
  def test_a_conversation_keeps_to_them_too(self):
    with jax.set_mesh(one_device()):
      talk = conversation.Conversation(self.cfg, self.domains, TEMPLATE['system'])
      talk.warm()
      programs = (streaming._run_passes._cache_size(), conversation._extend_cache._cache_size())
      told = []
      reply = talk.say('Three items, not over 50', tell=lambda r: told.append(r.text))
      self.assertLen(reply.items, 3)
      self.assertLessEqual(max(PRICES[item - 1] for item in reply.items), 50)
      for text, longer in zip(told, [*told[1:], reply.text]):
        self.assertEqual(longer[:len(text)], text)
      self.assertIn('prices go from', talk.say('Anything under 4?').text)
      reply = talk.say('Two items over 100, ' + 'and so on ' * 30)
      self.assertLen(reply.items, 2)
      self.assertGreater(min(PRICES[item - 1] for item in reply.items), 100)
      talk.use('plain')
      self.assertIn('states no prices', talk.say('Two items under 20').text)
      self.assertEqual((streaming._run_passes._cache_size(),
                        conversation._extend_cache._cache_size()), programs)


if __name__ == '__main__':
  absltest.main()
