"""LLMEmb: item vectors a second against torch on the same weights, and a step of RAT.

  python -m benchmarks.llmemb export [--folder=FOLDER] [--data=DATA] [--items=N] [--rounds=N]
      # FOLDER: a sentence encoder; without one, MiniLM's shape with random weights
  python -m benchmarks.llmemb step [--items=N] [--rounds=N]
      # the adapter over the distinct items of a batch, over all items, and at every position

Peer and ours take turns; medians and their spread are over rounds, compilation left out. Where the
package sentence-transformers is installed it is the peer, otherwise its own loop written out:
texts sorted by length, 32 at a time, padded to the longest, mean over tokens.
"""
import argparse
import functools
import importlib.util
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from recjax.data import loading
from recjax.distributed.sharding import make_mesh
from recjax.methods.llmemb import prompts, rat
from recjax.models import seqrec
from recjax.training import sequential, text_embedding

MINILM = dict(vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
              intermediate_size=1536, max_position_embeddings=512)


def main():
  """Runs what the command line names and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('what', choices=('export', 'step'))
  parser.add_argument('--folder', default='')
  parser.add_argument('--data', default='sample')
  parser.add_argument('--items', type=int, default=0)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--budget', type=int, default=0)
  parser.add_argument('--rungs', type=int, default=8)
  args = parser.parse_args()
  (export if args.what == 'export' else step)(args)


def turns(sides, rounds):
  """Runs every side once a round, in turn. sides: {name: ()} -> {name: seconds (rounds,)}"""
  took = {name: [] for name in sides}
  for side in sides.values():  # compiles, and warms the caches of the peer
    side()
  for _ in range(rounds):
    for name, side in sides.items():
      start = time.perf_counter()
      side()
      took[name].append(time.perf_counter() - start)
  return {name: np.array(x) for name, x in took.items()}


def show(took, count, unit):
  """Prints medians, spread and ratios to the first side."""
  first = np.median(next(iter(took.values())))
  for name, seconds in took.items():
    middle = np.median(seconds)
    print(f'{name:26} {count / middle:10,.1f} {unit}/s  {seconds.min():.4f} to '
          f'{seconds.max():.4f} s  {first / middle:.2f}x')


# Export.


def export(args):
  """Items a second of the exporter and of torch, and how far the vectors are apart."""
  with tempfile.TemporaryDirectory() as room:
    folder = pathlib.Path(args.folder or random_minilm(pathlib.Path(room)))
    texts = texts_of(args.data, args.items)
    mesh = make_mesh({'data': -1})
    how = ConfigDict(dict(dtype='auto', remat='none', quantize='none'))
    reader = text_embedding.load(folder, how, mesh)
    found = {}

    def ours():
      found['ours'], found['info'] = text_embedding.embed(
        reader, texts, mesh, args.budget, args.rungs
      )

    name, peer = torch_side(folder, reader.about['most'], texts, found)
    took = turns({name: peer, 'recjax export': ours}, args.rounds)
    gap = np.abs(found['ours'] - found['theirs']).max()
    print(f'{len(texts):,} texts, {found["info"]["tokens"]:,} tokens, padding '
          f'{found["info"]["padding"]:.1%}, {len(jax.devices())} x {jax.devices()[0].device_kind}; '
          f'vectors differ by at most {gap:.1e}')
    show(took, len(texts), 'items')


def texts_of(data, count):
  """Prompts of a catalog, or of its first items, repeated where it has fewer."""
  shop = loading.load_data(data)
  columns = shop.catalog.columns
  texts = ['\n'.join(('Describe this item by its attributes:', prompts.SEPARATOR.join(
      prompts.attributes({k: v[i] for k, v in columns.items()}, prompts.RULES['any']))))
      for i in range(len(shop.catalog))]
  return [texts[i % len(texts)] for i in range(count or len(texts))]


def random_minilm(folder):
  """A BERT of MiniLM's shape with random weights and a tokenizer of word pieces. -> folder"""
  import torch
  import transformers
  from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
  torch.manual_seed(0)
  transformers.BertModel(transformers.BertConfig(**MINILM)).save_pretrained(folder)
  backend = Tokenizer(models.WordPiece(unk_token='[UNK]'))
  backend.normalizer = normalizers.BertNormalizer()
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
  backend.train_from_iterator(texts_of('sample', 0), trainers.WordPieceTrainer(
      vocab_size=8000, special_tokens=special, show_progress=False))
  backend.post_processor = processors.TemplateProcessing(
      single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
  transformers.PreTrainedTokenizerFast(
      tokenizer_object=backend, cls_token='[CLS]', sep_token='[SEP]', pad_token='[PAD]',
      unk_token='[UNK]', mask_token='[MASK]').save_pretrained(folder)
  return folder


def torch_side(folder, most, texts, found):
  """The peer. -> its name, a function that embeds all texts"""
  if importlib.util.find_spec('sentence_transformers'):
    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer(str(folder))

    def run():
      found['theirs'] = model.encode(texts, batch_size=32, show_progress_bar=False)
    return 'sentence-transformers', run
  import torch
  from tokenizers import Tokenizer
  from transformers import AutoModel

  from recjax.models import sentence_encoder

  spec, backend = (
    sentence_encoder.read_spec(folder),
    Tokenizer.from_file(str(folder / 'tokenizer.json')),
  )
  backend.no_padding()
  backend.no_truncation()
  model = AutoModel.from_pretrained(folder).eval()
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  model = model.to(device)
  first, last = backend.token_to_id('[CLS]'), backend.token_to_id('[SEP]')

  def run():
    rows = [[first, *r.ids[:most - 2], last]
            for r in backend.encode_batch(texts, add_special_tokens=False)]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    out = np.zeros((len(rows), spec.cfg.width), np.float32)
    with torch.no_grad():
      for start in range(0, len(rows), 32):
        some = order[start:start + 32]
        tokens, mask = text_embedding.padded([rows[i] for i in some], len(rows[some[0]]))
        tokens, mask = (torch.tensor(x, device=device).long() for x in (tokens, mask))
        hidden = model(tokens, mask).last_hidden_state
        z = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        if spec.normalize:
          z = torch.nn.functional.normalize(z, dim=1)
        out[some] = z.cpu().numpy()
    found['theirs'] = out
  return 'transformers, torch', run


# A step of RAT.


def step(args):
  """Steps a second with the adapter over distinct items, over all, and at every position."""
  items, k = args.items or 57_289, 1536
  c = ConfigDict(dict(
      model=dict(kind='sasrec', max_history=200, width=128, layers=2, heads=1, hidden=128,
                 dropout=.5, norm='pre', separate=False),
      loss=dict(kind='bce', negatives=1, negative_scope='position', exclude='none',
                gbce_t=.75, log_q=False, chunk=4096),
      train=dict(batch=128, mask_share=.6, max_masked=120, mask_last=.5), seed=0, seeds=1,
      rat=dict(adapter=True, freeze=True, alpha=0.0, tau=2., hidden=0, spread=.02,
               activation='none', whiten=False, align_loss='soft_target', align_items='distinct',
               max_align_items=4096, ids_from=0), early_mask_row=False, raw_vectors=False))
  model = sequential.model_config(c, items)
  rng = np.random.default_rng(0)
  lengths = np.minimum(4 + rng.geometric(1 / 5, 128), 201)  # most histories are short
  seqs = rng.integers(1, items + 1, (128, 201)) * (np.arange(201) >= 201 - lengths[:, None])
  rows = max(8, -(-int(lengths.sum()) // 200 + 2) // 8 * 8 + 8)
  targets = -(-int(lengths.sum() - 128) // 128) * 128
  vectors, seqs = jnp.asarray(rng.normal(size=(items, k)), jnp.float32), jnp.asarray(seqs)
  loss = functools.partial(sequential.loss_of, c, model, make_mesh({'data': -1}), rows, targets)
  init, distinct = rat.make_objective(c, k, model, loss, targets)
  params = init(jax.random.key(0))

  def every(params, vectors, aim, seqs, key):
    return loss(rat.expand_table(c, model, params, vectors), seqs, key)

  def positions(params, vectors, aim, seqs, key):
    return by_position(c, model, params, vectors, seqs, targets, key)
  sides = {}
  for name, fn in (('at every padded position', positions), ('over all items', every),
                   ('over distinct items', distinct)):
    run = jax.jit(jax.value_and_grad(fn))
    sides[name] = lambda run=run: jax.block_until_ready(
        run(params, vectors, vectors[:, :128], seqs, jax.random.key(1)))
  took = turns(sides, args.rounds)
  print(f'{items:,} items, {k} components, 128 users, {int(lengths.sum()):,} tokens, '
        f'{rat.max_distinct_items(c, model, targets):,} distinct at most')
  show(took, 1, 'steps')


def by_position(c, model, params, vectors, seqs, targets, key):
  """The plain way: padded rows, the adapter on every input, target and negative as it stands."""
  inputs, goal = sequential.example(c, model, seqs, key)
  adapt = functools.partial(rat.apply_adapter, params['adapter'])
  full = {**params['rest'], 'items': adapt(vectors[jnp.maximum(inputs, 1) - 1]).reshape(
      -1, model.width)}
  ids = jnp.arange(inputs.size).reshape(inputs.shape)  # each place has a row of its own
  cfg = sequential.model_config(c, inputs.size - 2)
  states = seqrec.SeqRec(cfg).apply(
    {'params': full},
    ids,
    seqrec.history_positions(model, inputs),
    (inputs > 0).astype(jnp.int32),
    True,
    rngs={'dropout': key},
  )
  drawn = jax.random.randint(key, inputs.shape, 0, model.items)
  positive = (states * adapt(vectors[jnp.maximum(goal, 1) - 1])).sum(-1)
  negative = (states * adapt(vectors[drawn])).sum(-1)
  real = goal > 0
  each = jax.nn.softplus(-positive) + jax.nn.softplus(negative)
  return jnp.where(real, each, 0).sum() / jnp.maximum(real.sum(), 1)


if __name__ == '__main__':
  main()
