"""An 8B Llama shape compiled ahead of time for a 16-device mesh; nothing is allocated.

  JAX_NUM_CPU_DEVICES=16 python -m benchmarks.compile_8b [--part=train|generate|both]
      [--dtype=float32] [--remat=full] [--data=1] [--fsdp=8] [--model=2]

Compiles BETag's own LoRA step and its 40-beam generation from shapes alone and prints what the
compiler says each device needs, beside the estimate of `recjax doctor`, and the collectives of the
program beside the fewest that its sharding allows. XLA's CPU backend computes bfloat16 products in
float32 and keeps the converted weights, so the comparison is made in float32.
"""
import argparse
import functools
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from recjax.distributed import sharding
from recjax.methods.betag import generate
from recjax.methods.betag import train as train_lib
from recjax.models import llm, lora
from recjax.training import cost_model, loop, optim

LLAMA_8B = dict(vocab=128_256, width=4096, layers=32, heads=32, kv_heads=8, head_dim=128,
                ffn=14_336, rope_theta=500_000.0, max_positions=8192)
PREFIX, ROW, PROMPT, NEW = 160, 512, 64, 64


def placed(shapes, rules, mesh):
  """Shapes with the shardings that the rules give them."""
  where = sharding.shardings(shapes, rules, mesh)
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)


def rows(mesh, *shape, dtype=jnp.int32):
  """An array whose first axis is spread over the data axes."""
  spec = jax.P(tuple(a for a in ('data', 'fsdp') if a in mesh.axis_names))
  return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, spec))


def train_program(shape, mesh, count):
  """BETag's update over `count` rows of ROW tokens, lowered."""
  settings = ConfigDict(dict(lr=1e-4, warmup=0, schedule='constant', decay=0.0, clip=1.0,
                             beta2=0.999))
  tx, key = optim.make(settings, 100), jax.random.key(0)
  task = loop.Task(init=lambda key: lora.init_lora(shape, key), rules=llm.RULES, batches=(),
                  loss=functools.partial(train_lib.sample_loss, llm.LM(shape), [1] * PREFIX))

  def init(key):
    train = task.init(key)
    return {'train': train, 'opt': tx.init(train)}
  state = placed(jax.eval_shape(init, key), llm.RULES, mesh)
  frozen = placed(llm.shapes(shape), llm.RULES, mesh)
  batch = {k: rows(mesh, count, ROW) for k in ('tokens', 'positions', 'segments', 'targets')}
  batch['weights'] = rows(mesh, count, ROW, dtype=jnp.float32)
  one = jax.NamedSharding(mesh, jax.P())
  batch['first'] = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=one)
  batch['first_weight'] = jax.ShapeDtypeStruct((1,), jnp.float32, sharding=one)
  step = jax.ShapeDtypeStruct((), jnp.int32)
  return loop.make_update(task, tx, key).lower(state, frozen, batch, step)


def generate_program(shape, mesh, count):
  """BETag's diverse beam search for `count` items, 40 beams each, lowered."""
  search, ends = generate.search_config(ConfigDict(dict(
      beams=40, groups=40, diversity=1.0, new_tokens=NEW, stop_at_line_end=False,
      length_penalty=1.0)))
  run = jax.jit(functools.partial(generate.beams_of, llm.LM(shape), search, ends))
  params = placed(llm.shapes(shape), llm.RULES, mesh)
  adapter = placed(jax.eval_shape(lambda k: lora.init_lora(shape, k), jax.random.key(0)),
                   llm.RULES, mesh)
  prefix = jax.ShapeDtypeStruct((PREFIX,), jnp.int32, sharding=jax.NamedSharding(mesh, jax.P()))
  return run.lower(params, adapter, prefix, ids=rows(mesh, count, PROMPT),
                   lengths=rows(mesh, count))


def main():
  """Compiles and prints."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--part', default='both', choices=('train', 'generate', 'both'))
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--remat', default='full')
  parser.add_argument('--rows', type=int, default=16, help='training rows, and items generated for')
  for axis, size in (('data', 1), ('fsdp', 8), ('model', 2)):
    parser.add_argument(f'--{axis}', type=int, default=size)
  args = parser.parse_args()
  axes = {a: getattr(args, a) for a in ('data', 'fsdp', 'model')}
  mesh = sharding.make_mesh(axes)
  shape = llm.Config(**LLAMA_8B, dtype=args.dtype, param_dtype=args.dtype, remat=args.remat,
                     lora_rank=64)
  for part in ('train', 'generate') if args.part == 'both' else (args.part,):
    start = time.monotonic()
    with jax.set_mesh(mesh):
      program = {'train': train_program, 'generate': generate_program}[part](
          shape, mesh, args.rows).compile()
    found = program.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    print(f'{part}: {axes}, {args.dtype}, compiled in {time.monotonic() - start:.0f} s')
    print(f'  compiler: {(held + found.temp_size_in_bytes) / 2**30:.2f} GiB a device, arguments '
          f'{found.argument_size_in_bytes / 2**30:.2f}, temporary '
          f'{found.temp_size_in_bytes / 2**30:.2f}')
    if part == 'train':
      told = cost_model.training_bytes(shape, axes, args.rows, ROW, PREFIX)
    else:
      told = cost_model.generation_bytes(shape, axes, args.rows, 40, PROMPT, NEW, PREFIX)
    total = sum(told.values())
    parts = ', '.join(f'{k} {v / 2**30:.2f}' for k, v in told.items())
    print(f'  plan: {total / 2**30:.2f} GiB a device ({parts}), '
          f'{total / (held + found.temp_size_in_bytes) - 1:+.1%}')
    print(f'  collectives: {cost_model.collectives(program.as_text())}', flush=True)


if __name__ == '__main__':
  main()
