"""Supervised fine-tuning: scope-masked titles (cgen, token), or fetched items (ret)."""
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data import splits
from recjax.data.dataset import Catalog, Dataset
from recjax.data.formats import conversations
from recjax.data.sample_shop.small_talk import questions
from recjax.decoding.constraints import Normalization
from recjax.decoding.trie import Trie
from recjax.distributed import multihost, sharding
from recjax.errors import ConfigError
from recjax.file_io import write_json
from recjax.methods.reclm import (
  chat_encoding,
  item_embeddings,
  offline_samples,
  own_talk,
  sft_data,
  teacher,
  tokenized_catalog,
)
from recjax.models import embedding_resize, huggingface, llm, lora
from recjax.models.layers import count_params
from recjax.run_files import read_json
from recjax.text import tokenizer as tokenizers
from recjax.text.packing import PackedSamples
from recjax.text.tokenizer import Tokenizer
from recjax.training import continuation, llm_loading, loop, microbatch, sft
from recjax.training import sequential as plain_arrays
from recjax.training.continuation import Start
from recjax.training.loop import Task, fit
from recjax.training.losses import item_losses, trie_masked
from recjax.training.workdir import Workdir

# What control tokens begin as: the mean of these words, as published, or the quotes that enclose
# the titles of a history, so that what is learned of those titles holds for answers at once.
INIT_WORDS = {
  'words': {tokenized_catalog.SOI: 'start of an item', tokenized_catalog.EOI: 'end of an item'},
  'quotes': {tokenized_catalog.SOI: " '", tokenized_catalog.EOI: "'"}}


def settings(cfg: ConfigDict) -> ConfigDict:
  """Everything in the config that decides this stage's result. cfg: the run's config."""
  return ConfigDict({k: cfg[k] for k in ('grounding', 'prompt', 'talk', 'train', 'lora', 'ret',
                                         'semantic_ids', 'optim', 'llm', 'seed',
                                         'control')})


AVERAGES = ('tokens', 'samples')  # what a loss is a mean over


@dataclasses.dataclass(eq=False)
class ChatModel:
  """A language model with the catalog's control tokens.

  model: the network. params: weights with their rows; lora: an adapter's tree, or None. soi, eoi:
  ids of the tokens that open and close an item. codes: ids of the tokens of semantic IDs. extra:
  {'project', 'items'} of ret, or None. scoring: see `scoring_options`. tokenizer: that knows these
  tokens.
  """
  model: llm.LM
  params: PyTree
  lora: PyTree | None
  tokenizer: Tokenizer
  soi: int
  eoi: int
  codes: list[int]
  extra: dict | None = None
  scoring: Normalization = Normalization()

  @property
  def variables(self) -> dict:
    """What the network is applied with."""
    return {'params': self.params, **({'lora': self.lora} if self.lora else {})}


def open_start(cfg: ConfigDict, catalog: Catalog) -> Start | None:
  """The run that a config goes on from, None where it begins from nothing.

  cfg: the run's config. catalog: the items of its data. Raises what `continuation.open_llm_start`
  does, and ConfigError for another grounding, or one that cannot go on.
  """
  start = continuation.open_llm_start(cfg, catalog, cfg.train.mode)
  if not start:
    return None
  if cfg.grounding == 'token':
    raise ConfigError('grounding=token is trained from nothing each time: its codes are made of '
                      'all items together, and old items would change theirs; leave --from out, or '
                      'take grounding=cgen or ret')
  for name in ('grounding', 'train.mode'):
    continuation.same_settings(start, cfg, name)
  sources = {start.config.teacher.source, cfg.teacher.source}
  if cfg.grounding == 'ret':
    files = not {start.config.ret.vectors, cfg.ret.vectors} & {'teacher', 'text'}
    continuation.same_settings(start, cfg, 'ret', free=('alpha', 'tokens', *['vectors'] * files))
    if cfg.ret.vectors == 'teacher' and 'train' in sources:
      continuation.same_settings(start, cfg, 'teacher.source')
  if sources == {'train'}:
    continuation.same_settings(start, cfg, 'teacher.model', free=('dropout',))
  return start


