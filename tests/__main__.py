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
import contextlib
import dataclasses
import functools
import gc
import importlib
import os
import pathlib
import pkgutil
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import xml.etree.ElementTree as ET
from typing import NoReturn

import tests

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
FORKS = sys.platform == 'linux'  # libraries of other systems do not bear it
NONE_RAN = 5  # unittest's exit code where no test was found, from Python 3.12 on
# What most processes import. They fork from one that has, with all of recjax: 5 s of CPU each less.
LIBRARIES = ('jax', 'flax', 'optax', 'orbax.checkpoint', 'transformers', 'torch', 'pandas',
             'hypothesis', 'scipy.stats', 'fastapi')
# Files that have a process of their own: they change what belongs to a whole process (signals,
# limits, the console), or are long enough to run beside their room.
ALONE = ('hostile_test', 'house_test', 'docs_test', 'devices_test', 'damage_test',
         'training/fault_tolerance_test', 'serving/server_test',
         'decoding/lookahead_beam_search_test')
# Processes in which --long lets XLA optimize: they compute more than they compile, are compared
# with torch, or do what a reader of the documentation does.
OPTIMIZED = ('methods/reclm', 'data', 'models', 'docs_test')
# Processes that wait half of their time, for sockets and clocks, hold no core.
WAITING = ('serving', 'text')
# Processes that run longest, in this order, begin first, so that no core waits at the end.
FIRST = (*WAITING, 'decoding', 'decoding/lookahead_beam_search_test', 'training', 'models',
         'methods/etegrec', 'report', 'methods/global', 'methods/sequential', 'top',
         'methods/llmemb', 'data', 'methods/reclm', 'methods/continuation', 'methods/scores',
         'methods/betag', 'methods/bigrec', 'docs_test', 'evaluation', 'methods/streamed')


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


@dataclasses.dataclass(frozen=True)
class Group:
  """Test files of one process. folder: all that it may write to. start: time.monotonic()."""
  name: str
  modules: list[str]
  folder: tempfile.TemporaryDirectory
  start: float

  @property
  def argv(self) -> list[str]:
    """What `python -m tests.room` is called with."""
    return [*self.modules, f'--xml_output_file={self.report}', f'--test_tmpdir={self.folder.name}']

  @property
  def report(self) -> str:
    """The XML file of its cases."""
    return os.path.join(self.folder.name, 'report.xml')

  @property
  def output(self) -> str:
    """The file of what it prints."""
    return os.path.join(self.folder.name, 'output.txt')


def prepare(groups: int) -> None:
  """Imports what the processes of so many groups want, once, before they fork. No device is
  touched. What cannot be imported is told by the tests of it."""
  tests.check_annotations()
  if groups > 1 and FORKS:
    import recjax
    ours = [m.name for m in pkgutil.walk_packages(recjax.__path__, 'recjax.')
            if not m.name.endswith('main__')]
    for name in (*LIBRARIES, *ours):
      with contextlib.suppress(Exception):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def launch(name: str, paths: list[pathlib.Path]) -> tuple[int, Group]:
  """Starts test files in a process. -> its id, the group

  name: what the group is called. paths: its files.
  """
  modules = ['.'.join(('tests', *p.relative_to(ROOT).with_suffix('').parts)) for p in paths]
  group = Group(name, modules, tempfile.TemporaryDirectory(ignore_cleanup_errors=True),
                time.monotonic())
  if not FORKS:
    opened = os.O_WRONLY | os.O_CREAT
    return os.posix_spawn(
        sys.executable, [sys.executable, '-m', 'tests.room', *group.argv],
        {**os.environ, 'TMPDIR': group.folder.name,
         'RECJAX_CACHE': os.path.join(group.folder.name, 'cache')},
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, group.output, opened, 0o600),
                      (os.POSIX_SPAWN_DUP2, 1, 2)]), group
  sys.stdout.flush()
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # threads of libraries wait for work and hold nothing
    pid = os.fork()
  if not pid:
    run_here(group)
  return pid, group


def run_here(group: Group) -> NoReturn:
  """Runs a group's files in this process, a fork, and ends it."""
  code = 1
  try:
    if (group.name in OPTIMIZED and os.environ['RECJAX_TEST_LONG_ALONE'] == '1'
        and os.environ['XLA_FLAGS'] == FAST):
      os.environ['XLA_FLAGS'] = ''
    os.environ['TMPDIR'] = tempfile.tempdir = group.folder.name
    os.environ['RECJAX_CACHE'] = os.path.join(group.folder.name, 'cache')
    output = os.open(group.output, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ['tests.room', *group.argv]
    from tests import room
    room.main()
  except SystemExit as end:
    code = int(end.code or 0)
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what belongs to the runner is not cleaned up here


def collect(group: Group, code: int) -> tuple[list[ET.Element], str]:
  """What a group that has ended leaves. -> its cases, its output

  group: the group. code: its exit status; below 0 the signal that ended it. A process that dies
  before its report is whole counts as one failed case.
  """
  cases = cases_of(group.report)
  if cases is None or code not in (0, NONE_RAN) and not any(map(is_bad, cases)):
    dead = ET.Element('testcase', name='process', classname=', '.join(group.modules), time='0')
    ET.SubElement(dead, 'error')
    cases = [*(cases or ()), dead]
  output = pathlib.Path(group.output).read_text(errors='replace')
  group.folder.cleanup()
  return cases, output


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
  start = time.monotonic()
  os.environ.update(ENV, RECJAX_TEST_ALL=str(int(args.all or args.long)),
                    RECJAX_TEST_LONG_ALONE=str(int(args.long)))
  os.chdir(ROOT.parent)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:  # nothing reads XLA's flags before it ends
    variables = pool.submit(environment)
    prepare(len(groups))
    os.environ.update(variables.result())
  ran, skipped, warned, failed, passed, running = [], [], set(), 0, 0, {}
  used = time.process_time()
  while order or running:
    busy = sum(group.name not in WAITING for group in running.values())
    if order and busy < (os.cpu_count() or 1):
      name = order.pop(0)
      pid, group = launch(name, groups[name])
      running[pid] = group
      continue
    pid, status, usage = os.wait4(-1, 0)
    if pid not in running:
      continue
    group = running.pop(pid)
    cpu = usage.ru_utime + usage.ru_stime
    used += cpu
    cases, output = collect(group, os.waitstatus_to_exitcode(status))
    bad = [case for case in cases if is_bad(case)]
    out = [case for case in cases if is_skipped(case)]
    good = len(cases) - len(bad) - len(out)
    skipped += map(called, out)
    failed, passed = failed + len(bad), passed + good
    note = f', {len(out)} skipped' if out else ''
    seconds = time.monotonic() - group.start
    print(f'{"FAIL" if bad else "ok":4} {group.name}  {good} passed{note}  {seconds:.0f} s, '
          f'{cpu:.0f} s of CPU', flush=True)
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
  print(f'{time.monotonic() - start:.0f} s, {used:.0f} s of CPU')
  print(f'{passed} passed, {failed} failed, {len(skipped)} skipped')
  return 1 if failed or not passed else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
