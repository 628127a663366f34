"""One parser of settings: what texts and values of Python become, and what is refused."""
import contextlib
import io
import pathlib
import re
import sys
from unittest import mock

import numpy as np
from absl.testing import absltest, flagsaver, parameterized
from ml_collections import ConfigDict

from recjax import cli, experiment, file_io, main, recommend, setting_meanings, settings, sweep
from recjax.data import loading, splits, windows
from recjax.data.formats import betag as tag_files
from recjax.errors import ConfigError, WorkdirError
from recjax.evaluation import ranking, sampled_ranking
from recjax.methods import reclm
from recjax.methods.betag import base_tags
from recjax.methods.bigrec import evaluate, grounding
from recjax.methods.bigrec import train as bigrec_tune
from recjax.methods.etegrec import joint_training, tokenization
from recjax.methods.llmemb import prompts, rat, variants
from recjax.methods.reclm import train as reclm_tune
from recjax.models import bert, llm, quantize, rqvae, semantic_id_t5, semantic_ids, seqrec
from recjax.retrieval import bm25
from recjax.training import auxiliary_recommender, optim, sequential, sft
from recjax.training.losses import contrastive, trie_masked

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
PATHS = {  # texts that name a file, a model or whatever one likes, or that a method checks at once
    'data', 'preset', 'method', 'variant', 'llm.weights', 'tags.api_model', 'tags.api_url',
    'interests.api_model', 'interests.api_url', 'split.at',
    'tags.file', 'tags.sep', 'assist.source', 'prompt.noun', 'prompt.template', 'interests.encoder',
    'interests.source', 'semantic_ids.weights', 'vectors.encoder', 'vectors.source', 'export.file',
    'prompts.header', 'text.weights', 'eval.cross', 'ret.vectors', 'talk.questions', 'talk.source',
    'teacher.source', 'sasrec.source', 'train.static', 'domains', 'model.norm', 'start.run'}

ANY = ('decode.length_penalty', 'decode.plain_length_penalty', 'select.idf_cutoff')


def made(name='sequential_beauty', argument=''):
  return experiment.read_config(f'{ROOT}/configs/{name}.py:{argument}')


