"""Supervised fine-tuning: scope-masked titles (cgen, token), or fetched items (ret)."""
import dataclasses
import functools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data.formats import conversations
from recjax.data.sample_shop.small_talk import questions
from recjax.distributed import multihost, sharding
from recjax.errors import ConfigError
from recjax.file_io import write_json
from recjax.methods.reclm import (
  chat_encoding,
  offline_samples,
  sft_data,
  teacher,
  tokenized_catalog,
)
from recjax.models import embedding_resize, huggingface, llm, lora
from recjax.run_files import read_json
from recjax.text import tokenizer as tokenizers
from recjax.training import llm_loading, loop, microbatch, sft
from recjax.training import sequential as plain_arrays
from recjax.training.loop import Task, fit
from recjax.training.losses import item_losses, trie_masked

# What control tokens begin as: the mean of these words, as published, or the quotes that enclose
# the titles of a history, so that what is learnt of those titles holds for answers at once.
LIKE = {
  'words': {tokenized_catalog.SOI: 'start of an item', tokenized_catalog.EOI: 'end of an item'},
  'quotes': {tokenized_catalog.SOI: " '", tokenized_catalog.EOI: "'"},
}


def settings(cfg):
  """Everything in the config that decides this stage's result."""
  return ConfigDict({k: cfg[k] for k in ('grounding', 'prompt', 'talk', 'train', 'lora', 'ret',
                                         'token', 'optim', 'llm', 'seed',
                                         'control')})


AVERAGES = ('tokens', 'samples')  # what a loss is a mean over


@dataclasses.dataclass(eq=False)
class ChatModel:
  """A language model with the catalogue's control tokens. params: weights with their rows; lora: an
  adapter's tree, or None. extra: {'project', 'items'} of ret, or None. scoring: see `scoring`."""
  model: object
  params: dict
  lora: dict | None
  tokenizer: object
  soi: int
  eoi: int
  codes: list
  extra: dict | None = None
  scoring: dict = dataclasses.field(default_factory=dict)

  @property
  def variables(self):
    return {'params': self.params, **({'lora': self.lora} if self.lora else {})}


def names(cfg, table=None):
  """Control tokens, their order is that of their ids. table: (N, levels) codes of 'token'."""
  if cfg.grounding != 'token':
    return [tokenized_catalog.SOI, tokenized_catalog.EOI]
  size = int(table.max()) + 1
  return [
    tokenized_catalog.SOI,
    tokenized_catalog.EOI,
    *(f'<{level}_{code}>' for level in range(table.shape[1]) for code in range(size)),
  ]


def scoring(train, eoi):
  """How `constraints.CatalogConstraint` gives a title the log-probability that `loss_sums` gives
  it.

  train: scope, scope_end, free. eoi: the end-of-item token. -> arguments of Titles
  """
  if train.scope == 'none':
    return {}
  return dict(normalize='scope', free=float(train.free), forced=train.scope == 'branches',
              whole=() if train.scope_end else (eoi,))


def fresh(cfg, folder, mesh, table=None):
  """The LLM of `folder` with control tokens, untrained. -> Speaker"""
  adapter = {}
  if cfg.train.mode == 'lora':
    adapter = dict(lora_rank=cfg.lora.rank, lora_alpha=float(cfg.lora.alpha),
                   lora_targets=tuple(cfg.lora.targets))
  elif cfg.train.mode != 'full':
    raise ConfigError(f"train.mode={cfg.train.mode!r}; choose 'lora' or 'full'")
  model, params, base = llm_loading.load(folder, cfg.llm, mesh, **adapter)
  tokenizer, ids = tokenizers.extend(base, names(cfg, table))
  like = [base.encode(LIKE[cfg.train.control_like].get(n, 'item')) for n in names(cfg, table)]
  params, shape = embedding_resize.grow(params, model.cfg, ids, like)
  if len(ids) > 2:  # codes that begin alike would stay alike under symmetric gradients
    rows = embedding_resize.rows_of(params, ids)
    key = jax.random.key(cfg.seed)
    rows = {n: x + x.std() * jax.random.normal(jax.random.fold_in(key, i), x.shape)
            for i, (n, x) in enumerate(sorted(rows.items()))}
    params = embedding_resize.put(params, rows, ids)
  model = llm.LM(shape)
  return ChatModel(model, params, None, tokenizer, *ids[:2], ids[2:],
                 scoring=scoring(cfg.train, ids[1]))


def renderer(cfg, speaker, stock, nodes=None):
  """How this speaker's conversations become tokens."""
  return chat_encoding.ChatEncoder(speaker.tokenizer, stock.rows, speaker.soi, speaker.eoi, nodes,
                         cfg.prompt.max_prompt_tokens, dict(cfg.prompt.variables))


