"""Plain judges: ranks by sorting, metrics by definition, tests by enumeration, BM25 by loops."""
import itertools
import math

import numpy as np


def rank(scores, target, masked=(), tie='pessimistic'):
  """Place of item `target` (1..N) in the sorted list, items in `masked` taken out of it first."""
  own = scores[target - 1]
  others = sorted((s for i, s in enumerate(scores, start=1) if i != target and i not in masked),
                  reverse=True)
  first = next((place for place, s in enumerate(others) if s <= own), len(others))
  last = next((place for place, s in enumerate(others) if s < own), len(others))
  return {'pessimistic': last, 'optimistic': first, 'mean': (first + last) / 2}[tie]


def metrics(ranks, k):
  """HR@k, NDCG@k (one target, so the ideal gain is 1) and MRR, averaged by hand."""
  hits = [r for r in ranks if r < k]
  return (len(hits) / len(ranks), sum(1 / math.log2(r + 2) for r in hits) / len(ranks),
          sum(1 / (r + 1) for r in ranks) / len(ranks))


def sign_flip_p(a, b):
  """The exact two-sided p of the paired randomization test, over all 2**n signs."""
  d = [x - y for x, y in zip(a, b)]
  signs = itertools.product((-1, 1), repeat=len(d))
  sums = [abs(sum(s * x for s, x in zip(sign, d))) for sign in signs]
  return sum(s >= abs(sum(d)) - 1e-12 for s in sums) / len(sums)


def gini(counts):
  """Mean absolute difference of all pairs over twice the mean."""
  n = len(counts)
  return sum(abs(x - y) for x in counts for y in counts) / (2 * n * sum(counts))


def bm25(docs, query, k1, b, cutoff=0.0):
  """Scores of {tag: weight} documents for a {tag: weight} query."""
  lengths = [sum(d.values()) for d in docs]
  average = sum(lengths) / len(docs)
  scores = []
  for doc, length in zip(docs, lengths):
    total = 0.0
    for tag, weight in query.items():
      n = sum(tag in d for d in docs)
      idf = math.log(len(docs) - n + 0.5) - math.log(n + 0.5)
      if tag in doc and idf > cutoff:
        tf = doc[tag]
        total += weight * idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * length / average))
    scores.append(total)
  return np.array(scores)


def reduce(docs, history, how):
  """One {tag: weight} query from the documents of a history's items (1..N)."""
  held = [docs[i - 1] for i in history]
  tags = dict.fromkeys(t for d in (held[-1:] if how == 'last' else held) for t in d)
  merge = {'union': max, 'sum': sum, 'intersection': min, 'last': lambda w: w[-1]}[how]
  query = {t: merge([d.get(t, 0) for d in held]) for t in tags}
  return {t: w for t, w in query.items() if w}
