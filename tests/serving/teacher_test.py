"""The served teacher: oracle D2 of reclm.md, its refusals, and a client that trains with it."""
import threading
import time

import numpy as np
from absl.testing import absltest, parameterized
from fastapi.testclient import TestClient

from recjax.data.dataset import Catalog
from recjax.errors import DataError
from recjax.methods.reclm import teacher as client
from recjax.serving import teacher

CATALOG = Catalog(tuple('ABCD'), {'categories': [['R', 'x'], ['R', 'y'], ['R', 'x'], ['R', 'y']]})


def face(histories, k, exclude_seen=True, allowed=None):
  """Logits A 4, B 3, C 2, D 1."""
  out = []
  for h in histories:
    for i in h:
      CATALOG.index(i)
    good = [i for i in 'ABCD' if not (exclude_seen and i in h)
            and (allowed is None or i in allowed)]
    out.append(good[:k])
  return out, np.zeros((len(out), k))


class TeacherTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.http = TestClient(teacher.app(face, CATALOG))

  def ask(self, route='inference', **body):
    return self.http.post(f'/{route}', json={'users': ['u'], 'item_lengths': [1], **body})

  @parameterized.parameters(
      (dict(k=2), ['B', 'C'], False), (dict(k=2, target_category=['+y']), ['B', 'D'], False),
      (dict(k=3, target_category=['+y']), ['B', 'D'], True),
      (dict(k=2, target_category=['-x']), ['B', 'D'], False),
      (dict(k=2, candidate_item_lists=[['A', 'C']]), ['A', 'C'], False))
  def test_d2_inference(self, more, want, short):
    found = self.ask(item_lists=[['A']], **more).json()
    self.assertEqual(found['inference'], [want])
    self.assertEqual(found.get('short', False), short)

  def test_d2_ranking(self):
    found = self.ask('ranking', item_lists=[['A']], candidate_item_lists=[['C', 'A']]).json()
    self.assertEqual(found, {'ranking': [[2, 0]]})

  def test_batches_are_answered_in_order(self):
    found = self.ask(item_lists=[['A'], [], ['B', 'C']], k=2).json()
    self.assertEqual(found['inference'], [['B', 'C'], ['A', 'B'], ['A', 'D']])

  @parameterized.parameters(
      ('inference', dict(item_lists=[['Z']]), "'Z'"), ('inference', dict(item_lists=[]), '1 to'),
      ('inference', dict(item_lists=[['A']], k=0), 'greater'),
      ('inference', dict(item_lists=[['A']], target_category=['?y']), 'known'),
      ('inference', dict(item_lists=[['A']], target_category=[]), '0 entries'),
      ('ranking', dict(item_lists=[['A']]), 'needs candidate'))
  def test_refusals(self, route, body, what):
    answer = self.ask(route, **body)
    self.assertEqual(answer.status_code, 422)
    self.assertIn(what, answer.text)

  def test_health_and_size(self):
    self.assertEqual(self.http.get('/healthz').json()['items'], 4)
    big = self.http.post('/inference', content=b' ' * (teacher.BODY + 1))
    self.assertEqual(big.status_code, 413)

  def test_a_training_run_asks_over_http(self):
    import uvicorn
    server = uvicorn.Server(uvicorn.Config(teacher.app(face, CATALOG), port=0, log_level='error'))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
      time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    found = client.ask_server(f'http://127.0.0.1:{port}', CATALOG, [[1], [2, 3], [4]], 3, batch=2)
    np.testing.assert_array_equal(found, [[2, 3, 4], [1, 4, 0], [1, 2, 3]])
    with self.assertRaisesRegex(DataError, '404'):
      client.post(f'http://127.0.0.1:{port}/none', {})
    server.should_exit = True
    thread.join()
    with self.assertRaisesRegex(DataError, 'does not answer'):
      client.ask_server(f'http://127.0.0.1:{port}', CATALOG, [[1]], 3)


if __name__ == '__main__':
  absltest.main()
