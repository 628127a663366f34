"""The project's programs compiled for TPUs and GPUs that are not here, by their own compilers.

  pip install -e '.[aot-tpu]'     # libtpu; or '.[aot-gpu]', the CUDA plugin and ptxas
  python -m benchmarks.accelerators [--programs=lora_step,sample] [--targets=v5e,h200]
      [--shape=small|135m|0.5b|8b] [--mesh=fsdp:2,model:4] [--rank=64 --rows=16 ...] [--save]

Nothing is allocated and nothing runs; no device and no driver is needed. Per program: seconds of
the compiler, peak bytes of a device beside the cost model's, FLOP of products, kernels (of one step
where there are several), products of float32 without a precision, collectives, the longest sort,
copies. --save keeps the figures in benchmarks/accelerators.json, which tests hold programs against.

A TPU's peak above its memory is the compiler's refusal; on a GPU it has to be compared by hand.
Speed is nowhere claimed: these are counts.
"""
import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # no server to ask for the machine's kind
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # nobody holds a chip

import argparse  # noqa: E402
import contextlib  # noqa: E402
import dataclasses  # noqa: E402
import functools  # noqa: E402
import importlib.metadata  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import pathlib  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402
from unittest import mock  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from benchmarks import accelerator_programs as programs  # noqa: E402
from benchmarks import compiled_text  # noqa: E402
from recjax.training import cost_model  # noqa: E402