def control_tokens(cfg: ConfigDict, table: np.ndarray | None = None) -> list[str]:
  """Control tokens, their order is that of their ids. table: (N, levels) codes of 'token'. cfg: as
  `settings`."""
  if cfg.grounding != 'token':
    return [tokenized_catalog.SOI, tokenized_catalog.EOI]
  size = int(table.max()) + 1
  return [
    tokenized_catalog.SOI, tokenized_catalog.EOI,
    *(f'<{level}_{code}>' for level in range(table.shape[1]) for code in range(size))]


def scoring_options(train: ConfigDict, eoi: int) -> Normalization:
  """How `constraints.CatalogConstraint` gives a title the log-probability that `loss_sums` gives
  it.

  train: scope, scope_end, free. eoi: the end-of-item token.
  """
  if train.scope == 'none':
    return Normalization()
  return Normalization('scope', vocab_weight=float(train.free),
                       vocab_tokens=() if train.scope_end else (eoi,),
                       forced_over_vocab=train.scope == 'branches')


def new_chat_model(cfg: ConfigDict, llm_dir: Path, mesh: jax.sharding.Mesh,
                   table: np.ndarray | None = None) -> ChatModel:
  """The LLM of a folder with control tokens, untrained.

  table: codes of RecLM-token. cfg: as `settings`. llm_dir: of the stage before. mesh: the devices.
  Raises ConfigError for a mode that is not known.
  """
  adapter = {}
  if cfg.train.mode == 'lora':
    adapter = dict(lora_rank=cfg.lora.rank, lora_alpha=float(cfg.lora.alpha),
                   lora_targets=tuple(cfg.lora.targets))
  elif cfg.train.mode != 'full':
    raise ConfigError(f"train.mode={cfg.train.mode!r}; choose 'lora' or 'full'")
  model, params, base = llm_loading.load(llm_dir, cfg.llm, mesh, **adapter)
  tokenizer, ids = tokenizers.add_control_tokens(base, control_tokens(cfg, table))
  init_words = [
    base.encode(INIT_WORDS[cfg.train.control_like].get(name, 'item'))
    for name in control_tokens(cfg, table)]
  params, shape = embedding_resize.add_tokens(params, model.cfg, ids, init_words)
  if len(ids) > 2:  # codes that begin alike would stay alike under symmetric gradients
    rows = embedding_resize.token_rows(params, ids)
    key = jax.random.key(cfg.seed)
    rows = {name: row + row.std() * jax.random.normal(jax.random.fold_in(key, number), row.shape)
            for number, (name, row) in enumerate(sorted(rows.items()))}
    params = embedding_resize.set_rows(params, rows, ids)
  model = llm.LM(shape)
  return ChatModel(model, params, None, tokenizer, *ids[:2], ids[2:],
                   scoring=scoring_options(cfg.train, ids[1]))


def make_encoder(cfg: ConfigDict, chat_model: ChatModel,
                 tokenized: tokenized_catalog.TokenizedCatalog,
                 nodes: Sequence[np.ndarray] | None = None) -> chat_encoding.ChatEncoder:
  """How this model's conversations become tokens. nodes: as of `ChatEncoder`. cfg: of the run.
  chat_model: the LLM. tokenized: the catalog."""
  return chat_encoding.ChatEncoder(
    chat_model.tokenizer, tokenized.title_tokens, chat_model.soi, chat_model.eoi, nodes,
    cfg.prompt.max_prompt_tokens, dict(cfg.prompt.variables))


def load_tokenized(cfg: ConfigDict, dataset: Dataset, chat_model: ChatModel,
                   table: np.ndarray | None = None) -> tokenized_catalog.TokenizedCatalog:
  """The catalog as the model writes it. table: codes of RecLM-token. cfg: as `settings`. dataset:
  of the run. chat_model: the LLM."""
  tokenized = tokenized_catalog.load(dataset.catalog, chat_model.tokenizer)
  return (
    tokenized
    if table is None
    else tokenized_catalog.with_codes(tokenized, table, chat_model.codes[0]))


