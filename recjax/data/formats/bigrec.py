"""The files of BIGRec (arXiv:2308.08434) and D3 (arXiv:2406.14900): instruction records, title
lists, sample tables.

Tables hold lists as Python literals; they are read with `ast.literal_eval`, never `eval`.
"""
import ast
import csv
import html
import io
import json
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

from recjax import file_io
from recjax.data import raw_reader
from recjax.errors import DataError

RECORD = ('instruction', 'input', 'output')
PARTS = ('train', 'valid', 'test')
TABLE_COLUMNS = (
  'user_id',
  'item_asins',
  'item_asin',
  'history_item_id',
  'item_id',
  'history_item_title',
  'item_title',
  'history_rating',
  'rating',
  'timestamp',
)
MISREAD = re.compile('[\u00c2\u00c3][\u0080-\u00bf]')  # as nothing is spelled in any language


def clean_title(text: object) -> str:
  """One spelling of a title for data, trie and metric, '' where nothing is left.

  Entities of `text` are decoded, white space is single, no pair of quotes stands around it.
  """
  text, before = str(text), None
  while text != before:  # what was encoded twice, too: a title is read again and again
    before, text = text, ' '.join(html.unescape(text).split())
    if text.startswith('"') and text.endswith('"'):
      text = text[1:-1].strip()  # a mark of inches at the end alone stays
  return text


def misread(title: str) -> set[str]:
  """What becomes of `title` in UTF-8 that is read as Latin-1 or Windows-1252, once or twice.

  BIGRec's authors read movies.dat so: 'MisÃ©rables' of 'Misérables'. All in one spelling.
  """
  spellings = set()
  for read in (_latin, _windows) if not title.isascii() else ():
    once = read(title.encode('utf-8', 'replace'))
    spellings |= {clean_title(once), clean_title(read(once.encode('utf-8', 'replace')))}
  return spellings


def forms(title: str) -> set[str]:
  """`title` in other normal forms of Unicode, which look the same."""
  return {unicodedata.normalize(form, title) for form in ('NFC', 'NFD', 'NFKC')} - {title}


def _latin(data: bytes) -> str:
  return data.decode('latin-1')


def _windows(data: bytes) -> str:
  """Windows-1252, its five unused bytes as control characters, which is how browsers read it."""
  return ''.join(bytes([b]).decode('cp1252', 'ignore') or chr(b) for b in data)


def repair_titles(titles: dict[str, str], records: dict[str, list[dict]]
                  ) -> tuple[dict[str, str], dict[str, list[dict]], dict[str, int]]:
  """Undoes misreadings of UTF-8 in `titles` by id and in the `records` of each part.

  Catalog and records tell each other what was meant: a title that the one lacks is taken for the
  misreading of one that the other has, and for nothing else. Where both are alike, a title is
  misread that no language spells so ('Ã' before a sign), and that UTF-8 makes sense of. Records
  that hold a title in another form of Unicode mean the catalog's, too. Returns both, and how many
  titles of each were mended.
  """
  known = {clean_title(t) for t in titles.values()}
  record_titles = {clean_title(t) for rows in records.values() for r in rows
                   for t in (r['output'], *unquote_titles(r['input']))}
  intended = {m: t for t in record_titles - known for m in misread(t) & known}
  repaired = {i: intended.get(clean_title(t)) or _undone(t) for i, t in titles.items()}
  known = {clean_title(t) for t in repaired.values()}
  intended = {m: t for t in known for m in (misread(t) | forms(t)) - known}
  counts = {'misread_titles_of_the_catalog': sum(repaired[i] != t for i, t in titles.items()),
            'misread_titles_of_records': 0}

  def mended_title(text: str) -> str:
    intended_title = intended.get(clean_title(text))
    counts['misread_titles_of_records'] += intended_title is not None
    return intended_title or text

  def mended_record(record: dict) -> dict:
    text, output = record['input'], record['output']
    start, end = text.find('"'), text.rfind('"')
    if 0 <= start < end:
      parts = re.split(r'(",\s*")', text[start + 1:end])
      parts[::2] = map(mended_title, parts[::2])
      text = text[:start + 1] + ''.join(parts) + text[end:]
    if (intended_title := mended_title(output)) is not output:
      output = f'"{intended_title}"' + output[len(output.rstrip()):]
    return {**record, 'input': text, 'output': output}
  return (repaired, {part: list(map(mended_record, rows)) for part, rows in records.items()},
          counts)


