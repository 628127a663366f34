"""Tables as people have them: what a file or a database holds is found out, then read row by row.

`open_table` looks at the first bytes, whatever the name says. Texts go to DuckDB's sniffer and, if
they are not UTF-8, to charset-normalizer; workbooks to calamine; databases to SQLAlchemy.
"""
import dataclasses
import itertools
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence

from recjax import file_io
from recjax.data import databases, duckdb_database, raw_reader, workbooks
from recjax.data.duckdb_database import Dialect
from recjax.errors import ConfigError, DataError

Fits = Callable[[list[str]], bool]
Recognized = Callable[[list[str]], int]

SNIFFED_LINES = 2000
TITLE_LINES = 30  # among which the names of the columns are looked for
ENCODING_LINES = 100_000  # that are looked at for letters which are not UTF-8
SEPARATORS = (',', ';', '\t', '|', '::')
RARE_SEPARATORS = ('::', ' ', '^', '\x01', '~')  # beside those that DuckDB tries by itself
SEPARATOR_NAMES = {'\t': 'a tab', ' ': 'blanks', ',': 'a comma', ';': 'a semicolon',
                   '|': 'a bar (|)', '\x01': 'the sign \\x01'}
# In order of how usual they are, which decides between those that explain the letters equally well.
ENCODINGS = ('cp1252', 'cp1250', 'cp1251', 'cp932', 'gb18030', 'cp949', 'big5', 'cp1253', 'cp1254',
             'cp1257', 'koi8_r', 'euc_jp', 'cp850', 'mac_roman')
ALIKE = .03  # in charset-normalizer's measure of mess, from 0 to 1


@dataclasses.dataclass(frozen=True)
class Table:
  """A table that can be read again and again.

  path: the file, or the address of a database, which holds no password. kind: as in `raw_reader`,
  'workbook' or 'database'. sep, encoding, skip: of texts. headless: its first row holds no names;
  width columns. part: the sheet, table or query, '' for the only one. found: what was found out, in
  words. hidden: the whole address of a database.
  """
  path: str
  kind: str
  sep: str = ''
  encoding: str = 'utf-8'
  skip: int = 0
  headless: bool = False
  width: int = 0
  part: str = ''
  found: tuple[str, ...] = ()
  hidden: str = dataclasses.field(default='', repr=False)

  @property
  def place(self) -> str:
    """What `raw_reader.row_place` names rows by."""
    return self.path + raw_reader.ARRAY * self.kind.endswith(raw_reader.ARRAY)

  def read(self, header: Sequence[str] = (), literal: bool = False,
           tick: raw_reader.Tick | None = None) -> Iterator[raw_reader.Row]:
    """Its rows, as `raw_reader.read`, which says what `header`, `literal` and `tick` are."""
    if self.kind == 'workbook':
      return workbooks.read(self.path, self.part, header)
    if self.kind == 'database':
      return databases.read(self.hidden, self.part)
    return raw_reader.read(self.path, header, self.sep, self.encoding, literal, tick, self.skip,
                           self.kind)


