"""The run's report: what was written, where it landed, what pulled it, and whether it helps."""
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data.splits import Cases
from recjax.methods.bigrec import instruction_data
from recjax.methods.bigrec.instruction_data import Data
from recjax.models import seqrec
from recjax.report import html, plots, result_tables, run_section, user_examples
from recjax.run_files import read_json
from recjax.training.workdir import Workdir, find_stage

LABELS = {'bigrec': 'BIGRec', 'bigrec:pop': 'BIGRec, pulled by popularity',
          'bigrec:cf': 'BIGRec, pulled by SASRec', 'd3': 'D3', 'd3:no_mixing': 'D3, the LLM alone',
          'd3:length_norm': 'constrained beams divided by length',
          'sasrec': 'SASRec (the assistant)', **result_tables.BESIDE}

DRAWN = 60

PAPERS = {'ground': '''\
@article{bao2025bigrec,
  title = {A Bi-Step Grounding Paradigm for Large Language Models in Recommendation Systems},
  author = {Bao, Keqin and Zhang, Jizhi and Wang, Wenjie and Zhang, Yang and Yang, Zhengyi and Luo,
            Yanchen and Chen, Chong and Feng, Fuli and Tian, Qi},
  journal = {ACM Transactions on Recommender Systems},
  volume = {3},
  number = {4},
  pages = {1--27},
  year = {2025},
  doi = {10.1145/3716393},
  note = {arXiv 2308.08434}
}''', 'decode': '''\
@inproceedings{bao2024d3,
  title = {Decoding Matters: Addressing Amplification Bias and Homogeneity Issue in Recommendations
           for Large Language Models},
  author = {Bao, Keqin and Zhang, Jizhi and Zhang, Yang and Huo, Xinyue and Chen, Chong and Feng,
            Fuli},
  booktitle = {Proceedings of the 2024 Conference on Empirical Methods in Natural Language
               Processing (EMNLP)},
  year = {2024},
  note = {arXiv 2406.14900}
}'''}


def write(cfg: ConfigDict, work: Workdir, data: Data, evaluated: pathlib.Path) -> None:
  """Writes report.html into the run's folder.

  cfg: the run's config. work: the Workdir. data: the Data. evaluated: folder of the stage
  'evaluate'.
  """
  outcome = read_json(evaluated / 'results.json')
  main = next(iter(outcome['rows']))
  special = grounded_sections if cfg.variant == 'ground' else decoded_sections
  name = 'BIGRec: titles are written, then grounded'
  if cfg.variant == 'decode':
    name = 'D3: beams of real titles'
  html.write(work.path / 'report.html', html.page(
      name, f'{data.name}, preset {cfg.preset}',
      [verdict(outcome, main), html.tiles(figures(cfg, outcome, main))],
      [results_section(cfg, outcome, main), result_tables.groups_section(outcome, main),
       *special(cfg, work, data, outcome),
       run_section.training_section(work.metrics(), {
           'llm': 'the tiny language model', 'tune': 'the LLM', 'assistant': 'the assistant'}),
       *run_section.closing_sections(work.path, cfg, {
           'data': f'{data.name}: {len(data.catalog):,} items, {len(data.cases.train):,} training '
           'samples', **{k.replace('_', ' '): f'{v:,}' for k, v in data.notes.items() if v},
           'data fingerprint': data.fingerprint, 'protocol': outcome['protocol']},
                    [PAPERS[cfg.variant], seqrec.PAPERS[cfg.assist.model.kind]])],
      'Bao et al., arXiv 2308.08434 and arXiv 2406.14900.'))


def verdict(outcome: dict[str, Any], main: str) -> str:
  """The result in a sentence. outcome: what results.json holds. main: the first row."""
  ours, base = outcome['rows'][main], outcome['rows']['popularity']
  p = outcome['tests'][f'{main}>popularity']['HR@10']
  return (f'For {ours["HR@10"]["value"]:.1%} of {ours["HR@10"]["n"]:,} test cases the next item is '
          f'among the first ten ({LABELS[main]}); the most popular items give '
          f'{base["HR@10"]["value"]:.1%} (paired test, p {result_tables.p_value(p)}).')


def figures(cfg: ConfigDict, outcome: dict[str, Any], main: str) -> list[tuple]:
  """Tiles of the summary.

  cfg: the run's config. outcome: what results.json holds. main: the first row.
  """
  if 'alpha' in outcome:
    last = ('LLM weight', f'{outcome["alpha"]:g}', 'chosen on validation')
  else:
    last = ('first beams that are titles', f'{1 - outcome["invalid_first"]:.1%}', 'as written')
  return [*result_tables.metric_tiles(outcome, main, ('HR@10', 'NDCG@10')),
          ('invalid titles', f'{outcome["invalid_titles"]:.1%}',
           'of what was recommended' if cfg.variant == 'decode' else
           'of all beams, before grounding'),
          last]


