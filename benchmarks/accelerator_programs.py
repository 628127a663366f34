"""The project's programs, as its methods call them, made of shapes alone.

Each function takes a `Case` and gives a `Program`: a jitted function with shapes that carry
shardings of the case's mesh, which may be of devices that are not here. Nothing is allocated but
tables of a few items.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from recjax.decoding import constraints, device_trie, item_span, trie
from recjax.decoding import generate as decoding
from recjax.decoding.beam_search import BeamSearch
from recjax.decoding.constraints import CatalogConstraint, Normalization
from recjax.decoding.lookahead_beam_search import LookaheadBeamSearch
from recjax.decoding.sampling import Sampling
from recjax.distributed import sharding
from recjax.evaluation import blocked_ranking
from recjax.methods.betag import generate as betag_generate
from recjax.methods.betag import train as betag_train
from recjax.methods.etegrec import batching, joint_training, rqvae_training
from recjax.methods.sequential import config as sequential_config
from recjax.models import dot_product, llm, llm_decoder, lora, rqvae, semantic_id_t5, t5
from recjax.retrieval import nearest
from recjax.training import cost_model, loop, microbatch, optim, sequential, sft

OPTIM = ConfigDict(dict(lr=1e-4, warmup=0, schedule='constant', decay=0.0, clip=1.0, beta2=0.999))
SMALL = llm.Config(vocab=2048, width=512, layers=4, heads=8, kv_heads=4, head_dim=64, ffn=1536,
                   dtype='bfloat16', param_dtype='bfloat16', remat='dots')
SHAPES = {
    'small': SMALL,
    '135m': dataclasses.replace(SMALL, vocab=49_152, width=576, layers=30, heads=9, kv_heads=3,
                                tied=True),
    '0.5b': dataclasses.replace(SMALL, vocab=151_936, width=896, layers=24, heads=14, kv_heads=2,
                                ffn=4864, tied=True, qkv_bias=True),
    '8b': dataclasses.replace(SMALL, vocab=128_256, width=4096, layers=32, heads=32, kv_heads=8,
                              head_dim=128, ffn=14_336)}


@dataclasses.dataclass(frozen=True)
class Case:
  """What a program is made for.

  shape: of the LLM. mesh: of the devices. rows, row, prefix: as of `cost_model.LLMRun`. prompts,
  prompt, beams, new_tokens: of generation. rank: of the adapter. items: of the catalog. users: of
  the small models. epoch: their steps in an epoch.
  """
  shape: llm.Config
  mesh: jax.sharding.Mesh
  rows: int = 8
  row: int = 128
  prefix: int = 32
  prompts: int = 4
  prompt: int = 32
  beams: int = 8
  new_tokens: int = 16
  rank: int = 16
  items: int = 2000
  users: int = 256
  epoch: int = 8

  @property
  def axes(self) -> dict[str, int]:
    """The mesh's axes as the cost model takes them."""
    return dict(self.mesh.shape)

  def whole(self, tree: Any) -> Any:
    """Shapes of a tree that every device has whole."""
    where = jax.NamedSharding(self.mesh, jax.P())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)

  def placed(self, tree: Any) -> Any:
    """Shapes of a tree of the LLM, as `llm.RULES` lays it."""
    where = sharding.shardings(tree, llm.RULES, self.mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where)

  def array(self, *shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    """An array whose first axis is spread over the data axes."""
    spec = jax.P(tuple(a for a in ('data', 'fsdp') if a in self.mesh.axis_names))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(self.mesh, spec))


@dataclasses.dataclass(frozen=True)
class Program:
  """A jitted function and what it is called with.

  planned: bytes of a device by the cost model, by what they hold, or None. per: kernels are told
  for each of so many equal parts (steps of an epoch), 1 for all together.
  """
  run: Any
  args: tuple
  kwargs: dict = dataclasses.field(default_factory=dict)
  planned: dict[str, float] | None = None
  per: int = 1


def key_shape(case: Case) -> jax.ShapeDtypeStruct:
  """A random key, as a shape."""
  return case.whole(jax.eval_shape(lambda: jax.random.key(0)))


# Training of an LLM.