def open_table(path: raw_reader.Path, sep: str = '', encoding: str = '', part: str = '',
               fits: Fits = lambda columns: True,
               recognized: Recognized = len) -> Table:
  """The table at `path`, a file or the address of a database.

  sep, encoding: of a text, '' to find them. part: the table or sheet that is meant, or a query.
  fits: says whether columns of those names are of the table that is meant, where a database or a
  workbook holds several. recognized: how many names of columns are words that are known, which
  tells encodings apart. Raises DataError for what is no table, ConfigError where several could be
  meant.
  """
  if databases.is_address(path):
    return _database(str(path), part, fits)
  path = regular_file(path)
  head = _head(path)
  if databases.is_sqlite(head):
    return _database(databases.sqlite_address(path), part, fits, str(path))
  if _is_workbook(path, head):
    sheet = workbooks.choose_sheet(path, part, fits)
    return Table(str(path), 'workbook', part=sheet, found=(f'a workbook, sheet {sheet!r}',))
  if part:
    raise ConfigError(f'{path} is one table; --query and --items-query are for databases and '
                      'workbooks')
  if head.startswith(b'PAR1') and path.suffix != '.parquet' or (
      raw_reader.file_kind(path) == '.parquet' and not sep):
    return Table(str(path), '.parquet', found=('Parquet',))
  kind = raw_reader.file_kind(path)
  if not sep and kind in ('.jsonl', '') or head.lstrip()[:1] in (b'{', b'['):
    first = next((line for _, line in raw_reader.read_lines(path) if line is None or line.strip()),
                 b'')
    if first is None or first.lstrip()[:1] == b'[' and file_io.whole_json(first):
      return Table(str(path), '.json' + raw_reader.ARRAY, found=('a JSON array',))
    if kind == '.jsonl' or first.lstrip()[:1] == b'{':
      return Table(str(path), '.jsonl', found=('JSON Lines',))
  return _text_table(path, sep, encoding, fits, recognized)


def regular_file(path: raw_reader.Path) -> pathlib.Path:
  """The path of a file that can be read twice. Raises DataError for a pipe or a folder."""
  path = pathlib.Path(path)
  if path.exists() and not path.is_file():
    raise DataError(f'{path} is {"a folder" if path.is_dir() else "a pipe"}; name a file, which is '
                    'read twice: its values tell what they are before they are taken.')
  return path


def _head(path: pathlib.Path) -> bytes:
  """The first bytes of the file at `path`, b'' of one that cannot be read, as reading it says."""
  try:
    with open(path, 'rb') as file:
      return file.read(file_io.HEAD)
  except OSError:
    return b''


def _is_workbook(path: pathlib.Path, head: bytes) -> bool:
  if head.startswith(b'\xd0\xcf\x11\xe0'):
    return True
  if not head.startswith(b'PK\x03\x04') or not zipfile.is_zipfile(path):
    return False
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
  return any(name.startswith('xl/workbook') or name == 'content.xml' for name in names)


def _database(address: str, part: str, fits: Fits,
              path: str = '') -> Table:
  shown = path or databases.without_password(address)
  query, found = databases.choose_query(address, part, shown, fits)
  return Table(shown, 'database', part=query, found=(found,), hidden=address)


def _text_table(path: pathlib.Path, sep: str, encoding: str, fits: Fits,
                recognized: Recognized) -> Table:
  """A text whose columns are separated by a sign. Parameters: as of `open_table`."""
  encoding, found = (encoding, []) if encoding else find_encoding(path, fits, recognized)
  decode = raw_reader.byte_encoding(encoding)
  lines = [line.decode(decode, 'replace').rstrip('\r\n') for _, line in itertools.islice(
      raw_reader.read_lines(path, encoding=encoding), SNIFFED_LINES) if line is not None]
  if not any(lines):
    raise DataError(f'{path} holds no row that can be read.')
  kind = raw_reader.file_kind(path)
  usual = raw_reader.SEPARATORS.get(kind, '')
  dialect = _by_names(lines, [sep] if sep else SEPARATORS, fits) or _by_lines(
      lines, sep or usual * (usual == '\t' and usual in lines[0]), kind in raw_reader.UNQUOTED)
  if not dialect or len(dialect.names) < 2:
    if not (sep or usual):
      raise raw_reader.unknown_kind(path)
    dialect = Dialect(sep or usual, 0, [''], True)
  skip = dialect.skip if dialect.header else 0
  while skip < len(lines) - 1 and not lines[skip].strip():
    skip += 1
  found.append(f'columns are separated by {SEPARATOR_NAMES.get(dialect.sep, dialect.sep)}')
  if skip:
    found.append(f'{skip} line{"s" * (skip > 1)} above the names of the columns left out')
  headless = not dialect.header and not has_names(lines[skip], dialect.sep)
  return Table(str(path), kind, dialect.sep, encoding, skip, headless, len(dialect.names),
               found=tuple(found))