TABLE = pathlib.Path(__file__).with_suffix('.json')
# {name: topologies by number of devices}. Those of one chip must be told the bounds of a host.
TPUS = {'v5e': {1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4'},
        'v5p': {1: '1x1x1', 4: '2x2x1', 8: '2x2x2', 16: '2x2x4'},
        'v6e': {1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4'}}
# The numbers of xla/backends/gpu/target_config/specs/h200.txtpb of openxla/xla (Apache-2.0).
H200 = '''platform_name: "CUDA" device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: 151397597184 memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 }'''
# Triton's products are tuned on a device; without one some small shapes find no tiles.
NO_TILES = "Couldn't find output tile sizes"
EXTRAS = {'tpu': ('libtpu', 'aot-tpu'), 'gpu': ('jax_cuda12_plugin', 'aot-gpu')}


def platform_of(target: str) -> str:
  """'tpu' or 'gpu'."""
  return 'tpu' if target in TPUS else 'gpu'


def installed(target: str) -> bool:
  """Whether the compiler of a target is here."""
  return importlib.util.find_spec(EXTRAS[platform_of(target)][0]) is not None


@functools.cache
def devices(target: str, count: int) -> tuple:
  """So many devices of a kind, for compiling alone."""
  jax.devices()  # the CPU first
  if target in TPUS:
    one = {'chips_per_host_bounds': (1, 1, 1)} if count == 1 else {}
    found = topologies.get_topology_desc(
        platform='tpu', topology_name=f'{target}:{TPUS[target][count]}', **one)
  else:
    grid = f'1x{count}x1'
    found = topologies.get_topology_desc(platform='cuda', topology_name=grid, topology=grid,
                                         target_config=H200)
  return tuple(found.devices)


def make_mesh(target: str, axes: dict[str, int]) -> jax.sharding.Mesh:
  """A mesh of devices that are not here. axes: sizes of 'data', 'fsdp' and 'model'."""
  sizes = tuple(axes.get(name, 1) for name in ('data', 'fsdp', 'model'))
  found = np.array(devices(target, math.prod(sizes))).reshape(sizes)
  return jax.sharding.Mesh(found, ('data', 'fsdp', 'model'),
                           axis_types=(jax.sharding.AxisType.Auto,) * 3)


def compile_program(program: programs.Program, mesh: jax.sharding.Mesh, target: str) -> Any:
  """-> the compiled program, FLOP of its products over all devices"""
  here = platform_of(target)
  with jax.set_mesh(mesh), mock.patch.object(jax, 'default_backend', lambda: here):
    traced = program.run.trace(*program.args, **program.kwargs)
    lowered, flops = traced.lower(), cost_model.flops(traced.jaxpr.jaxpr)
    try:
      return lowered.compile(), flops
    except jax.errors.JaxRuntimeError as error:
      if NO_TILES not in str(error):
        raise
    return lowered.compile({'xla_gpu_enable_triton_gemm': False}), flops


def figures(name: str, case: programs.Case, target: str) -> dict[str, Any]:
  """What the compiler says of a program, or 'error' with its words."""
  start = time.monotonic()
  program = programs.PROGRAMS[name](case)
  try:
    compiled, flops = compile_program(program, case.mesh, target)
  except jax.errors.JaxRuntimeError as error:
    return {'error': ' '.join(str(error).split())[:300], 'seconds': time.monotonic() - start}
  text = compiled.as_text()
  if folder := os.environ.get('RECJAX_PROGRAM_TEXTS'):
    pathlib.Path(folder, f'{name}-{target}.txt').write_text(text)
  read, memory = compiled_text.read(text), compiled.memory_analysis()
  planned = program.planned and sum(program.planned.values())
  return {
      'seconds': time.monotonic() - start, 'peak': memory.peak_memory_in_bytes,
      'temporary': memory.temp_size_in_bytes, 'planned': planned, 'flops': flops,
      'kernels': round(read.kernels / program.per), 'products': dict(read.products),
      'collectives': read.collectives, 'looped': read.looped, 'widest_sort': read.widest_sort,
      'copies': read.copies, 'unknown_loops': read.unknown}


def row(name: str, target: str, found: dict[str, Any]) -> str:
  """A row of the printed table."""
  if 'error' in found:
    return f'| {name} | {target} | {found["seconds"]:.0f} | {found["error"]} |'
  mib = 2**20
  plan = f'{found["planned"] / mib:,.0f} ({found["planned"] / found["peak"] - 1:+.0%})' if (
      found['planned']) else ''
  moved = ', '.join(f'{count} {kind} {total / mib:,.0f}' for kind, (count, total)
                    in found['collectives'].items())
  return (f'| {name} | {target} | {found["seconds"]:.0f} | {found["peak"] / mib:,.0f} | {plan} | '
          f'{found["flops"] / 1e9:,.1f} | {found["kernels"]:,} | '
          f'{found["products"].get("f32 x f32", 0):,} | {moved} | {found["widest_sort"]:,} | '
          f'{found["copies"] / mib:,.0f} |')


HEADING = ('| program | target | s | peak MiB | planned | GFLOP | kernels | bare f32 products | '
           'collectives, MiB | longest sort | copies MiB |\n|' + ' --- |' * 11)


def versions() -> dict[str, str]:
  """Of JAX and the compilers that are here."""
  found = {'jax': jax.__version__}
  for package in ('libtpu', 'jax-cuda12-plugin'):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  return found


def save(results: dict[str, dict]) -> None:
  """Puts figures into the committed table, which is of small shapes. results: {'program target':
  figures}."""
  table = json.loads(TABLE.read_text()) if TABLE.exists() else {'versions': {}, 'programs': {}}
  table['versions'] |= versions()
  for name, found in results.items():
    table['programs'][name] = {k: v for k, v in found.items() if k not in ('seconds', 'temporary')}
  table['programs'] = dict(sorted(table['programs'].items()))
  TABLE.write_text(json.dumps(table, indent=1) + '\n')


def main() -> None:
  """Compiles what is asked for and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--programs', default=','.join(programs.PROGRAMS))
  parser.add_argument('--targets', default='v5e,h200')
  parser.add_argument('--shape', default='small', choices=programs.SHAPES)
  parser.add_argument('--mesh', default='', help="sizes of axes, e.g. 'fsdp:2,model:4'")
  parser.add_argument('--remat', default='dots')
  parser.add_argument('--save', action='store_true', help='keep the figures in the table')
  parser.add_argument('--out', type=pathlib.Path, help='a JSON file for the figures')
  sizes = {f.name: f.default for f in dataclasses.fields(programs.Case)
           if isinstance(f.default, int)}
  for name, value in sizes.items():
    parser.add_argument(f'--{name.replace("_", "-")}', type=int, default=value)
  args = parser.parse_args()
  axes = {k: int(v) for k, v in (part.split(':') for part in args.mesh.split(',') if part)}
  shape = dataclasses.replace(programs.SHAPES[args.shape], remat=args.remat)
  results = {}
  print(HEADING, flush=True)
  for target in args.targets.split(','):
    if not installed(target):
      print(f"| all | {target} | | its compiler is not here: pip install -e "
            f"'.[{EXTRAS[platform_of(target)][1]}]' |")
      continue
    case = programs.Case(shape, make_mesh(target, axes),
                         **{name: getattr(args, name) for name in sizes})
    for name in args.programs.split(','):
      found = figures(name, case, target)
      print(row(name, target + (f' {args.mesh}' if axes else ''), found), flush=True)
      results[key := f'{name} {target}{args.mesh and " " + args.mesh}'] = found
      if args.save:
        save({key: found})
  if args.out:
    args.out.write_text(json.dumps({'versions': versions(), 'programs': results}))


if __name__ == '__main__':
  main()
