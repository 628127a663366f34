"""Training of sequential recommenders: users packed into rows on the device, losses over items.

One epoch is one call: `fit` trains all seeds at once and keeps the best epoch of each, as the
method that asks judges them.
"""
import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree
from ml_collections import ConfigDict

from recjax import file_io, run_files
from recjax.data import times as times_lib
from recjax.data.dataset import Interactions
from recjax.data.splits import Split
from recjax.distributed import sharding
from recjax.errors import ConfigError, DataError
from recjax.models import dot_product, seqrec
from recjax.protocols import AnyArray
from recjax.training import cost_model, epoch_loop, optim
from recjax.training.losses import item_losses
from recjax.training.workdir import Workdir

LOSSES = ('ce', 'chunked', 'bce', 'gbce', 'sampled')
SOFTMAX_LOSSES = ('ce', 'chunked', 'sampled')  # of these the softmax of scores is a probability
NEGATIVE_SCOPES = ('position', 'sequence', 'batch')
UNROLL = 32  # turns of `assign_rows` in one
EXCLUDE = ('train_history', 'target', 'none')
WITHOUT_TIMES = 'or set --config.model.time=none, which leaves places alone'


def model_config(cfg: ConfigDict, items: int) -> seqrec.Config:
  """The model of a config over so many items. cfg: the run's config. -> seqrec.Config"""
  return seqrec.Config(items=items, **cfg.model)


def plain(model: seqrec.Config, loss: Callable, targets: int) -> tuple[Callable, Callable]:
  """What is trained by default: the model as it is. See `fit`.

  targets: room for targets. -> init, loss
  """
  del targets

  def total(params: PyTree, shared: PyTree, own: PyTree, seqs: Array, key: Array) -> Array:
    if model.pads:  # the row that padding reads stays as it was drawn
      table = params['items']
      params = {**params, 'items': table.at[0].set(lax.stop_gradient(table[0]))}
    return loss(params, seqs, key)
  return functools.partial(seqrec.init, model), total


def fit(work: Workdir, cfg: ConfigDict, items: int, split: Split, validate: Callable,
        teach: Callable = plain, shared: PyTree = (), own: PyTree = (),
        before_refit: Callable[[PyTree], object] = lambda best: None,
        starts: tuple[PyTree, PyTree] = (None, None),
        ) -> tuple[PyTree, Float[np.ndarray, ' S'], Int[np.ndarray, ' S']]:
  """Trains all seeds of a config and keeps the best epoch of each.

  Where the split says so, each seed is then trained anew up to the split's cut, for as many epochs
  as were best before it, under the same schedule.

  work: the Workdir. cfg: model, loss, train, optim, seed, seeds. items: how many the catalog has.
  split: whose training sequences are learned from. validate: parameters with a leading axis of
  seeds -> a figure of each, higher is better. teach: where another tree than the model's own is
  trained: (model, loss(params of the model, seqs, key), places in the loss) -> init(key),
  loss(params, shared, own, seqs, key). shared: arrays that it may read. own: such with a leading
  axis of seeds. before_refit: told the best parameters where they are trained anew. starts:
  parameters of an earlier training with a leading axis of seeds, over the first of the items, from
  which this one and its training anew begin; None for fresh ones. -> the best parameters with a
  leading axis of seeds, their figures, their epochs
  """
  given = work, cfg, items, teach, shared, own
  best, scores, epochs = _fit_to(split.for_choice, *given, starts[0], validate=validate)
  if split.refit is not None:
    before_refit(best)
    work.log(f'    again up to the cut, for {", ".join(map(str, epochs))} epochs')
    best, _, _ = _fit_to(split.refit, *given, starts[1], stop_at=epochs)
  return best, scores, epochs