class TypesTest(parameterized.TestCase):

  @parameterized.parameters(
      ('eval.mask_history', 'yes', True), ('eval.mask_history', 'off', False),
      ('eval.mask_history', 'TRUE', True), ('eval.mask_history', '0', False),
      ('eval.mask_history', 'no', False), ('eval.mask_history', 'On', True),
      ('train.epochs', '7', 7), ('optim.lr', '1', 1.0), ('optim.lr', '3e-4', 3e-4),
      ('loss.kind', 'bce', 'bce'), ('eval.sampled', '', ''))
  def test_a_text_becomes_a_value_of_the_type_that_the_config_has(self, name, text, want):
    cfg = made()
    self.assertEqual(settings.change(cfg, [f'{name}={text}']), {name: want})
    group, key = name.split('.')
    self.assertEqual((cfg[group][key], type(cfg[group][key])), (want, type(want)))

  @parameterized.parameters(
      ('bigrec_games', 'lora.targets', "('q',)", ('q',)),
      ('bigrec_games', 'lora.targets', 'q', ('q',)),
      ('bigrec_games', 'lora.targets', 'q,v', ('q', 'v')),
      ('bigrec_games', 'domains', "(('a', 'b'), ('c', 'd'))", (('a', 'b'), ('c', 'd'))),
      ('betag_ml1m', 'select.top_m', '(2,5)', (2, 5)), ('betag_ml1m', 'select.top_m', '5', (5,)),
      ('betag_ml1m', 'train.keep', '(0,1)', (0.0, 1.0)),
      ('tiger_beauty', 'semantic_ids.sinkhorn', '(0, 0, 0.003)', (0.0, 0.0, 0.003)),
      ('tiger_beauty', 'semantic_ids.sinkhorn', '()', ()),
      ('llmemb_beauty', 'rat.ablations', 'no_scft,no_align', ('no_scft', 'no_align')),
      ('llmemb_beauty', 'rat.ablations', '', ()))
  def test_tuples(self, config, name, text, want):
    cfg = made(config)
    self.assertEqual(settings.change(cfg, [f'{name}={text}']), {name: want})
    if text and text[0] == '(':
      self.assertEqual(settings.change(cfg, {name: want}), {name: want})

  @parameterized.parameters(
      'eval.mask_history=maybe', 'eval.mask_history=', 'eval.mask_history=2', 'train.epochs=2.0',
      'train.epochs=1e3', 'train.epochs=', 'train.epochs=True', 'optim.lr=fast', 'optim.lr=nan',
      'optim.lr=inf', 'optim.clip=-inf', 'nosuch=1', 'train.nosuch=1', 'train=1', 'model.width.x=1',
      'train.epochs', '=1', '', '.=1', 'train..epochs=1', 'loss.kind=bec', 'optim.schedule=linaer',
      'eval.tie_order=random', 'eval.sampled=uniform101', 'model.kind=SASRec', 'seed=-1',
      'seed=4294967296', 'seeds=0', 'train.epochs=0', 'train.batch=-4', 'optim.lr=0',
      'optim.lr=-1e-3', 'optim.beta2=1', 'model.dropout=1.0', 'model.dropout=-.1',
      'loss.gbce_t=1.5', 'train.mask_share=7', 'mesh.data=0', 'mesh.model=-2', 'eval.memory=0',
      'train.save_every=0', 'train.valid_users=-1')
  def test_what_is_refused_names_the_setting(self, word):
    name = word.partition('=')[0]
    with self.assertRaises(ConfigError) as caught:
      settings.change(made(), [word])
    self.assertIn(name, str(caught.exception))
    self.assertRegex(str(caught.exception), r'\w+ \w+')

  @parameterized.parameters(
      ('lora.targets', "('q'"), ('lora.targets', '(1,)'), ('lora.targets', 'query'),
      ('train.keep', '(0.5, 1.2)'), ('train.keep', '(0.5, True)'), ('select.top_m', '(2.5,)'),
      ('select.top_k', '(-1,)'), ('semantic_ids.kind', 'rqvea'), ('domains', '(1,)'),
      ('domains', "('a',)"), ('train.sample', '-2'), ('decode.alphas', '(2,)'))
  def test_tuples_and_choices_that_are_refused(self, name, text):
    cfg = next(c for c in map(experiment.read_config, map(str, CONFIGS))
               if name in dict(settings.flat(c)))
    with self.assertRaisesRegex(ConfigError, name):
      settings.change(cfg, [f'{name}={text}'])

  @parameterized.parameters(
      ('train.epochs', '5'), ('train.epochs', 5.0), ('train.epochs', True), ('train.epochs', None),
      ('optim.lr', '1e-3'), ('optim.lr', float('nan')), ('optim.lr', False),
      ('eval.mask_history', 'yes'), ('eval.mask_history', 1), ('loss.kind', 3), ('seed', -1),
      ('train', {'epochs': 1}), ('nosuch', 1), (3, 1), ('train.epochs', [5]), ('mesh', 1))
  def test_python_is_held_to_the_same_types(self, name, value):
    with self.assertRaisesRegex(ConfigError, str(name)):
      experiment.train(made(), '/nowhere/at/all', {name: value})

  def test_python_gives_values(self):
    cfg = made()
    given = {'train.epochs': np.int64(3), 'optim.lr': 1, 'eval.mask_history': np.bool_(False)}
    self.assertEqual(settings.change(cfg, given), {
        'train.epochs': 3, 'optim.lr': 1.0, 'eval.mask_history': False})
    self.assertIs(type(cfg.train.epochs), int)
    self.assertIs(type(cfg.optim.lr), float)
    self.assertIs(cfg.eval.mask_history, False)

  def test_a_setting_is_given_once(self):
    with self.assertRaisesRegex(ConfigError, 'seed is given twice'):
      settings.change(made(), ['seed=1', 'seed=2'])

  def test_a_config_that_is_out_of_range_itself_is_refused_before_it_runs(self):
    cfg = made()
    cfg.optim.lr = -1.0
    with self.assertRaisesRegex(ConfigError, 'optim.lr=-1.0: it must be above 0'):
      experiment.run(cfg, '/nowhere/at/all', {})

  @parameterized.parameters(
      ('False', False), ('true', True), ('3', 3), ('.5', .5), ('low', 'low'), ("'3'", '3'),
      ('None', None), ('a b', 'a b'), ('', ''))
  def test_groups_of_any_names_take_them_by_dots(self, text, want):
    cfg = made('reclm_scientific')
    name = 'prompt.variables.enable_thinking'
    self.assertEqual(settings.change(cfg, [f'{name}={text}', 'prompt.variables.more=1']),
                     {name: want, 'prompt.variables.more': 1})
    self.assertEqual(cfg.prompt.variables.to_dict(), {'enable_thinking': want, 'more': 1})
    settings.change(cfg, [f'{name}=word'])  # once there, it takes another type
    cfg = made('reclm_scientific')
    settings.change(cfg, {name: want})
    self.assertEqual(cfg.prompt.variables.to_dict(), {'enable_thinking': want})

  def test_groups_of_any_names_as_a_whole(self):
    for given in (["prompt.variables={'a': False}"], {'prompt.variables': {'a': False}},
                  {'prompt.variables': ConfigDict({'a': False})}):
      cfg = made('reclm_scientific')
      settings.change(cfg, ['prompt.variables.b=1'])
      settings.change(cfg, given)
      self.assertEqual(cfg.prompt.variables.to_dict(), {'a': False})
    for word in ('prompt.variables=3', 'prompt.variables.a.b=1', 'prompt.variables.=1',
                 'prompt.variables={1: 2}'):
      with self.assertRaisesRegex(ConfigError, r'--config\.prompt\.variables\.NAME=VALUE'):
        settings.change(made('reclm_scientific'), [word])