def lora_step(case: Case) -> Program:
  """BETag's update of an adapter."""
  shape = dataclasses.replace(case.shape, lora_rank=case.rank)
  tx, key = optim.make(OPTIM, 100), jax.random.key(0)
  task = loop.Task(init=lambda key: lora.init_lora(shape, key), rules=llm.RULES, batches=(),
                   loss=functools.partial(betag_train.sample_loss, llm.LM(shape),
                                          [1] * case.prefix))
  state = jax.eval_shape(lambda key: loop.fresh_state(task, tx, key, None), key)
  batch = packed_batch(case)
  batch['first'] = case.whole(jax.ShapeDtypeStruct((1,), jnp.int32))
  batch['first_weight'] = case.whole(jax.ShapeDtypeStruct((1,), jnp.float32))
  planned = cost_model.training_bytes(shape, case.axes, case.rows, case.row, case.prefix)
  return Program(loop.make_update(task, tx, key),
                 (case.placed(state), case.placed(llm.shapes(shape)), batch, step_shape()), {},
                 planned)


def full_step(case: Case) -> Program:
  """The update of all weights, as `sft.tune` makes it (BIGRec and RecLM with train.mode='full')."""
  shape, model = case.shape, llm.LM(case.shape)
  tx, key = optim.make(OPTIM, 100), jax.random.key(0)

  def sums(trained, frozen, batch):
    del frozen
    return sft.loss_sums(model, [1] * case.prefix, {'params': trained}, batch)
  task = loop.Task(init=None, rules=llm.RULES, batches=(), loss=microbatch.mean(sums))
  state = jax.eval_shape(lambda start: loop.fresh_state(task, tx, None, start), llm.shapes(shape))
  batch = packed_batch(case)
  batch['first'] = case.whole(jax.ShapeDtypeStruct((1,), jnp.int32))
  batch['first_weight'] = case.whole(jax.ShapeDtypeStruct((1,), jnp.float32))
  planned = cost_model.training_bytes(shape, case.axes, case.rows, case.row, case.prefix)
  return Program(loop.make_update(task, tx, key), (case.placed(state), (), batch, step_shape()), {},
                 planned)


def packed_batch(case: Case) -> dict[str, jax.ShapeDtypeStruct]:
  """Rows of packed samples."""
  names = ('tokens', 'positions', 'segments', 'targets')
  return {**{name: case.array(case.rows, case.row) for name in names},
          'weights': case.array(case.rows, case.row, dtype=jnp.float32)}


def step_shape() -> jax.ShapeDtypeStruct:
  """The number of a step."""
  return jax.ShapeDtypeStruct((), jnp.int32)


# Generation.


def planned_generation(case: Case, prefix: int = 0) -> dict[str, float]:
  """Bytes of a device while the case's prompts are answered. prefix: tokens that all share."""
  return cost_model.generation_bytes(case.shape, case.axes, case.prompts, case.beams, case.prompt,
                                     case.new_tokens, prefix)


def group_beams(case: Case) -> Program:
  """BETag's diverse beam search, each beam a group, the adapter merged."""
  search, ends = betag_generate.search_config(ConfigDict(dict(
      beams=case.beams, groups=case.beams, diversity=1.0, new_tokens=case.new_tokens,
      stop_at_line_end=False, length_penalty=1.0)))
  run = jax.jit(functools.partial(betag_generate.beams_of, llm.LM(case.shape), search, ends))
  prefix = case.whole(jax.ShapeDtypeStruct((case.prefix,), jnp.int32))
  return Program(run, (case.placed(llm.shapes(case.shape)), {}, prefix),
                 {'ids': case.array(case.prompts, case.prompt),
                  'lengths': case.array(case.prompts)}, planned_generation(case, case.prefix))


def titles(case: Case) -> tuple[trie.Trie, device_trie.DeviceTrie]:
  """Titles of random words as a trie."""
  rng = np.random.default_rng(0)
  words = 2 + rng.zipf(1.3, (case.items, 8)) % (case.shape.vocab - 2)
  rows = [row[:rng.integers(2, 9)].tolist() for row in words]
  tree = trie.build(rows, 1, case.shape.vocab)
  return tree, device_trie.to_device_trie(tree)


def generation(case: Case, search: Any, constraint: Any) -> Program:
  """The program of `generate.generate`, weights whole or sharded as they are loaded."""
  params = {'params': case.placed(llm.shapes(case.shape))}
  search = constraints.with_new_tokens(search, constraint)
  return Program(decoding._run, (
      llm_decoder.decoder(llm.LM(case.shape)), params, case.array(case.prompts, case.prompt),
      case.array(case.prompts), case.whole(constraint), search, key_shape(case)), {},
                 planned_generation(case))


