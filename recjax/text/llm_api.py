"""Chat completions from an OpenAI-compatible endpoint, as a durable job.

Every answer goes to an append-only journal before it counts, under a hash of what was asked. A
job that was killed, stopped or refused goes on where it was: what the journal holds is never
asked, nor paid, again.

Services differ, local ones most of all, and a job finds out as it goes. Where one gives fewer
answers than `n`, or refuses a request that wants several, answers are asked for one at a time.
Where its chat template has no system role, the system's text goes before the user's. Where it
answers one request after another and some wait too long, fewer are under way.
"""
import collections
import concurrent.futures
import dataclasses
import datetime
import email.utils
import hashlib
import http.client
import json
import os
import pathlib
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Hashable
from typing import Any

from recjax import file_io
from recjax.errors import ConfigError, ServiceError

_LONGEST_WAIT = 600.  # seconds a server may ask us to wait before we leave instead
_LARGEST_ANSWER = 1 << 24  # bytes

# Failures that asking again may mend; a later run does so.
_TRANSIENT = ('timeout', 'unreachable', 'rate_limited', 'server_error', 'malformed')

_LOCAL = ('localhost', '127.0.0.1', '::1')

# What some services refuse, by the words of their errors, and how they are asked instead.
_UNSUPPORTED = {
    # llama.cpp: "Only one completion choice is allowed" (HTTP 500); others name the field.
    'n': re.compile(r'(one|single|multiple)\W+(completion )?choice|'
                    r'(?<![\w\\])n(["\'`]|\W{1,3}(\w+ )?(must|should))', re.IGNORECASE),
    # Gemma's chat template: "System role not supported".
    'system': re.compile(r'system\W+(role|message|prompt)|role\W+system', re.IGNORECASE),
    # OpenAI's newer models.
    'max_tokens': re.compile('max_completion_tokens')}
_INSTEAD = {'n': 'answers are asked for one at a time from now on',
            'system': "the system's text goes before the user's from now on",
            'max_tokens': 'max_tokens is called max_completion_tokens from now on'}

Messages = list[dict[str, str]]  # [{'role', 'content'}, ...]


@dataclasses.dataclass(frozen=True)
class ApiConfig:
  """What is asked of which service.

  n: answers to a request. timeout: seconds an attempt may take. concurrency: requests under way.
  retries: attempts after the first; backoff: seconds before the first of them, which doubles, with
  jitter. max_cost: money that a job may cost, 0 sets no limit; prices are per million tokens.
  failure_ratio: share of the requests that may fail. base_url: of an OpenAI-compatible service,
  with its version. model: its name there. temperature, max_tokens: of the request. price_in,
  price_out: of tokens asked and answered.
  """
  base_url: str
  model: str
  n: int = 5
  temperature: float = 1.
  max_tokens: int = 256
  timeout: float = 60.
  concurrency: int = 8
  retries: int = 3
  backoff: float = 1.
  max_cost: float = 0.
  price_in: float = 0.
  price_out: float = 0.
  failure_ratio: float = .05


def from_settings(cfg: Any) -> ApiConfig:
  """The service that a group of settings names. cfg: the group, with the settings of
  `base_config.api`."""
  return ApiConfig(
      base_url=cfg.api_url, model=cfg.api_model, n=cfg.api_samples, max_tokens=cfg.api_max_tokens,
      timeout=cfg.api_timeout, concurrency=cfg.api_concurrency, max_cost=cfg.api_budget,
      price_in=cfg.api_price_in, price_out=cfg.api_price_out, failure_ratio=cfg.api_failure_ratio)


