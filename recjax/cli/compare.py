"""`recjax compare`: one table of several runs, with paired tests."""
import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from recjax import run_files
from recjax.progress import doing

if TYPE_CHECKING:
  from recjax.answer_times import AnswerTimes
  from recjax.report.result_plots import Picture

HELP = 'one table of several runs, with paired tests'
EXAMPLES = (
    'checkpoints/a checkpoints/b --against=sasrec --html=compare.html',
    'checkpoints/a checkpoints/b --answers',
)
WRITES = 'html'


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of the verb. parser: takes them."""
  parser.add_argument('workdirs', nargs='+', metavar='workdir', help='folders of finished runs')
  parser.add_argument('--against', default='', metavar='ROW', help='test every row against '
                      'this one alone, e.g. sasrec; RUN:ROW where several runs have it')
  parser.add_argument('--rows', default='', metavar='ROW,…', help='only these, as ROW or RUN:ROW '
                      '(default: all)')
  parser.add_argument('--format', default='text', choices=('text', 'csv', 'markdown', 'latex'),
                      help='of the table (default text)')
  parser.add_argument('--html', default='', help='also write a page, e.g. compare.html')
  parser.add_argument('--plots', default='', metavar='DIR', help='also write the pictures of the '
                      'page into this new folder, each as SVG and, with its numbers, as CSV')
  parser.add_argument('--answers', action='store_true', help='also measure here how long each run '
                      'takes to answer, a user alone and many together')


def run(args: argparse.Namespace) -> None:
  """Prints the table of several runs. args: of the command line."""
  from recjax.evaluation import compare
  if args.html:
    run_files.absent(args.html, '--html')
  if args.plots:
    run_files.absent(args.plots, '--plots', folder=True)
  table = compare.compare(args.workdirs, args.rows.split(',') if args.rows else (), args.against)
  sys.stdout.write(getattr(compare, f'{args.format}_table')(table).rstrip() + '\n')
  times = measured(args.workdirs, table) if args.answers else {}
  if args.html:
    from recjax.report import html
    run_files.absent(args.html, '--html')  # a comparison takes a while
    html.write(args.html, page(args.workdirs, table, times))
    print(f'page: {args.html}')
  if args.plots:
    from recjax.report import result_plots
    with run_files.new_folder(args.plots, '--plots') as fresh:
      result_plots.save(pictures(args.workdirs, table, times), fresh)
    print(f'pictures: {args.plots}')


def measured(workdirs: Sequence[str], table: dict) -> 'dict[str, AnswerTimes]':
  """Prints how long the runs take to answer. workdirs: of the runs. table: as
  `evaluation.compare.compare` gives it. -> {run: its times}"""
  from recjax import answer_times
  times = {}
  for name, path in zip(table['runs'], workdirs):
    with doing(f'the timing of {name}'):
      times[name] = answer_times.of_run(path)
  sys.stdout.write(f'\nanswers of {answer_times.LIST} items, medians on this machine:\n'
                   + answer_times.table(times))
  return times


def pictures(workdirs: Sequence[str], table: dict,
             times: 'Mapping[str, AnswerTimes] | None' = None) -> 'list[Picture]':
  """The pictures of a comparison. workdirs: of the runs. table: as `evaluation.compare.compare`
  gives it. times: {run: how long it takes to answer}, where that was measured."""
  from recjax.report import result_plots
  first, costs = [], {kind: {} for kind in result_plots.COSTS}
  for name, path in zip(table['runs'], workdirs):
    results = run_files.need_json(pathlib.Path(path) / 'results.json')
    if not results.get('rows'):
      continue
    first.append(f'{name}:{next(iter(results["rows"]))}')
    for kind, cost in result_plots.costs_of(path, results).items():
      costs[kind] |= {f'{name}:{row}': c for row, c in cost.items()}
    if times:
      costs['milliseconds a user, alone'][first[-1]] = times[name].alone
      costs['milliseconds a user, together'][first[-1]] = times[name].together
  return result_plots.pictures(table, [row for row in first if row in table['rows']],
                               labels_of(table), costs)


def labels_of(table: dict) -> dict[str, str]:
  """What to call the rows. table: as `evaluation.compare.compare` gives it."""
  return {row: row.replace(':', ': ', 1) for row in table['rows']}


def page(workdirs: Sequence[str], table: dict,
         times: 'Mapping[str, AnswerTimes] | None' = None) -> str:
  """The page of `recjax compare --html`. table: as `evaluation.compare.compare` gives it. workdirs,
  times: as of `pictures`."""
  from recjax.evaluation import compare
  from recjax.report import html, result_plots, result_tables
  tests = [] if table['against'] else [html.section('Paired tests', html.table(
      ['Rows', 'HR@10', 'NDCG@10'], [
          [name, *(result_tables.p_value(p[m]) for m in ('HR@10', 'NDCG@10'))]
          for name, p in table['tests'].items()], 'p-values, Holm-corrected'))]
  heads = ['Run', 'Method', 'Preset', 'Revision', 'Seeds', 'Users', 'Left out', 'Memorized']
  runs = [[name, *(run[k] or '–' for k in ('method', 'preset', 'revision')), ', '.join(
      map(str, run['seeds'])), run['users'], table['left_out'][name],
           html.number(run['lists'].get('memorized'), 3)]
          for name, run in table['runs'].items()]
  commands = '\n'.join(run['command'] for run in table['runs'].values() if run['command'])
  notes = [f'{name}: {run["note"]}.' for name, run in table['runs'].items() if run['note']]
  note, labels = compare.note(table), labels_of(table)
  drawn = html.section('Pictures', result_plots.figures(pictures(workdirs, table, times)), intro=(
      'The flag --plots=DIR writes them as files, SVG and CSV.'))
  return html.page('Runs compared', ', '.join(workdirs), [
      f'{table["verdict"]}.' if table['verdict'] else '',
      f'{table["users"]:,} users that all runs ranked. Protocol of every row: {table["protocol"]}.',
      f'{note}.' if note else ''], [
          html.section('Results', result_tables.results_table(
              table, compare.SHOWN, main='HR@10', reference=table['against'], sizes=True,
              labels=labels)), drawn, *tests,
          *result_tables.group_differences(table['groups'], labels),
          html.section('The runs', html.table(heads, runs, 'What each run is', 'lllllrrr'), notes,
                       html.code(commands) if commands else None,
                       intro='Left out: users of a run that the others did not rank. Memorized: '
                       "the share of its first row's lists of ten that came right after the last "
                       'item in training, which a table of transitions would have said too.')])
