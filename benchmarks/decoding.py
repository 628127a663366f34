"""Constrained decoding side by side with transformers, on real titles and semantic IDs.

  python -m benchmarks.decoding [--lines=q1,q2,q4,...] [--data=FOLDER] [--rounds=5]
  python -m benchmarks.decoding --lines=q1 --weights=CHECKPOINT  # a real model and its tokenizer

FOLDER holds items.jsonl and semantic_ids.json. A 4-layer Qwen2-shaped model is trained on the
titles once (kept in benchmarks/out), and both sides run its weights in float32. Every line asserts
that the results are equal before it times anything; rounds are interleaved; compilation is apart.

  q1  titles: exact and 'valid' against transformers with a prefix function
  q2  titles: constrained against unconstrained, both ours      q3  against a direct port in JAX
  q4  semantic IDs against a prefix-hash processor              q5  model passes by tokens a pass
  q7  the trie's share of a step, 8 codes of 2048               q8  build time, bytes and peak
  q9  memory of the prompt's cache                              share  time against the model's work
"""
import argparse
import functools
import json
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from recjax.decoding import constraints, device_trie, trie
from recjax.decoding.beam_search import BeamSearch, beam_search
from recjax.decoding.constraints import CatalogConstraint, Normalization
from recjax.decoding.lm_head import BoundDecoder, bind, cache_lengths, lm_head_of
from recjax.decoding.lookahead_beam_search import LookaheadBeamSearch, lookahead_beam_search
from recjax.models import huggingface, llm, llm_decoder
from recjax.text import tokenizer as tokenizers

OUT = pathlib.Path(__file__).parent / 'out'
VOCAB, END, PAD = 32_000, 31_999, 31_998
SHAPE = llm.Config(vocab=VOCAB, width=256, layers=4, heads=8, kv_heads=4, head_dim=32, ffn=704,
                   tied=True, qkv_bias=True, scan_unroll=4, max_positions=1024, norm_eps=1e-6)
CODES = 31_000  # the first code's token; three levels of 256


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--lines', default='q1,q2,q3,q4,q5,q7,q8,q9,share')
  parser.add_argument('--data', default='../shared/data/minionerec-scientific')
  parser.add_argument('--weights', default='', help='folder of a checkpoint, for q1, q2 and q5')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--requests', type=int, default=8)
  parser.add_argument('--beams', type=int, default=10)
  parser.add_argument('--prompt', type=int, default=128)
  args = parser.parse_args()
  args.data = pathlib.Path(args.data)
  if not (args.data / 'items.jsonl').exists():
    sys.exit(f'{args.data} holds no items.jsonl; name a folder with --data')
  lines = {'q1': titles_against_peer, 'q2': against_free, 'q3': against_port, 'q4': codes,
           'q5': passes, 'q7': trie_share, 'q8': build, 'q9': memory, 'share': share}
  wanted = args.lines.split(',')
  print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}, {args.requests} requests, '
        f'{args.beams} beams, prompt {args.prompt}, {args.rounds} rounds', flush=True)
  setting = Setting(args)
  for name in wanted:
    print(f'\n{name}: {lines[name].__doc__.splitlines()[0]}', flush=True)
    lines[name](setting)


