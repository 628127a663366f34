"""The run's report: the figures, the IDs, how training went, what interests changed."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data import splits
from recjax.data.dataset import Dataset
from recjax.methods.etegrec import interests, item_embeddings, tokenization, train
from recjax.models import semantic_id_t5, seqrec
from recjax.report import html, plots, result_tables, run_section, user_examples
from recjax.retrieval import pca
from recjax.run_files import read_json
from recjax.training.workdir import Workdir

LABELS = {**result_tables.BESIDE,
          'sasrec': 'SASRec of the item vectors', 'no interests': 'the same without interests'}

# What of lists tells a policy that collapses.
TUNING = {'same_first': 'share of lists that begin with the most frequent first item',
          'first_items': 'share of the catalog that begins some list',
          'top_percent': 'share of answers among the 1 % of items with most interactions'}
CURVES = (('reward', 'reward', 'Reward of a rolled-out item'),
          ('hit', 'share', 'Rolled-out lists that hold the item that came next'),
          ('entropy', 'nats', 'Entropy over items'), ('kl', 'nats', 'Divergence from before'),
          ('valid_NDCG@10', 'NDCG@10', 'Validation'))

PAPERS = {'tiger': '''\
@inproceedings{rajput2023tiger,
  title = {Recommender Systems with Generative Retrieval},
  author = {Rajput, Shashank and Mehta, Nikhil and Singh, Anima and Keshavan, Raghunandan H. and Vu,
            Trung and Heldt, Lukasz and Hong, Lichan and Tay, Yi and Tran, Vinh Q. and Samost, Jonah
            and Kula, Maciej and Chi, Ed H. and Sathiamoorthy, Maheswaran},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {36},
  pages = {10299--10315},
  year = {2023}
}''', 'etegrec': '''\
@inproceedings{liu2025etegrec,
  title = {Generative Recommender with End-to-End Learnable Item Tokenization},
  author = {Liu, Enze and Zheng, Bowen and Ling, Cheng and Hu, Lantao and Li, Han and Zhao, Wayne
            Xin},
  booktitle = {Proceedings of the 48th International ACM SIGIR Conference on Research and
               Development in Information Retrieval},
  pages = {729--739},
  year = {2025},
  doi = {10.1145/3726302.3729989}
}'''}


def write(cfg: ConfigDict, work: Workdir, dataset: Dataset, vectors_dir: Path, ids_dir: Path,
          interests_dir: Path | None, model_dir: Path, results_dir: Path) -> None:
  """Writes report.html into the run's folder. cfg, work, dataset: of the run. vectors_dir, ids_dir,
  interests_dir, model_dir, results_dir: of its stages."""
  outcome = read_json(results_dir / 'results.json')
  row = next(iter(outcome['rows']))
  tuned = 'tuning' in outcome
  table = run_files.read_arrays(model_dir / 'model.npz')['table'][0][1:]
  papers = [
    PAPERS[cfg.variant], *(seqrec.PAPERS[name] for name in ('sasrec',) if name in outcome['rows'])]
  html.write(
    work.path / 'report.html',
    html.page(
      f'Semantic IDs: {row}', f'{dataset.name}, preset {cfg.preset}',
      [verdict(outcome, row), html.tiles(figures(outcome, row, ids_dir))],
      [
        results_section(outcome, row), *([tuning_section(outcome, work)] if tuned else []),
        result_tables.groups_section(outcome, row),
        *([interests_section(outcome)] if interests_dir is not None else []),
        ids_section(dataset, cfg, vectors_dir, ids_dir, table), training_section(work),
        users_section(cfg, work, dataset, vectors_dir, ids_dir, interests_dir, model_dir, row),
        *run_section.closing_sections(
          work.path, cfg,
          {
            'data': f'{dataset.name}: {len(dataset.interactions):,} users, '
                    f'{len(dataset.catalog):,} items',
            'data fingerprint': dataset.fingerprint,
            'protocol': f'{outcome["protocol"]}; {outcome["note"]}',
            'seeds': ', '.join(map(str, outcome['seeds']))},
          papers)],
      'How this method works and what is reproduced: docs/etegrec.md.'))


def verdict(outcome: dict, row: str) -> str:
  """The result in a sentence. outcome: what results.json holds. row: the run's own row."""
  ours, popularity = outcome['rows'][row], outcome['rows']['popularity']
  return (f'For {ours["HR@10"]["value"]:.1%} of {ours["HR@10"]["n"]:,} users the next item is '
          f'among the first ten that the model writes; the most popular items alone give '
          f'{popularity["HR@10"]["value"]:.1%}.')


def figures(outcome: dict, row: str, ids_dir: Path) -> list[tuple]:
  """Tiles of the summary. outcome: what results.json holds. row: the run's own row. ids_dir: of the
  stage before."""
  stats = tokenization.codebook_stats(ids_dir)
  return [*result_tables.metric_tiles(outcome, row, ('HR@10', 'NDCG@10')),
          ('codes in use', f'{min(stats["usage"]):.0%}', 'of the level that uses fewest'),
          ('items that share codes', f'{stats["collision_rate"]:.2%}',
           'before they are told apart'),
          ('free beams', f'{outcome["free"]["invalid_rate"]:.1%}',
           'of their top ten are no item; the lists above hold real items alone')]


