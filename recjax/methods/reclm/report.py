"""The run's report: conversations, how clean the lists are, and whether they help."""
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from recjax.data import splits
from recjax.data.dataset import Dataset
from recjax.methods.reclm import inference
from recjax.models import seqrec
from recjax.report import html, plots, result_tables, run_section, user_examples
from recjax.run_files import read_json
from recjax.training.workdir import Workdir, find_stage

LABELS = {'cgen': 'RecLM-cgen', 'ret': 'RecLM-ret', 'token': 'RecLM-token',
          **{f'{k}:ranked': f'RecLM-{k}, first items ranked' for k in ('cgen', 'ret', 'token')},
          'sasrec': 'SASRec (the teacher)', **result_tables.BESIDE}

RATES = {'NonExistRate': 'items that do not exist', 'RepeatRate': 'repeats',
         'InHistoryRate': 'items of the history shown', 'CorrectCount': 'lists of the right length',
         'EmptyRate': 'empty lists', 'TargetCategoryRate': "items of the target's category",
         'coverage': 'catalog shown'}

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


def write(cfg: ConfigDict, work: Workdir, dataset: Dataset, results_dir: Path) -> None:
  """Writes report.html into the run's folder. cfg, work, dataset: of the run. results_dir: of the
  stage before."""
  outcome = read_json(results_dir / 'results.json')
  row = next(iter(outcome['rows']))
  html.write(work.path / 'report.html', html.page(
      f'{LABELS[row]}: a chat model whose items exist', f'{dataset.name}, preset {cfg.preset}',
      [verdict(outcome, row), html.tiles(figures(cfg, outcome, row))],
      [html.section('Results', result_tables.results_table(
          outcome, ('HR@10', 'NDCG@10', 'HR@5'), 'NDCG@10', row, LABELS),
                    intro='Intervals are 95 % bootstraps over test users. A list of RecLM holds '
                    f'{cfg.decode.num_items} items; a target outside counts as not found.'),
        result_tables.groups_section(outcome, row), rates_section(cfg, outcome),
        *control_section(cfg, outcome), curves(work), users_section(cfg, work, dataset),
        run_section.training_section(
          work.metrics(),
          {'llm': 'the tiny language model', 'teacher': 'the teacher', 'tune': 'the LLM'}),
        *run_section.closing_sections(
          work.path, cfg,
          {
            'data': f'{dataset.name}: {len(dataset.catalog):,} items, '
                    f'{len(dataset.interactions):,} users',
            'data fingerprint': dataset.fingerprint, 'protocol': outcome['protocol']},
          [*PAPERS, seqrec.PAPERS[cfg.teacher.model.kind]])],
      'Liao et al., ACL Findings 2026 (arXiv 2505.03336); Lu et al., arXiv 2403.05063.'))


def verdict(outcome: dict, row: str) -> str:
  """The result in a sentence. outcome: what results.json holds. row: the run's own row."""
  ours, popularity = outcome['rows'][row]['HR@10'], outcome['rows']['popularity']['HR@10']
  p = outcome['tests'][f'{row}>popularity']['HR@10']
  text = (f'For {ours["value"]:.1%} of {ours["n"]:,} test users the next item is in the list of '
          f'ten; the most popular items give {popularity["value"]:.1%} (paired test, p '
          f'{result_tables.p_value(p)}).')
  if 'sasrec' in outcome['rows']:
    teacher_rate = outcome['rows']['sasrec']['HR@10']['value']
    text += (f' The teacher reaches {teacher_rate:.1%}: a ratio of '
             f'{ours["value"] / max(teacher_rate, 1e-9):.2f}.')
  return text


def figures(cfg: ConfigDict, outcome: dict, row: str) -> list[tuple]:
  """Tiles of the summary. cfg: of the run. outcome: what results.json holds. row: the run's own
  row."""
  k = cfg.decode.num_items
  return [*result_tables.metric_tiles(outcome, row, ('HR@10', 'NDCG@10')),
          ('items that do not exist', f'{outcome["rates"][f"NonExistRate@{k}"]:g}', 'in all lists'),
          ('repeats', f'{outcome["rates"][f"RepeatRate@{k}"]:g}', 'in all lists')]


