"""The files of BIGRec and D3: instruction records, title lists, sample tables (bigrec.md 2).

Tables hold lists as Python literals; they are read with `ast.literal_eval`, never `eval`.
"""
import ast
import csv
import html
import json
import pathlib
import re
import unicodedata

from recjax import file_io
from recjax.errors import DataError

RECORD = ('instruction', 'input', 'output')
PARTS = ('train', 'valid', 'test')
TABLE = ('user_id', 'item_asins', 'item_asin', 'history_item_id', 'item_id', 'history_item_title',
         'item_title', 'history_rating', 'rating', 'timestamp')
MISREAD = re.compile('[\u00c2\u00c3][\u0080-\u00bf]')  # as nothing is spelt in any language


def clean_title(text):
  """One spelling of a title for data, trie and metric: entities decoded, white space single, no
  pair of quotes around it. -> str, '' where nothing is left"""
  text, before = str(text), None
  while text != before:  # what was encoded twice, too: a title is read again and again
    before, text = text, ' '.join(html.unescape(text).split())
    if text.startswith('"') and text.endswith('"'):
      text = text[1:-1].strip()  # a mark of inches at the end alone stays
  return text


def misread(title):
  """What becomes of a title in UTF-8 that is read as Latin-1 or Windows-1252, once or twice, as the
  authors read movies.dat: 'MisÃ©rables' of 'Misérables'. -> set of str, in one spelling"""
  out = set()
  for read in (_latin, _windows) if not title.isascii() else ():
    once = read(title.encode('utf-8', 'replace'))
    out |= {clean_title(once), clean_title(read(once.encode('utf-8', 'replace')))}
  return out


def forms(title):
  """A title in other normal forms of Unicode, which look the same. -> set of str"""
  return {unicodedata.normalize(form, title) for form in ('NFC', 'NFD', 'NFKC')} - {title}


def _latin(data):
  return data.decode('latin-1')


def _windows(data):
  """Windows-1252, its five unused bytes as control characters, which is how browsers read it."""
  return ''.join(bytes([b]).decode('cp1252', 'ignore') or chr(b) for b in data)


def mend(titles, records):
  """Undoes misreadings of UTF-8. titles: {id: title}. records: {part: [record]}.

  Catalogue and records tell each other what was meant: a title that the one lacks is taken for the
  misreading of one that the other has, and for nothing else. Where both are alike, a title is
  misread that no language spells so ('Ã' before a sign), and that UTF-8 makes sense of. Records
  that hold a title in another form of Unicode mean the catalogue's, too. -> titles, records,
  {what: how many titles}
  """
  known = {clean_title(t) for t in titles.values()}
  told = {clean_title(t) for rows in records.values() for r in rows
          for t in (r['output'], *unquoted(r['input']))}
  meant = {m: t for t in told - known for m in misread(t) & known}
  new = {i: meant.get(clean_title(t)) or _undone(t) for i, t in titles.items()}
  known = {clean_title(t) for t in new.values()}
  meant = {m: t for t in known for m in (misread(t) | forms(t)) - known}
  counts = {'misread_titles_of_the_catalogue': sum(new[i] != t for i, t in titles.items()),
            'misread_titles_of_records': 0}

  def right(text):
    found = meant.get(clean_title(text))
    counts['misread_titles_of_records'] += found is not None
    return found or text

  def row(record):
    text, out = record['input'], record['output']
    start, end = text.find('"'), text.rfind('"')
    if 0 <= start < end:
      parts = re.split(r'(",\s*")', text[start + 1:end])
      parts[::2] = map(right, parts[::2])
      text = text[:start + 1] + ''.join(parts) + text[end:]
    if (found := right(out)) is not out:
      out = f'"{found}"' + out[len(out.rstrip()):]
    return {**record, 'input': text, 'output': out}
  return new, {part: list(map(row, rows)) for part, rows in records.items()}, counts


def _undone(title):
  """A title that no language spells so, read again; another one as it is."""
  try:
    return title.encode('latin-1').decode('utf-8') if MISREAD.search(title) else title
  except (UnicodeEncodeError, UnicodeDecodeError):
    return title


def quoted(titles):
  """'"A", "B"': how a history is spelled."""
  return ', '.join(f'"{t}"' for t in titles)


def unquoted(text):
  """The titles of a text that holds `quoted` ones, oldest first. -> list of str

  A title may hold quotes itself, so the text is cut at '", "' alone.
  """
  start, end = text.find('"'), text.rfind('"')
  if start < 0 or end <= start:
    return []
  return [' '.join(html.unescape(t).split()) for t in re.split(r'",\s*"', text[start + 1:end])]


