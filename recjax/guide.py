"""Which method for these data on this machine: what each is for, what it takes, and its command."""
import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from recjax import experiment, methods
from recjax.data import splits
from recjax.data.dataset import Dataset
from recjax.errors import UserError
from recjax.progress import doing
from recjax.training.cpu_cost import Estimate, duration

LARGE = 20_000  # interactions from which on the settings of published papers suit small models
MANY_COLD = 0.1  # share of test targets that no id model can know


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a choice goes by.

  items, users, interactions: how many. median: items of a user. titled: share of items with a
  title. cold: share of users whose test item is in nobody's training. timed: whether the data have
  times.
  """
  items: int
  users: int
  interactions: int
  median: float
  titled: float
  cold: float
  timed: bool

  def __str__(self) -> str:
    return (f'{self.items:,} items, {self.titled:.0%} with a title; {self.users:,} users with '
            f'{self.median:g} items in the median, {self.interactions:,} interactions '
            f'{"with" if self.timed else "without"} times; {self.cold:.1%} of the test items are '
            'in nobody\'s training')


@dataclasses.dataclass(frozen=True)
class Choice:
  """A method as it would be run.

  name: of its folder. purpose: what it is for. config: of `recjax run`. changes: its settings,
  {name: value}. reads_titles: whether it needs titles. llm: whether it tunes a language model.
  """
  name: str
  purpose: str
  config: str
  changes: tuple[tuple[str, Any], ...] = ()
  reads_titles: bool = False
  llm: bool = False

  def command(self) -> str:
    """Returns what to type."""
    words = ['recjax', 'run', self.config, *(f'--config.{k}={v}' for k, v in self.changes),
             f'--workdir=checkpoints/{self.name}']
    return shlex.join(words)


def facts_of(dataset: Dataset) -> Facts:
  """Returns what a choice goes by. dataset: the data set."""
  split, rows = splits.make_split(dataset), dataset.interactions
  titles: Sequence = dataset.catalog.columns.get('title') or ()
  learned = np.bincount(split.train.items, minlength=len(dataset.catalog) + 1)
  targets = split.test.targets
  return Facts(
      len(dataset.catalog), len(rows), len(rows.items), float(np.median(rows.lengths())),
      sum(map(bool, titles)) / max(1, len(dataset.catalog)),
      float((learned[targets] == 0).mean()) if len(targets) else 0.0, rows.times is not None)


def choices(data: str, facts: Facts, weights: str, accelerator: bool) -> list[Choice]:
  """Returns the methods that these data allow, the ones to begin with first.

  data: the folder. facts: of it. weights: the language model to tune, '' for a tiny one that is
  trained on the titles. accelerator: whether this machine has one.
  """
  small = 'paper,' if facts.interactions >= LARGE else ''
  large = '' if not weights else 'paper,' if accelerator else 'laptop,'
  llm = (('llm.weights', weights),) if weights else ()

  def of(name: str, config: str, purpose: str, **more: Any) -> Choice:
    preset = large if more.get('llm') else small
    changes = llm if more.get('llm') else (('seeds', 1),) if preset else ()
    return Choice(name, purpose, f'{config}:{preset}data={data}', changes, **more)
  found = [
      of('sasrec', 'sequential_scientific',
         'the next item from ids alone: quick to train, a millisecond to answer'),
      of('llmemb', 'llmemb_scientific', 'the same with vectors that a language model makes of the '
         'titles: for items with few buyers', reads_titles=True, llm=True),
      of('tiger', 'tiger_beauty', 'writes the code of the next item, made of its title; for '
         'catalogs that are large', reads_titles=True),
      of('betag', 'betag_scientific', 'tags of items, for shelves, search and any recommender',
         reads_titles=True, llm=True),
      of('d3', 'd3_scientific', 'writes the title of the next item, real titles alone',
         reads_titles=True, llm=True),
      of('reclm', 'reclm_scientific', 'a chat that recommends real items in plain words',
         reads_titles=True, llm=True)]
  return [choice for choice in found if facts.titled > 0.5 or not choice.reads_titles]


def estimate(choice: Choice, dataset: Dataset) -> dict[str, Any]:
  """Returns what the run of a choice would take, as the method's `cost` says. dataset: the data
  set. Raises UserError where the method cannot read it."""
  cfg = experiment.changed(experiment.read_config(choice.config), dict(choice.changes))
  with doing(f'measuring {choice.name}'):
    return methods.find(cfg.method, choice.config).cost(cfg, dataset)


def describe(choice: Choice, costs: dict[str, Any]) -> str:
  """Returns what a run would take, in a line. costs: of `estimate`."""
  here = [cost for cost in costs.values() if isinstance(cost, Estimate)]
  if not here:
    return 'an accelerator is here: recjax doctor --config= names the chips it fits'
  need = max(cost.need for cost in here) / 2**30
  if not all(cost.fits for cost in here):
    return f'does not fit this machine: {need:,.1f} GiB'
  seconds = sum(sum(cost.seconds.values()) for cost in here)
  return (f'{"about" if choice.llm else "at most"} {duration(seconds)} of training here, '
          f'{need:,.1f} GiB')


def advice(facts: Facts, known: Sequence[str]) -> Iterator[str]:
  """Yields what to do first, and why. facts: of the data. known: names of the choices."""
  yield ('begin with sasrec: its report also holds rows that train nothing (popularity, neighbors, '
         'EASE, words of titles); what costs more has to beat them')
  if 'llmemb' not in known:
    yield ('without titles the methods that read text are out; `recjax prepare table '
           '--columns=title=…` says which column they are in')
    return
  if facts.cold >= MANY_COLD:
    yield (f'{facts.cold:.0%} of the test items are new: no model of ids finds them, so try llmemb '
           'or the row id_text next')
  else:
    yield 'then llmemb, and mix both: recjax blend checkpoints/sasrec checkpoints/llmemb --out=…'
  if facts.median < 4:
    yield 'most users have fewer than four items: expect little of any model of sequences'


def lines(data: str, dataset: Dataset, weights: str, accelerator: bool) -> Iterator[str]:
  """Yields what `recjax guide` prints.

  data: the folder as it was named. dataset: what is in it. weights, accelerator: as of `choices`.
  """
  facts = facts_of(dataset)
  yield f'{dataset.name}: {facts}'
  found = choices(data, facts, weights, accelerator)
  for choice in found:
    try:
      took = describe(choice, estimate(choice, dataset))
    except UserError as error:
      took = f'not with these data: {error}'
    yield f'\n{choice.name}: {choice.purpose}\n  {took}\n  {choice.command()}'
  if not weights and any(choice.llm for choice in found):
    yield ('\na language model here is a tiny one, trained on the titles; name a real one with '
           '--weights=FOLDER (docs/models.md)')
  yield ''
  yield from advice(facts, [choice.name for choice in found])