def results_section(outcome: dict, row: str) -> str:
  """The table with intervals. outcome: what results.json holds. row: the run's own row."""
  metrics = [m for m in ('HR@10', 'NDCG@10', 'HR@5') if m in outcome['rows'][row]]
  before = {list(outcome['rows'])[1]: 'the same before tuning'} if 'tuning' in outcome else {}
  return html.section('Results', result_tables.results_table(outcome, metrics, 'NDCG@10', row,
                                                           LABELS | before),
                      intro='Intervals are 95 % bootstraps over users.')


def tuning_section(outcome: dict, work: Workdir) -> str:
  """What tuning changed besides the accuracy, and how it went. outcome: what results.json holds.
  work: of the run."""
  stats, rows = outcome['tuning'], work.metrics()
  names = result_tables.LIST_METRICS | TUNING
  lines = [[names[name], f'{value:.4f}', f'{stats["after"][name]:.4f}']
           for name, value in stats['before'].items() if name in names]
  lines += [[f'validation NDCG@10, training {seed + 1}', f'{before:.4f}',
             f'{after:.4f}{"" if kept else " (the weights of before stay)"}']
            for seed, (before, after, kept) in enumerate(zip(*(
              stats['validation'][key] for key in ('before', 'after', 'kept'))))]
  shown = []
  for key, label, caption in CURVES:
    points = {stage.partition('.')[2]: [(r['step'], r[key]) for r in rows
                                        if r['stage'] == stage and key in r]
              for stage in dict.fromkeys(r['stage'] for r in rows)
              if stage.startswith('policy.')}
    points = {stage: line for stage, line in points.items() if len(line) > 1}
    if points:
      shown.append(html.figure(plots.loss_curves(points, ylabel=label, xlabel='step'), caption,
                               'curve'))
  return html.section(
    'What tuning changed', html.table(['Lists of ten', 'before', 'after'], lines,
                                      'The same test users, the same decoding', 'lrr'),
    html.grid(*shown),
    intro='The row before tuning stands in the table above, with its test. A reward that rises '
    'while the validation falls, or lists that grow alike, are signs of a policy that collapses.')


def interests_section(outcome: dict) -> str:
  """What interests do to lists. outcome: what results.json holds."""
  stats = outcome['interests']
  return html.section('Interests', html.facts({
      'test users with interests': f'{stats["with_interests"]:,} of {stats["users"]:,}',
      'top ten changed when interests are taken away': f'{stats["top10_changed_without"]:.1%}',
      'top ten changed by the interests of another user':
          f'{stats["top10_changed_by_others"]:.1%} of {stats["swapped_users"]:,}'}),
      intro='The same model and history, with other interests. The row "without interests" above '
                      'says what that is worth.')


def ids_section(dataset: Dataset, cfg: ConfigDict, vectors_dir: Path, ids_dir: Path,
                table: np.ndarray) -> str:
  """How codes are used, and a map of items in the colors of their first code.

  table: (N, Q) codes at the end of training. dataset, cfg: of the run. vectors_dir, ids_dir: of the
  stages before.
  """
  size, stats = cfg.semantic_ids.size, tokenization.codebook_stats(ids_dir)
  counts = np.stack([np.bincount(table[:, q], minlength=size) for q in range(table.shape[1])])
  sorted_counts = np.sort(counts, 1)[:, ::-1]
  names, num_learned = [f'level {q + 1}' for q in range(len(counts))], len(stats['balance'])
  rows = [[names[q], f'{(counts[q] > 0).mean():.1%}', f'{np.exp(entropy(counts[q])):.1f}',
           f'{stats["balance"][q]:.3f}' if q < len(stats['balance']) else '']
          for q in range(len(counts))]
  x = item_embeddings.read(vectors_dir)
  points = np.asarray(pca.fit(x, 2)(x))
  colors = [f'code {c}' for c in table[:, 0]]
  categories = dataset.catalog.columns.get('categories')
  item_categories = [str((c[0] if isinstance(c, (list, tuple)) and c else c) or 'none')
                     for c in categories] if categories else None
  maps = [html.figure(plots.scatter(points, colors),
                      'Item vectors in the plane, in colors of their first codes',
                      'items by first code')]
  if item_categories:
    maps.append(html.figure(plots.scatter(points, item_categories), 'The same by category',
                            'items by category'))
  return html.section(
    'Semantic IDs',
    html.table(
      ['Level', 'Codes in use', 'Perplexity', 'Balance'], rows, 'At the end of training', 'lrrr'),
    html.figure(
      plots.heat_map(
        sorted_counts[:num_learned], names[:num_learned], 'codes, most frequent first', 'items'),
      'Items of each code; the level that tells equal items apart is left out', 'code usage'),
    html.grid(*maps),
    intro=f'{cfg.semantic_ids.kind}; {stats["collision_rate"]:.2%} of items shared the codes of '
    f'another when the tokenizer was made (largest group {stats["max_group"]}); the last level '
    'tells them apart.')


