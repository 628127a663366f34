"""The API job against a local server that misbehaves: nothing paid is lost, nothing leaks."""
import collections
import contextlib
import dataclasses
import email.utils
import http.server
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from unittest import mock

from absl.testing import absltest, parameterized

from recjax import file_io
from recjax.errors import ConfigError, ServiceError, WorkdirError
from recjax.text import llm_api
from tests.long import long

KEY = 'sk-very-secret-4711'
USAGE = dict(prompt_tokens=100, completion_tokens=50)


def reply(texts, **extra):
  choices = [dict(message=dict(role='assistant', content=text), finish_reason='stop')
             for text in texts]
  return json.dumps(dict(choices=choices, usage=USAGE, **extra))


class Server(http.server.ThreadingHTTPServer):
  """Answers by the last message's text; script[text] is a list of replies used up in turn.

  A reply is a dict(status, headers, body, wait, cut); without one '1. tag of TEXT' comes back.
  like: function of a request and how often its text was asked before, which makes the reply.
  """
  daemon_threads = True

  def __init__(self, script=None, like=None):
    super().__init__(('127.0.0.1', 0), Handler)
    self.like, self.bodies = like, []
    self.script, self.asked, self.lock = script or {}, collections.Counter(), threading.Lock()
    self.times, self.keys, self.busy, self.busiest, self.wait = [], set(), 0, 0, 0.
    self.release, self.crowd, self.crowded = threading.Event(), 0, threading.Event()

  def handle_error(self, *_):
    pass  # clients that hang up are part of the tests


class Handler(http.server.BaseHTTPRequestHandler):

  def do_POST(self):
    server = self.server
    asked = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    text = asked['messages'][-1]['content']
    with server.lock:
      server.bodies.append(asked)
      server.asked[text] += 1
      server.times.append(time.monotonic())
      server.keys.add(self.headers.get('Authorization'))
      server.busy += 1
      server.busiest = max(server.busiest, server.busy)
      steps = server.script.get(text, [])
      step = steps.pop(0) if len(steps) > 1 else steps[0] if steps else {}
      if server.like:
        step = server.like(asked, server.asked[text] - 1)
      if server.busy >= server.crowd:
        server.crowded.set()
    try:
      if server.crowd:  # nobody is answered before so many are here, and then for a moment more
        server.crowded.wait(20)
      server.release.wait(step.get('wait', server.wait))
    finally:
      with server.lock:
        server.busy -= 1
    body = step.get('body', reply([f'1. tag of {text}'] * asked['n'])).encode()
    self.send_response(step.get('status', 200))
    for name, value in step.get('headers', {}).items():
      self.send_header(name, value)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body[:step.get('cut', len(body))])

  def log_message(self, *_):
    pass


@contextlib.contextmanager
def serving(script=None, like=None):
  server = Server(script, like)
  thread = threading.Thread(target=server.serve_forever, args=(.02,), daemon=True)
  thread.start()
  try:
    yield server
  finally:
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


def config(server, **changes):
  settings = dict(base_url=f'http://127.0.0.1:{server.server_port}/v1', model='m', n=2,
                  max_tokens=50, timeout=5., concurrency=4, retries=2, backoff=.01)
  return llm_api.ApiConfig(**{**settings, **changes})


def ask(*texts):
  return {text: [dict(role='system', content='help'), dict(role='user', content=text)]
          for text in texts}


