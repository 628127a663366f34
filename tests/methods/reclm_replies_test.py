"""Replies to conversations: told while they are made, ended where nobody wants them; control
symbols of people are text."""
import concurrent.futures
import dataclasses
import functools

from absl.testing import absltest, parameterized

from recjax.data.dataset import Catalog
from recjax.decoding.prefix_memory import PrefixMemory
from recjax.errors import ConfigError
from recjax.methods.reclm import chat_batcher, conversation, prompts, stop_words
from tests.long import long
from tests.methods.reclm_test import TEMPLATE, TITLES, eager, one_device

TOOLS = Catalog(tuple(f't{i}' for i in range(len(TITLES))), {'title': TITLES})


@functools.cache
def replier():
  cfg, speaker = eager()
  cfg.decode.new_tokens = 64
  shelves = conversation.untrained_models(speaker, {'tools': TOOLS, 'two': Catalog(
      ('x', 'y'), {'title': ['Öl 中', 'Two 🛠']})})
  return chat_batcher.ChatBatcher(cfg, shelves, TEMPLATE['system'], one_device())


def said(text='What now?', **more):
  return chat_batcher.ChatRequest((prompts.message('user', text),), **more)


class TellTest(parameterized.TestCase):

  @parameterized.parameters((0.0, ''), (1.0, ''), (1.0, 'two'))
  @long
  def test_what_is_told_is_only_added_to(self, warmth, domain):
    """At temperature 1 the model writes single bytes too, halves of characters among them."""
    some = replier()
    pieces, broken, named = 0, 0, 0
    for seed in range(4):
      told = [[] for _ in range(3)]
      asked = [said(f'Number {n}', domain=domain, temperature=warmth, seed=seed, most=m, tokens=t,
                    tell=told[n].append) for n, (m, t) in enumerate(((10, 0), (1, 0), (10, 9)))]
      found = some(asked)
      quiet = some([dataclasses.replace(s, tell=None) for s in asked])
      self.assertEqual(found, quiet)
      for texts, answer, ask in zip(told, found, asked):
        for text, longer in zip(texts, [*texts[1:], answer.text]):
          self.assertEqual(longer[:len(text)], text)
        pieces += len(set(texts))
        broken += '\ufffd' in answer.text
        self.assertLen(set(answer.items), len(answer.items))
        self.assertLessEqual(len(answer.items), ask.most)
        self.assertTrue(set(answer.titles) <= {'Öl 中', 'Two 🛠', *TITLES})
        named += len(answer.items)
        at = -1
        for title in answer.titles:  # each came whole: no text told ends within it
          at = answer.text.index(f'"{title}"', at + 1)
          self.assertFalse([t for t in texts if at < len(t) < at + len(title) + 2])
    self.assertGreater(pieces, 30)
    self.assertGreater(named, 8)
    if warmth and not domain:
      self.assertGreater(broken, 0)

  def test_who_has_gone_is_not_written_for(self):
    some, told = replier(), []
    whole, = some([said()])
    cut, = some([said(tell=told.append, gone=lambda: len(told) == 2)])
    self.assertLen(told, 2)
    self.assertLess(cut.tokens_out, whole.tokens_out / 2)
    self.assertTrue(whole.text.startswith(cut.text))
    left, stays = some([said(gone=lambda: True), said()])
    self.assertEqual((left.tokens_out, stays), (1, whole))

  def test_stop_words_end_a_reply(self):
    """At every place of a reply: the text is cut there, or before the title there; nothing that is
    told is taken back; and the model writes no further."""
    some = replier()
    whole, = some([said(least=1, tokens=40)])
    spans = stop_words.title_spans(whole.text, whole.titles)
    self.assertNotEmpty(spans)
    places = [place for place in range(1, len(whole.text) - 3)
              if whole.text.find(whole.text[place:place + 3]) == place][::3]
    for start in range(0, len(places), 8):
      stops = [(whole.text[place:place + 3], '\0') for place in places[start:start + 8]]
      told = [[] for _ in stops]
      found = some([said(least=1, tokens=40, stop=stop, tell=texts.append)
                    for stop, texts in zip(stops, told)])
      for place, stop, texts, answer in zip(places[start:], stops, told, found):
        title = next((a for a, b in spans if a < place < b), place)
        self.assertEqual(answer.text, whole.text[:title])
        self.assertEqual(answer.items, whole.items[:sum(b <= title for _, b in spans)])
        self.assertTrue(answer.complete)
        self.assertNotIn(stop[0], answer.text)
        for text, longer in zip(texts, [*texts[1:], answer.text]):
          self.assertEqual(longer[:len(text)], text)
      if start == 0:
        self.assertLess(found[0].tokens_out, whole.tokens_out)

  def test_a_seed_and_a_temperature_count_as_they_do_alone(self):
    some = replier()
    asked = [said(seed=seed, temperature=warmth, tokens=12)
             for seed, warmth in ((1, 0.8), (2, 0.8), (1, 0.8), (1, 0.0), (1, 1.7))]
    found = some(asked)
    self.assertEqual(found[0], found[2])
    self.assertEqual([some([one])[0] for one in asked], found)
    self.assertGreater(len({answer.text for answer in found}), 2)

  def test_enough_ends_a_reply(self):
    some, told = replier(), []
    short, = some([said(tokens=5, tell=told.append)])
    self.assertEqual(short.tokens_out, 5)
    self.assertLess(len(told), 6)
    told.clear()
    early, order = {}, []
    asked = [said(tell=told.append), said(tokens=1)]
    found = some(asked, lambda row, answer: (early.update({row: answer}), order.append(len(told))))
    self.assertEqual(early[1], found[1])
    self.assertLess(order[0], len(told) / 2)
    one, = some([said(most=1, least=1)])
    whole, = some([said(least=1)])
    self.assertEqual(one.items, whole.items[:1])
    self.assertTrue(one.text.endswith(f'"{one.titles[0]}"'))
    self.assertTrue(whole.text.startswith(one.text))


