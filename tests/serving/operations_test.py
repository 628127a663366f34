"""What whoever runs the server sees: logs, health, limits, options, reloads, sockets, the end."""
import argparse
import gc
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import weakref

import httpx
import numpy as np
import yaml
from absl.testing import absltest, parameterized

from recjax import cli
from recjax.cli import serve as serve_cli
from recjax.decoding.prefix_memory import PrefixMemory
from recjax.errors import ConfigError
from recjax.serving import api_keys, server
from recjax.serving.api_keys import ApiKey, KeyRing, TokenBucket
from recjax.serving.service import ServerSettings
from tests.long import long
from tests.serving import app_test, fake_service
from tests.serving.fake_service import LONG, settled

ROOT = pathlib.Path(__file__).parents[2]
SERVER = '''
import signal, sys
from recjax.serving import server
from tests.serving import fake_service
hold = fake_service.Hold()
service = fake_service.service(hold=hold, **eval(sys.argv[1]))
inner = service.recommend
if sys.argv[2:] == ['slow']:
  signal.signal(signal.SIGUSR1, lambda *given: hold.go.set())
else:
  hold.go.set()
for model in service.models.values():
  model.warm_up = lambda: None
server.listen(service)
'''


class KeysTest(parameterized.TestCase):

  def test_a_bucket_gives_its_burst_and_then_its_rate(self):
    now = [0.0]
    bucket = TokenBucket(2.0, 3, lambda: now[0])
    self.assertEqual([bucket.take() for _ in range(4)], [0, 0, 0, 0.5])
    given = 0
    for tick in range(1, 41):
      now[0] = tick / 8  # eight asks a second
      given += not bucket.take()
    self.assertEqual(given, 10)
    now[0] += 100
    self.assertEqual(sum(not bucket.take() for _ in range(9)), 3)

  def test_each_key_has_a_bucket_of_its_own(self):
    path = self.create_tempfile(content='[shop]\nkey = "one"\nrate = 0.001\nburst = 2\n'
                                '[jobs]\nkey_env = "JOBS_KEY"\n').full_path
    with absltest.mock.patch.dict(os.environ, {'JOBS_KEY': 'two'}):
      http = app_test.client(keys=path, api_key='three', rate=0.001, burst=1)
    found = {}
    for secret, count in (('one', 3), ('two', 5), ('three', 2), ('four', 1), ('', 1)):
      answers = [http.get('/v1/models', headers={'X-API-Key': secret}) for _ in range(count)]
      found[secret] = [answer.status_code for answer in answers]
    self.assertEqual(found, {'one': [200, 200, 429], 'two': [200] * 5, 'three': [200, 429],
                             'four': [401], '': [401]})
    answer = http.get('/v1/models', headers={'X-API-Key': 'one'})
    self.assertBetween(int(answer.headers['retry-after']), 900, 1001)
    self.assertEqual(answer.json()['error']['type'], 'rate_limit_error')
    self.assertEqual(http.get('/healthz').status_code, 200)

  def test_everybody_shares_a_bucket_where_no_key_is_asked_for(self):
    http = app_test.client(rate=0.001, burst=2)
    self.assertEqual([http.get('/v1/models').status_code for _ in range(3)], [200, 200, 429])

  @parameterized.parameters(
      ('', 'there is no key'), ('x', 'keys='), ('[a]\n', 'has no key'), ('a = 3', 'is a table'),
      ('[a]\nkey = "k"\nrat = 3', 'is a table'), ('[a]\nkey = "é"', 'has no key'),
      ('[a]\nkey = "k"\nrate = -1', 'rate'), ('[a]\nkey = "k"\nburst = 0', 'burst'),
      ('[a]\nkey = "k"\n[b]\nkey = "k"', 'the same'), ('[a]\nkey_env = "NOT_THERE"', 'has no key'))
  def test_files_of_keys_that_are_none(self, text, words):
    path = self.create_tempfile(content=text).full_path
    with self.assertRaisesRegex(ConfigError, words):
      api_keys.read_keys(path, {})

  def test_a_ring_without_keys_and_with_some(self):
    self.assertEqual(KeyRing().name_of('anything'), '')
    ring = KeyRing((ApiKey('a', 'x'), ApiKey('b', 'y')))
    self.assertEqual([ring.name_of(s) for s in ('x', 'y', 'z', '', 'é')], ['a', 'b', *[None] * 3])


