"""The package as people get it: its names, its version, its configs from any folder, its wheel."""
import contextlib
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile
from unittest import mock

from absl.testing import absltest, flagsaver, parameterized

import recjax
from recjax import cli, experiment, main, recommend
from recjax.decoding import generate as decoding
from recjax.errors import ConfigError
from tests.long import long

ROOT = pathlib.Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))


def setup_arguments():
  """What setup.py gives setuptools, found without importing recjax."""
  spec = importlib.util.spec_from_file_location('setup', ROOT / 'setup.py')
  module = importlib.util.module_from_spec(spec)
  with mock.patch('setuptools.setup') as setup, mock.patch.dict(sys.modules, {'recjax': None}):
    spec.loader.exec_module(module)
  return setup.call_args.kwargs


class NamesTest(absltest.TestCase):

  def test_the_public_names(self):
    self.assertEqual(recjax.__all__, ['Run', '__version__', 'generate', 'load', 'run'])
    self.assertIs(recjax.run, experiment.train)
    self.assertIs(recjax.Run, experiment.Run)
    self.assertIs(recjax.load, recommend.load)
    self.assertIs(recjax.generate, decoding.generate)
    space = {}
    exec('from recjax import *', space)
    self.assertContainsSubset(recjax.__all__, space)
    with self.assertRaisesRegex(AttributeError, "module 'recjax' has no attribute 'nosuch'"):
      recjax.nosuch  # noqa: B018
    with self.assertRaises(ImportError):
      from recjax import nosuch  # noqa: F401

  def test_importing_it_imports_nothing_else(self):
    code = ('import sys; before = set(sys.modules); import recjax; '
            'assert set(recjax.__all__) < set(dir(recjax)); '
            'print(*sorted({m.partition(".")[0] for m in set(sys.modules) - before} '
            '- sys.stdlib_module_names))')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    self.assertEqual((done.stdout.split(), done.stderr), (['recjax'], ''))

  def test_asking_for_a_name_touches_no_device(self):
    code = ('import recjax; [getattr(recjax, name) for name in recjax.__all__]\n'
            'from jax._src import xla_bridge\nassert not xla_bridge.backends_are_initialized()\n')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    self.assertEqual(done.returncode, 0, done.stderr)


class VersionTest(absltest.TestCase):

  def test_setup_and_the_command_say_the_same(self):
    self.assertRegex(recjax.__version__, r'^\d+\.\d+\.\d+$')
    self.assertEqual(setup_arguments()['version'], recjax.__version__)
    said = io.StringIO()
    with mock.patch.object(sys, 'argv', ['recjax', '--version']), \
        contextlib.redirect_stdout(said), self.assertRaises(SystemExit) as caught:
      cli.main()
    self.assertEqual(caught.exception.code, 0)
    self.assertEqual(said.getvalue(), f'recjax {recjax.__version__}\n')

  def test_its_changes_are_told(self):
    heads = re.findall(r'^## (\S+)', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)
    self.assertEqual(heads[0], recjax.__version__)


class ConfigTest(parameterized.TestCase):
  """Which file a name means."""

  def setUp(self):
    super().setUp()
    self.here = pathlib.Path(self.create_tempdir().full_path)
    self.enter_context(contextlib.chdir(self.here))

  def write(self, path, seed):
    file = self.here / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('from ml_collections import ConfigDict\n'
                    "def get_config(arg=''):\n"
                    f"  return ConfigDict(dict(method='sequential', seed={seed}, data=arg))\n")

  def test_every_config_is_found_from_an_empty_folder(self):
    for name in NAMES:
      for text in (name, f'configs/{name}.py', f'./configs/{name}.py', f'configs/{name}.py:paper'):
        found = experiment.find_config(text.partition(':')[0])
        self.assertEqual(found.read_bytes(), (ROOT / 'configs' / f'{name}.py').read_bytes())
      self.assertEqual(experiment.read_config(f'{name}:paper').preset, 'paper')

  def test_a_file_comes_first_then_configs_here_then_what_came_with_recjax(self):
    name = NAMES[0]
    self.assertNotIn(self.here, experiment.find_config(name).parents)
    self.write(f'configs/{name}.py', 1)
    self.assertEqual(experiment.read_config(name).seed, 1)
    self.assertEqual(experiment.read_config(f'configs/{name}.py:x').data, 'x')
    self.write(name, 2)
    self.assertEqual(experiment.find_config(name), pathlib.Path(name))
    (self.here / name).unlink()
    (self.here / name).mkdir()  # a folder of that name, as of a run, is no config
    self.assertEqual(experiment.read_config(name).seed, 1)
    self.write('configs/mine.py', 3)
    self.assertEqual(experiment.read_config('mine:x').seed, 3)

  @parameterized.parameters('nosuch', 'configs/nosuch.py', 'elsewhere/betag_scientific.py',
                            'betag_scientific.py', 'configs/configs/betag_scientific.py',
                            '../configs/nosuch.py', '')
  def test_an_unknown_name_lists_the_known_ones(self, name):
    self.write('configs/mine.py', 3)
    with self.assertRaises(ConfigError) as caught:
      experiment.read_config(name)
    self.assertStartsWith(str(caught.exception), f'{name} is not a config file; ')
    self.assertEndsWith(str(caught.exception), ', '.join(sorted([*NAMES, 'mine'])))