def _fit_to(train: Interactions, work: Workdir, cfg: ConfigDict, items: int, teach: Callable,
            shared: PyTree, own: PyTree, start: PyTree, **how: Any) -> tuple:
  """`fit` to some training sequences. how: `validate` or `stop_at` of `epoch_loop.fit_epochs`."""
  model = model_config(cfg, items)
  seqs = sequences(train, model.max_history, model.time == 'bias')
  rows, targets, steps = capacity(cfg, model, seqs)
  tx = optim.make(cfg.optim, steps * cfg.train.epochs)
  keys = jnp.stack([jax.random.key(cfg.seed + s) for s in range(cfg.seeds)])
  work.log(f'    {steps} steps an epoch; a batch of {cfg.train.batch} users fits {rows} rows of '
           f'{model.max_history} and {targets:,} targets; {cfg.seeds} seed'
           + 's at once' * (cfg.seeds > 1))

  begin, loss = teach(model, functools.partial(loss_of, cfg, model, work.mesh, rows, targets),
                      targets)

  def init() -> PyTree:
    def one(key: Array, old: PyTree) -> PyTree:
      params = begin(jax.random.fold_in(key, 0))
      params = params if old is None else carried_over(old, params)
      return {'params': params, 'opt': tx.init(params)}
    return jax.vmap(one)(keys, start)

  run = jax.jit(jax.vmap(functools.partial(epoch, cfg, tx, loss, steps),
                         (0, 0, None, None, None, 0)), donate_argnums=0)
  return epoch_loop.fit_epochs(
      init, lambda state, number: run(state, keys, seqs, number, shared, own), cfg=cfg.train,
      work=work, rows=lambda seed, number, step: epoch_order(
          keys[seed], number, len(seqs) - 1, cfg.train.batch)[step], **how)


def carried_over(old: PyTree, fresh: PyTree) -> PyTree:
  """Parameters of an earlier model for a catalog that has grown. -> as `fresh`

  old: over the first of the items. fresh: over all of them, as drawn; rows of items that are new
  stay. The last row of a recommender's table is the mask's, wherever that stands; other arrays that
  have grown have a row an item.
  """
  def put(path: tuple, was: Array, new: Array) -> Array:
    if sharding.path_of(path).split('/')[-1] in seqrec.ITEM_TABLES:
      return new.at[:len(was) - 1].set(was[:-1]).at[-1].set(was[-1])
    return jnp.asarray(was) if was.shape == new.shape else new.at[:len(was)].set(was)
  return jax.tree_util.tree_map_with_path(put, old, fresh)


def sequences(train: Interactions, length: int, timed: bool = False) -> Int[Array, 'U1 L1']:
  """The last length + 1 training items of each user, and nobody's row.

  train: the training sequences. timed: whether their seconds stand behind them, as `from_first` has
  them. -> (U + 1, length + 1), or twice as wide. Raises DataError where times are wanted that the
  data have not.
  """
  counts = np.minimum(train.lengths(), length + 1)
  filled = np.arange(length + 1) >= length + 1 - counts[:, None]
  places = np.repeat(train.offsets[1:], counts) - 1 - (
      np.repeat(np.cumsum(counts), counts) - 1 - np.arange(counts.sum()))

  def lay(values: np.ndarray) -> np.ndarray:
    rows = np.zeros((len(train) + 1, length + 1), values.dtype)
    rows[:-1][filled] = values[places]
    return rows
  items = lay(train.items)
  if not timed:
    return jnp.asarray(items)
  if train.times is None:
    raise DataError("model.time='bias' reads when things happened, but the data have no times; add "
                    f'`times` to their sequences (see `recjax prepare`), {WITHOUT_TIMES}')
  return jnp.asarray(np.hstack([items, from_first(lay(times_lib.in_seconds(train.times)),
                                                  items > 0)]))


def from_first(seconds: Int[np.ndarray, 'B W'], real: Bool[np.ndarray, 'B W'],
               ) -> Int[np.ndarray, 'B W']:
  """Seconds since the earliest time of each row as 32-bit numbers, the largest of them for all that
  is later. seconds: of any size. real: which of them are times; the others become 0."""
  longest = np.iinfo(np.int64).max
  gaps = seconds - seconds.min(1, initial=longest, where=real)[:, None]
  return np.where(real, np.minimum(gaps, np.iinfo(np.int32).max), 0).astype(np.int32)


