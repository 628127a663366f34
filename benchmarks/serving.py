"""A server under mixed clients, and what answering together is worth.

  python -m benchmarks.serving WORKDIR [WORKDIR ...] [--seconds=300] [--clients=64]
  python -m benchmarks.serving WORKDIR --part=attack [--seconds=60]
  python -m benchmarks.soak WORKDIR ... [--seconds=3600]      # an hour with faults, another file
  python -m benchmarks.serving [WORKDIR ...] --part=ratio [--items=1000 100000] [--width=64]
  python -m benchmarks.serving WORKDIR --part=before --before=DIR [--workers 1 2] [--asks=2048]

load: starts `recjax serve` and sends recommendations with filters, interests, searches, purchases,
event streams and, where a run converses, chat. Every client has canary items of its own: what it is
answered must be allowed to it alone, exist, and come once; what it bought must be what its session
says, and never in its next answer (`bought to answered`: from the event's sending to that answer's
end; `--events=URL` for another database than a new file). Memory and descriptors of the server are
read after a tenth of the time and at the end.
attack: recommendations of 8 clients in peace, then beside reloads of broken and sound catalogs,
bodies too large, too deep and cut off, heads that never end, unknown routes; by turns.
ratio: the same model, a trained run or a random SASRec, behind two servers, one of which answers
one request at a time; throughput is measured by turns: of the model called with as many as it
answers together or with 1, of its queue, and through HTTP by a process of clients; and whether the
items are equal.
before: this code against that of DIR, a checkout of another version (`git worktree add --detach
DIR REVISION`): `recjax serve` of each, of this one with each number of workers, and an application
of uvicorn with httptools that answers every request with one constant, by turns in one run, of
which a process of its own asks; answers must be equal first. Requests a second, p50 and p99, and
the processor time that the asking process took, in cores.
"""
import argparse
import asyncio
import collections
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import jax
import numpy as np

from recjax import recommend as faces
from recjax.data.loading import save_data


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('workdirs', nargs='*')
  parser.add_argument('--part', choices=('load', 'attack', 'ratio', 'before', 'constant'),
                      default='load')
  parser.add_argument('--seconds', type=float, default=300)
  parser.add_argument('--clients', type=int, default=64)
  parser.add_argument('--pause', type=float, default=0.0, help='seconds between requests, about')
  parser.add_argument('--items', type=int, nargs='+', default=[1000, 100_000])
  parser.add_argument('--width', type=int, default=64)
  parser.add_argument('--layers', type=int, default=2)
  parser.add_argument('--asks', type=int, default=512)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--port', type=int, default=8765)
  parser.add_argument('--events', default='', help='the database of events, for --part=load')
  parser.add_argument('--before', help='a checkout of the version to compare with')
  parser.add_argument('--workers', type=int, nargs='+', default=[1, 2])
  args = parser.parse_args()
  if args.part == 'constant':
    constant(args.port)
  elif args.part == 'before':
    before(args)
  elif args.part == 'ratio':
    kinds = [trained(w) for w in args.workdirs] or [random_model(args, n) for n in args.items]
    with concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context('spawn')) as clients:
      for number, kind in enumerate(kinds):
        ratio(args, args.port + 10 * number, *kind, clients)
  else:
    serve(args, under_load if args.part == 'load' else under_attack)


class Client:
  """HTTP over one connection that stays open. cookie: of the shop's session."""

  def __init__(self, port):
    self.port, self.pipe, self.cookie = port, None, ''

  async def ask(self, method, path, body=None):
    """-> status, JSON or text"""
    if self.pipe is None:
      self.pipe = await asyncio.open_connection('127.0.0.1', self.port, limit=1 << 24)
    reader, writer = self.pipe
    data = b'' if body is None else json.dumps(body).encode()
    head = (f'{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n'
            f'Cookie: {self.cookie}\r\nContent-Length: {len(data)}\r\n\r\n')
    writer.write(head.encode() + data)
    head = (await reader.readuntil(b'\r\n\r\n')).decode('latin1')
    heads = dict(line.lower().split(': ', 1) for line in head.split('\r\n')[1:] if ': ' in line)
    if 'set-cookie' in heads:
      start = head.lower().index('set-cookie: ') + len('set-cookie: ')
      self.cookie = head[start:].split(';')[0]
    if heads.get('transfer-encoding') == 'chunked':
      parts = []
      while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
      await reader.readexactly(2)
      text = b''.join(parts)
    else:
      text = await reader.readexactly(int(heads.get('content-length', 0)))
    status = int(head.split(' ', 2)[1])
    return status, json.loads(text) if 'json' in heads.get('content-type', '') else text.decode()

  def close(self):
    if self.pipe:
      self.pipe[1].close()
    self.pipe = None


