"""A small service for tests: a rule instead of a recommender, a parrot instead of an LLM."""
import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Callable

import numpy as np

from recjax.data.dataset import Catalog
from recjax.errors import DataError
from recjax.evaluation import ranking
from recjax.methods.reclm import stop_words
from recjax.serving import server
from recjax.serving.catalog_snapshot import CatalogVersions
from recjax.serving.served_model import ServedModel
from recjax.serving.service import RecommendationService, ServerSettings

N = 60
LONG = 60  # seconds after which what is waited for will not come
HOSTILE = {7: '<script>document.title="owned"</script><img src=x onerror=alert(1)>',
           8: '\u202eretsaot \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627',
           9: '\U0001f469\U0001f3fd\u200d\U0001f52c tent \U0001f3d5\ufe0f', 10: 'long ' * 20_000}
TITLES = [HOSTILE.get(i, f'{("red", "blue", "green")[i % 3]} {("kettle", "lamp", "rope")[i // 20]} '
                         f'{i}') for i in range(N)]
CATALOG = Catalog(tuple(f'i{i}' for i in range(N)), {
    'title': TITLES, 'categories': [['goods', ('kitchen', 'light', 'climbing')[i // 20]]
                                    for i in range(N)], 'price': [i + 0.5 for i in range(N)]})


def follow(items, offsets):
  """Items score by how soon they come after the last of the history, round the ring."""
  last = np.array([items[e - 1] if e > b else 1 for b, e in zip(offsets, offsets[1:])])
  return -((np.arange(1, N + 1)[None] - last[:, None] - 1) % N).astype(np.float32)


def precede(items, offsets):
  """As `follow`, the other way round."""
  last = np.array([items[e - 1] if e > b else 1 for b, e in zip(offsets, offsets[1:])])
  return -((last[:, None] - np.arange(1, N + 1)[None] - 1) % N).astype(np.float32)


@dataclasses.dataclass
class Said:
  """As reclm.chat_batcher.ChatRequest."""
  turns: tuple
  domain: str
  history: tuple
  least: int
  most: int
  tokens: int
  temperature: float | None
  seed: int
  tell: Callable | None
  gone: Callable
  stop: tuple = ()


@dataclasses.dataclass
class Answer:
  """As reclm.chat_batcher.ChatAnswer."""
  text: str
  items: tuple
  titles: tuple
  complete: bool = True
  tokens_in: int = 5
  tokens_out: int = 7


class Talker:
  """Says what it heard and names the item after those of the history. before: called before each
  word but the first that it tells; words: how many it has told; ended: replies that ended."""

  def __init__(self):
    self.before, self.words, self.ended = lambda: None, 0, 0

  def __call__(self, asked, settle=None):
    return [self.one(said) for said in asked]

  def one(self, said):
    item = (said.history[-1] if said.history else 0) % N
    text = f'You said: {said.turns[-1]["content"]}\nTry "{TITLES[item][:40]}".'
    text = text[:stop_words.stop_at(text, (TITLES[item],), said.stop)]
    for word in re.finditer(r'\S+', text) if said.tell else ():
      if word.start():
        self.before()
      if said.gone():
        break
      said.tell(text[:word.end()])
      self.words += 1
    self.ended += 1
    shown = f'"{TITLES[item]}"' in text or len(TITLES[item]) > 40 and not said.stop
    return Answer(text, (item + 1,), (TITLES[item],)) if shown else Answer(text, (), ())

  def asked(self, turns, **how):
    if turns[-1]['role'] != 'user':
      raise DataError('the last message must be of the user')
    return Said(tuple(turns), **how)

  def known(self, ids, domain=''):
    return tuple(filter(None, map(CATALOG.find, ids)))

  def item_id(self, answer, item):
    return CATALOG.id_of(item)

  def own(self, answer):
    return True

  def warm(self):
    pass


class Hold:
  """Holds callers until `go` is set. count: how many have come so far."""

  def __init__(self):
    self.go, self.count, self.lock = threading.Event(), 0, threading.Lock()

  def __call__(self, *given):
    with self.lock:
      self.count += 1
    self.go.wait(LONG)


def settled(check, seconds=LONG):
  """Whether something comes true in time; a test waits for it, however busy the machine is."""
  end = time.monotonic() + seconds
  while not check() and time.monotonic() < end:
    time.sleep(0.01)
  return check()


def catalog_versions(path=None):
  return CatalogVersions(CATALOG, np.arange(N, 0, -1), path)


def service(path=None, batched=True, hold=None, reverse=False, worker=None, models=None,
            **settings):
  """A RecommendationService of two models on one catalog: `ring` has tags, `talk` converses. hold:
  called before each batch of `ring` is answered. reverse: items go the other way round. worker: its
  place among others. models: others by their names instead."""
  recommender, catalogs = ranking.recommender(follow, CATALOG), catalog_versions(path)
  if reverse:
    recommender = ranking.recommender(precede, CATALOG)

  def held(*given):
    if hold:
      hold()
    return recommender.top_items(*given)
  tags = {i: [('tall', 3), ('red', 1)] for i in CATALOG.ids}
  ring = ServedModel('ring', 'sequential', dataclasses.replace(recommender, top_items=held),
                     catalogs, batched=batched, tags=tags)
  talk = ServedModel('talk', 'reclm', recommender, catalogs, Talker())
  for model in (ring, talk):
    model.is_ready = True
  return RecommendationService(models or {'ring': ring, 'talk': talk}, ServerSettings(**settings),
                               worker=worker)


def worker_service(settings, log, worker):
  """A service as `server.run_workers` wants it; `ring` is the other way round once reloaded."""
  found = service(worker=worker, **dataclasses.asdict(settings))
  found.reopen = {'ring': lambda: service(reverse=True).models['ring']}
  return found


@contextlib.contextmanager
def listening(service):
  """Yields the address of a server on a free port; service.limits is what requests meet first."""
  found = server.build_server(service, warm_up=False)
  service.limits = found.config.app
  found.config.port = 0
  thread = threading.Thread(target=found.run, daemon=True)
  thread.start()
  while not found.started:
    time.sleep(0.01)
  try:
    yield f'http://127.0.0.1:{found.servers[0].sockets[0].getsockname()[1]}'
  finally:
    service.is_closing = True
    found.should_exit = True
    thread.join(LONG)
    service.close()
