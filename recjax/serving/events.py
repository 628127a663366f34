"""The database of what users do and of what they were shown: SQLite in a file, or PostgreSQL.

What `write` returned for is on disk: SQLite runs in WAL mode with synchronous=FULL, PostgreSQL as
it is set up. Any number of processes may use one database.
"""
import collections
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
import sqlalchemy.event
import sqlalchemy.exc
from sqlalchemy.dialects import postgresql, sqlite

from recjax.errors import ConfigError, ServiceError

TYPES = ('view', 'click', 'cart', 'purchase')
MAX_HISTORY = 10_000  # newest events of a user that are read
EXPORT_ROWS = 10_000  # rows of an export that are in memory
MIGRATION_LOCK = 7_262_706_001  # PostgreSQL's advisory lock that is held while tables change
WRITE_LOCK = 7_262_706_002  # and the one that is held while events are written
STOPPED_SECONDS = 10  # after which a writer that stands still loses it
NOW = -1  # the time of an event that is of now
DAY_MS = 86_400_000
SCRIPTS = pathlib.Path(__file__).parent / 'migrations'
METADATA = sa.MetaData()
EVENTS = sa.Table(
    'events', METADATA,
    sa.Column('seq', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), primary_key=True,
              autoincrement=True),
    sa.Column('key', sa.Text, nullable=False, unique=True),
    sa.Column('user_id', sa.Text, nullable=False), sa.Column('item_id', sa.Text, nullable=False),
    sa.Column('type', sa.Text, nullable=False), sa.Column('time_ms', sa.BigInteger, nullable=False),
    sa.Column('request_id', sa.Text, nullable=False),
    sa.Index('events_by_user', 'user_id', 'time_ms'),
    sa.Index('events_by_request', 'request_id', 'item_id'))
IMPRESSIONS = sa.Table(
    'impressions', METADATA, sa.Column('request_id', sa.Text, primary_key=True),
    sa.Column('rank', sa.Integer, primary_key=True),
    sa.Column('item_id', sa.Text, nullable=False), sa.Column('model', sa.Text, nullable=False),
    sa.Column('user_id', sa.Text, nullable=False),
    sa.Column('time_ms', sa.BigInteger, nullable=False),
    sa.Index('impressions_by_user', 'user_id'))


class StoreUnavailable(ServiceError):
  """The database does not answer, or refuses: what was to be written is not."""


@dataclasses.dataclass(frozen=True)
class Event:
  """What a user did.

  key: names the event once and for all. user, item: ids. type: one of TYPES. time_ms: when,
  milliseconds since 1970; NOW for when it is written, and after what the user did before.
  request_id: of the answer that showed the item, '' for none.
  """
  key: str
  user: str
  item: str
  type: str
  time_ms: int
  request_id: str = ''

  def says_as(self, other: 'Event') -> bool:
    """Returns whether both are the same event, sent again maybe, when a time that nobody gave has
    become another. other: the event to compare with."""
    return dataclasses.replace(self, time_ms=other.time_ms) == other


@dataclasses.dataclass(frozen=True)
class Shown:
  """What an answer showed.

  request_id: of the answer. user: whom, '' where that was deleted. model: that recommended.
  time_ms: when, milliseconds since 1970. items: ids, the best first.
  """
  request_id: str
  user: str
  model: str
  time_ms: int
  items: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Written:
  """What became of the events of one write.

  accepted: how many are new. duplicates: how many were there before, as they are. conflicts: keys
  that stand for another event, which stays.
  """
  accepted: int = 0
  duplicates: int = 0
  conflicts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelCounts:
  """What came of one model's answers.

  model: its name. answers, users: how many answers with items, and for how many users that are
  still known. shown: items in them. clicked, bought: answers of which an item was clicked, bought.
  users_clicked, users_bought: users of whom that is true of an answer.
  """
  model: str
  answers: int
  users: int
  shown: int
  clicked: int
  bought: int
  users_clicked: int
  users_bought: int


