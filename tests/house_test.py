"""The house's own rules: who imports whom, where heavy packages stand, which keys are read."""
import ast
import functools
import importlib.util
import pathlib
import re
import subprocess
import sys

from absl.testing import absltest
from ml_collections import ConfigDict

from recjax import errors
from tests.long import long

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'recjax'
LAYERS = (
    ('__main__',), ('cli',), ('main', 'guide'),
    ('serving', 'experiment', 'batch_recommend', 'answer_times'),
    ('recommend', 'chat', 'sweep', 'contamination'), ('methods',),
    ('policy',),
    ('training', 'decoding', 'evaluation', 'report'), ('models', 'text', 'data'),
    ('retrieval',),
    ('setting_meanings',),
    ('distributed', 'settings', 'base_config', 'run_files', 'protocols', 'progress', 'gguf_file'),
    ('file_io', 'split_rule'),
    ('errors',))
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
ONE_FILE = {'orbax': 'training/checkpoint.py', 'safetensors': 'models/huggingface.py',
            'transformers': 'text/tokenizer.py', 'duckdb': 'data/duckdb_database.py',
            'python_calamine': 'data/workbooks.py',
            'tensorflow_datasets': 'data/array_record.py', 'grain': 'data/array_record.py',
            'apache_beam': 'data/prepare/beam_engine.py', 'gguf': 'gguf_file.py'}
INSIDE_FUNCTIONS = {'orbax', 'transformers', 'tensorflow_datasets', 'grain', 'duckdb',
                    'matplotlib', 'pyarrow', 'torch', 'apache_beam', 'gguf',
                    'python_calamine', 'charset_normalizer'}
AT_IMPORT = {'recjax', 'tests'}


@functools.cache
def parsed(path):
  """The syntax tree of a file."""
  return ast.parse(path.read_text())


def imports(path):
  """Yields (module, whether at top level) for every import in a file."""
  tree = parsed(path)
  top = set(map(id, tree.body))
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for name in node.names:
        yield name.name, id(node) in top
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield node.module, id(node) in top
      for name in node.names:
        yield f'{node.module}.{name.name}', id(node) in top


def room_of(name):
  parts = name.split('.')
  return parts[1] if len(parts) > 1 and parts[0] == 'recjax' else None


