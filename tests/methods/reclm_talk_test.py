"""What keeps a chat model's talk: its own answers as chat pairs, cut ones without an end; and
wishes in plain words, whose lists meet what they state."""
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from ml_collections import ConfigDict

from recjax.data.dataset import Catalog
from recjax.data.formats import conversations
from recjax.methods.reclm import (
  item_limits,
  own_talk,
  plain_questions,
  plain_wishes,
  prompts,
  sft_data,
  tokenized_catalog,
)
from recjax.models import huggingface, llm
from recjax.text import tokenizer as tokenizer_lib
from recjax.training import workdir
from tests import devices
from tests.long import long
from tests.methods import reclm_chat_test

KINDS = ('Lamps & Lights', 'Ropes', 'Mugs')
CATALOG = Catalog(tuple(f'i{n}' for n in range(24)), {
    'title': [f'thing {chr(97 + n)}' for n in range(24)], 'price': [3 + 2 * n for n in range(24)],
    'categories': [['Goods', KINDS[n % 3]] for n in range(24)]})


class OwnTalkTest(absltest.TestCase):

  @long
  def test_the_models_own_answers_are_the_pairs(self):
    """Against whole passes of the model over the prompt and each answer."""
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    made = tokenizer_lib.train_bpe(plain_questions.questions(200), 400)
    shape = llm.Config(vocab=made.vocab_size, width=32, layers=1, heads=2, kv_heads=1, head_dim=16,
                       ffn=48)
    params = llm.init(shape, jax.random.key(0))
    params = {**params, 'embed': params['embed'] * 20}
    huggingface.save(params, shape, folder / 'llm')
    made.save(folder / 'llm')
    cfg = ConfigDict(dict(seed=3, llm=dict(weights='', dtype='auto', remat='none', quantize='none'),
                          talk=dict(own=6, answer_tokens=8),
                          prompt=dict(template='last', max_prompt_tokens=256, variables={})))
    facts = {'command': 'test', 'devices': '1', 'versions': {}, 'revision': '', 'overrides': {}}
    with workdir.open_work(folder / 'run', {'config': cfg.to_dict(), 'facts': facts},
                           devices.mesh(data=1, fsdp=1, model=1)) as work:
      left = work.stage('own-talk', own_talk.stage, own_talk.settings(cfg), folder / 'llm')
    pairs = own_talk.read(left)
    asked = plain_questions.questions(6, 3)
    self.assertEqual([question for question, _ in pairs], asked)
    self.assertLen(set(asked), 6)
    prompt_ids = own_talk.encode(cfg, made, asked)
    width = max(map(len, prompt_ids)) + 8

    @jax.jit
    def logits(tokens):  # causal, so what stands behind a place does not count
      hidden, _ = llm.LM(shape).apply({'params': params}, tokens, jnp.arange(width)[None],
                                      jnp.ones_like(tokens))
      return llm.LM(shape).apply({'params': params}, hidden, method='logits')
    for ids, (_, answer) in zip(prompt_ids, pairs):
      row = list(ids)
      for _ in range(8):
        tokens = np.zeros((1, width), np.int32)
        tokens[0, :len(row)] = row
        row.append(int(np.argmax(logits(tokens)[0, len(row) - 1])))
        if row[-1] in made.eos_ids:
          break
      self.assertEqual(answer, own_talk.answer_text(made, row[len(ids):]))
    self.assertTrue(any(answer.endswith(conversations.CUT) for _, answer in pairs))

  def test_a_cut_answer_has_no_end_to_learn(self):
    base = reclm_chat_test.tokenizer(tokenizer_lib.CHAT_TEMPLATE)
    encoder = reclm_chat_test.renderer(base)
    opening, ends = prompts.message('system', 'Advise.'), base.eos_ids
    for answer in ('So it is', 'So it is' + conversations.CUT):
      turns = [opening, *sft_data.chat_turns(('How?', answer))]
      one, = encoder.examples(turns)
      learned = one.ids[one.learned].tolist()
      self.assertEqual(learned[-1] in ends, not answer.endswith(conversations.CUT))
      self.assertEqual(base.decode([token for token in learned if token not in ends]), 'So it is')
    sample = sft_data.Sample([opening, prompts.message('user', 'a'), prompts.message(
        'assistant', prompts.numbered_list([1]))])
    mixed = sft_data.add_chat_turn(sample, ('How?', 'So' + conversations.CUT), late=0)
    self.assertIn('cut', mixed.turns[-1])  # nothing can follow it

  def test_questions_differ(self):
    asked = plain_questions.questions(10**6)
    self.assertLen(set(asked), len(asked))
    self.assertGreater(len(asked), 150)
    self.assertFalse([question for question in asked if '{' in question])


class WishTest(absltest.TestCase):

  def test_lists_meet_what_wishes_state(self):
    base = tokenizer_lib.train_bpe(CATALOG.columns['title'] * 4, 300)
    tokenized = tokenized_catalog.load(CATALOG, base)
    texts, priced = set(), 0
    for seed in range(300):
      rng = np.random.default_rng(seed)
      text, items = plain_wishes.make_wish(tokenized, tokenized.prices, rng, 5)
      texts.add(text)
      kind, = {KINDS[(item - 1) % 3] for item in items}
      self.assertIn(kind.lower(), text)
      self.assertLen(set(items), len(items))
      stated = item_limits.read(text)
      self.assertEqual(stated.most, len(items), text)
      self.assertTrue(stated.meets(tokenized.prices[np.array(items) - 1]).all(), text)
      priced += bool(stated.words)
    self.assertGreater(len(texts), 250)
    self.assertBetween(priced, 100, 200)


if __name__ == '__main__':
  absltest.main()
