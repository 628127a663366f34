"""Several processes at one port: what they share, how they are watched and ended."""
import collections
import concurrent.futures
import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from unittest import mock

import httpx
import jax
from absl.testing import absltest

from recjax.errors import ConfigError
from recjax.serving import prometheus, server, workers
from recjax.serving.api_keys import SharedTokenBucket
from recjax.serving.http_errors import RequestError
from recjax.serving.service import ServerSettings
from tests.long import long
from tests.serving import app_test, fake_service
from tests.serving.fake_service import LONG, settled

ROOT = pathlib.Path(__file__).parents[2]
SERVER = '''
import contextlib, sys
from recjax.serving import server
from recjax.serving.service import ServerSettings
from tests.serving import fake_service
settings = ServerSettings(shop=False, workers=2, **eval(sys.argv[1]))
server.set_up_log()
with contextlib.ExitStack() as stack:
  sockets = [stack.enter_context(one) for one in server.bind_sockets(settings)]
  server.run_workers(fake_service.worker_service, settings, sockets)
'''


class SharedBucketTest(absltest.TestCase):

  def test_processes_take_out_of_one_bucket(self):
    now, path = [0.0], f'{self.create_tempdir().full_path}/b'
    one, two = (SharedTokenBucket(2.0, 3, path, lambda: now[0]) for _ in range(2))
    self.assertEqual([one.take(), two.take(), one.take()], [0, 0, 0])
    self.assertEqual([two.take(), one.take()], [0.5, 0.5])
    now[0] += 0.5
    self.assertEqual([two.take(), one.take()], [0, 0.5])
    now[0] += 100
    self.assertEqual(sum(not bucket.take() for bucket in [one, two] * 4), 3)


class AmongWorkersTest(absltest.TestCase):
  """Two workers of one process, each at a socket of its own."""

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())  # of a path short enough for sockets
    self.settings = ServerSettings(shop=False, api_key='key', events=f'{folder}/events.sqlite')
    self.folder, self.places, self.services, self.https = folder, [], [], []
    for _ in range(2):
      self.add_worker()

  def add_worker(self):
    """One more, of the next number."""
    place = workers.Worker(len(self.places), self.folder, 'secret')
    service = fake_service.worker_service(self.settings, print, place)
    self.enterContext(at_its_socket(service, place))
    self.places.append(place)
    self.services.append(service)
    self.https.append(app_test.client(service))

  def ask(self, number, method, path, **how):
    return self.https[number].request(method, path, headers={'X-API-Key': 'key'}, **how)

  def first(self, number):
    return app_test.ids(self.ask(number, 'POST', '/v1/recommend',
                                 json={'history': ['i9'], 'k': 1}))

  def test_a_reload_reaches_all_and_rollbacks_are_refused(self):
    answer = self.ask(0, 'POST', '/v1/models/reload?model=ring')
    self.assertEqual(answer.status_code, 200, answer.text)
    self.assertEqual([self.first(number) for number in range(2)], [['i8'], ['i8']])
    for path in ('/v1/models/rollback', '/v1/catalog/rollback'):
      answer = self.ask(0, 'POST', path)
      self.assertEqual(answer.status_code, 422)
      self.assertIn('--workers=1', answer.text)

  def test_a_worker_that_cannot_reload_is_named_and_one_that_is_dead_is_not(self):
    self.services[1].reopen = {}
    answer = self.ask(0, 'POST', '/v1/models/reload')
    self.assertEqual(answer.status_code, 503)
    self.assertIn('worker 1 goes on as it was', answer.text)
    self.assertEqual([self.first(number) for number in range(2)], [['i8'], ['i10']])
    place = self.places[0]
    dead = workers.Worker(7, place.folder, 'secret')
    dead.bind().close()
    self.assertEqual([number for number, *_ in place.ask_others('GET', '/healthz', LONG)], [1])
    with self.assertRaises(RequestError):
      place.spread('/nowhere')

  def test_one_that_cannot_reload_keeps_no_other_from_it(self):
    self.add_worker()
    self.services[1].reopen = {}
    answer = self.ask(0, 'POST', '/v1/models/reload')
    self.assertEqual([self.first(number) for number in range(3)], [['i8'], ['i10'], ['i8']])
    self.assertEqual(answer.status_code, 503)
    self.assertIn('worker 1 goes on as it was (422: ', answer.text)

  def test_metrics_of_all_with_their_numbers(self):
    self.first(0)
    self.first(1)
    self.first(1)
    text = self.ask(0, 'GET', '/metrics').text
    found = dict(re.findall(r'^recjax_requests_total\{method="POST",route="/v1/recommend",'
                            r'status="200",worker="(\d)"\} (\S+)$', text, re.M))
    self.assertEqual(found, {'0': '1.0', '1': '2.0'})
    self.assertEqual(text.count('# TYPE recjax_request_seconds histogram'), 1)
    self.assertLen(re.findall(r'^recjax_running\{worker="\d"\}', text, re.M), 2)

  def test_metrics_wait_once_for_all_that_compile(self):
    for number in range(2, 8):  # they listen at their sockets, and do not answer yet
      self.enterContext(workers.Worker(number, self.folder, 'secret').bind())
    begun = time.monotonic()
    text = self.ask(0, 'GET', '/metrics').text
    self.assertLess(time.monotonic() - begun, 3 * workers.METRICS_SECONDS)
    self.assertEqual(set(re.findall(r'^recjax_running\{worker="(\d)"\}', text, re.M)), {'0', '1'})

  def test_the_secret_alone_opens(self):
    for secret, status in (('secret', 200), ('secre', 401), ('', 401), ('é'.encode(), 401)):
      answer = self.https[0].get('/v1/models', headers={'X-Recjax-Worker': secret})
      self.assertEqual(answer.status_code, status, secret)

  def test_merged_metrics_lose_nothing(self):
    parts = [service.metrics.render() for service in self.services]
    merged = prometheus.merge_metrics(dict(enumerate(parts)))
    count = lambda text: sum(not line.startswith(b'#') for line in text.splitlines())  # noqa: E731
    self.assertEqual(count(merged), sum(map(count, parts)))


