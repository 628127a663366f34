"""LLMEmb's profile=faithful against the released code's formulas, written here in plain numpy.

Source of the formulas: models/LLMEmb.py, Adapter.py, Bert4Rec.py, utils.py and generators/data.py
of https://github.com/Applied-Machine-Learning-Lab/LLMEmb, models/SASRec.py and GRU4Rec.py of its
sibling https://github.com/liuqidong07/LLM-ESR, which has the same backbones.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.distributed.sharding import make_mesh
from recjax.errors import ConfigError
from recjax.methods.llmemb import prompts, rat, variants
from recjax.models import seqrec
from recjax.training import sequential
from tests.methods.llmemb_parts_test import config

N, K, D, L = 9, 6, 8, 5
KINDS = ('sasrec', 'gru4rec', 'bert4rec')
HISTORIES = ([3], [9, 2], [1, 2, 3, 4], [4, 9, 6, 7, 8], [9, 8, 7, 6, 5, 4, 3, 9])


def settings(kind, variant='full', **over):
  cfg = config(f'profile=faithful,backbone={kind}')
  for model in (cfg.model, cfg.base):
    model.update(max_history=L, width=D, hidden=D, dropout=0.)
  cfg.train.batch, cfg.loss.exclude = len(HISTORIES), 'none'
  cfg.train.update(mask_share=.6)
  cfg.rat.update(over)
  return cfg, rat.settings(cfg, variant)


def some_params(cfg, model, seed=0):
  """RAT's parameters, all of them random and large enough to matter."""
  params = rat.init(cfg, model, K, jax.random.key(0))
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(
      x + .4 * rng.normal(size=x.shape), jnp.float32), params)


def vectors():
  return np.float32(3 * np.random.default_rng(1).normal(size=(N, K)))


# The released formulas.


def as_numpy(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def norm(p, x):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-8)
  return x * p['scale'] + p['bias']


def attention(p, query, x, causal=False):
  """torch's MultiheadAttention(query, x, x) with one head and no mask."""
  q, k, v = (y @ p[n]['kernel'][:, 0] + p[n]['bias'][0] for n, y in (
      ('q', query), ('k', x), ('v', x)))
  scores = q @ k.T / np.sqrt(q.shape[-1])
  shares = np.exp(scores - scores.max(-1, keepdims=True))
  shares /= shares.sum(-1, keepdims=True)
  return shares @ v @ p['out']['kernel'][0] + p['out']['bias']


def gru(p, x):
  """torch's GRU without biases: gates r, z, n; the state begins at zero."""
  h = np.zeros(D)
  out = []
  sigmoid = lambda y: 1 / (1 + np.exp(-y))  # noqa: E731
  for step in x @ p['input']:
    (a, b, c), (d, e, f) = (np.split(y, 3) for y in (step, h @ p['state']))
    r, z = sigmoid(a + d), sigmoid(b + e)
    h = (1 - z) * np.tanh(c + r * f) + z * h
    out.append(h)
  return np.array(out)


class Released:
  """A model of the release: rows of its item table through the adapter, then its backbone."""

  def __init__(self, kind, params, table):
    self.kind, self.p = kind, as_numpy(params)
    zeros = np.zeros((1, K))
    if kind == 'bert4rec':  # padding in front, the mask's row behind
      self.table = np.concatenate([zeros, table, zeros])
    else:  # np.insert(table, -1, ...): before the last row
      self.table = np.insert(np.concatenate([zeros, table]), -1, 0, axis=0)

  def embed(self, ids):
    a = self.p['adapter']
    rows = (self.table[ids] @ a['w1'] + a['b1']) @ a['w2'] + a['b2']
    if self.kind == 'bert4rec':
      rows = np.where((ids == N + 1)[..., None], self.p['mask'], rows)
    return rows

  def states(self, seq, positions):
    """seq, positions: (L,). -> (L, D)"""
    x, p = self.embed(seq), self.p['rest']
    if self.kind == 'gru4rec':
      return gru(p['gru_0'], x)
    real = (seq > 0)[:, None]
    x = (x * np.sqrt(D) + p['positions'][positions]) * real
    for layer in range(2):
      b = p[f'block_{layer}']
      query = norm(b['norm_1'], x)
      x = norm(b['norm_2'], query + attention(b['attention'], query, x))
      inner = np.maximum(x @ b['feed']['up']['kernel'] + b['feed']['up']['bias'], 0)
      x = (x + inner @ b['feed']['down']['kernel'] + b['feed']['down']['bias']) * real
    return norm(p['norm'], x)

  def predict(self, history):
    """Scores of items 1..N."""
    some = history[-L:]
    seq = np.array([0] * (L - len(some)) + some)
    positions = np.array([0] * (L - len(some)) + list(range(1, len(some) + 1)))
    if self.kind == 'bert4rec':
      seq = np.append(seq, N + 1)[1:]
      positions = np.append(positions, positions[-1] + 1)[1:]
    return self.embed(np.arange(1, N + 1)) @ self.states(seq, positions)[-1]

  def loss(self, batch, alpha, tau, aim):
    """batch: (seq, pos, neg, positions) of users, (L,) each. The mean BCE and the alignment."""
    goods, bads, goals = [], [], []
    for seq, pos, neg, positions in batch:
      states, asked = self.states(seq, positions), pos > 0
      goods.append((states * self.embed(pos)).sum(-1)[asked])
      bads.append((states * self.embed(neg)).sum(-1)[asked])
      goals.append(pos[asked])
    good, bad, goal = map(np.concatenate, (goods, bads, goals))
    value = np.log1p(np.exp(-good)).mean() + np.log1p(np.exp(bad)).mean()
    x, y = aim[goal - 1].astype(np.float64), self.embed(goal)
    near = (x @ x.T + y @ y.T) / 2 * tau
    aimed = np.exp(near - near.max(-1, keepdims=True))
    aimed /= aimed.sum(-1, keepdims=True)

    def entropy(scores, t):
      scores = scores - scores.max(-1, keepdims=True)
      return -(t * (scores - np.log(np.exp(scores).sum(-1, keepdims=True)))).sum(1)
    both = entropy(x @ y.T / tau, aimed) + entropy(y @ x.T / tau, aimed.T)
    return value + alpha * (both / 2).mean()


