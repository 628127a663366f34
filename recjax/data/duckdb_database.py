"""DuckDB: the database of a preparation, its sniffer of tables and its reader of JSON arrays.

The only file that imports DuckDB.
"""
import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from recjax.errors import ConfigError, DataError, WorkdirError


class Dialect(NamedTuple):
  """How a text parts its columns. sep: between them. skip: lines above the first row. names: of the
  columns, or as DuckDB numbers them. header: whether the first row holds them."""
  sep: str
  skip: int
  names: list[str]
  header: bool


def _duckdb() -> Any:
  try:
    import duckdb
  except ImportError as error:
    raise ConfigError('preparing needs DuckDB; install it with: pip install "recjax[data]"'
                      ) from error
  return duckdb


@contextlib.contextmanager
def database(out: pathlib.Path, memory: str) -> Iterator:
  """Yields a DuckDB connection whose file, and what is more than `memory`, lie beside `out`."""
  duckdb = _duckdb()
  with tempfile.TemporaryDirectory(prefix=f'.{out.name}.', dir=out.parent) as folder:
    try:
      con = duckdb.connect(f'{folder}/rows.duckdb', config={
          'memory_limit': memory, 'temp_directory': f'{folder}/spill'})
    except duckdb.IOException as error:
      raise WorkdirError(f'DuckDB cannot write beside {out}: {error}; free some space or choose '
                         'another folder') from error
    except duckdb.Error as error:
      raise ConfigError(f'memory={memory!r} is no size, as in 2GB ({error})') from error
    try:
      con.execute('SET preserve_insertion_order = false')
      yield con
    except duckdb.OutOfMemoryException as error:
      if 'max_temp_directory_size' in str(error):  # memory does not do, and the disk is full
        raise WorkdirError(f'the disk is full beside {out}, where DuckDB keeps what does not fit '
                           f'into {memory} of memory; free some space, choose another folder, or '
                           'give more with --memory') from error
      raise ConfigError(f'{memory} of memory is not enough for these data; give more with --memory'
                        ) from error
    except duckdb.IOException as error:
      raise WorkdirError(f'DuckDB cannot write beside {out}: {error}; free some space or choose '
                         'another folder') from error
    finally:
      con.close()


def sniff(lines: Sequence[str], sep: str = '', literal: bool = False) -> Dialect | None:
  """What DuckDB's sniffer tells of the first `lines` of a table, None where it cannot tell.

  sep: between columns, where it is known. literal: quotes are text.
  """
  duckdb = _duckdb()
  with tempfile.NamedTemporaryFile('w', encoding='utf-8', suffix='.csv', newline='') as file:
    file.write('\n'.join(lines) + '\n')
    file.flush()
    options = f", delim='{sep}'" * bool(sep) + ", quote='', escape=''" * literal
    with duckdb.connect() as con:
      try:
        found = con.execute('SELECT Delimiter, SkipRows, Columns, HasHeader FROM '
                            f'sniff_csv(?{options})', [file.name]).fetchone()
      except duckdb.Error:
        return None
  sep, skip, columns, header = found
  return Dialect(sep, skip, [column['name'] for column in columns], header)


def json_objects(path: pathlib.Path) -> Iterator[str]:
  """Yields the objects of the JSON array at `path`, each as its text, in bounded memory.

  Raises DataError where it is no JSON.
  """
  duckdb = _duckdb()
  with duckdb.connect() as con:
    try:
      con.execute("SELECT json FROM read_json_objects(?, format='array')", [str(path)])
      while block := con.fetchmany(8192):
        for text, in block:
          yield text
    except duckdb.Error as error:
      reason = str(error).partition('\n')[0]
      raise DataError(f'{path} cannot be read as a JSON array: {reason:.200}') from error
