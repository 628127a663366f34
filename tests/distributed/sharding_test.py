"""Path rules: which leaf of a tree lies how on a mesh."""
import jax
import jax.numpy as jnp
from absl.testing import absltest
from jax.sharding import PartitionSpec as P

from recjax.distributed import sharding
from tests import devices

RULES = (('mlp/kernel', P('fsdp', 'model')), ('kernel', P(None, 'model')), ('table', P('model')))


class RuleTest(absltest.TestCase):

  def specs(self, tree):
    found = {}
    jax.tree_util.tree_map_with_path(
        lambda path, leaf: found.update({sharding.path_of(path): sharding.spec_of(
            path, leaf, RULES)}), tree)
    return found

  def test_whole_names_at_the_end_of_a_path_decide_and_the_first_rule_wins(self):
    x = jnp.zeros((2, 4))
    self.assertEqual(self.specs({
        'kernel': x, 'a': {'kernel': x, 'mlp': {'kernel': x}}, 'xmlp': {'kernel': x},
        'subkernel': x, 'kernel_scale': x, 'kernels': {'bias': x}, 'table': {'rows': x},
        'mu': {'table': x}}), {
            'kernel': P(None, 'model'), 'a/kernel': P(None, 'model'),
            'a/mlp/kernel': P('fsdp', 'model'), 'xmlp/kernel': P(None, 'model'),
            'subkernel': P(), 'kernel_scale': P(), 'kernels/bias': P(), 'table/rows': P(),
            'mu/table': P('model')})

  def test_vectors_and_numbers_are_replicated(self):
    self.assertEqual(self.specs({'a': {'kernel': jnp.zeros(3)}, 'table': jnp.zeros(())}),
                     {'a/kernel': P(), 'table': P()})

  def test_bytes_of_a_device_follow_the_rules(self):
    tree = {'mlp': {'kernel': jnp.zeros((6, 5), jnp.float32)}, 'bias': jnp.zeros(7, jnp.float32)}
    # ceil(6 / 2) * ceil(5 / 2) of the kernel, the whole bias
    self.assertEqual(sharding.device_bytes(tree, RULES, {'data': 4, 'fsdp': 2, 'model': 2}),
                     4 * (3 * 3 + 7))

  def test_writing_turns_fsdp_into_model_as_far_as_heads_divide(self):
    for heads, want in ((8, (1, 1, 8)), (2, (1, 4, 2)), (4, (1, 2, 4)), (3, (1, 8, 1))):
      mesh = sharding.generation_mesh(devices.mesh(data=1, fsdp=8, model=1), heads)
      self.assertEqual(tuple(mesh.shape.values()), want)
    mesh = devices.mesh(data=2, fsdp=2, model=2)
    turned = sharding.generation_mesh(mesh, 4)
    self.assertEqual(dict(turned.shape), {'data': 2, 'fsdp': 1, 'model': 4})
    self.assertEqual(turned.devices[1].ravel().tolist(), mesh.devices[1].ravel().tolist())
    self.assertIs(sharding.generation_mesh(mesh, 2), mesh)  # model=2 already
    plain = devices.mesh(data=8)
    self.assertIs(sharding.generation_mesh(plain, 8), plain)


if __name__ == '__main__':
  absltest.main()
