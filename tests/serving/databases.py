"""Databases of events for tests: SQLite in a folder, and a PostgreSQL that is started here."""
import contextlib
import itertools
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


class Databases:
  """Empty databases, each of its own; PostgreSQL starts with the first that is wanted."""

  def __init__(self):
    self.stack, self.numbers, self.host = contextlib.ExitStack(), itertools.count(), None

  def close(self):
    self.stack.close()

  def place(self, kind):
    """The place of a new database. kind: one of KINDS. Skips where PostgreSQL is not."""
    if kind == 'sqlite':
      folder = self.stack.enter_context(tempfile.TemporaryDirectory())
      return f'{folder}/events.sqlite'
    self.host = self.host or self.start()
    name = f'd{next(self.numbers)}'
    self.call('createdb', '-h', self.host, '-U', 'recjax', name)
    return f'postgresql://recjax@/{name}?host={self.host}'

  def start(self):
    """Starts PostgreSQL. -> the folder of its socket"""
    if programs() is None:
      raise unittest.SkipTest('PostgreSQL is not installed')
    # A root of tests has folders that nobody else may enter, and paths of sockets are short.
    folder = self.stack.enter_context(tempfile.TemporaryDirectory(dir='/tmp'))
    if os.geteuid() == 0:
      user = pwd.getpwnam('nobody')
      os.chown(folder, user.pw_uid, user.pw_gid)
    data = ('-D', f'{folder}/data')
    self.call('initdb', *data, '-U', 'recjax', '-A', 'trust', '-E', 'UTF8', '--no-sync')
    self.call('pg_ctl', *data, '-w', '-l', f'{folder}/log', '-o',
              f"-c listen_addresses='' -k {folder}", 'start')
    self.stack.callback(self.call, 'pg_ctl', *data, '-w', '-m', 'immediate', 'stop')
    return folder

  def call(self, program, *words):
    """Runs a program of PostgreSQL, which refuses to be run by root."""
    user = pwd.getpwnam('nobody')
    command = ['setpriv', f'--reuid={user.pw_uid}', f'--regid={user.pw_gid}',
               '--clear-groups'] if os.geteuid() == 0 else []
    done = subprocess.run([*command, programs() / program, *words], cwd='/', timeout=120,
                          env={**os.environ, 'LC_ALL': 'C'}, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout


class WithDatabases(unittest.TestCase):
  """Tests that want databases. databases: that `setUpClass` makes."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.databases = Databases()
    cls.addClassCleanup(cls.databases.close)
