"""The blend's report: the figures, the rules that were tried, and what is recommended."""
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from recjax.methods.blend.evaluate import Opened
from recjax.report import html, result_tables, run_section, user_examples
from recjax.run_files import need_json
from recjax.training.workdir import Workdir

SHOWN = 20  # rules of the table
MEMGEN = """@article{memgen,
  title = {How Well Does Generative Recommendation Generalize?},
  note = {arXiv 2603.19809}
}"""


def write(cfg: ConfigDict, work: Workdir, opened: Opened, chosen_dir: Path,
          results_dir: Path) -> None:
  """Writes report.html into the run's folder. cfg, work: of the run. opened: its parts."""
  outcome = need_json(results_dir / 'results.json')
  chosen, dataset = need_json(chosen_dir / 'chosen.json'), opened.dataset
  html.write(work.path / 'report.html', html.page(
      f'Blend of {", ".join(opened.names)}', dataset.name,
      [verdict(outcome, opened), html.tiles(
          [*result_tables.metric_tiles(outcome, 'blend', ('HR@10', 'NDCG@10')),
           ('parts', str(len(opened.parts)), chosen['told'])])],
      [html.section('Results', result_tables.results_table(
          outcome, ['HR@10', 'NDCG@10', 'HR@5'], 'NDCG@10', 'blend', result_tables.BESIDE),
          intro='Intervals are 95 % bootstraps over users.'),
       rules_section(chosen), result_tables.groups_section(outcome, 'blend'),
       user_examples.section(work.path, dataset.catalog, opened.split.test, 'blend', cfg.seed,
                             intro='Scores are weighted sums of what each part says, brought to '
                                   '0..1 for each user.'),
       *run_section.closing_sections(work.path, cfg, {
           'data': f'{dataset.name}: {len(dataset.interactions):,} users, '
                   f'{len(dataset.catalog):,} items',
           'data fingerprint': dataset.fingerprint, 'protocol': outcome['protocol'],
           'parts': {part.name: str(part.path or part.ref) for part in opened.parts}}, [MEMGEN])],
      'How to read these figures: docs/evaluation.md.'))


def verdict(outcome: dict[str, Any], opened: Opened) -> str:
  """The result in a sentence. outcome: what results.json holds. opened: the parts."""
  figure = lambda row: outcome['rows'][row]['NDCG@10']['value']  # noqa: E731
  best = max(opened.names, key=figure)
  p = outcome['tests'][f'blend>{best}']['NDCG@10']
  return (f'NDCG@10 is {figure("blend"):.4f}; of its parts {best} is the best alone with '
          f'{figure(best):.4f} (paired p {result_tables.p_value(p)}, Holm-corrected).')


def rules_section(chosen: dict[str, Any]) -> html.Section:
  """What was tried on validation cases. chosen: what chosen.json holds."""
  tried = chosen['tried']
  head = 'Given, and the parts alone' if chosen['given'] else (
      f'The best {min(SHOWN, len(tried))} of {len(tried)} rules')
  cells = lambda rule: [rule['told'], '–' if rule['valid'] is None else (  # noqa: E731
      f'{rule["valid"]:.4f}')]
  rows = [cells(rule) for rule in tried[:SHOWN]]
  known = {rule['told'] for rule in tried[:SHOWN]}
  rows += [cells(rule) for rule in tried
           if rule['told'] not in known and 1.0 in rule['rule'].get('weights', ())]
  said = '' if chosen['indicator'] == 'tried' else (
      f' The memorization indicator was not tried: {chosen["indicator"]}.')
  return html.section(
      'How it is mixed', html.table(['Rule', f'{chosen["metric"]} of validation'], rows, head),
      intro=f'Judged by {chosen["cases"]:,} validation cases; test cases were not looked at.{said}')