def _by_names(lines: Sequence[str], signs: Sequence[str], fits: Fits) -> Dialect | None:
  """How `lines` are split where one of the `signs` separates names of columns that `fits` knows."""
  for number, line in enumerate(lines[:TITLE_LINES]):
    for sign in signs:
      if sign in line:
        names = [name.strip().strip('"\ufeff').partition(':')[0] for name in line.split(sign)]
        if fits(names):
          return Dialect(sign, number, names, True)
  return None


def _by_lines(lines: Sequence[str], sep: str, literal: bool) -> Dialect | None:
  """What DuckDB tells of `lines`. sep: what parts their columns, where that is known. literal:
  quotes are text."""
  if 5 < len(lines) < SNIFFED_LINES:
    lines = lines[:-1]  # which may be a sum
  if named := re.fullmatch(r'"?sep=(.)"?', lines[0].strip('\ufeff'), re.IGNORECASE):
    sep = sep or named[1]  # as spreadsheets write it
  dialect = duckdb_database.sniff(lines, sep, literal or sep == '\t')
  for rare in RARE_SEPARATORS if not sep else ():
    if dialect and len(dialect.names) > 1:
      break
    dialect = duckdb_database.sniff(lines, rare)
  return dialect


def has_names(line: str, sep: str) -> bool:
  """Whether no field of the first `line`, separated by `sep`, is empty or has digits alone."""
  fields = [field.strip().strip('"') for field in line.split(sep if sep != ' ' else None)]
  return not any(re.fullmatch(r'[\d.,:/ +-]*', field) for field in fields[1:])


def find_encoding(path: pathlib.Path, fits: Fits,
                  recognized: Recognized = len) -> tuple[str, list[str]]:
  """The encoding of the text at `path`, and how it was told, in words.

  UTF-8 where most lines with letters beyond ASCII are; else what explains those letters best, and
  where several do, makes names of columns that `fits` knows, and `recognized` most of, or is most
  usual.
  """
  good, odd = 0, []
  for _, line in itertools.islice(raw_reader.read_lines(path), ENCODING_LINES):
    if line is None or line.isascii():
      continue
    try:
      line.decode('utf-8')
      good += 1
    except UnicodeDecodeError:
      odd.append(line)
      if len(odd) >= 500:
        break
  if len(odd) <= good:
    return 'utf-8', []
  import charset_normalizer
  matches = list(charset_normalizer.from_bytes(b''.join(odd), cp_isolation=list(ENCODINGS)))
  alike = {name: str(match) for match in matches if match.chaos <= matches[0].chaos + ALIKE
           for name in (match.encoding, *match.could_be_from_charset)}
  names = [name for name in ENCODINGS if name in alike]
  if names:  # the first such line may be that of the names
    def known(name: str) -> tuple[bool, int]:
      line = odd[0].decode(name, 'replace').strip()
      return bool(_by_names([line], SEPARATORS, fits)), max(
          recognized([part.strip('"') for part in line.split(sign)]) for sign in SEPARATORS)
    names.sort(key=known, reverse=True)
  if not names:
    raise ConfigError(f'{path} is not UTF-8, and what it is cannot be told; name it, as in '
                      '--encoding=cp1252')
  encoding = names[0]
  text = odd[0].decode(encoding, 'replace').strip()
  word = next((word for word in re.findall(r'\w+', text) if not word.isascii()), text[:40])
  others = [name for name in names[1:] if word not in alike[name]][:2]
  found = f'read as {encoding}, guessed from letters as in {word!r}'
  if others:
    line = odd[0].decode(others[0], 'replace')
    other = next((w for w in re.findall(r'\w+', line) if not w.isascii()), line.strip()[:40])
    found += f' ({others[0]} would read {other!r}: --encoding={others[0]})'
  return encoding, [found]