def load_chat_pairs(cfg: ConfigDict,
                    talk_dir: Path | None = None) -> tuple[list[tuple[str, str]], int]:
  """Chat pairs: of a file, the built-in ones, the model's own, or none. cfg: the run's config.
  talk_dir: of the stage that asked the model. -> [(question, answer)], left out"""
  if not cfg.talk.source or not (cfg.train.multi_round or cfg.train.chat_share):
    return [], 0
  if cfg.talk.source == 'sample':
    return questions(1000, cfg.seed), 0
  if cfg.talk.source == 'own':
    return own_talk.read(talk_dir), 0
  return conversations.read(cfg.talk.source)


def stage(work: Workdir, cfg: ConfigDict, dataset: Dataset, llm_dir: Path, teacher_dir: Path,
          codes_dir: Path | None = None, static_dir: Path | None = None,
          talk_dir: Path | None = None, start: Start | None = None) -> dict:
  """Tunes the LLM of `llm_dir` into `work.folder`.

  teacher_dir, codes_dir: of those stages. static_dir: the folder of `train.static`, whose content
  decides the result too. talk_dir: of the stage that asked the LLM plain questions. work: of the
  stage. cfg: as `settings`. dataset: of the run. start: the run that it goes on from. -> counts
  """
  del static_dir
  if start:
    continuation.keep_split_facts(work, start, dataset, splits.make_split(dataset))
  table = None if codes_dir is None else run_files.read_arrays(codes_dir / 'codes.npy')
  chat_model = new_chat_model(cfg, llm_dir, work.mesh, table)
  tokenized = load_tokenized(cfg, dataset, chat_model, table)
  trie = tokenized.to_trie(chat_model.eoi, chat_model.model.cfg.vocab)
  talk, num_left_out = load_chat_pairs(cfg, talk_dir)
  parts, counts = encode_samples(
    cfg, dataset, tokenized, chat_model, trie, teacher.make_teacher(teacher_dir, dataset), talk)
  prefix = sft.common_prefix([
    example.ids[:example.learned.argmax()].tolist() for example in parts['train'] + parts['valid']])
  train, valid = (
    sft.pack_conversations(parts[part], cfg.train.row_tokens, prefix, chat_encoding.MARKS)
    for part in ('train', 'valid'))
  batches, steps_of_epochs = sft.shuffled_batches(train, cfg.train.batch, work.mesh, cfg.seed)
  items = (
    item_embeddings.item_vectors(work, cfg, teacher_dir, dataset, llm_dir)
    if cfg.grounding == 'ret'
    else None)
  task = make_task(
    cfg, chat_model, trie, carried_over(start, init_trainable(cfg, chat_model, items), chat_model),
    train, valid, batches, sharding.num_batch_shards(work.mesh))
  steps = max(1, round(steps_of_epochs))
  fit_settings = dataclasses.replace(
      loop.FitSettings.of(cfg.optim), steps=steps, seed=cfg.seed,
      eval_every=max(1, round(steps / cfg.train.epochs)), patience=cfg.train.patience)
  trained = multihost.to_host(fit(task, fit_settings, work))
  save_model(work, cfg, chat_model, llm_dir, trained)
  return {'parameters': count_params(chat_model.variables), **counts,
          'chat_left_out': num_left_out, 'steps': steps,
          'trained': count_params(trained), 'shared_prefix': len(prefix),
          'rows': len(train.rows), 'row': train.row_tokens,
          **{note: count for note, count in tokenized.notes.items() if count}}


