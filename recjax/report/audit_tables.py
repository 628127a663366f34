"""What an audit says of a data set, as tables of a page."""
from collections.abc import Mapping, Sequence

from recjax.report import html
from recjax.report.html import Section


def shown(value: float) -> str:
  """A figure as people read it. value: a count, or a share or mean."""
  return f'{value:,}' if isinstance(value, int) else f'{value:,.4g}'


def sections(checks: Sequence[Mapping]) -> list[Section]:
  """Returns what was looked at, and its figures. checks: {'name', 'figures', 'level', 'sentence'}
  each, of `evaluation.audit`, the gravest first."""
  return [
      html.section('What was looked at', html.table(
          ['Check', 'Level', 'What it means'],
          [[check['name'], check['level'], check['sentence']] for check in checks],
          'checks of the data set and of leave-one-out on it, the gravest first')),
      html.section('Figures', _figures(checks))]


def section(checks: Sequence[Mapping]) -> Section:
  """Returns the same as one part of a run's report. checks: as of `sections`."""
  levels = [check['level'] for check in checks]
  said = ', '.join(f'{levels.count(level)} {level}{"s" * (levels.count(level) > 1)}'
                   for level in ('error', 'warning', 'note') if level in levels)
  return html.section(
      'The data', html.table(
          ['Check', 'Level', 'What it means'],
          [[check['name'], check['level'], check['sentence']] for check in checks],
          'What a strict reviewer asks of the data set and of leave-one-out on it'),
      html.details('Figures of the audit', _figures(checks)),
      intro=f'{said or "Nothing odd"}. `recjax doctor DATA --audit` says the same of any data set.'
      .replace('`', ''))


def _figures(checks: Sequence[Mapping]) -> html.Markup:
  return html.table(['Check', 'Figure', 'Value'], [
      [check['name'], name, shown(value)] for check in checks
      for name, value in check['figures'].items()], 'shares are from 0 to 1')