def parse_url(place: str) -> sa.URL:
  """Returns the address of a database. place: a URL, or the path of a SQLite file. Raises
  ConfigError for one that is no such thing."""
  if '://' not in place:
    return sa.URL.create('sqlite', database=str(pathlib.Path(place).absolute()))
  try:
    url = sa.make_url(place)
  except (sqlalchemy.exc.ArgumentError, ValueError) as error:
    raise ConfigError('--events: this is no URL of a database; give a file, or '
                      'postgresql://USER:PASSWORD@HOST/NAME') from error
  kind = url.drivername.partition('+')[0]
  if kind in ('postgres', 'postgresql'):
    return url.set(drivername='postgresql+psycopg')
  if kind != 'sqlite' or not url.database:
    raise ConfigError(f'--events={url.render_as_string()}: give the path of a SQLite file, or '
                      'postgresql://USER:PASSWORD@HOST/NAME')
  return url.set(drivername='sqlite')


def event_key(user: str, item: str, type: str, time_ms: int | None, request_id: str) -> str:
  """Returns a key for an event that has none: the same for the same event, so that it counts once
  however often it is sent; a new one each time where no time tells events apart.

  user, item, type, time_ms, request_id: of the event.
  """
  if time_ms is None:
    return secrets.token_hex(16)
  text = '\0'.join((user, item, type, str(time_ms), request_id))
  return hashlib.sha256(text.encode()).hexdigest()[:32]