@dataclasses.dataclass(frozen=True)
class Result:
  """The answer to one request: texts, or a kind of failure and a sentence about it.

  Kinds: those that may pass ('timeout', 'unreachable', 'rate_limited', 'server_error',
  'malformed'), 'rejected' (the service will never answer this), 'refused' (the model declined),
  'empty'. failure: the kind, '' for none. detail: the sentence. cut: of each text, whether it ended
  at max_tokens, so that its last words are missing.
  """
  texts: tuple[str, ...] = ()
  failure: str = ''
  detail: str = ''
  cut: tuple[bool, ...] = ()

  @classmethod
  def of_record(cls, record: dict) -> 'Result':
    """The result that a line of the journal holds. record: that line."""
    texts = tuple(record['texts'])
    cut = tuple(record.get('cut') or [False] * len(texts))
    return cls(texts, record['failure'], record.get('detail', ''), cut)

  def with_more(self, later: 'Result') -> 'Result':
    """This result and what a further request for the same brought. later: that. A failure counts
    where there is no text at all."""
    texts = self.texts + later.texts
    if texts:
      return Result(texts, cut=self.cut + later.cut)
    return later


class Answers:
  """What the journal of a job holds: a Result for each request hash, and tokens paid so far."""

  def __init__(self, journal: file_io.Journal):
    self.journal, self.results, self.tokens = journal, {}, collections.Counter()
    self.missing = {}  # answers that a request still lacks; None: all it asked for
    for record in journal.rows():
      self._take(record)

  def _take(self, record):
    self.tokens.update({name: record.get(name, 0) for name in ('tokens_in', 'tokens_out')})
    key, result = record['hash'], Result.of_record(record)
    self.results[key] = self.results[key].with_more(result) if key in self.results else result
    self.missing[key] = record.get('missing', None if record['failure'] in _TRANSIENT else 0)

  def add(self, records: list[dict]) -> None:
    """Journals records as one group; they count once they are on disk."""
    self.journal.add(records)
    for record in records:
      self._take(record)

  def lacking(self, key: str, n: int) -> int:
    """How many answers are still to be asked for. key: of `request_hash`. n: of a new request."""
    missing = self.missing.get(key)
    return n if missing is None else missing


def is_record(value: object) -> bool:
  """Whether a line of a journal is one of a job. value: of the line."""
  return isinstance(value, dict) and {'hash', 'texts', 'failure', 'detail'} <= value.keys()


def run_requests(requests: dict[Hashable, Messages], api: ApiConfig, folder: str | os.PathLike,
                 key_env: str = 'OPENAI_API_KEY', log: Callable[[str], object] = print,
                 progress: Callable[[int, int], object] | None = None) -> dict[Hashable, Result]:
  """Answers requests, in the same order; what the journal in the folder holds is not asked again.

  requests: messages under names of the caller's. api: whom to ask, and how. folder: of the journal,
  responses.jsonl. key_env: the environment variable with the API key, which goes nowhere but into
  the request. log: called with lines. progress: called with how many are answered, and of how many,
  after each group. -> {name: Result}. Raises ServiceError when the
  next request could pass max_cost, when the service refuses the account or the address, or, after
  all else is answered, when more than failure_ratio failed; every message says how to go on.
  """
  job = _Job(api, _secret(api, key_env), log)
  hashes = {key: request_hash(messages, api) for key, messages in requests.items()}
  with file_io.Journal(pathlib.Path(folder) / 'responses.jsonl', is_record) as journal:
    answers = Answers(journal)
    job.ledger.spent = job.ledger.price_of(answers.tokens)
    unanswered = {hashes[key]: messages for key, messages in requests.items()
                  if answers.lacking(hashes[key], api.n)}
    total = len(set(hashes.values()))
    log(f'{total - len(unanswered)} of {total} requests are answered already')
    job.run(unanswered, answers, lambda left: progress and progress(total - left, total))
    results = {key: answers.results[h] for key, h in hashes.items()}
    log(f'{answers.tokens["tokens_in"]:,} tokens asked and {answers.tokens["tokens_out"]:,} '
        f'answered so far, {job.ledger.spent:.4f} in all')
  _check_failures(results, api, journal.path, log)
  return results


