"""Events over HTTP: users by id, what was just bought, splits, kills, a database that is away."""
import collections
import concurrent.futures
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import httpx
from absl.testing import absltest, parameterized

from recjax.data import dataset
from recjax.serving.events import EventStore
from recjax.serving.user_histories import TrainingHistories
from tests.long import long
from tests.serving import app_test, databases, fake_service
from tests.serving.fake_service import LONG

ROOT = pathlib.Path(__file__).parents[2]
# Set for 100,000 events through 20 kills, which take minutes.
EVERY_KILL = bool(os.environ.get('RECJAX_EVERY_KILL'))
SERVER = '''
import sys, time
from tests.serving import fake_service
with fake_service.listening(fake_service.service(events=sys.argv[1])) as url:
  print(url, flush=True)
  time.sleep(10**6)
'''


def bought(user='u', item='i3', **more):
  return {'user': user, 'item': item, 'type': 'purchase', **more}


class EventRoutesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.shop = fake_service.service()
    self.http = app_test.client(self.shop)

  def send(self, **body):
    return self.http.post('/v1/events', json=body)

  def recommended(self, **body):
    answer = self.http.post('/v1/recommend', json={'k': 3, **body})
    self.assertEqual(answer.status_code, 200, answer.text)
    return app_test.ids(answer), answer.json()

  def test_what_was_just_bought_makes_the_next_answer_and_is_not_in_it(self):
    self.assertEqual(self.recommended(user='u')[1]['source'], 'popularity')
    for n in range(50):
      answer = self.send(**bought(item=f'i{n}', key=f'{n}'))
      self.assertEqual(answer.json(), {'accepted': 1, 'duplicates': 0, 'unknown': []})
      found, whole = self.recommended(user='u')
      self.assertEqual(found, [f'i{n + 1 + j}' for j in range(3)])
      self.assertEqual(whole['source'], 'model')
    self.assertEqual(self.recommended(user='v')[1]['source'], 'popularity')
    self.assertEqual(self.recommended(user='u', exclude_seen=False, block=['i50'])[0],
                     ['i51', 'i52', 'i53'])
    self.assertEqual(self.recommended(user='u', history=['i9'])[0], ['i10', 'i11', 'i12'])
    self.assertEqual(self.recommended(user='u', history=[])[1]['source'], 'popularity')

  def test_the_training_data_know_users(self):
    items, offsets = dataset.flatten([[1, 4], [11]])
    data = dataset.make_dataset('d', fake_service.CATALOG, dataset.Interactions(
        ('v', 'u'), items, offsets))
    self.shop.models['ring'].training_histories = TrainingHistories(data)
    self.assertEqual(self.recommended(user='v')[0], ['i4', 'i5', 'i6'])
    self.send(**bought(item='i5'))
    self.assertEqual(self.recommended(user='u')[0], ['i6', 'i7', 'i8'])
    self.assertEqual(self.recommended(user='u', model='talk')[0], ['i6', 'i7', 'i8'])
    self.assertNotIn('i10', self.recommended(user='u', k=100)[0])

  def test_only_types_that_count_make_a_history(self):
    for kind in ('view', 'click', 'cart'):
      self.send(user='u', item='i7', type=kind)
    self.assertEqual(self.recommended(user='u')[1]['source'], 'popularity')
    http = app_test.client(fake_service.service(history_types=('purchase', 'cart')))
    http.post('/v1/events', json={'user': 'u', 'item': 'i7', 'type': 'cart'})
    answer = http.post('/v1/recommend', json={'user': 'u', 'k': 1})
    self.assertEqual(app_test.ids(answer), ['i8'])

  def test_batches_and_what_is_sent_again(self):
    batch = {'events': [bought(key='a'), bought(item='new', key='b'), bought(item=7, key='c')]}
    self.assertEqual(self.send(**batch).json(), {
        'accepted': 3, 'duplicates': 0, 'unknown': ['new', '7']})
    self.assertEqual(self.send(**batch).json()['duplicates'], 3)
    answer = self.send(events=[bought(key='a', item='i4'), bought(key='d')])
    self.assertEqual(answer.status_code, 409)
    self.assertIn("'a'", answer.json()['error']['message'])
    self.assertEqual(self.send(**bought(key='d')).json()['duplicates'], 1)
    self.assertEqual(self.send(events=[]).json()['accepted'], 0)
    timed = bought(time=1.7e9)
    self.assertEqual([self.send(**timed).json()['accepted'] for _ in range(2)], [1, 0])
    self.assertEqual([self.send(**bought()).json()['accepted'] for _ in range(2)], [1, 1])

  def test_times(self):
    for when, want in ((1.7e9, 1_700_000_000_000), (0, 0), (1_700_000_000.5, 1_700_000_000_500),
                       ('2023-11-14T22:13:20Z', 1_700_000_000_000),
                       ('2023-11-14T23:13:20.25+01:00', 1_700_000_000_250)):
      self.send(**bought(f't{when}', time=when))
      self.assertEqual([e.time_ms for e in self.shop.store.history(f't{when}')], [want])
    before = time.time() * 1000 - 1
    self.send(**bought('now'))
    self.assertBetween(self.shop.store.history('now')[0].time_ms, before, time.time() * 1000 + 1)

  @parameterized.parameters(
      (dict(type='buy'), 'type'), (dict(item=''), 'item'), (dict(item=None), 'item'),
      (dict(user='a\0b'), 'NUL'), (dict(user='\ud800'), 'user'),
      (dict(time='yesterday'), 'time'), (dict(time='2023-11-14T22:13:20'), 'time'),
      (dict(time=-1), 'time'), (dict(time=True), 'time'), (dict(time=1e15), 'time'),
      (dict(key='x' * 201), 'key'), (dict(price=3), 'price'),
      (dict(user='x' * 501), 'user'), (dict(events=[]), 'user'))
  def test_refusals(self, change, words):
    answer = self.http.post('/v1/events', content=json.dumps({**bought(), **change}),
                            headers={'Content-Type': 'application/json'})
    self.assertEqual(answer.status_code, 422, answer.text)
    self.assertIn(words, answer.json()['error']['message'])
    self.assertEqual(list(self.shop.store.export(('purchase',))), [])

  def test_too_many_at_once(self):
    self.assertEqual(self.send(events=[bought()] * 1000).status_code, 200)
    self.assertEqual(self.send(events=[bought()] * 1001).status_code, 422)

  def test_clicks_join_what_was_shown(self):
    shown, whole = self.recommended(user='u', history=['i3'], model='talk')
    self.send(user='u', item=shown[1], type='click', request_id=whole['request_id'])
    self.send(**bought(item='i40', request_id=whole['request_id']))  # which was not shown
    self.assertIsNone(self.recommended(history=['i3'])[1]['request_id'])
    found, = self.shop.store.report()
    self.assertEqual((found.model, found.answers, found.shown, found.clicked, found.bought),
                     ('talk', 1, 3, 1, 0))

  def test_a_user_is_forgotten(self):
    self.send(**bought('a/b?c'))
    self.send(**bought('v'))
    self.recommended(user='a/b?c')
    answer = self.http.delete('/v1/users/a%2Fb%3Fc')
    self.assertEqual((answer.status_code, answer.json()), (200, {'deleted': 1}))
    self.assertEqual(self.recommended(user='a/b?c')[1]['source'], 'popularity')
    self.assertEqual(self.recommended(user='v')[1]['source'], 'model')

  def test_a_split_of_users(self):
    http = app_test.client(fake_service.service(split='ring:0.5,talk:0.5'))
    chosen = collections.defaultdict(set)
    for n in range(64):
      for more in ({}, {'history': ['i3']}):
        body = {'user': f'u{n % 32}', 'k': 1, **more}
        chosen[n % 32].add(http.post('/v1/recommend', json=body).json()['model'])
    self.assertEqual({len(names) for names in chosen.values()}, {1})
    self.assertEqual(set().union(*chosen.values()), {'ring', 'talk'})
    named = http.post('/v1/recommend', json={'user': 'u1', 'model': 'talk'}).json()['model']
    self.assertEqual(named, 'talk')
    self.assertEqual(http.post('/v1/recommend', json={}).json()['model'], 'ring')

  def test_a_database_that_is_away_and_what_still_answers(self):
    with self.shop.store.engine.begin() as other:
      other.exec_driver_sql('ALTER TABLE events RENAME TO gone')
      other.exec_driver_sql('ALTER TABLE impressions RENAME TO gone_too')
    self.assertEqual(self.send(**bought()).status_code, 503)
    self.assertEqual(self.http.post('/v1/recommend', json={'user': 'u'}).status_code, 503)
    found, whole = self.recommended(user='u', history=['i3'])
    self.assertEqual((found, whole['request_id']), (['i4', 'i5', 'i6'], None))
    self.assertIn('recjax_impressions_lost_total 1.0', self.http.get('/metrics').text)
    with self.shop.store.engine.begin() as other:
      other.exec_driver_sql('ALTER TABLE gone RENAME TO events')
    self.assertEqual(self.send(**bought()).status_code, 200)

  def test_two_servers_on_one_database(self):
    place = f'{self.create_tempdir().full_path}/events.sqlite'
    one, two = (app_test.client(fake_service.service(events=place)) for _ in range(2))
    for n in range(20):
      one.post('/v1/events', json=bought(item=f'i{n}'))
      answer = two.post('/v1/recommend', json={'user': 'u', 'k': 1})
      self.assertEqual(app_test.ids(answer), [f'i{n + 1}'])
      one, two = two, one


