"""The routes: answers, filters, refusals, batches, catalogs that change, keys, broken bodies."""
import concurrent.futures
import contextlib
import dataclasses
import json
import pathlib
import socket
import sys
import tempfile
import threading
import time
import urllib.request

import httpx
import numpy as np
from absl.testing import absltest, parameterized
from fastapi.testclient import TestClient

from recjax.data.dataset import Catalog
from recjax.evaluation import ranking
from recjax.evaluation.recommender import CatalogRecommender
from recjax.serving import app as apps
from recjax.serving import limits
from recjax.serving.batcher import Batcher, QueueFull
from recjax.serving.catalog_snapshot import CatalogVersions
from recjax.serving.served_model import RecommendQuery, ServedModel
from recjax.serving.service import RecommendationService
from tests.serving import fake_service
from tests.serving.fake_service import LONG, settled


def client(shop=None, **settings):
  shop = shop or fake_service.service(**settings)
  shop.app = getattr(shop, 'app', None) or apps.create_app(shop)
  return TestClient(shop.app, base_url='http://127.0.0.1', raise_server_exceptions=False)


def ids(answer):
  return [row['id'] for row in answer.json()['items']]


class RecommendTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.http = client()

  def ask(self, **body):
    return self.http.post('/v1/recommend', json=body)

  @parameterized.parameters(
      (dict(history=['i3']), ['i4', 'i5', 'i6']),
      (dict(history=['i5', 'i4', 'i3']), ['i6', 'i7', 'i8']),
      (dict(history=['i4', 'i3'], exclude_seen=False), ['i4', 'i5', 'i6']),
      (dict(history=['i3'], block=['i4', 'i6', 'none']), ['i5', 'i7', 'i8']),
      (dict(history=['i3'], allow=['i9', 'i3', 'i5', 'none']), ['i5', 'i9']),
      (dict(history=['i18'], category='light'), ['i20', 'i21', 'i22']),
      (dict(history=['i18'], category='goods, climbing'), ['i40', 'i41', 'i42']),
      (dict(history=['i18'], allow=[]), []),
      (dict(history=[]), ['i0', 'i1', 'i2']), (dict(history=['none']), ['i0', 'i1', 'i2']))
  def test_items_and_filters(self, body, want):
    answer = self.ask(k=3, **body)
    self.assertEqual(answer.status_code, 200, answer.text)
    self.assertEqual(ids(answer), want)
    self.assertEqual(answer.json()['short'], len(want) < 3)

  def test_what_an_answer_says(self):
    found = self.ask(history=['i3', 'nix', 7], k=2, why=True, model='ring').json()
    self.assertEqual(found['unknown'], ['nix', '7'])
    self.assertEqual((found['model'], found['source'], found['catalog']), ('ring', 'model', 1))
    first = found['items'][0]
    self.assertEqual((first['id'], first['title'], first['price']), ('i4', 'blue kettle 4', 4.5))
    self.assertEqual(first['why']['tags'], ['tall', 'red'])
    self.assertEqual(self.ask().json()['source'], 'popularity')
    found = self.ask(allow=['i3', 'nix', 7]).json()
    self.assertEqual((found['unknown'], found['unknown_allow']), ([], ['nix', '7']))

  @parameterized.parameters(
      (dict(k=0), 422, 'greater'), (dict(k=101), 422, 'less'), (dict(k='x'), 422, 'integer'),
      (dict(model='no'), 404, 'ring, talk'), (dict(category='no'), 422, 'kitchen'),
      (dict(histroy=[]), 422, 'histroy'), (dict(history=[[]]), 422, 'history'),
      (dict(history=['i1'] * 10_001), 422, '10000'), (dict(history=['x' * 501]), 422, '500'),
      (dict(history=[True]), 422, 'history'),
      (dict(k='5'), 422, 'k'), (dict(k=True), 422, 'k'),
      (dict(why=0), 422, 'why'), (dict(exclude_seen='yes'), 422, 'exclude_seen'),
      (dict(history=None), 422, 'history'))
  def test_refusals(self, body, status, what):
    answer = self.ask(**body)
    self.assertEqual(answer.status_code, status, answer.text)
    self.assertIn(what, answer.json()['error']['message'])

  def test_every_method_of_a_batch_gets_its_own(self):
    """64 clients at once, each with its own history and filters: nobody gets another's items."""
    def one(n):
      body = dict(history=[f'i{n % 60}'], k=5, block=[f'i{(n + 1) % 60}'] if n % 2 else [])
      return self.ask(**body)
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
      found = list(pool.map(one, range(192)))
    for n, answer in enumerate(found):
      start = n + 1 + n % 2
      self.assertEqual(ids(answer), [f'i{(start + j) % 60}' for j in range(5)])

  def test_tags_interests_models(self):
    found = self.http.post('/v1/tags', json={'items': ['i1', 'none']}).json()['tags']
    self.assertEqual(found, {'i1': [{'tag': 'tall', 'weight': 3}, {'tag': 'red', 'weight': 1}],
                             'none': []})
    self.assertEqual(self.http.post('/v1/tags', json={'items': [], 'model': 'talk'}).status_code,
                     422)
    found = self.http.post('/v1/interests', json={'history': ['i41', 'i44', 'nix']}).json()
    self.assertEqual((found['source'], found['unknown']), ('local', ['nix']))
    self.assertEqual(found['interests'], ['Green Rope'])
    listed = self.http.get('/v1/models').json()['data']
    self.assertEqual([(m['id'], m['converses'], m['tags']) for m in listed],
                     [('ring', False, True), ('talk', True, False)])

  def test_published_routes(self):
    found = self.http.post('/inference', json={'item_lists': [['i3'], ['i18']], 'k': 2,
                                               'users': ['u', 'v'], 'item_lengths': [1, 1]}).json()
    self.assertEqual(found, {'inference': [['i4', 'i5'], ['i19', 'i20']]})
    found = self.http.post('/ranking', json={'item_lists': [['i3']],
                                             'candidate_item_lists': [['i9', 'i4']]}).json()
    self.assertEqual(found, {'ranking': [[5, 0]]})

  def test_health_metrics_and_pages(self):
    self.ask(history=['i1'])
    self.http.get('/no/such/path')
    self.assertEqual(self.http.get('/readyz').status_code, 200)
    text = self.http.get('/metrics').text
    self.assertIn('recjax_requests_total{method="POST",route="/v1/recommend",status="200"} 1.0',
                  text)
    self.assertIn('route="none",status="404"', text)
    for path in ('/', '/static/shop.js', '/static/shop.css', '/openapi.json'):
      answer = self.http.get(path)
      self.assertEqual(answer.status_code, 200, path)
      self.assertIn("default-src 'none'", answer.headers['content-security-policy'])
      self.assertNotIn('http://' if path != '/openapi.json' else '\0', answer.text.replace(
          'http://www.w3.org/2000/svg', ''))