class RenamedTest(parameterized.TestCase):
  NAMES = {
      'judge.users': 'eval.users', 'judge.test_most': 'eval.max_test_users',
      'judge.valid_most': 'eval.max_valid_users', 'loss.t': 'loss.gbce_t',
      'assist.loss.shared': 'assist.loss.negative_scope', 'way': 'variant',
      'teacher.model.length': 'teacher.model.max_history', 'model.length': 'model.max_history',
      'base.length': 'base.max_history', 'model.history': 'model.max_history',
      'samples.history': 'samples.max_history', 'vectors.train.mask_most':
      'vectors.train.max_masked', 'tiny.row': 'tiny.row_tokens', 'train.row': 'train.row_tokens',
      'prompt.cutoff': 'prompt.max_prompt_tokens', 'tags.most': 'tags.max_base_tags',
      'ground.most': 'ground.max_gamma', 'ground.inject': 'ground.prior',
      'tokenizer.look_every': 'semantic_ids.eval_every', 'tokenizer.kind': 'semantic_ids.kind',
      'token.levels': 'semantic_ids.levels', 'model.apart': 'model.untied_output',
      'model.compat': 'model.reproduce_release',
      'defects.pads_seen': 'reproduce_bugs.pads_seen', 'decode.count': 'decode.num_items',
      'rat.align_most': 'rat.max_align_items'}

  def test_no_config_has_an_old_name_and_every_new_name_is_one_of_a_config(self):
    names = {name for path in CONFIGS for name, _ in settings.flat(made(path.stem))}
    self.assertEqual([name for name in names if settings.renamed(name)], [])
    self.assertLessEqual(set(self.NAMES.values()), names)
    for name in ('eval.users', 'rat.variant', 'model.lengths', 'retrain.row', 'judges', 'loss.tau'):
      self.assertIsNone(settings.renamed(name), name)

  @parameterized.parameters(*NAMES.items())
  def test_an_old_name_is_refused_with_the_new_one(self, old, new):
    said = f'{re.escape(old)} is called {re.escape(new)} since 0.2'
    for given in ([f'{old}=3'], {old: 3}):
      with self.assertRaisesRegex(ConfigError, said):
        settings.change(made(), given)
    cfg, (*groups, key) = made(), old.split('.')
    with cfg.unlocked():
      group = cfg
      for name in groups:
        group[name] = group.get(name, ConfigDict())
        group = group[name]
      group[key] = 3
    for read in (settings.check, lambda c: settings.change(c, ['seed=1'])):
      with self.assertRaisesRegex(ConfigError, said):
        read(cfg)

  def test_a_run_made_with_an_old_name_is_refused(self):
    room = pathlib.Path(self.create_tempdir().full_path)
    saved = made(argument='data=sample:1:60').to_dict()
    saved['judge'] = saved.pop('eval')
    file_io.write_json(room / 'config.json', {'config': saved, 'facts': {}})
    for read in (lambda: recommend.load(room),
                 lambda: auxiliary_recommender.adopt(None, str(room), None, 'assist.source', '')):
      with self.assertRaisesRegex(WorkdirError, 'config.json: judge.* is called eval.* since 0.2, '
                                  'so the run was made before 0.2; train anew in a new folder'):
        read()


