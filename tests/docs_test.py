"""The pages: links lead somewhere, commands are ones that recjax takes, Python blocks run."""
import atexit
import contextlib
import functools
import importlib.util
import io
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from absl.testing import absltest, parameterized

from recjax import cli, errors, experiment, settings
from recjax.data.dataset import Catalog
from recjax.models import llm, llm_decoder
from recjax.text import tokenizer as tokenizer_lib
from recjax.training import workdir as workdir_lib
from tests.long import long
from tests.methods import reclm_test

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md'),
                *(ROOT / name / 'README.md' for name in ('launch', 'benchmarks'))])
ELLIPSES = ('…', '...')


def blocks(page):
  """Fenced blocks. -> [(language, text)]"""
  return re.findall(r'^```(\w*)\n(.*?)^```', page.read_text(), re.S | re.M)


def anchors(page):
  """Anchors of the headings, as GitHub makes them."""
  heads = re.findall(r'^#+ (.*)$', page.read_text(), re.M)
  return {re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads}


def commands(text):
  """Command lines of a block, their comments left out. -> [[word]]"""
  for line in text.replace('\\\n', ' ').splitlines():
    for part in re.split(r'\s&&\s', line):
      words = shlex.split(part, comments=True)
      if words and not any(e in word for word in words for e in ELLIPSES):
        yield words


class PagesTest(parameterized.TestCase):

  @parameterized.parameters(*((p.relative_to(ROOT).as_posix(),) for p in PAGES))
  def test_links_lead_somewhere(self, name):
    page = ROOT / name
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.S)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
      if re.match(r'https?:|mailto:', target):
        continue
      path, _, anchor = target.partition('#')
      found = (page.parent / path).resolve() if path else page
      self.assertTrue(found.exists(), f'{name}: {target}')
      if anchor:
        self.assertIn(anchor, anchors(found), f'{name}: {target}')

  @parameterized.parameters(*((p.relative_to(ROOT).as_posix(),) for p in PAGES))
  def test_commands_are_ones_that_recjax_takes(self, name):
    for language, text in blocks(ROOT / name):
      if language == 'bash':
        for words in commands(text):
          self.check(words, name)

  def test_examples_of_help_are_ones_too(self):
    for verb, module in cli.VERBS.items():
      self.assertGreaterEqual(len(module.EXAMPLES), 2, verb)
      for example in module.EXAMPLES:
        self.check(['recjax', verb, *shlex.split(example)], 'recjax --help')

  def check(self, words, name):
    """Fails for a command whose file, flag, setting or config argument does not exist."""
    said = f'{name}: {" ".join(words)}'
    while '=' in words[0]:  # a variable in front
      words = words[1:]
    if words[:3] == ['python', '-m', 'recjax.main']:
      given = dict(w.removeprefix('--').partition('=')[::2] for w in words[3:])
      cfg = experiment.read_config(given.pop('config'))
      experiment.changed(cfg, [f'{k.removeprefix("config.")}={v}' for k, v in given.items()
                               if k.startswith('config.')])
      known = {'workdir', 'multihost', 'coordinator', 'processes', 'process_id', 'on_nan',
               'watchdog', 'part', 'memory', 'from'}
      self.assertContainsSubset({k for k in given if not k.startswith('config.')}, known, said)
    elif words[0] == 'recjax' and len(words) > 1:
      try:
        with contextlib.redirect_stderr(io.StringIO()) as wrong, \
            contextlib.redirect_stdout(io.StringIO()):
          args, rest = cli.parser().parse_known_args(words[1:])
      except SystemExit as end:
        return self.assertFalse(end.code, f'{said}: {wrong.getvalue()}')  # 0: of --version
      self.assertFalse([w for w in rest if not w.startswith('--config.')], said)
      if getattr(args, 'config', None):
        words, _ = settings.split_command_line(rest)
        experiment.changed(experiment.read_config(args.config), words)
    elif words[:2] == ['python', '-m'] and words[2].startswith('benchmarks.'):
      self.assertTrue((ROOT / f'{words[2].replace(".", "/")}.py').exists(), said)
    elif words[0].startswith('launch/'):
      self.assertTrue((ROOT / words[0]).exists(), said)