class LimitsTest(parameterized.TestCase):

  def test_a_key_guards_every_route(self):
    http = client(api_key='secret')
    routes = [(m, path) for path, methods in http.get('/openapi.json', headers={
        'X-API-Key': 'secret'}).json()['paths'].items() for m in methods]
    self.assertGreater(len(routes), 15)
    routes += [('get', p) for p in ('/', '/docs', '/static/shop.js', '/openapi.json', '/none')]
    self.assertEqual(http.get('/healthz').status_code, 200)  # alone
    for method, path in routes:
      if path == '/healthz':
        continue
      for heads in ({}, {'Authorization': 'Bearer secre'}, {'X-API-Key': ''},
                    {'Authorization': 'Basic !'}, {'Authorization': 'Bearer secret\xe9'.encode(
                        'latin1')}):
        answer = http.request(method, path, headers=heads)
        self.assertEqual(answer.status_code, 401, (method, path, heads))
        self.assertNotIn('secret', answer.text)
    for heads in ({'Authorization': 'Bearer secret'}, {'X-API-Key': 'secret'}):
      self.assertEqual(http.get('/healthz', headers=heads).status_code, 200)
    self.assertEqual(http.get('/', auth=('anyone', 'secret')).status_code, 200)

  @parameterized.parameters(
      (b'{"history": [', 400), (b'', 422), (b'[]', 422), (b'nonsense', 400), (b'\xff\xfe', 400),
      (b'[' * 100_000, 422), (b'{"a":' * 40 + b'1' + b'}' * 40, 422), (b'{"k": NaN}', 422),
      (b'{"history": ["' + b'[' * 5000 + b'"]}', 422), (b'{"k": 1e999}', 422),
      (b'{"k": ' + b'9' * 5000 + b'}', 400), (b'{"history": ["\\ud800"]}', 422),
      (b'{"history": ["[[[[", "\\"{{{{"]}', 200), (b' ' * ((1 << 20) + 1), 413),
      (b'{"history": ["i1"], "category": "\\u0000"}', 422))
  def test_broken_bodies(self, body, status):
    answer = client().post('/v1/recommend', content=body,
                           headers={'Content-Type': 'application/json'})
    self.assertEqual(answer.status_code, status, answer.text)
    self.assertIn('application/json', answer.headers['content-type'])

  def test_depth_is_found_in_time_that_grows_with_length_alone(self):
    self.assertTrue(limits.is_nested_too_deep(b'[' * 33))
    self.assertFalse(limits.is_nested_too_deep(b'[' * 32 + b'"' + b'[' * 99))
    start = time.thread_time()  # what this thread computes: others may be busy
    self.assertFalse(limits.is_nested_too_deep(b'"' + b'\\"' * 30_000 + b'[' * 40))
    self.assertFalse(limits.is_nested_too_deep(b'[]' * 30_000))
    self.assertLess(time.thread_time() - start, 5)

  @parameterized.parameters(
      '/static/../app.py', '/static/..%2f..%2fapp.py', '/static/%2e%2e/app.py', '//etc/passwd',
      '/static/shop.html/', '/static/', '/static/app.py', '/shop/item?id=../../etc/passwd')
  def test_path_tricks(self, path):
    self.assertEqual(client().get(path).status_code, 404)

  def test_foreign_pages_and_hosts(self):
    http = client()
    for heads, status in (({'Origin': 'http://evil.example'}, 403), ({'Origin': 'null'}, 403),
                          ({'Origin': 'http://127.0.0.1'}, 200), ({'Host': 'evil.example'}, 421)):
      answer = http.post('/v1/recommend', json={}, headers=heads)
      self.assertEqual(answer.status_code, status, heads)
      self.assertEqual(http.get('/v1/models', headers=heads).status_code, status, heads)

  def test_a_full_house(self):
    hold = fake_service.Hold()
    shop = fake_service.service(hold=hold, max_concurrent=4)
    http = client(shop)
    ask = lambda: http.post('/v1/recommend', json={'history': ['i1']})  # noqa: E731
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      found = [pool.submit(ask) for _ in range(4)]
      self.assertTrue(settled(lambda: shop.app.running == 4))
      for _ in range(2):
        refused = ask()
        self.assertEqual((refused.status_code, refused.headers['Retry-After']), (503, '1'))
      self.assertFalse(any(f.done() for f in found))
      hold.go.set()
    self.assertEqual([f.result().status_code for f in found], [200] * 4)
    self.assertEqual(ask().status_code, 200)

  def test_bodies_and_lists_up_to_their_limits_are_taken(self):
    http = client()
    for extra, status in ((0, 200), (1, 413)):
      body = b'{"history": ["i1"]}'
      body += b' ' * (limits.MAX_BODY_BYTES + extra - len(body))
      for content in (body, iter([body[:99], body[99:]])):  # with its length, and in pieces
        self.assertEqual(http.post('/v1/recommend', content=content, headers={
            'Content-Type': 'application/json'}).status_code, status)
    for body in (dict(k=100), dict(history=['i1'] * 10_000), dict(history=['x' * 500])):
      self.assertEqual(http.post('/v1/recommend', json=body).status_code, 200, list(body))
    for deep, status in ((limits.MAX_JSON_DEPTH, 200), (limits.MAX_JSON_DEPTH + 1, 422)):
      body = b'{"history": ["i1"], "k": ' + b'[' * (deep - 1) + b']' * (deep - 1) + b'}'
      told = http.post('/v1/recommend', content=body, headers={
          'Content-Type': 'application/json'}).text
      self.assertEqual('nested deeper' in told, status == 422)

  def test_an_answer_that_takes_too_long(self):
    hold = fake_service.Hold()
    http = client(fake_service.service(hold=hold, answer_seconds=0.2))
    self.assertEqual(http.post('/v1/recommend', json={'history': ['i1']}).status_code, 504)
    hold.go.set()


  def test_published_routes_take_larger_bodies(self):
    http = client()
    body = b'{"item_lists": [["i3"]], "k": 1}'
    for extra, status in ((0, 200), (1, 413)):
      padding = b' ' * (limits.MAX_LARGE_BODY_BYTES + extra - len(body))
      answer = http.post('/inference', content=body + padding, headers={
          'Content-Type': 'application/json'})
      self.assertEqual(answer.status_code, status)


