"""Sections that every run's report has: how it was trained, how to run it again, whom to cite."""
import collections
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections

import recjax
from recjax import run_files
from recjax.report import audit_tables, html, plots, result_plots, result_tables
from recjax.report.html import Section

CONTAMINATION = 'contamination.json'  # in a run's folder
PLOTS = 'plots'


def training_section(rows: Iterable[Mapping], names: Mapping[str, str] | None = None) -> Section:
  """Returns loss curves of every trained stage.

  rows: lines of metrics.jsonl. names: {stage: what to call it}, the stage's own name by default.
  """
  names = names or {}
  losses: dict[str, list] = collections.defaultdict(list)
  valid_losses: dict[str, list] = collections.defaultdict(list)
  for row in rows:
    if 'loss' in row:
      losses[row['stage']].append((row['step'], row['loss']))
    if 'valid_loss' in row:
      valid_losses[row['stage']].append((row['step'], row['valid_loss']))
  figures = []
  for stage, points in losses.items():
    name = names.get(stage) or stage
    validation = {name: valid_losses[stage]} if valid_losses[stage] else None
    figures.append(html.figure(
        plots.loss_curves({name: points}, validation), f'Training {name}.',
        f'Loss falls from {points[0][1]:.2f} to {points[-1][1]:.2f} in {points[-1][0]} steps.'))
  return html.section('Training', html.grid(*figures) if figures else 'Nothing was trained here.')


def closing_sections(path: str | os.PathLike, cfg: ml_collections.ConfigDict,
                     data_facts: Mapping[str, Any], papers: Sequence[str]) -> list[Section]:
  """Returns the last sections: pictures, what an audit says of the data, how to reproduce the run,
  how to cite what it used.

  The pictures also become files of the folder plots/ of the run.

  path: the run's folder. cfg: the resolved config. data_facts: {what: text} of the data. papers:
  BibTeX entries of what was run.
  """
  run_facts = run_files.read_config(path)['facts']
  path = pathlib.Path(path)
  results = run_files.read_json(path / 'results.json') or {}
  checks = results.get('audit')
  if results.get('started'):
    data_facts = {'training': results['started']['said'], **data_facts}
  return [*pictures_section(path), *([audit_tables.section(checks)] if checks else []),
          reproduce_section(path, cfg, data_facts, run_facts), cite_section(papers, run_facts)]


def pictures_section(path: pathlib.Path) -> list[Section]:
  """Returns the pictures of the run's table, which are kept beside its report; none where it has no
  figures. path: the run's folder."""
  results = run_files.read_json(path / 'results.json')
  if not results or not results.get('rows'):
    return []
  made = result_plots.pictures(results, [next(iter(results['rows']))], result_tables.BESIDE,
                               result_plots.costs_of(path, results))
  result_plots.save(made, path / PLOTS)
  return [html.section('Pictures of the table', result_plots.figures(made), intro=(
      f'Each is a file in {PLOTS}/ beside this page, as SVG and, with its numbers, as CSV.'))]


def reproduce_section(path: pathlib.Path, cfg: ml_collections.ConfigDict,
                      data_facts: Mapping[str, Any], run_facts: Mapping[str, Any]) -> Section:
  """Returns the command and what it ran on; each stage with its time, counts and fingerprint.

  path, cfg, data_facts: as `closing_sections` takes them. run_facts: 'facts' of the run's
  config.json.
  """
  stages = {}
  for file in sorted((path / 'stages').glob('*/DONE.json')):
    stage = run_files.need_json(file)
    stages[stage['stage']] = stage
  rows = [[name, stage['seconds'], stage['fingerprint'][:12], ', '.join(
      f'{k.replace("_", " ")} {v}' for k, v in stage['counts'].items())]
          for name, stage in stages.items()]
  return html.section(
      'How to reproduce', html.code(run_facts['command']),
      html.facts({'revision of recjax': run_facts['revision'], 'versions': run_facts['versions'],
                  'devices': run_facts['devices'], **data_facts,
                  'settings that differ from the preset': run_facts['overrides'] or 'none'}),
      html.table(['Stage', 'Seconds', 'Fingerprint', 'Counts'], rows, 'What each stage did',
                 'lrll'),
      recited(path),
      html.details('Every setting', html.facts(cfg.to_dict())),
      intro='The same command at the same revision, with these versions and data of the same '
            'fingerprint, makes these stages again. A fingerprint stands for the settings and '
            'inputs of a stage; where it is the same, the stage had the same task. Command, '
            'revision and versions are those of the last start of this run.')


def recited(path: pathlib.Path) -> str | None:
  """What `recjax doctor DATA --contamination=RUN` found, as a paragraph, None where nobody asked.

  path: the run's folder.
  """
  found = run_files.read_json(path / CONTAMINATION)
  if not found:
    return None
  asked = '; '.join(f'{probe["asked"]}: {probe["real"]["exact"]:.3f}, gap to the control '
                    f'{probe["gap"]:+.3f} [{probe["gap_low"]:+.3f}, {probe["gap_high"]:+.3f}], '
                    f'n {probe["real"]["n"]}' for probe in found['probes'])
  return (f'How much of the data the model under this run recites: {found["sentence"]}. {asked}. '
          f'Model {found["model"]}, revision {found["revision"]}, prompts {found["prompts"]}, seed '
          f'{found["seed"]}.')


def cite_section(papers: Sequence[str], run_facts: Mapping[str, Any]) -> Section:
  """Returns the papers whose methods ran, and recjax.

  papers: BibTeX entries. run_facts: 'facts' of the run's config.json.
  """
  ours = ('@misc{recjax,\n  title = {recjax: recommendation with language models, on {JAX}},\n'
          f'  note = {{version {recjax.__version__}, revision {run_facts["revision"]}}}\n}}')
  return html.section('How to cite', html.code('\n\n'.join([*papers, ours])), intro=(
      'The papers whose methods stand in the tables, for the ideas; recjax, for the figures.'))