def encode_samples(cfg: ConfigDict, dataset: Dataset, tokenized: tokenized_catalog.TokenizedCatalog,
                   chat_model: ChatModel, trie: Trie, teach: Callable,
                   talk: Sequence[tuple[str, str]]) -> tuple[dict[str, list], dict]:
  """Examples of every epoch, and of validation.

  trie: of the titles. teach, talk: as in `offline_samples.run_samples`. Those longer than
  prompt.max_prompt_tokens are counted and left out. tokenized: the catalog. cfg, dataset: of the
  run. chat_model: the LLM. -> {part: [TokenSample]}, counts
  """
  nodes = trie_masked.title_nodes(
    trie.first, trie.tok, [[*title_ids, chat_model.eoi] for title_ids in tokenized.title_tokens])
  encoder = make_encoder(cfg, chat_model, tokenized, nodes)
  parts = offline_samples.run_samples(cfg, dataset, tokenized, teach, talk)
  parts['train'] = [sample for samples in parts['train'] for sample in samples]
  examples, num_too_long, counts = {}, 0, {}
  for part, samples in parts.items():
    encoded = [encoder.examples(sample.turns) for sample in samples]
    fitting = [
      sample_examples
      for sample_examples in encoded
      if all(len(example.ids) <= cfg.prompt.max_prompt_tokens for example in sample_examples)]
    examples[part] = [example for sample_examples in fitting for example in sample_examples]
    num_too_long += len(encoded) - len(fitting)
    counts[part] = len(fitting)
  num_about_categories = sum(sample.task.startswith('control') for sample in parts['train'])
  num_apart = len(examples['train']) - counts['train']
  return examples, {
    'samples': counts['train'], **({'answers_learned_apart': num_apart} if num_apart else {}),
    'about_categories': num_about_categories, 'too_long': num_too_long,
    'users_too_short': int((dataset.interactions.lengths() < sft_data.MIN_USER_ITEMS).sum())}


# What is trained.


def init_trainable(cfg: ConfigDict, chat_model: ChatModel, items: np.ndarray | None) -> PyTree:
  """The tree to train: all weights or an adapter with the new rows; ret's parts beside them.

  items: (N, E) vectors of RecLM-ret. cfg: as `settings`. chat_model: the LLM.
  """
  if cfg.train.mode == 'full':
    tree = {'params': chat_model.params}
  else:
    tree = {'lora': lora.init_lora(chat_model.model.cfg, jax.random.key(cfg.seed)),
            'rows': embedding_resize.token_rows(chat_model.params, control_ids(chat_model))}
  if items is not None:
    width = chat_model.model.cfg.width
    key = jax.random.key(cfg.seed + 1)
    tree['project'] = init_projection(key, width, cfg.ret.hidden, items.shape[1])
    tree['items'] = jnp.asarray(items)
  return tree


def carried_over(start: Start | None, fresh: PyTree, chat_model: ChatModel) -> PyTree:
  """What training begins with: of the earlier run where there is one; new items of RecLM-ret keep
  their fresh vectors.

  start: the earlier run. fresh: as `init_trainable` makes it. chat_model: the LLM.
  """
  if not start:
    return fresh
  if 'params' in fresh:
    where = jax.tree.map(lambda x: x.sharding, fresh['params'])
    tree = {'params': huggingface.load(start.folder, chat_model.model.cfg, where)}
  else:
    tree = {'lora': huggingface.load_adapter(start.folder, chat_model.model.cfg),
            'rows': plain_arrays.load(start.folder / 'rows.npz')}
  if 'items' in fresh:
    parts = plain_arrays.load(start.folder / 'ret.npz')
    tree['project'] = [parts['project'][number] for number in sorted(parts['project'])]
    tree['items'] = fresh['items'].at[:len(parts['items'])].set(parts['items'])
  return jax.tree.map(jnp.asarray, tree)


def control_ids(chat_model: ChatModel) -> list[int]:
  """Ids of all control tokens. chat_model: the LLM."""
  return [chat_model.soi, chat_model.eoi, *chat_model.codes]


