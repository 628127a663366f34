"""Interests by an endpoint, and what stands in for it where it fails."""
import json
import socket

import httpx
from absl.testing import absltest, parameterized

from recjax.text import interest_terms
from tests.serving import app_test, fake_service
from tests.text import llm_api_test


class InterestsTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(body=llm_api_test.reply(['<interest>Ropes</interest>'])), 'model', ['Ropes'], ''),
      (dict(status=429), 'local', None, 'rate_limited'), (dict(wait=9), 'local', None, 'gave no'),
      (dict(body='{"broken'), 'local', None, 'malformed'),
      (dict(body='x' * 100, cut=3), 'local', None, 'gave no'),
      (dict(body=llm_api_test.reply([''])), 'local', None, 'empty'),
      (dict(body=llm_api_test.reply(['Ropes!'])), 'local', None, 'without interests'))
  def test_an_endpoint_and_what_stands_in_for_it(self, step, source, want, note):
    asked = interest_terms.interest_messages([42, 45], fake_service.CATALOG.columns)[-1]['content']
    with llm_api_test.serving({asked: [step]}) as server:
      http = app_test.client(interests_url=f'http://127.0.0.1:{server.server_port}/v1',
                             interests_model='m',
                             interests_seconds=0.5 if {'wait', 'status'} & {*step} else 5)
      found = http.post('/v1/interests', json={'history': ['i41', 'i44']}).json()
    self.assertEqual(found['source'], source)
    self.assertIn(note, found['note'])
    if want:
      self.assertEqual(found['interests'], want)
    else:
      self.assertNotEmpty(found['interests'])

  def test_an_endpoint_that_is_not_there_and_what_the_shop_says(self):
    with socket.create_server(('127.0.0.1', 0)) as free:
      port = free.getsockname()[1]
    shop = fake_service.service(interests_url=f'http://127.0.0.1:{port}/v1', interests_model='m',
                              interests_seconds=0.5)
    with fake_service.listening(shop) as url, httpx.Client(base_url=url, timeout=60) as http:
      user = http.get('/shop/state').json()['user']
      http.post('/v1/events', json={'user': user, 'item': 'i41', 'type': 'purchase'})
      http.get('/shop/history')
      with http.stream('GET', '/shop/events') as answer:
        for line in answer.iter_lines():
          if line.startswith('data:') and json.loads(line[5:])['interests']:
            break
    found = json.loads(line[5:])
    self.assertEqual((found['source'], found['interests']), ('local', ['Green Rope']))
    self.assertIn('gave no', found['note'])


if __name__ == '__main__':
  absltest.main()
