"""Parts of one job: processes that know nothing of each other and see the same folder.

Of a run, each part is the whole command. What cannot be shared runs in whichever part has the
folder's lock, while the others wait; a stage made of shards (`sharded_stage`) is filled by all.
"""
import json
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

from recjax import run_files
from recjax.errors import ConfigError, PartDone, WorkdirError
from recjax.progress import doing

WAIT = 0.5    # seconds between two looks at what another part does

OPENING = 20  # seconds after which who opens a folder has written its settings


def parse(text: str | None) -> tuple[int, int] | None:
  """What --part says: '2/8' -> (1, 8), which part this is, from 0, and of how many; None without.

  text: of the flag, empty or None without. Raises ConfigError for anything else.
  """
  if not text:
    return None
  match = re.fullmatch(r'([0-9]+)/([0-9]+)', text)
  index, count = map(int, match.groups()) if match else (0, 0)
  if not 1 <= index <= count:
    raise ConfigError(f'--part={text}: give I/N, this part and how many there are, with I from 1 '
                      'to N, e.g. --part=2/8')
  return index - 1, count


def same_settings(path: pathlib.Path, config: dict) -> None:
  """Raises WorkdirError where the run in `path` has other settings than this part. config: of this
  part."""
  file, ends = path / 'config.json', time.monotonic() + OPENING
  while not file.exists():
    if time.monotonic() > ends:
      raise WorkdirError(f'{file} does not appear, though another process has {path}; start this '
                         'part again')
    time.sleep(WAIT)
  if run_files.read_config(path)['config'] != json.loads(json.dumps(config, default=str)):
    raise WorkdirError(f'{path} holds a run of other settings; give all parts the same --config '
                       'and flags, or another --workdir')


def wait_for_turn(work: Any, name: str, state_of: Callable[[], str], shared: bool) -> str:
  """Waits until a stage is done, or open to all parts, or this one has the folder. -> its state

  work: the Workdir. name: of the stage, for the log. state_of: tells the stage's state, as
  `Workdir.state_of`. shared: whether all parts fill it.
  """
  logged = False
  with doing(f'another process makes stage {name}'):
    while True:
      state = state_of()
      if state == 'done' or work.lock.held or shared and state == 'begun':
        return state
      if not work.lock.acquire() and not logged:
        work.log(f'    waiting for stage {name}; {work.lock.holder()} is at work here')
        logged = True
      time.sleep(0 if work.lock.held else WAIT)


def gather(work: Any, shards: pathlib.Path) -> None:
  """To be called where all shards of a stage are there: takes the folder, to finish the stage.

  work: the Workdir. shards: the folder of the shards. Raises PartDone where another part does so.
  """
  if not work.part or work.lock.held:
    return
  if not work.lock.acquire() or not shards.is_dir():
    raise PartDone(f'stage {work.current} is whole; another process goes on with the run')
