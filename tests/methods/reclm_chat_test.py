"""What RecLM learns an answer behind is what asks for it, under chat templates of every kind."""
import dataclasses
import datetime
import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from recjax.data.dataset import Catalog, Interactions, make_dataset
from recjax.errors import ConfigError, DataError
from recjax.methods import reclm
from recjax.methods.reclm import chat_encoding, prompts, tokenized_catalog
from recjax.text import chat_template
from recjax.text import tokenizer as tokenizer_lib
from recjax.training.losses import trie_masked

SHARED = pathlib.Path(__file__).parents[2].parent / 'shared' / 'models'
TITLES = ['blue lamp', 'blue lamp shade', 'red rope', 'big mug']
EACH = '{% for m in messages %}'
DONE = '{% endfor %}'
ASK = '{% if add_generation_prompt %}'
# Layouts as model cards describe them, in our own words and with this test's control tokens.
TEMPLATES = {
    'own': tokenizer_lib.CHAT_TEMPLATE,
    'no generation prompt': EACH + "<|start|>{{ m.role + '\n' + m.content }}<|end|>\n" + DONE,
    # ChatML with a system turn of its own (SmolLM2, Qwen2.5).
    'default system': "{% if messages[0].role != 'system' %}<|start|>system\nBe kind.<|end|>\n"
                      '{% endif %}' + EACH + "<|start|>{{ m.role + '\n' + m.content }}<|end|>\n"
                      + DONE + ASK + '<|start|>assistant\n{% endif %}',
    'llama 2': "{% set s = namespace(t='') %}" + EACH + "{% if m.role == 'system' %}"
               "{% set s.t = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}"
               "{% elif m.role == 'user' %}<s>[INST] {{ s.t + m.content | trim }} [/INST]"
               "{% set s.t = '' %}{% else %} {{ m.content | trim }} <|end|>{% endif %}" + DONE,
    'mistral': "{% set s = messages[0].content if messages[0].role == 'system' else '' %}" + EACH
               + "{% if m.role == 'user' %}[INST]{% if loop.last or loop.index == 2 %}"
               "{{ s + '\n\n' }}{% endif %}{{ m.content }}[/INST]"
               "{% elif m.role == 'assistant' %}{{ m.content }}<|end|>{% endif %}" + DONE,
    # The date is of the day on which it is asked.
    'llama 3': EACH + '<|start|>{{ m.role }}\n\n{% if loop.first %}Today: '
               "{{ strftime_now('%d %b %Y') }}\n\n{% endif %}{{ m.content | trim }}<|end|>" + DONE
               + ASK + '<|start|>assistant\n\n{% endif %}',
    'gemma, the system in the first turn': EACH + "{% if m.role != 'system' %}<|start|>"
               "{{ 'model' if m.role == 'assistant' else m.role }}\n"
               '{% if loop.index == 2 %}{{ messages[0].content }}\n\n{% endif %}'
               '{{ m.content | trim }}<|end|>\n{% endif %}' + DONE + ASK
               + '<|start|>model\n{% endif %}',
    # The opening stands behind every request, whatever is asked for.
    'phi': EACH + "<{{ m.role }}>\n{{ m.content }}<|end|>\n{% if m.role == 'user' %}<assistant>\n"
           '{% endif %}' + DONE,
    'phi 3': EACH + "{% if m.role != 'assistant' %}<{{ m.role }}>\n{{ m.content }}<|end|>\n"
             "{% else %}<assistant>\n{{ m.content }}<|end|>\n{% endif %}" + DONE + ASK
             + '<assistant>\n{% else %}<|end|>{% endif %}',
    # An empty block in the last answer, and in what asks where thinking is off (Qwen3).
    'qwen3': "{% set ns = namespace(last=0) %}" + EACH + "{% if m.role == 'user' %}"
             '{% set ns.last = loop.index %}{% endif %}' + DONE + EACH
             + "<|start|>{{ m.role + '\n' }}{% if m.role == 'assistant' and loop.index > ns.last %}"
             '<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|end|>\n' + DONE + ASK
             + '<|start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}'
             '<think>\n\n</think>\n\n{% endif %}{% endif %}',
    # What asks opens the thinking; answers that are over have none (DeepSeek-R1).
    'opens thinking': EACH + "{% if m.role == 'assistant' %}<A>"
                      "{{ m.content.split('</think>')[-1] }}<|end|>{% else %}<{{ m.role }}>"
                      '{{ m.content }}{% endif %}' + DONE + ASK + '<A><think>\n{% endif %}',
    'plain words': EACH + "{{ m.role | upper + ': ' + m.content + '\n' }}" + DONE,
    'plain words, asked': EACH + "{{ m.role | upper + ': ' + m.content + '\n' }}" + DONE + ASK
                          + 'ASSISTANT:{% endif %}',
    'another end': EACH + "{{ m.role + ': ' + m.content + ' (over)\n' }}" + DONE + ASK
                   + 'assistant: {% endif %}',
    'the last turn ends anew': EACH + '<|start|>{{ m.role }}: {{ m.content }}{% if loop.last %}'
                               '<stop>{% else %}<|end|>{% endif %}' + DONE,
}
TURNS = [
  prompts.message('system', ' Advise. '),
  prompts.message('user', ' How?\n'),
  prompts.message('assistant', [' So. ']),
  prompts.message('user', 'Name two. '),
  prompts.message('assistant', prompts.numbered_list([3, 1])),
  prompts.message('user', 'More? '),
  prompts.message('assistant', ['No <|end|>.']),
]


