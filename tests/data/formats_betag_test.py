"""BETag's files come in strictly and go out as they came, every edge case of the method named."""
import json
import os
import pathlib

import hypothesis
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from recjax.data.formats import betag
from recjax.errors import ConfigError, DataError
from tests.long import examples

SHARED = pathlib.Path(__file__).parents[2].parent / 'shared' / 'data' / 'formats' / 'betag'

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
                    lambda x: st.lists(x, max_size=3) | st.dictionaries(
                        st.text(max_size=3), x, max_size=3), max_leaves=8)
IDS = st.text(min_size=1, max_size=5)
TAGS = st.text(st.characters(exclude_categories=['Cs']), max_size=9)


class BetagFilesTest(parameterized.TestCase):

  def folder(self, sequences='[[1,2],[2,3,1]]', tags='{"1":["a","b"],"2":["c"],"3":["d"]}'):
    folder = pathlib.Path(self.create_tempdir().full_path)
    (folder / betag.SEQUENCES).write_text(sequences)
    (folder / betag.TAGS).write_text(tags)
    return folder

  def test_integer_ids_are_texts_in_memory_and_integers_on_disk(self):
    folder = self.folder()
    found = betag.read_inputs(folder)
    self.assertEqual(found.sequences, [['1', '2'], ['2', '3', '1']])
    self.assertEqual(found.tags, {'1': ['a', 'b'], '2': ['c'], '3': ['d']})
    self.assertTrue(found.integer_ids)
    self.assertEqual(set(found.counts.values()), {0})
    betag.write_sequences(folder / 'out.json', found.sequences, found.integer_ids)
    self.assertEqual(json.loads((folder / 'out.json').read_text()), [[1, 2], [2, 3, 1]])
    betag.write_tags(folder / 'tags.json', found.tags)
    self.assertEqual((folder / 'tags.json').read_text(), '{"1":["a","b"],"2":["c"],"3":["d"]}')

  def test_text_ids_stay_texts(self):
    folder = self.folder('[["B07","2"]]', '{"B07":["a"],"2":["c"]}')
    found = betag.read_inputs(folder)
    self.assertFalse(found.integer_ids)
    betag.write_sequences(folder / 'out.json', found.sequences, found.integer_ids)
    self.assertEqual((folder / 'out.json').read_text(), '[["B07","2"]]')
    mixed = betag.read_inputs(self.folder('[["B07",2]]', '{"B07":["a"],"2":["c"]}'))
    self.assertEqual((mixed.integer_ids, mixed.counts['mixed_ids']), (False, 1))
    for item in ('B07', '007', ' 7', '+7', '1_0', '٣'):
      with self.assertRaisesRegex(DataError, 'is no integer'):
        betag.write_sequences(folder / 'out.json', [[item]], True)

  def test_missing_tags_are_listed_or_dropped(self):
    folder = self.folder('[[1,9],[9],[8,2,9],[1,2]]')
    with self.assertRaisesRegex(DataError, '2 items of the sequences have no tags: 9, 8;'):
      betag.read_inputs(folder)
    found = betag.read_inputs(folder, on_missing='drop_item')
    self.assertEqual(found.sequences, [['1'], ['2'], ['1', '2']])
    self.assertEqual((found.counts['missing_items'], found.counts['missing_interactions'],
                      found.counts['dropped_sequences']), (2, 4, 1))
    found = betag.read_inputs(folder, on_missing='drop_sequence')
    self.assertEqual(found.sequences, [['1', '2']])
    self.assertEqual(found.counts['dropped_sequences'], 3)

  def test_empty_tag_lists_are_named_or_dropped(self):
    folder = self.folder(tags='{"1":["a"],"2":[],"3":["  "]}')
    with self.assertRaisesRegex(DataError, "base_tags.json item '2' has no tags"):
      betag.read_inputs(folder)
    with self.assertRaisesRegex(DataError, '2 items of the sequences have no tags: 2, 3'):
      betag.read_inputs(folder, on_empty='drop')
    found = betag.read_inputs(folder, on_empty='drop', on_missing='drop_item')
    self.assertEqual(found.tags, {'1': ['a']})
    self.assertEqual((found.counts['empty_items'], found.counts['trimmed_tags']), (2, 1))

  @parameterized.parameters(
      ('x| y', 'x y'), ('x\n2. y', 'x 2. y'), ('2. y', 'y'), ('1. 2. y', 'y'), ('x\r\ny', 'x y'),
      ('a|\nb', 'a b'), ('3.', ''), ('x\u2028y', 'x y'), ('2.5 mm', '2.5 mm'),
      ('a|b', 'a|b'), ('1,000 ml', '1,000 ml'), ('3 pack', '3 pack'))
  def test_bad_tags_are_named_or_escaped(self, tag, escaped):
    folder = self.folder(tags=json.dumps({'1': ['a', tag], '2': ['c'], '3': ['d']}))
    self.assertEqual(betag.escape_tag(tag), escaped)
    if tag == escaped:
      self.assertEqual(betag.read_inputs(folder).tags['1'], ['a', tag])
      return
    with self.assertRaises(DataError) as caught:
      betag.read_inputs(folder)
    self.assertIn(f"item '1': tag {tag!r}", str(caught.exception))
    found = betag.read_inputs(folder, on_bad_tag='escape')
    self.assertEqual(found.tags['1'], ['a', escaped] if escaped else ['a'])
    self.assertEqual(found.counts['escaped_tags'], 1)

  def test_the_separator_decides_which_tags_are_bad(self):
    folder = self.folder(tags='{"1":["a, b"],"2":["c"],"3":["d| e"]}')
    with self.assertRaisesRegex(DataError, "item '1'"):
      betag.read_inputs(folder, sep=', ', on_empty='drop')
    with self.assertRaisesRegex(DataError, "item '3'"):
      betag.read_inputs(folder)
    with self.assertRaisesRegex(ConfigError, 'separator'):
      betag.read_inputs(folder, sep=' ')

  @parameterized.parameters(
      ('[[1,2],\n[2,', None, 'inters.train.json line 2, column 4'),
      ('{}', None, 'a list of sequences'), ('[1]', None, 'sequence 0: a list of item ids'),
      ('[[1,2.5]]', None, 'sequence 0, position 1: the item id is 2.5'),
      ('[[1],[true]]', None, 'sequence 1, position 0: the item id is True'),
      ('[]', None, 'holds no sequences'),
      (None, '{"1":["a"],\n"2" ["b"]}', 'base_tags.json line 2, column 5'),
      (None, '[]', 'an object with item ids as keys'),
      (None, '{"1":["a"],"1":["b"]}', "key '1' is given twice"),
      (None, '{"1":"a"}', "item '1': a list of texts is expected, found 'a'"),
      (None, '{"1":["a",2]}', "item '1': a list of texts"),
      (None, '{"":["a"]}', 'a key is empty'), (None, '{}', 'holds no item with tags'),
      (None, '{"1":["\\udc00"]}', 'half a surrogate pair'))
  def test_unreadable_files_are_named(self, sequences, tags, message):
    given = {k: v for k, v in (('sequences', sequences), ('tags', tags)) if v is not None}
    with self.assertRaises(DataError) as caught:
      betag.read_inputs(self.folder(**given))
    self.assertIn(message, str(caught.exception))

  def test_a_missing_file_is_named(self):
    folder = self.folder()
    (folder / betag.TAGS).unlink()
    with self.assertRaisesRegex(DataError, 'base_tags.json does not exist'):
      betag.read_inputs(folder)

  @parameterized.parameters('on_missing', 'on_empty', 'on_bad_tag')
  def test_unknown_choices_are_config_errors(self, name):
    with self.assertRaisesRegex(ConfigError, f"{name} is 'ignore'"):
      betag.read_inputs(self.folder(), **{name: 'ignore'})

  def test_a_single_text_is_one_beam(self):
    folder = self.folder()
    (folder / betag.PREDICTIONS).write_text('{"1":"1. a\\n2. b","2":["x","y"]}')
    found = betag.read_predictions(folder / betag.PREDICTIONS)
    self.assertEqual(found, {'1': ['1. a\n2. b'], '2': ['x', 'y']})

  def test_betags_may_have_empty_rows(self):
    path = self.folder() / betag.BETAGS
    betags = {'1': [['a'], [], ['b', 'c']], '2': []}
    betag.write_betags(path, betags)
    self.assertEqual(betag.read_betags(path), betags)
    path.write_text('{"1":["a"]}')
    with self.assertRaisesRegex(DataError, 'a list of lists of texts is expected'):
      betag.read_betags(path)

  def test_a_failed_write_leaves_the_old_file(self):
    path = self.folder() / betag.TAGS
    before = path.read_bytes()
    with self.assertRaises(DataError):
      betag.write_tags(path, {'1': ['\ud800']})
    self.assertEqual(path.read_bytes(), before)
    self.assertCountEqual(os.listdir(path.parent), [betag.SEQUENCES, betag.TAGS])

  @absltest.skipUnless(SHARED.is_dir(), 'shared/data/formats/betag is not there')
  def test_the_sample_of_the_published_layout_is_read_and_written_back(self):
    found = betag.read_inputs(SHARED)
    self.assertLen(found.sequences, 8_317)
    self.assertLen(found.tags, 4_344)
    self.assertTrue(found.integer_ids)
    folder = self.folder()
    betag.write_sequences(folder / betag.SEQUENCES, found.sequences, found.integer_ids)
    betag.write_tags(folder / betag.TAGS, found.tags)
    for name in (betag.SEQUENCES, betag.TAGS):
      self.assertEqual(json.loads((folder / name).read_text()),
                       json.loads((SHARED / name).read_text()))

  @examples(16, 80)
  @hypothesis.given(st.binary(max_size=40) | JSON.map(json.dumps).map(str.encode))
  def test_garbage_raises_data_errors_only(self, garbage):
    path = self.folder() / 'garbage.json'
    path.write_bytes(garbage)
    for read in (betag.read_sequences, betag.read_tags, betag.read_predictions,
                 betag.read_betags):
      try:
        read(path)
      except DataError as error:
        self.assertIn('garbage.json', str(error))

  @examples(16, 80)
  @hypothesis.given(st.dictionaries(IDS.filter(lambda s: s.isprintable()),
                                    st.lists(st.lists(TAGS, max_size=3), max_size=3), max_size=4))
  def test_tables_round_trip(self, betags):
    folder = self.folder()
    betag.write_betags(folder / 'b.json', betags)
    self.assertEqual(betag.read_betags(folder / 'b.json'), betags)
    rows = {item: [tag for row in entry for tag in row] for item, entry in betags.items()}
    betag.write_predictions(folder / 'p.json', rows)
    self.assertEqual(betag.read_predictions(folder / 'p.json'), rows)

  @examples(40, 200)
  @hypothesis.given(st.lists(TAGS | st.sampled_from(['a|', '|', '2. ', '| |', '3.\n1. |', ', ,']),
                             min_size=1, max_size=4), st.sampled_from(['| ', ', ', '||', ';']))
  def test_escaped_tags_survive_being_written_and_parsed(self, tags, sep):
    kept, _ = betag.clean_tags({'1': tags}, 'tags', sep, 'drop', 'escape')
    for item, clean in kept.items():
      line = '1. ' + sep.join(clean)
      self.assertLen(line.splitlines(), 1)
      parsed = [tag.strip() for tag in line.removeprefix('1. ').split(sep)]
      self.assertEqual([tag for tag in parsed if tag], clean)
      self.assertEqual(betag.clean_tags(kept, 'tags', sep)[0][item], clean)


if __name__ == '__main__':
  absltest.main()