class SavedTest(absltest.TestCase):

  def test_a_run_of_an_earlier_version_says_which_setting_it_lacks(self):
    for read in (lambda c: c.eval.tie_order, lambda c: c['eval']['tie_order'],
                 lambda c: c.tie_order):
      with self.assertRaisesRegex(WorkdirError, 'old/config.json has no setting tie_order'), \
          settings.reading('old'):
        read(ConfigDict({'eval': {'save_top': 3}}))
    for wrong in (lambda: {}['tie_order'], lambda: (1).tie_order):  # no config's
      with self.assertRaises((KeyError, AttributeError)), settings.reading('old'):
        wrong()

  def test_faces_of_a_run_are_opened_so(self):
    room = pathlib.Path(self.create_tempdir().full_path)
    shop = loading.load_data('sample:1:60')
    saved = made(argument='data=sample:1:60').to_dict()
    del saved['eval']['tie_order']
    file_io.write_json(room / 'config.json', {'config': saved, 'facts': {}})
    for stage, name, what in (('1-train', 'valid.json', {}), ('2-evaluate', 'results.json', {
        'data_fingerprint': shop.fingerprint})):
      (room / 'stages' / stage).mkdir(parents=True)
      file_io.write_json(room / 'stages' / stage / name, what)
      file_io.write_json(room / 'stages' / stage / 'DONE.json', {'fingerprint': 'f'})
    with self.assertRaises(WorkdirError) as caught:
      recommend.load(room)
    self.assertRegex(str(caught.exception), 'no setting tie_order.*made by an earlier one')


def has_llm(path):
  return path.name.partition('_')[0] in ('betag', 'bigrec', 'd3', 'llmemb', 'reclm')


class PresetTest(absltest.TestCase):

  def test_laptop_is_for_methods_with_an_llm(self):
    for path in CONFIGS:
      if has_llm(path):
        cfg = experiment.read_config(f'{path}:laptop')
        self.assertEqual((cfg.preset, cfg.llm.weights), ('laptop', ''))
      else:
        with self.assertRaisesRegex(ConfigError, "unknown config argument 'laptop'; known: paper"):
          experiment.read_config(f'{path}:laptop')

  def test_one_preset(self):
    with self.assertRaisesRegex(ConfigError, "'paper' and 'laptop': choose one"):
      experiment.read_config(f'{CONFIGS[0]}:paper,laptop')