class RunTest(parameterized.TestCase):
  """`recjax run` and `python -m recjax.main` up to the run itself."""

  def setUp(self):
    super().setUp()
    self.enter_context(contextlib.chdir(self.create_tempdir().full_path))
    self.enter_context(flagsaver.flagsaver())
    self.begun = self.enter_context(mock.patch.object(experiment, 'run'))
    self.enter_context(mock.patch.object(
        experiment, 'facts', lambda command, given: {'command': command, 'given': given}))
    self.enter_context(mock.patch('recjax.training.fault_tolerance.listen'))

  def started(self, call, *argv):
    """What a command prints, and the arguments of the run that it starts."""
    said = io.StringIO()
    with mock.patch.object(sys, 'argv', list(argv)), contextlib.redirect_stdout(said), \
        contextlib.redirect_stderr(said), self.assertRaises(SystemExit) as caught:
      call()
    given = self.begun.call_args
    return caught.exception.code, said.getvalue(), given and given.args

  def main(self):
    main.app.run(main.main, flags_parser=main.parse)

  def test_run_is_main_with_a_shorter_name(self):
    code, said, (cfg, workdir, about, guarded, part) = self.started(
        cli.main, 'recjax', 'run', 'betag_scientific:paper,data=d', '--config.seed=7',
        '--config.optim.lr', '1e-3', '--on_nan=skip', '--watchdog=9', '--part=1/3')
    self.assertIn(code, (None, 0))
    self.assertRegex(said, r'\Abetag_scientific is not in this folder; the config that came with '
                     r'recjax runs: \S+configs/betag_scientific.py\n\Z')
    self.assertEqual((cfg.seed, cfg.optim.lr, cfg.preset, cfg.data), (7, 1e-3, 'paper', 'd'))
    self.assertEqual((workdir, guarded.on_nan, guarded.watchdog, part),
                     ('checkpoints/betag_scientific', 'skip', 9.0, (0, 3)))
    self.assertEqual(about, {
        'command': 'recjax run betag_scientific:paper,data=d --config.seed=7 --config.optim.lr '
                   '1e-3 --on_nan=skip --watchdog=9 --part=1/3',
        'given': {'seed': 7, 'optim.lr': 1e-3}})
    self.assertTrue(cfg.is_locked)

  def test_main_takes_what_came_with_recjax_and_says_so_in_one_line(self):
    code, said, (cfg, workdir, about, *_) = self.started(
        self.main, 'main', '--config=configs/tiger_beauty.py', '--workdir=w')
    self.assertIn(code, (None, 0))
    self.assertEqual(said, 'configs/tiger_beauty.py is not in this folder; the config that came '
                     f'with recjax runs: {experiment.CONFIGS}/tiger_beauty.py\n')
    self.assertEqual((cfg.method, workdir), ('etegrec', 'w'))
    self.assertEqual(about['command'],
                     'python -m recjax.main --config=configs/tiger_beauty.py --workdir=w')

  def test_ones_own_copy_is_not_remarked_upon(self):
    shutil.copytree(ROOT / 'configs', 'configs')
    for name in ('tiger_beauty', 'configs/tiger_beauty.py', experiment.CONFIGS / 'tiger_beauty.py'):
      _, said, (_, workdir, *_) = self.started(cli.main, 'recjax', 'run', str(name))
      self.assertEqual((said, workdir), ('', 'checkpoints/tiger_beauty'))

  @parameterized.parameters(
      (('nosuch',), 'error: nosuch is not a config file; .*tiger_beauty\n'),
      (('tiger_beauty', '--config.nosuch=1'), 'error: --config.nosuch=1: there is no such setting'),
      (('tiger_beauty', '--nosuch=1'), 'unrecognized arguments: --nosuch=1'),
      (('tiger_beauty', '--watchdog=x'), 'error: flag --watchdog=x'),
      (('tiger_beauty', '--processes=2'), 'error: --processes is of --multihost'),
      (('tiger_beauty', 'betag_ml1m'), 'unrecognized arguments: betag_ml1m'), ((), 'CONFIG'))
  def test_a_wrong_command_is_told_in_a_sentence(self, words, said):
    code, text, run = self.started(cli.main, 'recjax', 'run', *words)
    self.assertEqual((code, run), (2, None))
    self.assertRegex(text, said)
    self.assertNotIn('Traceback', text)

  def test_it_takes_every_flag_of_main(self):
    ours = {flag.name for flag in main.flags.FLAGS.get_flags_for_module('recjax.main')}
    self.assertEqual({holder.name for holder in main.RUN_FLAGS}, ours - {'config'})