class WithoutShopTest(absltest.TestCase):

  def test_the_service_runs_alone(self):
    with absltest.mock.patch.dict(sys.modules, {'recjax.serving.demo': None}):
      http = client(fake_service.service(shop=False))
    self.assertEqual(ids(http.post('/v1/recommend', json={'history': ['i3'], 'k': 1})), ['i4'])
    for path, status in (('/', 404), ('/shop/state', 404), ('/static/shop.js', 404), ('/docs', 200),
                         ('/v1/models', 200), ('/metrics', 200)):
      self.assertEqual(http.get(path).status_code, status, path)


class TranslationTest(absltest.TestCase):

  def test_ids_are_translated_once_on_their_way_in_and_once_on_their_way_out(self):
    found, named = [], []

    class Counting(Catalog):
      """Says which ids were looked up, and which indices were named."""

      def find(self, item_id):
        found.append(item_id)
        return super().find(item_id)

      def index(self, item_id):
        raise AssertionError('looked up behind the edge')

      def id_of(self, index):
        raise AssertionError('named behind the edge')

    class Ids(tuple):
      def __getitem__(self, at):
        named.append(at + 1)
        return super().__getitem__(at)
    catalog = Counting(Ids(fake_service.CATALOG.ids), fake_service.CATALOG.columns)
    recommender = ranking.recommender(fake_service.follow, catalog)
    for by_row in (True, False):
      model = ServedModel('m', 'm', dataclasses.replace(recommender, masks_by_row=by_row),
                          CatalogVersions(catalog, np.zeros(len(catalog), int)))
      model.is_ready = True
      http = client(RecommendationService({'m': model}))
      found.clear(), named.clear()
      answer = http.post('/v1/recommend', json={'history': ['i3', 'i5'], 'block': ['i6'], 'k': 2,
                                                'allow': ['i6', 'i7', 'i8', 'i9']})
      self.assertEqual(ids(answer), ['i7', 'i8'])
      self.assertEqual(found, ['i3', 'i5', 'i6', 'i6', 'i7', 'i8', 'i9'])
      self.assertEqual(named, [8, 9])


class CatalogTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 'items.jsonl'
    self.write([{'item_id': i, 'title': t} for i, t in zip(fake_service.CATALOG.ids,
                                                           fake_service.TITLES)])
    self.http = client(fake_service.service(self.path))

  def write(self, rows):
    self.path.write_text(''.join(json.dumps(r) + '\n' for r in rows))

  def first(self):
    found = self.http.post('/v1/recommend', json={'history': ['i3'], 'k': 1}).json()
    return found['items'][0]['title'], found['catalog']

  def test_reload_rollback_and_broken_files(self):
    self.assertEqual(self.first(), ('blue kettle 4', 2))
    self.write([{'item_id': 'i4', 'title': 'new', 'retired': True}, {'item_id': 'i5', 'title': 'v'},
                {'item_id': 'zzz', 'title': 'unknown'}])
    told = self.http.post('/v1/catalog/reload').json()
    self.assertEqual((told['recommended'], told['unknown_to_the_model']), (1, 1))
    self.assertEqual(self.first(), ('v', 3))
    for broken in ('{"item_id": ', '', '{"item_id": "other"}\n', '{"item_id": 3, "title": []}\n'):
      self.path.write_text(broken)
      answer = self.http.post('/v1/catalog/reload')
      self.assertEqual(answer.status_code, 422)
      self.assertEqual(self.first(), ('v', 3))
    self.path.unlink()
    self.assertEqual(self.http.post('/v1/catalog/reload').status_code, 422)
    self.assertEqual(self.http.post('/v1/catalog/rollback').json()['version'], 2)
    self.assertEqual(self.first(), ('blue kettle 4', 2))
    for _ in range(3):
      answer = self.http.post('/v1/catalog/rollback')
    self.assertEqual(answer.status_code, 422)

  def test_without_a_file(self):
    answer = client().post('/v1/catalog/reload')
    self.assertEqual(answer.status_code, 422)
    self.assertIn('--catalog', answer.json()['error']['message'])

  def test_answers_under_reloads_are_of_one_catalog(self):
    """Broken and good reloads while others ask: every answer is whole."""
    stop, bad = threading.Event(), []

    def asker():
      while not stop.is_set():
        answer = self.http.post('/v1/recommend', json={'history': ['i3'], 'k': 5})
        if answer.status_code != 200 or len(set(ids(answer))) != 5:
          bad.append(answer.text)
    threads = [threading.Thread(target=asker) for _ in range(4)]
    for t in threads:
      t.start()
    good = self.path.read_text()
    for n in range(20):
      self.path.write_text(good if n % 2 else '{"broken')
      self.http.post('/v1/catalog/reload')
    stop.set()
    for t in threads:
      t.join()
    self.assertEmpty(bad)


