"""Tables of databases, row by row: PostgreSQL, SQLite, what else SQLAlchemy has a driver for."""
import contextlib
import decimal
import pathlib
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from recjax.errors import ConfigError, DataError

BLOCK = 8192  # rows that are fetched together
_ADDRESS = re.compile(r'[a-z][\w+]*://')
_DRIVERS = {'postgres': 'postgresql+psycopg', 'postgresql': 'postgresql+psycopg'}


def is_address(path: object) -> bool:
  """Whether `path` is the address of a database, as in postgresql://me@host/shop."""
  return isinstance(path, str) and bool(_ADDRESS.match(path))


def is_sqlite(head: bytes) -> bool:
  """Whether a file that begins with the bytes `head` is a database of SQLite."""
  return head.startswith(b'SQLite format 3\0')


def sqlite_address(path: pathlib.Path) -> str:
  """The address of the SQLite database at `path`, which is opened for reading alone."""
  return f'sqlite:///file:{path.absolute()}?mode=ro&uri=true'


def without_password(address: str) -> str:
  """The `address` of a database as it may be shown."""
  shown = re.sub(r'(//[^/@:]*):[^/]*@', r'\1@', address.partition('?')[0])
  return shown.removeprefix('sqlite:///file:')


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
  """Yields SQLAlchemy and a connection. Raises ConfigError where a package lacks, DataError where
  the database refuses."""
  shown = without_password(address)
  try:
    import sqlalchemy
    import sqlalchemy.exc
    kind, rest = address.split('://', 1)
    engine = sqlalchemy.create_engine(f'{_DRIVERS.get(kind, kind)}://{rest}',
                                      execution_options={'postgresql_readonly': True})
  except ImportError as error:
    raise ConfigError(f'{shown} needs the package {error.name}; pip install '
                      "'recjax[data,postgres]' has those of SQLite and PostgreSQL") from error
  except sqlalchemy.exc.ArgumentError as error:
    raise ConfigError(f'{shown} is no address of a database, as in postgresql://me@host/shop '
                      f'({error})') from error
  try:
    with engine.connect() as con:
      yield sqlalchemy, con
  except sqlalchemy.exc.SQLAlchemyError as error:
    reason = str(getattr(error, 'orig', None) or error).strip().partition('\n')[0]
    raise DataError(f'{shown}: {reason:.300}. Is the address right, may this user read it, and is '
                    'the query one of this database?') from error
  finally:
    engine.dispose()


def choose_query(address: str, part: str, shown: str,
                 fits: Callable[[list[str]], bool]) -> tuple[str, str]:
  """The query of all rows that are meant, and what it is, in words.

  address: of the database. part: a query, the name of a table, or '' for the only one whose columns
  are what `fits` wants. shown: the address for messages. Raises ConfigError naming the tables.
  """
  if re.match(r'\s*(select|with|table|values)\b', part, re.IGNORECASE):
    return part.strip().rstrip(';'), 'a query'
  with _connected(address) as (sqlalchemy, con):
    inspector = sqlalchemy.inspect(con)
    tables = {name: [column['name'] for column in inspector.get_columns(name)]
              for name in (*inspector.get_table_names(), *inspector.get_view_names())}
    quote = con.dialect.identifier_preparer.quote_identifier
    found = [part] if part in tables else [
        name for name, columns in tables.items() if not part and (
            fits(columns) or len(tables) == 1)]
    if len(found) == 1:
      return f'SELECT * FROM {quote(found[0])}', f'table {found[0]} of a database'
    if re.fullmatch(r'\w+\.\w+', part):  # in another schema
      return f'SELECT * FROM {".".join(map(quote, part.split(".")))}', f'table {part} of a database'
  listed = '; '.join(f'{name} ({", ".join(columns)})' for name, columns in tables.items())
  raise ConfigError(f'{shown}: which table? It has {listed or "none"}. Say --query=NAME, or '
                    "--query='SELECT ... FROM ... JOIN ...' (--items-query for the items)")


def read(address: str, query: str) -> Iterator[tuple[int, dict | None, str]]:
  """Yields (number, values by column, '') of the rows that `query` gives, block by block.

  address: of the database.
  """
  with _connected(address) as (sqlalchemy, con):
    rows = con.execution_options(stream_results=True, max_row_buffer=BLOCK).execute(
        sqlalchemy.text(query.replace(':', r'\:')))
    names = list(rows.keys())
    for number, row in enumerate(rows, 1):
      yield number, {name: _plain(value) for name, value in zip(names, row)}, ''


def _plain(value: Any) -> Any:
  """A value as JSON and `cleaning` know it."""
  if isinstance(value, decimal.Decimal):
    return int(value) if value == value.to_integral_value() else float(value)
  if isinstance(value, uuid.UUID | bytes | memoryview):
    return value.hex() if isinstance(value, bytes | memoryview) else str(value)
  return value