def title_beams(case: Case, denominator: str = 'vocab') -> Program:
  """D3's beams over titles, exact: each token's share of the whole vocabulary."""
  only = CatalogConstraint(titles(case)[1], normalization=Normalization(denominator))
  return generation(case, BeamSearch(case.beams, length_penalty=0.0), only)


def valid_beams(case: Case) -> Program:
  """Beams over titles whose shares are of the tokens that go on with a title."""
  return title_beams(case, 'valid')


def lookahead_beams(case: Case) -> Program:
  """Look-ahead beams over titles."""
  return generation(case, LookaheadBeamSearch(case.beams, length_penalty=0.0, lookahead=16),
                    CatalogConstraint(titles(case)[1]))


def sample(case: Case) -> Program:
  """Free text, sampled under top-p."""
  return generation(case, Sampling(case.beams, case.new_tokens, 0.7, top_p=0.9),
                    constraints.Unconstrained((1,)))


def item_mode(case: Case) -> Program:
  """RecLM's replies: text and, between two tokens, titles."""
  rows, planted = titles(case)
  settings = item_span.SpanSettings(0, 1, (2,), case.new_tokens, max_items=10)
  only = item_span.item_span_constraint(rows, planted, settings, case.prompts)
  return generation(case, Sampling(1, case.new_tokens, 0.0), only)


# Semantic IDs.


def tiger_config() -> semantic_id_t5.Config:
  """The published shape of TIGER in etegrec's repository of baselines."""
  net = t5.Config(width=128, layers=6, decoder_layers=6, heads=4, head_dim=64, ffn=512, dropout=0.1)
  return semantic_id_t5.Config(net, 4, 256, 0, 0)


def tiger_epoch(case: Case) -> Program:
  """An epoch of TIGER's recommender, histories of 50 items in three bins."""
  cfg, tx = tiger_config(), optim.make(OPTIM, 100)
  shares = [case.users // 2, case.users // 4, case.users // 4]
  orders = functools.partial(batching.shuffle_rows, shares=shares, steps=case.epoch)
  bins = [batching.Bin(*(jax.ShapeDtypeStruct((share * case.epoch, *more), jnp.int32)
                         for more in ((width,), (), (1,))))
          for share, width in zip(shares, batching.bin_widths(50))]

  def run(state, key, bins, x, texts, number):
    epoch = joint_training.make_epoch(
        'rec', cfg, joint_training.AlignmentWeights(), None, tx,
        functools.partial(orders, bins=bins), batching.take_rows)
    return jax.vmap(epoch, (0, 0, None, None, None, None))(state, key, bins, x, texts, number)

  def init(key):
    rec = semantic_id_t5.init(cfg, key)
    return {'params': {'rec': rec, 'table': jnp.zeros((case.items + 1, 4), jnp.int32)},
            'opt': {'rec': tx.init(rec)}}
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  state = jax.eval_shape(jax.vmap(init), keys)
  more = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((case.items, 128), (1, 1))]
  return Program(jax.jit(run, donate_argnums=0),
                 case.whole((state, keys, bins, *more, step_shape())), per=case.epoch)


def tiger_beams(case: Case) -> Program:
  """Beams over semantic IDs, each level with a softmax of its own."""
  cfg = tiger_config()
  codes = np.unique(np.random.default_rng(0).integers(0, 256, (case.items, 4)), axis=0)
  planted = device_trie.semantic_id_trie(jnp.asarray(codes, jnp.int32), 256, jnp.arange(4) * 256)
  only = CatalogConstraint(planted, normalization=Normalization('level', 256))
  params = {'params': jax.eval_shape(lambda k: semantic_id_t5.init(cfg, k), jax.random.key(0)),
            'table': jax.ShapeDtypeStruct((len(codes) + 1, 4), jnp.int32)}
  return Program(decoding._run, (
      semantic_id_t5.decoder(cfg), case.whole(params), case.array(case.users, 50),
      case.array(case.users), case.whole(only), BeamSearch(20, 4, 0.0), key_shape(case)))