def _undone(title: str) -> str:
  """A title that no language spells so, read again; another one as it is."""
  try:
    return title.encode('latin-1').decode('utf-8') if MISREAD.search(title) else title
  except (UnicodeEncodeError, UnicodeDecodeError):
    return title


def quote_titles(titles: Iterable[str]) -> str:
  """How a history of `titles` is spelled: '"A", "B"'."""
  return ', '.join(f'"{t}"' for t in titles)


def unquote_titles(text: str) -> list[str]:
  """The titles of a `text` that `quote_titles` made, oldest first.

  A title may hold quotes itself, so the text is cut at '", "' alone.
  """
  start, end = text.find('"'), text.rfind('"')
  if start < 0 or end <= start:
    return []
  return [' '.join(html.unescape(t).split()) for t in re.split(r'",\s*"', text[start + 1:end])]


def read_records(path: str | pathlib.Path) -> list[dict]:
  """The records at `path` with the texts 'instruction', 'input' and 'output', further keys kept.

  Raises DataError naming the file and the record.
  """
  rows = file_io.read_json(path)
  if not isinstance(rows, list) or not rows:
    raise DataError(f'{path} must hold a list of records with {", ".join(RECORD)}')
  for number, row in enumerate(rows):
    missing = [k for k in RECORD if not isinstance(row, dict) or not isinstance(row.get(k), str)]
    if missing:
      raise DataError(f'{path} record {number} lacks the text {missing[0]!r}')
  return rows


def write_records(path: str | pathlib.Path, rows: Iterable[dict]) -> None:
  """Writes the records `rows` to `path` as the authors do: a JSON list, indented by four."""
  file_io.write_text(path, json.dumps(list(rows), indent=4, ensure_ascii=False))


def read_id2name(path: str | pathlib.Path) -> list[str]:
  """The titles in the file at `path` by number: a line each, title TAB number, in any order.

  Titles may hold tabs. Raises DataError for a line without a number, or numbers with holes.
  """
  titles = {}
  try:
    lines = _lines(file_io.read_bytes(path).decode('utf-8'))
  except UnicodeDecodeError as error:
    raise DataError(f'{path} is not UTF-8 at byte {error.start + 1}; save it so') from error
  for line_number, line in enumerate(lines, 1):
    title, tab, number = line.rpartition('\t')
    if not tab or not number.strip().isdecimal() or len(number) > 18:
      raise DataError(f'{path} line {line_number}: {line[:60]!r} must be a title, a tab and a '
                      'number')
    if int(number) in titles:
      raise DataError(f'{path} line {line_number}: number {number} stands there twice')
    titles[int(number)] = title
  if sorted(titles) != list(range(len(titles))) or not titles:
    raise DataError(f'{path} numbers {len(titles)} titles, but not 0 to {len(titles) - 1} each '
                    'once')
  return [titles[i] for i in range(len(titles))]


def _lines(text: str) -> list[str]:
  """Lines by their ends alone: U+0085 and U+2028 may stand in titles."""
  lines = re.split('\r\n|\r|\n', text)
  return lines if lines[-1] else lines[:-1]


def write_id2name(path: str | pathlib.Path, titles: Iterable[str]) -> None:
  """Writes `titles` to `path` as `read_id2name` reads them, which is D3's info file too."""
  file_io.write_text(path, ''.join(f'{t}\t{i}\n' for i, t in enumerate(titles)))


