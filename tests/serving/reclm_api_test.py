"""RecLM's published routes: answers, refusals, and a client that trains with them."""
import threading
import time

import fastapi
import numpy as np
from absl.testing import absltest, parameterized
from fastapi.testclient import TestClient

from recjax.data.dataset import Catalog
from recjax.errors import DataError
from recjax.methods.reclm import teacher as client
from recjax.serving import app as apps
from recjax.serving import reclm_api

CATALOG = Catalog(tuple('ABCD'), {'categories': [['R', 'x'], ['R', 'y'], ['R', 'x'], ['R', 'y']]})


def top_items(histories, k, exclude_seen, mask):
  """Logits A 4, B 3, C 2, D 1."""
  rows = []
  for history in histories:
    good = [i for i in range(1, 5) if not (exclude_seen and i in history)
            and (mask is None or mask[i - 1])][:k]
    rows.append(good + [0] * (k - len(good)))
  return np.array(rows), np.zeros((len(rows), k))


def api():
  app = fastapi.FastAPI()
  apps.add_error_handlers(app)
  reclm_api.add_routes(app, lambda: (top_items, CATALOG))
  return app


class ReclmApiTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.http = TestClient(api())

  def ask(self, route='inference', **body):
    return self.http.post(f'/{route}', json={'users': ['u'], 'item_lengths': [1], **body})

  @parameterized.parameters(
      (dict(k=2), ['B', 'C'], False), (dict(k=2, target_category=['+y']), ['B', 'D'], False),
      (dict(k=3, target_category=['+y']), ['B', 'D'], True),
      (dict(k=2, target_category=['-x']), ['B', 'D'], False),
      (dict(k=2, candidate_item_lists=[['A', 'C']]), ['A', 'C'], False))
  def test_inference(self, more, want, short):
    found = self.ask(item_lists=[['A']], **more).json()
    self.assertEqual(found['inference'], [want])
    self.assertEqual(found.get('short', False), short)

  def test_ranking(self):
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

  def test_candidates_that_may_not_come_have_no_rank(self):
    def without_c(histories, k, exclude_seen, mask):
      return np.array([[1, 2, 4, 0]] * len(histories)), np.zeros((len(histories), k))
    ranker = reclm_api.ReclmRanker(without_c, CATALOG, {})
    with self.assertRaisesRegex(DataError, "'C' is retired"):
      ranker.rank(reclm_api.ReclmRequest(item_lists=[['A']], candidate_item_lists=[['B', 'C']]))

  def test_a_training_run_asks_over_http(self):
    import uvicorn
    server = uvicorn.Server(uvicorn.Config(api(), port=0, log_level='error'))
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
