"""The run's report: what the vectors became, whom it helps, and what each part is worth."""
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from recjax.data.dataset import Dataset
from recjax.methods.llmemb import item_embeddings, rat, variants
from recjax.models import seqrec
from recjax.report import html, plots, result_tables, run_section, user_examples
from recjax.retrieval import pca
from recjax.run_files import read_json
from recjax.training import sequential
from recjax.training.workdir import Workdir

LABELS = {'llmemb': 'LLMEmb', 'sasrec': 'SASRec, ids alone', 'gru4rec': 'GRU4Rec, ids alone',
          'bert4rec': 'BERT4Rec, ids alone', 'llmemb:no_scft': 'without SCFT',
          'llmemb:no_adapter': 'no adapter, PCA alone', 'llmemb:no_freeze': 'vectors not frozen',
          'llmemb:no_align': 'without alignment', 'llmemb:pool_last': 'last token pooled',
          'llmemb:pca': 'PCA of the untuned LLM alone', 'llmemb:text': 'plain text embedding',
          **result_tables.BESIDE}

GROUPS = {'tail_item': 'Rare items', 'head_item': 'Frequent items', 'tail_user': 'Short histories',
          'head_user': 'Long histories'}

NEAREST = 5

PAPER = '''\
@inproceedings{liu2025llmemb,
  title = {{LLMEmb}: Large Language Model Can Be a Good Embedding Generator for Sequential
           Recommendation},
  author = {Liu, Qidong and Wu, Xian and Wang, Wanyu and Wang, Yejing and Zhu, Yuanshao and Zhao,
            Xiangyu and Tian, Feng and Zheng, Yefeng},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  volume = {39},
  pages = {12183--12191},
  year = {2025},
  note = {arXiv 2409.19925}
}'''


def write(cfg: ConfigDict, work: Workdir, dataset: Dataset, tables: dict, id_dirs: dict,
          rat_dirs: dict, results_dir: Path) -> None:
  """Writes report.html into the run's folder. tables, id_dirs, rat_dirs: as `evaluate.stage`. cfg,
  work, dataset: of the run. results_dir: of the stage before."""
  outcome = read_json(results_dir / 'results.json')
  row = next(iter(outcome['rows']))
  html.write(work.path / 'report.html', html.page(
      'LLMEmb: item embeddings from a language model', f'{dataset.name}, preset {cfg.preset}',
      [verdict(cfg, outcome, row), html.tiles(figures(outcome, row))],
      [
        results_section(outcome, row), tail_section(cfg, outcome),
        map_section(cfg, dataset, tables, rat_dirs), result_tables.groups_section(outcome, row),
        users_section(cfg, work, dataset, tables, rat_dirs, row),
        training_section(work, id_dirs, rat_dirs),
        *run_section.closing_sections(
          work.path, cfg,
          {
            'data': f'{dataset.name}: {len(dataset.interactions):,} users, '
                    f'{len(dataset.catalog):,} items',
            'data fingerprint': dataset.fingerprint, 'protocol': outcome['protocol'],
            'seeds': ', '.join(map(str, outcome['seeds']))},
          [PAPER, *(seqrec.PAPERS[kind] for kind in id_dirs)])],
      'Liu et al., AAAI 2025, arXiv 2409.19925.'))


def verdict(cfg: ConfigDict, outcome: dict, row: str) -> str:
  """The result in two sentences. cfg: of the run. outcome: what results.json holds. row: the run's
  own row."""
  id_row = cfg.model.kind
  sentences = []
  for name, cells, tests in (
      ('all test users', outcome['rows'], outcome['tests']),
      *((f'the {group["n"]:,} whose next item is rare', group['rows'], group['tests'])
        for group_name, group in outcome['groups'].items() if group_name == 'tail_item')):
    ours, theirs = (cells[name_of_row]['NDCG@10']['value'] for name_of_row in (row, id_row))
    p = tests[f'{row}>{id_row}']['NDCG@10']
    sentences.append(f'for {name} NDCG@10 is {ours:.4f} against {theirs:.4f} of ids alone '
                     f'(p {result_tables.p_value(p)})')
  return '; '.join(sentences).capitalize().replace('ndcg', 'NDCG') + '.'


def figures(outcome: dict, row: str) -> list[tuple]:
  """Tiles of the summary. outcome: what results.json holds. row: the run's own row."""
  tiles = result_tables.metric_tiles(outcome, row, ('HR@10', 'NDCG@10'))
  tail = outcome['groups'].get('tail_item')
  if tail:
    cell = tail['rows'][row]['NDCG@10']
    tiles.append(('NDCG@10, rare items', f'{cell["value"]:.4f}', f'{tail["n"]:,} users'))
  return [*tiles, ('seeds', str(len(outcome['seeds'])), '')]


def results_section(outcome: dict, row: str) -> str:
  """All rows: recommenders over ids, ablations, baselines. outcome: what results.json holds. row:
  the run's own row."""
  metrics = ['HR@10', 'NDCG@10', 'HR@5', 'HR@20']
  parts = [result_tables.results_table(outcome, metrics, 'NDCG@10', row, LABELS)]
  if 'sampled' in outcome:
    sampled_rows = outcome['sampled']['all']['rows']
    parts.append(
      html.table(
        ['Row', 'HR@10', 'NDCG@10'],
        [
          [
            LABELS.get(name, name),
            *(f'{cells[metric]["value"]:.4f}' for metric in ('HR@10', 'NDCG@10'))]
          for name, cells in sampled_rows.items()],
        outcome['sampled']['protocol'], 'lrr'))
  return html.section(
    'Results and ablations', *parts, intro='The full method first; below it what '
    'is lost without each part. Intervals are 95 % bootstraps over users.')