def read_movies(path: str | pathlib.Path) -> dict[str, str]:
  """Titles of MovieLens' movies.dat at `path` by id.

  It is read as UTF-8, or where it is not as ISO-8859-1, or Windows-1252 where that has signs in
  place of control characters.
  """
  data = file_io.read_bytes(path)
  try:
    text = data.decode('utf-8')
  except UnicodeDecodeError:
    text = _windows(data)
  titles = {}
  for number, line in enumerate(_lines(text), 1):
    parts = line.split('::')
    if len(parts) != 3:
      raise DataError(f'{path} line {number}: {line[:60]!r} must be id::title::genres')
    titles[parts[0]] = parts[1]
  return titles


def read_titles(folder: str | pathlib.Path) -> dict[str, str]:
  """Titles by id in `folder` beside the records: id2name.txt, movies.dat or a D3 info file."""
  folder = pathlib.Path(folder)
  if (folder / 'id2name.txt').exists():
    return {str(i): t for i, t in enumerate(read_id2name(folder / 'id2name.txt'))}
  if (folder / 'movies.dat').exists():
    return read_movies(folder / 'movies.dat')
  infos = sorted(folder.glob('*.txt'))
  if len(infos) == 1:
    return {str(i): t for i, t in enumerate(read_id2name(infos[0]))}
  raise DataError(f'{folder} holds no id2name.txt, movies.dat or single title list (title TAB '
                  'number), so the catalog is unknown')


def read_table(path: str | pathlib.Path) -> list[dict]:
  """The samples at `path` with 'user_id', 'history' (titles), 'title', 'id' and 'timestamp'.

  Works for the game, movie and D3 columns. Raises DataError naming the line and column.
  """
  samples = []
  for number, row, reason in raw_reader.read(path, sep=','):
    place = raw_reader.row_place(path, number)
    if row is None:
      raise DataError(f'{place} is no row of a sample table: {reason}')
    prefix = 'item_title' if 'item_title' in row else 'movie_title'
    history = f'history_{prefix}'
    for key in ('user_id', history, 'timestamp'):
      if key not in row:
        raise DataError(f'{path} lacks the column {key!r}; it has {", ".join(row)}')
    try:
      titles = ast.literal_eval(row[history])
      if not isinstance(titles, list) or not all(isinstance(t, str) for t in titles):
        raise ValueError(f'it is {titles!r:.40}')
      time = int(float(row['timestamp']))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError,
            OverflowError) as error:
      raise DataError(f'{place}: {history} must be a list such as ["A", "B"], and '
                      f'timestamp a number ({error})') from error
    samples.append({'user_id': row['user_id'], 'history': [clean_title(t) for t in titles],
                    'title': clean_title(row[prefix]) if prefix in row else None,
                    'id': row.get('item_id', row.get('movie_id')), 'timestamp': time})
  if not samples:
    raise DataError(f'{path} holds no row')
  return samples


def write_table(path: str | pathlib.Path, rows: Iterable[dict]) -> None:
  """Writes samples in the game columns to `path`. rows: dicts with the names of TABLE."""
  buffer = io.StringIO()
  writer = csv.DictWriter(buffer, TABLE_COLUMNS, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  file_io.write_text(path, buffer.getvalue())


def write_predictions(path: str | pathlib.Path, records: Iterable[dict],
                      predicted: Iterable[Iterable[str]],
                      scores: Iterable[Sequence[float]] | None = None) -> None:
  """Writes the authors' result file to `path`: each of `records` with its titles `predicted` as
  'predict', and where `scores` are given D3's 'predict_score'."""
  rows = [{**{k: r[k] for k in RECORD}, 'predict': list(titles)}
          for r, titles in zip(records, predicted)]
  for row, row_scores in zip(rows, scores if scores is not None else ()):
    row['predict_score'] = [float(x) for x in row_scores]
  write_records(path, rows)