class ModelTest(absltest.TestCase):

  def test_a_method_that_takes_one_filter_is_asked_once_for_each(self):
    calls = []

    def top_items(histories, k, exclude_seen, mask):
      calls.append((len(histories), k, exclude_seen, int(mask.sum())))
      good = (np.flatnonzero(mask) + 1)[:k]
      return np.tile(good, (len(histories), 1)), np.zeros((len(histories), k))
    model = ServedModel('x', 'x', CatalogRecommender(top_items, fake_service.CATALOG),
                        fake_service.catalog_versions())
    full, few, none = np.ones(60, bool), np.arange(60) > 50, np.zeros(60, bool)
    asks = [RecommendQuery([1], 3, f) for f in (full, few, full, none, full)]
    asks.append(RecommendQuery([], 2, few))
    found = [[i for i, _ in row] for row in model.answer(asks)]
    self.assertEqual(found, [[1, 2, 3], [52, 53, 54], [1, 2, 3], [], [1, 2, 3], [52, 53]])
    self.assertEqual(calls, [(8, 20, False, 60), (1, 20, False, 9)])

  def test_calls_of_the_size_that_answers_all_soonest(self):
    ring = fake_service.service().models['ring']
    model = ServedModel('x', 'x', ring.recommender, fake_service.catalog_versions())
    self.assertEqual([model.best_batch_size(n) for n in (1, 9, 64)], [64] * 3)  # none is measured
    model.batch_seconds = {1: 0.9, 8: 2.0, 64: 10.7}
    self.assertEqual([model.best_batch_size(n) for n in (1, 2, 3, 8, 15, 40, 41, 64, 99)],
                     [1, 1, 8, 8, 8, 8, 64, 64, 64])
    model.warm_up()
    self.assertTrue(model.is_ready, model.failure)
    self.assertGreater(min(model.batch_seconds.values()), 0)