def of_site(test, name):
  """A Python file of docs/, which the site is built with; skips where mkdocs is missing."""
  if importlib.util.find_spec('mkdocs') is None or importlib.util.find_spec('griffe') is None:
    test.skipTest("mkdocs and mkdocstrings are not installed: pip install -e '.[docs]'")
  spec = importlib.util.spec_from_file_location(name, ROOT / 'docs' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class SiteTest(absltest.TestCase):
  """What the site adds to the pages. Its links and headings are checked where CI builds it."""

  def test_every_page_is_in_the_navigation(self):
    def leaves(nav):
      for entry in nav:
        for value in entry.values():
          yield from [value] if isinstance(value, str) else leaves(value)
    found = list(leaves(yaml.safe_load((ROOT / 'mkdocs.yml').read_text())['nav']))
    self.assertLen(set(found), len(found))
    self.assertContainsSubset({p.name for p in (ROOT / 'docs').glob('*.md')}, found)
    for name in found:
      self.assertTrue((ROOT / 'docs' / name).exists() or (ROOT / name).exists(), name)

  def test_every_module_is_in_the_reference_once(self):
    rooms = of_site(self, 'site_hooks').rooms()
    found = [module for modules in rooms.values() for module in modules]
    modules = ['.'.join(p.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
               for p in (ROOT / 'recjax').rglob('*.py') if p.stat().st_size]
    self.assertCountEqual(found, [m for m in modules if m != 'recjax.__main__'])
    self.assertIn('recjax.decoding.generate', rooms['decoding'])
    self.assertIn('recjax.methods.betag', rooms['methods/betag'])
    self.assertEqual(rooms['recjax'][0], 'recjax')

  def test_all_verbs_and_settings_are_in_the_reference(self):
    hooks = of_site(self, 'site_hooks')
    commands, tables = hooks.commands_page(), hooks.settings_page()
    for verb in cli.VERBS:
      self.assertIn(f'usage: recjax {verb} ', commands)
    for name, presets in hooks.CONFIGS.items():
      for preset in presets:
        cfg = experiment.read_config(name if preset == 'sample' else f'{name}:{preset}')
        for setting, value in settings.flat(cfg):
          self.assertRegex(tables, rf'\n\| `{re.escape(setting)}` \|.*`{re.escape(str(value))}')

  def test_links_of_the_repository_become_links_of_the_site(self):
    hooks = of_site(self, 'site_hooks')
    known = {'data.md', 'index.md', 'launch/README.md', 'CONTRIBUTING.md', 'a.ipynb'}
    files = types.SimpleNamespace(get_file_from_path=lambda p: p if p in known else None)
    def read(source, text):
      page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri=source))
      return hooks.on_page_markdown(text, page, None, files)
    for source, text, want in (
        ('data.md', '[a](../launch/README.md#x) [b](data.md)',
         '[a](launch/README.md#x) [b](data.md)'),
        ('launch/README.md', '[a](../docs/data.md), [b](../CONTRIBUTING.md)',
         '[a](../data.md), [b](../CONTRIBUTING.md)'),
        ('CONTRIBUTING.md', '[a](README.md) [b](docs/a.ipynb)', '[a](index.md) [b](a.ipynb)'),
        ('data.md', '[a [b]](../setup.py) [c](#c) [d](https://d.org/x) [e](../nosuch.py)',
         'a [b] [c](#c) [d](https://d.org/x) [e](../nosuch.py)'),
        ('data.md', '```\n[a](../launch/README.md)\n```\n', '```\n[a](../launch/README.md)\n```\n'),
        ('api/data.md', '[a](../x.md)', '[a](../x.md)')):
      self.assertEqual(read(source, text), want)

  def test_docstrings_are_no_markdown(self):
    plain = of_site(self, 'site_docstrings').plain
    self.assertEqual(plain('ids [B][k], <x>, *a_b*'), r'ids \[B\]\[k\], &lt;x>, \*a_b\*')
    self.assertEqual(plain('`a[0]_b` and ``c*``'), '`a[0]_b` and ``c*``')
    self.assertEqual(plain('So:\n\n    x = a[b]\n'), 'So:\n\n    x = a[b]\n')
    self.assertEqual(plain('a_b: of\n    c[d]\n\n    _x_'), 'a_b: of\n    c\\[d\\]\n\n    _x_')
    self.assertEqual(plain('_x_ __init__'), r'\_x\_ \_\_init\_\_')
    for space in ('', '  '):
      items = f'{space}- one\n{space}  more\n{space}- two'
      self.assertEqual(plain(f'Of:\n{items}'), f'Of:\n\n{items}')