class Tally:
  """What happened."""

  def __init__(self):
    self.times, self.statuses = collections.defaultdict(list), collections.Counter()
    self.wrong = []

  def check(self, good, what):
    if not good:
      self.wrong.append(what)


async def one_client(number, port, goods, models, end, pause, tally):
  """Requests of one person until the time is over."""
  rng, http = random.Random(number), Client(port)
  own = goods[number::97][:12]  # canaries: no two clients share them
  talkers = [m['id'] for m in models if m['converses']]
  bought = []
  status, found = await http.ask('GET', '/shop/state')
  user = found['user']

  async def timed(kind, *given):
    begun = time.perf_counter()
    status, found = await http.ask(*given)
    tally.times[kind].append(time.perf_counter() - begun)
    tally.statuses[status] += 1
    return status, found
  if pause:  # people do not come all at once
    await asyncio.sleep(pause * 2 * rng.random())
  while time.monotonic() < end:
    draw = rng.random()
    history = rng.sample(goods, rng.randint(1, 30))
    model = rng.choice(models)['id']
    if draw < 0.45:
      only = rng.random() < 0.5
      body = {'history': history, 'k': rng.choice((5, 10, 20)), 'model': model,
              'block': rng.sample(goods, 5), **({'allow': own} if only else {})}
      status, found = await timed(f'recommend {model}', 'POST', '/v1/recommend', body)
      if status == 200:
        ids = [i['id'] for i in found['items']]
        legal = set(own if only else goods) - set(history) - set(body['block'])
        tally.check(len(set(ids)) == len(ids) and legal.issuperset(ids), ('items', body, ids))
        tally.check(len(ids) == min(body['k'], len(legal)), ('count', body, ids))
    elif draw < 0.6:
      item, begun = rng.choice(own), time.perf_counter()
      status, _ = await timed('event', 'POST', '/v1/events', {
          'user': user, 'item': item, 'type': 'purchase', 'key': f'{user}-{len(bought)}'})
      if status == 200:
        bought.append(item)
        status, found = await timed(f'by user {model}', 'POST', '/v1/recommend',
                                    {'user': user, 'model': model})
        tally.times[f'bought to answered {model}'].append(time.perf_counter() - begun)
        ids = [i['id'] for i in found.get('items', ())]
        tally.check(len(set(ids)) == len(ids) and not set(ids) & set(bought), ('user', ids))
    elif draw < 0.75:
      status, found = await timed('history', 'GET', '/shop/history')
      if status == 200:
        tally.check([h['id'] for h in found['history']] == bought[-50:],
                    ('session', bought, found))
    elif draw < 0.85:
      await timed('interests', 'POST', '/v1/interests', {'history': history})
    elif draw < 0.95 or draw >= 0.97 and not talkers:
      await timed('search', 'GET', f'/shop/items?q={rng.choice("abcdefgh")}&limit=24')
    elif draw < 0.97:
      await leave(port, http.cookie)
    else:
      text = f'What would you recommend to client {number}?'
      status, found = await timed('chat', 'POST', '/v1/chat/completions', {
          'model': talkers[0], 'messages': [{'role': 'user', 'content': text}], 'min_items': 1})
      if status == 200:
        ids = [i['id'] for i in found['items']]
        tally.check(ids and len(set(ids)) == len(ids) and set(goods).issuperset(ids), ('chat', ids))
    if pause:
      await asyncio.sleep(pause * 2 * rng.random())
  http.close()


async def leave(port, cookie):
  """Opens an event stream and goes away."""
  reader, writer = await asyncio.open_connection('127.0.0.1', port)
  writer.write(f'GET /shop/events HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\n\r\n'.encode())
  await reader.readline()
  writer.close()