class BatcherTest(absltest.TestCase):

  def plugged(self, answer=lambda asked: asked, **given):
    """A batcher that holds a first request alone, so that what follows waits together. -> Batcher,
    its Hold, the sizes of its batches"""
    hold, sizes = fake_service.Hold(), []

    def held(asked, *settle):
      sizes.append(len(asked))
      hold()
      return asked if asked == ['plug'] else answer(asked, *settle)
    batcher = Batcher(held, **given)
    batcher.submit('plug')
    self.assertTrue(settled(lambda: hold.count == 1))
    return batcher, hold, sizes

  def test_as_many_as_are_shared_out_are_answered_together(self):
    for waiting, want in ((10, [1, 10]), (7, [1, 4, 3]), (8, [1, 4, 4]), (9, [1, 9])):
      batcher, hold, sizes = self.plugged(batch_size_for=lambda waiting: 4 if waiting < 9 else 64)
      found = [batcher.submit(n) for n in range(waiting)]
      hold.go.set()
      self.assertEqual([f.result(LONG) for f in found], list(range(waiting)))
      self.assertEqual(sizes, want)
      batcher.close(LONG)

  def test_a_batch_and_the_queue_hold_what_they_may_no_more_and_no_less(self):
    for most, waiting, want in ((3, 7, [1, 3, 3, 1]), (3, 3, [1, 3]), (1, 2, [1, 1, 1])):
      batcher, hold, sizes = self.plugged(max_batch_size=most, max_waiting=waiting)
      found = [batcher.submit(n) for n in range(waiting)]
      with self.assertRaisesRegex(QueueFull, f'{waiting} requests wait already'):
        batcher.submit('more')
      hold.go.set()
      self.assertEqual([f.result(LONG) for f in found], list(range(waiting)))
      self.assertEqual(sizes, want)
      self.assertEqual(batcher.submit('again').result(LONG), 'again')
      batcher.close(LONG)

  def test_too_few_answers_are_an_error_and_others_are_answered_after_it(self):
    batcher, hold, _ = self.plugged(lambda asked: asked[1:])
    futures = [batcher.submit(x) for x in 'ab']
    hold.go.set()
    for future in futures:
      with self.assertRaisesRegex(RuntimeError, '0 answers to 1 requests'):
        future.result(LONG)
    self.assertEqual(batcher.submit('plug').result(LONG), 'plug')
    batcher.close(LONG)
    self.assertFalse(batcher._thread.is_alive())

  def test_what_waits_is_answered_together_and_errors_stay_alone(self):
    def answer(asked):
      if 'bad' in asked:
        raise ValueError('bad')
      return [x.upper() for x in asked]
    batcher, hold, sizes = self.plugged(answer, max_batch_size=8, max_waiting=10)
    futures = [batcher.submit(x) for x in ['a', 'b', 'bad', 'c', 'd']]
    self.assertTrue(futures[1].cancel())
    hold.go.set()
    with self.assertRaisesRegex(ValueError, 'bad'):
      futures[2].result(LONG)
    self.assertEqual([futures[i].result(LONG) for i in (0, 3, 4)], ['A', 'C', 'D'])
    self.assertEqual(sizes, [1, 4, 1, 1, 1, 1])
    batcher.close(LONG)
    with self.assertRaises(QueueFull):
      batcher.submit('late')

  def test_answers_that_come_before_the_others_and_before_a_failure(self):
    gate = threading.Event()

    def answer(asked, settle):
      if len(asked) > 1:
        settle(1, 'early')
        gate.wait(LONG)
        raise ValueError('late')
      return asked
    batcher, hold, _ = self.plugged(answer, settles_early=True)
    found = [batcher.submit(x) for x in 'abc']
    hold.go.set()
    self.assertEqual(found[1].result(LONG), 'early')
    self.assertFalse(found[0].done())
    gate.set()
    self.assertEqual([f.result(LONG) for f in found], ['a', 'early', 'c'])
    batcher.close(LONG)


