"""Titles in a tokenizer's own form: found again after decoding, or refused with code points."""
import pathlib

from absl.testing import absltest, parameterized
from ml_collections import ConfigDict
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from recjax.data.dataset import Catalog
from recjax.decoding import trie
from recjax.errors import DataError
from recjax.methods.betag import prompts as betag
from recjax.methods.bigrec import generate, instruction_data, prompts
from recjax.methods.reclm import offline_samples, tokenized_catalog
from recjax.text import spelling
from recjax.text import tokenizer as tokenizer_lib

SHARED = pathlib.Path(__file__).parents[2].parent / 'shared'
TITLES = ['10 k\u2126 resistor', 'Cafe\u0301 scale', 'Ｗｉｄｅ ﬁn', 'BIG Mug', 'Caf\u00e9 scale',
          'two\u00a0 spaces', 'x\u00b2 tube', 'plain']
# What each kind of normalizer makes of them, by Unicode's definitions.
FORMS = {
    'nfc': (normalizers.NFC(), ['10 kΩ resistor', 'Café scale', 'Ｗｉｄｅ ﬁn', 'BIG Mug',
                                'Café scale', 'two spaces', 'x² tube', 'plain']),
    'nfkc': (normalizers.NFKC(), ['10 kΩ resistor', 'Café scale', 'Wide fin', 'BIG Mug',
                                  'Café scale', 'two spaces', 'x2 tube', 'plain']),
    'nfd': (normalizers.NFD(), ['10 kΩ resistor', 'Cafe\u0301 scale', 'Ｗｉｄｅ ﬁn', 'BIG Mug',
                                'Cafe\u0301 scale', 'two spaces', 'x² tube', 'plain']),
    'small': (normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
              ['10 kω resistor', 'café scale', 'wide fin', 'big mug', 'café scale', 'two spaces',
               'x2 tube', 'plain']),
    'uncased': (normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(),
                                      normalizers.Lowercase()]),
                ['10 kω resistor', 'cafe scale', 'wide fin', 'big mug', 'cafe scale',
                 'two spaces', 'x2 tube', 'plain']),
    'strip': (normalizers.Sequence([normalizers.Replace(Regex(r'\s+'), ' '),
                                    normalizers.Strip()]),
              ['10 k\u2126 resistor', 'Cafe\u0301 scale', 'Ｗｉｄｅ ﬁn', 'BIG Mug', 'Café scale',
               'two spaces', 'x² tube', 'plain']),
}
TEMPLATE = prompts.load_template('bigrec')


def with_normalizer(one):
  made = tokenizer_lib.train_bpe(['plain text'] * 4, 300)
  backend = Backend.from_str(made.backend.to_str())
  backend.normalizer = one
  return tokenizer_lib.wrap(backend, made.special_tokens, made.chat_template)


def letters(known):
  """A tokenizer of single letters, others unknown."""
  vocab = {c: i for i, c in enumerate(['<unk>', '</s>', *known])}
  backend = Backend(models.WordLevel(vocab, unk_token='<unk>'))
  backend.pre_tokenizer = pre_tokenizers.Split(Regex('.'), 'isolated')
  backend.decoder = decoders.Fuse()
  backend.add_special_tokens(['<unk>', '</s>'])
  return tokenizer_lib.wrap(backend, {'eos_token': '</s>', 'unk_token': '<unk>'})


def data_of(titles):
  ids = tuple(f'i{n}' for n in range(len(titles)))
  return instruction_data.Data(
    'x',
    Catalog(ids, {'title': list(titles)}),
    instruction_data.titles_of(
      instruction_data.dataset.Dataset('x', Catalog(ids, {'title': list(titles)}), None, '', {})
    ),
    None,
    10,
    {},
    '',
    {},
  )