class Setting:
  """The data, the model and what all lines share."""

  def __init__(self, args):
    self.args = args
    lines = (args.data / 'items.jsonl').read_text().splitlines()
    titles = [json.loads(line)['title'] for line in lines]
    titles = list(dict.fromkeys(t for t in titles if t))
    if args.weights:
      tokenizer = tokenizers.load(args.weights)
      self.rows = tokenizer.encode_batch(titles)
      self.folder, self.shape = args.weights, huggingface.read_config(args.weights)
      self.end, self.pad = tokenizer.eos_ids[0], tokenizer.pad_id
      params = huggingface.load(self.folder, self.shape)
    else:
      bpe = tokenizers.train_bpe(titles, 8000)
      spread = np.random.default_rng(0).permutation(CODES)[:bpe.vocab_size]
      self.rows = [spread[ids].tolist() for ids in bpe.encode_batch(titles)]
      self.folder, self.shape, self.end, self.pad = OUT / 'decoding-model', SHAPE, END, PAD
      params = trained(self.rows)
    self.model, self.params = llm.LM(self.shape), {'params': params}
    self.decoder = llm_decoder.decoder(self.model)
    rng = np.random.default_rng(1)
    flat = [t for i in rng.permutation(len(self.rows)) for t in [*self.rows[i], self.end]]
    self.prompts = np.array(flat[:args.requests * args.prompt], np.int32).reshape(
        args.requests, args.prompt)

  @functools.cached_property
  def trie(self):
    return trie.build(self.rows, end=self.end, vocab=self.shape.vocab)

  @functools.cached_property
  def device_trie(self):
    return device_trie.to_device_trie(self.trie)

  def plain(self, constraint, new_tokens, beams=0, alpha=0.0):
    """A compiled beam search. -> (run: () -> BeamResult, seconds to compile)"""
    cfg = BeamSearch(beams or self.args.beams, new_tokens, alpha)

    def search(params, prompts, constraint):
      lengths = jnp.full(len(prompts), prompts.shape[1])
      first, cache = self.decoder.start(params, prompts, lengths, cfg.beams,
                                        cache_lengths(cfg.new_tokens)[0])
      return beam_search(bind(self.decoder, params), cache, first, constraint, cfg)
    return self.compiled(search, constraint)

  def tree(self, constraint, new_tokens, widths, lookahead=0):
    """A compiled look-ahead search. -> (run: () -> LookaheadResult, seconds to compile)"""
    cfg = LookaheadBeamSearch(self.args.beams, new_tokens, 0.0, pass_widths=widths,
                              lookahead=lookahead)

    def search(params, prompts, constraint):
      lengths = jnp.full(len(prompts), prompts.shape[1])
      first, cache = self.decoder.start(params, prompts, lengths, 1, cfg.slots + 1)
      return lookahead_beam_search(bind(self.decoder, params), cache, first, constraint, cfg)
    return self.compiled(search, constraint)

  def compiled(self, search, constraint):
    given = (self.params, jnp.asarray(self.prompts), constraint)
    start = time.perf_counter()
    program = jax.jit(search).lower(*given).compile()
    seconds = time.perf_counter() - start
    return lambda: jax.block_until_ready(program(*given)), seconds


def trained(rows):
  """Weights after 400 steps on the titles, from benchmarks/out where they are there already."""
  folder = OUT / 'decoding-model'
  if (folder / 'config.json').exists():
    return huggingface.load(folder, SHAPE)
  import optax
  model, size, length = llm.LM(SHAPE), 16, 32
  params = llm.init(SHAPE, jax.random.key(0))
  tx = optax.adam(2e-3)
  state = tx.init(params)

  def loss(params, tokens):
    hidden, _ = model.apply({'params': params}, tokens[:, :-1],
                            jnp.broadcast_to(jnp.arange(length), (size, length)),
                            jnp.ones((size, length), jnp.int32))
    logits = model.apply({'params': params}, hidden, method='logits')
    picked = jnp.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
    return (jax.nn.logsumexp(logits, -1) - picked).mean()

  @jax.jit
  def step(params, state, tokens):
    value, gradient = jax.value_and_grad(loss)(params, tokens)
    updates, state = tx.update(gradient, state)
    return jax.tree.map(jnp.add, params, updates), state, value
  rng = np.random.default_rng(0)
  for i in range(400):
    stream = [t for r in rng.permutation(len(rows))[:size * 4] for t in [*rows[r], END]]
    tokens = np.array(stream[:size * (length + 1)], np.int32).reshape(size, length + 1)
    params, state, value = step(params, state, tokens)
    if i % 100 == 99:
      print(f'  training the model: step {i + 1}, loss {float(value):.2f}', flush=True)
  huggingface.save(jax.device_get(params), SHAPE, folder)
  return params


def peer(setting):
  """The same weights in transformers."""
  import torch
  import transformers
  transformers.logging.set_verbosity_error()
  model = transformers.AutoModelForCausalLM.from_pretrained(
      setting.folder, dtype=torch.float32).eval()
  prompts = torch.as_tensor(setting.prompts, dtype=torch.long)

  def run(beams, new_tokens, alpha=0.0, **kw):
    with torch.inference_mode():
      out = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False,
                           num_beams=beams, num_return_sequences=beams, max_new_tokens=new_tokens,
                           length_penalty=alpha, eos_token_id=setting.end,
                           pad_token_id=setting.pad,
                           return_dict_in_generate=True, output_scores=True, **kw)
    tokens = out.sequences[:, prompts.shape[1]:].reshape(len(prompts), beams, -1).numpy()
    return tokens, out.sequences_scores.reshape(len(prompts), beams).numpy()
  return run