class LogTest(parameterized.TestCase):

  @parameterized.parameters(False, True)
  def test_a_line_for_every_request(self, histories):
    path = f'{self.create_tempdir().full_path}/access.log'
    http = app_test.client(access_log=path, log_histories=histories, api_key='k')
    heads = {'X-API-Key': 'k'}
    answer = http.post('/v1/recommend', json={'user': 'Ann', 'history': ['i3'], 'k': 2},
                       headers=heads)
    http.post('/v1/events', headers=heads,
              json={'user': 'Ann', 'item': 'i5', 'type': 'purchase'})
    http.post('/v1/chat/completions', headers=heads,
              json={'messages': [{'role': 'user', 'content': 'Secret wish'}]})
    http.get('/nowhere', headers=heads)
    http.get('/v1/models')
    text = pathlib.Path(path).read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    self.assertEqual([(line['route'], line['status'], line['key']) for line in lines], [
        ('/v1/recommend', 200, 'default'), ('/v1/events', 200, 'default'),
        ('/v1/chat/completions', 200, 'default'), (None, 404, 'default'), (None, 401, None)])
    first = lines[0]
    self.assertEqual((first['model'], first['items'], lines[1]['events'], lines[2]['model']),
                     ('ring', 2, 1, 'talk'))
    self.assertEqual(first['request_id'], answer.headers['x-request-id'])
    self.assertEqual(first['request_id'], answer.json()['request_id'])
    self.assertLen({line['request_id'] for line in lines}, 5)
    self.assertGreater(first['ms'], 0)
    self.assertRegex(first['time'], r'^\d{4}-\d\d-\d\dT[\d:.]+\+00:00$')
    self.assertEqual('Ann' in text and first.get('history') == ['i3'], histories)
    self.assertNotIn('Secret', text)
    os.rename(path, path + '.1')  # as logrotate does
    http.get('/healthz')
    self.assertLen(pathlib.Path(path).read_text().splitlines(), 1)

  def test_a_place_that_cannot_be_written(self):
    with self.assertRaisesRegex(ConfigError, '--access-log'):
      fake_service.service(access_log='/nonexistent/x.log')


class HealthTest(absltest.TestCase):

  def test_reasons_while_models_compile_fail_and_the_server_ends(self):
    shop = fake_service.service()
    http, ring = app_test.client(shop), shop.models['ring']
    self.assertEqual(http.get('/readyz').json(), {
        'ready': True, 'models': {'ring': True, 'talk': True}, 'reasons': []})
    ring.is_ready = False
    self.assertEqual(self.reasons(http), ['ring: waits to be compiled'])
    go, inner = threading.Event(), ring.answer
    calls = []

    def held(queries):
      calls.append(len(queries))
      if len(calls) == 3:
        go.wait(LONG)
      return inner(queries)
    ring.answer = held
    thread = threading.Thread(target=ring.warm_up)
    thread.start()
    self.assertTrue(settled(lambda: len(calls) == 3))
    reason, = self.reasons(http)
    self.assertRegex(reason, r'^ring: compiles, step 3 of \d+, for \d+ s, about \d+ s left$')
    go.set()
    thread.join(LONG)
    self.assertEqual(http.get('/readyz').status_code, 200)
    ring.is_ready, ring.failure = False, 'ring: broken'
    shop.is_closing = True
    with shop.store.engine.begin() as other:
      other.exec_driver_sql('ALTER TABLE events RENAME TO gone')
    self.assertEqual(self.reasons(http), ['ring: broken', 'the server is ending'])
    self.assertEqual(http.get('/healthz').status_code, 200)

  def test_a_database_that_is_away_is_a_reason(self):
    shop = fake_service.service()
    http = app_test.client(shop)
    shop.store.engine.dispose()
    os.rename(shop.store._folder.name, shop.store._folder.name + '-away')
    self.addCleanup(os.rename, shop.store._folder.name + '-away', shop.store._folder.name)
    self.assertEqual(self.reasons(http), ['the database of events does not answer'])

  def reasons(self, http):
    answer = http.get('/readyz')
    self.assertEqual(answer.status_code, 503)
    return answer.json()['reasons']


class MethodsTest(absltest.TestCase):

  def test_a_405_names_what_the_path_takes(self):
    http = app_test.client()
    for path, want in (('/shop/history', 'DELETE, GET'), ('/v1/recommend', 'POST'),
                       ('/v1/models/ring', 'GET')):
      answer = http.put(path)
      self.assertEqual((answer.status_code, answer.headers['allow']), (405, want))


class ReloadTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.shop = fake_service.service()
    self.http = app_test.client(self.shop)
    self.others = [fake_service.service(reverse=True).models['ring'] for _ in range(2)]
    self.shop.reopen = {'ring': iter(self.others).__next__}

  def first(self):
    return app_test.ids(self.http.post('/v1/recommend', json={'history': ['i9'], 'k': 1}))

  def test_warm_switch_and_roll_back(self):
    self.assertEqual(self.first(), ['i10'])
    self.assertEqual(self.http.post('/v1/models/rollback').status_code, 422)
    opened = self.http.get('/v1/models/ring').json()['created']
    stop, bad = threading.Event(), []

    def asker():
      while not stop.is_set():
        found = self.first()
        if found not in (['i10'], ['i8']):
          bad.append(found)
    threads = [threading.Thread(target=asker) for _ in range(3)]
    for thread in threads:
      thread.start()
    answer = self.http.post('/v1/models/reload?model=ring')
    self.assertEqual(answer.status_code, 200, answer.text)
    self.assertTrue(answer.json()['ready'])
    self.assertGreaterEqual(answer.json()['created'], opened)
    self.assertEqual(self.first(), ['i8'])
    found = self.http.post('/inference', json={'item_lists': [['i9']], 'k': 1}).json()
    self.assertEqual(found, {'inference': [['i8']]})
    for want in ('i10', 'i8', 'i10'):
      self.assertEqual(self.http.post('/v1/models/rollback').status_code, 200)
      self.assertEqual(self.first(), [want])
    stop.set()
    for thread in threads:
      thread.join(LONG)
    self.assertEqual(bad, [])
    self.assertEqual(self.http.post('/v1/models/reload?model=nix').status_code, 404)
    self.assertEqual(self.http.post('/v1/models/reload?model=talk').status_code, 422)

  def test_a_run_that_does_not_open_or_work_leaves_the_old_one(self):
    def breaks():
      raise ConfigError('the checkpoint is damaged')
    self.others[0].recommender = None
    for reopen, words in ((breaks, 'damaged'), (lambda: self.others[0], 'the old ring goes on'),
                          (lambda: 1 / 0, 'division')):
      self.shop.reopen = {'ring': reopen}
      answer = self.http.post('/v1/models/reload')
      self.assertEqual(answer.status_code, 422, answer.text)
      self.assertIn(words, answer.json()['error']['message'])
      self.assertEqual(self.first(), ['i10'])

  def test_the_model_before_the_last_two_is_gone(self):
    """Its threads end and hold nothing of it, weights and programs included."""
    first = weakref.ref(self.shop.models['ring'])
    threads = [first().batcher._thread]
    for _ in range(2):
      self.assertEqual(self.http.post('/v1/models/reload?model=ring').status_code, 200)
    self.assertTrue(settled(lambda: not any(thread.is_alive() for thread in threads)))
    self.assertTrue(settled(lambda: (gc.collect(), first() is None)[1]))
    self.assertEqual(self.first(), ['i8'])

  def test_a_model_that_is_not_asked_keeps_no_prompts(self):
    """Each opened model has a memory of its own; metrics count what both keep."""
    def keep(model):
      model.prefix_memory = PrefixMemory(100)
      model.prefix_memory.add([(1,), (2,)], [np.zeros(10, np.int8), np.zeros(20, np.int8)])
      return model
    ring = keep(self.shop.models['ring'])
    self.shop = fake_service.service(models={'ring': ring})
    self.shop.reopen = {'ring': lambda: keep(self.others[0])}
    self.shop.metrics.observe_prompt('ring', 2, 5)
    self.http = app_test.client(self.shop)
    gauge = 'recjax_prefix_memory_bytes{model="ring"}'
    self.assertIn(f'{gauge} 30.0', self.http.get('/metrics').text)
    self.assertEqual(self.http.post('/v1/models/reload').status_code, 200)
    self.assertEqual((ring.prefix_memory.num_bytes, self.others[0].prefix_memory.num_bytes),
                     (0, 30))
    text = self.http.get('/metrics').text
    self.assertIn(f'{gauge} 30.0', text)
    self.assertIn('recjax_prompt_tokens_total{model="ring",source="memory"} 2.0', text)
    self.assertIn('recjax_prompt_tokens_total{model="ring",source="read"} 5.0', text)
    self.assertEqual(self.http.post('/v1/models/rollback').status_code, 200)
    self.assertIn(f'{gauge} 0.0', self.http.get('/metrics').text)

  def test_one_reload_at_a_time(self):
    go = threading.Event()
    self.shop.reopen = {'ring': lambda: go.wait(LONG) and self.others[0]}
    found = []
    thread = threading.Thread(target=lambda: found.append(self.http.post('/v1/models/reload')))
    thread.start()
    self.assertTrue(settled(self.shop._reloading.locked))
    self.assertEqual(self.http.post('/v1/models/reload').status_code, 409)
    self.assertEqual(self.first(), ['i10'])
    go.set()
    thread.join(LONG)
    self.assertEqual(found[0].status_code, 200)