def tokenizer(template):
  base = tokenizer_lib.train_bpe(TITLES * 4, 320)
  return dataclasses.replace(base, chat_template=template)


def renderer(base, variables=None, codes=False):
  made, (soi, eoi, *more) = tokenizer_lib.add_control_tokens(
    base,
    [
      tokenized_catalog.SOI,
      tokenized_catalog.EOI,
      *(['<0_0>', '<0_1>', '<1_0>', '<1_1>'] if codes else []),
    ],
  )
  stock = tokenized_catalog.load(Catalog(tuple('abcd'), {'title': TITLES}), made)
  if codes:
    stock = tokenized_catalog.with_codes(stock, np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), more[0])
  tree = stock.to_trie(eoi, made.vocab_size)
  nodes = trie_masked.title_nodes(tree.first, tree.tok, [[*r, eoi] for r in stock.title_tokens])
  return chat_encoding.ChatEncoder(made, stock.title_tokens, soi, eoi, nodes, variables=variables)


def runs(weights):
  """Where learned tokens begin and end. -> [(start, stop)]"""
  edges = np.flatnonzero(np.diff(np.concatenate([[0], weights, [0]])))
  return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


class PrefixTest(parameterized.TestCase):

  def check(self, turn, turns=TURNS):
    """Every answer is learned once, behind what asks for it, up to a token that ends decoding."""
    want = [(turn.tokens(turns[:at]), turn.answer(t['content']))
            for at, t in enumerate(turns) if t['role'] == 'assistant']
    found = []
    made = turn.examples(turns)
    for one in made:
      self.assertLen({len(one.ids), len(one.learned), *map(len, one.marks.values())}, 1)
      for start, stop in runs(one.learned):
        ids, marks = one.ids.tolist(), {k: v[start:stop - 1].tolist() for k, v in one.marks.items()}
        self.assertIn(ids[stop - 1], turn.tokenizer.eos_ids)
        found.append((ids[:start], (ids[start:stop - 1], marks['node'], marks['item'])))
    self.assertLen(found, len(want))
    for (asked, answer), (before, learned) in zip(want, found):
      self.assertEqual(before, asked)
      self.assertEqual(learned, answer)
    return made

  @parameterized.product(name=list(TEMPLATES), codes=(False, True))
  def test_templates_of_every_kind(self, name, codes):
    for variables in ({}, {'enable_thinking': False}):
      turn = renderer(tokenizer(TEMPLATES[name]), variables, codes)
      self.check(turn, TURNS[:3])
      self.check(turn, [TURNS[0], *TURNS[3:5]])
      self.check(turn)
      chat_encoding.check(turn.tokenizer, variables)

  @parameterized.parameters('first', 'always', 'never')
  def test_sentencepiece_style_tokenizers(self, scheme):
    backend = Backend(models.BPE(unk_token='<unk>'))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    backend.train_from_iterator([*TITLES, 'Advise How So Name two [INST] SYS 1234567890'] * 9,
                                trainers.BpeTrainer(vocab_size=200, show_progress=False,
                                                    special_tokens=['<unk>', '<s>', '</s>']))
    base = tokenizer_lib.wrap(backend, dict(bos_token='<s>', eos_token='</s>', unk_token='<unk>'),
                       TEMPLATES['llama 2'].replace('<|end|>', '</s>'))
    self.check(renderer(base), TURNS[:5])

  @absltest.skipUnless(SHARED.is_dir(), f'needs the tokenizers in {SHARED}')
  def test_qwen3(self):
    for variables, apart in (({}, 1), ({'enable_thinking': False}, 3)):
      turn = renderer(tokenizer_lib.load(SHARED / 'qwen3-tokenizer'), variables)
      self.assertLen(self.check(turn), apart)  # history has no block, what asks has one
      thought = turn.tokenizer.controls['<think>']
      self.assertEqual(turn.tokens(TURNS[:2]).count(thought), int('enable_thinking' in variables))

  def test_one_row_where_the_template_keeps_what_was_learned(self):
    base = tokenizer(tokenizer_lib.CHAT_TEMPLATE)
    turn = renderer(base)
    one, = self.check(turn)
    whole = chat_template.render_parts(turn.tokenizer, [
        {**t, 'content': [turn.answer(t['content'])[0]]} if t['role'] == 'assistant' else t
        for t in TURNS], False)
    self.assertEqual(one.ids.tolist(), [i for part in whole for i in part])

  def test_a_template_without_an_opening_opens_answers_as_it_writes_them(self):
    turn = renderer(tokenizer(TEMPLATES['no generation prompt']))
    text = turn.tokenizer.backend.decode(turn.tokens(TURNS[:2]), skip_special_tokens=False)
    self.assertTrue(text.endswith('<|end|>\n<|start|>assistant\n'), text)

  def test_answers_end_where_decoding_ends(self):
    """Where a template writes a space, or words of its own, before or for an end token."""
    for name in ('llama 2', 'another end', 'plain words'):
      one = renderer(tokenizer(TEMPLATES[name])).examples(TURNS[:3])[0]
      end, = tokenizer('').eos_ids
      self.assertEqual(one.ids[one.learned].tolist()[-1], end)

  def test_another_day_asks_alike(self):
    base, seen = tokenizer(TEMPLATES['llama 3']), []
    for day in (1, 2):
      with mock.patch.object(chat_template, 'datetime') as clock:
        clock.datetime.now.return_value = datetime.datetime(2026, 12, day)
        seen.append(renderer(base).tokens(TURNS[:2]))
    self.assertEqual(*seen)

  @parameterized.parameters(
      ("{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x",
       'no system role'),
      (EACH + "{% if m.role != 'assistant' %}{{ m.content }}{% endif %}" + DONE,
       'drops or repeats a message'),
      ('{{ messages[0].content.parts }}{{ 1 + messages[0].role }}', 'refuses the messages'),
      ('', 'no chat template'))
  def test_what_cannot_be_is_said_before_training(self, template, said):
    base = tokenizer(template)
    with self.assertRaisesRegex(ConfigError, said):
      chat_encoding.check(base, {})
    with mock.patch.object(reclm.tokenizer_lib, 'load', return_value=base), \
        self.assertRaisesRegex(ConfigError, f'^/models/x: .*{said}'):
      reclm.check_texts(self.config(), None, '/models/x')

  def config(self, **judge):
    return ConfigDict({'prompt': {'variables': {}}, 'train': {'multi_round': 0.0, 'static': ''},
                       'eval': {'rounds': 0, 'words': 'plain', 'cross': '', **judge}})

  def test_titles_that_cannot_be_written_are_named_before_training(self):
    """Of the catalog, and of the one that the weights are tested with afterwards."""
    base = tokenizer(tokenizer_lib.CHAT_TEMPLATE)
    base.backend.normalizer = normalizers.Replace('\u2019', '')
    right, wrong = (make_dataset('x', Catalog(('i0', 'i1'), {'title': ['lamp', t]}), Interactions(
        ('u',), np.array([1], np.int32), np.array([0, 1]))) for t in ('mug', 'Don\u2019t'))
    with mock.patch.object(reclm.tokenizer_lib, 'load', return_value=base):
      reclm.check_texts(self.config(), right, 'x')
      with self.assertRaisesRegex(DataError, r'item i1, .*at character 4 U\+2019'):
        reclm.check_texts(self.config(), wrong, 'x')
      with mock.patch.object(reclm, 'load_data', return_value=wrong), \
          self.assertRaisesRegex(DataError, r'item i1, .*at character 4 U\+2019'):
        reclm.check_texts(self.config(cross='other'), right, 'x')

  def test_one_round_is_enough_where_one_is_asked(self):
    """A template of a single round is refused only where there are more."""
    base = tokenizer("{% if messages | length > 3 %}{{ raise_exception('one round') }}{% endif %}"
                     + tokenizer_lib.CHAT_TEMPLATE)
    chat_encoding.check(base, {}, several=False)
    with self.assertRaisesRegex(ConfigError, 'one round'):
      chat_encoding.check(base, {})


if __name__ == '__main__':
  absltest.main()
