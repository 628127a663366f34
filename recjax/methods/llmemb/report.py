"""The run's report: what the vectors became, whom it helps, and what each part is worth."""
import numpy as np

from recjax.methods.llmemb import item_embeddings, rat, variants
from recjax.models import seqrec
from recjax.report import html, plots, results, run, users
from recjax.retrieval import pca
from recjax.run_files import read_json
from recjax.training import sequential

LABELS = {'llmemb': 'LLMEmb', 'sasrec': 'SASRec, ids alone', 'gru4rec': 'GRU4Rec, ids alone',
          'bert4rec': 'BERT4Rec, ids alone', 'llmemb:no_scft': 'without SCFT',
          'llmemb:no_adapter': 'no adapter, PCA alone', 'llmemb:no_freeze': 'vectors not frozen',
          'llmemb:no_align': 'without alignment', 'llmemb:pool_last': 'last token pooled',
          'llmemb:pca': 'PCA of the untuned LLM alone', 'llmemb:text': 'plain text embedding',
          'popularity': 'popularity', 'recency': 'recent popularity', 'random': 'random'}

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


def write(cfg, work, shop, tables, ids, made, found):
  """Writes report.html into the run's folder."""
  outcome = read_json(found / 'results.json')
  row = next(iter(outcome['rows']))
  html.write(work.path / 'report.html', html.page(
      'LLMEmb: item embeddings from a language model', f'{shop.name}, preset {cfg.preset}',
      [verdict(cfg, outcome, row), html.tiles(figures(outcome, row))],
      [results_section(outcome, row), tail_section(cfg, outcome),
       map_section(cfg, shop, tables, made), results.groups_section(outcome, row),
       users_section(cfg, work, shop, tables, made, row), training_section(work, ids, made),
       *run.closing(work.path, cfg, {
           'data': f'{shop.name}: {len(shop.interactions):,} users, {len(shop.catalog):,} items',
           'data fingerprint': shop.fingerprint, 'protocol': outcome['protocol'],
           'seeds': ', '.join(map(str, outcome['seeds']))},
                    [PAPER, *(seqrec.PAPERS[kind] for kind in ids)])],
      'Liu et al., AAAI 2025, arXiv 2409.19925.'))


def verdict(cfg, outcome, row):
  """The result in two sentences."""
  base = cfg.model.kind
  said = []
  for name, cells, tests in (
      ('all test users', outcome['rows'], outcome['tests']),
      *((f'the {g["n"]:,} whose next item is rare', g['rows'], g['tests'])
        for n, g in outcome['groups'].items() if n == 'tail_item')):
    ours, theirs = (cells[r]['NDCG@10']['value'] for r in (row, base))
    p = tests[f'{row}>{base}']['NDCG@10']
    said.append(f'for {name} NDCG@10 is {ours:.4f} against {theirs:.4f} of ids alone '
                f'(p {results.p_value(p)})')
  return '; '.join(said).capitalize().replace('ndcg', 'NDCG') + '.'


def figures(outcome, row):
  """Tiles of the summary."""
  tiles = results.tiles(outcome, row, ('HR@10', 'NDCG@10'))
  tail = outcome['groups'].get('tail_item')
  if tail:
    cell = tail['rows'][row]['NDCG@10']
    tiles.append(('NDCG@10, rare items', f'{cell["value"]:.4f}', f'{tail["n"]:,} users'))
  return [*tiles, ('seeds', str(len(outcome['seeds'])), '')]


def results_section(outcome, row):
  """All rows: recommenders over ids, ablations, baselines."""
  parts = [results.results_table(outcome, ['HR@10', 'NDCG@10', 'HR@5', 'HR@20'], 'NDCG@10', row,
                                 LABELS)]
  if 'sampled' in outcome:
    few = outcome['sampled']['all']['rows']
    parts.append(html.table(['Row', 'HR@10', 'NDCG@10'], [
        [LABELS.get(r, r), *(f'{cells[m]["value"]:.4f}' for m in ('HR@10', 'NDCG@10'))]
        for r, cells in few.items()], outcome['sampled']['protocol'], 'lrr'))
  return html.section('Results and ablations', *parts, intro='The full method first; below it what '
                      'is lost without each part. Intervals are 95 % bootstraps over users.')


