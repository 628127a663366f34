"""Beam search with transformers' rules in plain numpy, the judge of the jitted one."""
import numpy as np


def beam_search(logp_after, beams, new_tokens, ends, alpha=0.0, early_stopping=False,
                allowed=None, before=0):
  """One prompt. logp_after: tokens (tuple) -> (V,) log-probabilities. ends: set of end tokens.

  allowed: tokens (tuple) -> tokens that may follow, or None. before: tokens of the prompt, where
  they count in the length. -> [(value, tokens)] best first
  """
  kept = (1 + max(1, len(ends))) * beams
  running, finished = [(np.float32(0), ())], []
  for t in range(new_tokens):
    pairs = []
    for beam, (score, row) in enumerate(running):
      logp = np.asarray(logp_after(row), np.float32)
      tokens = range(len(logp)) if allowed is None else sorted(allowed(row))
      pairs += [(np.float32(score + logp[w]), beam, w, (*row, w)) for w in tokens]
    pairs = sorted(pairs, key=lambda p: (-p[0], p[1], p[2]))[:kept]
    going, full = [], early_stopping is True and len(finished) == beams
    for rank, (score, _, token, row) in enumerate(pairs):
      if token in ends or t + 1 == new_tokens:
        if rank < beams and not full:
          length = np.float32(t + 1 + before) ** np.float32(alpha)
          finished.append((np.float32(score / length), row))
      else:
        going.append((score, row))
    finished = sorted(finished, key=lambda f: -f[0])[:beams]
    running = going[:beams]
    if not running or (len(finished) == beams and not _improves(
        running[0][0], finished[-1][0], t + 1, new_tokens, alpha, early_stopping, before)):
      break
  return finished


def _improves(best, worst, length, longest, alpha, early_stopping, before):
  if early_stopping is True:
    return False
  length = longest if early_stopping == 'never' and alpha > 0 else length
  return best / (length + before) ** alpha > worst