class ForwardTest(parameterized.TestCase):

  @parameterized.parameters(*KINDS)
  def test_scores_of_every_item(self, kind):
    cfg, how = settings(kind)
    model = sequential.model_config(how, N)
    params, table = some_params(how, model), vectors()
    x = rat.adapter_inputs(how, model, table, N)
    full = rat.expand_table(how, model, params, jnp.asarray(x))
    score = sequential.scorer(model, full)
    items = np.concatenate(HISTORIES)
    offsets = np.cumsum([0, *map(len, HISTORIES)])
    ours = np.asarray(score(items, offsets))
    theirs = np.stack([Released(kind, params, table).predict(h) for h in HISTORIES])
    self.assertGreater(np.ptp(theirs), 1)
    np.testing.assert_allclose(ours[:, -N:], theirs, atol=1e-5)

  @parameterized.parameters(*KINDS)
  def test_the_loss_of_a_batch(self, kind):
    cfg, how = settings(kind)
    model = sequential.model_config(how, N)
    params, table = some_params(how, model), vectors()
    aim = np.float32(np.random.default_rng(2).normal(size=(N, D)))
    seqs = np.array([[0] * (L + 1 - len(h[-L - 1:])) + h[-L - 1:] for h in HISTORIES])
    key, targets = jax.random.key(7), 128
    loss = functools.partial(sequential.loss_of, how, model, make_mesh({'data': 1}) if len(
        jax.devices()) == 1 else jax.sharding.Mesh(np.array(jax.devices()[:1]), ('data',)), 8,
                             targets)
    total = rat.make_objective(how, K, model, loss, targets)[1]
    ours = total(params, jnp.asarray(rat.adapter_inputs(how, model, table, N)), jnp.asarray(aim),
                 jnp.asarray(seqs), key)
    hide, _, draw = jax.random.split(key, 3)
    drawn = iter(np.asarray(sequential.negatives(how.loss, N, targets, len(seqs), draw))[:, 0] + 1)
    batch = []
    shown = zip(*map(np.asarray, sequential.example(how, model, jnp.asarray(seqs), hide)))
    for row, (seq, pos) in zip(seqs, shown):
      if kind != 'bert4rec':  # everything but the last is read, the next item asked
        seq = row[:-1]
        pos = np.where(seq > 0, row[1:], 0)
        if kind == 'gru4rec':
          pos = pos * (np.arange(L) == L - 1)
      count = (seq > 0).sum()
      positions = np.array([0] * (L - count) + list(range(1, count + 1)))
      batch.append((seq, pos, np.array([next(drawn) if p else 0 for p in pos]), positions))
    theirs = Released(kind, params, table).loss(batch, .01, 2., aim)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)

  def test_gru4rec_drops_nothing_and_its_state_is_the_answer(self):
    model = seqrec.Config('gru4rec', N, L, D, 1, 1, D, .9, bare=True)
    params = seqrec.init(model, jax.random.key(0))
    self.assertEqual(set(params), {'items', 'gru_0'})
    rows = jnp.array([[1, 2, 3, 4, 5]])
    one, two = (seqrec.SeqRec(model).apply(
        {'params': params}, rows, rows, rows > 0, train, rngs={'dropout': jax.random.key(1)})
        for train in (False, True))
    np.testing.assert_array_equal(one, two)
    with self.assertRaisesRegex(ConfigError, 'model.hidden=9 must equal model.width=8'):
      seqrec.Config('gru4rec', N, L, D, hidden=9, bare=True)

  def test_of_ids_the_row_of_padding_is_drawn_and_stays(self):
    cfg, _ = settings('gru4rec')
    how = rat.id_settings(cfg, 'gru4rec')
    model = sequential.model_config(how, N)
    loss = functools.partial(sequential.loss_of, how, model, jax.sharding.Mesh(
        np.array(jax.devices()[:1]), ('data',)), 8, 128)
    init, total = sequential.plain(model, loss, 128)
    params = init(jax.random.key(0))
    self.assertGreater(float(jnp.abs(params['items'][0]).max()), 0)
    grads = jax.grad(total)(params, (), (), jnp.array([[0, 0, 0, 1, 2, 3]]), jax.random.key(1))
    self.assertEqual(float(jnp.abs(grads['items'][0]).max()), 0)
    self.assertGreater(float(jnp.abs(grads['items'][2]).max()), 0)


