"""Tokenizers: plain text stays plain, files agree with transformers, packing is exact."""
import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from recjax.errors import ConfigError, DataError
from recjax.methods.bigrec import prompts
from recjax.text import chat_template, packing
from recjax.text import tokenizer as tokenizer_lib

SHARED = pathlib.Path(__file__).parents[2].parent / 'shared' / 'models'

TEXTS = ['Steel pocket hole screws, 1-1/4 inch', 'Wood screws| coarse thread', 'Größe 8 – naïve 😀',
         'two  spaces\n\nand\tlines\n', 'pipette tips 200 ul, 96 per rack', 'a', '']


def trained():
  return tokenizer_lib.train_bpe(TEXTS * 4, 400)


def metaspace(scheme='first'):
  """A sentencepiece-like BPE whose own merges spell out its end token, as Llama 2's may."""
  backend = Backend(models.BPE(unk_token='<unk>', fuse_unk=True))
  backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
  backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
  corpus = ['x</s>', '</s>', 'hole </s> <s>'] * 50 + TEXTS * 4
  backend.train_from_iterator(corpus, trainers.BpeTrainer(
      vocab_size=300, special_tokens=['<unk>', '<s>', '</s>', '<tool>'], show_progress=False))
  return tokenizer_lib.wrap(backend, dict(bos_token='<s>', eos_token='</s>', unk_token='<unk>'))


def unigram():
  """A T5-like Unigram: end token in the vocabulary, a normalizer that maps look-alikes to it."""
  pieces = [('<pad>', 0.), ('</s>', 0.), ('<unk>', 0.), ('▁', -2.), ('</s', -1.), ('>', -3.),
            ('<', -3.), ('s', -3.), ('/', -3.), ('hi', -4.), ('<extra_0>', 0.)]
  backend = Backend(models.Unigram(pieces, 2))
  backend.normalizer = normalizers.NFKC()
  backend.pre_tokenizer = pre_tokenizers.Metaspace()
  backend.add_special_tokens(['<pad>', '</s>', '<unk>', '<extra_0>'])
  return tokenizer_lib.wrap(backend, dict(eos_token='</s>', pad_token='<pad>', unk_token='<unk>'))


def added_only():
  """Added tokens that are not special, not in the model, and eat white space."""
  from tokenizers import AddedToken
  backend = Backend.from_str(trained().backend.to_str())
  backend.add_tokens([AddedToken('<think>'), AddedToken('screws', single_word=True),
                      AddedToken('<eat>', lstrip=True, rstrip=True)])
  return tokenizer_lib.wrap(backend, dict(eos_token=tokenizer_lib.END))


MAKERS = dict(trained=trained, metaspace=metaspace, unigram=unigram, added_only=added_only)


def folder_of(tokenizer):
  folder = tempfile.mkdtemp()
  tokenizer.save(folder)
  return pathlib.Path(folder)


class PlainTextTest(parameterized.TestCase):

  @parameterized.parameters(*MAKERS)
  def test_text_that_spells_an_added_token_never_yields_its_id(self, name):
    tokenizer = MAKERS[name]()
    self.assertNotEmpty(tokenizer.controls)
    unknown = tokenizer.backend.token_to_id(tokenizer.special_tokens.get('unk_token', ''))
    forbidden = set(tokenizer.controls.values()) - {unknown}
    for token in tokenizer.controls:
      wide = ''.join(chr(ord(c) + 0xfee0) for c in token)  # NFKC maps these back to ASCII
      for text in (token, f'a {token}b', token * 2, token[:3] + token + token[3:], wide):
        self.assertNoCommonElements(tokenizer.encode(text), forbidden)

  @parameterized.parameters(*MAKERS)
  def test_random_mixtures_of_text_and_tokens_stay_plain(self, name):
    tokenizer = MAKERS[name]()
    unknown = tokenizer.backend.token_to_id(tokenizer.special_tokens.get('unk_token', ''))
    forbidden = set(tokenizer.controls.values()) - {unknown}
    parts = st.one_of(st.sampled_from(sorted(tokenizer.controls)), st.text(max_size=4),
                      st.sampled_from(['<', '|', '>', '/s', '\ufdd0', '1', '\ufdd1', '\ud800']))

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.lists(parts, max_size=6).map(''.join))
    def check(text):
      ids = tokenizer.encode(text)
      self.assertNoCommonElements(ids, forbidden)
      self.assertEqual(tokenizer.encode_batch([text, text]), [ids, ids])

    check()

  def assertNoCommonElements(self, ids, forbidden):
    self.assertEmpty(set(ids) & forbidden)

  @parameterized.parameters(*MAKERS)
  def test_ordinary_text_is_encoded_as_the_shared_backend_does(self, name):
    tokenizer = MAKERS[name]()
    ordinary = [t for t in TEXTS if not any(c in t for c in tokenizer.controls)]
    expected = [tokenizer.backend.encode(t, add_special_tokens=False).ids for t in ordinary]
    self.assertEqual(tokenizer.encode_batch(ordinary), expected)

  def test_trusted_pieces_become_control_tokens_and_others_do_not(self):
    tokenizer = trained()
    ids = tokenizer.encode_pieces(
      [(tokenizer_lib.START, True), (tokenizer_lib.START, False), ('x', True)]
    )
    start = tokenizer.controls[tokenizer_lib.START]
    self.assertEqual(ids[0], start)
    self.assertEqual(ids.count(start), 1)
    self.assertEqual(ids[1:], tokenizer.encode(tokenizer_lib.START + 'x'))

  def test_truncation_and_padding_in_the_file_are_ignored(self):
    backend = trained().backend
    backend.enable_truncation(2)
    backend.enable_padding(length=2)
    self.assertGreater(len(tokenizer_lib.wrap(backend, {}).encode('a b c d e f')), 2)