class TablesTest(absltest.TestCase):

  def test_every_config_passes_and_every_key_of_one_is_ruled(self):
    for path in CONFIGS:
      for argument in ('', 'paper', 'laptop') if has_llm(path) else ('', 'paper'):
        cfg = experiment.read_config(f'{path}:{argument}')
        settings.check(cfg)
        for name, value in settings.flat(cfg):
          for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, str):
              self.assertTrue(settings.choices_of(name) or name in PATHS, name)
            elif isinstance(one, (int, float)) and not isinstance(one, bool):
              self.assertTrue(settings.range_of(name) or name in ANY, name)

  def test_arguments_of_configs_pass_too(self):
    for name, arguments in (
        ('sequential_ml1m', [f'model={m},loss={s}' for m in seqrec.KINDS
                             for s in sequential.LOSSES]),
        ('llmemb_yelp', [f'variant={v}' for v in variants.VARIANTS] + ['profile=faithful']),
        ('reclm_toys', [f'grounding={g}' for g in reclm.GROUNDINGS]),
        ('tiger_beauty', [f'tokenizer={k}' for k in [
            *tokenization.NETWORKS, *semantic_ids.TOKENIZERS]]),
        ('bigrec_movies', ['split=time'])):
      for argument in arguments:
        for preset in ('', 'paper,'):
          settings.check(made(name, preset + argument))

  def test_choices_are_those_that_the_code_knows(self):
    for name, known in {
      'optim.schedule': optim.SCHEDULES,
      'base.norm': seqrec.NORMS,
      'model.kind': seqrec.KINDS,
      'loss.kind': sequential.LOSSES,
      'teacher.loss.kind': sequential.LOSSES,
      'loss.negative_scope': sequential.NEGATIVE_SCOPES,
      'loss.exclude': sequential.EXCLUDE,
      'llm.remat': ['none', *llm.POLICIES], 'llm.quantize': list(quantize.KINDS),
      'lora.targets': llm.LINEAR,
      'fusion': semantic_id_t5.FUSION_SITES,
      'grounding': reclm.GROUNDINGS,
      'align.sign': joint_training.SIGNS,
      'align.reduce': joint_training.REDUCERS,
      **{f'semantic_ids.{k}': v for k, v in rqvae.CHOICES.items() if k != 'encoder'},
      'semantic_ids.kind': [*tokenization.NETWORKS, *semantic_ids.TOKENIZERS, '*.json'],
      'semantic_ids.dedupe': semantic_ids.POLICIES,
      'samples.window': windows.FIRST_TARGET,
      'ground.pooling': bert.POOLS,
      'scft.pool': bert.POOLS,
      'text.pool': ['', *bert.POOLS],
      'ground.prior': ['none', *grounding.KINDS],
      'eval.duplicate_titles': evaluate.POLICIES,
      'eval.sampled': ['', *sampled_ranking.PROTOCOLS],
      'eval.seen_mask': ranking.SEEN,
      'eval.test_history': splits.HISTORIES,
      'select.reducer': bm25.REDUCERS,
      'tags.source': base_tags.SOURCES,
      'tags.on_missing': tag_files.ON_MISSING,
      'tags.on_bad_tag': tag_files.ON_BAD_TAG,
      'train.mode': bigrec_tune.MODES,
      'train.scope': trie_masked.KINDS,
      'train.control_like': reclm_tune.INIT_WORDS,
      'train.loss_on': [*sft.LOSS_ON, 'assistant', 'continuation'],
      'prompts.rules': prompts.RULES,
      'scft.loss': contrastive.KINDS,
      'rat.align_loss': contrastive.KINDS,
      'rat.align_items': rat.ALIGN_ITEMS,
      'rat.activation': rat.ACTIVATIONS,
      'rat.variant': variants.VARIANTS,
      'rat.ablations': variants.VARIANTS,
    }.items():
      self.assertCountEqual(settings.choices_of(name), list(known), name)


