"""Chat completions: OpenAI's own client, streams, refusals; and the published schema, attacked."""
import collections
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
      (dict(max_items=11), 422), (dict(min_items=False), 422), (dict(stream='yes'), 422),
      (dict(seed='7'), 422), (dict(max_items=5.0), 200), (dict(min_items=-1), 422),
      (dict(model='no'), 404), (dict(model='ring'), 422), (dict(seed=2**63), 422), (dict(messages=[
          {'role': 'user', 'content': [{'type': 'image_url', 'image_url': 'x'}]}]), 422),
      (dict(messages=[{'role': 'user', 'content': [{'type': 'text', 'text': 'hi'}]}]), 200))
  def test_refusals(self, body, status):
    answer = self.ask(**body)
    self.assertEqual(answer.status_code, status, answer.text)

  @parameterized.parameters(
      ('tools', [{'type': 'function', 'function': {'name': 'f'}}], []),
      ('response_format', {'type': 'json_object'}, {'type': 'text'}),
      ('logprobs', True, False), ('top_logprobs', 3, 0), ('frequency_penalty', 0.5, 0.0),
      ('presence_penalty', -1, 0), ('top_p', 0.5, 1.0), ('logit_bias', {'5': 1}, {}),
      ('functions', [{'name': 'f'}], []), ('tool_choice', 'required', 'auto'),
      ('store', True, False), ('modalities', ['audio'], ['text']), ('metadata', {'a': 'b'}, {}),
      ('audio', {'voice': 'x'}, None), ('reasoning_effort', 'low', None), ('max_itmes', 3, None),
      ('service_tier', 'flex', 'auto'), ('prediction', {'type': 'content'}, None))
  def test_what_is_not_supported_is_named(self, field, value, neutral):
    answer = self.ask(**{field: value})
    self.assertEqual(answer.status_code, 422, answer.text)
    error = answer.json()['error']
    self.assertEqual(error['param'], field)
    self.assertIn(f'{field}: this is not supported', error['message'])
    self.assertEqual(self.ask(**{field: neutral}).status_code, 200)
    self.assertEqual(self.ask(**{field: None}).status_code, 200)

  def test_messages_take_their_own_fields_alone(self):
    turn = {'role': 'user', 'content': 'x'}
    for extra, status in (({'tool_calls': None, 'refusal': None, 'annotations': []}, 200),
                          ({'tool_calls': [{'id': '1'}]}, 422), ({'name': 'me'}, 422)):
      answer = self.ask(messages=[{**turn, **extra}])
      self.assertEqual(answer.status_code, status, answer.text)
    self.assertIn('messages.0.name', answer.json()['error']['param'])

  @parameterized.parameters(
      ('!', 'You said: Hello', []), (['x', '\nTry'], 'You said: Hello!', []),
      ('Try "', 'You said: Hello!\n', []), ('kettle', 'You said: Hello!\nTry ', []),
      ('".', 'You said: Hello!\nTry ', []), ('.', 'You said: Hello!\nTry "red kettle 0"', ['i0']),
      ('nowhere', 'You said: Hello!\nTry "red kettle 0".', ['i0']),
      ([], 'You said: Hello!\nTry "red kettle 0".', ['i0']))
  def test_stop_words(self, stop, text, items):
    found = self.ask('Hello!', stop=stop).json()
    self.assertEqual(found['choices'][0]['message']['content'], text)
    self.assertEqual([i['id'] for i in found['items']], items)
    self.assertEqual(found['choices'][0]['finish_reason'], 'stop')

  def test_stop_words_that_are_none(self):
    for stop in ('', ['a'] * 5, 3, ['x' * 201], [None]):
      self.assertEqual(self.ask(stop=stop).status_code, 422, stop)

  def test_a_user_is_asked_about_by_id_and_told_apart(self):
    http = self.http
    http.post('/v1/events', json={'user': 'u', 'item': 'i5', 'type': 'purchase'})
    found = self.ask(user='u').json()
    self.assertEqual([i['id'] for i in found['items']], ['i6'])
    http.post('/v1/events', json={'user': 'u', 'item': 'i6', 'type': 'click',
                                  'request_id': found['request_id']})
    self.assertEqual(self.ask(user='u', history=['i9']).json()['items'][0]['id'], 'i10')
    stream = self.ask(user='u', stream=True).text
    self.assertIn('"request_id": "', stream)
    self.assertIsNone(self.ask().json()['request_id'])
    counts, = http.app.app.app.state.service.store.report()
    self.assertEqual((counts.model, counts.answers, counts.clicked), ('talk', 3, 1))

  def test_one_model(self):
    found = self.http.get('/v1/models/talk').json()
    self.assertEqual((found['id'], found['converses']), ('talk', True))
    self.assertEqual(self.http.get('/v1/models/nix').status_code, 404)

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
      self.assertEqual(client.models.retrieve('talk').id, 'talk')
      again = [*turns, found.choices[0].message, {'role': 'user', 'content': 'And?'}]
      cut = client.chat.completions.create(
          model='talk', messages=again, stop=['kettle'], seed=7, temperature=0.123, top_p=1,
          frequency_penalty=0, tools=openai.NOT_GIVEN, response_format={'type': 'text'})
      self.assertEqual(cut.choices[0].message.content, 'You said: And?\nTry ')
      for given in (dict(tools=[{'type': 'function', 'function': {'name': 'f'}}]),
                    dict(response_format={'type': 'json_object'}), dict(logprobs=True)):
        with self.assertRaises(openai.UnprocessableEntityError) as caught:
          client.chat.completions.create(model='talk', messages=turns, **given)
        self.assertEqual(caught.exception.param, next(iter(given)))
      with self.assertRaises(openai.NotFoundError):
        client.models.retrieve('nix')
      with self.assertRaisesRegex(openai.UnprocessableEntityError, 'ring cannot do this; .*RecLM'):
        client.chat.completions.create(model='ring', messages=turns)
      with self.assertRaises(openai.AuthenticationError):
        client.with_options(api_key='wrong').models.list()