class HouseTest(absltest.TestCase):

  def files(self):
    return [p for p in PACKAGE.rglob('*.py') if p.name != '__init__.py' or p.stat().st_size]

  def test_public_parameters_are_named_in_docstrings_and_annotated(self):
    unnamed, bare, count = [], [], 0
    for path in self.files():
      tree = parsed(path)
      for node in [*tree.body, *(n for c in tree.body if isinstance(c, ast.ClassDef)
                                 and not c.name.startswith('_') for n in c.body)]:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith('_'):
          continue
        text = ast.get_docstring(node)  # none where a protocol or base class has it
        for given in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
          if given.arg in ('self', 'cls'):
            continue
          where, count = f'{path.name} {node.name}: {given.arg}', count + 1
          if text is not None and not re.search(rf'(?<!\w){given.arg.lstrip("_")}(?!\w)', text):
            unnamed.append(where)
          if given.annotation is None:
            bare.append(where)
    self.assertLess(len(unnamed), 0.03 * count, unnamed)
    self.assertLess(len(bare), 0.03 * count, bare)

  def test_imports_point_downwards_and_never_to_a_room_of_the_same_layer(self):
    for path in self.files():
      parts = path.relative_to(PACKAGE).with_suffix('').parts
      room = parts[0]
      if room == '__init__':
        continue
      for name, _ in imports(path):
        other = room_of(name)
        if other not in LEVEL or other == room:
          continue
        self.assertGreater(LEVEL[other], LEVEL[room], f'{path} imports {name}')

  def test_methods_do_not_import_methods(self):
    for path in (PACKAGE / 'methods').rglob('*.py'):
      own = path.relative_to(PACKAGE / 'methods').with_suffix('').parts[0]
      for name, _ in imports(path):
        match = re.match(r'recjax\.methods\.(\w+)', name)
        self.assertIn(match and match[1], (None, own), f'{path} imports {name}')

  def test_packages_that_change_stand_in_one_file(self):
    for path in self.files():
      where = path.relative_to(PACKAGE).as_posix()
      for name, top in imports(path):
        package = name.split('.')[0]
        self.assertEqual(ONE_FILE.get(package, where), where, f'{where} imports {name}')
        if top:
          self.assertNotIn(package, INSIDE_FUNCTIONS, f'{where} imports {name} at its top')

  @long
  def test_importing_the_package_touches_no_device(self):
    modules = ['.'.join(('recjax', *p.relative_to(PACKAGE).with_suffix('').parts))
               for p in self.files() if p.stem not in ('__main__', '__init__')]
    code = (f'import importlib\nfor m in {modules!r}: importlib.import_module(m)\n'
            'from jax._src import xla_bridge\nassert not xla_bridge.backends_are_initialized()\n')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    self.assertEqual(done.returncode, 0, done.stderr)

  def test_every_config_key_is_read_somewhere(self):
    source = '\n'.join(p.read_text() for p in self.files()
                       if p.stem not in ('config', 'base_config'))  # which set them
    read = {*re.findall(r'[.](\w+)', source), *re.findall(r"""['"](?=(\w+)['"])""", source)}
    self.assertNotIn('beems', read)
    for path in sorted((ROOT / 'configs').glob('*.py')):
      for key in keys(load_config(path).get_config()):
        self.assertIn(key, read, f'{path.name}: no code reads {key}')

  def test_no_code_has_a_default_for_a_config_key(self):
    known = {part for name in config_keys() for part in name.split('.')}
    for path in self.files():
      for node in ast.walk(parsed(path)):
        found = fallback(node)
        self.assertFalse(found in known, f'{path} line {getattr(node, "lineno", 0)}: a default for '
                         f'the setting {found}; configs/ name every setting')

  def test_errors_name_settings_that_there_are(self):
    keys = config_keys()
    groups = {name[:at] for name in keys for at, letter in enumerate(name) if letter == '.'}
    tops = {name.partition('.')[0] for name in keys}
    said = 0
    for path in self.files():
      tree = parsed(path)
      raised = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Raise)
                for part in ast.walk(node)}
      for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
          continue
        for flag, name in NAMED.findall(node.value):
          top, _, end = name.partition('.')
          if flag and top != 'a' or id(node) in raised and top in tops and end not in FILES:
            said += 1
            self.assertTrue(name in keys | groups, f'{path} line {node.lineno}: {node.value}')
    self.assertGreater(said, 50)
    self.assertContainsSubset({name for name, _ in errors.SAVERS}, keys)

  def test_the_rules_for_errors_and_defaults_see_what_they_should(self):
    self.assertEqual([m[1] for m in NAMED.findall('make tokenizer.code_width and --config.a.b=1')],
                     ['tokenizer.code_width', 'a.b'])
    for text, name in (("getattr(cfg, 'muon', 0)", 'muon'), ("cfg.train.get('row')", 'row'),
                       ("'row' in cfg.train", 'row'), ("'row' not in config", 'row'),
                       ("self.cfg.pop('row', 1)", 'row')):
      self.assertEqual(fallback(ast.parse(text, mode='eval').body), name)
    for text in ("getattr(x, 'row', 0)", "params.get('row')", "'row' in rows", 'cfg.row'):
      self.assertIsNone(fallback(ast.parse(text, mode='eval').body))

  def test_configs_take_the_same_arguments_and_refuse_others(self):
    for path in sorted((ROOT / 'configs').glob('*.py')):
      config = load_config(path)
      self.assertEqual(config.get_config('data=x').data, 'x')
      paper = config.get_config('paper,data=y')
      self.assertEqual((paper.preset, paper.data), ('paper', 'y'))
      with self.assertRaisesRegex(ValueError, 'papre'):
        config.get_config('papre')

  def test_sources_are_ones_that_a_reader_can_open(self):
    for path in [*self.files(), *(ROOT / 'tests').rglob('*.py'), *(ROOT / 'docs').glob('*.md')]:
      if path == ROOT / 'tests' / 'house_test.py':
        continue
      for number, line in enumerate(path.read_text().split('\n'), 1):
        found = UNREADABLE.search(line)
        self.assertIsNone(found, f'{path} line {number} cites what no reader has: {line.strip()}')
    for text in ('(reclm.md 3.3)', '(specification: x)', '(design 5)', 'see jax_stack 4', 'T-G7'):
      self.assertRegex(text, UNREADABLE)

  def test_files_and_functions_keep_to_the_budget(self):
    for path in self.files():
      where = path.relative_to(PACKAGE).as_posix()
      text = path.read_text()
      self.assertLessEqual(text.count('\n'), 800, where)
      for node in ast.walk(parsed(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
          self.assertLessEqual(node.end_lineno - node.lineno + 1, 60, f'{where}: {node.name}')

  def test_ruff_finds_nothing(self):
    if importlib.util.find_spec('ruff') is None:
      self.skipTest('ruff is not installed')
    done = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', '.'], cwd=ROOT,
                          capture_output=True, text=True)
    self.assertEqual(done.returncode, 0, done.stdout)


# What stands in for a paper, a repository or a page of docs/.
UNREADABLE = re.compile(r'\b[a-z_]+\.md \d|\((specification|design \d)|\b(jax_stack|house_style)\b'
                        r'|\bT-[A-Z]\d')
NAMED = re.compile(r'(?:(--config\.)|(?<![\w./-]))([a-z_]\w*(?:\.[a-z_]\w*)+)(?![\w(/])')
FILES = {'json', 'jsonl', 'npz', 'npy', 'txt', 'parquet', 'pkl'}  # as in data.pkl
OF_CONFIG = {'cfg', 'config', 'how', 'select'}  # what a config is called


@functools.cache
def config_keys():
  """Every setting of every config, by dots."""
  return {name for path in sorted((ROOT / 'configs').glob('*.py')) for preset in ('', 'paper')
          for name in dotted(load_config(path).get_config(preset))}


def dotted(config, above=''):
  for name, value in config.items():
    yield f'{above}{name}'
    if isinstance(value, ConfigDict):
      yield from dotted(value, f'{above}{name}.')


def fallback(node):
  """The key that an expression takes from a config or does without; None for any other."""
  def of_config(node):
    while isinstance(node, ast.Attribute):
      if node.attr == 'cfg':
        return True
      node = node.value
    return isinstance(node, ast.Name) and node.id in OF_CONFIG

  if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
    key, holder = node.left, node.comparators[0]
  elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and (
      node.func.id == 'getattr' and len(node.args) == 3):
    holder, key = node.args[:2]
  elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and (
      node.func.attr in ('get', 'pop', 'setdefault') and node.args):
    holder, key = node.func.value, node.args[0]
  else:
    return None
  return key.value if isinstance(key, ast.Constant) and of_config(holder) else None


def keys(config):
  """All leaf keys of a config."""
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from keys(value)
    else:
      yield name


@functools.cache
def load_config(path):
  """The module of a config file."""
  spec = importlib.util.spec_from_file_location('config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


if __name__ == '__main__':
  absltest.main()