def stock_of(cfg, shop, speaker, table=None):
  """The catalogue as the speaker writes it. -> Goods"""
  stock = tokenized_catalog.load(shop.catalog, speaker.tokenizer)
  return stock if table is None else tokenized_catalog.codes(stock, table, speaker.codes[0])


def talk_of(cfg):
  """Chat pairs: of a file, the built-in ones, or none. -> [(question, answer)], left out"""
  if not cfg.talk.source or not (cfg.train.multi_round or cfg.train.chat_share):
    return [], 0
  if cfg.talk.source == 'sample':
    return questions(1000, cfg.seed), 0
  return conversations.read(cfg.talk.source)


def stage(work, cfg, shop, folder, helper, coded=None, given=None):
  """Tunes the LLM of `folder` into `work.folder`. helper, coded: stages of teacher and codes.
  given: the folder of `train.static`, whose content decides the result too."""
  del given
  table = None if coded is None else run_files.read_arrays(coded / 'codes.npy')
  speaker = fresh(cfg, folder, work.mesh, table)
  stock = stock_of(cfg, shop, speaker, table)
  tree = stock.plant(speaker.eoi, speaker.model.cfg.vocab)
  talk, left = talk_of(cfg)
  parts, counts = rendered(cfg, shop, stock, speaker, tree, teacher.asker(helper, shop), talk)
  prefix = sft.common_prefix([e.ids[:e.learnt.argmax()].tolist()
                              for e in parts['train'] + parts['valid']])
  train, valid = (sft.pack_conversations(parts[p], cfg.train.row_tokens, prefix,
                                         chat_encoding.MARKS) for p in ('train', 'valid'))
  batches, an_epoch = sft.shuffled_batches(train, cfg.train.batch, work.mesh, cfg.seed)
  items = teacher.item_vectors(work, cfg, helper, shop, folder) if cfg.grounding == 'ret' else None
  task = task_of(
    cfg, speaker, tree, items, train, valid, batches, sharding.num_batch_shards(work.mesh)
  )
  steps = max(1, round(an_epoch))
  fitting = dataclasses.replace(
      loop.FitSettings.of(cfg.optim), steps=steps, seed=cfg.seed,
      eval_every=max(1, round(steps / cfg.train.epochs)), patience=cfg.train.patience)
  trained = multihost.to_host(fit(task, fitting, work))
  save(work, cfg, speaker, folder, trained)
  return {**counts, 'chat_left_out': left, 'steps': steps, 'trained': llm.count(trained),
          'shared_prefix': len(prefix), 'rows': len(train.rows), 'row': train.row_tokens,
          **{k: v for k, v in stock.notes.items() if v}}


def rendered(cfg, shop, stock, speaker, tree, teach, talk):
  """Examples of every epoch, and of validation.

  Those longer than prompt.max_prompt_tokens are counted and left out.

  -> {part: [TokenSample]}, counts
  """
  nodes = trie_masked.title_nodes(tree.first, tree.tok, [[*r, speaker.eoi] for r in stock.rows])
  turn = renderer(cfg, speaker, stock, nodes)
  parts = offline_samples.of_run(cfg, shop, stock, teach, talk)
  parts['train'] = [s for some in parts['train'] for s in some]
  out, long, counts = {}, 0, {}
  for part, some in parts.items():
    made = [turn.examples(s) for s in some]
    fit = [m for m in made if all(len(e.ids) <= cfg.prompt.max_prompt_tokens for e in m)]
    out[part] = [e for m in fit for e in m]
    long += len(made) - len(fit)
    counts[part] = len(fit)
  about = sum(s.task.startswith('control') for s in parts['train'])
  apart = len(out['train']) - counts['train']
  return out, {'samples': counts['train'], **({'answers_learnt_apart': apart} if apart else {}),
               'about_categories': about, 'too_long': long,
               'users_too_short': int((shop.interactions.lengths() < sft_data.SHORTEST).sum())}


# What is trained.


def start_of(cfg, speaker, items):
  """The tree to train: all weights or an adapter with the new rows; ret's parts beside them."""
  if cfg.train.mode == 'full':
    out = {'params': speaker.params}
  else:
    out = {'lora': lora.init_lora(speaker.model.cfg, jax.random.key(cfg.seed)),
           'rows': embedding_resize.rows_of(speaker.params, new_ids(speaker))}
  if items is not None:
    width = speaker.model.cfg.width
    key = jax.random.key(cfg.seed + 1)
    out['project'] = init_project(key, width, cfg.ret.hidden, items.shape[1])
    out['items'] = jnp.asarray(items)
  return out


