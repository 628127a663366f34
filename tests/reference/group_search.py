"""Group (diverse) beam search, spelled out in plain numpy as the judge of the jitted one.

One prompt, one group, one candidate at a time, every vocabulary entry sorted: slow and literal.
"""
import numpy as np


def group_search(first, logits_after, beams, groups, penalty, new_tokens, min_new_tokens=0,
                 eos_ids=(), pad_id=0, length_penalty=1.0):
  """first: (V,) logits after the prompt. logits_after: tokens so far (list) -> (V,) logits.

  -> list of (value float32, tokens tuple with its end token, group), best first, length `beams`
  """
  size = beams // groups
  scores = np.full((groups, size), -1e9, np.float32)
  scores[:, 0] = 0
  rows = [[[] for _ in range(size)] for _ in range(groups)]
  best = [[] for _ in range(groups)]  # n-best list per group: (value, tokens)
  finished = [False] * groups
  for t in range(new_tokens):
    counts = np.zeros(len(first), np.float32)
    for g in range(groups):
      if finished[g]:
        chosen = [(np.float32(0), b, pad_id) for b in range(size)]
      else:
        pairs = _ranked(first, logits_after, rows[g], scores[g], penalty * counts,
                        eos_ids if t < min_new_tokens else ())
        pairs = pairs[:max(2, 1 + len(eos_ids)) * size]
        chosen = []
        for rank, (total, b, w) in enumerate(pairs):
          if w in eos_ids:
            if rank < size:
              _store(best[g], _value(total, t + 1, length_penalty), (*rows[g][b], w), size)
          elif len(chosen) < size:
            chosen.append((total, b, w))
        top = _value(pairs[0][0], t + 1, length_penalty)
        finished[g] = len(best[g]) == size and min(v for v, _ in best[g]) >= top
      scores[g] = [total for total, _, _ in chosen]
      rows[g] = [[*rows[g][b], w] for _, b, w in chosen]
      for _, _, w in chosen:
        counts[w] += 1
    if all(finished):
      break
  for g in range(groups):
    if not finished[g]:
      for total, tokens in zip(scores[g], rows[g]):
        _store(best[g], _value(total, new_tokens, length_penalty), tuple(tokens), size)
  pooled = [(v, tokens, g) for g in range(groups) for v, tokens in sorted(best[g], key=_value_of)]
  return sorted(pooled, key=_value_of)  # stable: equal values keep the lower group first


def _value_of(entry):
  return -entry[0]


def _value(total, length, exponent):
  return np.float32(total / np.float32(length) ** np.float32(exponent))


def _ranked(first, logits_after, rows, scores, penalties, forbidden):
  """Every (total, beam, token), best first, ties by beam and then token."""
  pairs = []
  for b, tokens in enumerate(rows):
    logits = np.asarray(logits_after(tokens) if tokens else first, np.float32)
    top = logits.max()
    logp = logits - (top + np.log(np.exp(logits - top).sum(dtype=np.float32)))
    v = (logp - penalties).astype(np.float32)
    v[list(forbidden)] = -np.inf
    pairs += [(scores[b] + v[w], b, w) for w in range(len(v))]
  return sorted(pairs, key=lambda p: (-p[0], p[1], p[2]))


def _store(best, value, tokens, size):
  """Keeps the `size` best; a newcomer must beat the worst to displace it."""
  if len(best) == size:
    worst = min(range(size), key=lambda i: (best[i][0], -i))
    if value <= best[worst][0]:
      return
    del best[worst]
  best.append((value, tokens))
