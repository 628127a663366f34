"""The run's report: the figures, the IDs, how training went, what interests changed."""
import collections

import numpy as np

from recjax.data import splits
from recjax.methods.etegrec import ids, interests, vectors
from recjax.models import pca
from recjax.report import html, plots, results, run
from recjax.training.work import read_json

LABELS = {'popularity': 'popularity', 'recency': 'recent popularity', 'random': 'random',
          'sasrec': 'SASRec of the item vectors', 'no interests': 'the same without interests'}
EXAMPLES = 8


def write(cfg, work, shop, made, coded, heard, model, found):
  """Writes report.html into the run's folder."""
  outcome = read_json(found / 'results.json')
  row = next(iter(outcome['rows']))
  table = np.load(model / 'model.npz')['table'][0][1:]
  html.write(work.path / 'report.html', html.page(
      f'Semantic IDs: {row}', f'{shop.name}, preset {cfg.preset}',
      [verdict(outcome, row), html.tiles(figures(outcome, row, coded))],
      [results_section(outcome, row), results.groups_section(outcome, row),
       *([interests_section(outcome)] if heard is not None else []),
       ids_section(shop, cfg, made, coded, table), training_section(work),
       examples_section(cfg, shop, work, table, heard), run.facts_section(work.path, cfg, {
           'data': f'{shop.name}: {len(shop.interactions):,} users, {len(shop.catalog):,} items',
           'data fingerprint': shop.fingerprint,
           'protocol': f'{outcome["protocol"]}; {outcome["note"]}',
           'seeds': ', '.join(map(str, outcome['seeds']))})],
      'How this method works and what is reproduced: docs/etegrec.md.'))


def verdict(outcome, row):
  """The result in a sentence."""
  ours, base = outcome['rows'][row], outcome['rows']['popularity']
  return (f'For {ours["HR@10"]["value"]:.1%} of {ours["HR@10"]["n"]:,} users the next item is '
          f'among the first ten that the model writes; the most popular items alone give '
          f'{base["HR@10"]["value"]:.1%}.')


def figures(outcome, row, coded):
  """Tiles of the summary."""
  def tile(metric):
    cell = outcome['rows'][row][metric]
    return (metric, f'{cell["value"]:.4f}', f'{cell["low"]:.4f} to {cell["high"]:.4f}')
  about = ids.health(coded)
  return [tile('HR@10'), tile('NDCG@10'),
          ('codes in use', f'{min(about["usage"]):.0%}', 'of the level that uses fewest'),
          ('items that share codes', f'{about["collision_rate"]:.2%}',
           'before they are told apart'),
          ('free beams', f'{outcome["free"]["invalid_rate"]:.1%}',
           'of their top ten are no item; the lists above hold real items alone')]


def results_section(outcome, row):
  """The table with intervals."""
  every = [m for m in ('HR@10', 'NDCG@10', 'HR@5') if m in outcome['rows'][row]]
  return html.section('Results', results.results_table(outcome, every, 'NDCG@10', row, LABELS),
                      intro='Intervals are 95 % bootstraps over users.')


def interests_section(outcome):
  """What interests do to lists."""
  about = outcome['interests']
  return html.section('Interests', html.facts({
      'test users with interests': f'{about["with_interests"]:,} of {about["users"]:,}',
      'top ten changed when interests are taken away': f'{about["top10_changed_without"]:.1%}',
      'top ten changed by the interests of another user':
          f'{about["top10_changed_by_others"]:.1%} of {about["swapped_users"]:,}'}),
      intro='The same model and history, with other interests. The row "without interests" above '
      'says what that is worth.')


def ids_section(shop, cfg, made, coded, table):
  """How codes are used, and a map of items in the colours of their first code."""
  size, about = cfg.tokenizer.size, ids.health(coded)
  used = np.stack([np.bincount(table[:, q], minlength=size) for q in range(table.shape[1])])
  order = np.sort(used, 1)[:, ::-1]
  names, learnt = [f'level {q + 1}' for q in range(len(used))], len(about['balance'])
  rows = [[names[q], f'{(used[q] > 0).mean():.1%}', f'{np.exp(entropy(used[q])):.1f}',
           f'{about["balance"][q]:.3f}' if q < len(about['balance']) else '']
          for q in range(len(used))]
  x = vectors.read(made)
  points = np.asarray(pca.fit(x, 2)(x))
  colours = [f'code {c}' for c in table[:, 0]]
  groups = shop.catalog.columns.get('categories')
  kinds = [str((c[0] if isinstance(c, (list, tuple)) and c else c) or 'none')
           for c in groups] if groups else None
  maps = [html.figure(plots.scatter(points, colours),
                      'Item vectors in the plane, in colours of their first codes',
                      'items by first code')]
  if kinds:
    maps.append(html.figure(plots.scatter(points, kinds), 'The same by category',
                            'items by category'))
  return html.section(
      'Semantic IDs',
      html.table(['Level', 'Codes in use', 'Perplexity', 'Balance'], rows, 'At the end of training',
                 'lrrr'),
      html.figure(plots.heat_map(order[:learnt], names[:learnt], 'codes, most frequent first',
                                 'items'),
                  'Items of each code; the level that tells equal items apart is left out',
                  'code usage'),
      html.grid(*maps),
      intro=f'{cfg.tokenizer.kind}; {about["collision_rate"]:.2%} of items shared the codes of '
      f'another when the tokenizer was made (largest group {about["max_group"]}); the last level '
      'tells them apart.')


def entropy(counts):
  share = counts[counts > 0] / counts.sum()
  return float(-(share * np.log(share)).sum())


def training_section(work):
  """Curves of the tokenizer, of training, in turn where it is so, and of finetuning."""
  rows = work.metrics()
  def curve(stage, key):
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


def examples_section(cfg, shop, work, table, heard):
  """Test users with what was recommended, its codes, and their interests."""
  import pyarrow.parquet as pq
  rows = pq.read_table(work.path / 'predictions.parquet').to_pydict()
  lists = collections.defaultdict(list)
  for user, item in zip(rows['user'], rows['item']):
    lists[user].append(item)
  split = splits.leave_one_out(shop.interactions)
  test, said = split.test, None
  if heard is not None:
    told, _, texts = interests.read(heard)
    said = [[texts[t] for t in row if t] for row in told[len(told) - len(test):]]
  titles = shop.catalog.columns.get('title') or shop.catalog.ids
  name = lambda i: str(titles[i - 1] or shop.catalog.id_of(i))[:80]  # noqa: E731
  code = lambda i: ' '.join(map(str, table[i - 1]))  # noqa: E731
  cards = []
  for case in np.random.default_rng(0).permutation(len(test))[:EXAMPLES]:
    user, target = shop.interactions.users[test.users[case]], int(test.targets[case])
    found = [shop.catalog.index(i) for i in lists[user][:10] if i is not None]
    last = '; '.join(name(int(i)) for i in test.history(case)[-5:])
    parts = [html.tags('interests', said[case])] if said is not None else []
    cards.append(html.card(
        f'User {user}', f'last items: {last}. Next: {name(target)}, {code(target)}', *parts,
        html.table(['', 'Codes', 'Recommended', ''],
                   [[str(r), code(i), name(i), 'the next item' if i == target else '']
                    for r, i in enumerate(found, 1)], 'Top ten', 'rlll')))
  return html.section('Examples', html.cards(cards, shown=3), intro='Test users drawn at random.')
