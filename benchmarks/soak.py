"""A server for an hour: every answer beside the same question asked alone, and faults by turns.

  python -m benchmarks.soak WORKDIR [WORKDIR ...] [--seconds=3600] [--database=sqlite|postgresql]

`recjax serve` runs under a supervisor that starts it again when it dies. Clients recommend by
history, buy and ask again as a user, and where a run converses, chat. What a history is recommended
is compared with what `recjax.load` answers to it alone in another process, item by item; fixed
questions (chat, interests, search) with the answer that the server gave when nobody else asked. At
the end the database must hold every event that was answered for, once, and no other.

Thirty faults come by turns, `--faults` says how many: kill -9; a database that is away for 30 s
(SQLite: locked by another program; PostgreSQL: stopped at once); a full disk of the database; slow,
half-closed and deaf clients; reloads of a broken catalog and a damaged run; clocks that jump by an
hour, forth and back. Kills come in the first third alone, so that memory and descriptors are read
over one life of the server. Disks are filled where this program may mount a tmpfs (root), clocks
jump where the package `faketime` is installed; else it says so. Nobody fails but in a fault or the
moments after it, in which the server starts.
"""
import argparse
import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time

import numpy as np

import recjax
from benchmarks.serving import Client, figures
from recjax import recommend as faces
from recjax.data.loading import save_data
from recjax.serving.events import EventStore
from recjax.serving.served_model import TOP_KS
from tests.serving.databases import Databases

AWAY_SECONDS, FULL_SECONDS, GRACE_SECONDS = 30, 15, 15
JUMPS = ('+3600', '-3600', '+0')  # seconds, one after the other
FAKETIME = '/usr/lib/*/faketime/libfaketimeMT.so.1'
OTHER_FAULTS = ('reload', 'database', 'disk', 'clients', 'clock')


@dataclasses.dataclass
class Question:
  """What has one answer. model: a run's name. history: item ids. options: of the body."""
  model: str
  history: tuple
  options: dict

  def body(self):
    return {'model': self.model, 'history': list(self.history), **self.options}


class Tally:
  """What happened. fault: the one that lasts, '' for none. calm_since: when the last was over."""

  def __init__(self):
    self.times = collections.defaultdict(list)  # (kind, whether in peace): seconds
    self.failures = collections.Counter()  # (kind, status or error, whether in peace)
    self.asked, self.wrong = [], []  # (Question, item ids); what was wrong at once
    self.acknowledged, self.fault, self.calm_since = {}, '', 0.0

  @property
  def in_peace(self):
    return not self.fault and time.monotonic() > self.calm_since + GRACE_SECONDS


class Database:
  """A database of events that can be taken away. room: its disk, which can be filled."""

  def __init__(self, kind, room):
    self.kind, self.room = kind, room
    self.servers = Databases()
    if kind == 'sqlite':
      self.place = f'{room}/events.sqlite'
    else:
      shutil.chown(room, 'nobody')
      self.data = ('-D', f'{room}/data')
      self.servers.call('initdb', *self.data, '-U', 'recjax', '-A', 'trust', '-E', 'UTF8',
                        '--no-sync')
      self.start()
      self.place = f'postgresql://recjax@/postgres?host={room}'

  def start(self):
    self.servers.call(
        'pg_ctl', *self.data, '-w', '-l', f'{self.room}/log', '-o',
        f"-c listen_addresses='' -c max_wal_size=64MB -c min_wal_size=32MB -k {self.room}", 'start')

  @contextlib.contextmanager
  def away(self):
    if self.kind == 'sqlite':
      other = sqlite3.connect(self.place, timeout=30, isolation_level=None)
      other.execute('BEGIN EXCLUSIVE')
      yield
      other.execute('ROLLBACK')
      other.close()
    else:
      self.stop()
      yield
      self.start()

  def stop(self):
    self.servers.call('pg_ctl', *self.data, '-w', '-m', 'immediate', 'stop')

  @contextlib.contextmanager
  def full(self):
    ballast = self.room / 'ballast'
    with open(ballast, 'wb') as file, contextlib.suppress(OSError):
      while True:
        file.write(bytes(1 << 16))
        file.flush()
    yield
    ballast.unlink()
    if self.kind == 'postgresql':  # as whoever watches it would, where it gave up
      with contextlib.suppress(AssertionError):
        self.servers.call('pg_ctl', *self.data, 'status')
        return
      self.start()