class KillTest(parameterized.TestCase, databases.WithDatabases):

  @parameterized.parameters(*((kind, 20, 100_000) if EVERY_KILL else (kind, 2, 5_000)
                              for kind in databases.KINDS))
  @long  # events_test kills the same writes without HTTP
  def test_no_event_is_lost_and_none_twice_through_kill_9(self, kind, kills, count):
    """Four clients send events in batches, each until it is answered, over a server that dies."""
    place = self.databases.place(kind)
    server, rng = Server(self, place), random.Random(kills)
    batches = [[bought(f'u{n % 97}', f'i{n % 60}', key=f'{n}', time=n) for n in range(
        start, start + count // 100)] for start in range(0, count, count // 100)]
    answered, tries = [], collections.Counter()

    def send(number):
      while True:
        tries[number] += 1
        try:
          answer = httpx.post(f'{server.url}/v1/events', json={'events': batches[number]},
                              timeout=LONG)
        except httpx.HTTPError:
          time.sleep(0.05)
          continue
        if answer.status_code == 200:
          answered.append(number)
          return answer.json()
        self.assertEqual(answer.status_code, 503, answer.text)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      found = [pool.submit(send, number) for number in range(100)]
      for kill in range(kills):
        while len(answered) < (kill + 1) * 90 // kills:
          time.sleep(0.001)
        time.sleep(rng.random() / 50)
        server.kill()
        acknowledged = set(answered)
        server.start()
        store = EventStore(place)
        stored = {e.key for e in store.export(('purchase',))}
        store.close()
        self.assertContainsSubset({e['key'] for n in acknowledged for e in batches[n]}, stored)
      found = [f.result(10 * LONG) for f in found]
    server.kill()
    store = EventStore(place)
    self.addCleanup(store.close)
    keys = collections.Counter(e.key for e in store.export(('purchase',)))
    self.assertEqual(keys, collections.Counter(str(n) for n in range(count)))
    for number, answer in enumerate(found):
      self.assertIn((answer['accepted'], answer['duplicates']),
                    ((len(batches[number]), 0), (0, len(batches[number]))))
      if answer['duplicates']:
        self.assertGreater(tries[number], 1)
    self.assertGreater(sum(tries.values()), 100)


class Server:
  """A server of the fake service in a process of its own. url: where it listens."""

  def __init__(self, test, place):
    self.place = place
    self.start()
    test.addCleanup(self.kill)

  def start(self):
    self.process = subprocess.Popen([sys.executable, '-c', SERVER, self.place], cwd=ROOT,
                                    stdout=subprocess.PIPE, text=True)
    self.url = self.process.stdout.readline().strip()

  def kill(self):
    self.process.send_signal(signal.SIGKILL)
    self.process.wait()
    self.process.stdout.close()


if __name__ == '__main__':
  absltest.main()
