"""Base tags and interests from a real OpenAI-compatible server, killed twice on the way.

  python -m benchmarks.endpoint --data=data/amazon-scientific --gguf=FILE.gguf --room=DIR
      [--server-python=PATH]     # a Python with llama-cpp-python[server], where this one lacks it
      [--url=http://HOST/v1]     # a server that is running, instead of one of our own
      [--part=tags|interests]    # one of the two alone
      [--tiny]                   # also tune the tiny model on both kinds of base tags

Makes a small shop of the items that most users met, starts llama-cpp-python's server, and puts a
recorder before it that keeps what the server says each answer took. Then:

tags: BETag's stage of base tags with tags.source=api is given a budget that is too small, then
enough, and is killed twice with SIGKILL while it asks; the same with tags.source=keywords. Both
kinds are judged over the same users as BETag judges its base tags; with --tiny by whole runs with
the tiny model, too.
interests: the stages of ETEGRec that ask for interests, killed twice.

Asserted of both: no request is answered twice in the journal, what the journal says an answer took
is what the server said, nothing is answered twice but what was under way at a kill, and a budget is
never passed. --room keeps everything: the same command goes on where it was.
"""
import argparse
import collections
import http.server
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np

from configs import betag_scientific, etegrec_scientific
from recjax import file_io
from recjax.data import loading
from recjax.data.dataset import Catalog, Interactions, flatten, make_dataset
from recjax.data.formats import betag as betag_files
from recjax.evaluation import baselines, compare, metrics, ranking, statistics
from recjax.methods.betag import base_tags, evaluate
from recjax.methods.etegrec import interests
from recjax.retrieval import bm25
from recjax.text import keywords
from recjax.training import workdir as workdir_lib

SAMPLES, TOKENS = {'tags': 2, 'interests': 1}, {'tags': 24, 'interests': 64}
LANES = 2  # requests under way
PRICES = dict(api_price_in=0.15, api_price_out=0.6)
MODEL = 'SmolLM2-135M-Instruct'


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--data', required=True, help='folder of the data set')
  parser.add_argument('--room', required=True, help='folder for everything that is made')
  parser.add_argument('--gguf', default='', help='model file for the server')
  parser.add_argument('--server-python', default=sys.executable)
  parser.add_argument('--url', default='', help='of a server that is running')
  parser.add_argument('--part', choices=('tags', 'interests', ''), default='')
  parser.add_argument('--items', type=int, default=200)
  parser.add_argument('--histories', type=int, default=100, help='users whose interests are asked')
  parser.add_argument('--budget', type=float, default=.0006, help='that is too small')
  parser.add_argument('--timeout', type=float, default=1500.)
  parser.add_argument('--kill-at', type=int, nargs=2, default=(20, 40),
                      help='SIGKILL once the journal holds so many answers')
  parser.add_argument('--tiny', action='store_true')
  parser.add_argument('--port', type=int, default=8137)
  parser.add_argument('--stage', nargs=3, default=(), help=argparse.SUPPRESS)
  args = parser.parse_args()
  room = pathlib.Path(args.room)
  if args.stage:
    return run_stage(args, room, *args.stage)
  make_shops(args, room)
  server = None if args.url else start_server(args, room)
  try:
    url = args.url or f'http://127.0.0.1:{args.port}/v1'
    wait_for(url)
    for part in filter(None, [args.part] if args.part else ['tags', 'interests']):
      (tags if part == 'tags' else history_interests)(args, room, url)
  finally:
    if server:
      server.terminate()
      server.wait()


