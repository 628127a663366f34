"""The rows that stand beside every method's own, ranked as the method's own are.

Letters of shapes: U cases of the test.
"""
from collections.abc import Callable
from typing import Any

from jaxtyping import Num
from ml_collections import ConfigDict
from numpy import ndarray

from recjax.data.dataset import Catalog
from recjax.data.splits import Split
from recjax.evaluation import baselines, classical, ranking, settings_store
from recjax.progress import doing


def rank_beside(
    split: Split, catalog: Catalog, cfg: ConfigDict, seed: int, log: Callable[[str], None],
    **options: Any,
) -> tuple[dict[str, Num[ndarray, ' U']], dict[str, Any]]:
  """Ranks of the test cases by what any method is compared with, under the method's protocol.

  Popularity, recency and chance, and the classical rows where `cfg.classical` is on. They learn
  from split.train alone, and their settings are chosen by split.valid with the same masking.

  split: of the method, its test holding the cases that the method ranks. catalog: of its items.
  cfg: the group `eval` of the run's config. seed: of the random row. log: is told which rows or
  choices are left out and why. options: block, mask_history and seen_mask, as `ranking.rank_cases`
  takes them. -> {row: ranks}, what results.json is to say of it: {'classical': {'settings',
  'left_out', 'untuned', 'counted_seconds'}}, or nothing
  """
  num_items, facts = len(catalog), {}
  rows = baselines.baselines(split.train, num_items, seed)
  if cfg.classical:
    with doing('the choice of settings for classical rows'):
      made = classical.score_functions(split, classical.titles(catalog), len(split.test),
                                       cfg.classical_minutes,
                                       settings_store.folder(), **options)
    for name, why in made.left_out.items():
      log(f'    row {name} is left out: {why}')
    for name, why in made.untuned.items():
      log(f'    row {name} has the first settings of its grid: {why}')
    rows |= made.scores
    facts['classical'] = {'settings': made.settings, 'left_out': made.left_out,
                          'untuned': made.untuned, 'counted_seconds': made.counted}
  with doing('the ranking of the rows that stand beside'):
    return {name: ranking.rank_cases(score, split.test, num_items, **options)
            for name, score in rows.items()}, facts