def figures(pid):
  """Resident MiB and open descriptors of a process."""
  pages = int(pathlib.Path(f'/proc/{pid}/statm').read_text().split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE') / 2**20, len(os.listdir(f'/proc/{pid}/fd'))


def serve(args, task):
  """Starts a server, and runs task(args, its process id) when it is ready."""
  begun, catalog = time.monotonic(), pathlib.Path(tempfile.mkdtemp()) / 'items.jsonl'
  more = [f'--events={args.events or catalog.parent / "events.sqlite"}']
  if args.part == 'attack':
    save_data(faces.load(args.workdirs[0])[1], catalog.parent / 'sound')
    shutil.copy(catalog.parent / 'sound' / 'items.jsonl', catalog)
    args.catalog, more = catalog, [*more, f'--catalog={catalog}']
  server = subprocess.Popen([sys.executable, '-m', 'recjax', 'serve', *args.workdirs, *more,
                             f'--port={args.port}'])
  try:
    first = await_status(f'http://127.0.0.1:{args.port}/', begun, server)
    ready = await_status(f'http://127.0.0.1:{args.port}/readyz', begun, server)
    print(f'first page after {first:.1f} s, every model compiled after {ready:.1f} s')
    asyncio.run(task(args, server.pid))
    server.send_signal(signal.SIGTERM)
    print(f'SIGTERM: exit code {server.wait(60)}')
  finally:
    server.kill()


def await_status(url, begun, server):
  """Seconds until a page answers 200. Leaves where the server ended."""
  while True:
    if server.poll() is not None:
      raise SystemExit(f'the server ended with {server.returncode}; its message stands above')
    try:
      with urllib.request.urlopen(url, timeout=5):
        return time.monotonic() - begun
    except (urllib.error.URLError, OSError):
      time.sleep(0.1)


async def under_load(args, pid):
  """Clients for the given time; prints what they saw."""
  http = Client(args.port)
  _, found = await http.ask('GET', '/shop/items?limit=100')
  goods = [i['id'] for i in found['items']]
  while len(goods) < found['total']:
    _, more = await http.ask('GET', f'/shop/items?limit=100&offset={len(goods)}')
    goods += [i['id'] for i in more['items']]
  goods.sort()
  _, models = await http.ask('GET', '/v1/models')
  tally, end = Tally(), time.monotonic() + args.seconds
  clients = [asyncio.create_task(one_client(n, args.port, goods, models['data'], end, args.pause,
                                            tally)) for n in range(args.clients)]
  await asyncio.sleep(args.seconds / 10)
  before = figures(pid)
  await asyncio.sleep(max(0, end - time.monotonic() - args.seconds / 50))
  after = figures(pid)
  await asyncio.gather(*clients)
  count = sum(tally.statuses.values())
  print(f'{args.clients} clients, {args.seconds:g} s, {count:,} requests, '
        f'{count / args.seconds:.0f} a second; statuses '
        + ', '.join(f'{s}: {n:,}' for s, n in sorted(tally.statuses.items())))
  print(f'wrong answers: {len(tally.wrong)}', *tally.wrong[:2])
  for kind, times in sorted(tally.times.items()):
    times = np.array(times) * 1e3
    p50, p99 = np.percentile(times, (50, 99))
    print(f'  {kind:24} {len(times):8,}  p50 {p50:7.1f} ms  p99 {p99:7.1f} ms')
  for name, a, b in zip(('MiB', 'descriptors'), before, after):
    print(f'  {name}: {a:.0f} after a tenth of the time, {b:.0f} at the end, {b / a - 1:+.1%}')


async def under_attack(args, pid):
  """Peace and attack by turns; prints what recommendations took in each."""
  times, statuses = collections.defaultdict(list), collections.defaultdict(collections.Counter)
  before = figures(pid)

  async def client(number, turn, end):
    rng, http = random.Random(number), Client(args.port)
    while time.monotonic() < end:
      begun = time.perf_counter()
      status, _ = await http.ask('POST', '/v1/recommend', {'history': [
          f'P{rng.randint(1, 999):04}' for _ in range(10)]})
      times[turn].append(time.perf_counter() - begun)
      statuses[turn][status] += 1
      await asyncio.sleep(0.1 * rng.random())
    http.close()
  rounds = 4
  for _ in range(rounds):
    for turn in ('peace', 'attack'):
      end = time.monotonic() + args.seconds / rounds / 2
      tasks = [client(n, turn, end) for n in range(8)]
      if turn == 'attack':
        tasks += [attacker(args, end, statuses['attacks'], n) for n in range(4)]
      await asyncio.gather(*tasks)
  for turn, each in times.items():
    p50, p99 = np.percentile(np.array(each) * 1e3, (50, 99))
    print(f'{turn}: {len(each):,} recommendations, p50 {p50:.1f} ms, p99 {p99:.1f} ms')
  for turn, each in statuses.items():
    print(f'  {turn}: ' + ', '.join(f'{s}: {n:,}' for s, n in sorted(each.items())))
  after = figures(pid)
  print(f'{before[0]:.0f} MiB, {before[1]} descriptors before, {after[0]:.0f} and {after[1]} after')


async def attacker(args, end, statuses, number):
  """One thing after another that should not be sent."""
  head = 'POST /v1/recommend HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n'
  sound, step = (args.catalog.parent / 'sound' / 'items.jsonl').read_bytes(), number
  open_ended = []
  while time.monotonic() < end:
    step += 1
    kind = step % 6
    if kind == 0 and number == 0:
      args.catalog.write_bytes(sound if step % 12 else sound[:len(sound) // 2])
      statuses[(await once(args.port, 'POST', '/v1/catalog/reload'))] += 1
    elif kind == 1:
      statuses[await raw(args.port, head + 'Content-Length: 99999999\r\n\r\n')] += 1
    elif kind == 2:
      body = '[' * 500_000
      statuses[await raw(args.port, f'{head}Content-Length: {len(body)}\r\n\r\n{body}')] += 1
    elif kind == 3:
      body = json.dumps({'history': ['x'] * 100_000})
      statuses[await raw(args.port, f'{head}Content-Length: {len(body)}\r\n\r\n{body}')] += 1
    elif kind == 4 and len(open_ended) < 50:
      pipe = await asyncio.open_connection('127.0.0.1', args.port)
      pipe[1].write((head if step % 2 else head + 'Content-Length: 50\r\n\r\n{').encode())
      open_ended.append(pipe[1])
    else:
      statuses[await once(args.port, 'GET', f'/static/../../{step}')] += 1
    await asyncio.sleep(0.02)
  for writer in open_ended:
    writer.close()


async def once(port, method, path):
  """-> status of one request"""
  http = Client(port)
  status, _ = await http.ask(method, path)
  http.close()
  return status


async def raw(port, text):
  """-> status of what is sent as it is"""
  reader, writer = await asyncio.open_connection('127.0.0.1', port)
  writer.write(text.encode())
  line = await reader.readline()
  writer.close()
  return int(line.split()[1])


def random_model(args, n):
  """-> name, make(together) -> ServedModel"""
  from recjax.data.dataset import Catalog
  from recjax.evaluation import ranking
  from recjax.models import seqrec
  from recjax.serving.catalog_snapshot import CatalogVersions
  from recjax.serving.served_model import ServedModel
  from recjax.training import sequential
  catalog = Catalog(tuple(f'i{i}' for i in range(n)), {'title': [f't{i}' for i in range(n)]})
  model = seqrec.Config('sasrec', n, 50, args.width, args.layers, hidden=args.width)
  recommender = ranking.recommender(
      sequential.scorer(model, seqrec.init(model, jax.random.key(0))), catalog)
  catalogs = CatalogVersions(catalog, np.zeros(n, np.int64))
  return (f'SASRec, {n:,} items, width {args.width}, {args.layers} layers',
          lambda together: ServedModel('m', 'sequential', recommender, catalogs, batched=together))


def trained(workdir):
  """-> name, make(together) -> ServedModel"""
  from recjax.serving import served_model
  return workdir, lambda together: served_model.open_models(
      [workdir], batched=together).popitem()[1]


def ratio(args, port, label, make, clients):
  """Throughput together and one at a time, by turns. clients: pool of a process that asks."""
  from recjax.serving import server
  from recjax.serving.service import RecommendationService, ServerSettings
  sides, running = {}, []
  for number, name in enumerate(('together', 'one at a time')):
    found = make(number == 0)
    found.warm_up()
    service = RecommendationService({'m': found}, ServerSettings(port=port + number))
    web = server.build_server(service, warm_up=False)
    running.append((web, service, threading.Thread(target=web.run, daemon=True)))
    running[-1][-1].start()
    while not web.started:
      time.sleep(0.01)
    sides[name] = found, port + number
  n, ids = len(found.snapshot), found.snapshot.catalog.ids
  rng = random.Random(0)
  asks = [[rng.randrange(n) + 1 for _ in range(rng.randint(1, 30))] for _ in range(args.asks)]
  named = [[ids[i - 1] for i in h] for h in asks]
  clients.submit(over_http, port, named[:8], args.clients).result()  # the process is there
  for way, measure in (
      ('model', lambda model, port: called(model, asks)),
      ('queue', lambda model, port: queued(model, asks, args.clients)),
      ('HTTP', lambda model, port: clients.submit(over_http, port, named, args.clients).result())):
    rates, answers = collections.defaultdict(list), {}
    for _ in range(args.rounds):
      for name, (found, port) in sides.items():
        begun = time.perf_counter()
        answers[name] = measure(found, port)
        rates[name].append(len(asks) / (time.perf_counter() - begun))
    first, second = (answers[name] for name in sides)
    middle = [statistics.median(rates[name]) for name in sides]
    print(f'{label}, {args.clients} clients, {way}: {middle[0]:.0f} a second together, '
          f'{middle[1]:.0f} one at a time, ratio {middle[0] / middle[1]:.1f}; equal items: '
          f'{np.mean([a == b for a, b in zip(first, second)]):.1%}')
  for web, service, thread in running:
    web.should_exit = True
    thread.join()
    service.close()


def called(model, asks):
  """All asks by calls of the model, as many in each as it answers together. -> item indices"""
  from recjax.serving.served_model import RecommendQuery
  full, size, out = np.ones(len(model.snapshot), bool), model.batch_sizes[-1], []
  for start in range(0, len(asks), size):
    found = model.answer([RecommendQuery(h, 10, full) for h in asks[start:start + size]])
    out += [[i for i, _ in row] for row in found]
  return out


def queued(model, asks, clients):
  """All asks through the model's queue, `clients` at a time. -> item indices"""
  from recjax.serving.served_model import RecommendQuery
  full = np.ones(len(model.snapshot), bool)
  with concurrent.futures.ThreadPoolExecutor(clients) as pool:
    return list(pool.map(
        lambda h: [i for i, _ in model.batcher.submit(RecommendQuery(h, 10, full)).result()], asks))


def over_http(port, asks, clients):
  """All asks (item ids) as requests, `clients` at a time. -> item ids"""
  async def every():
    out, left = [None] * len(asks), list(enumerate(asks))

    async def one():
      http = Client(port)
      while left:
        at, history = left.pop()
        _, found = await http.ask('POST', '/v1/recommend', {
            'history': history, 'exclude_seen': False})
        out[at] = [i['id'] for i in found['items']]
      http.close()
    await asyncio.gather(*(one() for _ in range(clients)))
    return out
  return asyncio.run(every())


def before(args):
  """Two versions, a process each or several, by turns."""
  own = pathlib.Path(__file__).resolve().parents[1]
  serve = ['-m', 'recjax', 'serve', *args.workdirs, '--events=none', '--no-shop']
  sides = {'before': (args.before, serve)}
  for count in args.workers:
    more = [f'--workers={count}'] if count > 1 else []
    sides[f'now, {count} worker' + 's' * (count > 1)] = own, [*serve, *more]
  sides['a constant'] = own, [__file__, '--part=constant']
  servers, ports = [], {}
  try:
    for number, (name, (root, words)) in enumerate(sides.items()):
      ports[name] = args.port + number
      servers.append(subprocess.Popen(
          [sys.executable, *words, f'--port={ports[name]}'], cwd=root,
          stdout=subprocess.DEVNULL, env={**os.environ, 'PYTHONPATH': str(root)}))
      await_status(f'http://127.0.0.1:{ports[name]}/readyz', time.monotonic(), servers[-1])
    time.sleep(max(args.workers))  # the other workers of a server are ready soon after the first
    with concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context('spawn')) as pool:
      compare(args, ports, lambda *given: pool.submit(asked, *given).result())
  finally:
    for server in servers:
      server.terminate()
    for server in servers:
      server.wait(60)


def compare(args, ports, ask):
  """Prints what each side did. ports: by name. ask: as `asked`, in a process of its own."""
  dataset = faces.load(args.workdirs[0])[1]
  rng = random.Random(0)
  bodies = [json.dumps({'history': rng.sample(dataset.catalog.ids, rng.randint(1, 30))}).encode()
            for _ in range(args.asks)]
  answers = {name: [json.loads(answer) for answer in ask(port, bodies[:256], args.clients)[0]]
             for name, port in ports.items() if name != 'a constant'}
  scores = {name: [[item.pop('score') for item in answer['items']] for answer in found]
            for name, found in answers.items()}
  for name, found in answers.items():
    assert found == answers['before'], f'{name} answers otherwise'
    np.testing.assert_allclose(scores[name], scores['before'], rtol=1e-4, atol=1e-4)
  print(f'{len(found)} answers equal on all sides')
  for clients in (args.clients, 1):
    some = bodies if clients > 1 else bodies[:len(bodies) // 4]
    rates, times, cores = (collections.defaultdict(list) for _ in range(3))
    for turn in range(args.rounds + 1):
      for name, port in ports.items():
        _, seconds, wall, used = ask(port, some, clients)
        if turn:  # the first one warms up
          rates[name].append(len(some) / wall)
          times[name].append(np.percentile(seconds, (50, 99)) * 1e3)
          cores[name].append(used / wall)
    base = statistics.median(rates['before'])
    for name in ports:
      rate = statistics.median(rates[name])
      p50, p99 = np.median(times[name], axis=0)
      print(f'{clients} clients, {name}: {rate:.0f} a second ({min(rates[name]):.0f} to '
            f'{max(rates[name]):.0f}), {rate / base:.2f}x; p50 {p50:.1f} ms, p99 {p99:.1f} ms, '
            f'{p99 / p50:.1f}x; the asking process {statistics.median(cores[name]):.2f} cores')


class Asking(asyncio.Protocol):
  """One connection that sends the next request when it has an answer; little more than a socket.
  left: (row, request) to send. answers, seconds: by row. done: a future."""

  def __init__(self, left, answers, seconds, done):
    self.left, self.answers, self.seconds, self.done = left, answers, seconds, done
    self.text = b''

  def connection_made(self, transport):
    self.transport = transport
    self.next()

  def next(self):
    if not self.left:
      self.transport.close()
      self.done.set_result(None)
      return
    self.row, request = self.left.pop()
    self.begun = time.perf_counter()
    self.transport.write(request)

  def data_received(self, data):
    self.text += data
    head, end, body = self.text.partition(b'\r\n\r\n')
    if not end:
      return
    length = int(head.lower().partition(b'content-length:')[2].partition(b'\r')[0])
    if len(body) >= length:
      assert head.startswith(b'HTTP/1.1 200'), self.text
      self.seconds[self.row], self.answers[self.row] = time.perf_counter() - self.begun, body
      self.text = b''
      self.next()

  def connection_lost(self, error):
    if not self.done.done():
      self.done.set_exception(error or ConnectionError('closed by the server'))


def asked(port, bodies, clients):
  """All bodies posted, `clients` at a time. -> answers, seconds of each, seconds, of them CPU"""
  import uvloop
  answers, seconds = [b''] * len(bodies), [0.0] * len(bodies)
  head = ('POST /v1/recommend HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n'
          'Content-Length: ')
  left = [(row, f'{head}{len(body)}\r\n\r\n'.encode() + body) for row, body in enumerate(bodies)]

  async def every():
    loop = asyncio.get_running_loop()
    ends = [loop.create_future() for _ in range(clients)]
    for end in ends:
      await loop.create_connection(lambda end=end: Asking(left, answers, seconds, end),
                                   '127.0.0.1', port)
    await asyncio.gather(*ends)
  begun, used = time.perf_counter(), time.process_time()
  uvloop.run(every())
  return answers, seconds, time.perf_counter() - begun, time.process_time() - used


def constant(port):
  """What uvicorn and httptools do when an application does nothing."""
  import uvicorn
  body = json.dumps({'items': [{'id': 'x' * 5, 'title': 't' * 100, 'description': 'd' * 150}] * 10})

  async def app(scope, receive, send):
    while (await receive()).get('more_body'):
      pass
    await send({'type': 'http.response.start', 'status': 200, 'headers': [
        (b'content-type', b'application/json'), (b'content-length', str(len(body)).encode())]})
    await send({'type': 'http.response.body', 'body': body.encode()})
  uvicorn.run(app, port=port, http='httptools', lifespan='off', access_log=False)


if __name__ == '__main__':
  main()