class Server:
  """`recjax serve`, started again when it dies. lives: how often it was started."""

  def __init__(self, args, room, place, runs):
    self.port, self.lives, self.process, self.ended = args.port, 0, None, False
    self.clock = room / 'clock'
    self.clock.write_text(JUMPS[-1] + '\n')
    fake = sorted(pathlib.Path('/').glob(FAKETIME[1:]))
    self.can_jump = bool(fake)
    self.env = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(room / 'compiled'),
                'JAX_NUM_CPU_DEVICES': '1',  # of the tests' module there are eight
                **({'LD_PRELOAD': str(fake[0]), 'FAKETIME_TIMESTAMP_FILE': str(self.clock),
                    'FAKETIME_CACHE_DURATION': '1', 'FAKETIME_DONT_FAKE_MONOTONIC': '1'}
                   if fake else {})}
    self.command = [sys.executable, '-m', 'recjax', 'serve', *map(str, runs),
                    f'--port={args.port}', f'--events={place}',
                    f'--catalog={room / "items.jsonl"}', *args.more]
    self.log = room / 'server.log'

  def start(self):
    self.lives += 1
    with open(self.log, 'ab') as log:
      self.process = subprocess.Popen(self.command, env=self.env, stdout=log, stderr=log)

  async def supervise(self):
    while not self.ended:
      if self.process is None or self.process.poll() is not None:
        self.start()
      await asyncio.sleep(0.2)

  async def ready(self):
    """Waits until every model answers. -> seconds"""
    begun = time.monotonic()
    while True:
      with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        http = Client(self.port)
        status, _ = await http.ask('GET', '/readyz')
        http.close()
        if status == 200:
          return time.monotonic() - begun
      await asyncio.sleep(0.2)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('workdirs', nargs='+')
  parser.add_argument('--seconds', type=float, default=3600)
  parser.add_argument('--clients', type=int, default=16)
  parser.add_argument('--pause', type=float, default=1.0, help='seconds between requests, about')
  parser.add_argument('--faults', type=int, default=30)
  parser.add_argument('--database', choices=('sqlite', 'postgresql'), default='sqlite')
  parser.add_argument('--port', type=int, default=8771)
  parser.add_argument('--more', nargs='*', default=[], help='more flags of recjax serve')
  args = parser.parse_args()
  with contextlib.ExitStack() as stack:
    room = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(dir='/tmp')))
    os.chmod(room, 0o755)
    runs = []
    for workdir in map(pathlib.Path, args.workdirs):  # copies: one of them will be damaged
      shutil.copytree(workdir, room / 'runs' / workdir.name)
      runs.append(room / 'runs' / workdir.name)
    save_data(faces.load(runs[0])[1], room / 'sound')
    shutil.copy(room / 'sound' / 'items.jsonl', room / 'items.jsonl')
    disk = room / 'disk'
    disk.mkdir()
    can_fill = mount(stack, disk, '64m' if args.database == 'sqlite' else '256m')
    database = Database(args.database, disk)
    if args.database == 'postgresql':
      stack.callback(database.stop)
    server = Server(args, room, database.place, runs)
    asyncio.run(soak(args, room, runs, server, database, can_fill))


def mount(stack, folder, size):
  """A disk of its own at a folder, where this program may. -> whether it is one"""
  done = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)],
                        capture_output=True)
  if done.returncode == 0:
    stack.callback(subprocess.run, ['umount', '-l', str(folder)])
  return done.returncode == 0


