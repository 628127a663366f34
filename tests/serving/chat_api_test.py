"""Chat completions: OpenAI's own client, streams, refusals; and the published schema, attacked."""
import importlib.util

from absl.testing import absltest, parameterized

from recjax.serving import app as apps
from recjax.text import llm_api
from tests.long import ALL
from tests.serving import app_test, fake_service


class ChatTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.http = app_test.client()

  def ask(self, text='Hello', **body):
    body = {'messages': [{'role': 'user', 'content': text}], **body}
    return self.http.post('/v1/chat/completions', json=body)

  def test_an_answer_and_its_items(self):
    found = self.ask('What next?', history=['i3', 'nix'], model='talk').json()
    self.assertEqual(found['choices'][0]['message']['content'],
                     'You said: What next?\nTry "blue kettle 4".')
    self.assertEqual([(i['id'], i['title']) for i in found['items']], [('i4', 'blue kettle 4')])
    self.assertEqual(found['usage']['total_tokens'], 12)

  def test_items_of_further_catalogs_have_their_title_alone(self):
    service = fake_service.service()
    service.models['talk'].chat_model.own = lambda answer: False
    self.http = app_test.client(service)
    self.assertEqual(self.ask(history=['i3'], model='talk').json()['items'],
                     [{'id': 'i4', 'title': 'blue kettle 4'}])

  @parameterized.parameters(
      (dict(messages=[]), 422), (dict(messages=[{'role': 'tool', 'content': 'x'}]), 422),
      (dict(messages=[{'role': 'user', 'content': 'x' * 20_001}]), 422),
      (dict(messages=[{'role': 'user', 'content': 'x'}] * 201), 422), (dict(n=2), 422),
      (dict(n=0), 422), (dict(temperature=3), 422), (dict(max_tokens=0), 422),
      (dict(max_items=11), 422), (dict(min_items=-1), 422), (dict(model='no'), 404),
      (dict(model='ring'), 422), (dict(seed=2**63), 422), (dict(messages=[
          {'role': 'user', 'content': [{'type': 'image_url', 'image_url': 'x'}]}]), 422),
      (dict(messages=[{'role': 'user', 'content': [{'type': 'text', 'text': 'hi'}]}]), 200))
  def test_refusals(self, body, status):
    answer = self.ask(**body)
    self.assertEqual(answer.status_code, status, answer.text)

  def test_the_job_of_base_tags_takes_this_server(self):
    """It answers one at a time, and refuses a request for more."""
    folder, lines = self.create_tempdir().full_path, []
    with fake_service.listening(fake_service.service()) as url:
      api = llm_api.ApiConfig(f'{url}/v1', 'talk', n=3, concurrency=2, price_out=1.)
      asked = {text: [{'role': 'system', 'content': 's'}, {'role': 'user', 'content': text}]
               for text in ('Some', 'words')}
      found = llm_api.run_requests(asked, api, folder, log=lines.append)
      again = llm_api.run_requests(asked, api, folder, log=lines.append)
      one = llm_api.ask(asked['Some'], api)
    self.assertEqual(found['words'].texts, ('You said: words\nTry "red kettle 0".',) * 3)
    self.assertEqual((again, one.texts), (found, found['Some'].texts[:1]))
    used = self.ask('words', model='talk').json()['usage']
    self.assertIn(f'{6 * used["prompt_tokens"]} tokens asked and {6 * used["completion_tokens"]} '
                  'answered', lines[-1])

  def test_openais_client(self):
    if importlib.util.find_spec('openai') is None:
      self.skipTest('openai is not installed')
    import openai
    with fake_service.listening(fake_service.service(api_key='k')) as url:
      client = openai.OpenAI(base_url=f'{url}/v1', api_key='k', max_retries=0)
      turns = [{'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'Some words'}]
      found = client.chat.completions.create(model='talk', messages=turns, temperature=0.2)
      self.assertEqual(found.choices[0].message.content,
                       'You said: Some words\nTry "red kettle 0".')
      self.assertEqual(found.items[0]['id'], 'i0')
      chunks = list(client.chat.completions.create(
          model='talk', messages=turns, stream=True, stream_options={'include_usage': True}))
      text = ''.join(c.choices[0].delta.content or '' for c in chunks if c.choices)
      self.assertEqual(text, found.choices[0].message.content)
      self.assertGreater(len(chunks), 5)
      self.assertEqual(chunks[-2].items[0]['id'], 'i0')
      self.assertEqual(chunks[-1].usage.total_tokens, 12)
      self.assertEqual([m.id for m in client.models.list()], ['ring', 'talk'])
      with self.assertRaisesRegex(openai.UnprocessableEntityError, 'ring cannot do this; .*RecLM'):
        client.chat.completions.create(model='ring', messages=turns)
      with self.assertRaises(openai.AuthenticationError):
        client.with_options(api_key='wrong').models.list()


class SchemaTest(absltest.TestCase):

  def test_no_request_of_the_schema_makes_a_server_error(self):
    if importlib.util.find_spec('schemathesis') is None:
      self.skipTest('schemathesis is not installed')
    import hypothesis
    import schemathesis
    app = apps.create_app(fake_service.service())
    inner = app.app.openapi()
    schema = schemathesis.openapi.from_dict(inner)
    http, statuses = app_test.client(), set()
    for operation in schema.get_all_operations():
      case_of = operation.ok().as_strategy()
      if operation.ok().path == '/shop/events':
        continue

      @hypothesis.settings(max_examples=25 if ALL else 5, deadline=None, database=None,
                           suppress_health_check=list(hypothesis.HealthCheck))
      @hypothesis.given(case=case_of)
      def attack(case):
        given = case.as_transport_kwargs(base_url='http://127.0.0.1')
        given.get('headers', {}).pop('User-Agent', None)
        answer = http.request(**given)
        statuses.add(answer.status_code)
        self.assertLess(answer.status_code, 500, given)
      attack()
    self.assertIn(200, statuses)


if __name__ == '__main__':
  absltest.main()