def results_section(cfg: ConfigDict, outcome: dict[str, Any], main: str) -> html.Section:
  """The table with intervals.

  cfg: the run's config. outcome: what results.json holds. main: the first row.
  """
  every = [m for m in ('HR@10', 'NDCG@10', 'HR@5') if m in outcome['rows'][main]]
  table = result_tables.results_table(outcome, every, 'NDCG@10', main, LABELS)
  return html.section('Results', table,
                      intro='Intervals are 95 % bootstraps over test cases.' + (
                          f' A list of D3 holds {cfg.decode.beams} beams; a target outside counts '
                          'as not found.' if cfg.variant == 'decode' else ''))


def grounded_sections(cfg: ConfigDict, work: Workdir, data: Data,
                      outcome: dict[str, Any]) -> list[html.Section]:
  """BIGRec: the map of what was written, the gamma curves, examples.

  cfg: the run's config. work: the Workdir. data: the Data. outcome: what results.json holds.
  """
  vectors, written = find_stage(work.path, 'embed'), find_stage(work.path, 'generate')
  records = run_files.need_json(written / 'test.json', list)
  return [map_section(data, vectors, records), gamma_section(work),
          written_users(cfg, work, data, outcome, records)]


def map_section(data: Data, vectors: dict[str, np.ndarray], records: list[dict]) -> html.Section:
  """A plane through the catalog's vectors, and where generated texts fall on it.

  data: the Data. records: the records.
  """
  items, texts = (run_files.read_arrays(vectors / f'{n}.npy') for n in ('items', 'test'))
  known = {t: i for i, t in enumerate(data.titles)}
  first = [r['predict'][0] for r in records]
  odd = [i for i, t in enumerate(first) if t not in known and t][:DRAWN]
  center = items.mean(0)
  _, _, axes = np.linalg.svd((items - center)[:4000], full_matrices=False)
  flat = (items - center) @ axes[:2].T
  near, lines = [], []
  for i in odd:
    nearest_item = int(((items - texts[i]) ** 2).sum(1).argmin())
    point = (texts[i] - center) @ axes[:2].T
    near.append(point)
    lines.append((point, flat[nearest_item]))
  groups = ['items'] * len(flat) + ['generated, no title'] * len(near)
  rows = [[first[i], data.titles[int(((items - texts[i]) ** 2).sum(1).argmin())]]
          for i in odd[:10]]
  return html.section(
      'Grounding',
      html.figure(plots.scatter(np.concatenate([flat, *(p[None] for p in near)]), groups,
                                lines=lines),
                  'The first two principal directions of the catalog, and where texts that are '
                  'no title were grounded', 'points and lines'),
      html.table(['Generated', 'Grounded to'], rows, 'Texts that are no title of the catalog'),
      intro=f'{len(set(first) - set(known)):,} different first beams are no title of the '
            f'catalog; '
            f'{sum(t in known for t in first):,} of {len(first):,} are one as written.')


def gamma_section(work: Workdir) -> html.Section:
  """Test and validation NDCG@10 over the whole grid; validation alone chooses.

  work: the Workdir.
  """
  gamma = read_json(find_stage(work.path, 'evaluate') / 'gamma.json')
  names = {'pop': 'popularity', 'cf': 'the assistant'}
  curves = {f'{names[k]}, {part}': list(zip(g['gammas'], g[part]['NDCG@10']))
            for k, g in gamma.items() for part in ('valid', 'test')}
  metrics = ('HR@5', 'NDCG@5', 'HR@10', 'NDCG@10')
  chosen = [[names[k], f'{g["one"]:g}', *(f'{c["gamma"]:g} ({c["test"]:.4f})' for c in
             (g['per_metric'][m] for m in metrics))] for k, g in gamma.items()]
  return html.section(
      'Injection',
      html.figure(plots.loss_curves(curves, ylabel='NDCG@10', xlabel='gamma'),
                  'NDCG@10 by gamma', 'curves'),
      html.table(['Pulled by', 'one gamma', *metrics], chosen,
                 'The gamma of the rows above, and the published choice for each metric with its '
                 'test value'),
      intro='Distances are multiplied by (1 + W) to the power of minus gamma. One gamma is chosen '
            'on validation by NDCG@10; choosing one for each metric, as published, is optimistic.')