def ask(messages: Messages, api: ApiConfig, key_env: str = 'OPENAI_API_KEY',
        deadline: float = 20.) -> Result:
  """One request now, kept nowhere, for somebody who waits.

  messages, api, key_env: as `run_requests` takes them. deadline: seconds after which no further
  attempt begins, nor a pause goes on. Raises ServiceError where the deadline passed or the service
  refuses account or address, ConfigError for bad settings.
  """
  job = _Job(api, _secret(api, key_env), None)
  timer = threading.Timer(deadline, job.stop.set)
  timer.daemon = True
  timer.start()
  try:
    attempt = job._attempt_for(messages, api.n)
    if not job.ledger.hold(attempt.cost):
      raise ServiceError(f'this request may cost more than max_cost={api.max_cost:g}')
    return Result.of_record(job._answer('', messages, api.n, attempt))
  except _Stopped:
    raise ServiceError(f'{api.base_url} gave no answer in {deadline:g} s') from None
  finally:
    timer.cancel()


def request_hash(messages: Messages, api: ApiConfig) -> str:
  """sha256 (hex) of all that shapes an answer: messages, model, n, temperature, max_tokens. api:
  the service."""
  asked = [messages, api.model, api.n, api.temperature, api.max_tokens]
  return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _check_failures(results, api, path, log):
  kinds = collections.Counter(result.failure for result in results.values() if result.failure)
  failed = sum(kinds.values())
  if not failed:
    return
  listed = ', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))
  log(f'{failed} of {len(results)} requests failed: {listed}')
  if failed > api.failure_ratio * len(results):
    first = next(result.detail for result in results.values() if result.failure)
    raise ServiceError(
        f'{failed} of {len(results)} requests to {api.model} failed ({listed}; the first: {first}),'
        f' over the failure_ratio of {api.failure_ratio:g}; the answers are kept in {path}: run '
        'again to retry what may pass, or allow more failures' + (
            '; what was rejected is asked again once its lines are taken out of that file'
            if kinds['rejected'] else ''))


def _secret(api, key_env):
  """Checks the settings and reads the key ('' where a local service needs none)."""
  url = urllib.parse.urlsplit(api.base_url)
  if url.scheme not in ('http', 'https') or not url.hostname or url.username or url.query:
    raise ConfigError('base_url must look like https://host/v1, without user, key or query')
  for name in ('n', 'max_tokens', 'concurrency', 'timeout'):
    if getattr(api, name) <= 0:
      raise ConfigError(f'{name} is {getattr(api, name)}; it must be above 0')
  if api.max_cost and not (api.price_in or api.price_out):
    raise ConfigError('max_cost needs price_in and price_out, in money per million tokens')
  key = os.environ.get(key_env, '').strip() if key_env else ''
  if not key and url.hostname not in _LOCAL:
    raise ConfigError(f'{url.hostname} needs a key: set the environment variable {key_env}')
  if not key.isascii() or not key.isprintable() or ' ' in key:
    raise ConfigError(f'the environment variable {key_env} does not hold a key: it has spaces or '
                      'special characters')
  return key


class _Ledger:
  """Money spent and money that requests under way may still cost."""

  def __init__(self, api):
    self.api, self.spent, self.held, self.lock = api, 0., 0., threading.Lock()

  def price_of(self, record: dict) -> float:
    return (record.get('tokens_in', 0) * self.api.price_in
            + record.get('tokens_out', 0) * self.api.price_out) / 1e6

  def worst(self, body: bytes, count: int = 0) -> dict[str, int]:
    """Tokens a request (bytes) can take at most: none is shorter than a byte.

    count: answers that it asks for, 0 for n.
    """
    return dict(tokens_in=len(body), tokens_out=(count or self.api.n) * self.api.max_tokens)

  def hold(self, cost: float) -> bool:
    with self.lock:
      if self.api.max_cost and self.spent + self.held + cost > self.api.max_cost:
        return False
      self.held += cost
      return True

  def settle(self, cost: float, real: float) -> None:
    with self.lock:
      self.held -= cost
      self.spent += real