class AddedTest(absltest.TestCase):

  def test_added_tokens_are_controls_whether_special_or_not(self):
    tokenizer = added_only()
    self.assertContainsSubset({'<think>', 'screws', '<eat>'}, tokenizer.controls)
    for name in ('<think>', '<eat>'):
      self.assertNotIn(tokenizer.controls[name], tokenizer.encode(f'a {name} b'))


class TrainTest(absltest.TestCase):

  def test_training_twice_gives_the_same_tokenizer(self):
    self.assertEqual(trained().fingerprint, trained().fingerprint)

  def test_any_text_survives_a_round_trip(self):
    tokenizer = trained()

    @settings(max_examples=200, deadline=None, database=None)
    @given(st.text(st.characters(exclude_categories=['Cs'])))
    def check(text):
      self.assertEqual(tokenizer.decode(tokenizer.encode(text)), tokenizer_lib.clean(text))

    check()

  def test_line_starts_have_the_same_tokens_beside_any_neighbors(self):
    tokenizer = trained()
    mark = tokenizer.encode('\n2.')

    @settings(max_examples=200, deadline=None, database=None)
    @given(st.text(), st.text())
    def check(before, after):
      whole = tokenizer.encode(f'{before}\n2. {after}')
      head = tokenizer.encode(before)
      self.assertEqual(whole[:len(head) + len(mark)], head + mark)

    check()

  def test_decode_leaves_out_special_tokens_and_ids_beyond_the_vocabulary(self):
    tokenizer = trained()
    ids = [tokenizer.pad_id, *tokenizer.encode('hole screws'), *tokenizer.eos_ids, 10**6]
    self.assertEqual(tokenizer.decode(ids), 'hole screws')

  def test_too_small_a_vocabulary_is_refused(self):
    with self.assertRaisesRegex(ConfigError, 'vocab_size 100 .* 259'):
      tokenizer_lib.train_bpe(TEXTS, 100)