def rates_section(cfg: ConfigDict, outcome: dict) -> str:
  """How clean lists are: in one turn, amid other talk, over another catalog. cfg: of the run.
  outcome: what results.json holds."""
  tests = {'one turn': outcome['rates']}
  if outcome.get('rounds'):
    tests['between questions'] = outcome['rounds']
  if outcome.get('cross'):
    tests[f'another catalog ({outcome["cross"]["data"]})'] = outcome['cross']
  if outcome.get('ranking'):
    tests[f'out of {outcome["ranking"]["candidates"]} candidates'] = outcome['ranking']
  if outcome.get('free'):
    tests['without the constraint'] = outcome['free']
  k = cfg.decode.num_items
  rows = [[label, *(f'{rates[f"{name}@{k}"]:.3f}' for rates in tests.values())]
          for name, label in {'HR': f'hits in {k}', 'NDCG': f'NDCG@{k}', **RATES}.items()]
  body = [html.table(['', *tests], rows, f'Means over lists, counts out of {k} items, empty lists '
                     'counted', 'l' + 'r' * len(tests))]
  if outcome.get('ranking'):
    body.append(html.facts({f'items of {k} that are no candidates':
                            f'{outcome["ranking"][f"NotInCandidateRate@{k}"]:.2f}'}))
  if outcome.get('rounds'):
    rounds = outcome['rounds']
    body.append(html.facts({
        'conversations of three rounds': rounds['conversations'],
        f'lists of exactly {k} items in the second round': f'{rounds["CSN_R1"]:.1%}',
        'answers without a list in the third round': f'{rounds["CSN_R2"]:.1%}',
        'right answers in the third round': f'{rounds["accuracy"]:.1%}'}))
  return html.section('How clean the lists are', *body)


def control_section(cfg: ConfigDict, outcome: dict) -> list[str]:
  """How often requests about categories are followed, beside lists that were not asked to. cfg: of
  the run. outcome: what results.json holds. -> a section where there were such requests"""
  control = outcome.get('control') or {}
  k = cfg.decode.num_items
  rows = [[WISHES[kind], str(rates['users']), f'{rates["followed"]:.1%}', f'{rates["unasked"]:.1%}',
           f'{rates["in_category"]:.1%}', f'{rates[f"HR@{k}"]:.3f}']
          for kind, rates in control.items() if kind in WISHES]
  if not rows:
    return []
  body = [html.table(['', 'users', 'followed', 'unasked', 'in the category', f'hits in {k}'], rows,
                     'Empty lists follow nothing; unasked: the plain lists of the same users',
                     'lrrrrr')]
  if 'category_of' in control:
    body.append(html.facts({'categories of items named right':
                            f'{control["category_of"]["right"]:.1%}'}))
  return [html.section('Requests about categories', *body)]


def curves(work: Workdir) -> str:
  """Likelihood of held-out titles among what the catalog allows. work: of the run."""
  rows = [row for row in work.metrics() if row['stage'] == 'tune']
  points = {
    name: [(row['step'], row[name]) for row in rows if name in row]
    for name in ('title_nll', 'item_nll', 'valid_loss')}
  return html.section(
    'Held-out lists',
    html.figure(
      plots.loss_curves(
        {
          name_of_curve.replace('_', ' '): curve for name_of_curve, curve in points.items() if curve
        },
        ylabel='nats a token', xlabel='step'),
      'Validation loss, and of titles among what the catalog allows', 'curves'))


def users_section(cfg: ConfigDict, work: Workdir, dataset: Dataset) -> str:
  """Test users with the reply that each list was read from. cfg, work, dataset: of the run."""
  _, _, grounded, _ = inference.open_run(work.path)
  cases = splits.make_split(dataset).test
  cases = cases.select(splits.sample_cases(cases, cfg.eval.users, '')[0])
  replies = {}
  for line in (find_stage(work.path, 'evaluate') / 'lists.jsonl').read_text().splitlines():
    replies |= {name: ids for name, ids in json.loads(line)}

  def describe(case: Any, history: Any, items: Any) -> tuple:
    return {}, {}, [html.label('The reply'),
                    html.code(grounded.read(replies[int(case)]).text or '(nothing)')]
  return user_examples.section(work.path, dataset.catalog, cases, cfg.grounding, cfg.seed, describe,
  '',
                       cfg.decode.num_items, 'Below each list stands the reply that it was read '
                       'from. Items have no scores: their order is that of the reply.')
