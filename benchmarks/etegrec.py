"""Semantic IDs: a training step and constrained beams beside transformers, and re-tokenizing.

  python -m benchmarks.etegrec [--tiny] [--rounds=5]

Both sides have the same shapes and, for beams, the same weights; equality is asserted before
anything is timed. Rounds are interleaved; medians and the spread of ratios are printed.
"""
import argparse
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from recjax.decoding import device_trie
from recjax.decoding.beam_search import BeamSearch
from recjax.decoding.constraints import CatalogConstraint
from recjax.decoding.generate import generate
from recjax.methods.etegrec import joint_training
from recjax.models import rqvae, semantic_id_t5, semantic_ids, t5, t5_weights


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--tiny', action='store_true')
  parser.add_argument('--rounds', type=int, default=5)
  args = parser.parse_args()
  size = dict(batch=4, items=5, catalog=200, users=4, beams=4, width=16, layers=1)
  if not args.tiny:
    size = dict(batch=128, items=20, catalog=12_000, users=32, beams=20, width=128, layers=6)
  step(size, args.rounds)
  beams(size, args.rounds)
  if not args.tiny:  # the shape that MiniOneRec's processor is measured with in benchmarks.decoding
    beams({**size, 'users': 8, 'beams': 50, 'items': 32}, args.rounds)
  retokenize(200 if args.tiny else 25_848, args.rounds)


def turns(sides, rounds):
  """Seconds of each side, in turn, after one call that compiles. -> {name: [seconds]}"""
  for run in sides.values():
    run()
  took = {name: [] for name in sides}
  for _ in range(rounds):
    for name, run in sides.items():
      start = time.perf_counter()
      run()
      took[name].append(time.perf_counter() - start)
  return took


def show(title, took, work, unit):
  print(title)
  first = next(iter(took))
  for name, seconds in took.items():
    ratio = [a / b for a, b in zip(took[first], seconds)]
    print(f'  {name:32} {work / statistics.median(seconds):12,.1f} {unit}/s  x '
          f'{statistics.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})')


def torch_model(size, vocab):
  from transformers import T5Config, T5ForConditionalGeneration
  return T5ForConditionalGeneration(T5Config(
      vocab_size=vocab, d_model=size['width'], d_kv=64, d_ff=4 * size['width'], num_heads=4,
      num_layers=size['layers'], decoder_start_token_id=0, pad_token_id=0, eos_token_id=None))


def step(size, rounds):
  """A training step, dropout and AdamW included, at T5's own vocabulary of all levels."""
  import torch
  torch.set_num_threads(2)
  batch, items, levels, codes_of = size['batch'], size['items'], 4, 256
  rng = np.random.default_rng(0)
  history = rng.integers(0, codes_of, (batch, items, levels))
  target = rng.integers(0, codes_of, (batch, levels))
  cfg = semantic_id_t5.Config(t5.Config(width=size['width'], layers=size['layers'], head_dim=64,
                               decoder_layers=size['layers'], ffn=4 * size['width']),
                     levels, codes_of, item=0, code=0)
  tx = optax.adamw(1e-3)

  def loss(params, key):
    logits, _ = semantic_id_t5.SemanticIdT5(cfg).apply(
      {'params': params}, history, target, None, True, rngs={'dropout': key}
    )
    return joint_training.code_loss(logits, target, jnp.ones(batch))

  @jax.jit
  def update(params, opt, key):
    value, grads = jax.value_and_grad(loss)(params, key)
    change, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, change), opt, value
  state = {'params': semantic_id_t5.init(cfg, jax.random.key(0))}
  state['opt'] = tx.init(state['params'])

  def ours():
    state['params'], state['opt'], value = update(state['params'], state['opt'], jax.random.key(1))
    return float(value)
  model = torch_model(size, levels * codes_of + 1).train()
  optim = torch.optim.AdamW(model.parameters(), 1e-3)
  shift = np.arange(levels) * codes_of + 1
  read, written = (torch.tensor(x.reshape(batch, -1)) for x in (history + shift, target + shift))

  def theirs():
    optim.zero_grad()
    value = model(input_ids=read, labels=written).loss
    value.backward()
    optim.step()
    return value.item()
  show(f'training step, {batch} rows of {items * levels} tokens',
       turns({'transformers, torch': theirs, 'recjax': ours}, rounds), batch, 'rows')


def beams(size, rounds):
  """Constrained beams over one catalog with the same weights on either side."""
  import torch
  levels, codes_of, vocab = 4, 256, 4 * 256 + 1
  rng = np.random.default_rng(0)
  table = np.unique(rng.integers(0, codes_of, (size['catalog'], levels)), axis=0)
  shift = np.arange(levels) * codes_of + 1
  model = torch_model(size, vocab).eval()
  with torch.no_grad():  # unlike scores, so that no two beams tie
    for p in model.parameters():
      p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
  folder = tempfile.mkdtemp()
  model.save_pretrained(folder)
  cfg = t5_weights.read_config(folder)
  params, net = {'params': t5_weights.load(folder, cfg)}, t5.T5(cfg)
  tree = device_trie.semantic_id_trie(jnp.asarray(table, jnp.int32), codes_of, shift)
  decoder = t5.decoder(net)
  prompts = rng.integers(1, vocab, (size['users'], size['items'] * levels))
  after = {}
  for row in (table + shift).tolist():
    for at in range(levels):
      after.setdefault(tuple(row[:at]), set()).add(row[at])
  after = {k: sorted(v) for k, v in after.items()}
  found = {}

  def ours():
    found['ours'] = generate(
      decoder,
      params,
      list(prompts),
      BeamSearch(size['beams'], levels, 0.0),
      CatalogConstraint(tree),
      bucket=4,
    )

  def theirs():
    with torch.no_grad():
      found['theirs'] = model.generate(
          torch.tensor(prompts), num_beams=size['beams'], num_return_sequences=size['beams'],
          max_new_tokens=levels, length_penalty=0.0, do_sample=False,
          prefix_allowed_tokens_fn=lambda _, row: after[tuple(row.tolist()[1:])])
  ours()
  theirs()
  same = found['ours'].tokens.reshape(-1, levels) == found['theirs'][:, 1:].numpy()
  print(f'beams that agree: {same.all(1).mean():.4f}')
  assert same.all(1).mean() > 0.99, 'the two sides search differently'
  show(f'{size["users"]} users, {size["beams"]} beams, {len(table):,} items',
       turns({'transformers, torch': theirs, 'recjax': ours}, rounds), size['users'], 'users')


def retokenize(items, rounds):
  """All item vectors to codes, the table and the trie, as after every tokenizer epoch."""
  cfg = rqvae.Config(256)
  params = rqvae.init(cfg, jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (items, 256))
  params = rqvae.init_codebooks(cfg, params, x, jax.random.key(2), 5)

  @jax.jit
  def run(params):
    whole, largest = semantic_ids.padded_table(rqvae.assign_codes(cfg, params, x))
    return whole, largest, device_trie.semantic_id_trie(whole[1:], 256, jnp.arange(4) * 256)
  took = turns({'recjax': lambda: jax.block_until_ready(run(params))}, rounds)['recjax']
  print(f'{items:,} items to codes, table and trie: {1000 * statistics.median(took):.0f} ms '
        f'({1000 * min(took):.0f} to {1000 * max(took):.0f})')


if __name__ == '__main__':
  main()
