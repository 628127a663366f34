"""The run's report: the figures, the IDs, how training went, what interests changed."""
import jax
import numpy as np

from recjax import run_files
from recjax.data import splits
from recjax.methods.etegrec import interests, item_embeddings, tokenization, train
from recjax.models import semantic_id_t5, seqrec
from recjax.report import html, plots, results, run, users
from recjax.retrieval import pca
from recjax.run_files import read_json

LABELS = {'popularity': 'popularity', 'recency': 'recent popularity', 'random': 'random',
          'sasrec': 'SASRec of the item vectors', 'no interests': 'the same without interests'}

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


def write(cfg, work, shop, made, coded, heard, model, found):
  """Writes report.html into the run's folder."""
  outcome = read_json(found / 'results.json')
  row = next(iter(outcome['rows']))
  table = run_files.read_arrays(model / 'model.npz')['table'][0][1:]
  papers = [PAPERS[cfg.variant], *(seqrec.PAPERS[r] for r in ('sasrec',) if r in outcome['rows'])]
  html.write(work.path / 'report.html', html.page(
      f'Semantic IDs: {row}', f'{shop.name}, preset {cfg.preset}',
      [verdict(outcome, row), html.tiles(figures(outcome, row, coded))],
      [results_section(outcome, row), results.groups_section(outcome, row),
       *([interests_section(outcome)] if heard is not None else []),
       ids_section(shop, cfg, made, coded, table), training_section(work),
       users_section(cfg, work, shop, made, coded, heard, model, row),
       *run.closing(work.path, cfg, {
           'data': f'{shop.name}: {len(shop.interactions):,} users, {len(shop.catalog):,} items',
           'data fingerprint': shop.fingerprint,
           'protocol': f'{outcome["protocol"]}; {outcome["note"]}',
           'seeds': ', '.join(map(str, outcome['seeds']))}, papers)],
      'How this method works and what is reproduced: docs/etegrec.md.'))


def verdict(outcome, row):
  """The result in a sentence."""
  ours, base = outcome['rows'][row], outcome['rows']['popularity']
  return (f'For {ours["HR@10"]["value"]:.1%} of {ours["HR@10"]["n"]:,} users the next item is '
          f'among the first ten that the model writes; the most popular items alone give '
          f'{base["HR@10"]["value"]:.1%}.')


def figures(outcome, row, coded):
  """Tiles of the summary."""
  about = tokenization.health(coded)
  return [*results.tiles(outcome, row, ('HR@10', 'NDCG@10')),
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
  size, about = cfg.tokenizer.size, tokenization.health(coded)
  used = np.stack([np.bincount(table[:, q], minlength=size) for q in range(table.shape[1])])
  order = np.sort(used, 1)[:, ::-1]
  names, learnt = [f'level {q + 1}' for q in range(len(used))], len(about['balance'])
  rows = [[names[q], f'{(used[q] > 0).mean():.1%}', f'{np.exp(entropy(used[q])):.1f}',
           f'{about["balance"][q]:.3f}' if q < len(about['balance']) else '']
          for q in range(len(used))]
  x = item_embeddings.read(made)
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


def users_section(cfg, work, shop, made, coded, heard, model, row):
  """Test users with semantic IDs, and the weights of their interests where these are attended."""
  best = int(np.argmax(train.valid_of(model)['NDCG@10']))
  params = train.trained(model, best)
  table, test = params['table'], splits.leave_one_out(shop.interactions).test
  code = lambda some: [' '.join(map(str, table[i])) for i in some]  # noqa: E731
  said, weigh = None, lambda case: None
  if heard is not None:
    told, _, texts = interests.read(heard)
    said = [[texts[t] for t in line if t] for line in told[len(told) - len(test):]]
    weigh = interests_weights(cfg, train.task(cfg, shop, made, coded, heard), params)

  def tell(case, had, items):
    parts = []
    if said is not None:
      weights = weigh(case)
      tags = said[case] if weights is None else [
          html.Tag(t, round(float(w), 3)) for t, w in zip(said[case], weights)]
      parts = [html.tags('Interests', tags)]
    target = int(test.targets[case])
    return {'Codes': code(had)}, {'Codes': code(items)}, [
        f'Codes of what came next: {code([target])[0]}.', *parts]
  extra = (' The weight of an interest is the share of attention that the history pays to it, '
           'the mean over tokens and heads.' if cfg.fusion == 'encoder' else '')
  return users.section(
      work.path, shop.catalog, test, row, cfg.seed + best, tell, 'Log-probability',
      cfg.decode.beams,
      f'Items are written as their codes, one a level; a list is {cfg.decode.beams} beams.{extra}')


def interests_weights(cfg, given, params):
  """-> a function of a case: shares of attention (K,), None where no attention is paid"""
  if cfg.fusion != 'encoder':
    return lambda case: None
  heard, cases = given.given('test'), given.split.test

  def weigh(case):
    items = cases.history(case)[-cfg.model.max_history:]
    some = tuple(jax.numpy.asarray(h[case:case + 1]) for h in heard)
    _, kept = semantic_id_t5.SemanticIdT5(given.cfg).apply(
        {'params': params['rec']}, jax.numpy.asarray(params['table'])[items][None], some,
        method='read', mutable=['intermediates'])
    return np.asarray(jax.tree.leaves(kept)[0])[0].mean((0, 1))
  return weigh