class ProgramsTest(parameterized.TestCase):

  @parameterized.parameters(
      (('recommend', 'nosuch', '--user=U1'), None, '{cache}/xla'),
      (('recommend', 'nosuch', '--user=U1'), '', ''),
      (('recommend', 'nosuch', '--user=U1'), 'elsewhere', 'elsewhere'),
      (('compare', 'nosuch', 'nor_this'), None, None))
  def test_verbs_that_run_models_keep_programs(self, words, given, want):
    cache = self.create_tempdir().full_path
    with mock.patch.dict(os.environ, {'RECJAX_CACHE': cache}), \
        mock.patch.object(sys, 'argv', ['recjax', *words]), \
        contextlib.redirect_stderr(io.StringIO()):
      os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)
      if given is not None:
        os.environ['JAX_COMPILATION_CACHE_DIR'] = given
      with self.assertRaises(SystemExit):
        cli.main()
      self.assertEqual(os.environ.get('JAX_COMPILATION_CACHE_DIR'),
                       want and want.format(cache=cache))


class RevisionTest(absltest.TestCase):

  def test_a_wheel_in_ones_own_repository_does_not_take_its_revision(self):
    here = pathlib.Path(self.create_tempdir().full_path)
    git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b.org']
    for words in (['init', '-q'], ['commit', '-q', '--allow-empty', '-m', 'x']):
      subprocess.run([*git, *words], cwd=here, check=True)
    with mock.patch.object(experiment, 'ROOT', here):
      self.assertRegex(experiment.facts('', {})['revision'], r'^[0-9a-f]{7,}$')
    (here / 'venv').mkdir()
    with mock.patch.object(experiment, 'ROOT', here / 'venv'):
      self.assertEqual(experiment.facts('', {})['revision'], 'unknown')


class WheelTest(absltest.TestCase):

  def wheel(self):
    """The package unpacked from a wheel that is built of the checkout's files."""
    if importlib.util.find_spec('setuptools') is None:
      self.skipTest('setuptools is not installed')
    source = pathlib.Path(self.create_tempdir().full_path)
    for name in ('recjax', 'configs'):
      shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
      shutil.copy(ROOT / name, source)
    code = 'from setuptools import build_meta; print(build_meta.build_wheel("made"))'
    done = subprocess.run([sys.executable, '-c', code], cwd=source, capture_output=True, text=True)
    self.assertEqual(done.returncode, 0, done.stderr)
    made, = (source / 'made').glob('*.whl')
    self.assertIn(f'recjax-{recjax.__version__}-', made.name)
    with zipfile.ZipFile(made) as file:
      file.extractall(source / 'unpacked')
    return source / 'unpacked'

  @long
  def test_it_holds_everything_and_runs_from_any_folder(self):
    unpacked, here = self.wheel(), self.create_tempdir().full_path
    for path in (ROOT / 'recjax').rglob('*'):
      if path.is_file() and '__pycache__' not in path.parts:
        where = path.relative_to(ROOT)
        self.assertTrue((unpacked / where).is_file(), f'{where} is not in the wheel')
    self.assertEqual({p.name: p.read_bytes() for p in (unpacked / 'recjax/configs').glob('*')},
                     {p.name: p.read_bytes() for p in (ROOT / 'configs').glob('*.py')})
    self.assertFalse((unpacked / 'configs').exists())
    code = ('import json, recjax; from recjax import experiment; '
            'cfg = experiment.read_config("configs/betag_scientific.py:paper"); '
            'print(json.dumps([recjax.__file__, str(experiment.find_config("tiger_beauty")), '
            'recjax.run.__module__, cfg.preset]))')
    env = {**os.environ, 'PYTHONPATH': str(unpacked)}
    done = subprocess.run([sys.executable, '-c', code], cwd=here, env=env, capture_output=True,
                          text=True)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertEqual(json.loads(done.stdout), [
        f'{unpacked}/recjax/__init__.py', f'{unpacked}/recjax/configs/tiger_beauty.py',
        'recjax.experiment', 'paper'])


class ToolsTest(absltest.TestCase):

  def test_ruff_has_the_rules_of_the_house(self):
    if importlib.util.find_spec('ruff') is None:
      self.skipTest('ruff is not installed')
    odd = f'import sys\nimport os\nx = "{"x" * 99}"\nif not x in os.environ:\n  pass\n'
    done = subprocess.run(
        [sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format=concise',
         '--stdin-filename=recjax/odd.py', '-'],
        cwd=ROOT, input=odd, capture_output=True, text=True)
    found = set(re.findall(r' ([A-Z]+\d+) ', done.stdout))
    self.assertEqual(found, {'D100', 'I001', 'E501', 'E713', 'F401'}, done.stdout)

  def test_ruff_format_changes_nothing(self):
    if importlib.util.find_spec('ruff') is None:
      self.skipTest('ruff is not installed')
    done = subprocess.run([sys.executable, '-m', 'ruff', 'format', '--check', '--no-cache', '.',
                           'setup.py'], cwd=ROOT, capture_output=True, text=True)
    self.assertEqual(done.returncode, 0, done.stdout)


if __name__ == '__main__':
  absltest.main()