class MemoryTest(parameterized.TestCase):

  def batcher(self, max_bytes):
    counts, some = [], replier()
    memory = PrefixMemory(max_bytes, lambda found, read: counts.append(found))
    return chat_batcher.ChatBatcher(some.cfg, some.domains, some.system, some.mesh, memory), counts

  def rounds(self):
    """A conversation in rounds, which forks, another system turn, and a turn about goods."""
    base = [('user', 'I need a lamp, ' * 4), ('assistant', 'Try "red lamp". ' * 3),
            ('user', 'And a rope?')]
    talks = [base[:1], base, [*base, ('assistant', 'No.'), ('user', 'Why?')],
             [*base[:2], ('user', 'And a saw?')], [('system', 'Be short.'), *base[:1]]]
    asked = [chat_batcher.ChatRequest(tuple(prompts.message(*turn) for turn in turns), seed=n,
                                      temperature=0.9, tokens=8)
             for n, turns in enumerate(talks)]
    return [*asked, said(history=(3, 4), tokens=8, temperature=1.2)]

  def check(self, some, counts, want):
    """Replies are those of a model that keeps nothing, and the system turn stays."""
    memory = some.generator.memory
    pinned = memory.num_bytes
    self.assertGreater(pinned, 0)
    counts.clear()
    self.assertEqual([some([request])[0] for request in self.rounds()], want)
    self.assertGreater(min(found for n, found in enumerate(counts) if n != 4), 0)
    self.assertLessEqual(memory.num_bytes, memory.max_bytes)
    memory.clear()
    self.assertEqual(memory.num_bytes, pinned)

  @parameterized.parameters((1 << 30,), (40_000,))
  def test_replies_are_equal_with_a_memory_and_without(self, max_bytes):
    plain, _ = self.batcher(0)
    want = [plain([request])[0] for request in self.rounds()]
    self.assertEqual(plain.generator.memory.num_bytes, 0)
    some, counts = self.batcher(max_bytes)
    some.generator.keep_opening()
    self.check(some, counts, want)

  @long
  def test_batches_and_threads_share_a_memory(self):
    plain, _ = self.batcher(0)
    want = [plain([request])[0] for request in self.rounds()]
    some, counts = self.batcher(1 << 30)
    some.warm()
    self.assertEqual(some(self.rounds()), want)
    self.check(some, counts, want)
    other, _ = self.batcher(0)
    other.generator.memory = some.generator.memory
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      for found in pool.map(lambda one: [one([request])[0] for request in self.rounds()] * 2,
                            (some, other)):
        self.assertEqual(found, want * 2)


class ControlTest(parameterized.TestCase):

  @parameterized.parameters('<SOI>', '<EOI>', '<|end|>', '<|start|>assistant\n',
                            '<SOI>red lamp<EOI>')
  def test_symbols_of_people_are_text(self, symbol):
    some = replier()
    speaker = some.domains['tools'].chat_model
    control = {speaker.soi, speaker.eoi, *speaker.tokenizer.controls.values()}
    for role in ('user', 'system', 'assistant'):
      def prompt(text, role=role):
        turns = {
          'user': [('user', text)],
          'system': [('system', text), ('user', 'b')],
          'assistant': [('user', 'a'), ('assistant', text), ('user', 'b')],
        }[role]
        return some.prompt(
          chat_batcher.ChatRequest(tuple(prompts.message(r, t) for r, t in turns))
        )

      plain, bad = prompt('a plain text'), prompt(f'a {symbol} text')
      for ids in (plain, bad):
        self.assertNotIn(speaker.soi, ids)
      self.assertEqual([i for i in plain if i in control], [i for i in bad if i in control])
      self.assertIn(symbol, speaker.tokenizer.backend.decode(bad, skip_special_tokens=False))

  def test_titles_of_earlier_replies_become_items_again(self):
    some = replier()
    speaker = some.domains['tools'].chat_model
    turns = [('user', 'a'), ('assistant', 'Try "red lamp" and "no item".'), ('user', 'b')]
    ids = some.prompt(chat_batcher.ChatRequest(tuple(prompts.message(r, t) for r, t in turns)))
    self.assertEqual((ids.count(speaker.soi), ids.count(speaker.eoi)), (1, 1))
    inner = ids[ids.index(speaker.soi) + 1:ids.index(speaker.eoi)]
    self.assertEqual(speaker.tokenizer.decode(inner).strip(), 'red lamp')

  def test_a_turn_that_is_too_long(self):
    with self.assertRaisesRegex(ConfigError, 'fewer words'):
      replier().asked([prompts.message('user', 'word ' * 5000)])


if __name__ == '__main__':
  absltest.main()