class EventStore:
  """A database of events.

  place: as `parse_url` takes it; '' for a file that is gone when the store is closed. Raises
  ConfigError for a place that cannot be used, StoreUnavailable where the database does not answer.
  """

  def __init__(self, place: str = ''):
    self._folder = None if place else tempfile.TemporaryDirectory(prefix='recjax-events-')
    url = parse_url(place or f'{self._folder.name if self._folder else ""}/events.sqlite')
    self.name = url.render_as_string()
    self.is_sqlite = url.drivername == 'sqlite'
    options = ({'timeout': 30} if self.is_sqlite else
               {'connect_timeout': 5, 'client_encoding': 'utf8',
                'options': '-c statement_timeout=30000'})
    self.engine = sa.create_engine(url, connect_args=options, pool_pre_ping=not self.is_sqlite,
                                   pool_size=8, max_overflow=40)
    if self.is_sqlite:
      with contextlib.suppress(OSError):  # what users do is for this user alone to read
        os.close(os.open(url.database or '', os.O_CREAT | os.O_RDWR, 0o600))
      sqlalchemy.event.listen(self.engine, 'connect', set_up_sqlite)
    try:
      with self._errors():
        migrate(self.engine)
    except BaseException:
      self.close()
      raise

  @contextlib.contextmanager
  def _errors(self) -> Iterator[None]:
    try:
      yield
    except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InternalError) as error:
      raise StoreUnavailable(f'the database {self.name} does not answer: {error.orig}') from error
    except sqlalchemy.exc.TimeoutError as error:
      raise StoreUnavailable(f'the database {self.name} has too much to do') from error

  def close(self) -> None:
    """Ends all connections."""
    self.engine.dispose()
    if self._folder:
      self._folder.cleanup()

  def check(self) -> None:
    """Asks the database whether it is there. Raises StoreUnavailable where not."""
    with self._errors(), self.engine.connect() as connection:
      connection.execute(sa.select(sa.literal(1)))

  def write(self, writes: Sequence[Sequence[Event | Shown]]) -> list[Written | StoreUnavailable]:
    """Writes many requests' rows in one transaction: all are on disk when this returns, or none.

    writes: the rows of each request. An event whose key is known is not written again.

    Returns what became of each request's events; the error for all where the database is away.
    """
    events = [row for rows in writes for row in rows if isinstance(row, Event)]
    shown = [{'request_id': row.request_id, 'rank': rank, 'item_id': item, 'model': row.model,
              'user_id': row.user, 'time_ms': row.time_ms}
             for rows in writes for row in rows if isinstance(row, Shown)
             for rank, item in enumerate(row.items, 1)]
    try:
      with self._errors(), self.engine.begin() as connection:
        is_new, stored = self._insert_events(connection, events)
        if shown:
          connection.execute(sa.insert(IMPRESSIONS), shown)
    except StoreUnavailable as error:
      return [error] * len(writes)
    results = []
    for rows in writes:
      count = collections.Counter()
      conflicts = []
      for row in rows:
        if isinstance(row, Event):
          same = row.says_as(stored.get(row.key, row))
          count['new' if row.key in is_new and same else 'same' if same else 'other'] += 1
          is_new.discard(row.key)
          if not same:
            conflicts.append(row.key)
      results.append(Written(count['new'], count['same'], tuple(conflicts)))
    return results

  def _insert_events(self, connection: sa.Connection, events: Sequence[Event]
                     ) -> tuple[set[str], dict[str, Event]]:
    """The keys that are new, and the events that stand under keys that are not, or came twice."""
    first = {}
    for event in events:
      first.setdefault(event.key, event)
    if not first:
      return set(), {}
    if not self.is_sqlite:  # one writer at a time, as SQLite has it: no two of them in a deadlock
      connection.execute(sa.select(
          sa.func.set_config('idle_in_transaction_session_timeout', f'{STOPPED_SECONDS}s', True),
          sa.func.pg_advisory_xact_lock(WRITE_LOCK)))
    first = self._with_times(connection, first)
    insert = (sqlite if self.is_sqlite else postgresql).insert(EVENTS)
    is_new = set(connection.scalars(
        insert.on_conflict_do_nothing(index_elements=['key']).returning(EVENTS.c.key),
        [event_row(event) for event in first.values()]))
    known = [key for key in first if key not in is_new]
    stored = {key: first[key] for key in is_new}
    for start in range(0, len(known), 500):
      for row in connection.execute(sa.select(EVENTS).where(
          EVENTS.c.key.in_(known[start:start + 500]))):
        stored[row.key] = as_event(row)
    return is_new, stored

  def _with_times(self, connection: sa.Connection, events: Mapping[str, Event]
                  ) -> dict[str, Event]:
    """The events by key, with a time where they are of now: a millisecond after the newest of the
    user's that is not a day ahead, should the clock have been set back since."""
    now = round(time.time() * 1000)
    users = list({event.user for event in events.values() if event.time_ms == NOW})
    newest = dict.fromkeys(users, 0)
    for start in range(0, len(users), 500):
      rows = connection.execute(
          sa.select(EVENTS.c.user_id, sa.func.max(EVENTS.c.time_ms)).where(
              EVENTS.c.user_id.in_(users[start:start + 500]), EVENTS.c.time_ms <= now + DAY_MS)
          .group_by(EVENTS.c.user_id))
      newest.update((user, time_ms) for user, time_ms in rows)
    timed = {}
    for key, event in events.items():
      if event.time_ms == NOW:
        event = dataclasses.replace(event, time_ms=max(now, newest[event.user] + 1))
        newest[event.user] = event.time_ms
      elif event.user in newest and event.time_ms <= now + DAY_MS:
        newest[event.user] = max(newest[event.user], event.time_ms)
      timed[key] = event
    return timed

  def history(self, user: str, types: Sequence[str] = ('purchase',)) -> list[Event]:
    """Returns the newest events of a user, at most MAX_HISTORY, oldest first.

    user: an id. types: of the events. Raises StoreUnavailable.
    """
    newest = sa.select(EVENTS).where(EVENTS.c.user_id == user, EVENTS.c.type.in_(types)).order_by(
        EVENTS.c.time_ms.desc(), EVENTS.c.seq.desc()).limit(MAX_HISTORY)
    with self._errors(), self.engine.connect() as connection:
      return [as_event(row) for row in connection.execute(newest)][::-1]

  def forget(self, user: str, key: str = '') -> int:
    """Deletes what is known of a user, and returns how many events that were.

    user: an id. key: of the one event to delete; '' for all, and whom answers were shown to.
    Raises StoreUnavailable.
    """
    of_user = EVENTS.c.user_id == user
    with self._errors(), self.engine.begin() as connection:
      deleted = connection.execute(
          sa.delete(EVENTS).where(of_user, EVENTS.c.key == key) if key else
          sa.delete(EVENTS).where(of_user)).rowcount
      if not key:
        connection.execute(sa.update(IMPRESSIONS).where(IMPRESSIONS.c.user_id == user)
                           .values(user_id=''))
      return deleted

  def export(self, types: Sequence[str] = ('purchase',)) -> Iterator[Event]:
    """Yields all events in the order of their times. types: of the events. Raises
    StoreUnavailable."""
    rows = sa.select(EVENTS).where(EVENTS.c.type.in_(types)).order_by(EVENTS.c.time_ms,
                                                                      EVENTS.c.seq)
    with self._errors(), self.engine.connect() as connection:
      for row in connection.execution_options(yield_per=EXPORT_ROWS).execute(rows):
        yield as_event(row)

  def report(self) -> list[ModelCounts]:
    """Counts what came of the answers of each model, by name. Raises StoreUnavailable."""
    joined = IMPRESSIONS.outerjoin(EVENTS, sa.and_(
        EVENTS.c.request_id == IMPRESSIONS.c.request_id,
        EVENTS.c.item_id == IMPRESSIONS.c.item_id, EVENTS.c.type.in_(('click', 'purchase'))))
    of_type = {kind: sa.func.max(sa.case((EVENTS.c.type == kind, 1), else_=0))
               for kind in ('click', 'purchase')}
    answers = sa.select(
        IMPRESSIONS.c.model, IMPRESSIONS.c.user_id, IMPRESSIONS.c.request_id,
        sa.func.max(IMPRESSIONS.c.rank).label('shown'), of_type['click'].label('clicked'),
        of_type['purchase'].label('bought')).select_from(joined).group_by(
            IMPRESSIONS.c.model, IMPRESSIONS.c.user_id, IMPRESSIONS.c.request_id).subquery()
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    users = sa.select(
        answers.c.model, answers.c.user_id, sa.func.count().label('answers'),
        *(sa.func.sum(answers.c[name]).label(name) for name in ('shown', 'clicked', 'bought'))
    ).group_by(answers.c.model, answers.c.user_id)
    with self._errors(), self.engine.connect() as connection:
      for row in connection.execute(users):
        named = bool(row.user_id)
        counts[row.model].update(
            answers=row.answers, shown=int(row.shown), clicked=int(row.clicked),
            bought=int(row.bought), users=named, users_clicked=named and row.clicked > 0,
            users_bought=named and row.bought > 0)
    return [ModelCounts(model, **{field.name: int(count[field.name])
                                  for field in dataclasses.fields(ModelCounts)[1:]})
            for model, count in sorted(counts.items())]


