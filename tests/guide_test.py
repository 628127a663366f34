"""`recjax guide`: what it sees in data, what it offers for them, that its commands are sound."""
import functools
import shlex
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from recjax import cli, experiment, guide, methods, settings
from recjax.data import loading
from recjax.data.dataset import Catalog, Dataset, Interactions
from recjax.errors import UserError
from recjax.training import cpu_cost
from tests.long import long

ALL = ['sasrec', 'llmemb', 'tiger', 'betag', 'd3', 'reclm']


@functools.cache
def shop():
  return loading.load_data('sample:1:300')


def bare(titles):
  """Three users and five items, of which 'e' is a test item alone."""
  sequences = [[1, 2, 3, 4], [2, 1, 4, 3, 1, 2], [1, 2, 5]]
  return Dataset('bare', Catalog(tuple('abcde'), {'title': titles}), Interactions(
      tuple('uvw'), np.concatenate(sequences), np.cumsum([0, *map(len, sequences)])), '', {})


class GuideTest(parameterized.TestCase):

  def test_facts_are_those_of_plain_python(self):
    data = shop()
    histories = [data.interactions.history(u).tolist() for u in range(len(data.interactions))]
    long_enough = [h for h in histories if len(h) >= 3]
    learned = {i for h in histories for i in (h[:-2] if len(h) >= 3 else h)}
    found = guide.facts_of(data)
    self.assertEqual(
        (found.items, found.users, found.interactions, found.median),
        (len(data.catalog), len(histories), sum(map(len, histories)),
         np.median(list(map(len, histories)))))
    self.assertAlmostEqual(found.cold, np.mean([h[-1] not in learned for h in long_enough]))
    self.assertEqual(found.titled, 1)
    found = guide.facts_of(bare(['x', None, '', 'y', None]))
    self.assertEqual((found.titled, found.timed), (0.4, False))
    self.assertAlmostEqual(found.cold, 1 / 3)

  def test_what_reads_titles_wants_titles(self):
    facts = guide.facts_of(bare([None] * 5))
    self.assertEqual([c.name for c in guide.choices('d', facts, '', False)], ['sasrec'])
    self.assertIn('--columns=title=', ' '.join(guide.advice(facts, ['sasrec'])))

  def test_many_new_items_and_short_histories_are_said(self):
    told = ' '.join(guide.advice(guide.facts_of(bare(list('vwxyz'))), ALL))
    self.assertIn('33% of the test items are new', told)
    self.assertNotIn('fewer than four', told)
    told = ' '.join(guide.advice(guide.Facts(9, 9, 18, 2, 1, 0, True), ALL))
    self.assertIn('fewer than four', told)
    self.assertIn('recjax blend', told)

  @parameterized.product(interactions=(100, 10**6), weights=('', 'folder of mine'),
                         accelerator=(False, True))
  def test_every_command_names_a_config_that_there_is(self, interactions, weights, accelerator):
    facts = guide.Facts(9, 9, interactions, 2, 1, 0, True)
    found = guide.choices('data/my shop', facts, weights, accelerator)
    self.assertEqual([c.name for c in found], ALL)
    for choice in found:
      words, rest = settings.split_command_line(shlex.split(choice.command())[1:])
      args = cli.parser().parse_args(rest)
      cfg = experiment.changed(experiment.read_config(args.config), words)
      self.assertEqual(cfg.data, 'data/my shop')
      self.assertEqual(args.workdir, f'checkpoints/{choice.name}')
      large = weights if choice.llm else interactions > guide.LARGE
      preset = 'sample' if not large else 'paper' if accelerator or not choice.llm else 'laptop'
      self.assertEqual(cfg.preset, preset, choice.name)
      if choice.llm:
        self.assertEqual(cfg.llm.weights, weights or 'tiny')

  def test_seconds_of_all_parts_and_the_largest_memory_are_told(self):
    choice = guide.Choice('llmemb', 'p', 'c')
    made = [cpu_cost.Estimate({'a': 60.0, 'b': 120.0}, 2**30, 'w'),
            cpu_cost.Estimate({'c': 420.0}, 3 * 2**30, 'w')]
    costs = {'this CPU': made[0], 'more': 'text', 'RAT: this CPU': made[1]}
    self.assertEqual(guide.describe(choice, costs), 'at most 10 min of training here, 3.0 GiB')
    with mock.patch.object(cpu_cost, 'memory', lambda: 2.0**31):
      self.assertEqual(guide.describe(choice, costs), 'does not fit this machine: 3.0 GiB')

  def test_a_method_that_cannot_read_the_data_says_why_and_the_others_go_on(self):
    def cost(cfg, dataset):
      if cfg.method == 'bigrec':
        raise UserError('no titles of the kind')
      return {'this CPU': cpu_cost.Estimate({'a': 60.0}, 1.0, 'w')}
    with mock.patch.object(methods, 'find', lambda name, *_: mock.Mock(cost=cost)):
      told = '\n'.join(guide.lines('d', shop(), '', False))
    self.assertIn('not with these data: no titles of the kind', told)
    self.assertEqual(told.count('recjax run '), len(ALL))
    self.assertIn('--weights=FOLDER', told)

  @long
  def test_all_methods_are_measured_on_the_built_in_shop(self):
    told = '\n'.join(guide.lines('sample:1:300', shop(), '', False))
    self.assertLen(told.split(' of training here, '), len(ALL) + 1, told)


if __name__ == '__main__':
  absltest.main()
