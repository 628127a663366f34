"""The run's report: the figures, how they came about, and what is recommended."""
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from recjax.data import splits
from recjax.data.dataset import Dataset
from recjax.models import seqrec
from recjax.report import html, plots, result_tables, run_section, user_examples
from recjax.run_files import read_json
from recjax.training.workdir import Workdir, find_stage

LABELS = result_tables.BESIDE


def write(cfg: ConfigDict, work: Workdir, dataset: Dataset, evaluated: pathlib.Path) -> None:
  """Writes report.html into the run's folder.

  cfg: the run's config. work: the Workdir. dataset: the data set. evaluated: folder of the stage
  'evaluate'.
  """
  outcome = read_json(evaluated / 'results.json')
  row = next(iter(outcome['rows']))
  html.write(work.path / 'report.html', html.page(
      f'Sequential recommendation: {row}', f'{dataset.name}, preset {cfg.preset}',
      [verdict(outcome, row), html.tiles(figures(outcome, row))],
      [results_section(outcome, row), result_tables.groups_section(outcome, row),
       users_section(cfg, dataset, work, row), training_section(work),
       *run_section.closing_sections(work.path, cfg, {
           'data': f'{dataset.name}: {len(dataset.interactions):,} users, '
                   f'{len(dataset.catalog):,} items',
           'data fingerprint': dataset.fingerprint, 'protocol': outcome['protocol'],
           'seeds': ', '.join(map(str, outcome['seeds']))}, [seqrec.PAPERS[cfg.model.kind]])],
      'How to read these figures: docs/evaluation.md.'))


def verdict(outcome: dict[str, Any], row: str) -> str:
  """The result in a sentence. outcome: what results.json holds. row: the first row."""
  ours, base = outcome['rows'][row], outcome['rows']['popularity']
  items = outcome['protocol'].split('over ')[1].split(' items')[0]
  return (f'For {ours["HR@10"]["value"]:.1%} of {ours["HR@10"]["n"]:,} users the next item is '
          f'among the first ten of all {items} items; '
          f'the most popular items alone give {base["HR@10"]["value"]:.1%}.')


def figures(outcome: dict[str, Any], row: str) -> list[tuple]:
  """Tiles of the summary. outcome: what results.json holds. row: the first row."""
  spread = outcome['sd_of_seeds']['NDCG@10']
  return [*result_tables.metric_tiles(outcome, row, ('HR@10', 'NDCG@10')),
          ('seeds', str(len(outcome['seeds'])),
           f'NDCG@10 varies by {spread:.4f}' if spread is not None else 'one alone'),
          ('items shown', f'{outcome["lists"]["coverage"]:.0%}',
           'of the catalog stand in some top ten')]


def results_section(outcome: dict[str, Any], row: str) -> html.Section:
  """The table with intervals, and every seed.

  outcome: what results.json holds. row: the first row.
  """
  every = ['HR@10', 'NDCG@10']
  parts = [result_tables.results_table(outcome, [*every, 'HR@5'], 'NDCG@10', row, LABELS)]
  if len(outcome['seeds']) > 1:
    parts.append(html.table(['Seed', *every], [
        [name, *(f'{cells[m]:.4f}' for m in every)]
        for name, cells in outcome['by_seed'].items()], 'Each seed', 'lrr'))
  return html.section('Results', *parts, intro='Intervals are 95 % bootstraps over users; a user '
                      'counts with the mean over the seeds.')


def training_section(work: Workdir) -> html.Section:
  """Learning curves of all seeds. work: the Workdir."""
  rows = [r for r in work.metrics() if r['stage'] == 'train']
  if any('data_wait' in r for r in rows):
    return streamed_section(rows)
  def curve(prefix: str) -> dict[str, list]:
    names = sorted({k for r in rows for k in r if k.startswith(prefix)})
    return {f'seed {k.removeprefix(prefix)}': [(r['step'], r[k]) for r in rows if k in r]
            for k in names}
  return html.section(
      'Training',
      html.figure(plots.loss_curves(curve('loss_'), xlabel='epoch'),
                  'Training loss by epoch', 'curves'),
      html.figure(plots.loss_curves(curve('valid_'), ylabel='NDCG@10', xlabel='epoch'),
                  'Validation NDCG@10 by epoch; the best epoch of each seed is kept', 'curves'))


def streamed_section(rows: list[dict]) -> html.Section:
  """Curves by step of training on records, and how long it waited for them.

  rows: lines of metrics.jsonl.
  """
  curve = lambda name: {name: [(r['step'], r[name]) for r in rows if name in r]}  # noqa: E731
  return html.section('Training', *(
      html.figure(plots.loss_curves(curve(name), ylabel=label), caption, 'curves')
      for name, label, caption in (
          ('loss', 'loss', 'Training loss by step'),
          ('valid_NDCG@10', 'NDCG@10', 'Validation NDCG@10 by step; the best epoch is kept'),
          ('data_wait', 'share', 'Share of time in which training waited for data'))))


def users_section(cfg: ConfigDict, dataset: Dataset, work: Workdir, row: str) -> html.Section:
  """Test users with what was recommended, beside what the most popular items would have been.

  cfg: the run's config. dataset: the data set. work: the Workdir. row: the first row.
  """
  split = splits.split_for_config(dataset, cfg.eval)
  counts = np.bincount(split.train.items, minlength=len(dataset.catalog) + 1)[1:]
  popular = np.argsort(-counts, kind='stable') + 1
  best = int(np.argmax(read_json(find_stage(work.path, 'train') / 'valid.json')['NDCG@10']))

  def tell(case: Any, had: Any, items: Any) -> tuple:
    had = set(split.test.history(case).tolist()) if cfg.eval.mask_history else ()
    top = [i for i in popular if i not in had][:len(items)]
    titles = [user_examples.title_of(dataset.catalog, i) for i in top]
    return ({}, {'Bought': [f'{counts[i - 1]:,}' for i in items],
                 'The most bought instead': titles}, [])
  return user_examples.section(
      work.path, dataset.catalog, split.test, row, cfg.seed + best, tell, intro=(
      '“Bought” counts the training interactions of an item; beside the list stand the most bought '
      'items, those of the history left out where they are left out of the list.'))