def entropy(counts: np.ndarray) -> float:
  """Of the shares that counts make, in nats."""
  share = counts[counts > 0] / counts.sum()
  return float(-(share * np.log(share)).sum())


def training_section(work: Workdir) -> str:
  """Curves of the tokenizer, of training, in turn where it is so, and of finetuning. work: of the
  run."""
  rows = work.metrics()
  def curve(stage: str, key: str) -> list[tuple]:
    return [(r['step'], r[key]) for r in rows if r['stage'] == stage and key in r]
  shown = []
  for stage, key, label, caption in (
      ('tokenizer', 'loss', 'loss', 'The tokenizer: loss by step'),
      ('tokenizer', 'recon', 'loss', 'The tokenizer: reconstruction by step'),
      ('tokenizer', 'collision_rate', 'share', 'The tokenizer: items that share codes'),
      ('train', 'code_0', 'loss', 'Code loss of the recommender by epoch, first seed'),
      ('train', 'vq_0', 'loss', "The tokenizer's loss in its own epochs"),
      ('train', 'sia_0', 'KL', 'SIA: distance of code distributions'),
      ('train', 'psa_0', 'loss', 'PSA: contrast of states and rebuilt vectors'),
      ('train', 'valid_0', 'NDCG@10', 'Validation NDCG@10 by epoch, first seed'),
      ('finetune', 'code_0', 'loss', 'Finetuning: code loss by epoch'),
      ('finetune', 'valid_0', 'NDCG@10', 'Finetuning: validation NDCG@10')):
    points = curve(stage, key)
    if len(points) > 1:
      shown.append(html.figure(plots.loss_curves({stage: points}, ylabel=label, xlabel=(
          'step' if stage == 'tokenizer' else 'epoch')), caption, 'curve'))
  return html.section('Training', html.grid(*shown) if shown else 'One epoch alone.')


def users_section(cfg: ConfigDict, work: Workdir, dataset: Dataset, vectors_dir: Path,
                  ids_dir: Path, interests_dir: Path | None, model_dir: Path, row: str) -> str:
  """Test users with semantic IDs, and the weights of their interests where these are attended.

  cfg, work, dataset: of the run. vectors_dir, ids_dir, interests_dir, model_dir: of its stages.
  row: of results.json.
  """
  best = int(np.argmax(train.validation_scores(model_dir)['NDCG@10']))
  params = train.load_params(model_dir, best)
  table, test = params['table'], splits.make_split(dataset).test
  codes_of = lambda items_shown: [' '.join(map(str, table[i])) for i in items_shown]  # noqa: E731
  interests_of_case, weights_of = None, lambda case: None
  if interests_dir is not None:
    interest_rows, _, texts = interests.read(interests_dir)
    interests_of_case = [
      [texts[t] for t in line if t] for line in interest_rows[len(interest_rows) - len(test) :]]
    weights_of = interests_weights(
      cfg, train.load_training_data(cfg, dataset, vectors_dir, ids_dir, interests_dir), params)

  def describe(case: Any, history: Any, items: Any) -> tuple:
    parts = []
    if interests_of_case is not None:
      weights = weights_of(case)
      tags = interests_of_case[case] if weights is None else [
          html.Tag(t, round(float(w), 3)) for t, w in zip(interests_of_case[case], weights)]
      parts = [html.tags('Interests', tags)]
    target = int(test.targets[case])
    return {'Codes': codes_of(history)}, {'Codes': codes_of(items)}, [
        f'Codes of what came next: {codes_of([target])[0]}.', *parts]
  extra = (' The weight of an interest is the share of attention that the history pays to it, '
           'the mean over tokens and heads.' if cfg.fusion == 'encoder' else '')
  return user_examples.section(
      work.path, dataset.catalog, test, row, cfg.seed + best, describe, 'Log-probability',
      cfg.decode.beams,
      f'Items are written as their codes, one a level; a list is {cfg.decode.beams} beams.{extra}')


def interests_weights(cfg: ConfigDict, data: train.TrainingData, params: PyTree) -> Callable:
  """-> a function of a case: shares of attention (K,), None where no attention is paid

  data, params: of the run. cfg: the run's config.
  """
  if cfg.fusion != 'encoder':
    return lambda case: None
  interests, cases = data.given('test'), data.split.test

  def weigh(case: Any) -> np.ndarray:
    items = cases.history(case)[-cfg.model.max_history:]
    case_interests = tuple(jax.numpy.asarray(array[case:case + 1]) for array in interests)
    _, intermediates = semantic_id_t5.SemanticIdT5(data.cfg).apply(
        {'params': params['rec']}, jax.numpy.asarray(params['table'])[items][None], case_interests,
        method='read', mutable=['intermediates'])
    return np.asarray(jax.tree.leaves(intermediates)[0])[0].mean((0, 1))
  return weigh
