"""Rules tried on validation cases, the best one and its parts ranked on the test cases."""
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from recjax.data import splits
from recjax.data.dataset import Dataset
from recjax.data.splits import Cases, Split
from recjax.errors import ConfigError
from recjax.evaluation import beside, blending, ranking
from recjax.evaluation import results as results_lib
from recjax.evaluation.recommender import CatalogRecommender
from recjax.file_io import write_arrays, write_json
from recjax.methods.blend import parts as parts_lib
from recjax.methods.blend.parts import Part
from recjax.protocols import ScoreFn
from recjax.run_files import need_json, read_arrays
from recjax.training import sharded_stage
from recjax.training.workdir import Workdir, fingerprint

PIECE = 512  # cases whose lists a kill may cost
TOLD = 10  # rules that results.json tells, the best ones
MODES = ('best', 'weights', 'indicator')


class Opened:
  """The data, the cases and the parts of a blend.

  cfg: of the run. parts: as `parts.read` gives them. dataset: the data set.

  fingerprint: of what decides a stage. split, protocol: with the cases that all runs ranked. valid:
  the cases of validation that rules are tried on, or None and in `unjudged` why. recommenders:
  {part: its recommender} in order, those of rows after `open_rows`, as are their settings.
  """

  def __init__(self, cfg: ConfigDict, parts: list[Part], dataset: Dataset):
    self.cfg, self.parts, self.dataset = cfg, parts, dataset
    self.mask_history = bool(cfg.eval.mask_history)
    self.split, self.protocol = parts_lib.split_of(
        parts, splits.split_for_config(dataset, cfg.eval), len(dataset.catalog), self.mask_history)
    self.settings: dict[str, Any] = {}
    self.recommenders = {part.name: parts_lib.opened(
        part, self.split.train, dataset.catalog, {}) for part in parts if part.is_run}
    self.valid, self.unjudged = cases_of_choice(
        self.split, cfg.mix.valid_users, self.recommenders)
    if self.unjudged and not cfg.mix.weights:
      raise ConfigError(f'no weights can be chosen: {self.unjudged}; give them, e.g. --weights='
                        + ','.join([f'{1 / len(parts):.3g}'] * len(parts)))
    self.fingerprint = fingerprint(dataset, self.protocol, len(self.valid or ()),
                                   [[p.ref, p.name, p.version] for p in parts])

  @property
  def names(self) -> list[str]:
    """Of the parts, in order."""
    return [part.name for part in self.parts]

  def open_rows(self, beside_dir: Path, log: Callable[[str], None]) -> None:
    """Opens the recommenders of classical rows. beside_dir: of the stage. log: told what each part
    is. Raises ConfigError for a classical row that is left out here."""
    facts = need_json(beside_dir / 'facts.json').get('classical', {})
    self.settings = facts.get('settings', {})
    for part in self.parts:
      if not part.is_run and part.name not in self.settings:
        why = facts.get('left_out', {}).get(part.name, 'eval.classical is off')
        raise ConfigError(f'{part.ref} cannot be a part here: {why}')
      log(f'    part {part.name}: ' + (f'{part.path}' if part.is_run else
                                       f'settings {self.settings[part.name]}'))
      self.recommenders[part.name] = (
          self.recommenders.pop(part.name) if part.is_run else self._row(part))

  def _row(self, part: Part) -> CatalogRecommender:
    """A classical row, and of a split that refits what it was before that."""
    fit = functools.partial(parts_lib.opened, part, catalog=self.dataset.catalog,
                            settings=self.settings)
    made = fit(self.split.train)
    if self.split.refit is None:
      return made
    return dataclasses.replace(made, choice_fn=fit(self.split.for_choice).score_fn)

  def searches(self, part: Part) -> bool:
    """Whether a part gives lists alone. part: of the blend."""
    return self.recommenders[part.name].score_fn is None

  def scorers(self, lists_dirs: Mapping[str, Path], which: str) -> list[ScoreFn]:
    """Score functions of the parts in order. lists_dirs: of the stages of parts that search. which:
    the cases, 'valid' or 'test'."""
    cases = self.valid if which == 'valid' else self.split.test
    if which == 'valid' and self.split.refit is not None:
      return [recommender.choice_fn for recommender in self.recommenders.values()]
    return [listed(cases, read_arrays(lists_dirs[name] / f'{which}.npz'), len(self.dataset.catalog))
            if name in lists_dirs else recommender.score_fn
            for name, recommender in self.recommenders.items()]


def cases_of_choice(split: Split, max_users: int, runs: Mapping[str, CatalogRecommender],
                    ) -> tuple[Cases | None, str]:
  """The cases that rules are tried on, or None and why there are none. split: of the runs.
  max_users: cases at most, 0 for all. runs: what they recommend with, by name."""
  if split.valid is None or not len(split.valid):
    return None, 'the split of the runs holds nobody out for validation'
  learned = [name for name, run in runs.items() if run.choice_fn is None]
  if split.refit is not None and learned:
    return None, (f'{", ".join(learned)} was refitted, so that it has learned from what validation '
                  'asks for, and kept no model of before; a run of split.refit=False has not')
  rows, _ = splits.sample_cases(split.valid, max_users, '')
  return (split.valid.select(rows) if len(rows) < len(split.valid) else split.valid), ''