def new_ids(speaker):
  return [speaker.soi, speaker.eoi, *speaker.codes]


def variables_of(cfg, speaker, train, frozen):
  """The LLM's variables out of what is trained and what is not."""
  if cfg.train.mode == 'full':
    return {'params': train['params']}
  return {
    'params': embedding_resize.put(frozen, train['rows'], new_ids(speaker)),
    'lora': train['lora'],
  }


def init_project(key, width, hidden, out):
  """A layer of GELU between two linear ones, or one linear layer (hidden 0)."""
  shapes = [(width, out)] if not hidden else [(width, hidden), (hidden, out)]
  return [{'kernel': jax.random.normal(jax.random.fold_in(key, i), s) / s[0] ** 0.5,
           'bias': jnp.zeros(s[1])} for i, s in enumerate(shapes)]


def project(layers, states):
  """States (..., D) to the items' space (..., E) (reclm.md 3.5)."""
  for number, layer in enumerate(layers):
    states = (nn.gelu(states, approximate=False) if number else states) @ layer['kernel']
    states = states + layer['bias']
  return states


def task_of(cfg, speaker, tree, items, train, valid, batches, ways=1):
  """The optimisation problem of `fit`. ways: devices over which rows of a batch divide."""
  table = trie_masked.scope_of(tree.first, tree.tok, speaker.model.cfg.vocab)
  sums = functools.partial(loss_sums, cfg, speaker, train.prefix, table,
                           packed_items(train, batches.size))

  def learnt(given, frozen, batch):
    found, count = sums(given, frozen, batch)
    return found['valid_loss'], count
  # The loss of ret is two means, over tokens and over items.
  split = None if cfg.grounding == 'ret' else microbatch.accumulate_sums(learnt)
  start = start_of(cfg, speaker, items)
  frozen = () if cfg.train.mode == 'full' else speaker.params
  together = -(-batches.size // ways) * ways
  return Task(init=None, start=start, loss=microbatch.mean(learnt), split=split,
              shape=(speaker.model.cfg, len(train.prefix)), batches=batches, frozen=frozen,
              rules=llm.RULES, evaluate=judge_of(functools.partial(
                  loss_sums, cfg, speaker, train.prefix, table, packed_items(valid, together)),
                  valid, together, cfg.ret.alpha))


def judge_of(sums, valid, rows, alpha=0.0):
  """Means over held-out lists: `title_nll` is a mean over the tokens of titles, whatever the loss
  is, so runs with another `train.scope` compare. alpha: ret's weight of items in the loss.
  -> judge(train, frozen) -> {name: value}"""
  run = sft.evaluator(sums, valid, rows)

  def judge(train, frozen):
    found = run(train, frozen)
    for name, count in (('title_nll', 'titles'), ('token_nll', 'tokens'), ('item_nll', 'items')):
      share = found.pop(count, 0)
      if share:
        found[name] /= share
    if 'token_nll' in found:  # ret: the means of all lists, not of a batch, whose size depends on
      found['valid_loss'] = found.pop('token_nll') + alpha * found['item_nll']  # the devices
    return found
  return judge


def packed_items(packed, rows):
  """Room for the items that a batch of so many rows asks for."""
  most = max(sum(int((packed.samples[i].marks['item'] > 0).sum()) for i in row)
             for row in packed.rows)
  return -(-most * rows // 8) * 8


def loss_sums(cfg, speaker, prefix, table, room, train, frozen, batch):
  """Sums over the tokens of a batch that are learnt, and their count; with train.average='samples',
  as released, over conversations: each the mean of its own tokens.

  -> {'valid_loss': what is minimised, 'title_nll': of the `titles` tokens of titles and their ends
  among what the catalogue allows}
  """
  variables = variables_of(cfg, speaker, train, frozen)
  hidden = sft.hidden_states(speaker.model, prefix, variables, batch)
  head = llm.head_matrix(variables['params'], speaker.model.cfg)
  flat = {k: batch[k].reshape(-1) for k in ('targets', 'weights', 'node', 'item')}

  def counted(some):  # how much each token counts
    if cfg.train.average == 'tokens':
      return some
    return sft.sample_weights(
      some.reshape(batch['segments'].shape), batch['segments']
    ).reshape(-1)

  weights = flat['weights']
  learnt = weights
  if cfg.train.prompt:  # histories are sequences to learn from, too
    read = (batch['segments'].reshape(-1) > 0) & (weights == 0)
    learnt = weights + cfg.train.prompt * read
  if cfg.grounding == 'ret':
    count, kept = learnt.sum(), counted(learnt * (flat['item'] >= 0))
    nll = trie_masked.token_nll(
      hidden, head, flat['targets'], jnp.full_like(flat['node'], trie_masked.FREE), table
    )
    sums = {'token_nll': (nll * kept).sum(), 'tokens': kept.sum()}
    items = flat['item'] * (weights > 0)
    sums['item_nll'], sums['items'] = fetch_loss(
        train, hidden, items, counted((items > 0).astype(jnp.float32)), room)
    total = (sums['token_nll'] / jnp.maximum(sums['tokens'], 1)
             + cfg.ret.alpha * sums['item_nll'] / jnp.maximum(sums['items'], 1))
    return {**sums, 'valid_loss': total * count}, count
  ends = flat['targets'] == speaker.eoi
  nodes = trie_masked.narrowed(flat['node'], ends, cfg.train.scope, cfg.train.scope_end)
  nll = trie_masked.token_nll(hidden, head, flat['targets'], nodes, table, cfg.train.gamma,
                        cfg.train.focus, free=cfg.train.free)
  within = trie_masked.token_nll(hidden, head, flat['targets'], flat['node'], table)
  titles, learnt = weights * (flat['item'] < 0), counted(learnt)
  return {'valid_loss': (nll * learnt).sum(), 'title_nll': (within * titles).sum(),
          'titles': titles.sum()}, learnt.sum()


def fetch_loss(train, hidden, items, weights, room):
  """The full softmax over the catalogue where an item begins. items: (M,), 0 for none. weights:
  (M,), how much each counts. -> sum, count"""
  spot = jnp.nonzero(items > 0, size=room, fill_value=len(items))[0]
  take = lambda x: x.at[spot].get(mode='fill', fill_value=0)  # noqa: E731
  z = project(train['project'], take(hidden).astype(jnp.float32))
  goal = take(items)
  nll = item_losses.cross_entropy(z, train['items'], jnp.maximum(goal - 1, 0))
  return (nll * take(weights)).sum(), weights.sum()


# What is kept.


def save(work, cfg, speaker, folder, trained):
  """A whole checkpoint, or an adapter with the new rows; ret's parts as plain arrays."""
  speaker.tokenizer.save(work.folder)
  if cfg.train.mode == 'full':
    huggingface.save(trained['params'], speaker.model.cfg, work.folder)
  else:
    inside = folder.resolve().is_relative_to(work.path.resolve())
    base = os.path.relpath(folder, work.folder) if inside else str(folder)
    huggingface.save_adapter(trained['lora'], speaker.model.cfg, work.folder, base=base)
    plain_arrays.save(work.folder / 'rows.npz', trained['rows'])
  if cfg.grounding == 'ret':
    plain_arrays.save(work.folder / 'ret.npz', {
        'items': trained['items'], 'project': dict(enumerate(trained['project']))})
  write_json(work.folder / 'control.json', {'soi': speaker.soi, 'eoi': speaker.eoi,
                                            'codes': speaker.codes})


def load(cfg, folder, made, mesh):
  """The tuned LLM. folder: of the base, made: the stage's. -> Speaker"""
  control = read_json(made / 'control.json')
  extra = None
  if cfg.grounding == 'ret':
    parts = plain_arrays.load(made / 'ret.npz')
    layers = [jax.tree.map(jnp.asarray, parts['project'][k]) for k in sorted(parts['project'])]
    extra = {'project': layers, 'items': jnp.asarray(parts['items'])}
  if cfg.train.mode == 'full':
    model, params, tokenizer = llm_loading.load(made, cfg.llm, mesh)
    return ChatModel(model, params, None, tokenizer, control['soi'], control['eoi'],
                   control['codes'], extra, scoring(cfg.train, control['eoi']))
  model, params, _, adapter = llm_loading.load_adapted(folder, cfg.llm, made, mesh)
  tokenizer = tokenizers.load(made)
  ids = [control['soi'], control['eoi'], *control['codes']]
  params, shape = embedding_resize.grow(params, model.cfg, ids, [[0]] * len(ids))
  params = embedding_resize.put(params, plain_arrays.load(made / 'rows.npz'), ids)
  return ChatModel(llm.LM(shape), params, adapter, tokenizer, *ids[:2], ids[2:], extra,
                 scoring(cfg.train, ids[1]))


def merged(cfg, folder, made, out):
  """Writes base, adapter and new rows as one checkpoint that transformers loads."""
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  speaker = load(cfg, folder, made, mesh)
  shape = dataclasses.replace(speaker.model.cfg, lora_rank=0)
  huggingface.save(lora.merge(speaker.params, speaker.lora, speaker.model.cfg), shape, out)
  speaker.tokenizer.save(out)