def model_variables(cfg: ConfigDict, chat_model: ChatModel, train: PyTree, frozen: PyTree) -> dict:
  """The LLM's variables out of what is trained and what is not.

  train, frozen: the trees of `fit`. cfg: as `settings`. chat_model: the LLM.
  """
  if cfg.train.mode == 'full':
    return {'params': train['params']}
  return {
    'params': embedding_resize.set_rows(frozen, train['rows'], control_ids(chat_model)),
    'lora': train['lora']}


def init_projection(key: Key[Array, ''], width: int, hidden: int,
                    out: int) -> list[dict[str, Array]]:
  """A layer of GELU between two linear ones, or one linear layer (hidden 0).

  width, out: of states and item vectors. key: of the draws. hidden: its width between.
  """
  shapes = [(width, out)] if not hidden else [(width, hidden), (hidden, out)]
  return [{'kernel': jax.random.normal(jax.random.fold_in(key, number), shape) / shape[0] ** 0.5,
           'bias': jnp.zeros(shape[1])} for number, shape in enumerate(shapes)]


def project(layers: Sequence[dict[str, Array]],
            states: Float[Array, '*B D']) -> Float[Array, '*B E']:
  """States to the items' space (RecLM-ret).

  layers: as `init_projection` gives them. states: of the LLM.
  """
  for number, layer in enumerate(layers):
    states = jnp.matmul(nn.gelu(states, approximate=False) if number else states, layer['kernel'],
                        precision=jax.lax.Precision.HIGHEST)
    states = states + layer['bias']
  return states


