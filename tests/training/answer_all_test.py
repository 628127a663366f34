"""Answers in batches: order, the last batch, a torn line, and no prompt asked twice."""
import pathlib
import tempfile

from absl.testing import absltest
from hypothesis import given, settings
from hypothesis import strategies as st

from recjax.training import sharded_stage
from recjax.training import workdir as workdir_lib


class JournalTest(absltest.TestCase):

  @settings(deadline=None, max_examples=30)
  @given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 6))
  def test_answers_come_in_the_order_of_the_prompts(self, lengths, batch):
    folder = pathlib.Path(tempfile.mkdtemp())
    prompts = [[i] * n for i, n in enumerate(lengths)]
    with workdir_lib.open_work(folder, {}) as work:
      found = sharded_stage.answer_all(work, 't', folder / 'j.jsonl', prompts, batch,
                                 lambda some: [[prompts[i][0], len(prompts[i])] for i in some])
    self.assertEqual(found, [[i, n] for i, n in enumerate(lengths)])

  def test_after_a_kill_only_what_is_missing_is_asked(self):
    folder, asked = pathlib.Path(tempfile.mkdtemp()), []
    prompts = [[0] * n for n in (3, 1, 2, 5, 4)]

    def run(some):
      asked.append(list(some))
      if len(asked) == 2:
        with open(folder / 'j.jsonl', 'a') as f:
          f.write('[[4, "torn')
        raise KeyboardInterrupt
      return [[str(i)] for i in some]
    with workdir_lib.open_work(folder, {}) as work:
      with self.assertRaises(KeyboardInterrupt):
        sharded_stage.answer_all(work, 't', folder / 'j.jsonl', prompts, 2, run)
      found = sharded_stage.answer_all(work, 't', folder / 'j.jsonl', prompts, 2, run)
    self.assertEqual(asked, [[1, 2], [0, 4], [0, 4], [3, 3]])
    self.assertEqual(found, [[str(i)] for i in range(5)])


if __name__ == '__main__':
  absltest.main()
