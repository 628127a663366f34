"""Sections that every run's report has: how it was trained, how to run it again, whom to cite."""
import collections
import pathlib

import recjax
from recjax import run_files
from recjax.report import html, plots


def training_section(rows, names=None):
  """Loss curves of every trained stage.

  rows: lines of metrics.jsonl. names: {stage: what to call it}, the stage's own name by default.
  """
  names, curves, valid = names or {}, collections.defaultdict(list), collections.defaultdict(list)
  for row in rows:
    if 'loss' in row:
      curves[row['stage']].append((row['step'], row['loss']))
    if 'valid_loss' in row:
      valid[row['stage']].append((row['step'], row['valid_loss']))
  shown = []
  for stage, points in curves.items():
    name = names.get(stage, stage)
    dots = {name: valid[stage]} if valid[stage] else None
    shown.append(html.figure(
        plots.loss_curves({name: points}, dots), f'Training {name}.',
        f'Loss falls from {points[0][1]:.2f} to {points[-1][1]:.2f} in {points[-1][0]} steps.'))
  return html.section('Training', html.grid(*shown) if shown else 'Nothing was trained here.')


def closing(path, cfg, about, papers):
  """The last two sections: how to reproduce the run, how to cite what it used.

  path: the run's folder. cfg: the resolved config. about: {what: text} of the data. papers: BibTeX
  entries of what was run.
  """
  saved = run_files.read_config(path)['facts']
  return [reproduce_section(pathlib.Path(path), cfg, about, saved), cite_section(papers, saved)]


def reproduce_section(path, cfg, about, saved):
  """The command and what it ran on; each stage with its time, counts and fingerprint."""
  stages = {}
  for file in sorted((path / 'stages').glob('*/DONE.json')):
    done = run_files.need_json(file)
    stages[done['stage']] = done
  rows = [[name, s['seconds'], s['fingerprint'][:12], ', '.join(
      f'{k.replace("_", " ")} {v}' for k, v in s['counts'].items())] for name, s in stages.items()]
  return html.section(
      'How to reproduce', html.code(saved['command']),
      html.facts({'revision of recjax': saved['revision'], 'versions': saved['versions'],
                  'devices': saved['devices'], **about,
                  'settings that differ from the preset': saved['overrides'] or 'none'}),
      html.table(['Stage', 'Seconds', 'Fingerprint', 'Counts'], rows, 'What each stage did',
                 'lrll'),
      html.details('Every setting', html.facts(cfg.to_dict())),
      intro='The same command at the same revision, with these versions and data of the same '
            'fingerprint, makes these stages again. A fingerprint stands for the settings and '
            'inputs of a stage; where it is the same, the stage had the same task. Command, '
            'revision and versions are those of the last start of this run.')


def cite_section(papers, saved):
  """The papers whose methods ran, and recjax."""
  ours = ('@misc{recjax,\n  title = {recjax: recommendation with language models, on {JAX}},\n'
          f'  note = {{version {recjax.__version__}, revision {saved["revision"]}}}\n}}')
  return html.section('How to cite', html.code('\n\n'.join([*papers, ours])), intro=(
      'The papers whose methods stand in the tables, for the ideas; recjax, for the figures.'))