def make_shops(args, room):
  """room/shop: the most met items and histories over them, without descriptions, which a small
  model reads slowly on a CPU. room/few: some of the longest of these, for interests."""
  if (room / 'few').exists():
    return
  whole = loading.load_data(args.data)
  data, columns = whole.interactions, whole.catalog.columns
  met = np.bincount(data.items, minlength=len(whole.catalog) + 1)[1:]
  kept = np.sort(np.argsort(-met, kind='stable')[:args.items])
  number = np.zeros(len(whole.catalog) + 1, np.int32)
  number[kept + 1] = np.arange(1, len(kept) + 1)
  rows = {user: [int(i) for i in number[data.history(u)] if i] for u, user in enumerate(data.users)}
  rows = {user: row for user, row in rows.items() if len(row) >= 3}

  def save(name, names, rows):
    made = {key: [columns[key][i] for i in kept] for key in names if key in columns}
    items, offsets = flatten(list(rows.values()))
    loading.save_data(make_dataset(name, Catalog(tuple(whole.catalog.ids[i] for i in kept), made),
                                   Interactions(tuple(rows), items, offsets)), room / name)
  save('shop', ('title', 'brand', 'categories'), rows)
  few = sorted(rows, key=lambda user: -len(rows[user]))[args.histories // 5:][:args.histories // 5]
  save('few', ('title', 'categories'), {user: rows[user] for user in rows if user in set(few)})
  print(f'{len(kept)} items, {len(rows):,} users, {sum(map(len, rows.values())):,} interactions')


def start_server(args, room):
  """llama-cpp-python's server with one thread, at a low priority."""
  command = [args.server_python, '-m', 'llama_cpp.server', f'--model={args.gguf}',
             '--host=127.0.0.1', f'--port={args.port}', '--n_threads=1', '--n_threads_batch=1',
             '--n_ctx=4096']
  log = open(room / 'server.log', 'a')  # noqa: SIM115  lives with the process
  return subprocess.Popen(['nice', '-n', '10', *command], stdout=log, stderr=log, cwd=room)


def wait_for(url):
  for _ in range(600):
    try:
      return urllib.request.urlopen(f'{url}/models', timeout=10).read()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
      time.sleep(.5)
  sys.exit(f'{url} does not answer')


class Recorder(http.server.ThreadingHTTPServer):
  """Hands requests on to a server, and keeps a line of each answer, whoever still waits for it."""
  daemon_threads = True

  def __init__(self, url, path, port):
    super().__init__(('127.0.0.1', port), RecorderHandler)
    self.upstream, self.path, self.lock = url, path, threading.Lock()
    self.under_way = 0
    threading.Thread(target=self.serve_forever, daemon=True).start()

  @property
  def url(self):
    return f'http://127.0.0.1:{self.server_port}/v1'

  def rows(self):
    return [row for _, row in file_io.read_rows(self.path)] if self.path.exists() else []

  def handle_error(self, *_):
    pass  # clients that were killed

  def drain(self):
    """Waits until the server has ended what killed clients asked for."""
    while self.under_way:
      time.sleep(.2)


class RecorderHandler(http.server.BaseHTTPRequestHandler):

  def do_POST(self):
    body = self.rfile.read(int(self.headers['Content-Length']))
    with self.server.lock:
      self.server.under_way += 1
    began = time.monotonic()
    try:
      with urllib.request.urlopen(urllib.request.Request(
          self.server.upstream + '/chat/completions', body,
          {'Content-Type': 'application/json'}), timeout=900) as response:
        status, answer = response.status, response.read()
    except urllib.error.HTTPError as error:
      status, answer = error.code, error.read()
    finally:
      with self.server.lock:
        self.server.under_way -= 1
    said = json.loads(answer)
    row = dict(asked=json.loads(body)['messages'][-1]['content'], n=json.loads(body)['n'],
               status=status, usage=said.get('usage'), seconds=round(time.monotonic() - began, 2),
               choices=[c['message']['content'] for c in said.get('choices', ())],
               ended=[c['finish_reason'] for c in said.get('choices', ())])
    with self.server.lock, open(self.server.path, 'a') as f:
      f.write(json.dumps(row, ensure_ascii=False) + '\n')
    self.send_response(status)
    self.send_header('Content-Length', str(len(answer)))
    self.end_headers()
    self.wfile.write(answer)

  def log_message(self, *_):
    pass


def lines_of(path):
  return path.read_bytes().count(b'\n') if path.exists() else 0


def run(command, log, journal, kill_at=0):
  """Runs a command; kill -9 once its journal holds so many lines. -> exit code"""
  with open(log, 'a') as out:
    process = subprocess.Popen(command, stdout=out, stderr=out, env={
        **os.environ, 'JAX_PLATFORMS': 'cpu', 'no_proxy': '127.0.0.1'})
    while kill_at and process.poll() is None and lines_of(journal) < kill_at:
      time.sleep(.05)
    if kill_at and process.poll() is None:
      process.send_signal(signal.SIGKILL)
    return process.wait()


def killed_twice(command, log, journal, recorder, kill_at):
  """Runs a command to its end, with two kills on the way, none where it has got beyond them."""
  kills = []
  for lines in kill_at:
    if lines_of(journal) < lines:
      code = run(command, log, journal, lines)
      assert code == -signal.SIGKILL, f'exit code {code}, see {log}'
      recorder.drain()
      kills.append(lines_of(journal))
  code = run(command, log, journal)
  assert code == 0, f'exit code {code}, see {log}'
  return kills


def check(journal, recorder, part, requests, most_lost):
  """The journal beside what the server said. -> figures"""
  records = [row for _, row in file_io.read_rows(journal)]
  served = [row for row in recorder.rows() if row['status'] == 200]
  texts = collections.Counter()
  for record in records:
    texts[record['hash']] = SAMPLES[part] - record.get('missing', 0)
  done = sum(count == SAMPLES[part] for count in texts.values())
  paid = collections.Counter((r['tokens_in'], r['tokens_out']) for r in records
                             if 'tokens_in' in r)
  said = collections.Counter((r['usage']['prompt_tokens'], r['usage']['completion_tokens'])
                             for r in served)
  lost = said - paid
  assert not paid - said, f'the journal names answers that no server gave: {paid - said}'
  assert lost.total() <= most_lost, f'{lost.total()} answers are not in the journal'
  assert done == len(texts) == requests, (done, len(texts), requests)
  again = collections.Counter(row['asked'] for row in served)
  over = sum(max(0, count - SAMPLES[part]) for count in again.values())
  assert over <= lost.total(), f'{over} answers were asked for again, {lost.total()} were lost'
  cut = sum(row['ended'] == ['length'] for row in served)
  return {
      'requests': requests, 'answers in the journal': len(records),
      'answers of the server': len(served), 'lost at kills': lost.total(), 'asked again': over,
      'tokens in, journal': sum(i * c for (i, _), c in paid.items()),
      'tokens in, server': sum(i * c for (i, _), c in said.items()),
      'tokens out, journal': sum(o * c for (_, o), c in paid.items()),
      'tokens out, server': sum(o * c for (_, o), c in said.items()),
      'tokens lost': f'{sum(i * c for (i, _), c in lost.items())} + '
                     f'{sum(o * c for (_, o), c in lost.items())}',
      'cut at max_tokens': cut, 'seconds of the server': round(sum(r['seconds'] for r in served))}


def show(title, figures):
  print(f'\n{title}')
  for name, value in figures.items():
    print(f'  {name:32} {value}', flush=True)


def price(tokens_in, tokens_out):
  return (tokens_in * PRICES['api_price_in'] + tokens_out * PRICES['api_price_out']) / 1e6


def service(part, url, timeout):
  """Settings of a group that asks that server."""
  return dict(source='api', api_url=url, api_model=MODEL, api_samples=SAMPLES[part],
              api_max_tokens=TOKENS[part], api_timeout=timeout, api_concurrency=LANES,
              api_failure_ratio=.25, **PRICES)


def stage_command(args, part, url, budget):
  return [sys.executable, '-m', 'benchmarks.endpoint', f'--data={args.data}', f'--room={args.room}',
          f'--timeout={args.timeout}', '--stage', part, url, str(budget)]


def run_stage(args, room, part, url, budget):
  """The stages that ask, in a process that can be killed."""
  if part == 'tags':
    cfg = betag_scientific.get_config(f'data={room / "shop"}')
    cfg.tags.update(service(part, url, args.timeout), api_budget=float(budget),
                    on_missing='drop_item')
    stages = ('base-tags', base_tags.stage, base_tags.settings(cfg))
  else:
    cfg = etegrec_scientific.get_config(f'data={room / "few"}')
    cfg.interests.update(service(part, url, args.timeout))
  with workdir_lib.open_work(room / part, cfg.to_dict()) as work:
    dataset = loading.load_data(cfg.data)
    if part == 'tags':
      work.stage(*stages, dataset)
    else:
      interests.make(cfg, work, dataset)


def tags(args, room, url):
  """Base tags by the server under fire, by keywords, and both judged."""
  recorder, shop = Recorder(url, room / 'tags.server.jsonl', args.port + 1), room / 'shop'
  journal, log = room / 'tags/answers/base-tags/responses.jsonl', room / 'tags.log'
  if not (room / 'budget.json').exists():
    code = run(stage_command(args, 'tags', recorder.url, args.budget), log, journal)
    assert code != 0 and 'before passing max_cost' in log.read_text(), f'see {log}'
    usage = [row['usage'] for row in recorder.rows()]
    spent = price(*(sum(u[name] for u in usage) for name in ('prompt_tokens', 'completion_tokens')))
    assert spent <= args.budget, f'{spent} of {args.budget} were spent'
    file_io.write_json(room / 'budget.json', {
        'budget': args.budget, 'spent, by the server': spent, 'answers': lines_of(journal)})
  show('A budget that is too small', file_io.read_json(room / 'budget.json'))
  kills = killed_twice(stage_command(args, 'tags', recorder.url, 5), log, journal, recorder,
                       args.kill_at)
  dataset = loading.load_data(shop)
  columns = dataset.catalog.columns
  distinct = {base_tags.question({key: value[i] for key, value in columns.items()})[-1]['content']
              for i in range(args.items)}
  figures = check(journal, recorder, 'tags', len(distinct), 2 * LANES)
  recorder.shutdown()
  done = json.loads((room / 'tags/stages/01-base-tags/DONE.json').read_text())
  show('Base tags', {'killed at line': kills, **figures, **done['counts'], 'cost': round(price(
      figures['tokens in, journal'], figures['tokens out, journal']), 6)})
  asked = betag_files.read_tags(room / 'tags/stages/01-base-tags/base_tags.json')
  judge(dataset, {'SmolLM2': asked, 'keywords': dict(zip(dataset.catalog.ids, keywords.extract_tags(
      columns, n=betag_scientific.get_config('').tags.max_base_tags)))})
  if args.tiny:
    compare_runs(room, shop)


def judge(dataset, kinds):
  """Kinds of base tags {name: {item: tags}} as BETag judges its base tags, on the test users."""
  cfg = betag_scientific.get_config('').select
  split, n, ranks = base_tags.split_of(dataset), len(dataset.catalog), {}
  for name, made in kinds.items():
    documents = evaluate.documents(dataset, {i: [(t, 1) for t in row] for i, row in made.items()})
    chosen, model = evaluate.choose({'': documents}, split.valid, n, cfg)
    ranks[name] = ranking.rank_cases(bm25.history_scores(model, chosen['reducer']), split.test, n,
                                     mask_history=cfg.mask_history)
  for name, score in baselines.baselines(split.train, n, 0).items():
    ranks[name] = ranking.rank_cases(score, split.test, n, mask_history=cfg.mask_history)
  table = statistics.summarize({name: metrics.per_case(r, (10,)) for name, r in ranks.items()}, 0,
                               pairs=[('SmolLM2', 'keywords')])
  print(f'\n{len(split.test.targets):,} test users, {n} items')
  for name, row in table['rows'].items():
    print(f'  {name:12}', *(f'{key} {v["value"]:.4f} [{v["low"]:.4f}, {v["high"]:.4f}]'
                            for key, v in row.items() if key in ('HR@10', 'NDCG@10')))
  print('  SmolLM2 against keywords:', json.dumps(table['tests']))


def compare_runs(room, shop):
  """Whole BETag runs with the tiny model on both kinds of base tags."""
  for name, changes in (('smollm2', ('source=file', f'file={room}/tags/stages/01-base-tags/'
                                     'base_tags.json')), ('keywords', ('source=keywords',))):
    code = run([sys.executable, '-m', 'recjax.main', f'--workdir={room / name}',
                f'--config=configs/betag_scientific.py:data={shop}',
                '--config.tags.on_missing=drop_item',
                *(f'--config.tags.{change}' for change in changes)], room / f'{name}.log', shop)
    assert code == 0, f'see {room / name}.log'
  print('\n' + compare.markdown_table(compare.compare([room / 'smollm2', room / 'keywords'])))


def history_interests(args, room, url):
  """Interests by the server under fire."""
  recorder = Recorder(url, room / 'interests.server.jsonl', args.port + 2)
  journal = room / 'interests/answers/ask-interests/responses.jsonl'
  cfg = etegrec_scientific.get_config(f'data={room / "few"}')
  histories = {tuple(map(int, h)) for h in interests.all_histories(
      interests.settings(cfg), loading.load_data(cfg.data))} - {()}
  kills = killed_twice(stage_command(args, 'interests', recorder.url, 5), room / 'interests.log',
                       journal, recorder, args.kill_at)
  counts = json.loads((room / 'interests/stages/01-ask-interests/DONE.json').read_text())['counts']
  show('Interests', {'killed at line': kills,
                     **check(journal, recorder, 'interests', len(histories), 2 * LANES), **counts})
  recorder.shutdown()


if __name__ == '__main__':
  main()
