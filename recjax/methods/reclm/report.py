"""The run's report: conversations, how clean the lists are, and whether they help."""
import json

from recjax.data import splits
from recjax.methods.reclm import inference
from recjax.models import seqrec
from recjax.report import html, plots, results, run, users
from recjax.run_files import read_json
from recjax.training.workdir import find_stage

LABELS = {'cgen': 'RecLM-cgen', 'ret': 'RecLM-ret', 'token': 'RecLM-token',
          **{f'{k}:ranked': f'RecLM-{k}, first items ranked' for k in ('cgen', 'ret', 'token')},
          'sasrec': 'SASRec (the teacher)', 'popularity': 'popularity',
          'recency': 'recent popularity', 'random': 'random'}

RATES = {'NonExistRate': 'items that do not exist', 'RepeatRate': 'repeats',
         'InHistoryRate': 'items of the history shown', 'CorrectCount': 'lists of the right length',
         'EmptyRate': 'empty lists', 'TargetCategoryRate': "items of the target's category",
         'coverage': 'catalogue shown'}

WISHES = {'with': 'items of a category alone', 'without': 'none of a category',
          'at_most': 'at most so many of a category', 'at_least': 'at least so many',
          'about': 'about so many'}

PAPERS = ('''\
@inproceedings{liao2026reclm,
  title = {Eliminating Out-of-Domain Recommendations in {LLM}-based Recommender Systems: A Unified
           View},
  author = {Liao, Hao and Zhang, Jiwei and Lian, Jianxun and Lu, Wensheng and Wu, Mingqi and
            Shuowangg and Zhang, Yong and Huang, Yitian and Zhou, Mingyang and Mao, Rui},
  booktitle = {Findings of the Association for Computational Linguistics: ACL 2026},
  year = {2026},
  note = {arXiv 2505.03336}
}''', '''\
@inproceedings{lu2024aligning,
  title = {Aligning Large Language Models for Controllable Recommendations},
  author = {Lu, Wensheng and Lian, Jianxun and Zhang, Wei and Li, Guanghua and Zhou, Mingyang and
            Liao, Hao and Xie, Xing},
  booktitle = {Proceedings of the 62nd Annual Meeting of the Association for Computational
               Linguistics (Volume 1: Long Papers)},
  year = {2024},
  note = {arXiv 2403.05063}
}''')


def write(cfg, work, shop, found):
  """Writes report.html into the run's folder."""
  outcome = read_json(found / 'results.json')
  main = next(iter(outcome['rows']))
  html.write(work.path / 'report.html', html.page(
      f'{LABELS[main]}: a chat model whose items exist', f'{shop.name}, preset {cfg.preset}',
      [verdict(outcome, main), html.tiles(figures(cfg, outcome, main))],
      [html.section('Results', results.results_table(
          outcome, ('HR@10', 'NDCG@10', 'HR@5'), 'NDCG@10', main, LABELS),
          intro='Intervals are 95 % bootstraps over test users. A list of RecLM holds '
          f'{cfg.decode.count} items; a target outside counts as not found.'),
       results.groups_section(outcome, main), rates_section(cfg, outcome),
       *control_section(cfg, outcome), curves(work),
       users_section(cfg, work, shop),
       run.training_section(work.metrics(), {'llm': 'the tiny language model',
                                             'teacher': 'the teacher', 'tune': 'the LLM'}),
       *run.closing(work.path, cfg, {
           'data': f'{shop.name}: {len(shop.catalog):,} items, {len(shop.interactions):,} users',
           'data fingerprint': shop.fingerprint, 'protocol': outcome['protocol']},
                    [*PAPERS, seqrec.PAPERS[cfg.teacher.model.kind]])],
      'Liao et al., ACL Findings 2026 (arXiv 2505.03336); Lu et al., arXiv 2403.05063.'))


def verdict(outcome, main):
  """The result in a sentence."""
  ours, base = outcome['rows'][main]['HR@10'], outcome['rows']['popularity']['HR@10']
  p = outcome['tests'][f'{main}>popularity']['HR@10']
  text = (f'For {ours["value"]:.1%} of {ours["n"]:,} test users the next item is in the list of '
          f'ten; the most popular items give {base["value"]:.1%} (paired test, p '
          f'{results.p_value(p)}).')
  if 'sasrec' in outcome['rows']:
    teach = outcome['rows']['sasrec']['HR@10']['value']
    text += f' The teacher reaches {teach:.1%}: a ratio of {ours["value"] / max(teach, 1e-9):.2f}.'
  return text