def rows_of(tokens, end):
  """Rows up to their end token. tokens: (B, K, T) -> [B][K] tuples"""
  def one(row):
    row = row.tolist()
    return tuple(row[:row.index(end) + 1] if end in row else row)
  return [[one(r) for r in rows] for rows in np.asarray(tokens)]


def equal(ours, scores, theirs, their_scores, end, gap=1e-3):
  """Stops unless rows and scores agree; equal scores may change places."""
  worst = float(np.abs(np.asarray(scores) - their_scores).max())
  pairs = list(zip(rows_of(ours, end), rows_of(theirs, end)))
  same = all(sorted(a) == sorted(b) for a, b in pairs)
  if not same or worst > gap:
    wrong = sum(len(set(a) - set(b)) for a, b in pairs)
    sys.exit(f'FAIL: {wrong} rows differ, scores by up to {worst:.1e}')
  print(f'  all {sum(map(len, ours))} rows equal, scores within {worst:.1e}', flush=True)


def versus(rounds, **sides):
  """Times the sides in turn. The first is the peer. -> {side: median seconds}"""
  times = {name: [] for name in sides}
  for _ in range(rounds):
    for name, run in sides.items():
      start = time.perf_counter()
      run()
      times[name].append(time.perf_counter() - start)
  peer_times = next(iter(times.values()))
  for name, seconds in times.items():
    ratios = [a / b for a, b in zip(peer_times, seconds)]
    print(f'  {name:34} {statistics.median(seconds) * 1e3:9.1f} ms  ({min(seconds) * 1e3:.1f} - '
          f'{max(seconds) * 1e3:.1f})  {statistics.median(ratios):6.2f}x  (least '
          f'{min(ratios):.2f}x)', flush=True)
  return {name: statistics.median(t) for name, t in times.items()}


def longest(setting):
  return setting.device_trie.longest


def titles_against_peer(setting):
  """titles, alpha 0: transformers with a prefix function, ours exact, ours with runs"""
  hf, beams, steps = peer(setting), setting.args.beams, longest(setting)
  children = {}
  for row in setting.rows:
    for at in range(len(row) + 1):
      children.setdefault(tuple(row[:at]), set()).add(row[at] if at < len(row) else setting.end)
  lists = {k: sorted(v) for k, v in children.items()}
  width = setting.prompts.shape[1]

  def allowed(_, ids):
    return lists.get(tuple(ids[width:].tolist()), [setting.pad])
  theirs = functools.partial(hf, beams, steps, prefix_allowed_tokens_fn=allowed)
  exact, c1 = setting.plain(CatalogConstraint(setting.device_trie), steps)
  valid = CatalogConstraint(setting.device_trie, normalization=Normalization('valid'))
  plain_valid, c2 = setting.plain(valid, steps)
  runs, c3 = setting.tree(valid, steps, (8, 32))
  exact_runs, c4 = setting.tree(CatalogConstraint(setting.device_trie), steps, (16, 64))
  tokens, scores = theirs()
  found = exact()
  equal(found.rows.tokens, found.rows.scores, tokens, scores, setting.end)
  same(plain_valid(), runs(), 'valid')
  same(found, exact_runs(), 'vocab')
  print(f'  compile: exact {c1:.1f} s, valid {c2:.1f} s, valid with runs {c3:.1f} s, exact with '
        f'runs {c4:.1f} s; steps {int(found.steps)}, passes {runs().passes.tolist()}, '
        f'{int(runs().tokens_fed)} tokens fed', flush=True)
  versus(setting.args.rounds, **{
      'transformers, prefix function': theirs, 'transformers, free': functools.partial(
          hf, beams, steps), 'ours, exact': exact, 'ours, exact, runs': exact_runs,
      'ours, valid': plain_valid, 'ours, valid, runs': runs})


