"""The rows that stand beside a method's own, counted once more without arrays."""
import collections
import itertools
import pathlib

from recjax import run_files
from recjax.evaluation import classical, results


def classical_rows(data):
  """Names of the classical rows that a data set allows. data: a Dataset."""
  timeless = () if data.interactions.times is not None else classical.TIMED
  return [row for row in classical.GRIDS if row not in timeless]


def check(test, folder, data, masked):
  """Fails where a run lacks one of them, or ranks popularity or `markov` under another protocol.

  test: the test case. folder: of the run. data: its Dataset, split by leave-one-out. masked:
  whether items of a history are out of the ranking.
  """
  found = run_files.read_json(pathlib.Path(folder) / 'results.json')
  possible = {*classical_rows(data)}
  test.assertContainsSubset(['popularity', 'recency', 'random', *possible], found['rows'])
  test.assertEqual(set(found['classical']['settings']), possible)
  test.assertEqual(set(found['classical']['left_out']), {*classical.GRIDS} - possible)
  users, ranks = results.read_ranks(pathlib.Path(folder) / 'ranks.parquet')
  had = {user: data.interactions.history(row).tolist()
         for row, user in enumerate(data.interactions.users)}
  learned = [items[:-2] if len(items) > 2 else items for items in had.values()]
  counts = collections.Counter(itertools.chain(*learned))
  follows = collections.Counter(pair for items in learned for pair in itertools.pairwise(items))
  places = sorted(range(1, len(data.catalog) + 1), key=lambda item: (-counts[item], item))
  most = max(counts.values())
  for user, popular, markov in zip(users, ranks['popularity'], ranks['markov']):
    *history, target = had[user]
    allowed = [item for item in places if item not in history or not masked or item == target]
    score = {item: follows[history[-1], item] + counts[item] / (2 * most + 2) for item in allowed}
    test.assertEqual(popular, allowed.index(target), user)
    test.assertEqual(markov, sum(score[item] >= score[target] for item in allowed) - 1, user)
