"""Sections that every run's report has: how it was trained, how to run it again."""
import collections
import json
import pathlib

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


def facts_section(path, cfg, about):
  """How long each stage took, what was counted, and how to run this again.

  path: the run's folder. cfg: the resolved config. about: {what: text} of the data.
  """
  path = pathlib.Path(path)
  saved = json.loads((path / 'config.json').read_text())['facts']
  stages = {}
  for file in sorted((path / 'stages').glob('*/DONE.json')):
    done = json.loads(file.read_text())
    stages[done['stage']] = done
  rows = [[name, s['seconds'], ', '.join(f'{k.replace("_", " ")} {v}' for k, v in
                                         s['counts'].items())] for name, s in stages.items()]
  return html.section(
      'The run', html.table(['Stage', 'Seconds', 'Counts'], rows, 'What each stage did', 'lrl'),
      html.facts({**about, 'devices': saved['devices'], 'versions': saved['versions'],
                  'revision': saved['revision'],
                  'settings that differ from the preset': saved['overrides'] or 'none'}),
      html.code(saved['command']), html.details('Every setting', html.facts(cfg.to_dict())))