def same(plain, tree, name):
  """Stops unless a tree search found the rows of the plain one."""
  a, b = np.asarray(plain.rows.state), np.asarray(tree.finished.node)
  gap = float(np.abs(np.asarray(plain.rows.scores) - np.asarray(tree.finished.value)).max())
  if sorted(map(sorted, a.tolist())) != sorted(map(sorted, b.tolist())) or gap > 1e-3:
    sys.exit(f'FAIL: {name}: runs change the result (gap {gap:.1e})')


def against_free(setting):
  """constrained against unconstrained beam search, 24 steps of each, ours"""
  free, _ = setting.plain(constraints.Unconstrained((setting.end,)), 24, alpha=0.0)
  exact, _ = setting.plain(CatalogConstraint(setting.device_trie), 24, alpha=0.0)
  f, e = free(), exact()
  medians = versus(setting.args.rounds, unconstrained=free, constrained=exact)
  each = medians['constrained'] / int(e.steps) / (medians['unconstrained'] / int(f.steps))
  print(f'  steps {int(f.steps)} and {int(e.steps)}; a constrained step takes {each:.2f} of a free '
        'one', flush=True)


def against_port(setting):
  """against what a direct port to JAX does: scatter mask, cache copied to beams, plain top_k"""
  steps, beams = 24, setting.args.beams
  cfg = BeamSearch(beams, steps, 0.0)
  model, given = setting.model, setting.device_trie

  class Port(CatalogConstraint):
    def candidates(self, head, state, t, limit, choose):
      logp = jax.nn.log_softmax(head.full())
      token, child, exists = device_trie.children(
        given, state, t, max(given.width, given.root_width)
      )
      grid = jnp.indices(token.shape, sparse=True)
      at = jnp.where(exists, token, VOCAB)
      kids = jnp.full(logp.shape, -1).at[grid[0], grid[1], at].set(child, mode='drop')
      values = jnp.where(kids >= 0, logp, constraints.DEAD)
      return choose(values, jnp.broadcast_to(jnp.arange(VOCAB), values.shape), kids)

  def copied(params, prompts, _):
    batch = len(prompts)
    rows = jnp.repeat(prompts, beams, 0)
    lengths = jnp.full(len(rows), prompts.shape[1])
    hidden, past = llm_decoder.prefill_states(model, params, rows, lengths)
    own = llm_decoder.empty_suffix(SHAPE, len(rows), 1, steps)

    def step(tokens, cache, t):
      hidden, own = llm_decoder.suffix_step(model, params, (cache[0],), cache[1],
                                       tokens.reshape(-1, 1), t)
      return hidden.reshape(batch, -1, SHAPE.width), (cache[0], own)

    def reorder(cache, parents):
      flat = (jnp.arange(batch)[:, None] * beams + parents).reshape(-1)
      return jax.tree.map(lambda x: x[:, flat] if x.ndim > 2 else x[flat], cache)
    first = hidden.reshape(batch, beams, -1)[:, 0]
    port = Port(setting.device_trie)
    copying = BoundDecoder(step, functools.partial(lm_head_of, setting.decoder, params), reorder)
    return beam_search(copying, (past, own), first, port, cfg)
  port, _ = setting.compiled(copied, 0)
  exact, _ = setting.plain(CatalogConstraint(setting.device_trie), steps)
  a, b = port(), exact()
  equal(b.rows.tokens, b.rows.scores, a.rows.tokens, np.asarray(a.rows.scores), setting.end)
  versus(setting.args.rounds, **{'direct port': port, 'ours, exact': exact})