class FilesTest(parameterized.TestCase):

  @parameterized.parameters(*MAKERS)
  def test_saved_folder_loads_again_unchanged(self, name):
    first = MAKERS[name]()
    second = tokenizer_lib.load(folder_of(first))
    self.assertEqual(second.fingerprint, first.fingerprint)
    for field in ('before', 'after', 'eos_ids', 'pad_id', 'special_tokens', 'chat_template',
                  'vocab_size'):
      self.assertEqual(getattr(second, field), getattr(first, field))

  def test_transformers_reads_a_saved_folder_with_equal_ids(self):
    from transformers import AutoTokenizer
    for maker in (trained, metaspace):
      ours = maker()
      theirs = AutoTokenizer.from_pretrained(folder_of(ours))
      self.assertEqual(theirs(TEXTS, add_special_tokens=False)['input_ids'],
                       ours.encode_batch(TEXTS))
      self.assertEqual(len(theirs), ours.vocab_size)
      self.assertEqual(theirs.eos_token_id, ours.eos_ids[0])

  def test_template_file_and_end_ids_beside_the_tokenizer_are_used(self):
    folder = folder_of(trained())
    (folder / 'chat_template.jinja').write_text('{{ messages }}')
    (folder / 'generation_config.json').write_text('{"eos_token_id": [2, 7]}')
    tokenizer = tokenizer_lib.load(folder)
    self.assertEqual(tokenizer.chat_template, '{{ messages }}')
    self.assertEqual(tokenizer.eos_ids, (2, 7))

  def test_tokens_named_in_the_config_only_are_added(self):
    folder = folder_of(trained())
    config = json.loads((folder / 'tokenizer_config.json').read_text())
    size = tokenizer_lib.load(folder).vocab_size
    config['added_tokens_decoder'] = {str(size): {'content': '<new>', 'special': True}}
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    tokenizer = tokenizer_lib.load(folder)
    self.assertEqual(tokenizer.controls['<new>'], size)
    self.assertEqual(tokenizer.vocab_size, size + 1)

  def test_missing_and_broken_files_are_named(self):
    with self.assertRaisesRegex(DataError, 'nowhere is not a folder: looked for tokenizer.json'):
      tokenizer_lib.load('nowhere')
    folder = pathlib.Path(tempfile.mkdtemp())
    with self.assertRaisesRegex(DataError, 'holds no tokenizer: .*vocab.json'):
      tokenizer_lib.load(folder)
    (folder / 'tokenizer.json').write_text('{"broken"')
    with self.assertRaisesRegex(DataError, 'tokenizer.json is not a readable tokenizer'):
      tokenizer_lib.load(folder)
    (folder / 'tokenizer.json').unlink()
    (folder / 'vocab.json').write_text('{}')
    with self.assertRaisesRegex(DataError, 'cannot load'):
      tokenizer_lib.load(folder)

  @absltest.skipUnless(SHARED.is_dir(), f'needs the tokenizers in {SHARED}')
  def test_published_tokenizers_agree_with_transformers(self):
    from transformers import AutoTokenizer
    for name, end, pad in (('qwen3-tokenizer', (151645,), 151643), ('t5-tokenizer', (1,), 0)):
      ours, theirs = (
        load(SHARED / name) for load in (tokenizer_lib.load, AutoTokenizer.from_pretrained)
      )
      self.assertEqual(
        theirs(TEXTS, add_special_tokens=False)['input_ids'], ours.encode_batch(TEXTS)
      )
      self.assertEqual((ours.eos_ids, ours.pad_id, ours.vocab_size), (end, pad, len(theirs)))
      forbidden = set(ours.controls.values()) - {ours.backend.token_to_id('<unk>')}
      for token in ours.controls:
        self.assertEmpty(forbidden & set(ours.encode(f'a{token} b')))


def surrounded(tokenizer, before='', after=''):
  """A folder whose post-processor puts tokens around a text."""
  single = [*([before] if before else []), '$A', *([after] if after else [])]
  tokenizer.backend.post_processor = processors.TemplateProcessing(
      single=single, special_tokens=[(t, tokenizer.backend.token_to_id(t))
                                     for t in (before, after) if t])
  return folder_of(tokenizer)


def edited(folder, **changes):
  """The folder with other keys in tokenizer_config.json; None takes one out."""
  path = folder / 'tokenizer_config.json'
  config = {**json.loads(path.read_text()), **changes}
  path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
  return folder


def bert_folder(cased=True, **changes):
  """A WordPiece of letters in both cases, as BERT's."""
  letters = [c for a in 'aA' for c in map(chr, range(ord(a), ord(a) + 26))]
  words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', *letters, *(f'##{c}' for c in letters), 'é', '##é']
  backend = Backend(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token='[UNK]'))
  backend.normalizer = normalizers.BertNormalizer(lowercase=not cased)
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  folder = folder_of(tokenizer_lib.wrap(backend, dict(
      cls_token='[CLS]', sep_token='[SEP]', pad_token='[PAD]', unk_token='[UNK]')))
  return edited(folder, tokenizer_class='BertTokenizer', **changes)


AROUND = {
    'named and never added': (lambda: folder_of(metaspace()), ()),
    'named, add_bos_token beside a tokenizer.json': (
        lambda: edited(folder_of(metaspace()), add_bos_token=True), ()),
    'added': (lambda: surrounded(metaspace(), '<s>'), (1,)),
    'added, add_bos_token=False beside it': (
        lambda: edited(surrounded(metaspace(), '<s>'), add_bos_token=False), (1,)),
    'both': (lambda: surrounded(metaspace(), '<s>', '</s>'), (1,)),
    'byte level, GPT-2 type': (lambda: edited(folder_of(trained()), bos_token=tokenizer_lib.START,
                                              tokenizer_class='GPT2Tokenizer'), ()),
    'BERT': (bert_folder, (2,)),
    'BERT in lower case by its config': (lambda: bert_folder(do_lower_case=True), (2,)),
    'BERT in upper case by its config': (lambda: bert_folder(False, do_lower_case=False), (2,)),
    'BERT with accents': (lambda: bert_folder(do_lower_case=True, strip_accents=False), (2,)),
}


