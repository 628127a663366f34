"""Published systems' own files become the data set; pickles that are more than data are refused."""
import json
import os
import pathlib
import pickle
import struct

from absl.testing import absltest, parameterized

from recjax.data import loading
from recjax.data.formats import etegrec, reclm, safe_pickle, sequence_lines
from recjax.data.prepare import duckdb_engine, rules
from recjax.errors import ConfigError, DataError

try:
  import duckdb
except ImportError:
  duckdb = None

SHARED = pathlib.Path(__file__).parents[2].parent / 'shared' / 'data'
RAN = []


class Runs:
  """Reduces to a call of anything."""

  def __init__(self, call, *arguments):
    self.call, self.arguments = call, arguments

  def __reduce__(self):
    return self.call, self.arguments


def malicious():
  """Pickles that run, import, or fill the memory."""
  for call in ((os.system, 'true'), (eval, 'RAN.append(1)'), (exec, 'RAN.append(1)'),
               (open, '/tmp/x', 'w'), (print, 'x'), (getattr, 'x', 'upper'), (bytearray, 9),
               (__import__, 'os'), (os.listdir, '.'), (RAN.append, 1)):
    for protocol in (0, 2, 4):
      yield pickle.dumps({'a': Runs(*call)} if call[0] != RAN.append else [RAN.append], protocol)
  yield b'cos\nsystem\n(S"true"\ntR.'
  yield b'(S"true"\nios\nsystem\n.'
  yield b'\x80\x02Pabc\n.'                       # a persistent id
  yield b'\x80\x02\x82\x01.'                     # an extension code
  yield b'\x80\x02]r' + struct.pack('<I', 2 ** 31 - 1) + b'.'  # a memo of 16 GB
  yield b'\x80\x05\x96' + struct.pack('<Q', 2 ** 40) + b'.'    # a bytearray of 1 TB
  yield b'\x80\x04\x8d' + struct.pack('<Q', 2 ** 40) + b'a.'   # a text of 1 TB
  yield pickle.dumps({1, 2})
  yield pickle.dumps(b'bytes')
  yield b''
  yield b'not a pickle'
  yield b'p-1\n.'


class SystemsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def prepared(self, source):
    if duckdb is None:
      self.skipTest('duckdb is not installed; pip install "recjax[data]"')
    out = self.folder / 'out'
    duckdb_engine.prepare(
      source, out, rules.Rules(max_bad=0, all_items=True), say=lambda text: None
    )
    return loading.load_data(out)

  def histories(self, data):
    return {user: [data.catalog.id_of(i) for i in data.interactions.history(u)]
            for u, user in enumerate(data.interactions.users)}

  @parameterized.parameters('1 7 3 7\n2 3\n', '1 7\n1 3\n1 7\n2 3\n', '1 7 3\r\n2 3\r\n1 7\r\n')
  def test_sequences_in_lines_or_pairs(self, text):
    path = self.folder / 'x.txt'
    path.write_text(text)
    goods = self.folder / 'items.csv'
    goods.write_text('item_id,title\n3,Three\n7,Seven\n')
    data = self.prepared(sequence_lines.source(path, goods))
    self.assertEqual(self.histories(data), {'1': ['7', '3', '7'], '2': ['3']})
    self.assertEqual(data.catalog.columns['title'], ['Three', 'Seven'])

  def test_odd_lines_are_named(self):
    path = self.folder / 'x.txt'
    path.write_bytes(b'1 2\n\n3\n\xff 4\n5 6\n')
    self.assertEqual([(n, event[:2] if event else why) for _, n, event, why
                      in sequence_lines.source(path).interactions],
                     [(1, ('1', '2')), (3, 'a user without items'),
                      (4, 'not UTF-8, or a line over 4 MB'), (5, ('5', '6'))])

  def test_etegrec(self):
    (self.folder / 'toy.emb_map.json').write_text('{"[PAD]": 0, "b": 2, "a": 1, "c": 3}')
    (self.folder / 'toy.test.jsonl').write_text(
        '{"inter_history": ["b", "a"], "target_id": "b", "user_id": "u"}\n')
    data = self.prepared(etegrec.source(self.folder))
    self.assertEqual(data.catalog.ids, ('a', 'b', 'c'))
    self.assertEqual(self.histories(data), {'u': ['b', 'a', 'b']})
    (self.folder / 'toy.test.jsonl').write_text(
        '{"inter_history": ["b", "x"], "target_id": "b"}\n{"inter_history": "b"}\n')
    why = [why for *_, why in etegrec.source(self.folder).interactions]
    self.assertEqual(why, ['', "'x' is not in the map of items", '',
                           'no inter_history and target_id'])
    (self.folder / 'toy.emb_map.json').write_text('{"[PAD]": 0, "b": 2}')
    with self.assertRaisesRegex(DataError, '0 to N'):
      etegrec.source(self.folder)

  def test_reclm(self):
    (self.folder / 'sequential.jsonl').write_text(json.dumps({'u': ['b', 'a'], 'v': ['a']}))
    (self.folder / 'metas.jsonl').write_text(json.dumps({
        'a': {'title': 'A  a', 'title_t': 'A a (1)', 'category': ['C', 'D']}, 'b': {}}))
    data = self.prepared(reclm.source(self.folder))
    self.assertEqual(self.histories(data), {'u': ['b', 'a'], 'v': ['a']})
    self.assertEqual(data.catalog.columns, {'title': ['A a (1)', ''],
                                            'categories': [['C', 'D'], None]})
    (self.folder / 'sequential.jsonl').write_text('{"u": ["x"], "v": 3}')
    self.assertEqual([why for *_, why in reclm.source(self.folder).interactions],
                     ["'x' is not in metas", 'an item is empty'])

  def test_reclm_in_true_lines_and_with_a_beginning_in_titles(self):
    (self.folder / 'sequential.jsonl').write_text('{"u": ["b", "a"]}\n\n{"v": ["a"]}\n')
    (self.folder / 'metas.jsonl').write_text(
      '{"a": {"title_t": "<|begin_of_text|> A"}}\n{"b": {"title": "B <s>"}}\n'
    )
    for data in (
      self.prepared(reclm.source(self.folder)),
      loading.load_data(self.folder),
    ):
      self.assertEqual(self.histories(data), {'u': ['b', 'a'], 'v': ['a']})
      self.assertEqual(data.catalog.columns['title'], ['A', 'B <s>'])
    (self.folder / 'sequential.jsonl').write_text('{"u": ["b"]}\n{"u": ["a"]}\n')
    with self.assertRaisesRegex(DataError, "object 2: 'u' was there before"):
      reclm.source(self.folder)

  @parameterized.parameters('reclm-cgen', 'reclm-gen')
  def test_reclm_as_published(self, name):
    if not (SHARED / 'formats' / name).is_dir():
      self.skipTest('needs ../shared/data/formats')
    folder = SHARED / 'formats' / name
    if name == 'reclm-gen':
      with self.assertRaisesRegex(ConfigError, '--allow-pickle'):
        reclm.source(folder)
    data = self.prepared(reclm.source(folder, allow_pickle=True))
    users, items = {'reclm-cgen': (189, 1884), 'reclm-gen': (60, 803)}[name]
    self.assertEqual((len(data.interactions), len(data.catalog)), (users, items))
    self.assertEqual(set(data.interactions.lengths()), {17})
    self.assertNotIn('', data.catalog.columns['title'])
    if name == 'reclm-cgen':
      want = json.loads((folder / 'sequential.jsonl').read_text())
      self.assertEqual(self.histories(data), want)

  def test_etegrec_as_published(self):
    if not (SHARED / 'formats' / 'etegrec').is_dir():
      self.skipTest('needs ../shared/data/formats')
    data = self.prepared(etegrec.source(SHARED / 'formats' / 'etegrec' / 'beauty'))
    self.assertEqual((len(data.interactions), len(data.catalog)), (500, 3358))

  def test_plain_pickles_of_every_protocol_are_read(self):
    value = {'a': ['b', 1, -5, 2 ** 70, 0.5, None, True, (1, 2, 3, 4), ('é',), {}, [], ()]}
    value['again'] = value['a']
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
      path = self.folder / 'x.pickle'
      path.write_bytes(pickle.dumps(value, protocol))
      self.assertEqual(safe_pickle.read_plain(path), value)

  def test_malicious_and_broken_pickles_are_refused(self):
    path = self.folder / 'x.pickle'
    count = 0
    for data in malicious():
      path.write_bytes(data)
      with self.assertRaisesRegex(DataError, r'x\.pickle'):
        safe_pickle.read_plain(path)
      count += 1
    self.assertGreater(count, 40)
    self.assertEmpty(RAN)


if __name__ == '__main__':
  absltest.main()