class _Failure(Exception):
  """One attempt that brought no answer. wait: seconds the server asks for; billed: it may cost;
  busy: the server only wants us to wait, so that it costs no retry."""

  def __init__(self, kind, detail, wait=None, billed=False, busy=False):
    super().__init__(detail)
    self.kind, self.detail, self.wait, self.billed, self.busy = kind, detail, wait, billed, busy


class _Stopped(Exception):
  """The job ended before this request was sent."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
  def redirect_request(self, *_):
    return None  # following one would carry the key to another address


class _Lanes:
  """How many requests may be under way: half as many after one that came too late, and one more
  for each round of answers that leaves time for it."""

  def __init__(self, most, timeout):
    self.most, self.timeout, self.count, self.lock = most, timeout, float(most), threading.Lock()
    self.judged = 0.  # monotonic time of requests that began before the last cut

  def late(self, began) -> bool:
    """A request that began at that time came too late. -> whether fewer are to be under way."""
    with self.lock:
      if began < self.judged or self.count < 2:
        return False
      self.count, self.judged = float(int(self.count) // 2), time.monotonic()
      return True

  def answered(self, seconds):
    """A server that takes one after another would need that much longer with one more."""
    with self.lock:
      if seconds * (self.count + 1) / self.count < self.timeout / 2:
        self.count = min(self.most, self.count + 1 / self.count)


@dataclasses.dataclass(frozen=True)
class _Attempt:
  """What is sent. body: bytes. count: answers it asks for. worst: tokens that it can take. cost:
  their price. without: what of `_UNSUPPORTED` it does without."""
  body: bytes
  count: int
  worst: dict[str, int]
  cost: float
  without: frozenset[str]


class _Job:
  """Sends requests from a few threads; one thread, the caller's, writes the journal."""

  def __init__(self, api, secret, log):
    self.api, self.secret, self.log = api, secret, log
    self.ledger, self.stop = _Ledger(api), threading.Event()
    self.lanes = _Lanes(api.concurrency, api.timeout)
    self.without = frozenset()  # what this service was found not to offer
    self.failing = 0  # requests in a row that no retry could save
    self.uncounted = False  # whether an answer came that does not say its tokens
    self.quiet_until = 0.  # monotonic time before which a server wants to hear nothing
    local = urllib.parse.urlsplit(api.base_url).hostname in _LOCAL
    self.opener = urllib.request.build_opener(
        _NoRedirect, *[urllib.request.ProxyHandler({})] * local)  # a proxy is for other hosts

  def run(self, unanswered: dict, answers: Any, report: Callable):
    """Answers {hash: messages}; on any error still journals what is under way and paid for.

    report: called with how many are left.
    """
    waiting, running = collections.deque(unanswered), set()
    pool = concurrent.futures.ThreadPoolExecutor(self.api.concurrency)
    try:
      while waiting or running:
        while waiting and len(running) < int(self.lanes.count):
          key = waiting[0]
          lacking = answers.lacking(key, self.api.n)
          attempt = self._attempt_for(unanswered[key], lacking)
          if not self.ledger.hold(attempt.cost):
            break
          waiting.popleft()
          running.add(pool.submit(self._answer, key, unanswered[key], lacking, attempt))
        if not running:
          raise self._over_budget(len(waiting), len(unanswered), answers.journal.path)
        done, running = concurrent.futures.wait(
            running, return_when=concurrent.futures.FIRST_COMPLETED)
        # What lacks an answer goes first: a server may still hold what it read of it.
        waiting.extendleft(self._collect(done, answers))
        report(len(waiting) + len(running))
    finally:
      self.stop.set()
      pool.shutdown(cancel_futures=True)
      answers.add([f.result() for f in running if not f.cancelled() and not f.exception()])

  def _collect(self, done, answers):
    """Journals finished requests, then raises what stops the job: a final word or an outage.

    -> hashes of those that brought fewer answers than asked for
    """
    records = [future.result() for future in done if not future.exception()]
    answers.add(records)
    for future in done:
      if future.exception():
        raise future.exception()
    for record in records:
      self.failing = self.failing + 1 if record['failure'] in _TRANSIENT else 0
    if self.failing >= 20 + self.api.concurrency:
      raise ServiceError(f'the last {self.failing} requests to {self.api.base_url} all failed '
                         f'({record["detail"]}); run again later to go on')
    return [record['hash'] for record in records
            if record.get('missing') and record['failure'] not in _TRANSIENT]

  def _over_budget(self, left, total, path):
    return ServiceError(
        f'stopped before passing max_cost: {self.ledger.spent:.4f} of {self.api.max_cost:g} spent, '
        f'and the next of {left} requests left may cost more than the rest; {total - left} answers '
        f'of this run are kept in {path}: raise max_cost and run again to go on')

  def _body(self, messages, count=0, without=frozenset()):
    """The bytes of a request for so many answers (0: n), without what a service refused."""
    api = self.api
    if 'system' in without and messages[0]['role'] == 'system':
      texts = [message['content'] for message in messages[:2]]
      messages = [{'role': 'user', 'content': '\n\n'.join(texts)}, *messages[2:]]
    limit = 'max_completion_tokens' if 'max_tokens' in without else 'max_tokens'
    asked = {'model': api.model, 'messages': messages, 'n': count or api.n, limit: api.max_tokens,
             'temperature': api.temperature}
    return json.dumps(asked).encode()

  def _attempt_for(self, messages, lacking):
    """What is sent to get the answers that are lacking, as far as one request can."""
    without = self.without
    count = 1 if 'n' in without else lacking
    body = self._body(messages, count, without)
    worst = self.ledger.worst(body, count)
    return _Attempt(body, count, worst, self.ledger.price_of(worst), without)

  def _answer(self, key, messages, lacking, attempt):
    """The journal record of one request, after as many attempts as allowed."""
    lost, tries, limits = collections.Counter(), 0, 0
    while True:
      if not self._wait(self.quiet_until - time.monotonic()):
        raise _Stopped
      record, failure = self._attempt_and_pay(attempt)
      if failure is None:
        return self._record(key, record, lacking, attempt.count, lost)
      if failure.billed:
        lost.update(attempt.worst)
      refused = self._refused_part(failure, attempt)
      if not refused:
        tries, limits = tries + (not failure.busy), limits + failure.busy
        # Being asked to slow down is no fault of the request: much more patience.
        over = tries > self.api.retries or limits > 10 * (self.api.retries + 1)
        if failure.kind not in _TRANSIENT or over or not self._pause(key, tries + limits, failure):
          return self._record(key, record, lacking, 0, lost)
      attempt = self._attempt_for(messages, lacking)
      if not self.ledger.hold(attempt.cost):
        return self._record(key, record, lacking, 0, lost)

  def _record(self, key, record, lacking, asked, lost):
    """A line of the journal: the answer or failure, what was lost on the way, what is lacking."""
    record = dict(hash=key, **record)
    for name, tokens in lost.items():
      record[name] = record.get(name, 0) + tokens
    came = record.pop('choices', 0)
    more = came and record['failure'] != 'refused' or record['failure'] in _TRANSIENT
    missing = lacking - came if more else 0
    if 0 < came < asked:
      self._do_without('n', f'{self.api.base_url} gave {came} of {asked} answers')
    if missing > 0:
      record['missing'] = missing
    return record

  def _refused_part(self, failure, attempt):
    """Whether the service refused something that it can be asked without from now on."""
    if failure.kind not in ('rejected', 'server_error'):
      return False
    for name, words in _UNSUPPORTED.items():
      if name not in attempt.without and words.search(failure.detail) and (
          name != 'n' or attempt.count > 1):
        self._do_without(name, failure.detail)
        return True
    return False

  def _do_without(self, name, why):
    if name not in self.without:
      self.without |= {name}
      self._say(f'{_INSTEAD[name]} ({why})')

  def _say(self, text):
    if self.log:
      self.log(text)

  def _attempt_and_pay(self, attempt) -> 'tuple[dict[str, Any], _Failure | None]':
    """One attempt and its bill -> (record without hash, _Failure or None)."""
    real, began = 0., time.monotonic()
    try:
      record = self._attempt(attempt.body)
      real = self.ledger.price_of(record)
      self.lanes.answered(time.monotonic() - began)
      return record, None
    except _Failure as failure:
      real = attempt.cost if failure.billed else 0.  # one we did not read may be on the bill
      if failure.kind == 'timeout' and self.lanes.late(began):
        self._say(f'{failure.detail}: at most {int(self.lanes.count)} requests are under way now; '
                  'a longer timeout or a lower concurrency may suit this service')
      return dict(texts=[], failure=failure.kind, detail=failure.detail), failure
    finally:
      self.ledger.settle(attempt.cost, real)

  def _pause(self, key, attempt, failure):
    """Waits before the next attempt; False if the job stops meanwhile."""
    if failure.wait is not None:
      self.quiet_until = max(self.quiet_until, time.monotonic() + failure.wait)
      return not self.stop.is_set()
    jitter = .5 + random.Random(f'{key}:{attempt}').random()
    return self._wait(min(60., self.api.backoff * 2 ** (attempt - 1)) * jitter)

  def _wait(self, seconds):
    return not self.stop.wait(seconds) if seconds > 0 else not self.stop.is_set()

  def _attempt(self, body):
    """Sends one request -> record without hash; raises _Failure, or ServiceError to end the job."""
    try:
      answer = self._send(body)
    except urllib.error.HTTPError as error:
      raise self._refusal(error) from None
    except TimeoutError:
      raise _Failure('timeout', f'no answer in {self.api.timeout:g} s', billed=True) from None
    except (http.client.HTTPException, ConnectionError) as error:
      raise _Failure('unreachable', self._without_key(f'the connection broke: {error!r}'),
                     billed=True) from None
    except OSError as error:  # URLError among them
      if isinstance(getattr(error, 'reason', None), TimeoutError):
        raise _Failure('timeout', f'no answer in {self.api.timeout:g} s', billed=True) from None
      raise _Failure('unreachable', self._without_key(f'cannot connect: {error}')) from None
    record, counted = _read_answer(answer, len(body))
    if not counted and not self.uncounted:
      self.uncounted = True
      self._say(f'{self.api.base_url} does not say how many tokens an answer took: each byte is '
                'counted as one, which is several times too many')
    return record

  def _send(self, body):
    headers = {'Content-Type': 'application/json', 'Accept': 'application/json'}
    if self.secret:
      headers['Authorization'] = f'Bearer {self.secret}'
    url = self.api.base_url.rstrip('/') + '/chat/completions'
    deadline = time.monotonic() + self.api.timeout
    request = urllib.request.Request(url, body, headers)
    with self.opener.open(request, timeout=self.api.timeout) as response:
      expected = int(response.headers.get('Content-Length') or 0)
      answer = bytearray()
      while chunk := response.read1(1 << 16):
        answer += chunk
        if time.monotonic() > deadline:
          raise TimeoutError
        if len(answer) > _LARGEST_ANSWER:
          raise _Failure('rejected', 'the answer is larger than 16 MiB', billed=True)
    if len(answer) < expected:
      raise _Failure('malformed', 'the answer broke off', billed=True)
    return bytes(answer)

  def _refusal(self, error):
    """The exception that an HTTP error status stands for."""
    try:
      text = error.read(2000).decode('utf-8', 'replace')
    except (OSError, http.client.HTTPException):
      text = ''
    detail = self._without_key(f'HTTP {error.code} {error.reason}: {" ".join(text.split())[:300]}')
    if error.code in (401, 402, 403) or 'insufficient_quota' in text:
      return ServiceError(f'the service refuses this account (HTTP {error.code}); check the key in '
                          'the environment and the credit behind it, then run again to go on')
    if error.code == 404 or 300 <= error.code < 400:
      return ServiceError(f'{self.api.base_url} does not offer {self.api.model} ({detail}); check '
                          'base_url and model, then run again to go on')
    wait = _retry_after(error.headers.get('Retry-After')) if error.code in (429, 503) else None
    if wait is not None and wait > _LONGEST_WAIT:
      return ServiceError(f'the service asks for a pause of {wait:.0f} s; run again after that')
    if error.code == 429:
      return _Failure('rate_limited', detail, wait, busy=True)
    if error.code >= 500 or error.code in (408, 409, 425):
      loading = error.code == 503 and 'loading' in text.lower()  # a local model, minutes at times
      return _Failure('server_error', detail, wait, busy=loading)
    return _Failure('rejected', detail)

  def _without_key(self, text):
    return text.replace(self.secret, '***') if self.secret else text