class CommandsTest(parameterized.TestCase):

  @parameterized.parameters(
      (['--config.a.b=1', '--x=2'], ['a.b=1'], ['--x=2']),
      (['-config.a=x=y', 'w'], ['a=x=y'], ['w']), (['--config.a', '5'], ['a=5'], []),
      (['--config.a', '-5'], ['a=-5'], []), (['--config.a', '--x'], ['a=true'], ['--x']),
      (['--config.a'], ['a=true'], []), (['--noconfig.a', 'w'], ['a=false'], ['w']),
      (['--config=c.py', '--config.a='], ['a='], ['--config=c.py']),
      (['--config', 'c.py'], [], ['--config', 'c.py']),
      (['--', '--config.a=1'], [], ['--', '--config.a=1']))
  def test_settings_are_taken_out_of_a_command_line(self, argv, words, rest):
    self.assertEqual(settings.split_command_line(argv), (words, rest))

  def ended(self, call, *argv):
    """What a command prints where it ends with code 2."""
    said = io.StringIO()
    with mock.patch.object(sys, 'argv', ['recjax', *argv]), contextlib.redirect_stderr(said), \
        contextlib.redirect_stdout(said), self.assertRaises(SystemExit) as caught:
      call()
    self.assertEqual(caught.exception.code, 2, said.getvalue())
    self.assertNotIn('Traceback', said.getvalue())
    return said.getvalue()

  @parameterized.parameters('eval.mask_history=maybe', 'seed=-1', 'train.epochs=2.5', 'nosuch=1',
                            'prompt.variables=1', 'optim.lr=0')
  def test_all_commands_say_the_same(self, word):
    config = f'--config={ROOT}/configs/reclm_scientific.py'
    if word.startswith('eval') or word.startswith('train'):
      config = f'--config={ROOT}/configs/sequential_beauty.py'
    with self.assertRaises(ConfigError) as caught:
      settings.change(experiment.read_config(config.partition('=')[2]), [word])
    want = f'error: {caught.exception}\n'

    with flagsaver.flagsaver():
      self.assertEqual(self.ended(lambda: main.main(main.parse(
          ['main', config, f'--config.{word}']))), want)
    self.assertEqual(self.ended(cli.main, 'doctor', 'sample:1:60', config, f'--config.{word}'),
                     want)
    if not word.startswith('seed'):
      self.assertEqual(self.ended(cli.main, 'sweep', config, '--set', word,
                                  f'--out={self.create_tempdir().full_path}'), want)

  @parameterized.parameters(
      ('recommend', 'x', '--user=u', '--k=0'), ('recommend', 'x', '--user=u', '--k=-1'),
      ('recommend', 'x', '--user=u', '--k=2.5'), ('serve', 'x', '--timeout=0'),
      ('serve', 'x', '--timeout=nan'), ('serve', 'x', '--most=0'),
      ('sweep', '--config=x', '--seeds=0'), ('sweep', '--config=x', '--seeds=many'),
      ('prepare', 'table', 'x', '--out=y', '--k-core=-2'),
      ('prepare', 'table', 'x', '--out=y', '--max-bad=7'),
      ('prepare', 'table', 'x', '--out=y', '--max-bad=-0.1'),
      ('prepare', 'yelp', 'x', '--out=y', '--max-bad=nan'),
      ('prepare', 'table', 'x', '--out=y', '--user-k=-1'),
      ('prepare', 'table', 'x', '--out=y', '--item-k=1.5'),
      ('prepare', 'steam', 'x', '--out=y', '--min-length=-3'),
      ('prepare', 'table', 'x', '--out=y', '--max-length=-3'),
      ('prepare', 'table', 'x', '--out=y', '--sample=-3'),
      ('prepare', 'table', 'x', '--out=y', '--seed=-1'),
      ('prepare', 'table', 'x', '--out=y', '--min-rating=inf'),
      ('prepare', 'table', 'x', '--out=y', '--memory=lots'),
      ('prepare', 'table', 'x', '--out=y', '--memory=0GB'),
      ('prepare', 'table', 'x', '--out=y', '--memory=-2GB'),
      ('prepare', 'amazon', '--reviews=x', '--meta=x', '--out=y', '--k=-5'),
      ('prepare', 'amazon', '--reviews=x', '--meta=x', '--out=y', '--min-items=-1'),
      ('prepare', 'amazon', '--reviews=x', '--meta=x', '--out=y', '--start=2017-13'),
      ('prepare', 'amazon', '--reviews=x', '--meta=x', '--out=y', '--end=2017'),
      ('prepare', 'amazon', '--reviews=x', '--meta=x', '--out=y', '--start=2019-01'),
      ('prepare', 'table', 'x', '--out=y', '--columns=titel=a'),
      ('prepare', 'table', 'x', '--out=y', '--columns=titel='),
      ('prepare', 'table', 'x', '--out=y', '--columns=user=a,user=b'),
      ('prepare', 'table', 'x', '--items=i', '--out=y', '--item-columns=titel=a'),
      ('prepare', 'table', 'x', '--items=i', '--out=y', '--item-columns=color='),
      ('prepare', 'table', 'x', '--out=y', '--item-columns=title=a'),
      ('doctor', 'sample:1:60', '--config.seed=1'), ('compare', 'a', '--config.seed=1'))
  def test_flags_out_of_range_are_refused_by_name(self, *argv):
    flag = argv[-1].partition('=')[0]
    self.assertIn(flag, self.ended(cli.main, *argv))

  def test_a_misspelled_column_is_told_those_there_are(self):
    said = self.ended(cli.main, 'prepare', 'table', 'x', '--items=i', '--out=y',
                      '--item-columns=titel=a')
    self.assertRegex(said, "'titel' is none of item, title, brand, .*is it title")

  def test_main_takes_no_other_words(self):
    with flagsaver.flagsaver():
      self.assertIn('stray', self.ended(lambda: main.parse(['main', 'stray'])))
      self.assertIn('bogus', self.ended(lambda: main.parse(['main', '--bogus=1'])))
      self.assertIn('--process_id is of --multihost', self.ended(lambda: main.main(main.parse(
          ['main', f'--config={CONFIGS[0]}', '--process_id=1']))))


