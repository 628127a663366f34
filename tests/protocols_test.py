"""What parts of recjax expect of each other, against the classes and packages that there are."""
import importlib
import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import recjax.methods
from recjax import protocols
from recjax.data.dataset import Catalog, Interactions
from recjax.decoding import device_trie, item_span, retrieval_constraint, trie
from recjax.decoding.constraints import CatalogConstraint, CodeConstraint, Unconstrained
from recjax.decoding.lm_head import plain_head
from recjax.evaluation import baselines, ranking
from recjax.models import llm, llm_decoder

METHODS = sorted(p.parent.name for p in pathlib.Path(recjax.methods.__path__[0]).glob(
    '*/__init__.py'))
V, SOI, EOI, EOS = 12, 9, 10, 11
SPAN = item_span.SpanSettings(SOI, EOI, (EOS,), 20)


def query(project, states):
  return states * project


def constraints():
  """One of each class, for two requests."""
  built = trie.build([[1, 2], [3], [3, 4]], end=EOI, vocab=V)
  planted = device_trie.to_device_trie(built)
  return {
      'Unconstrained': Unconstrained((EOS,)), 'CodeConstraint': CodeConstraint(3, 4),
      'CatalogConstraint': CatalogConstraint(planted),
      'ItemSpanConstraint': item_span.item_span_constraint(built, planted, SPAN, batch=2),
      'RetrievalConstraint': retrieval_constraint.build_retrieval_constraint(
          [[1, 2], [3]], np.eye(2, 5), jnp.float32(1), query, SPAN)}


def parameters(function):
  return list(inspect.signature(function).parameters)


class ConstraintTest(parameterized.TestCase):

  @parameterized.parameters(*constraints())
  def test_classes_have_the_methods_with_their_parameters(self, name):
    made = constraints()[name]
    self.assertIsInstance(made, protocols.Constraint)
    for method in ('start', 'candidates', 'advance', 'is_final', 'select_requests'):
      self.assertEqual(parameters(getattr(type(made), method)),
                       parameters(getattr(protocols.Constraint, method)), method)
    self.assertIsInstance(made.longest, int)
    self.assertGreaterEqual(made.num_end_tokens, 1)

  @parameterized.parameters(*constraints())
  def test_states_and_candidates_have_the_axes_that_searches_count_on(self, name):
    made = constraints()[name]
    state = made.start(2)
    for leaf in jax.tree.leaves(state):
      self.assertEqual(leaf.shape[:2], (2, 1))
    head = plain_head(jnp.zeros((2, 1, V)))._replace(state=jnp.zeros((2, 1, 5)))
    first = lambda log_probs, tokens, nodes: (  # noqa: E731
        tokens[..., 0], nodes[..., 0], log_probs.max(-1))
    token, node, log_prob = made.candidates(head, state, 0, 0, first)
    self.assertEqual({token.shape, node.shape, log_prob.shape}, {(2, 1)})
    self.assertTrue((log_prob <= 0).all())
    after = made.advance(state, token, node)
    self.assertEqual(jax.tree.structure(after), jax.tree.structure(state))
    self.assertEqual(made.is_final(after, token, 0).shape, (2, 1))
    few = made.select_requests(jnp.array([1]))
    self.assertIsInstance(few, type(made))

  def test_what_lacks_a_method_is_none(self):
    self.assertNotIsInstance(Catalog((), {}), protocols.Constraint)


class OtherTest(parameterized.TestCase):

  @parameterized.parameters(*METHODS)
  def test_method_packages_have_the_functions_with_their_parameters(self, name):
    module = importlib.import_module(f'recjax.methods.{name}')
    self.assertIsInstance(module, protocols.Method)
    for function in ('run', 'recommender', 'cost', 'convert', 'validated'):
      asked = parameters(getattr(protocols.Method, function))[1:]
      signature = inspect.signature(getattr(module, function))
      self.assertLen(signature.parameters, len(asked), function)
      signature.bind(*asked)  # raises TypeError where fewer are taken by place
    inspect.signature(module.recommender).bind('workdir')

  @parameterized.product(name=METHODS, where=(
      ('recommender', 'inference'), ('cost', 'planning'), ('convert', 'export')))
  def test_each_function_stands_in_the_same_file_of_every_package(self, name, where):
    module = importlib.import_module(f'recjax.methods.{name}')
    self.assertEqual(getattr(module, where[0]).__module__, f'recjax.methods.{name}.{where[1]}')

  def test_a_package_without_a_function_is_no_method(self):
    self.assertNotIsInstance(recjax.methods, protocols.Method)

  def test_a_recommender_takes_what_its_protocol_says(self):
    catalog = Catalog(('a', 'b', 'c'), {})

    def score(items, offsets):
      return np.tile(np.float32([1, 3, 2]), (len(offsets) - 1, 1))
    made = ranking.recommender(score, catalog)
    self.assertEqual(parameters(made), parameters(protocols.Recommender.__call__)[1:])
    ids, scores = made([['b'], []], 2, exclude_seen=True, allowed={'a', 'b'})
    self.assertEqual(ids, [['a'], ['b', 'a']])
    self.assertEqual(np.shape(scores), (2, 2))

  @parameterized.parameters('popularity', 'recency', 'random')
  def test_baselines_are_score_functions(self, name):
    items, offsets = np.int32([1, 2, 2, 3]), np.array([0, 2, 4])
    train = Interactions(('a', 'b'), items=items, offsets=offsets)
    score = baselines.baselines(train, 3, 0)[name]
    self.assertEqual(parameters(score), parameters(protocols.ScoreFn.__call__)[1:])
    scores = score(items, offsets)
    self.assertEqual((scores.shape, scores.dtype), ((2, 3), np.float32))

  def test_decoders_have_every_function_of_their_tuple(self):
    cfg = llm.Config(vocab=V, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, ffn=8)
    made = llm_decoder.decoder(llm.LM(cfg))
    self.assertIsInstance(made, protocols.Decoder)
    self.assertTrue(all(map(callable, made)))


if __name__ == '__main__':
  absltest.main()