def figures(cfg, outcome, main):
  """Tiles of the summary."""
  k = cfg.decode.count
  return [*results.tiles(outcome, main, ('HR@10', 'NDCG@10')),
          ('items that do not exist', f'{outcome["rates"][f"NonExistRate@{k}"]:g}', 'in all lists'),
          ('repeats', f'{outcome["rates"][f"RepeatRate@{k}"]:g}', 'in all lists')]


def rates_section(cfg, outcome):
  """How clean lists are: in one turn, amid other talk, over another catalogue."""
  tests = {'one turn': outcome['rates']}
  if outcome.get('rounds'):
    tests['between questions'] = outcome['rounds']
  if outcome.get('cross'):
    tests[f'another catalogue ({outcome["cross"]["data"]})'] = outcome['cross']
  if outcome.get('ranking'):
    tests[f'out of {outcome["ranking"]["candidates"]} candidates'] = outcome['ranking']
  if outcome.get('free'):
    tests['without the constraint'] = outcome['free']
  k = cfg.decode.count
  rows = [[label, *(f'{t[f"{name}@{k}"]:.3f}' for t in tests.values())]
          for name, label in {'HR': f'hits in {k}', 'NDCG': f'NDCG@{k}', **RATES}.items()]
  body = [html.table(['', *tests], rows, f'Means over lists, counts out of {k} items, empty lists '
                     'counted', 'l' + 'r' * len(tests))]
  if outcome.get('ranking'):
    body.append(html.facts({f'items of {k} that are no candidates':
                            f'{outcome["ranking"][f"NotInCandidateRate@{k}"]:.2f}'}))
  if outcome.get('rounds'):
    r = outcome['rounds']
    body.append(html.facts({
        'conversations of three rounds': r['conversations'],
        f'lists of exactly {k} items in the second round': f'{r["CSN_R1"]:.1%}',
        'answers without a list in the third round': f'{r["CSN_R2"]:.1%}',
        'right answers in the third round': f'{r["accuracy"]:.1%}'}))
  return html.section('How clean the lists are', *body)


def control_section(cfg, outcome):
  """How often requests about categories are followed, beside lists that were not asked to. -> a
  section where there were such requests"""
  found = outcome.get('control') or {}
  k = cfg.decode.count
  rows = [[WISHES[kind], str(r['users']), f'{r["followed"]:.1%}', f'{r["unasked"]:.1%}',
           f'{r["in_category"]:.1%}', f'{r[f"HR@{k}"]:.3f}']
          for kind, r in found.items() if kind in WISHES]
  if not rows:
    return []
  body = [html.table(['', 'users', 'followed', 'unasked', 'in the category', f'hits in {k}'], rows,
                     'Empty lists follow nothing; unasked: the plain lists of the same users',
                     'lrrrrr')]
  if 'category_of' in found:
    body.append(html.facts({'categories of items named right':
                            f'{found["category_of"]["right"]:.1%}'}))
  return [html.section('Requests about categories', *body)]


def curves(work):
  """Likelihood of held-out titles among what the catalogue allows."""
  rows = [r for r in work.metrics() if r['stage'] == 'tune']
  found = {name: [(r['step'], r[name]) for r in rows if name in r]
           for name in ('title_nll', 'item_nll', 'valid_loss')}
  return html.section('Held-out lists', html.figure(
      plots.loss_curves({k.replace('_', ' '): v for k, v in found.items() if v},
                        ylabel='nats a token', xlabel='step'),
      'Validation loss, and of titles among what the catalogue allows', 'curves'))


def users_section(cfg, work, shop):
  """Test users with the reply that each list was read from."""
  _, _, shelf, _ = inference.open_run(work.path)
  cases = splits.leave_one_out(shop.interactions).test
  cases = cases.picked(splits.drawn(cases, cfg.eval.users, '')[0])
  replies = {}
  for line in (find_stage(work.path, 'evaluate') / 'lists.jsonl').read_text().splitlines():
    replies |= {name: ids for name, ids in json.loads(line)}

  def tell(case, had, items):
    return {}, {}, [html.element('p', 'The reply', class_='label'),
                    html.code(shelf.read(replies[int(case)]).text or '(nothing)')]
  return users.section(work.path, shop.catalog, cases, cfg.grounding, cfg.seed, tell, '',
                       cfg.decode.count, 'Below each list stands the reply that it was read '
                       'from. Items have no scores: their order is that of the reply.')