def codes(setting):
  """semantic IDs, 3 codes and an end token, 50 beams: transformers with MiniOneRec's processor"""
  import torch
  import transformers
  beams = 50
  ids = json.loads((setting.args.data / 'semantic_ids.json').read_text())
  table = np.array([[int(c[3:-1]) for c in row] for row in ids.values()])
  table = np.unique(table, axis=0) + CODES + 256 * np.arange(3)
  allowed = {}
  for row in table.tolist():
    for at, token in enumerate([*row, END]):
      allowed.setdefault(tuple(row[:at]), set()).add(token)
  width = setting.prompts.shape[1]

  class Processor(transformers.LogitsProcessor):
    """Adds -1e6 to whatever a hash of the prefix does not allow."""
    def __call__(self, input_ids, scores):
      mask = torch.full_like(scores, -1e6)
      for row, prefix in enumerate(input_ids[:, width:].tolist()):
        good = sorted(allowed.get(tuple(prefix), ()))
        mask[row, good] = 0
      return scores + mask
  hf = peer(setting)
  theirs = functools.partial(hf, beams, 4, logits_processor=[Processor()])
  planted = device_trie.to_device_trie(trie.build(table.tolist(), end=END, vocab=VOCAB))
  exact, c1 = setting.plain(CatalogConstraint(planted), 4, beams)
  bare = device_trie.to_device_trie(
    trie.build(table - CODES - 256 * np.arange(3), vocab=256),
    level_offsets=CODES + 256 * np.arange(3),
  )
  level, c2 = setting.plain(
    CatalogConstraint(bare, normalization=Normalization('level', 256)), 3, beams
  )
  tokens, scores = theirs()
  found = exact()
  equal(found.rows.tokens, found.rows.scores, tokens, scores, setting.end)
  rebuilt = jax.jit(device_trie.semantic_id_trie, static_argnums=1)(
    jnp.asarray(table - CODES - 256 * np.arange(3), jnp.int32),
    256,
    jnp.asarray(CODES + 256 * np.arange(3)),
  )
  other, _ = setting.plain(
    CatalogConstraint(rebuilt, normalization=Normalization('level', 256)), 3, beams
  )
  if not np.array_equal(other().rows.tokens, level().rows.tokens):
    sys.exit('FAIL: the table built on the device gives other rows')
  print(f'  {len(table)} codes; compile {c1:.1f} and {c2:.1f} s', flush=True)
  versus(setting.args.rounds, **{'transformers, processor': theirs, 'ours, exact': exact,
                                 "ours, 'level'": level})


def passes(setting):
  """model passes and tokens by what goes through in one pass (counts, no times)"""
  steps = longest(setting)
  for normalize in ('vocab', 'valid'):
    titles = CatalogConstraint(setting.device_trie, normalization=Normalization(normalize))
    plain = setting.plain(titles, steps)[0]()
    print(f'  {normalize}, one token a pass: {int(plain.steps) - 1} passes', flush=True)
    for lookahead in (0, 64, 128, 256):
      found = setting.tree(titles, steps, (16, 64), lookahead)[0]()
      same(plain, found, f'{normalize}, look-ahead {lookahead}')
      name = f'look-ahead {lookahead}' if lookahead else 'runs alone, (16, 64)'
      print(f'  {normalize}, {name}: {np.mean(found.passes):.2f} passes a request (most '
            f'{int(found.passes.max())}), {int(found.tokens_fed)} tokens', flush=True)


def trie_share(setting):
  """what the trie adds to a step, 140 beams, 8 codes of 2048, beside logits and log-sum-exp"""
  for items in (10_000, 100_000, 1_000_000, 10_000_000):
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    codes = rng.integers(0, 2048, (items, 8))
    built = trie.build(codes, vocab=2048)
    seconds = time.perf_counter() - start
    titles = CatalogConstraint(device_trie.to_device_trie(built))
    size = sum(x.nbytes for x in jax.tree.leaves(titles))
    weights = (jnp.asarray(rng.normal(size=(2048, 256)), jnp.float32),
               jnp.asarray(rng.normal(size=(256, 2048)) * 0.1, jnp.float32))
    first = jnp.asarray(rng.normal(size=(2, 2048)), jnp.float32)
    found = jax.block_until_ready(code_search(weights, first, titles))
    for row in np.asarray(found.rows.tokens).reshape(-1, 8).tolist():
      built.walk(row)  # raises where a row is not in the table
    print(f'  {items:,} items: build {seconds:.2f} s, {size / items:.0f} bytes an item on the '
          'device', flush=True)
    runs = {'model, log-sum-exp alone': functools.partial(code_model, weights, first),
            'whole search': functools.partial(code_search, weights, first, titles)}
    if items <= 1_000_000:
      pair_table, levels, widths = static_tables(codes)
      static = functools.partial(static_search, weights, first, pair_table, levels, widths)
      gap = float(np.abs(static() - found.rows.scores).max())
      if gap > 1e-3:
        sys.exit(f'FAIL: tables in the manner of STATIC give other scores (by {gap:.1e})')
      size = sum(x.nbytes for x in jax.tree.leaves((pair_table, levels))) / items
      runs[f'as STATIC, {size:.0f} bytes an item'] = static
    versus(setting.args.rounds * 20, **{
        name: lambda run=run: jax.block_until_ready(run()) for name, run in runs.items()})