def save(path: str | os.PathLike, params: PyTree) -> None:
  """Writes parameters as plain arrays, named by their paths.

  path: of the .npz. params: the model's parameters.
  """
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  file_io.write_arrays(path, {sharding.path_of(p): np.asarray(x) for p, x in flat})


def load(path: str | os.PathLike, seed: int | None = None) -> PyTree:
  """What `save` wrote. seed: one seed's alone. path: of the .npz. -> tree of float32 arrays"""
  tree = {}
  arrays: Any = run_files.read_arrays(path)
  for name, array in arrays.items():
    *parents, leaf = name.split('/')
    node = functools.reduce(lambda t, p: t.setdefault(p, {}), parents, tree)
    node[leaf] = array if seed is None else array[seed]
  return tree


# An epoch.


def epoch_order(key: Array, number: Array | int, users: int, batch: int) -> Int[Array, 'E B']:
  """Which users each step trains on; the last step is filled up with nobody.

  key: of the seed's draws. number: of the epoch. -> (steps, batch)
  """
  order = jax.random.permutation(jax.random.fold_in(key, 2 * number + 1), users)
  return jnp.pad(order, (0, -users % batch), constant_values=users).reshape(-1, batch)


def epoch(cfg: ConfigDict, tx: optax.GradientTransformation, loss: Callable, steps: int,
          state: PyTree, key: Array, seqs: Int[Array, 'U1 L1'], number: Array | int,
          shared: PyTree = (), own: PyTree = ()) -> tuple[PyTree, dict[str, Array]]:
  """All steps of one epoch.

  cfg: the run's config. tx: the optimizer. key: of the seed's draws. seqs: of `sequences`. number:
  of the epoch. shared: arrays that `teach` reads. own: arrays of the seed that `teach` reads. ->
  state, {'loss': (), 'grad_norm': (), 'bad': step or -1}
  """
  order = epoch_order(key, number, len(seqs) - 1, cfg.train.batch)
  key = jax.random.fold_in(key, 2 * number + 2)

  def step(state: PyTree, given: tuple) -> tuple:
    users, number_of_step = given
    value, grads = jax.value_and_grad(loss)(state['params'], shared, own, seqs[users],
                                            jax.random.fold_in(key, number_of_step))
    updates, opt = tx.update(grads, state['opt'], state['params'])
    norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))
    params = jax.tree.map(jnp.add, state['params'], updates)
    return {'params': params, 'opt': opt}, (value, norm)

  state, (losses, norms) = lax.scan(step, state, (order, jnp.arange(steps)))
  bad = ~jnp.isfinite(losses)
  return state, {'loss': losses.mean(), 'grad_norm': norms.mean(),
                 'bad': jnp.where(bad.any(), bad.argmax(), -1)}


def loss_of(cfg: ConfigDict, model: seqrec.Config, mesh: Mesh, rows: int, targets: int,
            params: PyTree, seqs: Int[Array, 'B L1'], key: Array) -> Float[Array, '']:
  """The mean loss over all targets of a batch. seqs: of `sequences`, 0 in front.

  Rows and targets are filled up with nobody's where they do not divide over the devices. cfg: the
  run's config. model: the model's shape. mesh: of the devices. rows: room for packed rows. params:
  the model's parameters. key: of the seed's draws.
  """
  hide, drop, draw = jax.random.split(key, 3)
  ways = sharding.num_batch_shards(mesh)
  targets += -targets % ways
  seqs, seconds = jnp.split(seqs, [model.max_history + 1], 1)
  inputs, wanted = example(cfg, model, seqs, hide)
  position = seqrec.history_positions(model, inputs)
  # Seconds are cut by user first, so that none's last item reads the first of the one behind.
  pair = (seconds[:, :-1], seconds[:, 1:]) if seconds.shape[1] else ()
  packed = pack_histories(inputs, wanted, rows, position, *pair)
  if model.pads:  # a row for each user, nothing of it hidden
    user = jnp.broadcast_to(jnp.arange(1, len(seqs) + 1)[:, None], inputs.shape)
    packed = inputs, position, user, wanted
  items, position, segment, goal, *times = (sharding.shard(
      jnp.pad(x, [(0, -len(x) % ways), (0, 0)]), ('data', 'fsdp')) for x in packed)
  states = seqrec.SeqRec(model).apply({'params': params}, items, position, segment, True,
                                      jnp.stack(times) if times else None, rngs={'dropout': drop})
  spot = jnp.nonzero(goal.reshape(-1), size=targets, fill_value=goal.size)[0]
  take = lambda x: sharding.shard(x.reshape(goal.size, *x.shape[2:]).at[spot].get(  # noqa: E731
      mode='fill', fill_value=0), ('data', 'fsdp'))  # else every device would score all targets
  states, goal, user = take(states), take(goal), take(segment) - 1
  each = item_loss(cfg.loss, model, mesh, params, states, goal, seqs, user, draw)
  real = goal > 0
  return jnp.where(real, each, 0).sum() / jnp.maximum(real.sum(), 1)


