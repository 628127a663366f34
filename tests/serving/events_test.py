"""The database of events: what is acknowledged stays, once; who did what; what answers came to."""
import collections
import concurrent.futures
import os
import random
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

import numpy as np
import sqlalchemy as sa
from absl.testing import absltest, parameterized

from recjax import cli
from recjax.cli import events as events_cli
from recjax.data import dataset, loading
from recjax.errors import ConfigError
from recjax.serving import events as events_lib
from recjax.serving.events import Event, EventStore, Shown, StoreUnavailable, Written
from recjax.serving.user_histories import Split, TrainingHistories, parse_split
from tests.long import long_but
from tests.serving import databases

HOUR = 3_600_000
WRITER = '''
import sys
from recjax.serving.events import Event, EventStore
store, life = EventStore(sys.argv[1]), sys.argv[2]
for n in range(10**9):
  rows = [Event(f'{life}-{n}-{i}', f'u{i}', 'i', 'view', n) for i in range(5)]
  written, = store.write([rows])
  assert written.accepted == 5, written
  print(n, flush=True)
'''


def event(key, user='u', item='a', type='purchase', time_ms=1000, request_id=''):
  return Event(key, user, item, type, time_ms, request_id)


class StoreTest(parameterized.TestCase, databases.WithDatabases):

  def store(self, kind):
    self.place = self.databases.place(kind)
    store = EventStore(self.place)
    self.addCleanup(store.close)
    return store

  @parameterized.parameters(*databases.KINDS)
  def test_an_event_counts_once_and_the_first_stays(self, kind):
    store = self.store(kind)
    first, other = event('k'), event('k', item='b')
    self.assertEqual(store.write([[first, event('l'), first]]), [Written(2, 1)])
    self.assertEqual(store.write([[first], [other], [event('m'), other]]),
                     [Written(0, 1), Written(0, 0, ('k',)), Written(1, 0, ('k',))])
    self.assertEqual(store.write([[event('n')], [event('n', item='b')]]),
                     [Written(1), Written(0, 0, ('n',))])
    self.assertEqual(store.write([[]]), [Written()])
    self.assertCountEqual(store.history('u'), [first, *map(event, 'lmn')])

  @parameterized.parameters(*databases.KINDS)
  def test_a_history_is_in_the_order_of_times_and_of_a_user(self, kind):
    store = self.store(kind)
    rows = [event('1', item='c', time_ms=30), event('2', item='a', time_ms=10),
            event('3', item='x', time_ms=20, type='view'), event('4', item='b', time_ms=10),
            event('5', user="u'; --", item='\U0001f3d5 "\'%\u202e')]
    store.write([rows])
    self.assertEqual([e.item for e in store.history('u')], ['a', 'b', 'c'])
    self.assertEqual([e.item for e in store.history('u', ('view', 'purchase'))], list('abxc'))
    self.assertEqual(store.history("u'; --"), [rows[4]])
    self.assertEqual([e.key for e in store.export(('purchase',))], ['2', '4', '1', '5'])
    self.assertEqual((store.forget('v', '1'), store.forget('u', '1'), store.forget('u')), (0, 1, 3))
    self.assertEqual(list(store.export(events_lib.TYPES)), [rows[4]])

  @parameterized.parameters(*databases.KINDS)
  def test_events_of_one_time_or_of_now_are_in_the_order_of_their_coming(self, kind):
    store, now = self.store(kind), 1_700_000_000
    items = [f'i{n}' for n in range(40)]
    keys = random.Random(3).sample(range(1000), 40)
    same = [event(f'{key}', 'same', item) for key, item in zip(keys, items)]
    of_now = [event(f'n{key}', 'now', item, time_ms=events_lib.NOW)
              for key, item in zip(keys, items)]
    with mock.patch.object(time, 'time', lambda: now):
      store.write([same, of_now])
    self.assertEqual([e.item for e in store.history('same')], items)
    self.assertEqual([e.item for e in store.history('now')], items)
    self.assertEqual(store.history('now')[0].time_ms, 1000 * now)

  @parameterized.parameters(*databases.KINDS)
  def test_an_event_of_now_comes_after_one_of_the_same_request_by_a_clock_ahead(self, kind):
    store, now = self.store(kind), 1_700_000_000
    with mock.patch.object(time, 'time', lambda: now):
      store.write([[event('a', 'new', 'ahead', time_ms=1000 * now + 5000),
                    event('b', 'new', 'now', time_ms=events_lib.NOW)]])
    self.assertEqual([e.item for e in store.history('new')], ['ahead', 'now'])

  @parameterized.parameters(*databases.KINDS)
  def test_a_clock_that_is_set_back_does_not_turn_the_order_round(self, kind):
    store, far = self.store(kind), 10**14  # far: in the year 5138
    store.write([[event('far', item='far', time_ms=far), event('told', item='told')]])
    for key, seconds in (('b', 5000), ('d', 1400), ('c', 5001), ('a', 1000)):
      with mock.patch.object(time, 'time', lambda seconds=seconds: seconds):
        other = EventStore(self.place)  # as another process, or this one after a kill
        other.write([[event(key, item=key, time_ms=events_lib.NOW)]])
        other.close()
    self.assertEqual([(e.item, e.time_ms) for e in store.history('u')],
                     [('told', 1000), ('b', 5_000_000), ('d', 5_000_001), ('c', 5_001_000),
                      ('a', 5_001_001), ('far', far)])

  def test_a_writer_that_stands_still_does_not_keep_others_from_writing(self):
    stopped, other = self.store('postgresql'), EventStore(self.place)
    self.addCleanup(other.close)
    is_locked, found, with_times = threading.Event(), [], stopped._with_times

    def stand_still(*given):
      is_locked.set()
      time.sleep(4)
      return with_times(*given)
    with mock.patch.object(events_lib, 'STOPPED_SECONDS', 1), \
        mock.patch.object(stopped, '_with_times', stand_still):
      thread = threading.Thread(target=lambda: found.extend(stopped.write([[event('a')]])))
      thread.start()
      self.assertTrue(is_locked.wait(30))
      begun = time.monotonic()
      self.assertEqual([one.accepted for one in other.write([[event('b')]])], [1])
      self.assertLess(time.monotonic() - begun, 3)
      thread.join()
    self.assertIsInstance(found[0], events_lib.StoreUnavailable)
    self.assertEqual([one.accepted for one in stopped.write([[event('a')]])], [1])

  @parameterized.parameters(*databases.KINDS)
  def test_many_writers_of_the_same_events(self, kind):
    """Four stores, as of four processes: every event is new for one of them alone."""
    store = self.store(kind)
    rng = random.Random(0)
    keys = [f'k{n}' for n in range(40)] * 4
    rng.shuffle(keys)
    stores = [EventStore(self.place) for _ in range(4)]
    writes = [(stores[n % 4], [event(k) for k in keys[8 * n:8 * n + 8]]) for n in range(20)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      found = list(pool.map(lambda write: write[0].write([write[1]])[0], writes))
    for one in stores:
      one.close()
    self.assertEqual(sum(f.accepted for f in found), 40)
    self.assertEqual(sum(f.duplicates for f in found), 120)
    self.assertCountEqual([e.key for e in store.history('u')], set(keys))

  @parameterized.parameters(*databases.KINDS)
  def test_the_report_counts_as_plain_python_does(self, kind):
    store, rng = self.store(kind), random.Random(1)
    shown = [Shown(f'r{n}', f'u{rng.randrange(9)}', 'ab'[n % 2], n, rng.sample('stuvwxyz', 3))
             for n in range(60)]
    done = [event(f'e{n}', f'u{rng.randrange(9)}', rng.choice('stuvwxyz'),
                  rng.choice(('click', 'purchase', 'view')), n, rng.choice(('', f'r{n % 70}')))
            for n in range(150)]
    store.write([shown, done])
    store.forget('u3')
    done = [e for e in done if e.user != 'u3']
    for found in store.report():
      mine = [s for s in shown if s.model == found.model]
      hits = {kind: [s for s in mine if any(
          e.type == kind and e.request_id == s.request_id and e.item in s.items for e in done)]
              for kind in ('click', 'purchase')}
      users = {s.user for s in mine} - {'u3'}
      self.assertEqual(
          found, events_lib.ModelCounts(
              found.model, len(mine), len(users), 3 * len(mine), len(hits['click']),
              len(hits['purchase']), *(len({s.user for s in hit} - {'u3'})
                                       for hit in hits.values())))
      self.assertGreater(found.clicked, 3)
    self.assertEqual([c.model for c in store.report()], ['a', 'b'])

  @parameterized.parameters(*databases.KINDS)
  def test_migrations_make_the_tables_that_the_code_reads(self, kind):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    store = self.store(kind)
    with store.engine.begin() as connection:
      context = MigrationContext.configure(connection)
      self.assertEqual(compare_metadata(context, events_lib.METADATA), [])
      connection.execute(sa.text("update alembic_version set version_num = '9999'"))
    with self.assertRaisesRegex(ConfigError, 'another version of recjax'):
      EventStore(self.place)

  def test_the_file_is_for_its_user_alone(self):
    store = self.store('sqlite')
    store.write([[event('k')]])
    for end in ('', '-wal', '-shm'):
      self.assertEqual(os.stat(self.place + end).st_mode & 0o777, 0o600)

  def test_processes_that_begin_together_make_the_tables_once(self):
    for kind in databases.KINDS:
      with self.subTest(kind), concurrent.futures.ThreadPoolExecutor(4) as pool:
        for store in pool.map(EventStore, [self.databases.place(kind)] * 4):
          self.assertEqual(store.report(), [])
          store.close()

  def test_a_database_that_goes_away_and_comes_back(self):
    store = self.store('sqlite')
    with store.engine.begin() as other:
      other.exec_driver_sql('ALTER TABLE events RENAME TO gone')
    found = store.write([[event('k')], [event('l')]])
    self.assertLen(found, 2)
    for error in found:
      self.assertIsInstance(error, StoreUnavailable)
    with self.assertRaises(StoreUnavailable):
      store.history('u')
    with store.engine.begin() as other:
      other.exec_driver_sql('ALTER TABLE gone RENAME TO events')
    self.assertEqual(store.write([[event('k')]]), [Written(1)])

  def test_connections_that_postgresql_ended_are_made_anew(self):
    store = self.store('postgresql')
    store.write([[event('k')]])
    for _ in range(2):
      other = EventStore(self.place)
      with other.engine.begin() as connection:
        connection.execute(sa.text('select pg_terminate_backend(pid) from pg_stat_activity where '
                                   'pid <> pg_backend_pid() and backend_type = :kind'),
                           {'kind': 'client backend'})
      other.close()
      self.assertEqual(store.history('u'), [event('k')])
    self.assertEqual(store.write([[event('k')], [event('l')]]), [Written(0, 1), Written(1)])

  @parameterized.parameters(
      ('mysql://x/y', 'SQLite file, or'), ('sqlite://', 'SQLite file, or'),
      ('postgresql://u:secret@127.0.0.1:1/x', 'does not answer'), ('x://y:z:q', 'no URL'),
      ('/nonexistent/folder/x.sqlite', 'does not answer'))
  def test_places_that_cannot_be(self, place, words):
    with self.assertRaisesRegex((ConfigError, StoreUnavailable), words) as caught:
      EventStore(place)
    self.assertNotIn('secret', str(caught.exception))


class KillTest(parameterized.TestCase, databases.WithDatabases):

  @parameterized.parameters(('sqlite', 2), ('postgresql', 2), ('sqlite', 12), ('postgresql', 12))
  @long_but(0)
  def test_what_was_acknowledged_is_there_after_kill_9(self, kind, lives):
    place = self.databases.place(kind)
    acknowledged, rng = collections.Counter(), random.Random(lives)
    for life in range(lives):
      with subprocess.Popen([sys.executable, '-c', WRITER, place, str(life)], text=True,
                            stdout=subprocess.PIPE) as process:
        for _ in range(rng.randrange(1, 60)):
          acknowledged[life] = int(process.stdout.readline()) + 1
        time.sleep(rng.random() / 50)  # somewhere within the next write
        process.send_signal(signal.SIGKILL)
        acknowledged[life] += len(process.stdout.read().split())
      self.assertEqual(process.returncode, -signal.SIGKILL)
    store = EventStore(place)
    self.addCleanup(store.close)
    stored = collections.Counter()
    for found in store.export(('view',)):
      stored[tuple(map(int, found.key.split('-')[:2]))] += 1
    self.assertEqual(set(stored.values()), {5})  # a request's events are there together
    for life in range(lives):
      count = sum(key[0] == life for key in stored)
      self.assertIn(count, (acknowledged[life], acknowledged[life] + 1))
    self.assertGreater(sum(acknowledged.values()), lives)


def training(rows, times=None):
  """A data set of items a to z. rows: {user: items}."""
  catalog = dataset.Catalog(tuple('abcdefghijklmnopqrstuvwxyz'), {})
  items, offsets = dataset.flatten([[catalog.index(i) for i in row] for row in rows.values()])
  return dataset.make_dataset('d', catalog, dataset.Interactions(
      tuple(rows), items, offsets, None if times is None else np.array(times)))


class HistoryTest(parameterized.TestCase):

  def merged(self, data, events, user='u'):
    found, unknown = TrainingHistories(data).merge(user, events, data.catalog.find)
    return ''.join(map(data.catalog.id_of, found)), unknown

  def test_events_come_behind_the_training_data(self):
    data = training({'t': 'xy', 'u': 'ab'})
    self.assertEqual(self.merged(data, [event('1', item='c'), event('2', item='!')]),
                     ('abc', ['!']))
    self.assertEqual(self.merged(data, [event('1', item='c')], 'new'), ('c', []))
    self.assertEqual(self.merged(data, [], 'u'), ('ab', []))
    self.assertEqual(TrainingHistories(None).merge('u', [event('1')], data.catalog.find),
                     ([1], []))

  def test_events_that_were_trained_on_come_once(self):
    times = [1_700_000_000, 1_700_000_050, 1_700_000_050]
    data = training({'u': 'aba'}, times)
    events = [event(str(n), item=item, time_ms=1000 * time + 7) for n, (item, time) in enumerate([
        ('b', 1_700_000_050), ('a', 1_700_000_050), ('a', 1_700_000_050), ('b', 1_700_000_051)])]
    self.assertEqual(self.merged(data, events)[0], 'abaab')
    data = training({'u': 'aba'})  # without times, by how the training data end
    self.assertEqual(self.merged(data, events)[0], 'abaab')
    self.assertEqual(self.merged(data, events[3:])[0], 'abab')

  def test_a_split_gives_each_user_one_model_by_the_shares(self):
    split = parse_split('a:0.9,b:0.1', ['b', 'a', 'c'])
    chosen = collections.Counter(split.choose(f'user {n}') for n in range(20_000))
    self.assertEqual(set(chosen), {'a', 'b'})
    self.assertAlmostEqual(chosen['b'] / 20_000, 0.1, delta=0.0075)  # 3.5 standard deviations
    more = Split({'a': 8, 'b': 2})
    moved = collections.Counter((split.choose(f'{n}'), more.choose(f'{n}')) for n in range(5000))
    self.assertEqual(moved['b', 'a'], 0)  # who had b keeps it where b grows
    self.assertIsNone(parse_split('', ['a']))

  @parameterized.parameters('a', 'a:x', 'a:0', 'a:-1', 'd:1', 'a:1,a:1', 'a:inf', 'a:nan')
  def test_splits_that_are_none(self, text):
    with self.assertRaisesRegex(ConfigError, '--split'):
      parse_split(text, ['a', 'b'])


class ExportTest(parameterized.TestCase):

  def run_cli(self, *words):
    out = self.create_tempfile().full_path
    with open(out, 'w') as file, absltest.mock.patch.object(sys, 'argv', ['recjax', *words]), (
        absltest.mock.patch.object(sys, 'stdout', file)):
      cli.main()
    with open(out) as file:
      return file.read()

  @parameterized.parameters('s', 'ms', '')
  def test_the_exported_log_carries_a_data_set_on(self, unit):
    """What `recjax prepare --update` makes of it has the old histories, then the events."""
    folder = self.create_tempdir().full_path
    scale = {'s': 1, 'ms': 1000, '': 0}[unit]
    rows = {'u1': 'abc', 'u2': 'bcd', 'u3': 'cda'}
    times = [(1_600_000_000 + n) * scale for n in range(9)] if unit else None
    data = training(rows, times)
    loading.save_data(data, f'{folder}/old')
    store = EventStore(f'{folder}/events.sqlite')
    base = 1_700_000_000_000
    store.write([[event('1', 'u2', 'a', time_ms=base + HOUR), event('2', 'u9', 'z', time_ms=base),
                  event('3', 'u2', 'e', time_ms=base), event('4', 'u2', 'f', 'view', base),
                  event('5', 'u9', 'new', time_ms=base + 1)]])
    store.close()
    with self.assertRaises(SystemExit):  # a/new does not exist; make it first
      self.run_cli('events', 'export', f'--events={folder}/events.sqlite',
                   f'--data={folder}/old', f'--out={folder}/a/new/log.jsonl')
    told = self.run_cli('events', 'export', f'--events={folder}/events.sqlite',
                        f'--data={folder}/old', f'--out={folder}/log.jsonl')
    self.assertIn(f'9 interactions of {folder}/old and 4 events', told)
    command = told.splitlines()[-1].split()
    self.assertEqual(command[:3], ['recjax', 'prepare', 'table'])
    self.run_cli(*[word.replace('NEW', f'{folder}/new') for word in command[1:]])
    new = loading.load_data(f'{folder}/new')
    self.assertEqual(new.catalog.ids[:26], data.catalog.ids)
    found = {user: [new.catalog.id_of(i) for i in new.interactions.history(row)]
             for row, user in enumerate(new.interactions.users)}
    self.assertEqual(found, {'u1': list('abc'), 'u2': list('bcdea'), 'u3': list('cda'),
                             'u9': ['z', 'new']})
    again = TrainingHistories(new).merge('u2', [
        event('3', 'u2', 'e', time_ms=base), event('1', 'u2', 'a', time_ms=base + HOUR)],
        new.catalog.find)[0]  # a run of the new data, before the same database
    self.assertEqual([new.catalog.id_of(i) for i in again], list('bcdea'))

  def test_the_report_and_its_refusals(self):
    folder = self.create_tempdir().full_path
    place = f'{folder}/events.sqlite'
    with self.assertRaises(SystemExit):
      self.run_cli('events', 'report', f'--events={place}')
    store = EventStore(place)
    self.assertIn('no answer', self.run_cli('events', 'report', f'--events={place}'))
    store.write([[Shown(f'r{n}', f'u{n // 2}', 'm', n, 'ab') for n in range(20)],
                 [event(f'{n}', f'u{n // 2}', 'a', 'click', n, f'r{n}') for n in range(3)]])
    store.close()
    lines = self.run_cli('events', 'report', f'--events={place}').splitlines()
    # Wilson's formula of 3 of 20 and of 2 of 10, computed elsewhere
    self.assertRegex(lines[1], r'^m +20 +10 +15\.00% \[5\.24%, 36\.04%\] +'
                     r'0\.00% \[0\.00%, 16\.11%\] +'
                     r'20\.00% \[5\.67%, 50\.98%\] +0\.00% \[0\.00%, 27\.75%\]$')
    for words in (['--out=x.csv'], ['--out=x.jsonl', '--types=buy']):
      with self.assertRaises(SystemExit):
        self.run_cli('events', 'export', f'--events={place}', *words)
    with self.assertRaises(ConfigError):
      events_cli.parse_types('', '--types')


if __name__ == '__main__':
  absltest.main()
