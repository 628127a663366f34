"""The public face: against transformers on tiny Llama and Qwen3 models, and its own promises."""
import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.decoding import device_trie, item_filter, item_span, trie
from recjax.decoding.beam_search import BeamSearch
from recjax.decoding.constraints import CatalogConstraint, Normalization, Unconstrained
from recjax.decoding.diverse_beam_search import DiverseBeamSearch
from recjax.decoding.generate import generate
from recjax.decoding.lm_head import BoundDecoder
from recjax.decoding.lookahead_beam_search import LookaheadBeamSearch
from recjax.decoding.sampling import Sampling, sample, within_cuts
from recjax.distributed import sharding
from recjax.errors import ConfigError, DataError, UserError
from recjax.models import huggingface, llm, llm_decoder
from recjax.models.llm_decoder import uncached
from recjax.protocols import Decoder
from recjax.text import tokenizer as tokenizers
from tests.long import long, long_but
from tests.reference import group_search as group_judge

HAS_TORCH = importlib.util.find_spec('torch') is not None
SHARED = pathlib.Path(__file__).parents[2].parent / 'shared'
V, END = 30, 29
TABLE = Decoder(  # a model whose next token depends on the last one alone
    lambda params, tokens, lengths, beams, new: (
        params[jnp.take_along_axis(tokens, (lengths - 1)[:, None], 1)[:, 0]], ()),
    lambda params, cache, tokens, t: (params[tokens], cache), lambda cache, parents: cache,
    lambda params, state: state)
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(V, V)) * 2, jnp.float32)
ROWS = [np.random.default_rng(i).integers(0, END, 1 + i % 5).tolist() for i in range(40)]
TRIE = trie.build(ROWS, end=END, vocab=V)
TITLES = CatalogConstraint(device_trie.to_device_trie(TRIE))


