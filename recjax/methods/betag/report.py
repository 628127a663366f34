"""The run's report: what the tags became, where they come from, and whether they help."""
import collections
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from recjax.data.dataset import Dataset
from recjax.data.formats import betag as files
from recjax.methods.betag import base_tags
from recjax.models import seqrec
from recjax.report import html, plots, result_tables, run_section, user_examples
from recjax.retrieval import bm25
from recjax.run_files import read_json
from recjax.training.workdir import Workdir

LABELS = {'betags': 'BETags', 'base_tags': 'base tags', 'sasrec': 'SASRec, ids alone',
          **result_tables.BESIDE}

ITEMS, TAGS = 12, 3  # items shown, tags of an item in a list

PAPER = '''\
@inproceedings{lin2025betag,
  title = {{BETag}: Behavior-enhanced Item Tagging with Finetuned Large Language Models},
  author = {Lin, Shao-En and Liu, Brian and Chiang, Miao-Chen and Hong, Ming-Yi and Huang, Yu-Shiang
            and Wang, Chuan-Ju and Lin, Che},
  booktitle = {Proceedings of the ACM on Web Conference 2025},
  pages = {4996--5009},
  year = {2025},
  doi = {10.1145/3696410.3714769}
}'''


def write(cfg: ConfigDict, work: Workdir, dataset: Dataset, base: pathlib.Path,
          evaluated: pathlib.Path) -> None:
  """Writes report.html into the run's folder.

  cfg: the run's config. work: the Workdir. dataset: the data set. base: folder of the stage
  'base-tags'. evaluated: folder of the stage 'evaluate'.
  """
  outcome = read_json(evaluated / 'results.json')
  before = files.read_tags(base / 'base_tags.json')
  after = {i: collections.Counter(dict(map(tuple, t)))
           for i, t in read_json(evaluated / 'tags.json').items()}
  sections = [
      results_section(outcome),
      result_tables.groups_section(outcome, 'betags'),
      items_section(dataset, before, after),
      users_section(cfg, work, dataset, outcome, after),
      frequency_section(before, after),
      run_section.training_section(work.metrics(), {'llm': 'the tiny language model',
                                            'tune': 'the adapter', 'sasrec': 'SASRec'}),
      *run_section.closing_sections(work.path, cfg, {
          'data': f'{dataset.name}, {len(dataset.catalog):,} items, '
                  f'{len(dataset.interactions):,} users',
          'data fingerprint': dataset.fingerprint, 'protocol': outcome['protocol']},
          [PAPER, *(seqrec.PAPERS[name] for name in ('sasrec',) if name in outcome['rows'])]),
  ]
  html.write(work.path / 'report.html', html.page(
      'BETag: behavior-enhanced item tags', f'{dataset.name}, preset {cfg.preset}',
      [verdict(outcome), html.tiles(figures(outcome, before, after))], sections,
      'Lin et al., WWW 2025, doi 10.1145/3696410.3714769.'))


def verdict(outcome: dict[str, Any]) -> str:
  """The result in a sentence. outcome: what results.json holds."""
  ours, base = (outcome['rows'][r]['HR@10'] for r in ('betags', 'base_tags'))
  p = outcome['tests']['betags>base_tags']['HR@10']
  gain = ours['value'] / max(base['value'], 1e-9) - 1
  if p >= 0.05:
    return (f'BETags and base tags do not differ significantly here: the next item is among the '
            f'first ten for {ours["value"]:.1%} and {base["value"]:.1%} of users '
            f'(p = {result_tables.p_value(p)}).')
  word = 'more' if gain > 0 else 'less'
  return (f'With BETags the next item is among the first ten for {ours["value"]:.1%} of users, '
          f'with base tags for {base["value"]:.1%}: {abs(gain):.0%} {word} '
          f'(paired test, p {result_tables.p_value(p)}).')


def figures(outcome: dict[str, Any], before: dict[str, list[str]],
            after: dict[str, dict[str, int]]) -> list[tuple]:
  """Tiles of the summary.

  outcome: what results.json holds. before: base tags of each item. after: BETags of each item, with
  their weights.
  """
  rows = outcome['rows']
  new = [len(set(after[i]) - set(t)) for i, t in before.items() if i in after]
  ours = rows['betags']['HR@10']
  return [
      ('HR@10 with BETags', f'{ours["value"]:.3f}', f'{ours["low"]:.3f} to {ours["high"]:.3f}'),
      ('HR@10 with base tags', f'{rows["base_tags"]["HR@10"]["value"]:.3f}'),
      ('users tested', ours['n']),
      ('new tags an item', f'{np.mean(new):.1f}', 'learned from behavior'),
  ]


def results_section(outcome: dict[str, Any]) -> html.Section:
  """The table with intervals and the picture of it. outcome: what results.json holds."""
  rows = {r: outcome['rows'][r] for r in LABELS if r in outcome['rows']}
  table = result_tables.results_table(
      {**outcome, 'rows': rows}, metrics=('HR@10', 'HR@5', 'HR@20', 'NDCG@10', 'MRR'),
      main='HR@10', reference='betags', labels=LABELS,
      caption='The next item of every test user, found by its tags')
  chosen = outcome['chosen']
  return html.section(
      'Does it find the next item?', table,
      html.details('What validation users chose', html.facts(
          {LABELS[r]: {k: v for k, v in c.items() if v != ''} for r, c in chosen.items()})),
      intro='A user is the tags of the items so far; every item of the shop is ranked against them '
            'by BM25. Option “m,k” keeps m beams and k tags an item.')