class MeaningsTest(absltest.TestCase):

  def test_every_setting_has_a_meaning_and_every_meaning_a_setting(self):
    used = set()
    for path in CONFIGS:
      for preset in ('', 'laptop', 'paper'):
        try:
          cfg = made(path.stem, preset)
        except ConfigError:  # it has no such preset
          self.assertEqual(preset, 'laptop')
          continue
        for setting in setting_meanings.describe(cfg):
          self.assertNotEqual(setting.meaning, '', f'{path.stem}: {setting.name}')
          used.add(setting.meaning)
    self.assertEqual(set(setting_meanings.MEANINGS.values()) - used, set())

  def test_a_method_s_own_meaning_comes_first_and_what_nobody_knows_is_blank(self):
    self.assertIn('T5', setting_meanings.meaning_of('model.layers', 'etegrec'))
    self.assertEqual(setting_meanings.meaning_of('model.layers', 'sequential'), 'layers')
    self.assertEqual(setting_meanings.meaning_of('my.own', 'follow'), '')

  def printed(self, *words):
    with contextlib.redirect_stdout(io.StringIO()) as out, \
        mock.patch.object(sys, 'argv', ['recjax', 'settings', *words]):
      cli.main()
    return out.getvalue()

  def test_the_verb_shows_values_as_they_are_changed_and_finds_by_words(self):
    text = self.printed('tiger_beauty', '--config.seed=7')
    self.assertIn('--config.seed=7\n    of weights, draws and batches (between 0 and', text)
    self.assertEqual(text.count('--config.'), len(list(settings.flat(made('tiger_beauty')))))
    found = self.printed('betag_scientific', 'BM25')
    self.assertCountEqual(re.findall(r'--config\.(\S+)=', found), ['select.k1', 'select.b'])
    with contextlib.redirect_stderr(io.StringIO()) as said, self.assertRaises(SystemExit):
      self.printed('betag_scientific', 'nosuch')
    self.assertIn('no setting of betag_scientific holds nosuch', said.getvalue())


class GridTest(absltest.TestCase):

  def test_tuples_are_values_of_a_grid(self):
    self.assertEqual(sweep.grid(['select.top_m=(2,5),(10,)', 'optim.lr=1e-3']), [
        {'select.top_m': '(2,5)', 'optim.lr': '1e-3'},
        {'select.top_m': '(10,)', 'optim.lr': '1e-3'}])

  def test_two_spellings_of_one_value_are_one_setting(self):
    points = sweep.grid(['optim.lr=1e-3,0.001'])
    cfgs = [experiment.changed(made(), [f'{k}={v}' for k, v in p.items()]) for p in points]
    with self.assertRaisesRegex(ConfigError, '1e-3.*0.001.*are the same settings'):
      sweep.check_points(points, cfgs)
    sweep.check_points(points[:1], cfgs[:1])
    points = sweep.grid(['data=a b,a-b'])
    cfgs = [experiment.changed(made(), [f'{k}={v}' for k, v in p.items()]) for p in points]
    with self.assertRaisesRegex(ConfigError, 'in one folder'):
      sweep.check_points(points, cfgs)


if __name__ == '__main__':
  absltest.main()