class SocketTest(absltest.TestCase):
  """A real server: slow and vanishing clients, chunked bodies, drain."""

  def test_a_slow_body_is_ended_while_others_are_answered(self):
    with fake_service.listening(fake_service.service(body_seconds=0.5)) as url:
      slow = self.sent(url, b'POST /v1/recommend HTTP/1.1\r\nHost: 127.0.0.1\r\n'
                            b'Content-Length: 9\r\n\r\n{')
      self.assertEqual(httpx.get(f'{url}/healthz', timeout=LONG).status_code, 200)
      answer = slow.recv(1000)
      self.assertIn(b' 408 ', answer)
      self.assertIn(b'connection: close', answer.lower())

  def test_heads_that_do_not_end_take_no_more_than_their_connections(self):
    """uvicorn counts them against `limit_concurrency`; a proxy in front ends them."""
    service = fake_service.service(max_concurrent=2)
    with fake_service.listening(service) as url:
      slow = [self.sent(url, b'GET /healthz HT') for _ in range(6)]
      self.assertEqual(httpx.get(f'{url}/healthz', timeout=LONG).status_code, 200)
      slow += [self.sent(url, b'GET /healthz HT') for _ in range(2)]
      self.assertTrue(settled(lambda: httpx.get(f'{url}/healthz', timeout=LONG).status_code == 503))
      self.assertEqual(service.limits.running, 0)  # they are no requests yet
      slow[0].sendall(b'TP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n')
      self.assertIn(b' 503 ', slow[0].recv(1000))
      for one in slow:
        one.close()
      self.assertTrue(settled(lambda: httpx.get(f'{url}/healthz', timeout=LONG).status_code == 200))

  def test_a_head_has_a_limit(self):
    with fake_service.listening(fake_service.service()) as url:
      endless = self.sent(url, b'GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: ')
      with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused, as it should be
        for _ in range(2000):
          endless.sendall(b'x' * 1000)
        self.fail('two million bytes of a head were taken')
      body = json.dumps({'history': ['i3'], 'block': ['x' * 90] * 9000})  # which is no head
      answer = httpx.post(f'{url}/v1/recommend', content=body, timeout=LONG, headers={
          'Content-Type': 'application/json', 'X-Long': 'x' * 15_000})
      self.assertEqual(answer.status_code, 200)

  def test_the_limit_is_of_each_head_also_where_pieces_end_within_heads(self):
    one = b'GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Pad: ' + b'x' * 4000 + b'\r\n\r\n'
    with fake_service.listening(fake_service.service()) as url:
      pipe, answers = self.sent(url, one[:2000]), b''
      for count in range(1, 10):
        pipe.sendall(one[2000:] + one[:2000])  # ends one head and begins the next
        while answers.count(b'"ok"') < count:
          more = pipe.recv(1 << 16)
          self.assertNotIn(b'HTTP/1.1 400', more)
          answers += more

  def sent(self, url, data):
    """A connection on which `data` were sent."""
    pipe = socket.create_connection(('127.0.0.1', int(url.rpartition(':')[2])), timeout=LONG)
    self.addCleanup(pipe.close)
    pipe.sendall(data)
    return pipe

  def test_chunked_bodies_are_counted(self):
    with fake_service.listening(fake_service.service()) as url:
      answer = httpx.post(f'{url}/v1/recommend', content=(b' ' * 65536 for _ in range(40)),
                          timeout=LONG)
      self.assertEqual(answer.status_code, 413)

  def test_a_client_that_goes_away_takes_its_request_out(self):
    hold = fake_service.Hold()
    shop = fake_service.service(hold=hold, batched=False)
    asked = []
    batcher = shop.models['ring'].batcher
    inner = batcher.answer_batch
    batcher.answer_batch = lambda some: asked.extend(some) or inner(some)
    with fake_service.listening(shop) as url:
      port = int(url.rpartition(':')[2])
      body = b'{"history": ["i1"]}'
      head = (b'POST /v1/recommend HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n'
              b'Content-Type: application/json\r\n\r\n' % len(body))
      clients = [socket.create_connection(('127.0.0.1', port)) for _ in range(6)]
      for c in clients:
        c.settimeout(LONG)
        c.sendall(head + body)
      self.assertTrue(settled(lambda: batcher.waiting == 5))  # one is being answered
      for c in clients[1:]:
        c.close()
      self.assertTrue(settled(lambda: shop.limits.running == 1))
      hold.go.set()
      self.assertIn(b' 200 ', clients[0].recv(1000))
      self.assertTrue(settled(lambda: batcher.waiting == 0))
      clients[0].close()
    self.assertLen(asked, 1)

  def test_drain(self):
    hold = fake_service.Hold()
    shop = fake_service.service(hold=hold)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      with fake_service.listening(shop) as url:
        stream = pool.submit(lambda: urllib.request.urlopen(
            f'{url}/shop/events', timeout=LONG).read())
        found = pool.submit(httpx.post, f'{url}/v1/recommend', json={'history': ['i1']},
                            timeout=LONG)
        self.assertTrue(settled(lambda: hold.count == 1 and shop.limits.running == 2))
        pool.submit(lambda: settled(lambda: shop.is_closing) and hold.go.set())
      self.assertEqual(found.result(LONG).status_code, 200)
      stream.result(LONG)


if __name__ == '__main__':
  absltest.main()