def as_event(row: Any) -> Event:
  """Returns a row of EVENTS as an event."""
  return Event(row.key, row.user_id, row.item_id, row.type, row.time_ms, row.request_id)


def event_row(event: Event) -> dict[str, Any]:
  """Returns an event as a row of EVENTS."""
  return {'key': event.key, 'user_id': event.user, 'item_id': event.item, 'type': event.type,
          'time_ms': event.time_ms, 'request_id': event.request_id}


def set_up_sqlite(connection: Any, record: Any) -> None:
  """Makes a new connection write ahead and wait for the disk. connection: of the driver. record: of
  the pool."""
  for line in ('journal_mode=WAL', 'synchronous=FULL'):
    connection.execute(f'PRAGMA {line}')


def migrate(engine: sa.Engine) -> None:
  """Brings the tables of a database to the newest version; those who come at the same time wait.

  engine: of the database. Raises ConfigError for a database of a later version of recjax.
  """
  import alembic.command
  import alembic.config
  import alembic.util
  config = alembic.config.Config()
  config.set_main_option('script_location', str(SCRIPTS).replace('%', '%%'))
  with engine.connect() as connection:
    if engine.dialect.name == 'sqlite':
      connection.exec_driver_sql('BEGIN IMMEDIATE')
    else:
      connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
    config.attributes['connection'] = connection
    try:
      alembic.command.upgrade(config, 'head')
    except alembic.util.CommandError as error:
      raise ConfigError(f'the events in {engine.url.render_as_string()} were written by another '
                        f'version of recjax ({error}); install the one that wrote them, or name '
                        'another database') from error
    connection.commit()