class SwitchTest(parameterized.TestCase):

  @parameterized.parameters('sasrec', 'gru4rec')
  def test_the_last_item_reads_the_adapters_bias(self, kind):
    _, how = settings(kind)
    model = sequential.model_config(how, N)
    params, x = some_params(how, model), jnp.asarray(vectors())
    table = np.asarray(rat.expand_table(how, model, params, x)['items'])
    a = as_numpy(params['adapter'])
    np.testing.assert_allclose(table[N], a['b1'] @ a['w2'] + a['b2'], atol=1e-5)
    np.testing.assert_allclose(table[0], table[N], atol=1e-6)
    how.early_mask_row = False
    self.assertGreater(np.abs(np.asarray(
        rat.expand_table(how, model, params, x)['items'])[N] - table[N]).max(), .1)

  def test_vectors_enter_as_they_are(self):
    for variant, width in (('full', K), ('no_adapter', D)):
      _, how = settings('sasrec', variant)
      model, table = sequential.model_config(how, N), np.tile(vectors(), 2)
      np.testing.assert_array_equal(
        rat.adapter_inputs(how, model, table[:, : 12 if width == D else K], N), table[:, :width]
      )

  def test_masks_are_drawn_place_by_place(self):
    cfg, _ = settings('bert4rec')
    how = rat.id_settings(cfg, 'bert4rec')
    how.train.update(mask_last=0.)
    model = sequential.model_config(how, 200)
    seqs = jnp.tile(jnp.arange(1, L + 2), (4000, 1))
    shown, asked = map(np.asarray, sequential.example(how, model, seqs, jax.random.key(0)))
    hidden, told = asked > 0, np.asarray(seqs)[:, 1:]
    np.testing.assert_array_equal(asked[hidden], told[hidden])
    np.testing.assert_array_equal(shown[~hidden], told[~hidden])
    np.testing.assert_allclose(hidden.mean(), .6, atol=.01)
    # Of 5 places each hidden by chance of .6: none in .4 ** 5 of the rows, all in .6 ** 5.
    counts = np.bincount(hidden.sum(1), minlength=6) / 4000
    np.testing.assert_allclose(counts[[0, 5]], [.4 ** 5, .6 ** 5], atol=.01)
    np.testing.assert_allclose((shown == 201)[hidden].mean(), .8, atol=.02)
    same = (shown == told)[hidden].mean()
    np.testing.assert_allclose(same, .1 + .1 / 200, atol=.01)
    how.train.update(mask_last=1.)
    shown, asked = map(np.asarray, sequential.example(how, model, seqs, jax.random.key(0)))
    self.assertTrue((shown[:, -1] == 201).all() and (asked[:, :-1] == 0).all())
    self.assertEqual(int(sequential.needs(how, model, seqs)[1][0]), L)

  def test_views_as_released(self):
    """dropout_feature of llm/data_processor/llama.py: blanks stay, a lone attribute goes."""
    text = 'H\na is 1; b is 2; c is 3'
    for seed in range(5):
      got = prompts.view(text, .4, np.random.default_rng(seed), crude=True)
      order = np.random.default_rng(seed).permutation(3)[:2]
      self.assertEqual(got, 'H\n' + ';'.join(['a is 1', ' b is 2', ' c is 3'][i] for i in order))
    self.assertEqual(prompts.view('H\na is 1', .4, np.random.default_rng(0), crude=True), 'H')

  def test_the_profile_takes_all_of_them(self):
    cfg = config('paper,profile=faithful,backbone=bert4rec')
    self.assertEqual((cfg.model.heads, cfg.model.hidden, cfg.scft.optim.warmup), (1, 128, 0))
    self.assertEqual((cfg.rat.align_loss, cfg.rat.activation), ('soft_target', 'none'))
    bert, sas = (variants.recommender_config(cfg, k) for k in ('bert4rec', 'sasrec'))
    self.assertTrue(bert.model.bare and bert.train.mask_by_chance and not bert.model.future)
    self.assertTrue(sas.model.future and not sas.train.mask_by_chance)


if __name__ == '__main__':
  absltest.main()