def static_tables(codes, size=2048):
  """The index that STATIC (arXiv 2602.22647) describes: a table over two tokens, rows below.

  -> next node by token pair (V, V); for each later level (row starts, tokens, next nodes); the
  widest row of each level
  """
  codes = codes[np.lexsort(codes.T[::-1])]
  new = np.zeros(len(codes), bool)
  new[0] = True
  levels, widths, node = [], [], None
  for level, column in enumerate(codes.T):
    new[1:] |= column[1:] != column[:-1]
    at = np.flatnonzero(new)
    if level == 1:
      table = np.full((size, size), -1, np.int32)
      table[codes[at, 0], codes[at, 1]] = np.arange(len(at))
    elif level > 1:
      parent = node[at]
      starts = np.searchsorted(parent, np.arange(node[-1] + 2))
      widths.append(int(np.diff(starts).max()))
      levels.append(tuple(jnp.asarray(x, jnp.int32) for x in (
          starts, column[at], np.arange(len(at)))))
    node = np.cumsum(new) - 1
  return jnp.asarray(table), tuple(levels), tuple(widths)


@functools.partial(jax.jit, static_argnames='widths')
def static_search(weights, first, table, levels, widths, beams=70):
  """Its search: log-softmax in full, masks over V for two levels, then slices of pairs."""
  def best(total, *of):
    score, place = jax.lax.top_k(total.reshape(2, -1), beams)
    return score, [jnp.take_along_axis(jnp.broadcast_to(x, total.shape).reshape(2, -1), place, 1)
                   for x in of], place // total.shape[-1]
  dead = constraints.DEAD
  vocab = jnp.arange(len(table))
  start = jnp.where((table >= 0).any(1), jax.nn.log_softmax(first), dead)
  score, (token,), _ = best(start[:, None], vocab)
  logp = jax.nn.log_softmax(code_logits(weights, token))
  total = jnp.where(table[token] >= 0, score[..., None] + logp, dead)
  score, (token, node), _ = best(total, vocab, table[token])
  for (starts, tokens, after), width in zip(levels, widths):
    logp = jax.nn.log_softmax(code_logits(weights, token))
    at = starts[node][..., None] + jnp.arange(width)
    real = at < starts[node + 1][..., None]
    kid = tokens.at[at].get(mode='clip')
    values = score[..., None] + jnp.take_along_axis(logp, kid, -1)
    score, (token, node), _ = best(jnp.where(real, values, dead), kid,
                                   after.at[at].get(mode='clip'))
  return score


def code_logits(weights, tokens):
  """The harness's random model: an embedding and three products. tokens: (2, 70) -> logits"""
  embed, product = weights
  hidden = jnp.tanh(embed[tokens] @ product)
  return jnp.tanh(hidden @ product.T) @ product


@jax.jit
def code_search(weights, first, titles):
  model = BoundDecoder(lambda tokens, cache, t: (code_logits(weights, tokens), cache))
  return beam_search(model, (), first, titles, BeamSearch(70, 8, 0.0))


@jax.jit
def code_model(weights, first):
  """The same model passes with a log-sum-exp each, and nothing that searches."""
  def step(_, carry):
    tokens, total = carry
    logits = code_logits(weights, tokens)
    return tokens + 1, total + jax.nn.logsumexp(logits, -1)
  tokens = jnp.broadcast_to(jnp.arange(70), (2, 70))
  return jax.lax.fori_loop(0, 7, step, (tokens, jnp.zeros((2, 70)) + first.sum()))