def example(cfg: ConfigDict, model: seqrec.Config, seqs: Int[Array, 'B L1'],
            key: Array) -> tuple[Int[Array, 'B L'], Int[Array, 'B L']]:
  """What is seen and what is asked: the next item at every place, or hidden items (BERT4Rec).

  seqs: (B, L + 1). cfg: the run's config. model: the model's shape. key: of what is hidden. ->
  inputs, targets: (B, L) each; 0 where nothing is seen, or asked
  """
  if model.causal:
    asked = (seqs[:, :-1] > 0) & (jnp.arange(model.max_history) >= (
        model.max_history - 1 if cfg.train.get('last_only') else 0))
    return seqs[:, :-1], jnp.where(asked, seqs[:, 1:], 0)
  seqs = seqs[:, 1:]
  real = seqs > 0
  count = hidden_count(real.sum(-1), cfg.train.mask_share, cfg.train.max_masked)
  choose, last = jax.random.split(key)
  noise = jnp.where(real, jax.random.uniform(choose, seqs.shape), 2.0)
  chosen = jnp.argsort(jnp.argsort(noise, -1), -1) < count[:, None]
  only_last = jax.random.uniform(last, (len(seqs), 1)) < cfg.train.mask_last
  at_end = jnp.arange(seqs.shape[1]) == seqs.shape[1] - 1
  shown = jnp.full_like(seqs, model.mask)
  if cfg.train.get('mask_by_chance'):  # each by chance; of ten, one is another item, one stays
    chosen = noise < cfg.train.mask_share
    kind, other = jax.random.split(jax.random.fold_in(choose, 1))
    kind = jnp.where(only_last, 0, jax.random.uniform(kind, seqs.shape))
    shown = jnp.where(kind < .8, shown, jnp.where(
        kind < .9, jax.random.randint(other, seqs.shape, 1, model.items + 1), seqs))
  hidden = real & jnp.where(only_last, at_end, chosen)
  return jnp.where(hidden, shown, seqs), jnp.where(hidden, seqs, 0)


def hidden_count(length: Int[Array, '*S'], share: float, most: int) -> Int[Array, '*S']:
  """How many of so many items are hidden: at least one, `most` at most.

  length: items. share: of them that is hidden.
  """
  return jnp.minimum(most, jnp.maximum(1, jnp.round(share * length).astype(jnp.int32)))


def assign_rows(lengths: Int[Array, ' B'],
            length: int) -> tuple[Int[Array, ' B'], Int[Array, ' B'], Int[Array, '']]:
  """Puts sequences into rows, each behind the one before where there is room.

  lengths: (B,). length: places of a row. -> row and first place of each (B,), rows used ()
  """
  def put(carry: tuple, n: Array) -> tuple:
    row, fill = carry
    new = fill + n > length
    row, start = row + new, jnp.where(new, 0, fill)
    return (row, start + n), (row, start)

  # Each turn is several kernels of an accelerator and does next to nothing; a CPU has a real loop.
  unroll = 1 if jax.default_backend() == 'cpu' else UNROLL
  (last, fill), (row, start) = lax.scan(put, (jnp.int32(0), jnp.int32(0)), lengths, unroll=unroll)
  return row, start, last + (fill > 0)