def listed(cases: Cases, lists: Mapping[str, np.ndarray], n_items: int) -> ScoreFn:
  """Lists of cases as a score function of their histories, -inf for what a list does not hold.

  cases: histories. lists: items (U, K) and scores (U, K) of them. n_items: of the catalog.
  """
  row_of = {cases.history(row).tobytes(): row for row in range(len(cases))}

  def score(items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    rows = [row_of[np.ascontiguousarray(items[a:b], cases.histories[0].dtype).tobytes()]
            for a, b in zip(offsets[:-1], offsets[1:])]
    return blending.whole(lists['items'][rows], lists['scores'][rows], n_items)
  return score


# Stages. `opened` is an Opened, and no input where less than all of it decides.


def beside_settings(cfg: ConfigDict) -> ConfigDict:
  """What of the config decides the rows beside. cfg: of the run."""
  return ConfigDict({'eval': cfg.eval, 'seed': cfg.seed})


def rank_beside(work: Workdir, cfg: ConfigDict, *inputs: Any, opened: Opened) -> dict:
  """Writes ranks.npz of the rows that every method has beside its own, and facts.json of them."""
  del inputs
  ranks, facts = beside.rank_beside(opened.split, opened.dataset.catalog, cfg.eval, cfg.seed,
                                    work.log, mask_history=opened.mask_history)
  write_arrays(work.folder / 'ranks.npz', ranks)
  write_json(work.folder / 'facts.json', facts)
  return {'rows': len(ranks)}


def search(work: Workdir, name: str, *inputs: Any, opened: Opened) -> dict:
  """Writes valid.npz and test.npz, the lists of a part that gives no scores of the whole catalog.

  name: of the part.
  """
  del inputs
  recommender, catalog = opened.recommenders[name], opened.dataset.catalog
  size = parts_lib.list_size(recommender, len(catalog))
  cases_of = [('test', opened.split.test)]
  cases_of += [('valid', opened.valid)] if opened.valid else []
  total = sum(len(cases) for _, cases in cases_of)
  with work.progress(f'lists of {name}', total, unit='case') as advance:
    for which, cases in cases_of:
      pieces = []
      for start in range(0, len(cases), PIECE):
        rows = range(start, min(start + PIECE, len(cases)))
        pieces.append(sharded_stage.compute_once(work, f'{which}-{start}', functools.partial(
            lists_of, recommender, cases, rows, size, opened.mask_history)))
        advance(len(rows))
      write_arrays(work.folder / f'{which}.npz', {
          key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]})
  return {'items of a list': size}


def lists_of(recommender: Any, cases: Cases, rows: range, size: int,
             mask_history: bool) -> dict[str, np.ndarray]:
  """Lists of some cases. recommender: of a part. cases: of all. rows: which. size: of a list.
  mask_history: whether items of the history are out. -> items (n, size), 0 for none, scores"""
  found, scores = recommender.top_items([cases.history(row) for row in rows], size, mask_history,
                                        None)
  items = np.zeros((len(rows), size), np.int32)
  values = np.full((len(rows), size), -np.inf, np.float32)
  for row, (of_row, of_scores) in enumerate(zip(found, scores)):
    items[row, :len(of_row)] = of_row
    values[row, :len(of_row)] = np.asarray(of_scores)[:len(of_row)]
  return {'items': items, 'scores': values}


def choice_settings(cfg: ConfigDict) -> ConfigDict:
  """What of the config decides the choice. cfg: of the run."""
  return ConfigDict({'mix': cfg.mix})