async def soak(args, room, runs, server, database, can_fill):
  """The hour, and what came of it."""
  watch = asyncio.create_task(server.supervise())
  print(f'ready after {await server.ready():.0f} s', flush=True)
  http = Client(args.port)
  _, models = await http.ask('GET', '/v1/models')
  opened = {run.name: recjax.load(run) for run in runs}
  data = opened[runs[0].name][1]
  fixed = await fixed_questions(http, models['data'], data)
  http.close()
  tally, begun = Tally(), time.monotonic()
  end = begun + args.seconds
  tasks = [asyncio.create_task(client(n, args, end, list(opened), data, fixed, tally, server))
           for n in range(args.clients)]
  memory = asyncio.create_task(watch_memory(server, end))
  wanted = faults(args.faults, database.kind, can_fill, server.can_jump)
  doing = asyncio.create_task(bring_faults(args, wanted, begun, room, server, database, tally))
  told = begun
  while not all(task.done() for task in tasks):
    await asyncio.wait(tasks, timeout=1)
    if time.monotonic() > told + 60:
      told = time.monotonic()
      print(f'{told - begun:5.0f} s of {args.seconds:.0f}: {len(tally.asked):,} answers, '
            f'{len(tally.acknowledged):,} events, life {server.lives}', flush=True)
  for task in tasks:
    task.result()
  readings, recoveries = await memory, await doing
  server.ended = True
  await watch
  server.process.send_signal(signal.SIGTERM)
  print(f'SIGTERM: exit code {server.process.wait(60)}; the server was started {server.lives} '
        'times')
  report(tally, recoveries, readings)
  compare_answers(tally, opened)
  compare_events(tally, database.place)


async def fixed_questions(http, models, data):
  """[(kind, request, answer)] of questions that nobody else disturbs, asked twice."""
  rng, ids = random.Random(7), list(data.catalog.ids)
  words = sorted({word for title in data.catalog.columns['title'][:200]
                  for word in title.split() if word.isalpha() and len(word) > 3})
  asks = [('interests', ('POST', '/v1/interests', {'history': rng.sample(ids, 8)}))
          for _ in range(8)]
  asks += [('search', ('GET', f'/shop/items?q={rng.choice(words)}&limit=24')) for _ in range(8)]
  for model in models:
    for n in range(8 if model['converses'] else 0):
      asks.append(('chat', ('POST', '/v1/chat/completions', {
          'model': model['id'], 'min_items': 1, 'seed': n, 'temperature': 0 if n % 2 else 0.8,
          'history': rng.sample(ids, 5),
          'messages': [{'role': 'user', 'content': 'Please recommend 3 items.'}]})))
  found = []
  for kind, request in asks:
    answers = [told(kind, await http.ask(*request)) for _ in range(2)]
    if answers[0] != answers[1]:
      raise SystemExit(f'asked twice alone, {request} has two answers: {answers}')
    found.append((kind, request, answers[0]))
  return found


def told(kind, answer):
  """What of an answer does not change from request to request."""
  status, body = answer
  if status != 200:
    raise SystemExit(f'{kind}: {status} {body}')
  if kind == 'chat':
    return [body['choices'][0]['message']['content'], [item['id'] for item in body['items']]]
  if kind == 'search':
    return [item['id'] for item in body['items']]
  return body