def build(setting):
  """build time and peak memory: 1 M titles of 15 tokens, 10 M codes"""
  del setting
  import subprocess
  code = """
import sys, time, tracemalloc
import numpy as np
from recjax.decoding import trie
rng = np.random.default_rng(0)
if sys.argv[1] == 'titles':
  lengths = np.clip(rng.poisson(15, 1_000_000), 3, 40)
  offsets = np.concatenate([[0], np.cumsum(lengths)])
  rows = ((rng.zipf(1.3, offsets[-1]) % 31_000).astype(np.int32), offsets)
  end, vocab = 31_999, 32_000
else:
  rows, end, vocab = rng.integers(0, 256, (10_000_000, 4)).astype(np.uint16), None, 256
start = time.perf_counter()
made = trie.build(rows, end, vocab)
seconds = time.perf_counter() - start
tracemalloc.start()  # once more, counted: that takes time of its own
trie.build(rows, end, vocab)
peak = tracemalloc.get_traced_memory()[1]
s = made.stats()
print(f"  {sys.argv[1]}: {seconds:.2f} s, {s['bytes_per_item']} bytes an item, "
      f"{s['nodes'] / s['titles']:.2f} nodes a title, "
      f"peak {peak / s['bytes']:.1f} x the output's {s['bytes'] / 2**20:.0f} MiB")
"""
  for what in ('titles', 'codes'):
    subprocess.run([sys.executable, '-c', code, what], check=True)


def memory(setting):
  """compiled memory of 40 beams, prompt 512, 64 new tokens: shared prompt against copies"""
  model, steps = setting.model, 64

  def shared(params, tokens):
    lengths = jnp.full(len(tokens), tokens.shape[1])
    _, cache = setting.decoder.start(params, tokens, lengths, 40, steps)
    return cache

  def copied(params, tokens):
    rows = jnp.repeat(tokens, 40, 0)
    _, past = llm_decoder.prefill_states(model, params, rows, jnp.full(len(rows), tokens.shape[1]))
    return past, llm_decoder.empty_suffix(SHAPE, len(rows), 1, steps)
  tokens = jax.ShapeDtypeStruct((1, 512), 'int32')
  sizes = []
  for name, fn in (('shared', shared), ('copied', copied)):
    made = jax.jit(fn).lower(self_shapes(setting.params), tokens).compile().memory_analysis()
    size = made.output_size_in_bytes + made.temp_size_in_bytes
    sizes.append(size)
    print(f'  {name}: cache {made.output_size_in_bytes:,} bytes, with temporaries {size:,}')
  print(f'  ratio {sizes[1] / sizes[0]:.1f}', flush=True)


def self_shapes(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def share(setting):
  """one warm request, 10 beams: how much of the time the model's own work takes"""
  titles = CatalogConstraint(setting.device_trie)
  whole, prompts = setting.prompts, setting.prompts[:1]
  setting.prompts = prompts
  run, compile_seconds = setting.plain(titles, longest(setting))
  setting.prompts = whole
  steps = int(run().steps)

  @jax.jit
  def model_alone(params, tokens):
    lengths = jnp.full(len(tokens), tokens.shape[1])
    first, cache = setting.decoder.start(params, tokens, lengths, setting.args.beams,
                                         longest(setting))

    def step(t, carry):
      cache, total, last = carry
      hidden, cache = setting.decoder.step(params, cache, last, t)
      logits = setting.decoder.logits(params, hidden)
      return cache, total + jax.nn.logsumexp(logits, -1), last + 1
    last = jnp.broadcast_to(jnp.arange(setting.args.beams), (1, setting.args.beams))
    start = (cache, jnp.zeros((1, setting.args.beams)) + first.sum(), last)
    return jax.lax.fori_loop(0, steps - 1, step, start)

  def alone():
    jax.block_until_ready(model_alone(setting.params, jnp.asarray(prompts)))
  alone()
  medians = versus(15, **{'whole request': run, 'model and log-sum-exp alone': alone})
  part = medians['model and log-sum-exp alone'] / medians['whole request']
  flops = llm.flops_per_token(SHAPE, setting.args.prompt + steps / 2)
  work = flops * setting.args.beams * (steps - 1)
  print(f'  compile {compile_seconds:.1f} s; {steps} steps; the model takes {part:.0%} of the '
        f'time; {work / medians["whole request"] / 1e9:.0f} GFLOP/s', flush=True)


if __name__ == '__main__':
  main()