def _retry_after(value):
  """Seconds from a Retry-After header: a number or an HTTP date; None if it says neither."""
  if not value:
    return None
  try:
    return max(0., float(value))
  except ValueError:
    pass
  try:
    moment = email.utils.parsedate_to_datetime(value)
  except ValueError:
    return None
  now = datetime.datetime.now(datetime.UTC)
  return max(0., (moment.replace(tzinfo=moment.tzinfo or datetime.UTC) - now).total_seconds())


_DECLINES = re.compile(
    r"\W*(i['’]?m sorry|i am sorry|sorry,|i apologi[sz]e|i can(no|['’])t|i['’]m (not able|unable)"
    r"|i am (not able|unable)|as an ai\b)", re.IGNORECASE)


def _read_answer(data, asked_bytes):
  """Body bytes -> record without hash, with the number of choices; whether tokens were counted.

  Refusals and empty replies are failures, not texts. What a model thought before is left out.
  """
  try:
    answer = json.loads(data)
    choices = [(choice['message'], choice.get('finish_reason')) for choice in answer['choices']]
    raw = [message.get('content') or '' for message, _ in choices]
    texts = [_without_thought(text).strip() for text in raw]
    declined = [bool(message.get('refusal')) or reason == 'content_filter'
                or _DECLINES.match(text) is not None
                for (message, reason), text in zip(choices, texts, strict=True)]
    usage = answer.get('usage') or {}
    tokens_in = _count(usage.get('prompt_tokens'), 1)
    tokens_out = _count(usage.get('completion_tokens'), 1 if any(raw) else 0)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise _Failure('malformed', f'not a chat completion: {error!r:.100}', billed=True) from None
  good = [(text, reason == 'length') for (_, reason), text, no in zip(choices, texts, declined)
          if text and not no]
  failure = '' if good else 'refused' if any(declined) else 'empty'
  detail = dict(refused='the model declined', empty='no text in the reply').get(failure, '')
  record = dict(
      texts=[text for text, _ in good], failure=failure, detail=detail, choices=len(choices),
      tokens_in=asked_bytes if tokens_in is None else tokens_in,
      tokens_out=sum(len(text.encode()) for text in raw) if tokens_out is None else tokens_out)
  if any(cut for _, cut in good):
    record['cut'] = [cut for _, cut in good]
  return record, tokens_in is not None and tokens_out is not None


def _without_thought(text):
  """What a reasoning model said after it had thought; '' where it never came to that."""
  _, ended, said = text.rpartition('</think>')
  return said if ended or not text.lstrip().startswith('<think>') else ''


def _count(value, least):
  """A number of tokens, None where the service gives none or one that cannot be."""
  return int(value) if isinstance(value, (int, float)) and value >= least else None
