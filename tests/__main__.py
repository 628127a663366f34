"""Runs the suite: one process per file, all cores, a last line that a machine can read.

`python -m tests` runs everything; `python -m tests beam work` only files whose path holds a word.
Warnings that point at a line of ours are listed at the end.
"""
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET

ROOT = pathlib.Path(__file__).parent
ENV = {
    **os.environ,
    'JAX_PLATFORMS': os.environ.get('JAX_PLATFORMS', 'cpu'),
    'JAX_NUM_CPU_DEVICES': '8',
    'JAX_COMPILATION_CACHE_DIR': str(pathlib.Path(tempfile.gettempdir()) / 'recjax-test-cache'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.3',
    'TOKENIZERS_PARALLELISM': 'false',
    'HF_HUB_OFFLINE': '1',
    'PYTHONWARNINGS': 'default',
    'RECJAX_TYPECHECK': '1',
}
OURS = re.compile(rf'{re.escape(str(ROOT.parent))}/(?!\.)\S+:\d+: \w*Warning: .*')


def run_file(path):
  """Runs one test file. -> (name, seconds, passed, failed, [names skipped], output)"""
  name = '.'.join(('tests', *path.relative_to(ROOT).with_suffix('').parts))
  start = time.monotonic()
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as room:
    report = os.path.join(room, 'report.xml')
    done = subprocess.run(
        [sys.executable, '-m', name, f'--xml_output_file={report}', f'--test_tmpdir={room}'],
        env={**ENV, 'TMPDIR': room}, capture_output=True, text=True, errors='replace',
        cwd=ROOT.parent)
    cases = cases_of(report)
  bad = sum(any(k.tag in ('failure', 'error') for k in case) for case in cases)
  skipped = [f'{name}.{case.get("name")}' for case in cases if case.get('status') == 'notrun'
             or case.get('result') == 'suppressed' or any(k.tag == 'skipped' for k in case)]
  if done.returncode and not bad:  # it died before or after its cases
    bad = 1
  passed = max(0, len(cases) - bad - len(skipped))
  return name, time.monotonic() - start, passed, bad, skipped, done.stdout + done.stderr


def cases_of(report):
  """The test cases of a report; none where the process died before it was whole."""
  try:
    return list(ET.parse(report).iter('testcase'))
  except (OSError, ET.ParseError):
    return []


def main(words):
  """Runs the files that match `words` and prints the totals. -> exit code"""
  files = sorted(f for f in ROOT.rglob('*_test.py')
                 if not words or any(w in str(f.relative_to(ROOT)) for w in words))
  passed = failed = 0
  skips, warned = [], set()
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    for name, seconds, good, bad, skipped, output in pool.map(run_file, files):
      note = f', {len(skipped)} skipped' if skipped else ''
      print(f'{"FAIL" if bad else "ok":4} {name}  {good} passed{note}  {seconds:.1f} s', flush=True)
      if bad:
        print(output, flush=True)
      passed, failed, skips = passed + good, failed + bad, skips + skipped
      warned |= set(OURS.findall(output))
  if warned:
    print('warnings:', *sorted(warned), sep='\n  ')
  if skips:
    print('skipped:', *skips, sep='\n  ')
  print(f'{passed} passed, {failed} failed, {len(skips)} skipped')
  return 1 if failed or not passed else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
