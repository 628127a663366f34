"""What an evaluation leaves: the files that people and `recjax compare` read, the closing table."""
import json
import pathlib

import numpy as np

from recjax.data import files, splits, stored
from recjax.errors import DataError
from recjax.evaluation import metrics, statistics, tables

CLOSING = ('HR@10', 'NDCG@10')


def save(folder, shop, split, row, ranks, lists, protocol, seeds=(0,),
         ks=metrics.KS, **more):
  """Writes results.json, ranks.parquet and predictions.parquet about the test users.

  shop: Dataset, split: what was held out of it. ranks: {row: (n,) int ranks, or (S, n), a line for
  each of `seeds`}; a user's figure is the mean over the seeds. `row` is tested against all others,
  and lists are its own: items (n, k) int32, 0 for an empty place, and scores (n, k). protocol: the
  sentence of `ranking.protocol` about these very users. ks: cut-offs, fewer for lists that end
  early. more: further entries of results.json. -> its content, a dict.
  Raises DataError for ranks of another shape, or a sentence about another number of users.
  """
  folder, test = pathlib.Path(folder), split.test
  if splits.asked(protocol) not in (None, len(test)):
    raise DataError(f'{len(test)} test users were ranked, and the protocol says {protocol!r}; '
                    'build its sentence for these users, as splits.drawn does')
  ranks = {row: ranks[row]} | ranks
  for name, x in ranks.items():
    if np.shape(x)[-1] != len(test) or np.ndim(x) == 2 and len(x) != len(seeds):
      raise DataError(f'row {name} has ranks {np.shape(x)}; give one for each of {len(test)} test '
                      f'users, and with two axes a line for each of {len(seeds)} seeds')
  each = {name: [metrics.per_case(r, ks) for r in np.atleast_2d(x)] for name, x in ranks.items()}
  rows = {name: {m: np.mean([values[m] for values in lines], 0) for m in lines[0]}
          for name, lines in each.items()}
  counts = np.bincount(split.train.items, minlength=len(shop.catalog) + 1)[1:]
  masks = metrics.groups(test.targets, counts, np.diff(test.histories[1]))
  by_seed = [{m: float(v.mean()) for m, v in values.items()} for values in each[row]]
  spread = {m: float(np.std([found[m] for found in by_seed], ddof=1)) if len(by_seed) > 1 else None
            for m in by_seed[0]}
  results = {
      'protocol': protocol, 'seeds': list(seeds), 'data_fingerprint': shop.fingerprint,
      **statistics.summarise(rows, seeds[0], masks, [(row, o) for o in rows if o != row]),
      'by_seed': {str(s): found for s, found in zip(seeds, by_seed)}, 'sd_of_seeds': spread,
      'lists': metrics.list_metrics(lists[0][:, :10], counts, test.histories),
      'cold_targets': int((counts[test.targets - 1] == 0).sum()), **more}
  users = [shop.interactions.users[u] for u in test.users]
  tables.write_ranks(folder / 'ranks.parquet', users, _lines(ranks, seeds), masks)
  named = [[shop.catalog.id_of(i) if i else None for i in items] for items in lists[0]]
  tables.write_predictions(folder / 'predictions.parquet', users, named, lists[1])
  text = json.dumps(results, indent=1, ensure_ascii=False)
  files.write_text(folder / 'results.json', text + '\n')
  return results


def _lines(ranks, seeds):
  """One entry a row and seed, as ranks.parquet has them. -> {row or 'row:seed=S': (n,)}"""
  return {name if len(lines) == 1 else f'{name}:seed={seed}': line
          for name, lines in ((name, np.atleast_2d(x)) for name, x in ranks.items())
          for seed, line in zip(seeds, lines)}


def show(work, folder):
  """The closing table of a run, 80 columns wide: the first row and its tests against the others."""
  from rich.table import Table
  results = stored.need_json(pathlib.Path(folder) / 'results.json')
  first = next(iter(results['rows']))
  table = Table('row', *CLOSING, 'p')
  for row, cells in results['rows'].items():
    p = results['tests'].get(f'{first}>{row}', {}).get(CLOSING[0])
    table.add_row(row, *('{value:.4f} [{low:.4f}, {high:.4f}]'.format(**cells[m]) for m in CLOSING),
                  '' if p is None else f'{p:.2g}')
  with work.console.capture() as drawn:
    work.console.print(table)
  work.say(drawn.get().rstrip())
  if len(results['seeds']) > 1:
    said = ', '.join(f'{m} {results["rows"][first][m]["value"]:.4f} ± '
                     f'{results["sd_of_seeds"][m]:.4f}' for m in CLOSING)
    work.say(f'{len(results["seeds"])} seeds, mean ± standard deviation: {said}')
  work.say(f'{results["protocol"]}; 95 % bootstrap intervals; p: paired randomisation test of '
           f'{first} against the row by {CLOSING[0]}, Holm-corrected')