def tail_section(cfg: ConfigDict, outcome: dict) -> str:
  """Bars of rare and frequent items, short and long histories, by row. cfg: of the run. outcome:
  what results.json holds."""
  pictures = [html.figure(plots.bars_with_intervals(group['rows'], 'NDCG@10', LABELS),
                          f'{GROUPS[name]}: {group["n"]:,} test users',
                          f'NDCG@10 by row, {GROUPS[name].lower()}')
              for name, group in outcome['groups'].items()]
  return html.section('Tail and head', html.grid(*pictures), intro='Rare: fewer than '
                      f'{cfg.eval.tail_item} training interactions. Short: fewer than '
                      f'{cfg.eval.tail_user} items before the one asked for.')


def map_section(cfg: ConfigDict, dataset: Dataset, tables: dict, rat_dirs: dict) -> str:
  """Item vectors in a plane before and after SCFT and after RAT, colored by category. cfg, dataset:
  of the run. tables: folders of item vectors by their source. rat_dirs: of RAT by variant."""
  groups = categories(dataset)
  shown = [(name, item_embeddings.read(tables[source])) for source, name in (
      ('plain', 'The LLM as it is'), ('tuned', 'After SCFT'), ('text', 'Sentence encoder'),
      ('file', 'Vectors of the file')) if source in tables]
  shown.append(('After RAT', trained(cfg, dataset, rat_dirs)[0]))
  return html.section('Where items lie', html.grid(*[
      html.figure(plots.scatter(np.asarray(pca.fit(x, 2)(x)), groups), name,
                  f'{name}: items in the plane of their first two principal components')
      for name, x in shown]), intro='First two principal components, colored by '
                      'category. Overlap in a plane is not overlap in the full space.')


def trained(cfg: ConfigDict, dataset: Dataset, rat_dirs: dict) -> tuple[np.ndarray, int]:
  """cfg, dataset: of the run. rat_dirs: of RAT by variant. -> the item vectors that are recommended
  by (N, d), the number of their seed"""
  rat_dir = rat_dirs[cfg.rat.variant]
  best = int(np.argmax(read_json(rat_dir / 'valid.json')['NDCG@10']))
  return sequential.load(rat_dir / 'model.npz', best)['items'][1:len(dataset.catalog) + 1], best


def users_section(cfg: ConfigDict, work: Workdir, dataset: Dataset, tables: dict, rat_dirs: dict,
                  row: str) -> str:
  """Test users with what lies nearest to their last item, before and after RAT.

  cfg, work, dataset: of the run. tables: folders of item vectors by their source. rat_dirs: of RAT
  by variant. row: the run's own row.
  """
  after, best = trained(cfg, dataset, rat_dirs)
  before = item_embeddings.read(tables[variants.vector_source(cfg, cfg.rat.variant)])
  test = rat.load_split(dataset).test
  before, after = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
                   for x in (before, after))

  def nearest(unit: np.ndarray, item: int) -> list[str]:
    similarity = unit @ unit[item - 1]
    return [f'{user_examples.title_of(dataset.catalog, i + 1)} ({similarity[i]:.2f})'
            for i in np.argsort(-similarity, kind='stable') if i != item - 1][:NEAREST]

  def describe(case: Any, history: Any, items: Any) -> tuple:
    last = int(history[-1])
    rows = zip(map(str, range(1, NEAREST + 1)), nearest(before, last), nearest(after, last))
    return {}, {}, [html.table(['', 'As the texts say', 'After RAT'], [list(r) for r in rows],
                               f'Nearest to {user_examples.title_of(dataset.catalog, last)}',
                               'rll')]
  return user_examples.section(
    work.path, dataset.catalog, test, row, cfg.seed + best, describe,
    intro='Below each list stand the '
    "items whose vectors lie nearest to that of the user's last item, by cosine: as they come "
    'from the texts, and as RAT made them.')


def categories(dataset: Dataset) -> list[str]:
  """What each item is colored by: its first category, else its brand. dataset: of the run."""
  columns = dataset.catalog.columns
  values = columns.get('categories') or columns.get('brand') or [None] * len(dataset.catalog)
  roots = {c[0] for c in values if isinstance(c, list) and c}
  depth = 1 if len(roots) == 1 else 0  # a root that all share says nothing

  def name(value: Any) -> str:
    if isinstance(value, list):
      return value[min(depth, len(value) - 1)] if value else 'none'
    return value or 'none'
  return [name(v) for v in values]


def training_section(work: Workdir, id_dirs: dict, rat_dirs: dict) -> str:
  """Learning curves: the contrast, then validation of every recommender. work: of the run. id_dirs:
  of recommenders over ids by kind. rat_dirs: of RAT by variant."""
  rows = work.metrics()
  losses = {
    stage_name: [(r['step'], r['loss']) for r in rows if r['stage'] == stage_name and 'loss' in r]
    for stage_name in dict.fromkeys(r['stage'] for r in rows)
    if stage_name.startswith(('scft', 'llm'))}
  validation = {
    name: [(r['step'], r['valid_0']) for r in rows if r['stage'] == stage]
    for name, stage in [(variants.row_name(variant), f'rat-{variant}') for variant in rat_dirs]
    + [(kind, f'ids-{kind}') for kind in id_dirs]}
  parts = [
    html.figure(
      plots.loss_curves({stage_name: curve}), f'Training loss of {stage_name}',
      f'loss of {stage_name}')
    for stage_name, curve in losses.items()
    if curve]
  parts.append(
    html.figure(
      plots.loss_curves(validation, ylabel='NDCG@10', xlabel='epoch'),
      'Validation NDCG@10 of the first seed by epoch; the best one is kept', 'validation curves'))
  return html.section('Training', html.grid(*parts))
