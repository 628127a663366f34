"""The short way of POST /v1/recommend answers as FastAPI's does, whatever comes."""
import json

import hypothesis.strategies as st
from absl.testing import absltest, parameterized
from hypothesis import given

from recjax.serving import app as apps
from recjax.serving import direct_route
from tests.long import examples
from tests.serving import app_test, fake_service

IDS = st.one_of(st.integers(0, 59).map('i{}'.format), st.text(max_size=3), st.integers(),
                st.just('\ud800'), st.floats(), st.booleans(), st.none())
FIELDS = {'history': st.lists(IDS, max_size=4) | st.none(), 'user': st.text(max_size=3) | IDS,
          'k': st.integers(-1, 102) | st.floats() | st.text(max_size=2) | st.booleans(),
          'model': st.sampled_from(['', 'ring', 'talk', 'no', 3]),
          'category': st.sampled_from([None, 'light', 'no', '\0', 7]),
          'allow': st.none() | st.lists(IDS, max_size=3), 'block': st.lists(IDS, max_size=3),
          'exclude_seen': st.booleans() | st.integers(0, 1), 'why': st.booleans() | st.text(),
          'more': st.integers()}
BODIES = st.lists(st.sampled_from(sorted(FIELDS)), max_size=4, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: FIELDS[name] for name in names}))
JSON = {'Content-Type': 'application/json'}


class DirectRouteTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    services = [fake_service.service() for _ in range(2)]
    for service in services:
      service.app = apps.create_app(service)
    services[1].app.app = services[1].app.app.app  # FastAPI alone
    cls.https = [app_test.client(service) for service in services]

  def both(self, body, headers, path='/v1/recommend'):
    """What both ways say to a body: status, headers and what can be equal of the answer."""
    found = []
    for http in self.https:
      answer = http.post(path, content=body, headers=headers)
      told = answer.json()
      told['request_id'] = bool(told.get('request_id'))
      heads = {name: value for name, value in answer.headers.items()
               if name not in ('x-request-id', 'content-length')}
      found.append((answer.status_code, heads, told))
    return found

  @examples(60, 500)
  @given(BODIES)
  def test_any_fields(self, body):
    first, second = self.both(json.dumps(body).encode(), JSON)
    self.assertEqual(first, second)

  @parameterized.parameters(
      *((b'{"history": ["i3"], "k": 2}', kind) for kind in (
          'application/json; charset=utf-8', 'application/json;charset=latin1', 'text/plain',
          'APPLICATION/JSON', 'application/vnd.api+json', 'application/jsonx', '')),
      *((body, 'application/json') for body in (
          b'{"history": [', b'', b'[]', b'null', b'{"k": NaN}', b'{"history": [1.0]}',
          b'{"k": 1e1}', b'{"k": 2, "k": 3}', b'{"history": ["' + b'9' * 5000 + b'"]}',
          b'{"history": [' + b'9' * 5000 + b']}', b'{"history": [' + b'9' * 400 + b']}',
          b'\xef\xbb\xbf{}', '{"k": 3}'.encode('utf-16'), b'{"category": "\\u0000"}',
          b'{"history": ["\xff"]}', b'{"k": 3,}', b' {"k": 3}\n', b'{"history": ["\\ud800"]}',
          b'{"user": "u", "k": 2}', b'{"user": "u\\u0000"}', b'{"model": "no", "why": true}',
          b'{"history": ["i3", "nix"], "why": true, "model": "talk"}')))
  def test_bodies_and_kinds(self, body, kind):
    first, second = self.both(body, {'Content-Type': kind})
    self.assertEqual(first, second)

  def test_fastapi_is_not_asked_for_what_is_sound(self):
    async def never(scope, receive, send):
      raise AssertionError('asked')
    service = fake_service.service()
    service.app = apps.create_app(service)
    service.app.app.app = never
    http = app_test.client(service)
    answer = http.post('/v1/recommend?x=1', json={'history': ['i3'], 'k': 2})
    self.assertEqual(app_test.ids(answer), ['i4', 'i5'])
    with self.assertLogs('recjax', 'ERROR'):
      self.assertEqual(http.post('/v1/recommend', json={'k': 0}).status_code, 500)

  def test_numbers_of_any_size_and_none_at_all(self):
    for value in ({'price': 10**30, 'title': 'ü\u2028'}, {'price': 1.5}):
      self.assertEqual(json.loads(direct_route.encode_json(value)), value)
    self.assertEqual(direct_route.encode_json({'a': float('nan')}), b'{"a":null}')
    with self.assertRaises(ValueError):
      direct_route.encode_json({'a': 10**30, 'b': float('nan')})


if __name__ == '__main__':
  absltest.main()
