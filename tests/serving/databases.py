"""Databases of events for tests: SQLite in a folder, and a PostgreSQL that is started here."""
import contextlib
import os
import pathlib
import pwd
import shutil
import subprocess
import tempfile
import unittest

KINDS = ('sqlite', 'postgresql')


def programs():
  """The folder of PostgreSQL's programs, or None."""
  places = [pathlib.Path(found).resolve().parent for found in [shutil.which('initdb')] if found]
  places += sorted(pathlib.Path('/usr/lib/postgresql').glob('*/bin'), reverse=True)
  return next((place for place in places if (place / 'postgres').exists()), None)


@contextlib.contextmanager
def database(kind):
  """Yields the place of an empty database. kind: one of KINDS. Skips where PostgreSQL is not."""
  # A root of tests has folders that nobody else may enter, and paths of sockets are short.
  place = '/tmp' if kind == 'postgresql' else None
  with tempfile.TemporaryDirectory(dir=place) as folder:
    if kind == 'sqlite':
      yield f'{folder}/events.sqlite'
      return
    bin_folder = programs()
    if bin_folder is None:
      raise unittest.SkipTest('PostgreSQL is not installed')
    command, environment = [], {**os.environ, 'LC_ALL': 'C'}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
      user = pwd.getpwnam('nobody')
      os.chown(folder, user.pw_uid, user.pw_gid)
      command = ['setpriv', f'--reuid={user.pw_uid}', f'--regid={user.pw_gid}', '--clear-groups']

    def call(program, *words):
      done = subprocess.run([*command, bin_folder / program, '-D', f'{folder}/data', *words],
                            env=environment, cwd='/', stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, timeout=120)
      assert done.returncode == 0, done.stdout
    call('initdb', '-U', 'recjax', '-A', 'trust', '-E', 'UTF8', '--no-sync')
    call('pg_ctl', '-w', '-l', f'{folder}/log', '-o', f"-c listen_addresses='' -k {folder}",
         'start')
    try:
      yield f'postgresql://recjax@/postgres?host={folder}'
    finally:
      call('pg_ctl', '-w', '-m', 'immediate', 'stop')