class PeerTest(parameterized.TestCase):
  """Token for token what transformers gives; skipped where torch is not installed."""

  def setUp(self):
    super().setUp()
    if not HAS_TORCH:
      self.skipTest('torch is not installed')

  def models(self, family, vocab):
    import torch
    import transformers
    torch.manual_seed(0)
    shape = dict(vocab_size=vocab, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, intermediate_size=48, max_position_embeddings=256,
                 initializer_range=0.3, tie_word_embeddings=family == 'Qwen3')
    shape |= dict(head_dim=8) if family == 'Qwen3' else {}
    theirs = getattr(transformers, f'{family}ForCausalLM')(
        getattr(transformers, f'{family}Config')(**shape)).eval()
    folder = self.create_tempdir().full_path
    theirs.save_pretrained(folder)
    cfg = huggingface.read_config(folder)
    return theirs, llm_decoder.decoder(llm.LM(cfg)), {'params': huggingface.load(folder, cfg)}

  def peer(self, theirs, prompts, beams, new_tokens, alpha, early, end, **kw):
    """One prompt at a time, so that padding plays no part. -> [B] of [(score, tokens)]"""
    import torch
    out = []
    for prompt in prompts:
      ids = torch.tensor([prompt])
      with torch.inference_mode():
        found = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=beams,
            num_return_sequences=beams, max_new_tokens=new_tokens, length_penalty=alpha,
            early_stopping=early, eos_token_id=end, pad_token_id=0, output_scores=True,
            return_dict_in_generate=True, **kw)
      rows = [r[len(prompt):].tolist() for r in found.sequences]
      first = [min((r.index(e) for e in end if e in r), default=len(r)) for r in rows]
      out.append([(float(s), r[:n + 1]) for s, r, n in zip(found.sequences_scores, rows, first)])
    return out

  def agree(self, found, want):
    """Rows in order, scores close; rows of equal score may change places."""
    for b, rows in enumerate(want):
      got = [(float(s), found.row(b, k)) for k, s in enumerate(found.scores[b])
             if found.exists[b, k]]
      rows = [r for r in rows if r[0] > -1e8]
      self.assertLen(got, len(rows))
      np.testing.assert_allclose([s for s, _ in got], [s for s, _ in rows], atol=5e-4)
      self.assertEqual([r for _, r in got], [r for _, r in rows])

  @parameterized.parameters(
      ('Llama', 0.0, False, 4, (29,)), ('Llama', 1.0, False, 4, (28, 29)),
      ('Llama', 1.0, True, 4, (29,)), ('Llama', 0.0, False, 1, (28, 29)),
      ('Qwen3', 0.0, True, 4, (28, 29)), ('Qwen3', 1.0, False, 4, (29,)),
      ('Qwen3', 0.0, False, 1, (29,)))
  @long_but(6)
  def test_free_beams(self, family, alpha, early, beams, ends):
    theirs, decoder, params = self.models(family, V)
    prompts = [[3, 1, 4, 1, 5], [9, 2, 6]]
    if beams == 1:  # transformers answers by greedy search, which knows no stopping rule
      found = generate(decoder, params, prompts, BeamSearch(1, 10), Unconstrained(ends))
      import torch
      for b, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        row = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                              max_new_tokens=10, eos_token_id=list(ends), pad_token_id=0)
        row = row[0, len(prompt):].tolist()
        self.assertEqual(found.row(b, 0), row)
      return
    want = self.peer(theirs, prompts, beams, 10, alpha, early, list(ends))
    found = generate(decoder, params, prompts, BeamSearch(beams, 10, alpha, early),
                     Unconstrained(ends))
    self.agree(found, want)

  @parameterized.parameters(('Llama', 0.0, 4), ('Llama', 0.5, 50), ('Qwen3', 1.0, 4),
                            ('Qwen3', 0.0, 50))
  @long_but(2)
  def test_titles_against_a_prefix_function(self, family, alpha, beams):
    theirs, decoder, params = self.models(family, V)
    prompts = [[3, 1, 4, 1, 5], [9, 2, 6]]
    rows = []
    for prompt in prompts:
      n = len(prompt)
      rows += self.peer(theirs, [prompt], beams, 8, alpha, 'never', [END],
                        prefix_allowed_tokens_fn=lambda _, ids, n=n: self.after(ids[n:].tolist()))
    real = {(*r, END) for r in map(tuple, ROWS)}
    rows = [[r for r in given if tuple(r[1]) in real] for given in rows]  # theirs run out of titles
    found = generate(decoder, params, prompts, BeamSearch(beams, 8, alpha, 'never'), TITLES)
    if beams == 50:  # every title is found, so only the order of the best can be told apart
      self.assertEqual(found.exists.sum(1).tolist(), [len(real)] * 2)
    self.agree(dataclasses.replace(found, exists=found.exists & (found.scores > -1e8)), rows)

  def after(self, prefix):
    try:
      return TRIE.children(prefix) or [0]
    except DataError:
      return [0]

  @long
  def test_titles_in_the_tokens_of_qwen3(self):
    folder = SHARED / 'models' / 'qwen3-tokenizer'
    if not folder.exists():
      self.skipTest(f'{folder} is not there')
    tokenizer = tokenizers.load(folder)
    titles = ['Steel ruler 30 cm', 'Steel ruler', 'Glass beaker 250 ml', 'Glass funnel',
              'Litmus paper <|im_end|> pH 1-14', 'Pocket pH meter']
    rows = tokenizer.encode_batch(titles)
    end = tokenizer.eos_ids[0]
    size = 151_936
    built = trie.build(rows, end=end, vocab=size)
    theirs, decoder, params = self.models('Qwen3', size)
    prompt = tokenizer.encode('Next item: ')
    n = len(prompt)
    want = self.peer(
      theirs,
      [prompt],
      4,
      built.longest,
      0.0,
      False,
      [end],
      prefix_allowed_tokens_fn=lambda _, ids: (
        built.children(ids[n:].tolist()) if self.real(built, ids[n:].tolist()) else [end]
      ),
    )
    found = generate(
      decoder,
      params,
      [prompt],
      BeamSearch(4, built.longest, 0.0),
      CatalogConstraint(device_trie.to_device_trie(built)),
    )
    self.agree(found, want)
    for item, _ in found.items(built)[0]:
      self.assertEqual(tokenizer.decode(built.row(item - 1)[:-1].tolist()), titles[item - 1])

  def real(self, built, prefix):
    try:
      return bool(built.children(prefix))
    except DataError:
      return False


