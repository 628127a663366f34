"""Parts of one job: processes that know nothing of each other and see the same folder.

Of a run, each part is the whole command. What cannot be shared runs in whichever part has the
folder's lock, while the others wait; a stage made of shards (`training.shards`) is filled by all.
"""
import datetime
import fcntl
import json
import os
import re
import socket
import time

from recjax import run_files
from recjax.errors import ConfigError, PartDone, WorkdirError

WAIT = 0.5    # seconds between two looks at what another part does

OPENING = 20  # seconds after which who opens a folder has written its settings


def parse(text):
  """What --part says: '2/8' -> (1, 8), which part this is, from 0, and of how many; None without.

  Raises ConfigError for anything else.
  """
  if not text:
    return None
  found = re.fullmatch(r'([0-9]+)/([0-9]+)', text)
  index, count = map(int, found.groups()) if found else (0, 0)
  if not 1 <= index <= count:
    raise ConfigError(f'--part={text}: give I/N, this part and how many there are, with I from 1 '
                      'to N, e.g. --part=2/8')
  return index - 1, count


def take(lock):
  """Takes a lock, which the system frees when this process ends however it ends. -> whether so"""
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  lock.seek(0)
  lock.truncate()
  since = datetime.datetime.now().isoformat(' ', 'seconds')
  lock.write(f'process {os.getpid()} on {socket.gethostname()} since {since}')
  lock.flush()
  return True


def holder(lock):
  """Who has a lock. -> str"""
  lock.seek(0)
  return lock.read().strip() or 'another process'


def release(work):
  """Lets another part have the run's folder."""
  if work.holds:
    work.lock.truncate(0)
    fcntl.flock(work.lock, fcntl.LOCK_UN)
    work.holds = False


def same_settings(path, config):
  """Raises WorkdirError where the run in `path` has other settings than this part."""
  at, ends = path / 'config.json', time.monotonic() + OPENING
  while not at.exists():
    if time.monotonic() > ends:
      raise WorkdirError(f'{at} does not appear, though another process has {path}; start this '
                         'part again')
    time.sleep(WAIT)
  if run_files.read_config(path)['config'] != json.loads(json.dumps(config, default=str)):
    raise WorkdirError(f'{path} holds a run of other settings; give all parts the same --config '
                       'and flags, or another --workdir')


def turn(work, name, state_of, shared):
  """Waits until a stage is done, or open to all parts, or this one has the folder. -> its state"""
  told = False
  while True:
    state = state_of()
    if state == 'done' or work.holds or shared and state == 'begun':
      return state
    work.holds = take(work.lock)
    if not work.holds and not told:
      work.say(f'    waiting for stage {name}; {holder(work.lock)} is at work here')
      told = True
    time.sleep(0 if work.holds else WAIT)


def gather(work, room):
  """To be called where all shards of a stage are there: takes the folder, to finish the stage.

  room: the folder of the shards. Raises PartDone where another part does so.
  """
  if not work.part or work.holds:
    return
  work.holds = take(work.lock)
  if not work.holds or not room.is_dir():
    raise PartDone(f'stage {work.current} is whole; another process goes on with the run')