async def client(number, args, end, names, data, fixed, tally, server):
  """One person's requests. A user that the clock's jumps have touched is left at a new life."""
  rng, http = random.Random(number), Client(args.port)
  ids = list(data.catalog.ids)
  users = [''] if not hasattr(data, 'interactions') else list(data.interactions.users)
  user, bought, life = '', [], 0

  async def ask(kind, *request):
    """-> body of a 200, or None; other answers are counted"""
    begun, peaceful = time.perf_counter(), tally.in_peace
    try:
      async with asyncio.timeout(120):
        status, body = await http.ask(*request)
    except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
      http.close()
      status, body = type(error).__name__, None
    peaceful = peaceful and tally.in_peace
    if status == 200:
      tally.times[kind, peaceful].append(time.perf_counter() - begun)
      return body
    tally.failures[kind, status, peaceful] += 1
    await asyncio.sleep(0.5)
    return None
  while time.monotonic() < end:
    if not user or life != server.lives:
      life = server.lives
      seen = users[number * 7 % len(users)] if number % 2 and life == 1 else ''
      user = seen or f'soak {number} {life}'
      start = tuple(faces.history_of(data, seen)) if seen else ()
      bought = []
    draw, model = rng.random(), rng.choice(names)
    if draw < 0.45:
      history = tuple(rng.sample(ids, rng.randint(1, 30)))
      options = {'k': rng.choice((5, 10, 20)), **rng.choice((
          {}, {'allow': rng.sample(ids, 40)}, {'block': rng.sample(ids, 20)}))}
      question = Question(model, history, options)
      body = await ask(f'recommend {model}', 'POST', '/v1/recommend', question.body())
      if body:
        tally.asked.append((question, [item['id'] for item in body['items']]))
    elif draw < 0.75:
      item = rng.choice(ids)
      key = f'{user}-{len(bought)}'
      event = {'user': user, 'item': item, 'type': 'purchase', 'key': key}
      begun, calm = time.perf_counter(), tally.in_peace
      while not (body := await ask('event', 'POST', '/v1/events', event)):
        if time.monotonic() > end + 120:
          return
      bought.append(item)
      tally.acknowledged[key] = item
      body = await ask(f'by user {model}', 'POST', '/v1/recommend',
                       {'user': user, 'model': model})
      if body:
        found = [item['id'] for item in body['items']]
        if calm and tally.in_peace:
          tally.times[f'bought to answered {model}', True].append(time.perf_counter() - begun)
        if set(found) & set(bought):
          tally.wrong.append(('what was bought', user, found))
        tally.asked.append((Question(model, (*start, *bought), {'k': 10}), found))
    else:
      kind, request, answer = rng.choice(fixed)
      body = await ask(kind, *request)
      if body and told(kind, (200, body)) != answer:
        tally.wrong.append((kind, request, told(kind, (200, body)), answer))
    await asyncio.sleep(args.pause * 2 * rng.random())
  http.close()