class PythonTest(absltest.TestCase):
  """Every Python block runs with what its page takes for granted."""

  def test_every_block_is_run_here(self):
    found = [(p.name, text) for p in PAGES for language, text in blocks(p) if language == 'python']
    self.assertEqual([page for page, _ in found], [
        'README.md', 'README.md', 'adding_a_method.md', 'adding_a_method.md', 'decoding.md',
        'decoding.md', 'how_do_i.md', 'reclm.md', 'serving.md'])

  def block(self, name, holding):
    page = ROOT / name
    return next(t for lang, t in blocks(page) if lang == 'python' and holding in t)

  def test_recommendations_out_of_a_run(self):
    run = trained()
    for page in ('README.md', 'docs/how_do_i.md'):
      text, space = self.block(page, 'recommend.load'), {}
      exec(re.sub(r'checkpoints/\w+', str(run.workdir), text), space)
      self.assertEqual(np.shape(space['items']), (1, 5))
      self.assertContainsSubset(space['items'][0], set(space['shop'].catalog.ids))

  def test_decoding_of_any_model(self):
    titles = [f'the {c} {t}' for c in ('red', 'blue') for t in ('tent', 'stove', 'rope', 'saw')]
    tokenizer = tokenizer_lib.train_bpe(titles * 20, 300)
    shape = llm.Config(vocab=tokenizer.vocab_size, width=16, layers=1, heads=2, kv_heads=1,
                       head_dim=8, ffn=32)
    model = llm.LM(shape)
    params = {'params': llm.init(shape, jax.random.key(0))}
    space = dict(
      tokenizer=tokenizer,
      titles=titles,
      decoder=llm_decoder.decoder(model),
      params=params,
      prompts=[[5, 6, 7], [8]],
    )
    for page in ('README.md', 'docs/decoding.md'):
      exec(self.block(page, 'trie.build'), space)
      found = space['found'].items(space['catalog'])
      self.assertEqual([sorted(i for i, _ in one) for one in found], [list(range(1, 9))] * 2)
    table = jnp.asarray(np.random.default_rng(0).normal(size=(tokenizer.vocab_size,) * 2))
    space['model'] = types.SimpleNamespace(apply=lambda p, tokens: p['params'][tokens])
    exec(self.block('docs/decoding.md', 'uncached'), space)
    space['params'] = table
    exec(self.block('docs/decoding.md', 'trie.build'), space)
    self.assertLen(space['found'].items(space['catalog'])[0], 8)

  @long
  def test_a_method_of_ones_own(self):
    room = pathlib.Path(self.create_tempdir().full_path)
    (room / 'follow_shop.py').write_text(self.block('docs/adding_a_method.md', 'get_config'))
    module = types.ModuleType('recjax.methods.follow')
    exec(self.block('docs/adding_a_method.md', 'def recommender'), module.__dict__)
    sys.modules[module.__name__] = module
    self.addCleanup(sys.modules.pop, module.__name__)
    config = f'{room}/follow_shop.py:data=sample:1:300'
    with contextlib.redirect_stdout(sys.stderr):
      run = experiment.train(config, room / 'run')
      marks = [p.stat().st_mtime_ns for p in (room / 'run' / 'stages').glob('*/DONE.json')]
      run = experiment.train(config, room / 'run')
    self.assertEqual(
        [p.stat().st_mtime_ns for p in (room / 'run' / 'stages').glob('*/DONE.json')], marks)
    rows = run.results['rows']
    self.assertGreater(rows['follow']['HR@10']['value'], 2 * rows['random']['HR@10']['value'])
    history = list(run.data.catalog.ids[:3])
    items, _ = run.recommend([history, history[:1]], k=4)
    self.assertNoCommonElements(items[0], history)
    self.assertLen(set(items[0]), 4)
    self.assertIn('Times after the last item', (room / 'run' / 'report.html').read_text())
    cfg = experiment.read_config(config)
    self.assertContainsSubset({'pairs'}, module.cost(cfg, run.data))
    self.assertIsNone(module.validated(cfg))
    with self.assertRaisesRegex(errors.ConfigError, 'papre'):
      experiment.read_config(f'{room}/follow_shop.py:papre')

  @long
  def test_an_untrained_chat_model(self):
    room = pathlib.Path(self.create_tempdir().full_path)
    data = reclm_test.write_ring(room / 'ring', users=12)
    config = reclm_test.config(str(data))
    config.decode.update(new_tokens=48, count=2)
    mesh = reclm_test.one_device()
    text = self.block('docs/reclm.md', 'conversation.untrained')
    with workdir_lib.open_work(room / 'run', {'config': {}, 'facts': {}}, mesh) as work, \
        jax.set_mesh(mesh):
      folder = work.stage('llm', tiny, config, data)
      space = dict(config=config, mesh=mesh, catalog=Catalog(
          tuple('abc'), {'title': ['One kettle', 'Two lamps', 'A rope']}))
      exec(text.replace("'chat-model-folder'", repr(str(folder))), space)
    self.assertContainsSubset(set(space['reply'].items), {1, 2, 3})