class ApiCase(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    os.environ.update(OPENAI_API_KEY=KEY, no_proxy='127.0.0.1')
    self.folder = pathlib.Path(tempfile.mkdtemp())
    self.journal = self.folder / 'responses.jsonl'
    self.lines = []

  def run_job(self, server, requests, **changes):
    return llm_api.run_requests(requests, config(server, **changes), self.folder,
                                log=self.lines.append)

  def one(self, *steps, **changes):
    """Result of one request that meets these steps, and how often it was asked."""
    with serving({'x': list(steps)}) as server:
      result = self.run_job(server, ask('x'), failure_ratio=1., **changes)['x']
      return result, server.asked['x']


class AnswersTest(ApiCase):

  def test_answers_keep_order_and_are_never_asked_again(self):
    names = [f'item {i}' for i in range(20)]
    steps = []
    with serving() as server:
      api = config(server)
      first = llm_api.run_requests(ask(*names), api, self.folder, log=self.lines.append,
                                   progress=lambda done, total: steps.append((done, total)))
      second = self.run_job(server, ask(*names, 'one more'))
      self.assertEqual(set(server.asked.values()), {1})
      self.assertLessEqual(server.busiest, 4)
      self.assertEqual(server.keys, {f'Bearer {KEY}'})
    self.assertEqual(list(first), names)
    self.assertEqual(first['item 3'].texts, ('1. tag of item 3',) * 2)
    self.assertEqual({name: second[name] for name in names}, first)
    self.assertEqual(steps[-1], (20, 20))

  @parameterized.parameters(1, 3, 4)
  def test_as_many_as_concurrency_says_are_under_way_no_more_and_no_fewer(self, most):
    held, hold = [], llm_api._Ledger.hold

    def seen(ledger, cost):
      good = hold(ledger, cost)
      held.append(ledger.held)
      return good
    with serving() as server, mock.patch.object(llm_api._Ledger, 'hold', seen):
      server.crowd, server.wait = most, .05
      names = [f'item {i:02d}' for i in range(12)]
      prices = dict(max_cost=1e9, price_in=1., price_out=1.)
      self.run_job(server, ask(*names), concurrency=most, timeout=60., **prices)
      self.assertEqual(server.busiest, most)
      api = config(server, **prices)
      job = llm_api._Job(api, '', None)
      cost = job.ledger.price_of(job.ledger.worst(job._body(ask(names[0])[names[0]])))
    self.assertAlmostEqual(max(held), most * cost)  # money is put aside for those alone

  def test_equal_requests_under_two_names_are_asked_once(self):
    with serving() as server:
      messages = ask('x')['x']
      results = self.run_job(server, dict(a=messages, b=messages))
      self.assertEqual(server.asked['x'], 1)
    self.assertEqual(results['a'], results['b'])

  def test_another_model_or_number_of_samples_is_another_request(self):
    with serving() as server:
      self.run_job(server, ask('x'))
      self.run_job(server, ask('x'), n=3)
      self.run_job(server, ask('x'), model='other')
      self.assertEqual(server.asked['x'], 3)


class FaultsTest(ApiCase):

  def test_pauses_asked_for_in_seconds_or_as_a_date_are_kept(self):
    for code, value, least in ((429, '0.3', .3), (503, 'date', 0), (429, '-5', 0)):
      moment = int(time.time()) + 2 if value == 'date' else 0
      if moment:
        value = email.utils.formatdate(moment, usegmt=True)
      with serving({'x': [dict(status=code, headers={'Retry-After': value}), {}]}) as server:
        self.assertNotEmpty(self.run_job(server, ask('x'), retries=1)['x'].texts)
        self.assertGreaterEqual(server.times[1] - server.times[0], least)
        self.assertGreaterEqual(time.time(), moment)
      self.journal.unlink()

  def test_a_pause_of_hours_ends_the_job_with_advice(self):
    with self.assertRaisesRegex(ServiceError, 'pause of 9000 s; run again'):
      self.one(dict(status=429, headers={'Retry-After': '9000'}))

  def test_rate_limits_do_not_use_up_the_retries(self):
    limited = dict(status=429, headers={'Retry-After': '0'})
    result, asked = self.one(*[limited] * 6, {}, retries=1)
    self.assertEqual((result.failure, asked), ('', 7))

  @parameterized.parameters(
      dict(step=dict(status=500), kind='server_error'),
      dict(step=dict(wait=60.), kind='timeout', timeout=.5),
      dict(step=dict(body='{"choices": [{"mess'), kind='malformed'),
      dict(step=dict(body='{"error": "odd"}'), kind='malformed'),
      dict(step=dict(body=reply(['1. a']), cut=30), kind='malformed'))
  def test_passing_faults_are_retried_then_recorded_as_failures(self, step, kind, timeout=5.):
    result, asked = self.one(step, {}, timeout=timeout)
    self.assertEqual((result.failure, asked), ('', 2))
    self.journal.unlink()
    result, asked = self.one(step, timeout=timeout)
    self.assertEqual((result.failure, result.texts, asked), (kind, (), 3))
    result, asked = self.one({})  # a later run tries again
    self.assertEqual((result.failure, asked), ('', 1))

  @parameterized.parameters(
      (dict(status=400, body='too long'), 'rejected'), (dict(status=422), 'rejected'),
      (dict(body=reply(['', None])), 'empty'), (dict(body=reply([])), 'empty'),
      (dict(body=reply(["I'm sorry, but I can’t help.", 'As an AI model I must not'])), 'refused'),
      (dict(body='{"choices": [{"message": {"content": null, "refusal": "no"}}]}'), 'refused'))
  def test_lasting_failures_are_asked_once_ever(self, step, kind):
    result, asked = self.one(step)
    self.assertEqual((result.failure, result.texts, asked), (kind, (), 1))
    self.assertEqual(self.one(step), (result, 0))

  def test_a_refusal_among_the_samples_is_left_out(self):
    result, _ = self.one(dict(body=reply(['1. a', 'I cannot do that', '1. b'])))
    self.assertEqual(result.texts, ('1. a', '1. b'))

  def test_the_allowed_share_of_failures_is_still_allowed(self):
    with serving({'bad': [dict(status=400)], 'bad too': [dict(status=400)]}) as server:
      self.run_job(server, ask('bad', 'a'), failure_ratio=.5)
      with self.assertRaisesRegex(ServiceError, '2 of 3'):
        self.run_job(server, ask('bad', 'bad too', 'a'), failure_ratio=.5)

  def test_too_many_failures_are_an_error_after_all_else_is_answered(self):
    with serving({'bad': [dict(status=400, body='too long')]}) as server:
      with self.assertRaisesRegex(ServiceError, '1 of 3 .*1 rejected.*too long.*responses.jsonl'):
        self.run_job(server, ask('bad', 'a', 'b'), concurrency=1)
      results = self.run_job(server, ask('bad', 'a', 'b'), failure_ratio=.34)
      self.assertEqual(server.asked, dict(bad=1, a=1, b=1))
    self.assertEqual([results[k].failure for k in results], ['rejected', '', ''])

  def test_an_outage_ends_the_job_early(self):
    names = [f'item {i}' for i in range(200)]
    with (serving({name: [dict(status=500)] for name in names}) as server,
          self.assertRaisesRegex(ServiceError, 'the last 21 .* all failed .*HTTP 500')):
      self.run_job(server, ask(*names), retries=0, concurrency=1)
    self.assertBetween(sum(server.asked.values()), 21, 22)  # one may be under way as it ends

  def test_nobody_listening_is_a_failure_not_a_crash(self):
    with serving() as server:
      api = config(server, retries=1, failure_ratio=1.)
    results = llm_api.run_requests(ask('x'), api, self.folder, log=self.lines.append)
    self.assertEqual(results['x'].failure, 'unreachable')


def ignores_n(asked, before):
  """As llama-cpp-python's server: one choice, whatever `n` says (its issue 1906)."""
  return dict(body=reply([f'1. tag {before} of {asked["messages"][-1]["content"]}']))


REFUSALS = {  # of `n` above 1, by servers of these kinds
    'llama.cpp': dict(status=500, body='{"error":{"code":500,"message":"Only one completion choice '
                                       'is allowed","type":"server_error"}}'),
    'pydantic': dict(status=422, body='{"detail":[{"type":"less_than_equal","loc":["body","n"],'
                                      '"msg":"Input should be less than or equal to 1"}]}'),
    'MLX': dict(status=400, body='n must equal 1 (multi-choice is not supported)')}


class RealServersTest(ApiCase):
  """What servers do that are not OpenAI's."""

  def test_where_n_is_ignored_the_missing_answers_are_asked_for(self):
    with serving(like=ignores_n) as server:
      results = self.run_job(server, ask('a', 'b', 'c'), n=3, concurrency=1)
      self.assertEqual(server.asked, dict(a=3, b=3, c=3))
      self.assertEqual([body['n'] for body in server.bodies], [3] + [1] * 8)
      names = [body['messages'][-1]['content'] for body in server.bodies]
      self.assertEqual(names, sorted(names))  # a prompt's answers together: it is read once
      self.assertEqual(results['b'].texts, tuple(f'1. tag {i} of b' for i in range(3)))
      self.run_job(server, ask('a', 'b', 'c'), n=3)
      self.assertLen(server.bodies, 9)
    records = [json.loads(line) for line in self.journal.read_text().splitlines()]
    self.assertEqual(sum(record['tokens_in'] for record in records), 9 * USAGE['prompt_tokens'])
    self.assertLen([line for line in self.lines if 'one at a time' in line], 1)
    self.assertIn('900 tokens asked and 450 answered', ' '.join(self.lines))

  def test_of_answers_that_came_one_by_one_none_is_asked_for_again_after_a_stop(self):
    def stops(asked, before):
      name = asked['messages'][-1]['content']
      return dict(status=401) if name == 'b' and before == 1 else ignores_n(asked, before)
    with serving(like=stops) as server:
      with self.assertRaisesRegex(ServiceError, 'account'):
        self.run_job(server, ask('a', 'b'), n=3, concurrency=1)
      results = self.run_job(server, ask('a', 'b'), n=3, concurrency=1)
      self.assertEqual(server.asked, dict(a=3, b=4))
    self.assertEqual(results['b'].texts, ('1. tag 0 of b', '1. tag 2 of b', '1. tag 3 of b'))

  def test_some_of_the_answers_are_no_failure_and_the_rest_is_asked_for_later(self):
    late = [True]
    def fails(asked, before):
      return dict(status=500) if before and late[0] else ignores_n(asked, before)
    with serving(like=fails) as server:
      result = self.run_job(server, ask('a'), retries=0)['a']
      self.assertEqual((result.texts, result.failure), (('1. tag 0 of a',), ''))
      late.clear()
      late.append(False)
      result = self.run_job(server, ask('a'))['a']
      self.assertEqual(result.texts, ('1. tag 0 of a', '1. tag 2 of a'))
      self.assertEqual(server.asked['a'], 3)

  def test_an_empty_answer_of_several_ends_nothing(self):
    texts = ['', '1. a']
    with serving(like=lambda _, before: dict(body=reply([texts[before]]))) as server:
      self.assertEqual(self.run_job(server, ask('x'))['x'].texts, ('1. a',))
      self.run_job(server, ask('x'))
      self.assertEqual(server.asked['x'], 2)

  @parameterized.parameters(*REFUSALS)
  def test_where_several_answers_are_refused_one_is_asked_for(self, kind):
    def refuses(asked, before):
      return REFUSALS[kind] if asked['n'] > 1 else ignores_n(asked, before)
    with serving(like=refuses) as server:
      results = self.run_job(server, ask('a', 'b'), n=2, concurrency=1)
      self.assertEqual([body['n'] for body in server.bodies], [2, 1, 1, 1, 1])
    self.assertEqual({name: len(r.texts) for name, r in results.items()}, dict(a=2, b=2))

  @parameterized.parameters(*REFUSALS)
  def test_one_answer_that_is_refused_is_a_failure(self, kind):
    result, asked = self.one(REFUSALS[kind], n=1, retries=0)
    self.assertIn(result.failure, ('rejected', 'server_error'))
    self.assertEqual(asked, 1)

  def test_a_budget_holds_where_answers_come_one_by_one(self):
    with serving(like=ignores_n) as server:
      given = dict(price_in=1e4, price_out=1e4, n=4, concurrency=2)  # 1.5 an answer as served
      with self.assertRaisesRegex(ServiceError, 'before passing max_cost'):
        self.run_job(server, ask(*'abcdefgh'), max_cost=12., **given)
      self.assertLessEqual(1.5 * len(server.bodies), 12.)
      self.assertGreater(len(server.bodies), 3)
      self.run_job(server, ask(*'abcdefgh'), max_cost=100., **given)
      self.assertEqual(set(server.asked.values()), {4})

  def test_a_template_without_a_system_role_gets_its_text_before_the_users(self):
    def gemma(asked, before):
      if asked['messages'][0]['role'] == 'system':
        return dict(status=500, body='{"error": {"message": "System role not supported"}}')
      return dict(body=reply(['1. a'] * asked['n']))
    with serving(like=gemma) as server:
      self.assertLen(self.run_job(server, ask('x'), retries=0)['x'].texts, 2)
      self.assertEqual(server.bodies[-1]['messages'], [dict(role='user', content='help\n\nx')])

  def test_the_limit_goes_by_the_name_that_a_model_wants(self):
    def newer(asked, before):
      if 'max_tokens' in asked:
        return dict(status=400, body="Unsupported parameter: 'max_tokens' is not supported with "
                                     "this model. Use 'max_completion_tokens' instead.")
      return dict(body=reply(['1. a'] * asked['n']))
    with serving(like=newer) as server:
      self.assertLen(self.run_job(server, ask('x'))['x'].texts, 2)
      self.assertEqual(server.bodies[-1]['max_completion_tokens'], 50)

  @parameterized.parameters(
      {}, dict(usage=None), dict(usage={}), dict(usage=dict(prompt_tokens=None)),
      dict(usage=dict(prompt_tokens=0, completion_tokens=0)),
      dict(usage=dict(prompt_tokens=-1, completion_tokens='?')))
  def test_where_usage_says_nothing_each_byte_counts_as_a_token(self, **usage):
    body = json.dumps(dict(choices=[dict(message=dict(content=text)) for text in ('1. ä', '22')],
                           **usage))
    with serving({'x': [dict(body=body)], 'y': [dict(body=body)]}) as server:
      self.run_job(server, ask('x', 'y'))
      sent = len(llm_api._Job(config(server), '', None)._body(ask('x')['x']))
    record = json.loads(self.journal.read_text().splitlines()[0])
    self.assertEqual((record['tokens_in'], record['tokens_out']), (sent, 5 + 2))
    self.assertLen([line for line in self.lines if 'each byte' in line], 1)

  def test_usage_of_which_half_is_missing_keeps_the_other_half(self):
    body = json.dumps(dict(choices=[dict(message=dict(content='1. a'))] * 2,
                           usage=dict(prompt_tokens=77, completion_tokens=None)))
    self.one(dict(body=body))
    record = json.loads(self.journal.read_text())
    self.assertEqual((record['tokens_in'], record['tokens_out']), (77, 8))

  def test_an_answer_that_ended_at_max_tokens_says_so(self):
    choices = [dict(message=dict(content=f'1. {end}'), finish_reason=end)
               for end in ('stop', 'length')]
    with serving({'x': [dict(body=json.dumps(dict(choices=choices, usage=USAGE)))]}) as server:
      for _ in range(2):  # the second time from the journal
        result = self.run_job(server, ask('x', 'y'))
        self.assertEqual(dict(zip(result['x'].texts, result['x'].cut, strict=True)),
                         {'1. stop': False, '1. length': True})
        self.assertEqual(result['y'].cut, (False, False))

  @parameterized.parameters(
      ('<think>\nA lamp?\n</think>\n\n1. lamp', '1. lamp'), ('A lamp?</think>1. lamp', '1. lamp'),
      ('<think>A lamp, or', None), ('1. <think> pad', '1. <think> pad'))
  def test_what_a_model_thinks_is_no_answer(self, said, want):
    result, _ = self.one(dict(body=reply([said])), n=1)
    self.assertEqual((result.texts, result.failure),
                     ((want,), '') if want else ((), 'empty'))

  def test_a_server_that_loads_its_model_is_waited_for(self):
    loading = dict(status=503, body='{"error":{"code":503,"message":"Loading model",'
                                    '"type":"unavailable_error"}}')
    result, asked = self.one(*[loading] * 6, {}, retries=1)
    self.assertEqual((result.failure, asked), ('', 7))

  def test_a_server_here_is_asked_without_a_proxy(self):
    with serving() as server, mock.patch.dict(os.environ, http_proxy='http://127.0.0.1:9'):
      del os.environ['no_proxy']
      self.assertEqual(self.run_job(server, ask('x'), retries=0)['x'].failure, '')

  def test_after_a_timeout_fewer_requests_are_under_way(self):
    with serving({'a': [dict(wait=60.), {}]}) as server:
      result = self.run_job(server, ask('a'), timeout=.5)['a']
    self.assertEqual(result.failure, '')
    self.assertIn('at most 2 requests are under way', ' '.join(self.lines))

  def test_lanes_are_halved_once_a_round_and_come_back_where_there_is_time(self):
    with mock.patch.object(llm_api.time, 'monotonic', lambda: now[0]):
      now = [100.]
      lanes = llm_api._Lanes(8, 60.)
      self.assertEqual([lanes.late(40.), lanes.late(41.), lanes.late(99.)], [True, False, False])
      self.assertEqual(int(lanes.count), 4)
      for _ in range(50):
        lanes.answered(29.)  # a fifth one would make it more than half the timeout
      self.assertEqual(int(lanes.count), 4)
      for _ in range(50):
        lanes.answered(2.)
      self.assertEqual(lanes.count, 8)
      for moment in range(200, 1000, 100):
        now[0] = moment
        lanes.late(moment)
      self.assertEqual(int(lanes.count), 1)


class SecretsTest(ApiCase):

  def test_the_key_is_in_no_file_log_or_error(self):
    echo = dict(status=400, body=f'bad key {KEY}')
    result, _ = self.one(echo)
    self.assertIn('***', result.detail)
    with (serving({'y': [dict(status=401, body=f'bad key {KEY}')]}) as server,
          self.assertRaisesRegex(ServiceError, 'refuses this account') as caught):
      self.run_job(server, ask('y', 'z'))
    told = [str(caught.exception), self.journal.read_text(), *self.lines]
    self.assertNotIn(KEY, '\n'.join(told))

  def test_redirects_are_not_followed(self):
    with serving() as other, serving({'x': [dict(status=307, headers={
        'Location': f'http://127.0.0.1:{other.server_port}/v1/chat/completions'})]}) as server:
      with self.assertRaisesRegex(ServiceError, 'check base_url'):
        self.run_job(server, ask('x'))
      self.assertEmpty(other.asked)

  def test_settings_that_cannot_work_are_refused(self):
    good = llm_api.ApiConfig('https://api.example.com/v1', 'm')
    for changes, words in ((dict(base_url='api.example.com'), 'https://host/v1'),
                           (dict(base_url='https://me:pw@host/v1'), 'without user'),
                           (dict(n=0), 'n is 0'), (dict(max_cost=1.), 'price_in')):
      with self.assertRaisesRegex(ConfigError, words):
        llm_api.run_requests({}, dataclasses.replace(good, **changes), self.folder)
    for value, words in ((' ', 'set the environment variable OPENAI_API_KEY'),
                         ('a\nb', 'does not hold a key')):
      os.environ['OPENAI_API_KEY'] = value
      with self.assertRaisesRegex(ConfigError, words) as caught:
        llm_api.run_requests({}, good, self.folder)
      self.assertNotIn('a\nb', str(caught.exception))


class BudgetTest(ApiCase):

  def test_the_job_stops_before_the_cap_and_goes_on_with_a_higher_one(self):
    names = [f'item {i}' for i in range(30)]
    prices = dict(price_in=1e4, price_out=1e4)  # 1.5 a request as served, 100 tokens out at most
    with serving() as server:
      with self.assertRaisesRegex(ServiceError, 'before passing max_cost.*of 12 spent.*raise'):
        self.run_job(server, ask(*names), max_cost=12., **prices)
      paid = sum(server.asked.values())
      self.assertBetween(paid, 5, 8)
      with self.assertRaisesRegex(ServiceError, 'max_cost'):  # earlier runs count
        self.run_job(server, ask(*names), max_cost=12., **prices)
      self.assertEqual(sum(server.asked.values()), paid)
      self.run_job(server, ask(*names), max_cost=60., **prices)
      self.assertEqual(set(server.asked.values()), {1})

  def test_answers_that_were_not_read_count_at_their_worst(self):
    step = dict(body='{"oops": 1')
    self.one(step, retries=1, max_cost=1e9, price_in=1., price_out=1.)
    record = json.loads(self.journal.read_text())
    self.assertEqual(record['tokens_out'], 2 * 2 * 50)  # attempts, samples, tokens


  @parameterized.parameters(
      (dict(body='{"oops": 1'), True), (dict(body=reply(['1. a']), cut=30), True),
      (dict(wait=60.), True), (dict(body='[]'), True),
      (dict(status=500), False), (dict(status=429, headers={'Retry-After': '0'}), False))
  def test_an_answer_that_was_not_read_takes_its_worst_price_from_the_budget(self, step, billed):
    """Such an answer may be on the bill, so the next attempt may pass the budget."""
    with serving({'x': [step]}) as server:
      api = config(server, price_in=1., price_out=1.)
      job = llm_api._Job(api, '', None)
      worst = job.ledger.price_of(job.ledger.worst(job._body(ask('x')['x'])))
      given = dict(price_in=1., price_out=1., retries=4, timeout=.5 if 'wait' in step else 5.)
      with self.assertRaisesRegex(ServiceError, 'failed|max_cost'):
        self.run_job(server, ask('x'), max_cost=2.5 * worst, **given)
      asked = server.asked['x']
      self.assertEqual(asked, 2 if billed else 51 if step['status'] == 429 else 5)
      spent = llm_api._Ledger(api).price_of(json.loads(self.journal.read_text()))
      self.assertAlmostEqual(spent, asked * worst if billed else 0)
      if billed:  # nor does a later run forget it
        with self.assertRaisesRegex(ServiceError, 'before passing max_cost'):
          self.run_job(server, ask('x'), max_cost=2.5 * worst, **given)
        self.assertEqual(server.asked['x'], 2)

  def test_the_last_request_may_take_the_budget_to_the_cent(self):
    with serving() as server:
      given = dict(price_in=1e6 / 100, price_out=0., concurrency=1)  # 1 for each request as served
      body = llm_api._Job(config(server), '', None)._body(ask('a')['a'])
      worst = len(body) / 100
      self.run_job(server, ask('a', 'b'), max_cost=1 + worst, **given)
      self.assertEqual(server.asked, dict(a=1, b=1))
      with self.assertRaisesRegex(ServiceError, 'before passing max_cost'):
        self.run_job(server, ask('a', 'b', 'c'), max_cost=2 + worst - .001, **given)
      self.assertEqual(server.asked, dict(a=1, b=1))


class JournalTest(ApiCase):

  def test_answers_to_another_question_are_not_taken_over(self):
    base = llm_api.ApiConfig('http://localhost/v1', 'm')
    asked = lambda text='a', **more: llm_api.request_hash(  # noqa: E731
        [{'role': 'user', 'content': text}], dataclasses.replace(base, **more))
    others = [asked('b'), asked(model='o'), asked(n=2), asked(temperature=.5), asked(max_tokens=9)]
    self.assertLen({asked(), *others}, 6)
    self.assertEqual(asked(), asked(concurrency=1, timeout=3., retries=0))

  def test_a_torn_last_line_is_cut_off_and_asked_again(self):
    with serving() as server:
      self.run_job(server, ask('a', 'b'), concurrency=1)
      whole = self.journal.read_bytes()
      self.journal.write_bytes(whole[:-9])
      self.run_job(server, ask('a', 'b'))
      self.assertEqual(server.asked, dict(a=1, b=2))
      self.assertEqual(self.journal.read_bytes(), whole)
      self.journal.write_bytes(whole[:-1])  # only the line end is missing: nothing is lost
      self.run_job(server, ask('a', 'b'))
      self.assertEqual(server.asked['b'], 2)
      self.assertEqual(self.journal.read_bytes(), whole)

  def test_lines_of_an_older_journal_count(self):
    """Before answers came one by one, a line had no 'missing' and no 'cut'."""
    with serving() as server:
      api = config(server)
      lines = [dict(hash=llm_api.request_hash(ask(name)[name], api), texts=texts, failure=failure,
                    detail='', tokens_in=3, tokens_out=2)
               for name, texts, failure in (('a', ['1. x'], ''), ('b', [], 'timeout'),
                                            ('c', [], 'refused'))]
      self.journal.write_text(''.join(json.dumps(line) + '\n' for line in lines))
      results = self.run_job(server, ask('a', 'b', 'c'), failure_ratio=1.)
      self.assertEqual(server.asked, dict(b=1))
    self.assertEqual([(r.texts, r.failure, r.cut) for r in results.values()], [
        (('1. x',), '', (False,)), (('1. tag of b',) * 2, '', (False, False)), ((), 'refused', ())])

  def test_a_damaged_line_and_a_second_process_are_refused(self):
    with serving() as server:
      with file_io.Journal(self.journal), self.assertRaisesRegex(WorkdirError, 'in use'):
        self.run_job(server, ask('a'))
      self.journal.write_text('{"hash": 1}\n')
      with self.assertRaisesRegex(WorkdirError, 'line 1 is damaged'):
        self.run_job(server, ask('a'))

  @long
  def test_killed_jobs_never_ask_again_for_what_the_journal_holds(self):
    names = [f'item {i}' for i in range(60)]
    with serving() as server:
      server.wait = .02
      code = (f'from recjax.text import llm_api\nfrom tests.text import llm_api_test as t\n'
              f'api = llm_api.ApiConfig(**{dataclasses.asdict(config(server))})\n'
              f'llm_api.run_requests(t.ask(*{names}), api, {str(self.folder)!r})')
      for lines in (5, 25, 40):
        job = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.DEVNULL)
        while not self.journal.exists() or self.journal.read_bytes().count(b'\n') < lines:
          self.assertIsNone(job.poll())
          time.sleep(.005)
        job.send_signal(signal.SIGKILL)
        job.wait()
      lost = sum(server.asked.values()) - self.journal.read_bytes().count(b'\n')
      self.assertLessEqual(lost, 3 * 4)  # what was under way at each of three kills
      recorded = {json.loads(line)['hash'] for line in self.journal.read_bytes().split(b'\n')[:-1]}
      before = dict(server.asked)
      results = self.run_job(server, ask(*names))
      api = config(server)
      for name, messages in ask(*names).items():
        again = server.asked[name] - before.get(name, 0)
        if llm_api.request_hash(messages, api) in recorded:
          self.assertEqual(again, 0, name)
        else:  # once by this job; a request of the killed one may still be waiting in the socket
          self.assertBetween(again, 1, 2, name)
        self.assertEqual(results[name].texts, (f'1. tag of {name}',) * 2)
    self.assertEqual(self.journal.read_bytes().count(b'\n'), len(names))


if __name__ == '__main__':
  absltest.main()
