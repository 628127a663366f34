"""A small shop for the tests of serving: a rule instead of a model, a talker instead of an LLM."""
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
from recjax.serving import models, server
from recjax.serving.service import Service, Settings
from recjax.serving.stock import Shelves

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
    item = (CATALOG.find(said.history[-1]) if said.history else 0) % N
    text = f'You said: {said.turns[-1]["content"]}\nTry "{TITLES[item][:40]}".'
    for word in re.finditer(r'\S+', text) if said.tell else ():
      if word.start():
        self.before()
      if said.gone():
        break
      said.tell(text[:word.end()])
      self.words += 1
    self.ended += 1
    return Answer(text, (CATALOG.ids[item],), (TITLES[item],))

  def asked(self, turns, **how):
    if turns[-1]['role'] != 'user':
      raise DataError('the last message must be of the user')
    return Said(tuple(turns), **how)

  def known(self, ids, domain=''):
    return tuple(i for i in ids if CATALOG.find(i))

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


def shelves(path=None):
  return Shelves(CATALOG, np.arange(N, 0, -1), path)


def service(path=None, together=True, hold=None, **settings):
  """A Service of two models on one catalogue: `ring` has tags, `talk` converses. hold: called
  before each batch of `ring` is answered."""
  face, shelf = ranking.recommender(follow, CATALOG), shelves(path)

  def held(*given):
    if hold:
      hold()
    return face(*given)
  held.rows = True
  ring = models.Model('ring', 'sequential', held, shelf, together=together)
  talk = models.Model('talk', 'reclm', face, shelf, Talker())
  ring.tags = {i: [('tall', 3), ('red', 1)] for i in CATALOG.ids}
  for model in (ring, talk):
    model.ready = True
  return Service({'ring': ring, 'talk': talk}, Settings(**settings))


@contextlib.contextmanager
def listening(shop):
  """Yields the address of a server on a free port; shop.gate is what its requests meet first."""
  found = server.server_of(shop, warm=False)
  shop.gate = found.config.app
  found.config.port = 0
  thread = threading.Thread(target=found.run, daemon=True)
  thread.start()
  while not found.started:
    time.sleep(0.01)
  try:
    yield f'http://127.0.0.1:{found.servers[0].sockets[0].getsockname()[1]}'
  finally:
    shop.closing = True
    found.should_exit = True
    thread.join(LONG)
    shop.close()