def tail_section(cfg, outcome):
  """Bars of rare and frequent items, short and long histories, by row."""
  pictures = [html.figure(plots.bars_with_intervals(group['rows'], 'NDCG@10', LABELS),
                          f'{GROUPS[name]}: {group["n"]:,} test users',
                          f'NDCG@10 by row, {GROUPS[name].lower()}')
              for name, group in outcome['groups'].items()]
  return html.section('Tail and head', html.grid(*pictures), intro='Rare: fewer than '
                      f'{cfg.eval.tail_item} training interactions. Short: fewer than '
                      f'{cfg.eval.tail_user} items before the one asked for.')


def map_section(cfg, shop, tables, made):
  """Item vectors in a plane before and after SCFT and after RAT, coloured by category."""
  groups = categories(shop)
  shown = [(name, item_embeddings.read(tables[source])) for source, name in (
      ('plain', 'The LLM as it is'), ('tuned', 'After SCFT'), ('text', 'Sentence encoder'),
      ('file', 'Vectors of the file')) if source in tables]
  shown.append(('After RAT', trained(cfg, shop, made)[0]))
  return html.section('Where items lie', html.grid(*[
      html.figure(plots.scatter(np.asarray(pca.fit(x, 2)(x)), groups), name,
                  f'{name}: items in the plane of their first two principal components')
      for name, x in shown]), intro='First two principal components, coloured by '
      'category. Overlap in a plane is not overlap in the full space.')


def trained(cfg, shop, made):
  """-> the item vectors that are recommended by (N, d), the number of their seed"""
  main = made[cfg.rat.variant]
  best = int(np.argmax(read_json(main / 'valid.json')['NDCG@10']))
  return sequential.load(main / 'model.npz', best)['items'][1:len(shop.catalog) + 1], best


def users_section(cfg, work, shop, tables, made, row):
  """Test users with what lies nearest to their last item, before and after RAT."""
  after, best = trained(cfg, shop, made)
  read = item_embeddings.read(tables[variants.source(cfg, cfg.rat.variant)])
  test = rat.split_of(shop).test
  read, after = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
                 for x in (read, after))

  def nearest(unit, item):
    close = unit @ unit[item - 1]
    return [f'{users.title_of(shop.catalog, i + 1)} ({close[i]:.2f})'
            for i in np.argsort(-close, kind='stable') if i != item - 1][:NEAREST]

  def tell(case, had, items):
    last = int(had[-1])
    rows = zip(map(str, range(1, NEAREST + 1)), nearest(read, last), nearest(after, last))
    return {}, {}, [html.table(['', 'As the texts say', 'After RAT'], [list(r) for r in rows],
                               f'Nearest to {users.title_of(shop.catalog, last)}', 'rll')]
  return users.section(
      work.path, shop.catalog, test, row, cfg.seed + best, tell, intro='Below each list stand the '
      "items whose vectors lie nearest to that of the user's last item, by cosine: as they come "
      'from the texts, and as RAT made them.')


def categories(shop):
  """What each item is coloured by: its first category, else its brand."""
  columns = shop.catalog.columns
  found = columns.get('categories') or columns.get('brand') or [None] * len(shop.catalog)
  shared = {c[0] for c in found if isinstance(c, list) and c}
  depth = 1 if len(shared) == 1 else 0  # a root that all share says nothing

  def name(value):
    if isinstance(value, list):
      return value[min(depth, len(value) - 1)] if value else 'none'
    return value or 'none'
  return [name(v) for v in found]


def training_section(work, ids, made):
  """Learning curves: the contrast, then validation of every recommender."""
  rows = work.metrics()
  losses = {s: [(r['step'], r['loss']) for r in rows if r['stage'] == s and 'loss' in r]
            for s in dict.fromkeys(r['stage'] for r in rows) if s.startswith(('scft', 'llm'))}
  valid = {name: [(r['step'], r['valid_0']) for r in rows if r['stage'] == stage]
           for name, stage in [(variants.row_name(v), f'rat-{v}') for v in made] + [
               (kind, f'ids-{kind}') for kind in ids]}
  parts = [html.figure(plots.loss_curves({s: c}), f'Training loss of {s}', f'loss of {s}')
           for s, c in losses.items() if c]
  parts.append(html.figure(plots.loss_curves(valid, ylabel='NDCG@10', xlabel='epoch'),
                           'Validation NDCG@10 of the first seed by epoch; the best one is kept',
                           'validation curves'))
  return html.section('Training', html.grid(*parts))
