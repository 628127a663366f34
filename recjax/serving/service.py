"""What the routes share: models, interests, waiting for answers, and the words for refusals."""
import asyncio
import concurrent.futures
import dataclasses
import time

from recjax.data.formats import etegrec
from recjax.errors import ConfigError, DataError, ServiceError, UserError
from recjax.serving import limits
from recjax.serving import models as served
from recjax.serving.batcher import Busy
from recjax.serving.counters import Counters
from recjax.serving.limits import Refused
from recjax.text import interest_terms
from recjax.text.llm_api import ApiConfig

MOST_K, MOST_HISTORY, MOST_LIST = 100, 10_000, 100_000
WORKERS = 8  # interests that are asked for at a time


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a server is run. seconds: that an answer may take. most: requests at a time. patience:
  seconds that a request may take to come in. interests_*: an OpenAI-compatible endpoint that
  interests come from, '' for words of the catalogue; its key is in key_env."""
  host: str = '127.0.0.1'
  port: int = 8000
  key: str = ''
  seconds: float = 60.0
  most: int = 256
  patience: float = limits.PATIENCE
  interests_url: str = ''
  interests_model: str = ''
  key_env: str = 'OPENAI_API_KEY'
  interests_seconds: float = 20.0


class Service:
  """Everything behind the routes."""

  def __init__(self, models, settings=None, counters=None):
    settings = settings or Settings()
    self.models, self.settings = models, settings
    self.counters = counters or Counters()
    self.closing, self.started = False, time.time()
    self.pool = concurrent.futures.ThreadPoolExecutor(WORKERS, 'interests')
    self.api = settings.interests_url and ApiConfig(
        settings.interests_url, settings.interests_model, n=1, temperature=0.6,
        timeout=settings.interests_seconds, retries=2)
    self.counters.gauge('recjax_waiting', 'Requests that wait for a batch', lambda: sum(
        len(m.batcher) + len(m.chat or ()) for m in models.values()))
    self.counters.gauge('recjax_models_ready', 'Models that answer', lambda: sum(
        m.ready for m in models.values()))

  def model(self, name=None, need=None, remedy=''):
    """A model by name, or the first that has attribute `need`. Raises Refused."""
    if name:
      found = self.models.get(name)
      if found is None:
        raise Refused(404, f'there is no model {name!r:.100}; there are {", ".join(self.models)}')
      if need and getattr(found, need) is None:
        raise Refused(422, f'{name} cannot do this; {remedy}')
      return found
    for found in self.models.values():
      if not need or getattr(found, need) is not None:
        return found
    raise Refused(404, f'no model here can do this; {remedy}')

  async def wait(self, request, batcher, asked):
    """The answer to `asked`. A client that goes away takes its request out. Raises Refused."""
    try:
      future = batcher.submit(asked)
    except Busy as error:
      raise Refused(503, f'{error}; try again', {'Retry-After': '1'}) from None
    answer = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(leaving(request))
    try:
      await asyncio.wait({answer, gone}, timeout=self.settings.seconds,
                         return_when=asyncio.FIRST_COMPLETED)
      if answer.done():
        return answer.result()
      if gone.done():
        raise Refused(499, 'gone')
      raise Refused(504, f'no answer in {self.settings.seconds:g} s')
    except UserError as error:
      raise Refused(422, str(error)) from error
    finally:
      gone.cancel()
      answer.cancel()

  async def recommend(self, request, model, history, k, allowed):
    """-> [(item index, score)], best first"""
    ask = served.Ask(history, min(k, len(model.stock)), allowed)
    return await self.wait(request, model.batcher, ask)

  def interests(self, stock, history):
    """Interests of a history (indices). Blocks. -> list of text, 'local' or 'model', what failed"""
    known = [i for i in history if 1 <= i <= len(stock)]
    note, source = '', 'local'
    if self.api and known:
      try:
        found = interest_terms.ask_model(known, stock.columns, self.api, self.settings.key_env,
                                     etegrec.parse_interests)
        source = 'model'
      except (ServiceError, ConfigError) as error:
        note = str(error)
    if source == 'local':
      found = interest_terms.interests(known, stock.terms)
    self.counters.interests.labels('failed' if note else source).inc()
    return found, source, note

  def why(self, model, item, history, found):
    """Reasons for an item: interests it has a term of, tags it shares, what its buyers bought."""
    stock, ids = model.stock, model.stock.catalog.ids
    out = {
      'interests': interest_terms.shared_terms(item, found, stock.terms),
      'tags': [],
      'neighbours': [],
    }
    recent = history[-interest_terms.RECENT :]
    if model.tags:
      theirs = {t for h in recent for t, _ in model.tags.get(ids[h - 1], ())}
      out['tags'] = [t for t, _ in model.tags.get(ids[item - 1], ()) if t in theirs][:4]
    for other, people in served.together_bought(model.pairs, item, recent):
      out['neighbours'].append({'id': ids[other - 1], 'title': stock.title(other)[:200],
                                'people': people})
    return out

  def close(self):
    """Answers what waits, and ends."""
    self.closing = True
    for model in self.models.values():
      model.close(self.settings.seconds)
    self.pool.shutdown(wait=False, cancel_futures=True)


async def leaving(request):
  """Returns when the client has gone."""
  while (await request.receive())['type'] != 'http.disconnect':
    pass


def known_items(stock, ids):
  """Item ids of a client. -> indices of those that the model knows, in order, and the others"""
  places = [stock.index(i) for i in ids]
  return [p for p in places if p], [clean(str(i)) for i, p in zip(ids, places) if not p]


def allowed(stock, **how):
  """`Stock.mask`, its refusal as a status."""
  try:
    return stock.mask(**how)
  except DataError as error:
    raise Refused(422, clean(str(error))) from error


def clean(text):
  """Text that can be sent: halves of surrogate pairs become question marks."""
  return text.encode('utf-8', 'replace').decode()
