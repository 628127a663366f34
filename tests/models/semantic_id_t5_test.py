"""The recommender over codes: its size, what must not matter, interests, constrained beams."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.decoding import device_trie
from recjax.decoding.beam_search import BeamSearch
from recjax.decoding.constraints import CatalogConstraint, CodeConstraint, Normalization
from recjax.decoding.generate import generate
from recjax.errors import ConfigError
from recjax.models import semantic_id_t5, t5
from tests.long import long_but

SMALL = semantic_id_t5.Config(
  t5.Config(width=16, layers=1, decoder_layers=1, heads=2, head_dim=8, ffn=16),
  levels=3,
  size=8,
  item=6,
  code=16,
  text=5,
  fusion_heads=2,
  fusion_layers=2,
)


def made(cfg, key=0):
  params = jax.tree.map(
    lambda x: 8 * x if x.ndim > 1 else x,
    jax.jit(semantic_id_t5.init, static_argnums=0)(cfg, jax.random.key(key)),
  )
  return params | ({'gate': jnp.float32(1)} if 'gate' in params else {})


@functools.partial(jax.jit, static_argnums=0)
def apply(cfg, params, *given):
  return semantic_id_t5.SemanticIdT5(cfg).apply({'params': params}, *given)


def inputs(seed=0, users=3, items=4):
  rng = np.random.default_rng(seed)
  history = rng.integers(0, 8, (users, items, 3))
  history[1, 2:] = -1
  there = np.array([[True, True], [True, False], [False, False]])
  return history, rng.integers(0, 8, (users, 3)), (
      rng.normal(size=(users, 2, 5)).astype(np.float32), there)


class CoderTest(parameterized.TestCase):

  def test_size_of_etegrec(self):
    cfg = semantic_id_t5.Config(t5.Config())
    shapes = jax.eval_shape(lambda: semantic_id_t5.init(cfg, jax.random.key(0)))
    self.assertEqual(sum(x.size for x in jax.tree.leaves(shapes)), 4_117_248)

  def test_padding_and_later_codes_do_not_matter(self):
    params, (history, target, _) = made(SMALL), inputs()
    run = functools.partial(apply, SMALL, params)
    want, aligned = run(history, target)
    wide = np.pad(history, [(0, 0), (0, 3), (0, 0)], constant_values=-1)
    got, more = run(wide, target)
    np.testing.assert_allclose(got, want, atol=1e-4)
    np.testing.assert_allclose(more['pooled'], aligned['pooled'], atol=1e-4)
    changed = target.copy()
    changed[:, 1] = (changed[:, 1] + 1) % 8
    got = run(history, changed)[0]
    np.testing.assert_allclose(got[:, :2], want[:, :2], atol=1e-5)
    self.assertGreater(float(jnp.abs(got[:, 2] - want[:, 2]).max()), 1e-3)
    empty = run(np.full_like(history, -1), target)
    self.assertTrue(all(np.isfinite(x).all() for x in jax.tree.leaves(empty)))

  @parameterized.parameters('encoder', 'prefix', 'pooled')
  @long_but(0, 2)
  def test_interests(self, site):
    cfg = dataclasses.replace(SMALL, fusion=site)
    params, (history, target, (given, there)) = made(cfg), inputs()
    run = functools.partial(apply, cfg, params, history, target)
    plain, none = run(None), run((given, np.zeros_like(there)))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(none)):
      np.testing.assert_allclose(a, b, atol=0 if site == 'encoder' else 1e-5)
    logits, aligned = run((given, there))
    swapped, other = run((given[[1, 0, 2]], there[[1, 0, 2]]))
    moved = float(jnp.abs(logits - swapped)[:2].max())
    if site == 'pooled':  # as published: nothing that is recommended depends on interests
      self.assertEqual(moved, 0)
      self.assertGreater(float(jnp.abs(aligned['pooled'] - other['pooled'])[0].max()), 1e-3)
    else:
      self.assertGreater(moved, 1e-2)
    np.testing.assert_allclose(logits[2], plain[0][2], atol=1e-5)  # a user without interests
    if site == 'encoder':
      np.testing.assert_allclose(run((given[:, ::-1], there[:, ::-1]))[0], logits, atol=1e-5)
      shut = apply(cfg, params | {'gate': jnp.float32(0)}, history, target, (given, there))
      np.testing.assert_array_equal(shut[0], plain[0])

  @parameterized.parameters(True, False)
  def test_compat_sees_other_users(self, compat):
    cfg = dataclasses.replace(SMALL, fusion='pooled', compat=compat)
    params, (history, target, (given, there)) = made(cfg), inputs()
    run = lambda h: apply(cfg, params, h, target, (given, there))[1]['pooled'][0]  # noqa: E731
    changed = history.copy()
    changed[1, 0] = (changed[1, 0] + 3) % 8
    gap = float(jnp.abs(run(history) - run(changed)).max())
    self.assertEqual(gap > 1e-5, compat)

  def test_beams_are_items_and_their_scores_those_of_the_model(self):
    params, (history, _, _) = made(SMALL), inputs()
    del history
    rng = np.random.default_rng(3)
    table = np.unique(rng.integers(0, 8, (40, 3)), axis=0).astype(np.int32)
    whole = np.concatenate([np.full((1, 3), -1, np.int32), table])
    offsets = np.arange(3) * 8
    tree = jax.jit(device_trie.semantic_id_trie, static_argnums=1)(jnp.asarray(table), 8, offsets)
    prompts = [[1, 2, 3], [5], [7, 2]]
    given = {'params': params, 'table': jnp.asarray(whole), 'interests': None}
    search = BeamSearch(len(table), length_penalty=0.0)
    found = generate(semantic_id_t5.decoder(SMALL), given, prompts, search, CatalogConstraint(
        tree, normalization=Normalization('level', 8)), bucket=4)
    for b, prompt in enumerate(prompts):
      logits, _ = apply(
          SMALL, params, np.broadcast_to(whole[prompt], (len(table), len(prompt), 3)), table)
      want = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), table[..., None],
                                2)[..., 0].sum(1)
      items = np.asarray(tree.item)[found.places[b, :, 0]]
      self.assertSameElements(items, range(len(table)))
      np.testing.assert_allclose(found.scores[b], want[items], atol=1e-4)
    free = generate(semantic_id_t5.decoder(SMALL), given, prompts, search, CodeConstraint(3, 8),
                    bucket=4)
    self.assertTrue((free.scores[:, 0] >= found.scores[:, 0] - 1e-5).all())
    self.assertTrue(((free.tokens - offsets >= 0) & (free.tokens - offsets < 8)).all())

  def test_wrong_settings(self):
    for change in (dict(fusion='x'), dict(fusion='pooled', code=8), dict(fusion='encoder', text=0)):
      with self.assertRaises(ConfigError):
        dataclasses.replace(SMALL, **change)


if __name__ == '__main__':
  absltest.main()
