"""An 8B Llama shape compiled ahead of time for a 16-device mesh; nothing is allocated.

  JAX_NUM_CPU_DEVICES=16 python -m benchmarks.compile_8b [--part=train|generate|both]
      [--dtype=float32] [--remat=full] [--data=1] [--fsdp=8] [--model=2]

Compiles BETag's own LoRA step and its 40-beam generation from shapes alone and prints what the
compiler says each device needs, beside the estimate of `recjax doctor`, and the collectives of the
program beside the fewest that its sharding allows. XLA's CPU backend computes bfloat16 products in
float32 and keeps the converted weights, so the comparison is made in float32. For the compilers of
accelerators: `benchmarks.accelerators`.
"""
import argparse
import dataclasses
import time

import jax

from benchmarks import accelerator_programs as programs
from recjax.distributed import sharding
from recjax.training import cost_model

PARTS = {'train': programs.lora_step, 'generate': programs.group_beams}


def main():
  """Compiles and prints."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--part', default='both', choices=('both', *PARTS))
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--remat', default='full')
  parser.add_argument('--rows', type=int, default=16, help='training rows, and items generated for')
  for axis, size in (('data', 1), ('fsdp', 8), ('model', 2)):
    parser.add_argument(f'--{axis}', type=int, default=size)
  args = parser.parse_args()
  axes = {a: getattr(args, a) for a in ('data', 'fsdp', 'model')}
  shape = dataclasses.replace(programs.SHAPES['8b'], dtype=args.dtype, param_dtype=args.dtype,
                              remat=args.remat)
  case = programs.Case(shape, sharding.make_mesh(axes), rows=args.rows, row=512, prefix=160,
                       prompts=args.rows, prompt=64, beams=40, new_tokens=64, rank=64)
  for part in PARTS if args.part == 'both' else (args.part,):
    start, program = time.monotonic(), PARTS[part](case)
    with jax.set_mesh(case.mesh):
      compiled = program.run.lower(*program.args, **program.kwargs).compile()
    found = compiled.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    print(f'{part}: {axes}, {args.dtype}, compiled in {time.monotonic() - start:.0f} s')
    print(f'  compiler: {(held + found.temp_size_in_bytes) / 2**30:.2f} GiB a device, arguments '
          f'{found.argument_size_in_bytes / 2**30:.2f}, temporary '
          f'{found.temp_size_in_bytes / 2**30:.2f}')
    told = program.planned
    total = sum(told.values())
    parts = ', '.join(f'{k} {v / 2**30:.2f}' for k, v in told.items())
    print(f'  plan: {total / 2**30:.2f} GiB a device ({parts}), '
          f'{total / (held + found.temp_size_in_bytes) - 1:+.1%}')
    print(f'  collectives: {cost_model.collectives(compiled.as_text())}', flush=True)


if __name__ == '__main__':
  main()
