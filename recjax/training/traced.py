"""What training takes whose models are small and many: counted by tracing the loss itself.

Nothing is allocated, compiled or run, so any loss, attention or recurrence is counted as it is.
"""
import collections
import dataclasses
import math

import jax
import numpy as np

from recjax.training import plan

ADAM = 2  # moments of a parameter


@dataclasses.dataclass(frozen=True)
class Step:
  """One seed's step over the whole batch. parameters: those that train. kept: bytes that the
  backward pass reads. flops: of all matrix products, forward and backward."""
  parameters: int
  kept: int
  flops: int


def trace(loss, params, *rest):
  """A step of `loss(params, *rest) -> ()`, from shapes alone. -> Step"""
  def back(params, *rest):
    return jax.vjp(lambda p: loss(p, *rest), params)[1]
  left = collections.Counter(map(_kind, jax.tree.leaves(jax.eval_shape(back, params, *rest))))
  left -= collections.Counter(map(_kind, jax.tree.leaves(params)))  # they are there anyway
  kept = sum(count * math.prod(shape) * _width(dtype) for (shape, dtype), count in left.items())
  closed = jax.make_jaxpr(jax.value_and_grad(loss))(params, *rest)
  return Step(sum(math.prod(x.shape) for x in jax.tree.leaves(params)), kept, flops(closed.jaxpr))


def _kind(x):
  return x.shape, x.dtype


def _width(dtype):
  return dtype.itemsize if isinstance(dtype, np.dtype) else 8  # a random key


def flops(jaxpr):
  """Operations of all matrix products, those of a loop as often as it runs. -> int"""
  total = 0
  for eqn in jaxpr.eqns:
    inner = [flops(j) for p in eqn.params.values() for j in _jaxprs(p)]
    if eqn.primitive.name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      left = eqn.invars[0].aval.shape
      total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    elif eqn.primitive.name == 'scan':
      total += eqn.params['length'] * sum(inner)
    elif eqn.primitive.name == 'cond':
      total += max(inner)
    else:
      total += sum(inner)
  return total


def _jaxprs(value):
  """The programs inside a parameter of an equation."""
  if isinstance(value, (tuple, list)):
    return [j for v in value for j in _jaxprs(v)]
  value = getattr(value, 'jaxpr', value)
  return [value] if hasattr(value, 'eqns') else []


def device_bytes(step, seeds, ways):
  """Bytes of a device by what they hold, all seeds at once. Rows divide over `ways` alone."""
  one = 4 * step.parameters * seeds
  return {'trained': one, 'optimiser': ADAM * one, 'gradients': one, 'best epoch': one,
          'activations': step.kept * seeds / ways}


def lines(step, steps, places, epochs, seeds, ways, generation=0, unit='positions'):
  """What `recjax doctor` prints. -> {what: text}

  steps, places: of an epoch. generation: bytes of the KV caches of a batch, on all devices.
  """
  one = step.flops * seeds
  found = {
      'parameters': f'{step.parameters:,} a seed; {seeds} ' + ('seeds' if seeds > 1 else 'seed')
                    + ' at once',
      f'bytes a device in training (data={ways})': plan.said(
          device_bytes(step, seeds, ways), plan.GIB / 1024, 'MiB'),
      'a step': f'{one / 1e9:,.2f} GFLOP of matrix products',
      'an epoch': f'{steps:,} steps, {places:,} {unit}, {one * steps / 1e12:,.2f} TFLOP; '
                  f'{epochs:g} epochs at most'}
  if generation:
    found[f'bytes a device in generation (data={ways})'] = plan.said(
        {'weights': 4 * step.parameters, 'KV caches': generation / ways}, plan.GIB / 1024, 'MiB')
  for name, (peak, memory, _) in plan.HARDWARE.items():
    chips = next((n for n in (2**i for i in range(10)) if max(
        sum(device_bytes(step, seeds, n).values()), 4 * step.parameters + generation / n)
        <= plan.FILL * memory), 0)
    found[name] = (f'fits {chips} ' + ('chips' if chips > 1 else 'chip') + f' (data={chips}): '
                   f'{one * steps / (plan.USED * peak * chips):,.3g} s an epoch at '
                   f'{plan.USED:.0%} of the peak' if chips else
                   'does not fit 512 chips, weights being whole on each; fewer seeds train at once')
  return found