def pack_histories(inputs: Int[Array, 'B L'], targets: Int[Array, 'B L'], rows: int,
                   position: Int[Array, 'B L'] | None = None, *more: Int[Array, 'B L'],
                   ) -> tuple[Int[Array, 'R L'], ...]:
  """Lays histories side by side. inputs, targets: (B, L). position: (B, L), from the end if None.
  more: what else is known of each token.

  -> items, position, segment (user of the batch, from 1), targets, then `more`: (rows, L) each
  """
  batch, length = inputs.shape
  counts = (inputs > 0).sum(-1)
  row, start, _ = assign_rows(counts, length)
  places = jnp.arange(length)
  column = start[:, None] + places - (length - counts[:, None])
  destinations = jnp.where(inputs > 0, row[:, None] * length + column, rows * length).reshape(-1)

  def lay(x: Array) -> Array:
    flat = jnp.zeros(rows * length, jnp.int32)
    return flat.at[destinations].set(x.reshape(-1), mode='drop').reshape(rows, length)
  position = jnp.broadcast_to(places, inputs.shape) if position is None else position
  segment = jnp.broadcast_to(jnp.arange(1, batch + 1)[:, None], inputs.shape)
  return tuple(lay(x) for x in (inputs, position, segment, targets, *more))


def capacity(cfg: ConfigDict, model: seqrec.Config,
             seqs: Int[Array, 'U1 L1']) -> tuple[int, int, int]:
  """Room that holds every batch of every epoch and seed, found by laying out all of them.

  cfg: the run's config. model: the model's shape. seqs: of `sequences`. -> rows, targets, steps an
  epoch
  """
  users, batch = len(seqs) - 1, cfg.train.batch
  counts, seen = places_and_targets(cfg, model, seqs)

  @jax.jit
  def largest(key: Array, number: Array) -> tuple[Array, Array]:
    order = epoch_order(key, number, users, batch)
    used = jax.vmap(lambda n: assign_rows(n, model.max_history)[2])(counts[order])
    return used.max(), seen[order].sum(-1).max()
  needed = np.array([largest(jax.random.key(cfg.seed + s), e) for s in range(cfg.seeds)
                    for e in range(cfg.train.epochs)]).reshape(-1, 2).max(0)
  return -(-int(needed[0]) // 8) * 8, -(-int(needed[1]) // 128) * 128, math.ceil(users / batch)


def planned(cfg: ConfigDict, items: int, train: Interactions, teach: Callable = plain,
            shared: PyTree = (), own: PyTree = ()) -> tuple[cost_model.TracedStep, int, int]:
  """What `fit` would take, from shapes. -> (traced.Step, steps, targets an epoch)

  Arguments as of `fit`, `own` of one seed. Rows and targets of a step are those of the first epoch.
  cfg: the run's config. items: how many the catalog has. train: the training sequences. teach: as
  of `fit`. shared: arrays that `teach` reads.
  """
  model = model_config(cfg, items)
  seqs = sequences(train, model.max_history, model.time == 'bias')
  first = cfg.copy_and_resolve_references()
  first.train.epochs = first.seeds = 1
  rows, targets, steps = capacity(first, model, seqs)
  key = jax.eval_shape(lambda: jax.random.key(0))
  mesh = sharding.make_mesh({'data': -1})
  begin, loss = teach(model, functools.partial(loss_of, cfg, model, mesh, rows, targets), targets)
  users = jax.ShapeDtypeStruct((cfg.train.batch, seqs.shape[1]), jnp.int32)
  step = cost_model.trace(loss, jax.eval_shape(begin, key), shared, own, users, key)
  return step, steps, int(places_and_targets(cfg, model, seqs)[1].sum())


def places_and_targets(cfg: ConfigDict, model: seqrec.Config,
          seqs: Int[AnyArray, 'B L1']) -> tuple[Int[Array, ' B'], Int[Array, ' B']]:
  """Places that each user's row takes, and targets that it gives. seqs: of `sequences`.

  cfg: the run's config. model: the model's shape. -> (B,), (B,)
  """
  counts = (seqs[:, :model.max_history + 1] > 0).sum(-1)
  if model.causal:
    counts = jnp.maximum(counts - 1, 0)
    return counts, counts
  counts = jnp.minimum(counts, model.max_history)
  if cfg.train.get('mask_by_chance'):
    return counts, counts
  hidden = hidden_count(counts, cfg.train.mask_share, cfg.train.max_masked)
  return counts, jnp.where(counts > 0, hidden, 0)


# Losses.


def item_loss(cfg: ConfigDict, model: seqrec.Config, mesh: Mesh, params: PyTree,
              states: Float[Array, 'T D'], goal: Int[Array, ' T'], seqs: Int[Array, 'B L1'],
              user: Int[Array, ' T'], key: Array) -> Float[Array, ' T']:
  """The loss at each position. states: (T, D). goal: (T,), 0 for none. seqs: (B, L + 1).

  user: (T,) row of seqs that a position belongs to, never falling; -1 behind the last one. cfg: the
  group `loss`. model: the model's shape. mesh: of the devices. params: the model's parameters. key:
  of the seed's draws.
  """
  table, bias = seqrec.output_table(params, model)
  targets = jnp.maximum(goal - 1, 0)
  zeros = jnp.zeros(model.items)
  if cfg.kind == 'ce' and mesh.shape.get('model', 1) > 1:
    return item_losses.sharded_cross_entropy(states, table, targets,
                                             zeros if bias is None else bias, mesh)
  if cfg.kind == 'ce':
    return item_losses.cross_entropy(states, table, targets, bias)
  if cfg.kind == 'chunked':
    return item_losses.chunked_cross_entropy(states, table, targets,
                                             zeros if bias is None else bias, cfg.chunk)
  bias = zeros if bias is None else bias
  drawn, negative = drawn_scores(cfg, model, states, table, len(seqs), user, key)
  positive = (states * table[targets]).sum(-1) + bias[targets]
  negative = negative + bias[drawn]
  counted = counted_negatives(cfg.exclude, drawn + 1, goal, seqs[user])
  if cfg.kind == 'bce':
    return item_losses.binary(positive, negative, counted)
  if cfg.kind == 'gbce':
    return item_losses.generalized_binary(positive, negative, model.items, cfg.gbce_t, counted)
  expected = math.log(cfg.negatives / model.items) if cfg.log_q else None
  return item_losses.sampled_softmax(positive, negative, expected, counted)


def drawn_scores(cfg: ConfigDict, model: seqrec.Config, states: Float[Array, 'T D'],
                 table: Float[Array, 'N D'], batch: int, user: Int[Array, ' T'],
                 key: Array) -> tuple[Array, Float[Array, 'T K']]:
  """Uniform negatives and their scores: drawn (T, K), or (K,) where the batch shares them.

  cfg: the group `loss`. model: the model's shape. states: at each target. table: the output rows.
  user: whose each target is. key: of the seed's draws.
  """
  drawn = negatives(cfg, model.items, len(states), batch, key)
  if cfg.negative_scope == 'batch':
    return drawn, states @ table[drawn].T
  if cfg.negative_scope == 'position':
    return drawn, item_losses.scores_by_position(states, table, drawn)
  return drawn[user], item_losses.scores_by_user(states, table, drawn, user, model.max_history)


def negatives(cfg: ConfigDict, items: int, positions: int, users: int,
              key: Array) -> Int[Array, '...']:
  """Uniform rows of the output table: (K,) of a batch, (users, K) or (positions, K).

  cfg: the group `loss`. items: how many the catalog has. key: of the seed's draws.
  """
  shape = {'batch': (), 'sequence': (users,), 'position': (positions,)}[cfg.negative_scope]
  return jax.random.randint(key, (*shape, cfg.negatives), 0, items)


def counted_negatives(exclude: str, drawn: Int[Array, '...'], goal: Int[Array, ' T'],
         history: Int[Array, 'T L1']) -> Bool[Array, 'T K'] | None:
  """Which negatives count. drawn: item ids (K,) or (T, K).

  exclude: a rule of EXCLUDE. goal: targets, 0 for none. history: of the user of each target. -> (T,
  K) bool or None
  """
  if exclude == 'none':
    return None
  drawn = jnp.broadcast_to(drawn, (len(goal), drawn.shape[-1]))
  good = drawn != goal[:, None]
  if exclude == 'train_history':
    good &= (drawn[..., None] != history[:, None]).all(-1)
  return good


def check(cfg: ConfigDict, items: int) -> None:
  """What can be known to be wrong before anything is trained.

  cfg: the run's config. items: how many the catalog has. Raises ConfigError.
  """
  loss = cfg.loss
  for name, value, known in (('loss.kind', loss.kind, LOSSES),
                             ('loss.negative_scope', loss.negative_scope, NEGATIVE_SCOPES),
                             ('loss.exclude', loss.exclude, EXCLUDE)):
    if value not in known:
      raise ConfigError(f'{name}={value!r}; choose one of {", ".join(known)}')
  if loss.kind in ('bce', 'gbce', 'sampled'):
    item_losses.beta(items, loss.negatives, loss.gbce_t)
  if cfg.seeds < 1 or cfg.train.batch < 1 or cfg.train.epochs < 1:
    raise ConfigError(f'seeds={cfg.seeds}, train.batch={cfg.train.batch} and train.epochs='
                      f'{cfg.train.epochs} must be at least 1')
  model_config(cfg, items)


# Scores.


def scorer(model: seqrec.Config, params: PyTree) -> dot_product.DotProduct:
  """Scores of all items for blocks of histories, as `evaluation.ranking` wants them. -> Product

  Histories are cut to what the model reads and padded to powers of two, so short ones are cheap.
  params: the model's parameters. Of a model with a time bias, which is left out where no times are
  told, `states` takes them too: seconds of each item, and of the request behind each history.
  """
  params = jax.tree.map(jnp.asarray, params)

  def states(items: np.ndarray, offsets: np.ndarray, times: np.ndarray | None = None) -> Array:
    rows = padded(model, np.asarray(items), np.asarray(offsets))
    if times is None or model.time == 'none':
      return last_states(model, params, rows)
    return last_states(model, params, rows, padded_times(rows, np.asarray(offsets), times))
  return dot_product.DotProduct(states, *seqrec.output_table(params, model),
                                timed=model.time == 'bias')


last_states = jax.jit(seqrec.last_states, static_argnums=0)


def padded(model: seqrec.Config, items: Int[np.ndarray, ' M'],
           offsets: Int[np.ndarray, ' B1']) -> Int[np.ndarray, 'B W']:
  """Ragged histories, latest items last, BERT4Rec's mask behind them.

  model: the model's shape. offsets: where histories begin and end. -> (B, W) int32
  """
  extra, room = not model.causal, model.max_history + model.shifted
  counts = np.minimum(np.diff(offsets), room - extra)
  width = min(room, max(8, 1 << int(counts.max(initial=1) + extra - 1).bit_length()))
  width = room if model.pads else width
  rows = np.zeros((len(counts), width), np.int32)
  filled = np.arange(width - extra) >= width - extra - counts[:, None]
  distance = np.concatenate([np.arange(n, 0, -1) for n in counts]) if len(counts) else counts
  rows[:, :width - extra][filled] = items[np.repeat(offsets[1:], counts) - distance]
  if extra:
    rows[:, -1] = model.mask
  return rows


def padded_times(rows: Int[np.ndarray, 'B W'], offsets: Int[np.ndarray, ' B1'],
                 times: Int[np.ndarray, ' M']) -> Int[np.ndarray, 'B W1']:
  """The times of padded histories and of their requests, as `from_first` has them.

  rows: of `padded`. offsets: of the histories, before they were cut. times: seconds, of each
  history's items and then of its request, end to end.
  """
  real = np.pad(rows > 0, [(0, 0), (0, 1)], constant_values=True)
  ends = offsets[1:, None] + np.arange(1, len(offsets))[:, None]
  back = np.arange(real.shape[1])[::-1] + 1
  return from_first(np.where(real, times[np.maximum(ends - back, 0)], 0), real)