def rqvae_steps(case: Case) -> Program:
  """Steps of an RQ-VAE at ETEGRec's published shape."""
  cfg, tx = rqvae.Config(256), optim.make(OPTIM, 100)
  params = jax.eval_shape(lambda k: rqvae.init(cfg, k), jax.random.key(0))
  x = jax.ShapeDtypeStruct((case.items, 256), jnp.float32)
  none = jax.ShapeDtypeStruct((case.items, 0), jnp.float32)
  return Program(rqvae_training._steps, (
      cfg, tx, case.epoch, 1024, rqvae_training.NO_LETTER,
      *case.whole((params, jax.eval_shape(tx.init, params), x, none)), None, key_shape(case)),
                 per=case.epoch)


# Sequential recommenders.


def sequential_epoch(case: Case, kind: str) -> Program:
  """An epoch as `sequential.fit` runs it, published settings of Amazon Beauty."""
  cfg = sequential_config.make(f'paper,model={kind},data=none')
  model = sequential.model_config(cfg, 12_101)
  rows, targets = {'bert4rec': (56, 1152)}.get(kind, (48, 1920))
  tx = optim.make(cfg.optim, 100)
  begin, loss = sequential.plain(
      model, functools.partial(sequential.loss_of, cfg, model, case.mesh, rows, targets), targets)

  def init(key):
    params = begin(key)
    return {'params': params, 'opt': tx.init(params)}
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  wide = (model.max_history + 1) * (1 + (model.time == 'bias'))
  seqs = jax.ShapeDtypeStruct((cfg.train.batch * case.epoch + 1, wide), jnp.int32)
  run = jax.jit(jax.vmap(functools.partial(sequential.epoch, cfg, tx, loss, case.epoch),
                         (0, 0, None, None, None, 0)), donate_argnums=0)
  state = jax.eval_shape(jax.vmap(init), keys)
  return Program(run, (*case.whole((state, keys, seqs, step_shape())), (), ()), per=case.epoch)


# Ranking.


def rank_items(case: Case) -> Program:
  """256 users ranked over a million items, in pieces."""
  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((256, 64), (1_000_000, 64))]
  peaks = (jax.ShapeDtypeStruct((), jnp.float32), 0.0)
  target = jax.ShapeDtypeStruct((256,), jnp.int32)
  places = jax.ShapeDtypeStruct((4096,), jnp.int32)
  states, table, peak, target, rows = case.whole((*shapes, peaks[0], target, places))
  return Program(blocked_ranking.rank_block, (
      states, table, None, (peak, 0.0), target, rows, rows, -np.inf),
                 {'k': 20, 'tie': 'pessimistic', 'piece': blocked_ranking.PIECE})


def score_items(case: Case) -> Program:
  """Scores of a catalog that is scored whole."""
  states, table = case.whole([jax.ShapeDtypeStruct(s, jnp.float32)
                              for s in ((256, 64), (12_101, 64))])
  return Program(dot_product.dot_product_scores, (states, table, None))


def ground(case: Case) -> Program:
  """The nearest of many items, as BIGRec grounds a text."""
  x = jax.ShapeDtypeStruct((100_000, 1024), jnp.float32)
  vectors = jax.eval_shape(lambda x: nearest.center(x)._replace(
      rounded=nearest.round_vectors(x)), x)
  queries = jax.ShapeDtypeStruct((256, 1024), jnp.float32)
  return Program(nearest.nearest, (case.whole(vectors), case.whole(queries), 20))


def in_8_bits(program: Callable[[Case], Program], case: Case) -> Program:
  """A program over frozen kernels in 8 bits."""
  return program(dataclasses.replace(case, shape=dataclasses.replace(case.shape, quantize='int8')))


PROGRAMS: dict[str, Callable[[Case], Program]] = {
    'lora_step': lora_step, 'full_step': full_step, 'group_beams': group_beams,
    'lora_step_int8': functools.partial(in_8_bits, lora_step),
    'group_beams_int8': functools.partial(in_8_bits, group_beams),
    'title_beams': title_beams, 'valid_beams': valid_beams, 'lookahead_beams': lookahead_beams,
    'sample': sample, 'item_mode': item_mode, 'tiger_epoch': tiger_epoch,
    'tiger_beams': tiger_beams, 'rqvae_steps': rqvae_steps,
    **{f'{kind}_epoch': functools.partial(sequential_epoch, kind=kind)
       for kind in ('sasrec', 'gru4rec', 'bert4rec', 'hstu')},
    'rank_items': rank_items, 'score_items': score_items, 'ground': ground}