def faults(count, kind, can_fill, can_jump):
  """Which come, in their order."""
  others = [f for f in OTHER_FAULTS if (f != 'disk' or can_fill) and (f != 'clock' or can_jump)]
  if len(others) < len(OTHER_FAULTS):
    print(f'left out on this machine: {", ".join(sorted(set(OTHER_FAULTS) - set(others)))}')
  first = count // 3
  order = ['kill' if n % 2 == 0 else others[n // 2 % len(others)] for n in range(first)]
  return order + [others[n % len(others)] for n in range(count - first)]


async def bring_faults(args, wanted, begun, room, server, database, tally):
  """Brings one fault after another. -> [(name, seconds until the server was ready again, what it
  saw, when it was over, in which life)]"""
  seen = []
  for number, name in enumerate(wanted):
    wait = begun + args.seconds * (number + 0.5) / (len(wanted) + 1) - time.monotonic()
    await asyncio.sleep(max(0, wait))
    tally.fault = name
    note = await FAULTS[name](args, room, server, database)
    over = time.monotonic()
    await server.ready()
    tally.fault, tally.calm_since = '', time.monotonic()
    seen.append((name, tally.calm_since - over, note, tally.calm_since, server.lives))
    print(f'  fault {number + 1}, {name}, after {(over - begun) / 60:.1f} min: {note}; ready '
          f'{tally.calm_since - over:.1f} s after; {figures(server.process.pid)[0]:.0f} MiB',
          flush=True)
  return seen


async def kill(args, room, server, database):
  server.process.send_signal(signal.SIGKILL)
  server.process.wait()
  return 'killed'


async def database_away(args, room, server, database):
  with database.away():
    await asyncio.sleep(AWAY_SECONDS)
  return f'away for {AWAY_SECONDS} s'


async def disk_full(args, room, server, database):
  with database.full():
    await asyncio.sleep(FULL_SECONDS)
  return f'full for {FULL_SECONDS} s'


async def bad_clients(args, room, server, database):
  """Clients that send a byte a second, that end their side and still listen, and that do not."""
  head = 'POST /v1/recommend HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n'
  body = json.dumps({'history': ['P0001'], 'k': 5})
  whole = f'{head}Content-Length: {len(body)}\r\n\r\n{body}'.encode()
  slow = [socket.create_connection(('127.0.0.1', args.port)) for _ in range(40)]
  deaf = [socket.create_connection(('127.0.0.1', args.port)) for _ in range(10)]
  for one in deaf:  # ask much, and never read
    one.setblocking(False)
    with contextlib.suppress(OSError):
      for _ in range(200):
        one.send(whole)
  answered = 0
  for second in range(20):
    for one in slow:
      with contextlib.suppress(OSError):
        one.send(whole[second:second + 1])
    reader, writer = await asyncio.open_connection('127.0.0.1', args.port)
    writer.write(whole)
    writer.write_eof()
    with contextlib.suppress(TimeoutError, OSError):
      answered += len(await asyncio.wait_for(reader.read(), 5)) > 0
    writer.close()
    await asyncio.sleep(1)
  for one in (*slow, *deaf):
    one.close()
  return f'40 slow, 10 deaf, 20 half-closed ({answered} of them answered)'


async def broken_reloads(args, room, server, database):
  """Reloads of what is broken must be refused, and of what is whole taken."""
  http, statuses = Client(args.port), []
  items = room / 'items.jsonl'
  sound = (room / 'sound' / 'items.jsonl').read_bytes()
  for content in (sound[:len(sound) // 2], b'{}\n', b'\xff\xfe', sound):
    items.write_bytes(content)
    statuses.append((await http.ask('POST', '/v1/catalog/reload'))[0])
  run = min((room / 'runs').iterdir(), key=lambda run: sum(
      file.stat().st_size for file in run.rglob('*') if file.is_file()))
  largest = max((file for file in run.rglob('*') if file.is_file() and 'stages' in str(file)),
                key=lambda file: file.stat().st_size)
  whole = largest.read_bytes()
  largest.write_bytes(whole[:len(whole) // 2])
  statuses.append((await http.ask('POST', f'/v1/models/reload?model={run.name}'))[0])
  largest.write_bytes(whole)
  statuses.append((await http.ask('POST', f'/v1/models/reload?model={run.name}'))[0])
  http.close()
  return f'catalogs, then a damaged and a whole run: {statuses}'


async def clock_jumps(args, room, server, database):
  for jump in JUMPS:
    server.clock.write_text(f'{jump}\n')
    await asyncio.sleep(15 if jump != JUMPS[-1] else 2)
  return f'{", ".join(JUMPS)} s'


FAULTS = {'kill': kill, 'database': database_away, 'disk': disk_full, 'clients': bad_clients,
          'reload': broken_reloads, 'clock': clock_jumps}


async def watch_memory(server, end):
  """[(time, life, MiB, descriptors)], every five seconds."""
  found = []
  while time.monotonic() < end:
    with contextlib.suppress(OSError):
      found.append((time.monotonic(), server.lives, *figures(server.process.pid)))
    await asyncio.sleep(5)
  return found


def report(tally, recoveries, readings):
  """Prints times, failures, and memory over the last life of the server."""
  for kind in sorted({kind for kind, _ in tally.times}):
    for peaceful in (True, False):
      if times := tally.times.get((kind, peaceful)):
        p50, p99 = np.percentile(np.array(times) * 1e3, (50, 99))
        print(f'  {kind:32} {"in peace" if peaceful else "in faults":9} {len(times):7,}  '
              f'p50 {p50:7.1f} ms  p99 {p99:8.1f} ms  {p99 / p50:5.1f}x')
  for (kind, status, peaceful), count in sorted(tally.failures.items(), key=str):
    print(f'  failed {"IN PEACE" if peaceful else "in faults"}: {kind}: {status}, {count:,} times')
  for name in dict.fromkeys(name for name, *_ in recoveries):
    seconds = [s for n, s, *_ in recoveries if n == name]
    print(f'  {name}: {len(seconds)} times, ready again after {max(seconds):.1f} s at most')
  begun = readings[0][0]
  print('  memory, MiB by minutes:', ', '.join(
      f'{(t - begun) / 60:.0f}: {mib:.0f}' for t, _, mib, _ in readings[::24]))
  life = readings[-1][1]
  last = [reading for reading in readings if reading[1] == life]
  # A reload keeps the model before it for a roll-back: memory is as it stays after the first one.
  reloaded = min((when for name, *_, when, of in recoveries if (name, of) == ('reload', life)),
                 default=0)
  last = [(t, mib, files) for t, _, mib, files in last[len(last) // 10:] if t > reloaded]
  t, mib, files = map(np.array, zip(*last))
  slope = np.polyfit(t - t[0], mib, 1)[0] * (t[-1] - t[0])
  half = len(mib) // 2
  print(f'  memory over the last life, {t[-1] - t[0]:.0f} s from its first tenth and reload on: '
        f'{mib[0]:.0f} MiB to {mib[-1]:.0f}, slope {slope / mib.mean():+.2%} over all, '
        f'{np.polyfit(t[half:], mib[half:], 1)[0] * (t[-1] - t[half]) / mib.mean():+.2%} over the '
        f'second half; descriptors {files[0]} to {files[-1]}, {files.max()} at most')


def compare_answers(tally, opened):
  """Every answer beside what the run recommends alone."""
  unequal, alone = [], {}
  for question, found in tally.asked:
    key = json.dumps(question.body(), sort_keys=True)
    if key not in alone:
      recommend, data = opened[question.model]
      allow = set(question.options.get('allow', data.catalog.ids))
      allowed = sorted(allow - set(question.options.get('block', ())))
      k = question.options['k']
      count = next(top_k for top_k in TOP_KS if top_k >= k)  # as many as the server looks for
      ids, _ = recommend([list(question.history)], count, True, allowed)
      alone[key] = list(ids[0])[:k]
    if found != alone[key]:
      unequal.append((question.model, question.body(), found, alone[key]))
  print(f'answers: {len(tally.asked):,} recommendations, {len(alone):,} different questions; '
        f'other than alone: {len(unequal)}', *unequal[:3], sep='\n    ')
  print(f'wrong at once: {len(tally.wrong)}', *tally.wrong[:3], sep='\n    ')


def compare_events(tally, place):
  """The database beside what was answered for."""
  store = EventStore(place)
  times, stored = [], collections.Counter()
  for event in store.export(('purchase',)):
    stored[event.key] += 1
    times.append(event.time_ms / 1000)
  store.close()
  lost = set(tally.acknowledged) - set(stored)
  twice = [key for key, count in stored.items() if count > 1]
  print(f'events: {len(tally.acknowledged):,} answered for, {len(stored):,} stored, '
        f'{len(lost)} lost, {len(twice)} twice, {len(set(stored) - set(tally.acknowledged))} '
        'stored without an answer (asked when the time was over); their times span '
        f'{(max(times) - min(times)) / 3600:.1f} hours')


if __name__ == '__main__':
  main()
