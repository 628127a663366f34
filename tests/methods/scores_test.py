"""What a method's decoder calls a score is what its training loss calls a log-probability.

Every method decodes with its own function, and each row is then put before its own training loss,
alone in a batch, teacher forced. Models are tiny and trained a little, so that levels, closed
tokens and long rows matter; where a search covers all that can be written, probabilities sum to 1.
"""
import dataclasses
import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from recjax.data.dataset import Catalog
from recjax.decoding import device_trie, trie
from recjax.decoding.prefix_generator import PrefixGenerator
from recjax.methods.betag import generate as betag
from recjax.methods.betag import train as betag_tune
from recjax.methods.bigrec import generate as bigrec
from recjax.methods.etegrec import beam_ranking
from recjax.methods.etegrec import joint_training as coding
from recjax.methods.reclm import chat_encoding, generate, tokenized_catalog
from recjax.methods.reclm import train as train_lib
from recjax.models import llm, lora, semantic_id_t5, t5
from recjax.text.packing import TokenSample
from recjax.training import sft
from recjax.training.losses import trie_masked
from tests.long import long, long_but

ROOT = pathlib.Path(__file__).parents[2]
PAD, END, SOI, EOI = 0, 1, 2, 3
V = 12
PROMPTS = [[4, 5, 6, 7], [4, 5, 8], [4, 5, 9, 9, 10, 4]]
TITLES = [[4, 5], [4, 5, 6], [4, 6, 7, 7], [5], [6, 4, 4, 8, 9], [7, 7], [7, 8], [10, 5, 5]]


class Tokens:
  """Stands in for a tokenizer: texts are what their ids spell."""
  eos_ids, pad_id, vocab_size = (END,), PAD, V

  def encode(self, text):
    return [11, 9] if text == '1. ' else list(map(int, text.split()))

  def decode(self, ids):
    return ' '.join(map(str, ids))


