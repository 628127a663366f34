"""Recommendations out of a blend, for histories of anybody."""
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from recjax.data import splits, update
from recjax.data.loading import load_unchanged
from recjax.evaluation import blending, ranking
from recjax.evaluation.recommender import CatalogRecommender
from recjax.methods.blend import evaluate
from recjax.methods.blend import parts as parts_lib
from recjax.run_files import need_json
from recjax.training.workdir import find_stage, saved_config

LIST_SIZE = 200  # items of a list that a blend of lists gives to another blend


def recommender(workdir: Path, data: str | None = None) -> CatalogRecommender:
  """The blend's face: each part is asked, as far as it has any weight.

  workdir: of the run. data: a later data set, which every part must be able to read. -> recommend;
  scores are 0..1, or those of a part that has all the weight. Raises WorkdirError where a part is
  missing, or was trained again since.
  """
  config = saved_config(workdir)
  results = need_json(find_stage(workdir, 'evaluate') / 'results.json')
  chosen = need_json(find_stage(workdir, 'choose') / 'chosen.json')
  of_blend = parts_lib.found(workdir, config.parts)
  parts_lib.check_unchanged(workdir, of_blend, {p['ref']: p['version'] for p in chosen['parts']})
  dataset = load_unchanged(config, results['data_fingerprint'], workdir)
  split, catalog = splits.split_for_config(dataset, config.eval), dataset.catalog
  if data:
    catalog = update.load_continuation(data, dataset.catalog, workdir).catalog
  rule = evaluate.of_json(chosen['rule'])
  opened = [parts_lib.opened(part, split.train, catalog, chosen['settings'], data)
            if rule.uses(number) else None for number, part in enumerate(of_blend)]
  return face(opened, rule, chosen['top'], bool(config.eval.mask_history))


def face(parts: Sequence[CatalogRecommender | None], rule: blending.Rule,
         top: int, mask_history: bool = True) -> CatalogRecommender:
  """A blend of recommenders as one. parts: None for those that the rule does not use. rule: how
  they are mixed. top, mask_history: as of `blending.score_function`."""
  used = [part for part in parts if part]
  if len(used) == 1:
    return used[0]
  catalog, searching = used[0].catalog, [part for part in used if part.score_fn is None]
  n_items = len(catalog)
  if not searching:
    return ranking.recommender(blending.score_function(
        [part and part.score_fn for part in parts], rule, n_items, top, mask_history), catalog)

  def top_items(histories: Sequence[np.ndarray], k: int, exclude_seen: bool,
                mask: np.ndarray | None) -> tuple:
    size, found = ranking.block_size(n_items), []
    for start in range(0, len(histories), size):
      rows = slice(start, start + size)
      of_rows = mask[rows] if mask is not None and mask.ndim == 2 else mask
      found.append(_block(parts, rule, top, mask_history, histories[rows], k, exclude_seen,
                          of_rows))
    return tuple(map(np.concatenate, zip(*found)))
  return CatalogRecommender(
      top_items, catalog, all(part.masks_by_row for part in searching),
      min((part.max_batch for part in searching if part.max_batch), default=None),
      list_size=min(LIST_SIZE, n_items))


def _block(parts: Sequence[CatalogRecommender | None], rule: blending.Rule, top: int,
           mask_history: bool, histories: Sequence[np.ndarray], k: int, exclude_seen: bool,
           mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
  """Lists of one block of histories, of parts of which some search."""
  n_items = next(len(part.catalog) for part in parts if part)
  offsets = np.cumsum([0, *map(len, histories)]).astype(np.int64)
  items = np.concatenate(histories)
  lists: Mapping[int, np.ndarray] = {
      number: blending.whole(*part.top_items(
          histories, parts_lib.list_size(part, n_items), exclude_seen, mask), n_items)
      for number, part in enumerate(parts) if part and part.score_fn is None}
  scores = [lists[number] if number in lists else part and part.score_fn(items, offsets)
            for number, part in enumerate(parts)]
  seen = blending.seen_items(items, offsets, n_items) & mask_history
  mix = blending.mixed(scores, rule, seen, top)
  return ranking.top_items(lambda items, offsets: mix, items, offsets, n_items, k, exclude_seen,
                           mask, len(histories))