def neighbors(dataset: Dataset) -> dict[int, collections.Counter]:
  """For every item the items that come right after it in training, most frequent first.

  dataset: the data set.
  """
  train = base_tags.split_of(dataset).train
  follow = collections.defaultdict(collections.Counter)
  for u in range(len(train)):
    history = train.history(u)
    for a, b in zip(history[:-1], history[1:]):
      follow[int(a)][int(b)] += 1
  return follow


def items_section(dataset: Dataset, before: dict[str, list[str]],
                  after: dict[str, dict[str, int]]) -> html.Section:
  """A dozen items: base tags beside BETags, new ones with the neighbors that they come from.

  dataset: the data set. before: base tags of each item. after: BETags of each item, with their
  weights.
  """
  follow = neighbors(dataset)
  popular = sorted(follow, key=lambda i: -sum(follow[i].values()))
  spread = popular[:: max(1, len(popular) // ITEMS)][:ITEMS]
  parts = [item_card(dataset, i, before, after, follow[i]) for i in spread
           if dataset.catalog.id_of(i) in before]
  return html.section(
      'What the tags became', html.cards(parts, shown=4, more='more items'),
      intro='Items from the most to the least bought. A number is how many beams wrote the tag; '
            'a marked tag is new, and below the tags stands from which items, bought right after '
            'this one, it comes.')


def item_card(dataset: Dataset, item: int, before: dict[str, list[str]],
              after: dict[str, dict[str, int]], follow: collections.Counter) -> html.Markup:
  """One item's tags before and after.

  dataset: the data set. follow: how often which items came next.
  """
  catalog = dataset.catalog
  ident = catalog.id_of(item)
  base_list = before[ident]

  def sources(tag: str) -> tuple[str, ...]:
    return tuple(f'{user_examples.title_of(catalog, j)} (followed {n} times)'
                 for j, n in follow.most_common(40) if tag in before.get(catalog.id_of(j), ()))[:3]

  chips = [html.Tag(t, weight=n, new=t not in base_list,
                    sources=sources(t) if t not in base_list else ())
           for t, n in after.get(ident, {}).items()][:16]
  about = [catalog.columns[c][item - 1] for c in ('brand', 'categories') if c in catalog.columns]
  about = ', '.join(a if isinstance(a, str) else ' › '.join(a) for a in about if a)
  return html.card(user_examples.title_of(catalog, item), about, html.tags('base tags', base_list),
                   html.tags('BETags', chips))


def users_section(cfg: ConfigDict, work: Workdir, dataset: Dataset, outcome: dict[str, Any],
                  after: dict[str, dict[str, int]]) -> html.Section:
  """Test users with the tags of what they had, and those that each score comes from.

  cfg: the run's config. work: the Workdir. dataset: the data set. outcome: what results.json holds.
  after: BETags of each item, with their weights.
  """
  test, select = base_tags.split_of(dataset).test, cfg.select
  docs = [list(after.get(i, {}).items()) for i in dataset.catalog.ids]
  model = bm25.BM25.fit(docs, select.k1, select.b, select.idf_cutoff)
  words, how = list(model.terms), outcome['chosen']['betags']['reducer']

  def heaviest(row: Any) -> str:
    best = sorted(zip(row.indices, row.data), key=lambda pair: -pair[1])[:TAGS]
    return ', '.join(f'{words[t]} {w:.4g}' for t, w in best)

  def tell(case: Any, had: Any, items: Any) -> tuple:
    history = test.history(case)
    asked = bm25.reduce_queries(model.counts, history, [0, len(history)], how)
    parts = [heaviest(model.weights[[i - 1]].multiply(asked).tocsr()) for i in items]
    return ({'Its tags': [heaviest(model.weights[[i - 1]]) for i in had]},
            {'The tags that the score is from': parts}, [])
  return user_examples.section(
      work.path, dataset.catalog, test, 'betags', outcome['seeds'][0], tell, 'BM25', intro=(
          f'Beside each item stand the {TAGS} tags that say most about it in BM25, with their '
          f'weights; beside each recommended one the {TAGS} tags that bring most of its score, '
          'with what they bring.'))


def frequency_section(before: dict[str, list[str]],
                      after: dict[str, dict[str, int]]) -> html.Section:
  """How tag use changed over the catalog.

  before: base tags of each item. after: BETags of each item, with their weights.
  """
  count = collections.Counter(t for tags in before.values() for t in tags)
  now = collections.Counter(t for tags in after.values() for t in tags)
  return html.section(
      'Tags over the catalog',
      html.figure(plots.tag_frequency(count, now, ('base tags', 'BETags')),
                  'How many items carry each tag, from the most used to the rarest.',
                  f'Rank-frequency curves of {len(count)} base tags and {len(now)} BETags.'),
      html.facts({'distinct base tags': len(count), 'distinct BETags': len(now),
                  'BETags that are no base tag': len(set(now) - set(count)),
                  'share of uses that are new words': f'{new_share(count, now):.1%}'}))


def new_share(count: collections.Counter, now: collections.Counter) -> float:
  """Share of BETag uses whose tag no item had before: words that the model made up.

  count: uses of each base tag. now: uses of each BETag.
  """
  return sum(n for t, n in now.items() if t not in count) / max(1, sum(now.values()))
