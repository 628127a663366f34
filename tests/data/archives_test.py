"""Archives and downloads: what is plain comes through; what leads elsewhere or bursts does not."""
import functools
import gzip
import hashlib
import http.server
import io
import itertools
import pathlib
import random
import stat
import tarfile
import threading
import zipfile
import zlib
from unittest import mock

from absl.testing import absltest, parameterized

from recjax import file_io
from recjax.data import archives, raw_reader
from recjax.errors import DataError, UserError
from tests.long import long

GOOD = {'ml/ratings.dat': b'1::2::3::4\n', 'ml/README': b'hello', 'ml/a/caf\xc3\xa9.csv': b''}
TRICKS = ['..', '../x', '../../etc/passwd', 'a/../../x', '/x', '//x', '/etc/passwd', './../x',
          'a//b', 'C:\\x', 'c:x', '\\\\host\\x', '..\\x', 'a\\..\\..\\x', 'a\x00b', 'ok\x00/../x',
          'a\nb', 'a\x1b[2J', 'CON', 'con.txt', 'a/NUL', 'Lpt1.csv', 'aux ', 'x.', 'x ', ' x', '~',
          '~root/x', '\uff0e\uff0e/x', 'a\uff0fb', '\u2025/x', 'a\u202ecsv.exe', 'a\u200b',
          '\ufeffx', 'a\u2028b', '\ue000', '\ufe52\ufe52', 'a?b', 'a*', 'a"b', 'a|b', '<x>',
          'a' * 256, 'b/' * 501 + 'c', '', '.', './x', 'a/./b', 'a/..', 'a/../b', '%2e%2e\\x', 'file://x']


def cases():
  """1,000 names and more: each trick alone, and behind, before and between plain folders."""
  plain = ['', 'a/', 'ml-1m/', 'a/b/c/', 'caf\xe9/', 'x.y/', '\u65e5\u672c/']
  after = ['', '/ratings.dat', '/a/b']
  for trick, first, last in itertools.product(TRICKS, plain, after):
    whole = first + trick + last
    if trick or first or last:
      yield whole


class NamesTest(absltest.TestCase):

  def test_a_thousand_tricks_are_refused(self):
    count = 0
    for name in cases():
      if name in ('a/', 'ml-1m/', 'a/b/c/', 'caf\xe9/', 'x.y/', '\u65e5\u672c/'):
        continue  # an empty trick leaves a plain folder
      with self.assertRaises(ValueError, msg=repr(name)):
        archives.parts_of(name)
      count += 1
    self.assertGreaterEqual(count, 1000)

  def test_plain_names_come_through(self):
    for name in ('ratings.dat', 'ml-1m/ratings.dat', 'a/b/', 'caf\xe9/\u65e5\u672c', 'a..b', '.x',
                 'cafe\u0301', 'contents', 'a b (1).csv', 'nul_x', 'com10x'):
      self.assertEqual(archives.parts_of(name), name.removesuffix('/').split('/'))

  def test_any_signs_give_parts_inside_or_an_error(self):
    signs = './\\:~ abAN\x00\u202e\uff0e\uff0f\u0301cond1'
    for seed in range(3000):
      draw = random.Random(seed)
      name = ''.join(draw.choice(signs) for _ in range(draw.randint(1, 12)))
      try:
        parts = archives.parts_of(name)
      except ValueError:
        continue
      path = pathlib.PurePosixPath('/room', *parts)
      self.assertEqual(path.parts[:2], ('/', 'room'))
      self.assertNotIn('..', path.parts)


class ArchivesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def zip(self, members, change=lambda info: None, mode=zipfile.ZIP_DEFLATED):
    path = self.folder / 'x.zip'
    with zipfile.ZipFile(path, 'w', mode) as archive:
      for name, data in members:
        info = zipfile.ZipInfo('x')
        info.filename, info.compress_type = name, mode
        change(info)
        archive.writestr(info, data)
    return path

  def tar(self, members, packed=True, change=lambda info: None):
    path = self.folder / ('x.tar.gz' if packed else 'x.tar')
    with tarfile.open(path, 'w:gz' if packed else 'w', format=tarfile.PAX_FORMAT) as archive:
      for name, data in members:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        change(info)
        archive.addfile(info, io.BytesIO(data))
    return path

  def refused(self, path, why='not to be trusted'):
    beside = self.folder / 'beside'
    with self.assertRaisesRegex(DataError, why), archives.unpacked(path, beside):
      self.fail('opened')
    self.assertEmpty(list(beside.iterdir()))

  @parameterized.parameters('zip', 'tar', 'tar.gz')
  def test_plain_archives_are_unpacked_for_as_long_as_needed(self, kind):
    members = [('ml/', b'')] * (kind == 'zip') + list(GOOD.items())
    path = self.zip(members) if kind == 'zip' else self.tar(members, kind == 'tar.gz')
    with archives.unpacked(path, self.folder / 'beside') as found:
      self.assertEqual(found.name, 'ml')
      for name, data in GOOD.items():
        self.assertEqual((found.parent / name).read_bytes(), data)
    self.assertEmpty(list((self.folder / 'beside').iterdir()))

  def test_members_that_point_elsewhere_are_refused(self):
    names = [t for t in TRICKS if t and len(t) < 300]
    for name in names:
      self.refused(self.zip([('ok', b''), (name, b'bad')]))
      if '\x00' not in name:
        try:
          path = self.tar([('ok', b''), (name, b'bad')])
        except (UnicodeEncodeError, ValueError):
          continue
        if name.endswith('/'):
          continue
        self.refused(path)
    self.assertCountEqual([p.name for p in self.folder.iterdir()], ['beside', 'x.zip', 'x.tar.gz'])

  def test_links_and_devices_are_refused(self):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
      def turn(info, kind=kind):
        if info.name == 'a':
          info.type, info.linkname, info.size = kind, '/etc', 0
      self.refused(self.tar([('a', b''), ('a/passwd', b'x')], change=turn), 'a link or a device')
    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR):
      def mark(info, kind=kind):
        info.external_attr = (kind | 0o777) << 16
      self.refused(self.zip([('a', b'/etc')], mark), 'a link or a device')

  def test_the_same_member_twice_is_refused(self):
    for members in ([('a', b'1'), ('A', b'2')], [('a', b'1'), ('a', b'2')]):
      self.refused(self.zip(members), 'stands there twice')
      self.refused(self.tar(members), 'stands there twice')
    with mock.patch.object(archives, 'MAX_MEMBERS', 3):
      self.refused(self.zip([(str(n), b'') for n in range(4)]), 'beyond 3 members')

  def test_bombs_are_refused_before_they_fill_the_disk(self):
    self.enterContext(mock.patch.object(file_io, 'plausible', lambda packed: 200 * packed))
    zeros = bytes(8 << 20)
    with mock.patch.object(archives._Guard, 'copy') as copied:
      self.refused(self.zip([('a', zeros)]), 'far more than data do')
      self.refused(self.tar([('a', zeros)]), 'far more than data do')
    copied.assert_not_called()
    path = self.zip([('a', zeros)])  # says that it is small
    path.write_bytes(path.read_bytes().replace((8 << 20).to_bytes(4, 'little'), b'\x09\0\0\0'))
    self.refused(path, 'damaged|far more')
    head = tarfile.TarInfo('././@PaxHeader')  # a header of 32 MB
    head.type, head.size = tarfile.XHDTYPE, 32 << 20
    path = self.folder / 'x.tar.gz'
    path.write_bytes(gzip.compress(head.tobuf() + bytes(32 << 20)))
    self.refused(path, 'a header of this length')

  def test_unusual_and_damaged_archives_are_refused(self):
    self.refused(self.zip([('a', b'x')], mode=zipfile.ZIP_LZMA), 'in an unusual way')
    whole = self.zip(GOOD.items()).read_bytes()
    path = self.folder / 'y.zip'
    for seed in range(150):
      draw = random.Random(seed)
      data = bytearray(whole)
      for _ in range(draw.randint(1, 6)):
        data[draw.randrange(len(data))] = draw.randrange(256)
      path.write_bytes(data[:draw.choice([len(data), draw.randrange(len(data))])])
      try:
        with archives.unpacked(path, self.folder / 'beside'):
          pass
      except UserError as error:
        self.assertIn('y.zip', str(error))
      self.assertEmpty(list((self.folder / 'beside').iterdir()))
    whole = self.tar(GOOD.items(), False).read_bytes()
    for seed in range(150):
      draw = random.Random(seed)
      data = bytearray(whole)
      for _ in range(draw.randint(1, 6)):
        data[draw.randrange(2048)] = draw.randrange(256)
      (self.folder / 'y.tar').write_bytes(data)
      try:
        with archives.unpacked(self.folder / 'y.tar', self.folder / 'beside'):
          pass
      except UserError as error:
        self.assertIn('y.tar', str(error))

  @long
  def test_gzipped_tables_that_burst_are_refused(self):
    self.enterContext(mock.patch.object(file_io, 'plausible', lambda packed: 200 * packed))
    path = self.folder / 'items.jsonl.gz'
    path.write_bytes(gzip.compress(b'{"item_id": "a"}\n' * 400_000, 9))
    with self.assertRaisesRegex(DataError, 'items.jsonl.gz unpacks to'):
      list(file_io.read_rows(path))
    with (mock.patch.object(raw_reader, 'TICK_LINES', 1024),
          self.assertRaisesRegex(DataError, 'far more than data do, at line')):
      list(raw_reader.read(path))
    endless = zlib.compressobj(9, zlib.DEFLATED, 31)
    with open(path, 'wb') as out:  # one line of 2 GB
      for _ in range(64):
        out.write(endless.compress(bytes(32 << 20)))
      out.write(endless.flush())
    with self.assertRaisesRegex(DataError, 'unpacks to more than'):
      list(file_io.read_rows(path))


class FetchTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    (self.folder / 'web').mkdir()
    (self.folder / 'web' / 'ml-1m.zip').write_bytes(b'data' * 1000)
    quiet = type('Quiet', (http.server.SimpleHTTPRequestHandler,),
                 {'log_message': lambda *given: None})
    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(quiet, directory=self.folder / 'web'))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    self.addCleanup(server.server_close)
    self.addCleanup(server.shutdown)
    self.url = f'http://127.0.0.1:{server.server_port}/'

  def fetch(self, name, size=4000, data=b'data' * 1000, url=''):
    archives.fetch((url or self.url) + name, self.folder / name, size,
                   hashlib.sha256(data).hexdigest(), say=lambda text: None)

  def test_the_right_bytes_are_kept_and_no_others(self):
    self.fetch('ml-1m.zip')
    self.assertEqual((self.folder / 'ml-1m.zip').read_bytes(), b'data' * 1000)
    (self.folder / 'ml-1m.zip').unlink()
    for given, why in ((dict(data=b'other'), '4,000 bytes that are not'),
                       (dict(size=5), 'more than'),
                       (dict(size=5000), '4,000 bytes that are not the 5,000')):
      with self.assertRaisesRegex(DataError, why):
        self.fetch('ml-1m.zip', **given)
    with self.assertRaisesRegex(DataError, r'cannot be reached \(Not Found|File not found'):
      self.fetch('none.zip')
    self.assertEqual([p.name for p in self.folder.iterdir()], ['web'])

  def test_without_a_network_the_place_is_said(self):
    with self.assertRaisesRegex(DataError, r'cannot be reached.*put it at .*ml-1m\.zip'):
      self.fetch('ml-1m.zip', url='http://127.0.0.1:9/')
    with self.assertRaisesRegex(DataError, 'ml-9m.zip is none of ml-100k.zip'):
      archives.fetch_movielens(self.folder / 'ml-9m.zip', print)
    with mock.patch.object(archives, 'PLACE', self.url), mock.patch.dict(archives.MOVIELENS, {
        'ml-1m.zip': (4000, hashlib.sha256(b'data' * 1000).hexdigest())}):
      archives.fetch_movielens(self.folder / 'ml-1m.zip', lambda text: None)
    self.assertTrue((self.folder / 'ml-1m.zip').exists())


if __name__ == '__main__':
  absltest.main()