def config(name, arg=''):
  spec = importlib.util.spec_from_file_location('c', ROOT / 'configs' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


def learn(loss, params, steps=40, rate=.03):
  """A little training, so that probabilities are far from even."""
  tx = optax.adam(rate)

  @jax.jit
  def run(params):
    def step(carry, _):
      params, opt = carry
      change, opt = tx.update(jax.grad(loss)(params), opt)
      return (optax.apply_updates(params, change), opt), None
    return jax.lax.scan(step, (params, tx.init(params)), None, steps)[0][0]
  return run(params)


@functools.cache
def language_model():
  """-> LM, params that have learned to continue prompts"""
  cfg = llm.Config(vocab=V, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=24)
  model, params = llm.LM(cfg), llm.init(cfg, jax.random.key(0))
  rng = np.random.default_rng(0)
  asked = [PROMPTS[i % 3] for i in range(24)]
  replies = [[SOI, *TITLES[i % 5], EOI, END] if i % 2 else [*TITLES[rng.integers(6)], END]
             for i in range(24)]
  packed = sft.pack_pairs(asked, replies, 'all')
  return model, learn(lambda p: sft.loss_sums(
      model, packed.prefix, {'params': p}, packed.batch())[0] / packed.tokens, params)


@functools.cache
def adapted():
  """The same behind an adapter that is not zero. -> LM, params, adapter, loss of a batch (BETag)"""
  model, params = language_model()
  cfg = dataclasses.replace(model.cfg, lora_rank=2)
  model, rng = llm.LM(cfg), np.random.default_rng(0)
  adapter = jax.tree.map(lambda x: x + np.float32(.3 * rng.normal(size=x.shape)),
                         lora.init_lora(cfg, jax.random.key(1)))
  return model, params, adapter, jax.jit(functools.partial(betag_tune.sample_loss, model, [5, 8]))


@functools.cache
def answered():
  """The loss of a batch of BIGRec and D3."""
  model, params = language_model()
  return jax.jit(lambda rows: sft.loss_sums(
      model, sft.common_prefix(PROMPTS), {'params': params}, rows))


def writer_of(model, variables):
  return PrefixGenerator(model, variables, Tokens(), sft.common_prefix(PROMPTS), 8)


class BetagTest(parameterized.TestCase):
  """Beams over an item's own line against the loss of the continuation."""

  def logp(self, prompt, row):
    """As `SampleBatches` lays a sample out; its loss is a mean over the tokens that count."""
    _, params, adapter, run = adapted()
    ids = [*prompt, *row]
    batch = {k: np.zeros((1, 64), np.int32) for k in ('tokens', 'positions', 'segments', 'targets')}
    here = slice(0, len(ids) - 1)
    batch['tokens'][0, here], batch['targets'][0, here] = ids[:-1], ids[1:]
    batch['positions'][0, here] = 2 + np.arange(len(ids) - 1)
    batch['segments'][0, here] = 1
    batch['weights'] = np.float32(np.zeros((1, 64)))
    batch['weights'][0, len(prompt) - 1:here.stop] = 1
    batch |= {'first': np.array([ids[0]]), 'first_weight': np.zeros(1, np.float32)}
    return -float(run(adapter, params, batch, None)[0]) * len(row)

  def beams(self, **over):
    cfg = ConfigDict({**config('betag_scientific').decode, **over})
    model, params, adapter, _ = adapted()
    ids = np.zeros((3, 16), np.int32)
    for row, prompt in zip(ids, PROMPTS):
      row[:len(prompt)] = prompt
    search, ends = betag.search_config(cfg, None)
    return search, betag.beams_of(model, search, ends, params, adapter, jnp.array([5, 8]), ids,
                                  np.array([len(p) for p in PROMPTS], np.int32))

  @parameterized.parameters((4, 4, 0.7), (3, 1, 0.0), (4, 4, 1.0))
  @long_but(0)
  def test_rows_of_groups_with_what_they_pay(self, beams, groups, power):
    search, found = self.beams(beams=beams, groups=groups, new_tokens=5, length_penalty=power,
                               diversity=.4, stop_at_line_end=False)
    for prompt, tokens, scores, order in zip(PROMPTS, found.tokens, found.scores, found.groups):
      rows = {int(g): np.asarray(t) for g, t in zip(order, tokens)}
      for g, t, score in zip(order, np.asarray(tokens), np.asarray(scores)):
        paid = sum((rows[o] == t).sum() for o in range(int(g))) if groups > 1 else 0
        want = self.logp(prompt, t.tolist()) - .4 * paid
        np.testing.assert_allclose(score * 5 ** power, want, atol=1e-4)

  def test_one_token_of_any_kind(self):
    _, found = self.beams(beams=V, groups=1, new_tokens=1, stop_at_line_end=False)
    np.testing.assert_allclose(np.exp(found.scores).sum(1), 1, atol=1e-5)


class InstructTest(parameterized.TestCase):
  """BIGRec's free titles, and D3's of the catalog without the assistant."""

  def logp(self, prompt, row):
    packed = sft.pack_pairs([prompt], [row], 'response', prefix=sft.common_prefix(PROMPTS))
    total, count = answered()(packed.batch())
    self.assertEqual(float(count), len(row))
    return -float(total)

  def texts(self, **over):
    cfg = ConfigDict({**config('bigrec_movies').decode, **over})
    model, params = language_model()
    writer = writer_of(model, {'params': params})
    found = bigrec.texts(writer, PROMPTS, cfg)
    return [[(Tokens().encode(t), s) for t, s in zip(*row)] for row in found]

  @parameterized.parameters((1.0, 'generated'), (.6, 'full'), (0.0, 'generated'))
  @long_but(1)
  def test_bigrec_by_every_length_rule(self, power, norm):
    ended = set()
    found = self.texts(beams=4, new_tokens=5, length_penalty=power, length_norm=norm)
    for prompt, rows in zip(PROMPTS, found):
      for ids, score in rows:
        length = len(ids) + (len(prompt) if norm == 'full' else 0)
        np.testing.assert_allclose(score, self.logp(prompt, ids) / length ** power, atol=1e-4)
        ended.add(ids[-1] == END)
    self.assertIn(True, ended)

  @long
  def test_bigrec_over_all_texts(self):
    # An end at once, or any other token and any second one.
    for rows in self.texts(beams=1 + (V - 1) * V, new_tokens=2, length_penalty=0.0):
      np.testing.assert_allclose(np.exp([s for _, s in rows]).sum(), 1, atol=1e-3)
      self.assertLen({tuple(ids) for ids, _ in rows}, 1 + (V - 1) * V)

  @parameterized.parameters(0.0, 1.0)
  @long_but(1)
  def test_d3_without_mixing(self, power):
    model, params = language_model()
    tree = trie.build(TITLES, END, V)
    planted = device_trie.to_device_trie(tree)
    share = np.random.default_rng(0).dirichlet(np.ones(len(TITLES)), 3)
    found = bigrec.titles(writer_of(model, {'params': params}), PROMPTS,
                          ConfigDict({'beams': len(TITLES)}), planted, None,
                          bigrec.mixed(planted, share, 1.0), power, not power)
    items, scores = found.best(len(TITLES), tree)
    self.assertEqual(np.sort(items).tolist(), [list(range(1, 9))] * 3)
    for prompt, row, values in zip(PROMPTS, items, scores):
      for item, value in zip(row, values):
        ids = [*TITLES[item - 1], END]
        np.testing.assert_allclose(value, self.logp(prompt, ids) / len(ids) ** power, atol=1e-4)


LOSSES = {'preset': {}, 'published': dict(free=0.0, scope_end=False), 'scope': dict(free=0.0),
          'branches': dict(free=.5, scope='branches'), 'whole': dict(scope='none', free=0.0)}


class ReclmTest(parameterized.TestCase):
  """The first item of a list by beams, against the loss of its title and end in a reply."""

  def shelf(self, kind, train):
    model, params = language_model()
    speaker = train_lib.ChatModel(model, params, None, Tokens(), SOI, EOI, [],
                           scoring=train_lib.scoring_options(train, EOI))
    rows = TITLES
    if kind == 'token':  # every code of both levels
      rows = [[a, b] for a in (4, 5, 6) for b in (7, 8, 9, 10)]
    ids = tuple(map(str, range(len(rows))))
    stock = tokenized_catalog.TokenizedCatalog(
      Catalog(ids, {'title': list(ids)}), list(ids), rows, [[]] * len(rows), {}
    )
    return generate.GroundedModel(speaker, [stock], kind=kind), stock, speaker

  def losses(self, cfg, stock, speaker, prompts):
    """The summed loss of each item as the first of a reply, through `train.loss_sums`. -> (B, N)"""
    tree = stock.to_trie(EOI, V)
    nodes = trie_masked.title_nodes(tree.first, tree.tok, [[*r, EOI] for r in stock.title_tokens])
    table = trie_masked.scope_of(tree.first, tree.tok, V)
    run = jax.jit(functools.partial(train_lib.loss_sums, cfg, speaker, PROMPTS[0][:2], table, 8))
    out = np.zeros((len(prompts), len(stock.title_tokens)))
    for b, prompt in enumerate(prompts):
      for i, row in enumerate(stock.title_tokens):
        before, title = [*prompt, 11, 9, SOI], [*row, EOI]
        ids = np.array([*before, *title])
        late = np.arange(len(ids)) >= len(before)
        node = np.full(len(ids), trie_masked.FREE, np.int32)
        node[late] = nodes[i]
        packed = sft.pack_conversations(
          [TokenSample(ids, late, {'node': node, 'item': -1 * late})],
          64,
          PROMPTS[0][:2],
          chat_encoding.MARKS,
        )
        sums, count = run({'params': speaker.params}, (), packed.batch([0]))
        assert float(count) == len(title)
        out[b, i] = float(sums['valid_loss'])
    return out

  @parameterized.parameters(*(('cgen', loss) for loss in LOSSES), ('token', 'scope'),
                            ('token', 'preset'))
  @long_but(2)
  def test_every_form_of_the_loss(self, kind, loss):
    cfg = config('reclm_scientific', f'grounding={kind}')
    cfg.train.update(prompt=0.0, gamma=0.0, **LOSSES[loss])
    shelf, stock, speaker = self.shelf(kind, cfg.train)
    writer, n = generate.prefix_generator(speaker, PROMPTS), len(stock.title_tokens)
    items, scores = generate.rank_items(shelf, writer, PROMPTS, n)
    self.assertEqual(np.sort(items).tolist(), [list(range(1, n + 1))] * 3)
    want = -np.take_along_axis(self.losses(cfg, stock, speaker, PROMPTS), items - 1, 1)
    np.testing.assert_allclose(scores, want, atol=1e-4)
    if loss == 'scope':  # over what the catalog allows, up to the end
      np.testing.assert_allclose(np.exp(scores).sum(1), 1, atol=1e-5)
    # An item that a user has already does not make others likelier than training has them.
    fewer, left = generate.rank_items(shelf, writer, PROMPTS, n, [items[b, :3] for b in range(3)])
    for b in range(3):
      self.assertEqual(fewer[b, :n - 3].tolist(), items[b, 3:].tolist())
      np.testing.assert_allclose(left[b, :n - 3], scores[b, 3:], atol=1e-5)

  def test_fetched_items(self):
    """RecLM-ret: products are the logits of the loss over the catalog."""
    cfg = config('reclm_scientific', 'grounding=ret')
    rng = np.random.default_rng(0)
    vectors = jnp.asarray(rng.normal(size=(8, 5)), jnp.float32)
    extra = {'project': train_lib.init_projection(jax.random.key(0), 16, 6, 5), 'items': vectors}
    shelf, stock, speaker = self.shelf('cgen', cfg.train)
    speaker.extra = extra
    shelf = generate.GroundedModel(speaker, [stock], kind='ret')
    writer = generate.prefix_generator(speaker, PROMPTS)
    items, scores = generate.rank_items(shelf, writer, PROMPTS, 8)
    tree = stock.to_trie(EOI, V)
    run = jax.jit(functools.partial(train_lib.loss_sums, cfg, speaker, PROMPTS[0][:2],
                                    trie_masked.scope_of(tree.first, tree.tok, V), 8))
    for prompt, row, values in zip(PROMPTS, items, scores):
      for item, value in zip(row, jax.nn.log_softmax(jnp.asarray(values))):
        ids = np.array([*prompt, 11, 9, SOI])
        late = np.arange(len(ids)) == len(ids) - 1
        packed = sft.pack_conversations([TokenSample(ids, late, {
            'node': np.full(len(ids), trie_masked.FREE), 'item': late * item})], 64, PROMPTS[0][:2],
                               chat_encoding.MARKS)
        sums, _ = run({'params': speaker.params, **extra}, (), packed.batch([0]))
        np.testing.assert_allclose(value, -float(sums['item_nll']), atol=1e-4)


class CodesTest(parameterized.TestCase):
  """TIGER (variant='tiger') and ETEGRec, with interests at every site, over semantic IDs."""

  def made(self, way, fusion, levels=3, size=3):
    """Every code at every level belongs to an item. -> coder.Config, params, table, texts"""
    both = way == 'etegrec'
    cfg = semantic_id_t5.Config(
      t5.Config(width=16, layers=1, decoder_layers=1, heads=2, head_dim=8, ffn=16, dropout=0.0),
      levels,
      size,
      6 if both else 0,
      16 if both else 0,
      fusion,
      5,
      2,
      1,
    )
    rng = np.random.default_rng(0)
    codes = np.stack(np.meshgrid(*[range(size)] * levels), -1).reshape(-1, levels)
    table = jnp.asarray(np.pad(rng.permutation(codes), [(1, 0), (0, 0)], constant_values=-1))
    texts = jnp.asarray(rng.normal(size=(9, 5)), jnp.float32)
    some = [(rng.integers(1, 28, (32, 4)), rng.integers(1, 8, 32), rng.integers(0, 9, (32, 2)))]
    params = jax.jit(semantic_id_t5.init, static_argnums=0)(cfg, jax.random.key(0))
    if fusion == 'none':
      params = learn(lambda p: self.loss(cfg, p, table, texts, some), params)
    # Others compile long; weights as large as trained ones, and a gate that is open.
    else:
      params = jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, params)
      params |= {'gate': jnp.float32(1)} if 'gate' in params else {}
    return cfg, params, table, texts

  def loss(self, cfg, params, table, texts, some):
    return coding.rec_loss(
      cfg,
      coding.AlignmentWeights(),
      None,
      None,
      texts,
      params,
      {'table': table},
      some,
      jax.random.key(1),
      1.0,
    )[0]

  @parameterized.parameters(('tiger', 'none'), ('tiger', 'encoder'), ('tiger', 'prefix'),
                            ('etegrec', 'none'), ('etegrec', 'pooled'), ('etegrec', 'encoder'))
  @long_but(1)
  def test_lists(self, way, fusion):
    cfg, params, table, texts = self.made(way, fusion)
    histories = [np.array([5, 9, 2]), np.array([1]), np.array([3, 3, 7, 8])]
    told = np.array([[1, 2], [3, 0], [4, 5]])
    given = None if fusion == 'none' else (np.asarray(texts)[told], told > 0)
    how = ConfigDict({'beams': 27, 'batch': 2})
    loss = jax.jit(lambda some: self.loss(cfg, params, table, texts, [some]))
    found = beam_ranking.rank_items(
      cfg, params, table, histories, 4, how, given, exclude_seen=False
    )
    np.testing.assert_allclose(np.exp(found[1]).sum(1), 1, atol=1e-4)
    self.assertEqual(np.sort(found[0]).tolist(), [list(range(1, 28))] * 3)
    for history, heard, items, scores in zip(histories, told, *found):
      row = np.pad(history, (0, 4 - len(history)))[None]
      for item, score in list(zip(items, scores))[::4]:
        mean = loss((row, np.array([item]), heard[None]))  # over the levels
        np.testing.assert_allclose(score, -3 * float(mean), atol=1e-4)
    if fusion != 'none':
      return
    free = beam_ranking.rank_items(
      cfg, params, table, histories, 4, how, given, exclude_seen=False, free=True
    )
    np.testing.assert_array_equal(found[0], free[0])
    np.testing.assert_allclose(found[1], free[1], atol=1e-4)
    # Histories that are out, and a few items alone, leave the scores of the others as they are.
    allowed = np.arange(1, 28) % 3 > 0
    fewer = beam_ranking.rank_items(cfg, params, table, histories, 4, how, given, allowed=allowed)
    for b, history in enumerate(histories):
      kept = [(i, s) for i, s in zip(found[0][b], found[1][b])
              if allowed[i - 1] and i not in history]
      self.assertEqual(fewer[0][b, :len(kept)].tolist(), [i for i, _ in kept])
      np.testing.assert_allclose(fewer[1][b, :len(kept)], [s for _, s in kept], atol=1e-4)


if __name__ == '__main__':
  absltest.main()
