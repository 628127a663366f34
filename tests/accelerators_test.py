"""Programs compiled for accelerators that are not here, and the reading of what compilers write."""
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
from absl.testing import absltest

from benchmarks import compiled_text
from tests.long import long

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = ('score_items', 'rank_items', 'sample', 'lora_step', 'lora_step_int8')

# As the TPU's compiler writes: a loop's turns stand in its condition, a gather in two parts.
TPU = '''
%fused (p.0: f32[8,4], p.1: f32[4,6]) -> f32[8,6] {
  %p.0 = f32[8,4]{1,0:T(8,128)} parameter(0)
  %p.1 = f32[4,6]{1,0} parameter(1)

  ROOT %c = f32[8,6]{1,0} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}
%fused.1 (q.0: f32[8,4], q.1: f32[4,6]) -> f32[8,6] {
  %q.0 = f32[8,4]{1,0} parameter(0)
  %q.1 = f32[4,6]{1,0} parameter(1)
  ROOT %d = f32[8,6]{1,0} convolution(%q.0, %q.1), operand_precision={highest,highest}
}
%async_collective_fusion.1 (r: f32[2,4]) -> f32[8,4] {
  %r = f32[2,4]{1,0} parameter(0)
  ROOT %all-gather.9 = f32[8,4]{1,0} all-gather(%r), dimensions={0}
}
%body (s: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %s = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%s), index=1
  %w = f32[4,6]{1,0} constant({...})
  %f = f32[8,6]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused
  %g = f32[8,6]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused.1
  %ag = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%x), calls=%async_collective_fusion.1
  %done = f32[8,4]{1,0} all-gather-done(%ag)
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %done)
}
%condition (u: (s32[], f32[8,4])) -> pred[] {
  %u = (s32[], f32[8,4]{1,0}) parameter(0)
  %n = s32[]{:T(128)} constant(5)
  %v = s32[]{:T(128)} get-tuple-element(%u), index=0
  ROOT %lt = pred[]{:T(512)} compare(%v, %n), direction=LT
}
ENTRY %main (a: f32[8,4], b: bf16[3,70]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = bf16[3,70]{1,0} parameter(1)
  %state = (s32[], f32[8,4]{1,0}) tuple(%z, %a)
  %loop = (s32[], f32[8,4]{1,0}) while(%state), condition=%condition, body=%body
  %sorted = bf16[3,70]{1,0} sort(%b), dimensions={1}, is_stable=true, to_apply=%less
  %big = f32[1024,1024]{1,0} copy(%a)
  ROOT %out = f32[8,4]{1,0} get-tuple-element(%loop), index=1
}
'''


class ReadingTest(absltest.TestCase):

  def test_what_a_loop_does_counts_as_often_as_it_turns(self):
    found = compiled_text.read(TPU)
    self.assertEqual(found.products, {'f32 x f32': 5, 'f32 x f32 highest': 5})
    self.assertEqual(found.bare, 5)
    self.assertEqual(found.collectives, {'all-gather': [5, 5 * 8 * 4 * 4]})
    self.assertEqual(found.looped, found.collectives)
    self.assertEqual(found.kernels, 5 * 3 + 2)  # two fusions and a gather; sort and copy
    self.assertEqual((found.widest_sort, found.copies, found.unknown), (70, 4 << 20, 0))

  def test_a_loop_that_may_leave_early_is_told(self):
    found = compiled_text.read(TPU.replace('direction=LT', 'direction=NE'))
    self.assertEqual((found.unknown, found.bare), (1, 1))

  def test_a_program_of_this_machine(self):
    def run(x, w):
      def step(x, _):
        return jnp.tanh(jnp.dot(x, w, precision='highest')), None
      return jax.lax.scan(step, x, length=7)[0]
    w = jnp.ones((64, 64))
    text = jax.jit(run).lower(w, w).compile().as_text()
    self.assertEqual(sum(compiled_text.read(text).products.values()), 7)

  def test_a_matrix_that_is_widened_in_memory_is_found(self):
    text = TPU + ('%wide (p: s8[1024,1024]) -> bf16[1024,1024] {\n'
                  '  %p = s8[1024,1024]{1,0} parameter(0)\n'
                  '  ROOT %k = bf16[1024,1024]{1,0} convert(%p)\n}\n')
    self.assertEqual((compiled_text.widened(TPU), compiled_text.widened(text)), (0, 1))


class CompileTest(absltest.TestCase):

  @long
  def test_programs_compile_for_a_tpu_within_their_figures(self):
    if importlib.util.find_spec('libtpu') is None:
      self.skipTest("needs the TPU's compiler: pip install -e '.[aot-tpu]'")
    out = pathlib.Path(tempfile.mkdtemp()) / 'figures.json'
    env = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
    done = subprocess.run(
        [sys.executable, '-m', 'benchmarks.accelerators', '--targets=v5e',
         f'--programs={",".join(PROGRAMS)}', f'--out={out}'], cwd=ROOT, env=env,
        capture_output=True, text=True)
    self.assertEqual(done.returncode, 0, done.stderr[-2000:])
    found = json.loads(out.read_text())
    table = json.loads((ROOT / 'benchmarks' / 'accelerators.json').read_text())
    same = found['versions']['libtpu'] == table['versions'].get('libtpu')
    for name in PROGRAMS:
      with self.subTest(name):
        figures = found['programs'][f'{name} v5e']
        kept = table['programs'].get(f'{name} v5e') if same else None
        self.assertNotIn('error', figures)
        self.check(name, figures)
        for figure in ('peak', 'kernels', 'copies') if kept else ():
          self.assertLessEqual(figures[figure], 1.1 * kept[figure] + 20, figure)

  def check(self, name, figures):
    """What holds whatever the compiler's version is."""
    if name == 'lora_step':  # a TPU keeps copies of arrays as small as these on the chip
      self.assertBetween(figures['planned'] / figures['peak'], .8, 1.1)
    self.assertNotIn('f32 x f32', figures['products'])
    self.assertLess(figures['widest_sort'], 65_536)
    if name == 'sample':
      self.assertEqual(figures['widest_sort'], 0)


if __name__ == '__main__':
  absltest.main()