class FormTest(parameterized.TestCase):

  @parameterized.parameters(*FORMS)
  def test_written_titles_are_titles(self, name):
    normalizer, want = FORMS[name]
    tokenizer = with_normalizer(normalizer)
    data = instruction_data.respell(data_of(TITLES), tokenizer, TEMPLATE)
    self.assertEqual(data.titles, want)
    before = data_of(TITLES).titles
    self.assertEqual(data.notes.get('titles_as_the_tokenizer_spells_them', 0),
                     sum(a != b for a, b in zip(before, want)))
    self.assertEqual(data.notes['items_with_a_shared_title'], len(want) - len(set(want)))
    tree, _ = generate.title_trie(tokenizer, TEMPLATE, data.titles)
    for row, title in enumerate(data.titles):
      ids = [int(i) for i in tree.row(row)]
      self.assertEqual(prompts.title_of(tokenizer.decode(ids[:-1])), title)

  @parameterized.parameters(*FORMS)
  def test_reclm_names_items_by_what_it_writes(self, name):
    normalizer, want = FORMS[name]
    made, _ = tokenizer_lib.add_control_tokens(
      with_normalizer(normalizer), [tokenized_catalog.SOI, tokenized_catalog.EOI]
    )
    stock = tokenized_catalog.load(Catalog(tuple('abcdefgh'), {'title': TITLES}), made)
    for title, row in zip(stock.titles, stock.title_tokens):
      self.assertEqual(' '.join(made.decode(row).split()), title)
    self.assertLen(set(stock.titles), 8)
    if name != 'strip':  # RecLM takes NFC itself
      self.assertEqual([t.removesuffix(' (1)') for t in stock.titles], want)
    self.assertLen(trie.build(stock.title_tokens, made.eos_ids[0], made.vocab_size), 8)
    # A file may spell titles as the catalog does.
    self.assertEqual(
      offline_samples.parse_answer('<SOI>Ｗｉｄｅ ﬁn<EOI> and <SOI>BIG Mug<EOI>', stock, 'f'),
      [3, ' and ', 4],
    )

  def test_generated_tags_are_base_tags(self):
    tokenizer = with_normalizer(normalizers.NFC())
    tags = {'a': ['cafe\u0301', 'caf\u00e9', 'b'], 'c': ['x  y', 'x  y']}
    self.assertEqual(betag.respell(tokenizer, tags), {'a': ['café', 'b'], 'c': ['x  y']})
    plain = {'c': ['x  y', 'x  y']}
    self.assertEqual(betag.respell(tokenizer, plain), plain)
    with self.assertRaisesRegex(DataError, "the tag of item q, 'né', .*U\\+00E9"):
      betag.respell(letters('ne'), {'p': ['n'], 'q': ['né']})


class LostTest(parameterized.TestCase):

  @parameterized.parameters(
      ('Don\u2019t', 'U\\+2019 RIGHT SINGLE QUOTATION MARK became nothing'),
      ('日本 lamp', 'U\\+65E5 CJK UNIFIED IDEOGRAPH-65E5'),
      ('日本', 'vanishes in its tokens: U\\+65E5'))
  def test_what_a_tokenizer_cannot_write_is_named(self, title, said):
    tokenizer = letters('Dontlamp "i7')
    said = rf'the title of item i1, {title!r}, .*{said}.*change its spelling, or use another'
    with self.assertRaisesRegex(DataError, said):
      instruction_data.respell(data_of(['lamp', title]), tokenizer, TEMPLATE)
    with self.assertRaisesRegex(DataError, said):
      tokenized_catalog.load(Catalog(('i0', 'i1'), {'title': ['lamp', title]}), tokenizer)

  def test_letters_that_become_others(self):
    tokenizer = with_normalizer(normalizers.Replace('\u2019', "'"))
    with self.assertRaisesRegex(DataError, r'at character 4 U\+2019 .* became U\+0027 APOSTROPHE'):
      instruction_data.respell(data_of(['Don\u2019t']), tokenizer, TEMPLATE)

  def test_titles_that_never_settle(self):
    with self.assertRaisesRegex(DataError, "'a'.* changes with every encoding, now 'a   '"):
      spelling.round_trip(lambda some: [t + ' ' for t in some], ['a'], ['i'])
    with self.assertRaisesRegex(DataError, r'\(2 titles are so\)'):
      spelling.round_trip(lambda some: [t[1:] for t in some], ['ab', 'cd'], ['i', 'j'])

  def test_entities_within_entities_and_quotes_within_quotes_stay_titles(self):
    odd = ['AT&amp;amp;T', '""Heroes""', '"Weird Al" live', 'Pipe 3"', "'n'"]
    tokenizer = with_normalizer(normalizers.NFC())
    data = instruction_data.respell(data_of(odd), tokenizer, TEMPLATE)
    self.assertEqual(data.titles, ['AT&T', 'Heroes', '"Weird Al" live', 'Pipe 3"', "'n'"])
    generate.title_trie(tokenizer, TEMPLATE, data.titles)

  @absltest.skipUnless(SHARED.is_dir(), f'needs {SHARED}')
  def test_a_published_tokenizer_and_a_shop_with_compatibility_characters(self):
    tokenizer = tokenizer_lib.load(SHARED / 'models' / 'qwen3-tokenizer')
    source = SHARED / 'data' / 'cases' / 'titles-nfc' / 'shop'
    data = instruction_data.load(
        source, ConfigDict(dict(window='game', split='auto', max_history=10)))
    titles = instruction_data.respell(data, tokenizer, TEMPLATE).titles
    changed = [i for i, (a, b) in enumerate(zip(data.titles, titles)) if a != b]
    self.assertEqual([titles[i] for i in changed], ['10 kΩ metal film resistor', 'Café scale'])
    self.assertLen(generate.title_trie(tokenizer, TEMPLATE, titles)[0], len(titles))


if __name__ == '__main__':
  absltest.main()