class OptionsTest(parameterized.TestCase):

  def resolved(self, words, environment=None, text=''):
    path = self.create_tempfile(content=text).full_path
    parser = argparse.ArgumentParser()
    serve_cli.add_flags(parser)
    args = parser.parse_args([*words, f'--options={path}'])
    return serve_cli.with_options(args, environment or {})

  def test_the_command_line_then_the_environment_then_a_file(self):
    text = ('port = 1\nhost = "a"\nmost = 7\nruns = ["x", "y"]\nshop = false\n'
            'access-log = "-"\ndata = ["d", "e"]\nlog_histories = true\n')
    found = self.resolved(['--port=3'], {'RECJAX_SERVE_PORT': '2', 'RECJAX_SERVE_HOST': 'b',
                                         'RECJAX_SERVE_SPLIT': 'x:1', 'OTHER': '1'}, text)
    self.assertEqual((found.port, found.host, found.most, found.workdirs, found.shop),
                     (3, 'b', 7, ['x', 'y'], False))
    self.assertEqual((found.access_log, found.data, found.log_histories, found.split),
                     ('-', ['d', 'e'], True, 'x:1'))
    found = self.resolved(['w'], {'RECJAX_SERVE_RUNS': 'x y', 'RECJAX_SERVE_SHOP': 'TRUE'}, text)
    self.assertEqual((found.workdirs, found.shop), (['w'], True))
    found = self.resolved([])
    self.assertEqual((found.port, found.workdirs, found.timeout), (8000, (), 60.0))

  @parameterized.parameters(
      ('prot = 3', {}, 'prot'), ('port = "x"', {}, '--port: invalid int'),
      ('port = ', {}, 'options'), ('most = 0', {}, 'at least 1'),
      ('', {'RECJAX_SERVE_PROT': '1'}, 'environment'),
      ('', {'RECJAX_SERVE_SHOP': 'maybe'}, 'true or false'))
  def test_what_is_wrong_names_where_it_stands(self, text, environment, words):
    with self.assertRaisesRegex(ConfigError, words):
      self.resolved([], environment, text)


class ProcessTest(absltest.TestCase):
  """`listen` in a process of its own."""

  def started(self, settings, *words):
    process = subprocess.Popen([sys.executable, '-c', SERVER, repr(settings), *words], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    self.addCleanup(process.stdout.close)
    self.addCleanup(process.stderr.close)
    self.addCleanup(process.kill)
    return process, process.stdout.readline()

  @long
  def test_port_0_and_a_drain_that_is_said(self):
    process, line = self.started({'port': 0}, 'slow')
    url = re.match(r'(http://127\.0\.0\.1:\d+)/ is the shop', line)[1]
    found = []
    thread = threading.Thread(target=lambda: found.append(httpx.post(
        f'{url}/v1/recommend', json={'history': ['i3'], 'k': 1}, timeout=LONG)))
    thread.start()
    def waits():
      text = httpx.get(f'{url}/metrics', timeout=LONG).text
      return float(re.search(r'recjax_running (\d)', text)[1]) == 2  # and the one that asks
    self.assertTrue(settled(waits))
    process.send_signal(signal.SIGTERM)
    self.assertEqual(process.stdout.readline(), 'SIGTERM: no new connections; what is under way '
                     '(1) is answered, for 20 s at most\n')
    process.send_signal(signal.SIGUSR1)
    out, said = process.communicate(timeout=LONG)
    thread.join(LONG)
    self.assertEqual(app_test.ids(found[0]), ['i4'])
    self.assertEqual((process.returncode, out, said),
                     (0, 'ended; all that was asked is answered\n', ''))

  @long
  def test_a_unix_socket(self):
    path = f'{self.create_tempdir().full_path}/s'
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(path)  # as a killed server leaves it
    stale.close()
    process, line = self.started({'unix_socket': path})
    self.assertIn(path, line)
    with httpx.Client(transport=httpx.HTTPTransport(uds=path), timeout=LONG) as http:
      answer = http.post('http://any/v1/recommend', json={'history': ['i3'], 'k': 1})
    self.assertEqual(app_test.ids(answer), ['i4'])
    self.assertEqual(os.stat(path).st_mode & 0o777, 0o660)
    with self.assertRaisesRegex(ConfigError, 'another program listens'):
      server.bind_sockets(ServerSettings(unix_socket=path))
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=LONG)
    self.assertEqual((process.returncode, said), (0, ''))
    self.assertFalse(os.path.exists(path))

  def test_paths_that_are_no_sockets(self):
    path = self.create_tempfile(content='x').full_path
    for place in (path, '/nonexistent/s', f'{self.create_tempdir().full_path}/{"x" * 200}'):
      with self.assertRaisesRegex(ConfigError, '--unix-socket'):
        server.bind_sockets(ServerSettings(unix_socket=place))
    self.assertEqual(pathlib.Path(path).read_text(), 'x')


