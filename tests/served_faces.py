"""What a server answers out of a trained run with an LLM, whatever it keeps of prompts."""
import numpy as np

from recjax import recommend
from recjax.decoding.prefix_memory import PrefixMemory

HISTORIES = (['i3', 'i4'], ['i3', 'i4', 'i5'], ['i20'], ['i3', 'i4', 'i5', 'i9'])


def check(test, method, path, k=4):
  """Lists and scores are equal to the bit with a memory and without, and the run's own to rounding.

  method: a package with `faces`. path: of the run.
  """
  own, own_scores = recommend.load(path)[0](HISTORIES, k)
  answers, found = [], []
  for max_bytes in (0, 1 << 26):
    face, _ = method.faces(path, memory=PrefixMemory(max_bytes, lambda *one: found.append(one[0])))
    for _ in range(2):
      answers.append([face([history], k) for history in HISTORIES])
    test.assertEqual(sum(found) > 0, max_bytes > 0)
  for answer in answers:
    for (items, scores), (want, want_scores), row in zip(answer, answers[0], own_scores):
      test.assertEqual(items, want)
      test.assertEqual(np.asarray(scores).tobytes(), np.asarray(want_scores).tobytes())
      np.testing.assert_allclose(scores[0], row, atol=2e-3)
  test.assertEqual([items[0][0] for items, _ in answers[0]], [items[0] for items in own])