def tiny(work, config, data):
  """A chat model's folder."""
  del data
  from recjax.training import tiny_llm
  return tiny_llm.train_tiny(work, config.tiny, 0, [{'role': 'system', 'content': 'x'}],
                             reclm_test.TITLES * 4)


class NotebookTest(parameterized.TestCase):

  @parameterized.parameters('first_hour', 'own_data')
  @long
  def test_every_cell_runs(self, name):
    notebook = json.loads((ROOT / 'docs' / f'{name}.ipynb').read_text())
    room, space = self.create_tempdir().full_path, {}
    cells = [c for c in notebook['cells'] if c['cell_type'] == 'code']
    self.assertIn('execute_result', str(cells[-1]['outputs']), 'run the notebook first')
    config = f"'{ROOT}/configs/"  # the only path of the repository that a cell may name
    with contextlib.chdir(room), mock.patch.dict('os.environ', MPLBACKEND='agg'):
      for cell in cells:
        text = ''.join(cell['source']).replace("'configs/", config)
        if text.startswith('!recjax '):
          subprocess.run([sys.executable, '-m', 'recjax', *shlex.split(text)[1:]], check=True,
                         stdout=subprocess.DEVNULL)
          continue
        with contextlib.redirect_stdout(io.StringIO()):
          exec(text, space)
    self.assertIn('sasrec', space['run'].table())
    self.assertIn('<table', space['run']._repr_html_())
    self.assertNotIn(str(pathlib.Path.home()), json.dumps(notebook))


@functools.cache
def trained():
  """A SASRec of the built-in shop, for all tests that only read it. -> experiment.Run"""
  room = tempfile.TemporaryDirectory()
  atexit.register(room.cleanup)
  with contextlib.redirect_stdout(sys.stderr):
    return experiment.train('configs/sequential_beauty.py:data=sample:1:80', f'{room.name}/run', {
        'train.epochs': 1, 'model.width': 8, 'eval.classical': False})


class ExperimentTest(absltest.TestCase):

  def test_a_run_from_python_is_a_run(self):
    run = trained()
    self.assertContainsSubset({'sasrec', 'popularity'}, run.results['rows'])
    items, scores = run.recommend([list(run.data.catalog.ids[:2])], k=4)
    self.assertEqual((len(items[0]), np.shape(scores)), (4, (1, 4)))
    saved = json.loads((run.workdir / 'config.json').read_text())
    self.assertIn('--config.train.epochs=1', saved['facts']['command'])
    self.assertEqual(experiment.open_run(run.workdir).results, run.results)
    with self.assertRaisesRegex(errors.WorkdirError, 'no run has ended there'):
      experiment.open_run(run.workdir / 'stages')

  def test_settings_keep_their_types(self):
    cfg = experiment.read_config('configs/bigrec_games.py')
    experiment.changed(cfg, ["lora.targets=('q',)", 'optim.lr=3e-4', 'train.batch=2',
                             'samples.window=every'])
    self.assertEqual((tuple(cfg.lora.targets), cfg.optim.lr, cfg.train.batch, cfg.samples.window),
                     (('q',), 3e-4, 2, 'every'))
    for word, said in (('nosuch=1', 'nosuch is not among'), ('train.batch=x', 'invalid literal'),
                       ("lora.targets=('q", 'unterminated'), ('train=1', 'holds settings')):
      with self.assertRaisesRegex(errors.ConfigError,
                                  f'--config.{word.partition("=")[0]}.*{said}'):
        experiment.changed(cfg, [word])


if __name__ == '__main__':
  absltest.main()