class GenerateTest(parameterized.TestCase):

  @long
  def test_prompts_of_different_lengths_in_one_batch_are_as_alone(self):
    cfg = llm.Config(vocab=V, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48)
    decoder = llm_decoder.decoder(llm.LM(cfg))
    params = {'params': jax.tree.map(lambda x: x * 15 if x.ndim > 2 else x,
                                     llm.init(cfg, jax.random.key(0)))}
    prompts = [[1, 2, 3], [4], list(range(20))]
    together = generate(decoder, params, prompts, BeamSearch(5), TITLES)
    for b, prompt in enumerate(prompts):
      alone = generate(decoder, params, [prompt], BeamSearch(5), TITLES)
      np.testing.assert_array_equal(together.tokens[b], alone.tokens[0])

    def whole(params, rows):
      at = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
      hidden, _ = llm.LM(cfg).apply(params, rows, at, jnp.ones_like(rows))
      return llm.LM(cfg).apply(params, hidden, method='logits')
    slow = generate(uncached(whole), params, prompts, BeamSearch(5), TITLES)
    np.testing.assert_array_equal(together.tokens, slow.tokens)
    np.testing.assert_allclose(together.scores, slow.scores, atol=1e-4)

  @parameterized.parameters('vocab', 'valid')
  @long
  def test_lookahead_gives_the_same_rows(self, normalize):
    cfg = llm.Config(vocab=V, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48)
    decoder = llm_decoder.decoder(llm.LM(cfg))
    params = {'params': jax.tree.map(lambda x: x * 15 if x.ndim > 2 else x,
                                     llm.init(cfg, jax.random.key(0)))}
    prompts = [[1, 2, 3], [4]]
    titles = dataclasses.replace(TITLES, normalization=Normalization(normalize))
    want = generate(decoder, params, prompts, BeamSearch(50, length_penalty=0.0), titles)
    found = generate(decoder, params, prompts, LookaheadBeamSearch(50, length_penalty=0.0), titles)
    np.testing.assert_array_equal(found.exists, want.exists)
    np.testing.assert_array_equal(found.tokens[found.exists], want.tokens[want.exists])
    self.assertEqual(found.items(TRIE)[0][0][0], want.items(TRIE)[0][0][0])
    self.assertTrue(found.complete[found.exists].all())
    for titles in (None, dataclasses.replace(TITLES, min_new_tokens=2)):
      with self.assertRaisesRegex(ConfigError, 'needs a CatalogConstraint without'):
        generate(decoder, params, prompts, LookaheadBeamSearch(1, 4), titles)

  @parameterized.parameters(({'data': 8},), ({'data': 4, 'model': 2},))
  @long
  def test_eight_devices_give_what_one_gives(self, axes):
    cfg = llm.Config(vocab=V, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48)
    decoder = llm_decoder.decoder(llm.LM(cfg))
    params = {'params': jax.tree.map(lambda x: x * 15 if x.ndim > 2 else x,
                                     llm.init(cfg, jax.random.key(0)))}
    prompts = [[i + 1, 2, 3][:1 + i % 3] for i in range(8)]
    alone = generate(decoder, params, prompts, BeamSearch(4), TITLES)
    mesh = sharding.make_mesh(axes)
    with jax.set_mesh(mesh):
      spread = {'params': jax.device_put(
          params['params'], sharding.shardings(params['params'], llm.RULES, mesh))}
      found = generate(decoder, spread, prompts, BeamSearch(4), TITLES)
    np.testing.assert_array_equal(found.tokens, alone.tokens)
    np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)

  def test_items_come_with_their_scores_and_shared_titles_with_all_of_them(self):
    built = trie.build([[1, 2], [3], [1, 2]], end=END, vocab=V)
    titles = CatalogConstraint(device_trie.to_device_trie(built))
    found = generate(TABLE, LOGITS, [[5]], BeamSearch(4), titles)
    self.assertEqual(sorted(i for i, _ in found.items(built)[0]), [1, 2])
    self.assertEqual(sorted(i for i, _ in found.items(built, every=True)[0]), [1, 2, 3])
    limits = item_filter.build_item_filter(built, taken=[[1]])
    found = generate(TABLE, LOGITS, [[5]], BeamSearch(4),
                     dataclasses.replace(titles, item_filter=limits))
    self.assertEqual(sorted(i for i, _ in found.items(built, limits)[0]), [2, 3])
    allowed = item_filter.build_item_filter(built, allowed=[[3]])
    found = generate(TABLE, LOGITS, [[5]], BeamSearch(4),
                     dataclasses.replace(titles, item_filter=allowed))
    self.assertEqual([i for i, _ in found.items(built, allowed)[0]], [3])

  @parameterized.parameters((4, 4), (6, 2), (6, 3))
  @long_but(1)
  def test_groups_under_titles_are_those_of_the_judge(self, beams, groups):
    found = generate(TABLE, LOGITS, [[5], [7]], DiverseBeamSearch(beams, groups, new_tokens=8),
                     TITLES)
    table = np.asarray(jax.nn.log_softmax(LOGITS))

    def after(last, tokens):
      row = np.full(V, -np.inf, np.float32)
      kids = TRIE.children(tokens)
      row[kids] = table[last if not tokens else tokens[-1]][kids]
      return row
    for b, last in enumerate((5, 7)):
      want = constrained_judge(lambda t, last=last: after(last, t), beams, groups, 8)
      got = [tuple(found.row(b, k)) for k in range(beams) if found.exists[b, k]]
      self.assertEqual(got, [t for _, t in want])
      np.testing.assert_allclose(found.scores[b][found.exists[b]], [v for v, _ in want], atol=1e-4)
      self.assertTrue(found.complete[b][found.exists[b]].all())

  def test_groups_choose_different_first_tokens_under_a_large_penalty(self):
    found = generate(TABLE, LOGITS, [[5]], DiverseBeamSearch(6, 6, 1e4, 8), TITLES)
    self.assertLen({found.row(0, k)[0] for k in range(6)}, 6)

  def test_groups_find_titles_of_just_the_fewest_tokens(self):
    built = trie.build([[1], [2], [3, 4], [5, 6, 7]], end=END, vocab=V)
    titles = CatalogConstraint(device_trie.to_device_trie(built), min_new_tokens=3)
    found = generate(TABLE, LOGITS, [[5]], DiverseBeamSearch(8, 2), titles)
    rows = {tuple(found.row(0, k)) for k in range(8) if found.exists[0, k]}
    self.assertEqual(rows, {(3, 4, END), (5, 6, 7, END)})

  def test_sampled_rows_are_titles_with_their_own_scores(self):
    found = generate(TABLE, LOGITS, [[5], [7]], Sampling(50, temperature=1.5), TITLES, seed=3)
    real = {(*r, END) for r in map(tuple, ROWS)}
    table = np.asarray(jax.nn.log_softmax(LOGITS))
    for b, last in enumerate((5, 7)):
      for k in range(50):
        row = found.row(b, k)
        self.assertIn(tuple(row), real)
        self.assertAlmostEqual(found.scores[b, k], sum(
            table[x][y] for x, y in zip([last, *row[:-1]], row)), delta=1e-3)
    self.assertGreater(len({tuple(found.row(0, k)) for k in range(50)}), 5)
    again = generate(TABLE, LOGITS, [[5], [7]], Sampling(50, temperature=1.5), TITLES, seed=3)
    np.testing.assert_array_equal(found.tokens, again.tokens)

  def test_samples_follow_the_models_distribution(self):
    rows = [[i] for i in range(6)]
    titles = CatalogConstraint(device_trie.to_device_trie(trie.build(rows, end=END, vocab=V)))
    found = generate(TABLE, LOGITS, [[5]], Sampling(4000), titles)
    p = np.exp(np.asarray(LOGITS)[5, :6])
    share = np.bincount(found.tokens[0, :, 0], minlength=6) / 4000
    np.testing.assert_allclose(share, p / p.sum(), atol=0.03)  # four standard errors

  @long
  def test_sampling_in_a_batch_is_as_alone(self):
    many = generate(TABLE, LOGITS, [[5], [7], [2]], Sampling(3), TITLES, seed=1)
    one = generate(TABLE, LOGITS, [[5]], Sampling(3), TITLES, seed=1)
    np.testing.assert_array_equal(many.tokens[0], one.tokens[0])

  def test_temperature_zero_is_greedy(self):
    found = generate(TABLE, LOGITS, [[5]], Sampling(1, 6, 0.0), Unconstrained((END,)))
    row = [5]
    while len(row) < 7 and row[-1] != END:
      row.append(int(np.argmax(LOGITS[row[-1]])))
    self.assertEqual(found.row(0, 0), row[1:])

  @parameterized.parameters((3, 1.0), (0, 0.6), (4, 0.7), (0, 1e-6))
  @long_but(0, 2)
  def test_cuts_are_those_of_transformers(self, top_k, top_p):
    x = np.random.default_rng(0).normal(size=(5, 20)).astype(np.float32) * 2
    kept = np.asarray(within_cuts(jnp.asarray(x), top_k, top_p))
    for row, good in zip(x, kept):
      order = np.argsort(-row)
      order = order[:top_k] if top_k else order
      p = np.exp(row[order] - row[order].max())
      p /= p.sum()
      want = {int(i) for i, before in zip(order, np.cumsum(p) - p) if before < top_p}
      self.assertEqual(set(np.flatnonzero(good).tolist()), want)

  def test_top_p_of_a_whole_vocabulary(self):
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(4, 50_000)) * 3).astype(np.float32)
    x[2, rng.integers(0, 50_000, 20_000)] = -1e30  # forbidden
    x[3] = 1.5  # all equal: the bound keeps all
    kept = np.asarray(within_cuts(jnp.asarray(x), 0, .9))
    p = np.exp(np.float64(x) - x.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    for row, share, good in zip(x[:3], p, kept):
      fewest = int((np.cumsum(np.sort(share)[::-1]) < .9).sum()) + 1
      self.assertAlmostEqual(good.sum(), fewest, delta=1)  # sums of float32 come in another order
      self.assertGreater(row[good].min(), row[~good].max())
    self.assertTrue(kept[3].all())
    text = jax.jit(lambda x: within_cuts(x, 0, .9)).lower(x).as_text()
    self.assertNotIn('sort', text)

  def test_equal_candidates_at_a_cut_stay_together_as_in_transformers(self):
    x = jnp.log(jnp.float32([.1, .3, .3, .2, .1]))
    self.assertEqual(within_cuts(x, 1, 1.0).tolist(), [False, True, True, False, False])
    self.assertEqual(within_cuts(x, 0, .2).tolist(), [False, True, True, False, False])

  def test_a_reply_with_items_by_beams(self):
    built = trie.build([[1, 2], [3]], end=END, vocab=V)
    mode = item_span.item_span_constraint(
      built, device_trie.to_device_trie(built), item_span.SpanSettings(28, END, (27,), 16)
    )
    logits = LOGITS.at[:, 28].add(5)
    found = generate(TABLE, logits, [[5]], BeamSearch(2), mode)
    items, _ = item_span.parse(built, found.row(0, 0), 28)
    self.assertEqual(sorted(items), [1, 2])

  def test_a_second_catalog_of_that_size_compiles_nothing(self):
    traced = []

    def step(params, cache, tokens, t):
      traced.append(1)
      return params[tokens], cache
    decoder = TABLE._replace(step=step)
    generate(decoder, LOGITS, [[5], [6]], BeamSearch(3), TITLES)
    before = len(traced)
    other = CatalogConstraint(
      device_trie.to_device_trie(trie.build([r[::-1] for r in ROWS], end=END, vocab=V))
    )
    generate(decoder, LOGITS, [[7, 8], [6]], BeamSearch(3), other)
    self.assertLen(traced, before)

  @parameterized.parameters(
      (dict(prompts=[]), DataError, 'no prompt'), (dict(prompts=[[1], []]), DataError, 'prompt 1'),
      (dict(prompts=[[1] * 9], longest_prompt=8), DataError, 'prompt 0 has 9 tokens'),
      (dict(constraint=None), ConfigError, 'new_tokens'),
      (dict(search=LookaheadBeamSearch(2)), ConfigError, 'decoder with extend'))
  def test_bad_requests_are_refused(self, changes, error, words):
    given = dict(prompts=[[5]], constraint=TITLES, search=BeamSearch(2)) | changes
    with self.assertRaisesRegex(error, words):
      generate(TABLE, LOGITS, **given)

  @parameterized.parameters(
      (dict(samples=0), 'samples=0'), (dict(new_tokens=0), 'new_tokens=0'),
      (dict(top_p=0.0), 'top_p'), (dict(temperature=-1.0), 'temperature=-1'),
      (dict(pass_width=-1), 'pass_width=-1'))
  def test_impossible_settings_of_sampling_name_the_setting(self, change, words):
    with self.assertRaisesRegex(ConfigError, words):
      Sampling(**change)

  def test_a_model_that_gives_nan_is_told_with_request_and_step(self):
    logits = LOGITS.at[7].set(jnp.nan)
    titles = CatalogConstraint(
      device_trie.to_device_trie(trie.build([[7, 3], [7, 4]], end=END, vocab=V))
    )
    with self.assertRaisesRegex(UserError, 'NaN for request 0 at new token 0'):
      generate(TABLE, logits, [[7]], BeamSearch(2), titles)
    with self.assertRaisesRegex(UserError, 'NaN for request 0 at new token 1'):
      generate(TABLE, logits, [[5]], BeamSearch(2), titles)
    for search in (Sampling(3, 4), Sampling(1, 4, 0.0)):
      with self.assertRaisesRegex(UserError, 'NaN for request 1 at new token 0'):
        generate(TABLE, logits, [[5], [7]], search, Unconstrained((END,)))
      with self.assertRaisesRegex(UserError, 'NaN for request 0 at new token 1'):
        generate(TABLE, logits, [[5]], search, titles)

  def test_sampling_over_the_whole_vocabulary_ends_at_an_end_token(self):
    found = jax.jit(lambda table, key: sample(
        BoundDecoder(lambda tokens, c, t: (table[tokens], c)), (), table[:2],
        Unconstrained((END,)), Sampling(20, 12), key))(LOGITS, jax.random.key(0))
    for row, n, over in zip(np.asarray(found.tokens).reshape(40, -1),
                            np.asarray(found.lengths).reshape(-1),
                            np.asarray(found.complete).reshape(-1)):
      self.assertEqual(bool(over), END in row[:n].tolist())
      self.assertNotIn(END, row[:n - 1].tolist())


def constrained_judge(logp_after, beams, groups, new_tokens):
  """Group search over titles, plainly: log-probabilities come masked, END alone ends a row."""
  size = beams // groups
  scores = np.full((groups, size), -1e9, np.float32)
  scores[:, 0] = 0
  rows = [[[] for _ in range(size)] for _ in range(groups)]
  best, closed = [[] for _ in range(groups)], [False] * groups
  for t in range(new_tokens):
    counts = np.zeros(V, np.float32)
    for g in range(groups):
      if closed[g]:
        counts[0] += size  # a finished group emits pad
        continue
      pairs = []
      for b in range(size):
        if scores[g, b] < -1e20:
          continue
        logp = logp_after(rows[g][b])
        pairs += [(scores[g, b] + logp[w] - counts[w], b, w) for w in np.flatnonzero(logp > -1e9)]
      pairs.sort(key=lambda p: (-p[0], p[1], p[2]))
      chosen = [p for p in pairs if p[2] != END][:size]
      for total, b, w in pairs[:size]:
        if w == END:
          group_judge._store(best[g], np.float32(total / (t + 1)), (*rows[g][b], w), size)
      top = pairs[0][0] / (t + 1) if pairs else -np.inf
      closed[g] = not pairs or (len(best[g]) == size and min(v for v, _ in best[g]) >= top)
      new = [([*rows[g][b], w], total) for total, b, w in chosen]
      new += [([], -1e30)] * (size - len(new))
      rows[g], scores[g] = [r for r, _ in new], [s for _, s in new]
      for _, _, w in chosen:
        counts[w] += 1
    if all(closed):
      break
  pooled = [(v, t) for g in range(groups) for v, t in sorted(best[g], key=lambda e: -e[0])]
  return sorted(pooled, key=lambda e: -e[0])


if __name__ == '__main__':
  absltest.main()