class AroundTest(parameterized.TestCase):

  @parameterized.parameters(*AROUND)
  def test_ids_are_those_of_auto_tokenizer(self, name):
    from transformers import AutoTokenizer
    make, before = AROUND[name]
    folder = make()
    ours = tokenizer_lib.load(folder)
    self.assertEqual(ours.before, before)
    texts = ['Steel hole', 'Café screws', 'a', '']
    theirs = AutoTokenizer.from_pretrained(folder)(texts)['input_ids']
    self.assertEqual([[*ours.before, *r, *ours.after] for r in ours.encode_batch(texts)], theirs)
    again = tokenizer_lib.load(folder_of(ours))  # and stay so when they are saved
    self.assertEqual((again.before, again.after), (ours.before, ours.after))

  @parameterized.parameters('named and never added', 'added', 'byte level, GPT-2 type')
  def test_prompts_of_a_method_begin_as_auto_tokenizer_begins(self, name):
    from transformers import AutoTokenizer
    folder = AROUND[name][0]()
    template = prompts.load_template('bigrec')
    record = template.record('goods', ['hole', 'screws'], '')
    rows, _ = prompts.encode_prompts(tokenizer_lib.load(folder), template, [record], 10**6)
    want = AutoTokenizer.from_pretrained(folder)(template.text(record))['input_ids']
    self.assertEqual(rows[0][:1], want[:1])

  @absltest.skipUnless(SHARED.is_dir(), f'needs the tokenizers in {SHARED}')
  def test_published_tokenizers_put_around_what_transformers_does(self):
    from transformers import AutoTokenizer
    for name, before, after in (('qwen3-tokenizer', (), ()), ('t5-tokenizer', (), (1,))):
      ours, theirs = (
        load(SHARED / name) for load in (tokenizer_lib.load, AutoTokenizer.from_pretrained)
      )
      self.assertEqual((ours.before, ours.after), (before, after))
      self.assertEqual([[*before, *r, *after] for r in ours.encode_batch(TEXTS)],
                       theirs(TEXTS)['input_ids'])

  def test_a_template_that_writes_the_start_token_writes_it_once(self):
    folder = surrounded(metaspace(), '<s>')
    (folder / 'chat_template.jinja').write_text(
        '{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}')
    tokenizer = tokenizer_lib.load(folder)
    ids = chat_template.render(tokenizer, [{'role': 'user', 'content': 'hole'}])
    self.assertEqual(ids[0], 1)
    self.assertEqual(ids.count(1), 1)

  def test_contradictions_are_refused_and_defaults_of_a_class_are_its_tokens(self):
    with self.assertRaisesRegex(ConfigError, 'tokenizer_config.json: add_prefix_space=True'):
      tokenizer_lib.load(edited(folder_of(trained()), add_prefix_space=True))
    with self.assertRaisesRegex(ConfigError, "sep_token='<none>'"):
      tokenizer_lib.load(bert_folder(sep_token='<none>'))
    folder = edited(folder_of(metaspace()), tokenizer_class='LlamaTokenizer', eos_token=None)
    self.assertEqual(tokenizer_lib.load(folder).eos_ids, (2,))

  def test_every_id_lies_below_the_size_where_ids_have_gaps(self):
    backend = Backend(models.WordLevel({'a': 0, 'b': 7, '[UNK]': 3}, unk_token='[UNK]'))
    self.assertEqual(tokenizer_lib.wrap(backend, {}).vocab_size, 8)


class PackTest(absltest.TestCase):

  def test_every_index_lands_once_in_the_first_row_with_room(self):

    @settings(max_examples=200, deadline=None, database=None)
    @given(st.lists(st.integers(0, 20), max_size=40), st.integers(20, 50))
    def check(lengths, capacity):
      expected = []  # the plain definition
      for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r in expected if sum(lengths[j] for j in r) + lengths[i] <= capacity),
                   None)
        if row is None:
          expected.append(row := [])
        row.append(i)
      self.assertEqual(packing.pack(lengths, capacity), expected)

    check()

  def test_an_overlong_index_is_named(self):
    with self.assertRaisesRegex(DataError, 'index 1 has length 9, outside 0..8'):
      packing.pack([3, 9], 8)


if __name__ == '__main__':
  absltest.main()