class SchemaTest(absltest.TestCase):

  def test_no_request_of_the_schema_makes_a_server_error(self):
    """And every answer is what the schema says, in status, type and form."""
    if importlib.util.find_spec('schemathesis') is None:
      self.skipTest('schemathesis is not installed')
    import hypothesis
    import schemathesis
    from schemathesis import checks
    shop = fake_service.service()
    app = apps.create_app(shop)
    schema = schemathesis.openapi.from_asgi('/openapi.json', app.app)
    checked = checks.CHECKS.get_by_names([
        'not_a_server_error', 'status_code_conformance', 'content_type_conformance',
        'response_schema_conformance'])
    statuses = collections.defaultdict(set)
    for operation in schema.get_all_operations():
      if operation.ok().path == '/shop/events':  # which does not end
        continue

      @hypothesis.settings(max_examples=40 if ALL else 5, deadline=None, database=None,
                           derandomize=not ALL,
                           suppress_health_check=list(hypothesis.HealthCheck))
      @hypothesis.given(case=operation.ok().as_strategy())
      def attack(case):
        answer = case.call_and_validate(base_url='http://127.0.0.1', checks=checked)
        statuses[answer.status_code].add(case.operation.label)
      attack()
    self.assertGreater(len(statuses[200]), 12, statuses)

  def test_keys_stand_in_the_schema_where_they_are_asked_for(self):
    schema = app_test.client(api_key='k').get(
        '/openapi.json', headers={'X-API-Key': 'k'}).json()
    self.assertEqual(schema['security'], [{'bearer': []}, {'header': []}, {'browser': []}])
    self.assertEqual(set(schema['components']['securitySchemes']),
                     {'bearer', 'header', 'browser'})
    schema = app_test.client().get('/openapi.json').json()
    self.assertEqual(schema['security'], [{}])
    for path, methods in schema['paths'].items():
      for method, operation in methods.items():
        if path.startswith(('/v1', '/healthz', '/readyz')):
          content = operation['responses']['200']['content']['application/json']
          self.assertNotEmpty(content['schema'], (method, path))


if __name__ == '__main__':
  absltest.main()