class LaunchTest(absltest.TestCase):
  """The files of launch/ name what there is."""

  def takes(self, words):
    """Whether `recjax serve` takes them."""
    args = cli.parser().parse_args(words)
    self.assertEqual(args.verb, 'serve')
    return serve_cli.with_options(args, {})

  def test_the_compose_file(self):
    text = (ROOT / 'launch' / 'serve_compose.yaml').read_text()
    services = yaml.safe_load(text)['services']
    self.assertEqual(set(services), {'recjax', 'postgres', 'caddy'})
    options = {name: value for name, value in services['recjax']['environment'].items()
               if name.startswith(serve_cli.ENVIRONMENT)}
    options = {name: re.sub(r'\$\{\w+[^}]*\}', '1', str(value)) for name, value in options.items()}
    args = cli.parser().parse_args(['serve'])
    found = serve_cli.with_options(args, options)
    self.assertRegex(found.events, '^postgresql://')
    self.assertNotEmpty(found.workdirs)
    for service in services.values():
      for volume in service['volumes']:
        if volume.startswith('./'):
          self.assertTrue((ROOT / 'launch' / volume.partition(':')[0]).exists(), volume)

  def test_the_systemd_unit(self):
    text = (ROOT / 'launch' / 'recjax.service').read_text()
    command = re.search(r'^ExecStart=(\S+) (.*)$', text, re.M)
    self.assertTrue(command[1].endswith('/recjax'))
    path = re.search(r'--options=(\S+)', command[2])[1]
    example = ROOT / 'launch' / pathlib.Path(path).name
    found = self.takes(command[2].replace(path, str(example)).split())
    self.assertNotEmpty(found.workdirs)
    seconds = int(re.search(r'^TimeoutStopSec=(\d+)$', text, re.M)[1])
    self.assertGreater(seconds, server.SHUTDOWN_SECONDS)

  def test_the_dashboard_asks_for_metrics_that_there_are(self):
    shop = fake_service.service()
    shop.metrics.observe_batch('recommend', 'ring', 1, 0.01)  # as a model that was opened does
    http = app_test.client(shop)
    http.post('/v1/recommend', json={'history': ['i3'], 'user': 'u'})
    http.post('/v1/events', json={'user': 'u', 'item': 'i5', 'type': 'purchase'})
    http.post('/v1/interests', json={'history': ['i3']})
    http.post('/v1/catalog/reload')
    text = http.get('/metrics').text
    there = set(re.findall(r'^(\w+?)(?:\{.*\})? [\d.e+-]+$', text, re.M))
    dashboard = json.loads((ROOT / 'launch' / 'grafana.json').read_text())
    asked = set()
    for panel in dashboard['panels']:
      for target in panel.get('targets', ()):
        asked |= set(re.findall(r'\b(?:recjax|process)_\w+', target['expr']))
    self.assertGreater(len(asked), 10)
    self.assertContainsSubset(asked, there)


if __name__ == '__main__':
  absltest.main()