def read_records(path):
  """Instruction records. -> list of {'instruction', 'input', 'output'}, further keys kept

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


def write_records(path, rows):
  """Writes records as the authors do: a JSON list, indented by four."""
  file_io.write_text(path, json.dumps(list(rows), indent=4, ensure_ascii=False))


def read_id2name(path):
  """Titles by number: a line each, title TAB number, in any order. -> list of str by number

  Titles may hold tabs. Raises DataError for a line without a number, or numbers with holes.
  """
  found = {}
  try:
    lines = _lines(file_io.read_bytes(path).decode('utf-8'))
  except UnicodeDecodeError as error:
    raise DataError(f'{path} is not UTF-8 at byte {error.start + 1}; save it so') from error
  for place, line in enumerate(lines, 1):
    title, tab, number = line.rpartition('\t')
    if not tab or not number.strip().isdecimal() or len(number) > 18:
      raise DataError(f'{path} line {place}: {line[:60]!r} must be a title, a tab and a number')
    if int(number) in found:
      raise DataError(f'{path} line {place}: number {number} stands there twice')
    found[int(number)] = title
  if sorted(found) != list(range(len(found))) or not found:
    raise DataError(f'{path} numbers {len(found)} titles, but not 0 to {len(found) - 1} each once')
  return [found[i] for i in range(len(found))]


def _lines(text):
  """Lines by their ends alone: U+0085 and U+2028 may stand in titles."""
  lines = re.split('\r\n|\r|\n', text)
  return lines if lines[-1] else lines[:-1]


def write_id2name(path, titles):
  """Writes `read_id2name`'s file, which is D3's info file too."""
  file_io.write_text(path, ''.join(f'{t}\t{i}\n' for i, t in enumerate(titles)))


def read_movies(path):
  """MovieLens' movies.dat. -> {movie id: title}; UTF-8, or where it is not ISO-8859-1, or
  Windows-1252 where that has signs in place of control characters"""
  data = file_io.read_bytes(path)
  try:
    text = data.decode('utf-8')
  except UnicodeDecodeError:
    text = _windows(data)
  found = {}
  for place, line in enumerate(_lines(text), 1):
    parts = line.split('::')
    if len(parts) != 3:
      raise DataError(f'{path} line {place}: {line[:60]!r} must be id::title::genres')
    found[parts[0]] = parts[1]
  return found


def read_titles(folder):
  """The catalogue beside the records: id2name.txt, movies.dat or a D3 info file. -> {id: title}"""
  folder = pathlib.Path(folder)
  if (folder / 'id2name.txt').exists():
    return {str(i): t for i, t in enumerate(read_id2name(folder / 'id2name.txt'))}
  if (folder / 'movies.dat').exists():
    return read_movies(folder / 'movies.dat')
  infos = sorted(folder.glob('*.txt'))
  if len(infos) == 1:
    return {str(i): t for i, t in enumerate(read_id2name(infos[0]))}
  raise DataError(f'{folder} holds no id2name.txt, movies.dat or single title list (title TAB '
                  'number), so the catalogue is unknown')


def read_table(path):
  """A sample table. -> list of {'user_id', 'history' [title], 'title', 'timestamp'}

  Works for the game, movie and D3 columns. Raises DataError naming the line and column.
  """
  try:
    with open(path, encoding='utf-8', newline='') as f:
      rows = list(csv.DictReader(f, strict=True))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise DataError(f'{path} cannot be read as a table: {error}') from error
  if not rows:
    raise DataError(f'{path} holds no row')
  prefix = 'item_title' if 'item_title' in rows[0] else 'movie_title'
  history = f'history_{prefix}'
  for key in ('user_id', history, 'timestamp'):
    if key not in rows[0]:
      raise DataError(f'{path} lacks the column {key!r}; it has {", ".join(map(str, rows[0]))}')
  out = []
  for place, row in enumerate(rows, 2):
    try:
      titles = ast.literal_eval(row[history])
      if not isinstance(titles, list) or not all(isinstance(t, str) for t in titles):
        raise ValueError(f'it is {titles!r:.40}')
      time = int(float(row['timestamp']))
      if None in row or None in row.values():
        raise ValueError('the row has another number of columns than the header')
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError,
            OverflowError) as error:
      raise DataError(f'{path} line {place}: {history} must be a list such as ["A", "B"], and '
                      f'timestamp a number ({error})') from error
    out.append({'user_id': row['user_id'], 'history': [clean_title(t) for t in titles],
                'title': clean_title(row[prefix]) if prefix in row else None,
                'id': row.get('item_id', row.get('movie_id')), 'timestamp': time})
  return out


def write_table(path, rows):
  """Writes samples in the game columns. rows: dicts with the names of TABLE."""
  import io
  out = io.StringIO()
  writer = csv.DictWriter(out, TABLE, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  file_io.write_text(path, out.getvalue())


def write_predictions(path, records, predicted, scores=None):
  """The authors' result file: each record with 'predict', and D3's 'predict_score'."""
  rows = [{**{k: r[k] for k in RECORD}, 'predict': list(p)} for r, p in zip(records, predicted)]
  for row, s in zip(rows, scores if scores is not None else ()):
    row['predict_score'] = [float(x) for x in s]
  write_records(path, rows)