def make_task(cfg: ConfigDict, chat_model: ChatModel, trie: Trie, start: PyTree,
              train: PackedSamples, valid: PackedSamples, batches: Any,
              num_shards: int = 1) -> Task:
  """The optimization problem of `fit`.

  trie: of the titles. start: what is trained, as it begins. train, valid: packed conversations.
  batches: of the first. num_shards: devices over which rows of a batch divide. cfg: as `settings`.
  chat_model: the LLM.
  """
  scope = trie_masked.scope_of(trie.first, trie.tok, chat_model.model.cfg.vocab)
  sums_of_batch = functools.partial(loss_sums, cfg, chat_model, train.prefix, scope,
                                    max_fetched_items(train, batches.size))

  def loss_of_batch(given: PyTree, frozen: PyTree, batch: dict[str, Array]) -> tuple[Array, Array]:
    values, count = sums_of_batch(given, frozen, batch)
    return values['valid_loss'], count
  # The loss of ret is two means, over tokens and over items.
  split = None if cfg.grounding == 'ret' else microbatch.accumulate_sums(loss_of_batch)
  frozen = () if cfg.train.mode == 'full' else chat_model.params
  padded_rows = -(-batches.size // num_shards) * num_shards
  return Task(
    init=None, start=start, loss=microbatch.mean(loss_of_batch), split=split,
    shape=(chat_model.model.cfg, len(train.prefix)), batches=batches, frozen=frozen,
    rules=llm.RULES,
    evaluate=make_validator(
      functools.partial(
        loss_sums, cfg, chat_model, train.prefix, scope, max_fetched_items(valid, padded_rows)),
      valid, padded_rows, cfg.ret.alpha))


def make_validator(sums: Callable, valid: PackedSamples, rows: int,
                   alpha: float = 0.0) -> Callable:
  """Means over held-out lists: `title_nll` is a mean over the tokens of titles, whatever the loss
  is, so runs with another `train.scope` compare.

  valid: packed lists. sums: as `loss_sums`. rows: that are judged together. alpha: ret's weight of
  items in the loss. -> validate(train, frozen) -> {name: value}
  """
  sum_all = sft.evaluator(sums, valid, rows)

  def validate(train: PyTree, frozen: PyTree) -> dict[str, float]:
    values = sum_all(train, frozen)
    for name, count in (('title_nll', 'titles'), ('token_nll', 'tokens'), ('item_nll', 'items')):
      total = values.pop(count, 0)
      if total:
        values[name] /= total
    if 'token_nll' in values:  # ret: the means of all lists, not of a batch, whose size depends on
      values['valid_loss'] = values.pop('token_nll') + alpha * values['item_nll']  # the devices
    return values
  return validate


def max_fetched_items(packed: PackedSamples, rows: int) -> int:
  """Room for the items that a batch of so many rows asks for. packed: conversations."""
  max_items = max(sum(int((packed.samples[example].marks['item'] > 0).sum()) for example in row)
                  for row in packed.rows)
  return -(-max_items * rows // 8) * 8


def loss_sums(cfg: ConfigDict, chat_model: ChatModel, prefix: Sequence[int],
              scope: trie_masked.Scope, max_items: int, train: PyTree, frozen: PyTree,
              batch: dict[str, Array]) -> tuple[dict[str, Array], Array]:
  """Sums over the learned tokens of a batch, and their count; with train.average='samples', as
  released, over conversations: each the mean of its own tokens.

  prefix: tokens that all conversations begin with. scope: of the trie's nodes. max_items: that a
  batch asks for. train, frozen: what learns and what does not. batch: as `PackedSamples` makes it.
  cfg: as `settings`. chat_model: the LLM. -> {'valid_loss': what is minimized, 'title_nll': of the
  `titles` tokens of titles and their ends among what the catalog allows}
  """
  variables = model_variables(cfg, chat_model, train, frozen)
  hidden = sft.hidden_states(chat_model.model, prefix, variables, batch)
  head = llm.head_matrix(variables['params'], chat_model.model.cfg)
  columns = {column: batch[column].reshape(-1) for column in ('targets', 'weights', 'node', 'item')}

  def weigh(token_weights: Array) -> Array:  # how much each token counts
    if cfg.train.average == 'tokens':
      return token_weights
    return sft.sample_weights(
      token_weights.reshape(batch['segments'].shape), batch['segments']).reshape(-1)

  weights = columns['weights']
  learned_weights = weights
  if cfg.train.prompt:  # histories are sequences to learn from, too
    is_read = (batch['segments'].reshape(-1) > 0) & (weights == 0)
    learned_weights = weights + cfg.train.prompt * is_read
  if cfg.grounding == 'ret':
    count, kept_weights = learned_weights.sum(), weigh(learned_weights * (columns['item'] >= 0))
    nll = trie_masked.token_nll(
      hidden, head, columns['targets'], jnp.full_like(columns['node'], trie_masked.FREE), scope)
    sums = {'token_nll': (nll * kept_weights).sum(), 'tokens': kept_weights.sum()}
    items = columns['item'] * (weights > 0)
    sums['item_nll'], sums['items'] = fetch_loss(
        train, hidden, items, weigh((items > 0).astype(jnp.float32)), max_items)
    total = (sums['token_nll'] / jnp.maximum(sums['tokens'], 1)
             + cfg.ret.alpha * sums['item_nll'] / jnp.maximum(sums['items'], 1))
    return {**sums, 'valid_loss': total * count}, count
  is_end = columns['targets'] == chat_model.eoi
  nodes = trie_masked.narrowed(columns['node'], is_end, cfg.train.scope, cfg.train.scope_end)
  nll = trie_masked.token_nll(hidden, head, columns['targets'], nodes, scope, cfg.train.gamma,
                              cfg.train.focus, free=cfg.train.free)
  nll_within = trie_masked.token_nll(hidden, head, columns['targets'], columns['node'], scope)
  titles, learned_weights = weights * (columns['item'] < 0), weigh(learned_weights)
  return {'valid_loss': (nll * learned_weights).sum(), 'title_nll': (nll_within * titles).sum(),
          'titles': titles.sum()}, learned_weights.sum()


def fetch_loss(train: PyTree, hidden: Float[Array, 'M D'], items: Int[Array, ' M'],
               weights: Float[Array, ' M'], max_items: int) -> tuple[Array, Array]:
  """The full softmax over the catalog where an item begins.

  train: what learns. hidden: states. items: 0 for none. weights: how much each counts. max_items:
  at most so many are there. -> sum, count
  """
  positions = jnp.nonzero(items > 0, size=max_items, fill_value=len(items))[0]
  take = lambda x: x.at[positions].get(mode='fill', fill_value=0)  # noqa: E731
  queries = project(train['project'], take(hidden).astype(jnp.float32))
  target_items = take(items)
  nll = item_losses.cross_entropy(queries, train['items'], jnp.maximum(target_items - 1, 0))
  return (nll * take(weights)).sum(), weights.sum()


# What is kept.


def save_model(work: Workdir, cfg: ConfigDict, chat_model: ChatModel, llm_dir: Path,
               trained: PyTree) -> None:
  """A whole checkpoint, or an adapter with the new rows; ret's parts as plain arrays.

  trained: what was learned. llm_dir: of the base. work: of the stage. cfg: as `settings`.
  chat_model: the LLM.
  """
  chat_model.tokenizer.save(work.folder)
  if cfg.train.mode == 'full':
    shape = chat_model.model.cfg
    huggingface.save(llm.as_stored(trained['params'], shape), shape, work.folder)
  else:
    is_inside = llm_dir.resolve().is_relative_to(work.path.resolve())
    base = os.path.relpath(llm_dir, work.folder) if is_inside else str(llm_dir)
    huggingface.save_adapter(trained['lora'], chat_model.model.cfg, work.folder, base=base)
    plain_arrays.save(work.folder / 'rows.npz', trained['rows'])
  if cfg.grounding == 'ret':
    plain_arrays.save(work.folder / 'ret.npz', {
        'items': trained['items'], 'project': dict(enumerate(trained['project']))})
  write_json(work.folder / 'control.json', {'soi': chat_model.soi, 'eoi': chat_model.eoi,
                                            'codes': chat_model.codes})


def load_model(cfg: ConfigDict, llm_dir: Path, tuned_dir: Path,
               mesh: jax.sharding.Mesh) -> ChatModel:
  """The tuned LLM. llm_dir: of the base, tuned_dir: the stage's. cfg: as `settings`. mesh: the
  devices."""
  control = read_json(tuned_dir / 'control.json')
  extra = None
  if cfg.grounding == 'ret':
    parts = plain_arrays.load(tuned_dir / 'ret.npz')
    layers = [
      jax.tree.map(jnp.asarray, parts['project'][number]) for number in sorted(parts['project'])]
    extra = {'project': layers, 'items': jnp.asarray(parts['items'])}
  if cfg.train.mode == 'full':
    model, params, tokenizer = llm_loading.load(tuned_dir, cfg.llm, mesh)
    return ChatModel(model, params, None, tokenizer, control['soi'], control['eoi'],
                     control['codes'], extra, scoring_options(cfg.train, control['eoi']))
  model, params, _ = llm_loading.load_merged(llm_dir, cfg.llm, tuned_dir, mesh)
  tokenizer = tokenizers.load(tuned_dir)
  ids = [control['soi'], control['eoi'], *control['codes']]
  params, shape = embedding_resize.add_tokens(params, model.cfg, ids, [[0]] * len(ids))
  params = embedding_resize.set_rows(params, plain_arrays.load(tuned_dir / 'rows.npz'), ids)
  return ChatModel(llm.LM(shape), params, None, tokenizer, *ids[:2], ids[2:], extra,
                   scoring_options(cfg.train, ids[1]))


def save_merged(cfg: ConfigDict, llm_dir: Path, tuned_dir: Path, out: Path) -> None:
  """Writes base, adapter and new rows as one checkpoint that transformers loads.

  out: the new folder. cfg: as `settings`. llm_dir, tuned_dir: of the stages before.
  """
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  chat_model = load_model(cfg, llm_dir, tuned_dir, mesh)
  huggingface.save(chat_model.params, chat_model.model.cfg, out)
  chat_model.tokenizer.save(out)