@contextlib.contextmanager
def at_its_socket(service, place):
  """Answers at a worker's own socket."""
  found = server.build_server(service, warm_up=False)
  service.app = found.config.app
  thread = threading.Thread(target=found.run, args=([place.bind()],), daemon=True)
  thread.start()
  try:
    yield
  finally:
    found.should_exit = True
    thread.join(LONG)
    service.close()


class PathTest(absltest.TestCase):

  def test_a_folder_whose_path_is_too_long_for_sockets(self):
    place = workers.Worker(0, f'/tmp/{"x" * 200}', 'secret')
    with self.assertRaisesRegex(ConfigError, 'set TMPDIR'):
      place.bind()


class WorkersTest(absltest.TestCase):
  """`run_workers` in processes of its own."""

  def started(self, **settings):
    process = subprocess.Popen([sys.executable, '-c', SERVER, repr(settings)], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    self.addCleanup(process.stderr.close)
    self.addCleanup(process.stdout.close)
    self.addCleanup(process.kill)
    self.line = process.stdout.readline()
    return process, (re.match(r'(http://127\.0\.0\.1:\d+)/docs is the API, of 2 workers', self.line)
                     or [''] * 2)[1]

  def children(self, process):
    """Process ids of the workers."""
    ids = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    return {int(pid) for pid in ids
            if b'spawn_main' in pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()}

  def ask(self, url, path, method='POST', **body):
    with httpx.Client(timeout=LONG) as http:  # a connection each
      return http.request(method, f'{url}{path}', json=body or None)

  def answering(self, url):
    """Numbers of the workers whose models are ready, as the metrics have them."""
    text = self.ask(url, '/metrics', 'GET').text
    return set(re.findall(r'recjax_models_ready\{worker="(\d)"\} 2\.0', text))

  @long
  def test_two_answer_know_the_same_and_end(self):
    process, url = self.started(port=0, rate=0.001, burst=200)
    self.assertTrue(settled(lambda: self.answering(url) == {'0', '1'}))
    self.assertEqual(self.ask(url, '/readyz', 'GET').status_code, 200)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
      def bought(n):
        self.ask(url, '/v1/events', user=f'u{n}', item=f'i{n}', type='purchase')
        return app_test.ids(self.ask(url, '/v1/recommend', user=f'u{n}', k=1))
      self.assertEqual(list(pool.map(bought, range(40))), [[f'i{n + 1}'] for n in range(40)])
      self.assertEqual(self.ask(url, '/v1/models/reload?model=ring').status_code, 200)
      found = pool.map(lambda n: app_test.ids(self.ask(url, '/v1/recommend', history=['i9'], k=1)),
                       range(40))
      self.assertEqual(list(found), [['i8']] * 40)
      text = self.ask(url, '/metrics', 'GET').text
      both = re.findall(r'recjax_requests_total\{.*route="/v1/recommend".*worker="(\d)"\}', text)
      self.assertEqual(set(both), {'0', '1'})
      found = collections.Counter(pool.map(
          lambda n: self.ask(url, '/v1/recommend', k=1).status_code, range(200)))
    self.assertEqual(set(found), {200, 429})
    self.assertLess(found[200], 80)  # of 200 at most, in both together
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=LONG)
    self.assertEqual(process.returncode, 0)
    self.assertEqual([line for line in said.splitlines() if ' INFO ' not in line], [])
    self.assertEqual(len(re.findall(r'worker \d: SIGTERM: no new connections', out)), 2)
    self.assertTrue(out.endswith('ended; all that was asked is answered\n'))

  @long
  def test_one_that_dies_is_started_anew_and_none_outlives_the_parent(self):
    folder = tempfile.TemporaryDirectory()  # its name is short, as a socket's must be
    self.enterContext(folder)
    path = f'{folder.name}/s'
    process, _ = self.started(unix_socket=path)
    self.assertIn(path, self.line)
    def ready():
      with httpx.Client(transport=httpx.HTTPTransport(uds=path), timeout=LONG) as http:
        return set(re.findall(r'recjax_models_ready\{worker="(\d)"\} 2\.0',
                              http.get('http://any/metrics').text)) == {'0', '1'}
    self.assertTrue(settled(ready))
    before = self.children(process)
    self.assertLen(before, 2)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    said = next(line for line in process.stderr if ' INFO ' not in line)
    self.assertIn(f'(process {victim}) ended with signal 9; it is started anew', said)
    self.assertTrue(settled(lambda: len(self.children(process)) == 2))
    self.assertTrue(settled(ready))
    after = self.children(process)
    self.assertLen(after & before, 1)
    process.stdout.close()  # as a terminal that is gone: nothing that is said there keeps them
    process.stderr.close()
    process.kill()
    process.wait(LONG)
    self.assertTrue(settled(lambda: not any(os.path.exists(f'/proc/{pid}') for pid in after)))

  @long
  def test_what_fails_at_its_start_ends_all(self):
    process, _ = self.started(port=0, split='nobody:1')
    out, said = process.communicate(timeout=LONG)
    self.assertEqual(process.returncode, 2)
    self.assertIn("error: --split: 'nobody' is no model here", said)

  def test_an_accelerator_is_refused_before_models_are_opened(self):
    opened, place = mock.Mock(), workers.Worker(0, '', 'secret')
    with mock.patch.object(jax, 'default_backend', lambda: 'gpu'), \
        self.assertRaisesRegex(ConfigError, '--workers=2: the models run on a gpu'):
      server.serve_worker(opened, ServerSettings(workers=2), place, [], mock.Mock())
    opened.assert_not_called()

  def test_the_shop_needs_one_process(self):
    with self.assertRaisesRegex(ConfigError, '--workers=2 needs --no-shop'):
      server.check_workers(ServerSettings(workers=2))


if __name__ == '__main__':
  absltest.main()