def choose(work: Workdir, cfg: ConfigDict, opened: Opened, beside_dir: Path,
           lists_dirs: dict) -> dict:
  """Writes chosen.json: the rule that is best on validation cases, every one that was tried, and
  which parts it is about."""
  del beside_dir
  mix, n_items, names = cfg.mix, len(opened.dataset.catalog), opened.names
  valid = opened.valid
  scorers = opened.scorers(lists_dirs, 'valid') if valid else []
  id_part, why_not = indicated(opened)
  if mix.mode == 'indicator' and id_part is None:
    raise ConfigError(f'--mode=indicator cannot be: {why_not}')
  if mix.mode == 'best' and why_not and not mix.weights:
    work.log(f'    the memorization indicator is not tried: {why_not}')

  def judge(rules: list) -> list[float]:
    with work.progress(f'{len(rules)} rules', len(valid), unit='case') as advance:
      return blending.mean_ndcg(blending.ranks_of(
          scorers, rules, valid, n_items, mix.top, opened.mask_history, advance), valid)
  if mix.weights:
    rules = [blending.Rule(tuple(map(float, mix.weights))), *blending.alone(len(names))]
    tried = list(zip(rules, judge(rules) if valid else [None] * len(rules)))
  else:
    more = blending.indicators(id_part) if id_part is not None and mix.mode != 'weights' else ()
    tried = blending.search(len(names), judge, more, mix.mode != 'indicator')
    if mix.mode == 'indicator':  # the parts alone stand there to be compared with
      tried.sort(key=lambda pair: bool(pair[0].weights))
  rule, figure = tried[0]
  write_json(work.folder / 'chosen.json', {
      'rule': as_json(rule), 'told': rule.told(names), 'valid': figure,
      'metric': blending.METRIC, 'cases': len(valid or ()), 'given': bool(mix.weights),
      'top': mix.top, 'indicator': why_not or 'tried',
      'parts': [{'ref': p.ref, 'name': p.name, 'version': p.version} for p in opened.parts],
      'settings': opened.settings,
      'tried': [{'rule': as_json(r), 'told': r.told(names), 'valid': v} for r, v in tried]})
  for place, (r, v) in enumerate(tried[:5]):
    judged = (f'{blending.METRIC} of {len(valid)} validation cases {v:.4f}' if valid
              else 'not judged')
    work.log(f'    {judged}: {r.told(names)}'
             + ((', given' if mix.weights else ', chosen') if place == 0 else ''))
  return {'rules': len(tried), f'valid_{blending.METRIC}': f'{figure:.4f}' if valid else 'none'}


def indicated(opened: Opened) -> tuple[int | None, str]:
  """The number of the ID model of the memorization indicator, or None and why there is none.

  opened: the parts. It is the first of two parts whose scores have a softmax that was trained.
  """
  if len(opened.parts) != 2:
    return None, f'it weighs two parts, and these are {len(opened.parts)}'
  for number, recommender in enumerate(opened.recommenders.values()):
    if recommender.score_fn is not None and recommender.logits:
      return number, ''
  return None, ('it needs the largest probability of an ID model over the whole catalog, and '
                f'{" and ".join(opened.names)} give lists, or scores that are no logits; a run of '
                'sequential or llmemb gives them, where its loss is a softmax')


def as_json(rule: blending.Rule) -> dict[str, Any]:
  """A rule as chosen.json has it. rule: of a blend."""
  if rule.weights:
    return {'weights': list(rule.weights)}
  return {'id_part': rule.id_part, 'steepness': rule.steepness, 'threshold': rule.threshold}


def of_json(saved: Mapping[str, Any]) -> blending.Rule:
  """The rule that `as_json` wrote. saved: of chosen.json."""
  return blending.Rule(**{**saved, 'weights': tuple(saved.get('weights', ()))})


def settings(cfg: ConfigDict) -> ConfigDict:
  """What of the config decides the figures besides the chosen rule. cfg: of the run."""
  return ConfigDict({'eval': cfg.eval, 'mix': cfg.mix, 'seed': cfg.seed})


def stage(work: Workdir, cfg: ConfigDict, opened: Opened, beside_dir: Path, lists_dirs: dict,
          chosen_dir: Path) -> dict:
  """Ranks the test cases with the blend and each part; writes every result file."""
  chosen, test = need_json(chosen_dir / 'chosen.json'), opened.split.test
  n_items, rule = len(opened.dataset.catalog), of_json(chosen['rule'])
  scorers = opened.scorers(lists_dirs, 'test')
  of_beside = read_arrays(beside_dir / 'ranks.npz')
  with work.progress('ranking', len(scorers) + 1, unit='row') as advance:
    ranks, *lists = ranking.rank_and_recommend(
        blending.score_function(scorers, rule, n_items, cfg.mix.top, opened.mask_history), test,
        n_items, min(cfg.eval.save_top, n_items), mask_history=opened.mask_history)
    rows = {'blend': ranks}
    advance()
    for part, score in zip(opened.parts, scorers):
      rows[part.name] = of_beside[part.name] if not part.is_run else ranking.rank_cases(
          score, test, n_items, mask_history=opened.mask_history)
      advance()
  told = {key: chosen[key] for key in ('rule', 'told', 'valid', 'metric', 'cases', 'given', 'top',
                                       'indicator')}
  more = {'blend': {**told, 'parts': opened.names, 'tried': chosen['tried'][:TOLD]}}
  if lists_dirs:
    more['note'] = '; '.join(
        f'{name} gives lists of {need_json(folder / "DONE.json")["counts"]["items of a list"]}, a '
        'target outside has the last place' for name, folder in lists_dirs.items())
  results = results_lib.save(work.folder, opened.dataset, opened.split, 'blend', rows | {
      name: x for name, x in of_beside.items() if name not in rows}, lists, opened.protocol,
      [cfg.seed], **more, **need_json(beside_dir / 'facts.json'))
  return {'users': len(test), **{m: round(results['rows']['blend'][m]['value'], 4)
                                 for m in results_lib.CLOSING}}