def written_users(cfg: ConfigDict, work: Workdir, data: Data, outcome: dict[str, Any],
                  records: list[dict]) -> html.Section:
  """Test cases with the beams that were written; the first one was grounded.

  cfg: the run's config. work: the Workdir. data: the Data. outcome: what results.json holds.
  records: the records.
  """
  known = set(data.titles)

  def tell(case: Any, had: Any, items: Any) -> tuple:
    beams = [[str(n), text or '(nothing)', 'a title' if text in known else 'no title']
             for n, text in enumerate(records[case]['predict'], 1)]
    return {}, {}, [html.table(['', 'Written', ''], beams, 'Beams, before grounding', 'rll')]
  how = outcome['list_of']
  pull = '' if how['prior'] == 'none' else f', pulled with gamma {how["gamma"]:g}'
  return user_examples.section(
      work.path, data.catalog, asked(cfg, data), next(iter(outcome['rows'])), cfg.seed, tell,
      'Closeness', intro='The model wrote the beams below each list. The first beam stands among '
      f'the items by the distance of its vector{pull}: closeness is 1 for the nearest item, 0 for '
      'the farthest.')


def asked(cfg: ConfigDict, data: Data) -> Cases:
  """The test cases that were judged. cfg: the run's config. data: the Data."""
  return data.cases.test.select(instruction_data.asked_rows(data, 'test', cfg.eval.max_test_users))


def decoded_sections(cfg: ConfigDict, work: Workdir, data: Data,
                     outcome: dict[str, Any]) -> list[html.Section]:
  """D3: the weight's curve, ghost tokens, how alike lists are, examples.

  cfg: the run's config. work: the Workdir. data: the Data. outcome: what results.json holds.
  """
  return [alpha_section(work), ghost_section(work), likeness_section(outcome),
          decoded_users(cfg, work, data, outcome)]


def alpha_section(work: Workdir) -> html.Section:
  """Validation metrics by the LLM's weight. work: the Workdir."""
  choice = read_json(find_stage(work.path, 'choose') / 'alpha.json')
  curves = {m: [(a, values[m]) for a, values in sorted(choice['curve'], key=lambda c: c[0])]
            for m in ('HR@10', 'NDCG@10') if m in choice['curve'][0][1]}
  return html.section(
      'Mixing',
      html.figure(plots.loss_curves(curves, ylabel='validation', xlabel='weight of the LLM'),
                  'Validation by the weight of the LLM', 'curves'),
      intro=f'At weight 1 the LLM stands alone, at 0 the assistant. {choice["alpha"]:g} was chosen '
            f'by {choice["by"]} of {choice["cases"]:,} validation cases.')


def ghost_section(work: Workdir) -> html.Section:
  """Tokens that are all but certain. work: the Workdir."""
  ghosts = read_json(find_stage(work.path, 'decode') / 'ghosts.json')
  return html.section(
      'Ghost tokens',
      html.table(['Token', 'Times', 'Mean probability'],
                 [[repr(t), n, f'{p:.4f}'] for t, n, p in ghosts['tokens']],
                 'Tokens of first titles that are likelier than 0.99', 'lrr'),
      html.facts({f'mean tokens of first titles, {LABELS[row]}': f'{n:.2f}'
                  for row, n in ghosts['length'].items()}),
      intro=f'{ghosts["share"]:.0%} of the tokens of first titles are all but certain. They add '
            'nothing to a score and one to its length, so division by length favors long titles.')


def likeness_section(outcome: dict[str, Any]) -> html.Section:
  """How alike the lists are. outcome: what results.json holds."""
  names = {'alike': 'title words shared within a list', 'coverage': 'catalog shown',
           'Gini': 'Gini', 'repeat': 'repeats', 'out_of_catalog': 'no item'}
  rows = [[LABELS[row], *(f'{cells[k]:.3f}' for k in names)]
          for row, cells in outcome['homogeneity'].items()]
  return html.section('How alike the lists are', html.table(
      ['Row', *names.values()], rows, 'Top-10 lists of the test cases', 'l' + 'r' * len(names)))


def decoded_users(cfg: ConfigDict, work: Workdir, data: Data,
                  outcome: dict[str, Any]) -> html.Section:
  """Test cases with their beams, beside those of the LLM alone.

  cfg: the run's config. work: the Workdir. data: the Data. outcome: what results.json holds.
  """
  alone = run_files.read_arrays(find_stage(work.path, 'decode') / 'd3-no_mixing.npz')['items']

  def tell(case: Any, had: Any, items: Any) -> tuple:
    rest = [i for i in alone[case] if i][:len(items)]
    rest = [user_examples.title_of(data.catalog, i) for i in rest] + [''] * (len(items) - len(rest))
    return {}, {'The LLM alone wrote': rest}, []
  return user_examples.section(
      work.path, data.catalog, asked(cfg, data), 'd3', cfg.seed, tell, 'Score', cfg.decode.beams,
      f'A list is the {cfg.decode.beams} best beams, each the title of an item as it was written; '
      f'a score is the sum of its tokens, log-probabilities of the LLM by {outcome["alpha"]:g} and '
      'of the assistant by the rest. Beside it the beams without the assistant.')
