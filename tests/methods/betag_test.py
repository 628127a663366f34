"""BETag whole, on a toy whose next item is certain: learned, resumed, recommended, refused."""
import contextlib
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl.testing import absltest

from recjax import batch_recommend, errors, recommend
from recjax.data import loading
from recjax.distributed import sharding
from recjax.methods import betag
from recjax.methods.betag import generate, train
from recjax.methods.betag import report as page_of
from recjax.models import llm
from recjax.serving import served_model
from recjax.text import tokenizer as tokenizer_lib
from recjax.training import llm_loading
from recjax.training import workdir as workdir_lib
from tests import beside_rows, later, told
from tests import devices as several
from tests.long import long

ROOT = pathlib.Path(__file__).parents[2]
WORDS = {'a': ('tent', 'camping'), 'b': ('stove', 'gas fuel'), 'c': ('mug', 'steel'),
         'd': ('drill', 'battery'), 'e': ('screws', 'zinc'), 'f': ('wall plug', 'nylon')}
CHAINS = ('abcabc', 'defdef')  # a -> b -> c -> a, d -> e -> f -> d


def write_toy(folder, tags=None):
  folder.mkdir(parents=True, exist_ok=True)
  items = [{'item_id': i, 'title': ' '.join(w), 'tags': list(w)}
           for i, w in (tags or WORDS).items()]
  # The two last of each sequence are held out; what stays is long enough to train on.
  rows = [{'user_id': f'u{n}', 'items': list(CHAINS[n % 2][n // 2 % 3:] + CHAINS[n % 2])[:7]}
          for n in range(36)]
  for name, lines in (('items', items), ('sequences', rows)):
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in lines))
  return folder


def toy_config(data):
  spec = importlib.util.spec_from_file_location('c', ROOT / 'configs' / 'betag_scientific.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config(f'data={data}')
  c.mesh.data = 1
  c.tiny.update(vocab=400, width=32, layers=2, ffn=64, row_tokens=128, batch=2, epochs=60.0)
  c.train.update(epochs=40, batch=8, row_tokens=128, max_seq_len=4)
  c.lora.rank = 8
  c.optim.update(lr=1e-2, warmup=5, save_every=50)
  c.decode.update(beams=4, groups=4, new_tokens=12, batch=4)
  c.select.update(mask_history=False)
  c.eval.classical, c.sasrec.source = False, 'none'
  return c


def run(cfg, path, part=None):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ('data', 'fsdp', 'model'),
                           axis_types=(jax.sharding.AxisType.Auto,) * 3)
  facts = {'command': 'test', 'devices': '1', 'versions': {}, 'revision': '', 'overrides': {}}
  with workdir_lib.open_work(
    path, {'config': cfg.to_dict(), 'facts': facts}, mesh, part=part
  ) as work:
    betag.run(cfg, work)


class ToyTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    import tempfile
    cls.room = contextlib.ExitStack()
    cls.folder = pathlib.Path(cls.room.enter_context(tempfile.TemporaryDirectory()))
    cls.cfg = toy_config(write_toy(cls.folder / 'toy'))
    cls.cfg.eval.classical, cls.cfg.sasrec.source = True, 'train'
    cls.cfg.sasrec.model.update(width=8, hidden=8, layers=1)
    cls.cfg.sasrec.train.epochs = 2
    cls.path = cls.folder / 'run'
    run(cls.cfg, cls.path)

  @classmethod
  def tearDownClass(cls):
    cls.room.close()
    super().tearDownClass()

  def file(self, stage, name):
    return json.loads((workdir_lib.find_stage(self.path, stage) / name).read_text())

  def test_the_first_beam_of_every_item_is_the_item_that_follows(self):
    found = self.file('parse', 'raw_betags.json')
    for a, b in ('ab', 'bc', 'ca', 'de', 'ef', 'fd'):
      self.assertContainsSubset(found[a][1][:1], WORDS[b], f'{a} is followed by {b}')

  @long
  def test_a_base_in_8_bits_is_tuned_and_decoded_alike(self):
    path, cfg = self.folder / 'int8', self.cfg.copy_and_resolve_references()
    shutil.copytree(self.path, path)
    cfg.llm.quantize = 'int8'
    run(cfg, path)  # the base itself is made before
    found = json.loads((workdir_lib.find_stage(path, 'parse') / 'raw_betags.json').read_text())
    for a, b in ('ab', 'bc', 'ca', 'de', 'ef', 'fd'):
      self.assertContainsSubset(found[a][1][:1], WORDS[b], f'{a} is followed by {b}')
    self.assertNotEqual(*((workdir_lib.find_stage(run, 'tune') / 'adapter_model.safetensors')
                          .read_bytes() for run in (path, self.path)))
    self.assertLen(recommend.load(path)[0]([['a', 'b']], 2)[0][0], 2)
    export_folder = self.folder / 'merged'
    betag.convert(path, 'merged', export_folder)
    stored = safetensors.numpy.load_file(export_folder / 'model.safetensors')
    self.assertEqual({str(x.dtype) for x in stored.values()}, {'float32'})

  def test_tags_of_the_next_item_outweigh_unrelated_ones(self):
    for a, b, far in (('a', 'b', 'e'), ('d', 'e', 'b')):
      tags = dict(map(tuple, self.file('evaluate', 'tags.json')[a]))
      near = sum(tags.get(t, 0) for t in WORDS[b])
      self.assertGreater(near, sum(tags.get(t, 0) for t in WORDS[far]))

  def test_every_published_file_is_there_and_row_zero_is_the_base_tags(self):
    found = self.file('parse', 'raw_betags.json')
    base = self.file('base-tags', 'base_tags.json')
    self.assertEqual({i: rows[0] for i, rows in found.items()}, base)
    self.assertLen(self.file('generate', 'raw_predict.json')['a'], 4)
    self.assertEqual(self.file('generate', 'generation_config.json')['num_beam_groups'], 4)
    for name in ('config.json', 'metrics.jsonl', 'results.json', 'report.html', 'ranks.parquet',
                 'predictions.parquet', 'run.log'):
      self.assertGreater((self.path / name).stat().st_size, 0, name)

  def test_the_report_says_from_which_tags_a_score_comes(self):
    page = (self.path / 'report.html').read_text().partition('id="users-one-by-one"')[2]
    page = page.partition('<h2')[0]
    rows = re.findall(r'<td class="num">([\d.]+)</td><td>([^<]+)</td>', page)
    self.assertNotEmpty(rows)
    for score, tags in rows:
      parts = [float(tag.rpartition(' ')[2]) for tag in tags.split(', ')]
      self.assertEqual(parts, sorted(parts, reverse=True))
      if len(parts) < page_of.TAGS:
        self.assertAlmostEqual(sum(parts), float(score), delta=2e-3)
      self.assertLess(sum(parts), float(score) + 2e-3)
    self.assertTrue(any(tags.count(', ') < page_of.TAGS - 1 for _, tags in rows))

  def test_results_hold_every_row_with_an_interval_and_a_paired_test(self):
    results = json.loads((self.path / 'results.json').read_text())
    told.check(results)
    self.assertEqual(list(results['rows'])[:3], ['betags', 'base_tags', 'sasrec'])
    beside_rows.check(self, self.path, loading.load_data(self.cfg.data), masked=False)
    for cells in results['rows'].values():
      cell = cells['HR@10']
      self.assertLessEqual(cell['low'], cell['value'])
      self.assertLessEqual(cell['value'], cell['high'])
      self.assertEqual(cell['n'], 36)
    self.assertIn('betags>base_tags', results['tests'])

  def test_recommendations_exist_and_are_not_repeated(self):
    ask, shop = recommend.load(self.path)
    items, scores = ask([['a'], ['d', 'e']], 3)
    for row in items:
      self.assertLen(set(row), 3)
      self.assertContainsSubset(row, shop.catalog.ids)
    self.assertEqual(set(items[0][:2]), {'b', 'c'})  # of its own chain, a itself being seen
    self.assertTrue(np.isfinite(scores).all())
    self.assertEqual(ask([['a']], 2, allowed={'e', 'f', 'c'})[0][0][0] in 'efc', True)
    with self.assertRaisesRegex(errors.DataError, "'nope'"):
      ask([['nope']], 2)

  @long
  def test_eight_devices_learn_what_one_does(self):
    cfg, curves = self.cfg.copy_and_resolve_references(), []
    cfg.train.epochs, cfg.optim.log_every = 3, 1
    base, llm_folder = (workdir_lib.find_stage(self.path, name) for name in ('base-tags', 'llm'))
    for count in (1, 8):
      mesh = several.mesh(data=1, fsdp=count, model=1)
      with workdir_lib.open_work(self.folder / f'devices-{count}', {}, mesh) as work, \
          contextlib.redirect_stdout(io.StringIO()):
        work.stage('tune', train.stage, train.settings(cfg), None, base, llm_folder)
        curves.append([row['loss'] for row in work.metrics()])
    self.assertGreater(len(curves[0]), 5)
    np.testing.assert_allclose(*curves, rtol=1e-5)

  def test_new_items_get_their_tags_from_the_tuned_model(self):
    data = later.write(self.folder / 'toy', self.folder / 'later', [
        {'item_id': 'n', 'title': 'x', 'tags': ['stove', 'camping']},  # as a and b
        {'item_id': 'm', 'title': 'y', 'tags': ['zinc', 'nylon']}],  # as e and f
        retired=['b'])
    ask, _ = recommend.load(self.path)
    more, shop = recommend.load(self.path, data)
    self.assertLen(shop.catalog, 8)
    items, scores = more([['a'], ['d'], ['n', 'a']], 3)
    self.assertTrue(np.isfinite(scores[:2]).all())
    self.assertEqual([set(items[0][:2]), 'm' in items[1]], [{'n', 'c'}, True])
    self.assertNoCommonElements(items[2], {'b', 'n'})
    old, before = ask([['a'], ['d', 'e']], 4, allowed=set('acdef'))
    new, after = more([['a'], ['d', 'e']], 4, allowed=set('abcdef'))
    self.assertEqual(new, old)
    np.testing.assert_array_equal(after, before)
    kept = self.path / 'adopted' / shop.fingerprint[:16]
    found = json.loads((workdir_lib.find_stage(kept, 'generate') / 'raw_predict.json').read_text())
    self.assertCountEqual(found, 'nm')
    written = workdir_lib.find_stage(kept, 'generate').stat().st_mtime_ns
    self.assertEqual(recommend.load(self.path, data)[0]([['a']], 3)[0], items[:1])
    self.assertEqual(workdir_lib.find_stage(kept, 'generate').stat().st_mtime_ns, written)
    model, = served_model.open_models([self.path], later=data).values()
    self.assertEqual(len(model.snapshot), 8)
    self.assertContainsSubset({'stove', 'camping'}, [t for t, _ in model.tags['n']])
    mask = np.arange(8) > 0  # all but a
    found, = model.answer([served_model.RecommendQuery([1], 1, mask)])
    self.assertIn(model.snapshot.item_id(found[0][0]), 'nc')
    model.close(5)

  def test_later_data_that_do_not_fit_are_refused(self):
    for name, new, kw, words in (
        ('swapped', [], {'swap': True}, "item 1 was 'a', now it is 'b'.*--update"),
        ('untagged', [{'item_id': 'n', 'title': 'x'}], {}, "item 'n' has no tags")):
      data = later.write(self.folder / 'toy', self.folder / name, new, **kw)
      with self.assertRaisesRegex(errors.DataError, words):
        recommend.load(self.path, data)

  def test_batch_recommendation_writes_a_row_for_each_user(self):
    source, target = self.folder / 'in.jsonl', self.folder / 'out.jsonl'
    source.write_text(''.join(json.dumps({'user_id': n, 'items': ['a']}) + '\n' for n in range(5)))
    ask, shop = recommend.load(self.path)
    self.assertEqual(
      batch_recommend.run(ask, shop, source, target, 2, recommend.model_version(self.path)), 5
    )
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    self.assertEqual([row['user_id'] for row in rows], list(range(5)))
    found = rows[0]['recommended']
    self.assertEqual({f['item'] for f in found}, {'b', 'c'})
    self.assertEqual(found[0]['title'], recommend.title_of(shop.catalog, found[0]['item']))

  def test_a_run_that_is_done_does_nothing_again(self):
    before = {p: p.stat().st_mtime_ns for p in (self.path / 'stages').rglob('*')}
    run(self.cfg, self.path)
    self.assertEqual({p: p.stat().st_mtime_ns for p in (self.path / 'stages').rglob('*')}, before)

  @long
  def test_generation_killed_between_batches_ends_with_equal_files(self):
    path = self.folder / 'again'
    shutil.copytree(self.path, path)
    done = workdir_lib.find_stage(path, 'generate')
    want = (done / 'raw_predict.json').read_bytes()
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.methods import betag_test as t
from recjax.methods.betag import generate
write = generate.write_json
def once(path, rows):
  write(path, rows)
  path.with_name('.torn').write_text('[["torn')
  os.kill(os.getpid(), signal.SIGKILL)
generate.write_json = once
t.run(t.toy_config({str(self.folder / 'toy')!r}), {str(path)!r})
"""
    shutil.rmtree(done)
    killed = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    self.assertEqual(killed.returncode, -signal.SIGKILL, killed.stderr[-2000:])
    run(self.cfg, path)
    found = workdir_lib.find_stage(path, 'generate')
    self.assertEqual((found / 'raw_predict.json').read_bytes(), want)
    self.assertEqual(sorted(p.name for p in found.iterdir()), [
        '.fingerprint', 'DONE.json', 'generation_config.json', 'raw_predict.json'])

  @long
  def test_generation_in_parts_of_any_number_has_equal_bytes(self):
    path = self.folder / 'parts'
    shutil.copytree(self.path, path)
    done = workdir_lib.find_stage(path, 'generate')
    want = {p.name: p.read_bytes() for p in done.glob('*.json') if p.name != 'DONE.json'}
    shutil.rmtree(done)
    with self.assertRaisesRegex(errors.PartDone, 'its 1 of 2 shards of stage generate'):
      run(self.cfg, path, (1, 2))
    with self.assertRaisesRegex(errors.PartDone, 'its 0 of 2 shards .* 1 of other parts'):
      run(self.cfg, path, (4, 5))
    with mock.patch.object(generate, 'texts_of', wraps=generate.texts_of) as made:
      run(self.cfg, path, (0, 3))  # the last one goes on to the end
    self.assertEqual(made.call_count, 4)
    done = workdir_lib.find_stage(path, 'generate')
    self.assertEqual({p.name: p.read_bytes() for p in done.glob('*.json')
                      if p.name != 'DONE.json'}, want)
    self.assertEqual((path / 'lock').read_text().split()[1], str(os.getpid()))

  def test_another_parsing_generates_nothing_again(self):
    path = self.folder / 'parsed'
    shutil.copytree(self.path, path)
    cfg = self.cfg.copy_and_resolve_references()
    cfg.decode.drop_truncated = not cfg.decode.drop_truncated

    def done(stage):
      return (workdir_lib.find_stage(path, stage) / 'DONE.json').read_bytes()
    generated, parsed = done('generate'), done('parse')
    run(cfg, path)
    self.assertEqual(done('generate'), generated)
    self.assertNotEqual(done('parse'), parsed)

  @long
  def test_beams_that_stop_at_the_lines_end_hold_that_line_alone(self):
    cfg = self.cfg.copy_and_resolve_references()
    cfg.decode.stop_at_line_end = True
    cfg = generate.settings(cfg)
    tags = self.file('base-tags', 'base_tags.json')
    mesh = several.mesh(data=1, model=8)
    model, params, tokenizer, adapter = llm_loading.load_adapted(
      workdir_lib.find_stage(self.path, 'llm'),
      cfg.llm,
      workdir_lib.find_stage(self.path, 'tune'),
      mesh,
    )
    batches, prefix = generate.prompt_batches(tags, tokenizer, cfg, model.cfg)
    items, ids, lengths = batches[0]
    search, ends = generate.search_config(cfg, tokenizer)
    with jax.set_mesh(mesh):
      found = generate.beams_of(model, search, ends, params, adapter,
                                np.asarray(prefix, np.int32), ids, lengths)
    ended = 0
    for b, item in enumerate(items):
      for full in generate.texts_of(tokenizer, tags[item], cfg, np.asarray(found.tokens[b]),
                                    np.asarray(found.lengths[b])):
        line = full.split('\n2.', 1)[1]
        ended += line.endswith('\n')
        self.assertNotIn('\n', line[:-1])  # nothing follows a line's end
    self.assertGreater(ended, 0)
    first = generate.texts_of(tokenizer, tags['a'], cfg, np.asarray(found.tokens[items.index('a')]),
                              np.asarray(found.lengths[items.index('a')]))[0]
    self.assertContainsSubset(  # the same line as without stopping
        [t.strip() for t in first.split('\n2.', 1)[1].split('|')], WORDS['b'])

  @long
  def test_generation_does_not_depend_on_batch_mates_or_devices(self):
    cfg = generate.settings(self.cfg)
    tags = self.file('base-tags', 'base_tags.json')
    stages = [workdir_lib.find_stage(self.path, s) for s in ('llm', 'tune')]
    found = []
    for devices in (1, 4):
      mesh = several.mesh(data=devices, model=8 // devices)
      model, params, tokenizer, adapter = llm_loading.load_adapted(
        stages[0], cfg.llm, stages[1], mesh
      )
      batches, prefix = generate.prompt_batches(tags, tokenizer, cfg, model.cfg)
      items, ids, lengths = batches[0]
      search, ends = generate.search_config(cfg, tokenizer)
      with jax.set_mesh(mesh):
        placed = generate.place({'ids': ids, 'lengths': lengths}, mesh)
        beams = generate.beams_of(model, search, ends, params, adapter,
                                  np.asarray(prefix, np.int32), **placed)
        found.append(np.asarray(beams.tokens))
        order = [3, 2, 1, 0]
        turned = generate.beams_of(model, search, ends, params, adapter,
                                   np.asarray(prefix, np.int32), ids[order], lengths[order])
        np.testing.assert_array_equal(np.asarray(turned.tokens)[order], found[-1])
    np.testing.assert_array_equal(found[0], found[1])

  @long
  def test_t5_loss_counts_the_assistants_tokens_and_packing_changes_nothing(self):
    cfg = train.settings(self.cfg)
    stages = [workdir_lib.find_stage(self.path, s) for s in ('llm', 'tune')]
    mesh = sharding.make_mesh({'data': -1})
    model, params, tokenizer, adapter = llm_loading.load_adapted(
      stages[0], cfg.llm, stages[1], mesh
    )
    base = workdir_lib.find_stage(self.path, 'base-tags')
    tags = json.loads((base / 'base_tags.json').read_text())
    sequences = json.loads((base / 'inters.train.json').read_text())
    one = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('data',),
                            axis_types=(jax.sharding.AxisType.Auto,))
    batches = train.SampleBatches(tokenizer, sequences, tags, cfg, one)
    batch = batches[0]
    samples = batches.samples(range(int(batch['first_weight'][0])))
    predicted = sum(len(ids) for ids, _ in samples)
    self.assertEqual(batch['weights'].sum() + batch['first_weight'][0], predicted)
    self.assertLess(batch['segments'].shape[0], len(samples))  # it did pack
    ours, _ = train.sample_loss(model, batches.prefix, adapter, params, batch, None)
    start, total = len(batches.prefix), 0.0
    width = start + max(len(ids) for ids, _ in samples)

    @jax.jit
    def plain(text):  # the whole text of one sample, prefix and all; what follows it plays no part
      hidden, _ = model.apply({'params': params, 'lora': adapter}, text, np.arange(width)[None],
                              jnp.ones_like(text))
      return model.apply({'params': params}, hidden, method='logits')[0]
    for ids, _ in samples:
      text = np.zeros((1, width), np.int32)
      text[0, :start + len(ids)] = batches.prefix + ids
      logits = np.asarray(plain(text))
      logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
      total -= sum(logp[start - 1 + j, t] for j, t in enumerate(ids))
    self.assertAlmostEqual(float(ours), total / predicted, delta=1e-4)

  def test_continuation_loss_counts_only_what_follows_the_prompt(self):
    cfg = self.cfg.copy_and_resolve_references()
    cfg.train.loss_on = 'continuation'
    _, _, tokenizer, _ = llm_loading.load_adapted(
      workdir_lib.find_stage(self.path, 'llm'),
      cfg.llm,
      workdir_lib.find_stage(self.path, 'tune'),
      sharding.make_mesh({'data': -1}),
    )
    base = workdir_lib.find_stage(self.path, 'base-tags')
    one = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('data',),
                            axis_types=(jax.sharding.AxisType.Auto,))
    batches = train.SampleBatches(
        tokenizer, json.loads((base / 'inters.train.json').read_text()),
        json.loads((base / 'base_tags.json').read_text()), train.settings(cfg), one)
    batch = batches[0]
    samples = batches.samples(range(sum(map(len, batches.plan[0][1]))))
    self.assertEqual(batch['weights'].sum() + batch['first_weight'][0],
                     sum(len(ids) - boundary for ids, boundary in samples))


class BadInputTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def refuse(self, words, tags=None, **changes):
    cfg = toy_config(write_toy(self.folder / 'toy', tags))
    cfg.tiny.epochs = 1.0  # what it learned does not matter here
    cfg.update_from_flattened_dict(changes)
    with self.assertRaisesRegex(errors.UserError, words), contextlib.redirect_stdout(io.StringIO()):
      run(cfg, self.folder / 'run')

  def test_items_without_tags_are_named(self):
    (self.folder / 'few.json').write_text('{"a": ["tent"], "b": ["stove"]}')
    self.refuse(r'c, d, e, f|have no tags',
                **{'tags.source': 'file', 'tags.file': str(self.folder / 'few.json')})

  def test_an_empty_tag_list_names_the_item(self):
    self.refuse("'b'", tags={**WORDS, 'b': ()})

  def test_a_tag_with_the_separator_or_a_newline_names_item_and_tag(self):
    self.refuse("'b'.*gas", tags={**WORDS, 'b': ('stove', 'gas| fuel')})
    self.refuse("'b'.*gas", tags={**WORDS, 'b': ('stove', 'gas\nfuel')})

  def test_unreadable_json_names_the_file(self):
    (self.folder / 'bad.json').write_text('{"a": ["tent"')
    self.refuse('bad.json', **{'tags.source': 'file', 'tags.file': str(self.folder / 'bad.json')})

  def test_sequences_that_are_all_too_short_are_an_error(self):
    self.refuse('min_seq_len', **{'train.min_seq_len': 9, 'train.max_seq_len': 15})

  def test_a_first_line_longer_than_the_context_names_item_or_tags(self):
    long = {**WORDS, 'a': tuple(f'word{i}' for i in range(60))}
    self.refuse('word.*max_len', tags=long, **{'train.max_len': 160, 'tags.max_base_tags': 99})
    cfg = toy_config(self.folder)
    cfg.decode.max_tags = 60
    shape = llm.Config(vocab=300, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, ffn=8,
                       max_positions=512)
    with self.assertRaisesRegex(errors.DataError, 'item a: its tags take'):
      generate.prompt_batches(
        long, tokenizer_lib.train_bpe(['tent'], 300), generate.settings(cfg), shape
      )

  def test_settings_that_contradict_are_refused_before_anything_runs(self):
    self.refuse('groups', **{'decode.groups': 3})
    self.refuse('diversity', **{'decode.diversity': 0.0})
    self.refuse('loss_on', **{'train.loss_on': 'all'})
    self.refuse('weights', **{'llm.weights': '/nowhere'})
    self.refuse('sasrec.source', **{'sasrec.source': '/nowhere'})
    self.assertFalse((self.folder / 'run' / 'stages' / '02-llm').exists())


class CommandTest(absltest.TestCase):

  @long
  def test_a_wrong_key_or_argument_answers_in_a_sentence_with_exit_code_2(self):
    folder = self.create_tempdir().full_path
    for flags, words in ((['--config.optim.lrr=1'], 'lrr is not among beta2'),
                         (['--config.optim.lr=x'], 'lr'),
                         (['--config=configs/betag_scientific.py:papre'],
                          "error: unknown config argument 'papre'"),
                         (['--config=configs/nothing.py'], 'nothing')):
      if not flags[0].startswith('--config='):
        flags = ['--config=configs/betag_scientific.py', *flags]
      done = subprocess.run([sys.executable, '-m', 'recjax.main', *flags, f'--workdir={folder}'],
                            cwd=ROOT, capture_output=True, text=True)
      self.assertEqual(done.returncode, 2, done.stderr)
      self.assertIn(words, done.stderr)
      self.assertNotIn('Traceback', done.stderr)


if __name__ == '__main__':
  absltest.main()
