"""Runs the suite: a process a room or a method, all cores, a last line that a machine can read.

  python -m tests                # what a change wants: minutes
  python -m tests beam workdir   # only files whose path holds a word
  python -m tests --all          # long ones as well: kill loops, device matrices, all damages
  python -m tests --long         # the long ones alone

Warnings that point at a line of ours are listed at the end, and the slowest cases with --slowest=N.
"""
import argparse
import collections
import concurrent.futures
import functools
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET

ROOT = pathlib.Path(__file__).parent
# Programs of tests run for a moment, and compiling is most of the time: XLA's older emitters for
# CPUs without optimization take a seventh of it. `XLA_FLAGS= python -m tests` optimizes as a run
# does.
FAST = '--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0'
ENV = {
    **os.environ,
    'JAX_PLATFORMS': os.environ.get('JAX_PLATFORMS', 'cpu'),
    'JAX_NUM_CPU_DEVICES': '8',
    'JAX_COMPILATION_CACHE_DIR': str(pathlib.Path(tempfile.gettempdir()) / 'recjax-test-cache'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    'TOKENIZERS_PARALLELISM': 'false',
    'HF_HUB_OFFLINE': '1',
    'PYTHONWARNINGS': 'default',
    'RECJAX_TYPECHECK': '1',
}
OURS = re.compile(rf'{re.escape(str(ROOT.parent))}/(?!\.)\S+:\d+: \w*Warning: .*')
LONG = re.compile(r'@(long|long_but|examples)\b')  # what --long runs something of
NONE_RAN = 5  # unittest's exit code where no test was found, from Python 3.12 on
# Files that have a process of their own: they change what belongs to a whole process (signals,
# limits, the console), or are long enough to run beside their room.
ALONE = ('hostile_test', 'house_test', 'docs_test', 'devices_test', 'damage_test',
         'training/fault_tolerance_test', 'serving/server_test',
         'decoding/lookahead_beam_search_test')
# Processes that run longest, in this order, begin first, so that no core waits at the end.
FIRST = ('decoding', 'training', 'models', 'methods/etegrec', 'methods/reclm', 'methods/llmemb',
         'methods/bigrec', 'methods/betag', 'data', 'methods/scores', 'methods/sequential',
         'decoding/lookahead_beam_search_test', 'docs_test', 'evaluation', 'serving', 'top')


@functools.cache
def environment() -> dict[str, str]:
  """The variables that tests run under; with FAST if this jaxlib knows it, and no other flags are
  set. An unknown flag ends a process."""
  flags = os.environ.get('XLA_FLAGS')
  if flags is None:
    tried = ENV['JAX_PLATFORMS'] == 'cpu' and subprocess.run(
        [sys.executable, '-c', 'import jax; jax.devices()'], env={**ENV, 'XLA_FLAGS': FAST},
        capture_output=True).returncode == 0
    flags = FAST if tried else ''
  return {**ENV, 'XLA_FLAGS': flags}


def group_of(path: pathlib.Path) -> str:
  """The process that a test file runs in: its room's, its method's, or one of its own."""
  name = path.relative_to(ROOT).with_suffix('').as_posix()
  if name in ALONE:
    return name
  room, inside, rest = name.partition('/')
  if room == 'methods':
    return f'methods/{re.split("[/_]", rest)[0]}'
  return room if inside else 'top'


def run_group(paths: list[pathlib.Path],
              env: dict[str, str]) -> tuple[float, list[ET.Element], str]:
  """Runs test files in one process. -> seconds, its cases, its output

  A process that dies before its report is whole counts as one failed case.
  """
  names = ['.'.join(('tests', *p.relative_to(ROOT).with_suffix('').parts)) for p in paths]
  start = time.monotonic()
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    report = os.path.join(folder, 'report.xml')
    done = subprocess.run(
        [sys.executable, '-m', 'tests.room', *names, f'--xml_output_file={report}',
         f'--test_tmpdir={folder}'], env={**env, 'TMPDIR': folder}, capture_output=True, text=True,
        errors='replace', cwd=ROOT.parent)
    cases = cases_of(report)
  if cases is None or done.returncode not in (0, NONE_RAN) and not any(map(is_bad, cases)):
    dead = ET.Element('testcase', name='process', classname=', '.join(names), time='0')
    ET.SubElement(dead, 'error')
    cases = [*(cases or ()), dead]
  return time.monotonic() - start, cases, done.stdout + done.stderr


def cases_of(report: str) -> list[ET.Element] | None:
  """The test cases of a report; None where the process died before it was whole."""
  try:
    return list(ET.parse(report).iter('testcase'))
  except (OSError, ET.ParseError):
    return None


def is_bad(case: ET.Element) -> bool:
  """Whether a case failed."""
  return any(child.tag in ('failure', 'error') for child in case)


def is_skipped(case: ET.Element) -> bool:
  """Whether a case did not run."""
  return (case.get('status') == 'notrun' or case.get('result') == 'suppressed'
          or any(child.tag == 'skipped' for child in case))


def called(case: ET.Element) -> str:
  """A case's name, as `python -m tests.FILE CLASS.NAME` would run it."""
  return f'{case.get("classname")}.{case.get("name")}'


def main(argv: list[str]) -> int:
  """Runs what the command line asks for and prints the totals. -> exit code"""
  parser = argparse.ArgumentParser(prog='python -m tests', description=__doc__.partition('\n')[0])
  parser.add_argument('words', nargs='*', help='only files whose path holds one of these')
  parser.add_argument('--all', action='store_true', help='long tests as well')
  parser.add_argument('--long', action='store_true', help='long tests alone')
  parser.add_argument('--slowest', type=int, default=0, help='list so many of the slowest cases')
  args = parser.parse_args(argv)
  groups = collections.defaultdict(list)
  for path in sorted(ROOT.rglob('*_test.py')):
    wanted = not args.words or any(w in path.relative_to(ROOT).as_posix() for w in args.words)
    if wanted and (not args.long or LONG.search(path.read_text())):
      groups[group_of(path)].append(path)
  order = sorted(groups, key=lambda g: FIRST.index(g) if g in FIRST else len(FIRST))
  env = {**environment(), 'RECJAX_TEST_ALL': str(int(args.all or args.long)),
         'RECJAX_TEST_LONG_ALONE': str(int(args.long))}
  ran, skipped, warned, failed, passed, start = [], [], set(), 0, 0, time.monotonic()
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    running = {pool.submit(run_group, groups[name], env): name for name in order}
    for done in concurrent.futures.as_completed(running):
      name, (seconds, cases, output) = running[done], done.result()
      bad = [case for case in cases if is_bad(case)]
      out = [case for case in cases if is_skipped(case)]
      good = len(cases) - len(bad) - len(out)
      skipped += map(called, out)
      failed, passed = failed + len(bad), passed + good
      note = f', {len(out)} skipped' if out else ''
      print(f'{"FAIL" if bad else "ok":4} {name}  {good} passed{note}  {seconds:.1f} s', flush=True)
      if bad:
        print(output, *(f'FAILED {called(case)}' for case in bad), sep='\n', flush=True)
      ran += cases
      warned |= set(OURS.findall(output))
  if warned:
    print('warnings:', *sorted(warned), sep='\n  ')
  if skipped:
    print('skipped:', *skipped, sep='\n  ')
  if not (args.all or args.long):
    print('long tests are left for --all')
  for case in sorted(ran, key=lambda c: -float(c.get('time') or 0))[:args.slowest]:
    print(f'{float(case.get("time") or 0):7.1f} s  {called(case)}')
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  print(f'{time.monotonic() - start:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of CPU')
  print(f'{passed} passed, {failed} failed, {len(skipped)} skipped')
  return 1 if failed or not passed else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
