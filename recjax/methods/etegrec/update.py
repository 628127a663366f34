"""Items that come after training: IDs out of their texts, by the run's own tokenizer."""
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, PyTree
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data import update
from recjax.data.dataset import Dataset, item_texts
from recjax.data.formats import safe_pickle
from recjax.distributed import sharding
from recjax.errors import ConfigError, DataError
from recjax.file_io import write_json
from recjax.methods.etegrec import item_embeddings, tokenization
from recjax.models import rqvae, semantic_ids
from recjax.training import sequential
from recjax.training.continuation import Start
from recjax.training.workdir import Workdir, find_stage, open_later_work

UNREADABLE = {'train': 'a SASRec that knows items by their numbers alone',
              'file': 'a file that holds those of the run alone'}


def extend_table(workdir: Path, config: ConfigDict, dataset: Dataset, data: str,
                 params: PyTree) -> tuple[Dataset, Int[np.ndarray, 'M1 Q']]:
  """The table of IDs of a later data set; old items keep theirs, whatever they say now.

  config, dataset: of the run. data: the later data set. params: of the run, as `train.load_params`
  gives them. workdir: of the run. -> the later data set, its table. Raises ConfigError where
  vectors do not come from texts, or the tokenizer cannot read others.
  """
  num_known, source = len(dataset.catalog), config.vectors.source
  if source != 'text':
    kind = UNREADABLE['file' if source.endswith('.npy') else 'train']
    raise ConfigError(f'the item vectors of {workdir} come from {kind}, so new items have none; '
                      f'train on with --from={workdir} on the later data, or anew with '
                      '--config.vectors.source=text')
  dataset = update.load_continuation(data, dataset.catalog, workdir)
  table = np.asarray(params['table'])
  if len(dataset.catalog) == num_known:
    return dataset, table
  try:
    return dataset, with_new_ids(
      workdir, config.semantic_ids, table, new_vectors(workdir, config, dataset, num_known),
      params.get('id'))
  except DataError as error:
    raise DataError(f'{dataset.name}: {error}') from error


def with_new_ids(workdir: Path, ids_cfg: ConfigDict, table: Int[np.ndarray, 'N Q'],
                 x: Float[np.ndarray, 'm d'], trained: PyTree | None) -> Int[np.ndarray, 'M Q']:
  """A table, and behind it the IDs of new items by the run's tokenizer.

  workdir: of the run. ids_cfg: the config's group semantic_ids. table: of the items that it knows,
  with the row of padding or without. x: vectors of the new items. trained: what ETEGRec made of the
  tokenizer, or None. Raises what `encode_vectors` and `assign_codes` do.
  """
  if not len(x):
    return table
  codes, distances = encode_vectors(workdir, ids_cfg, x, trained)
  return np.concatenate([table, assign_codes(table, codes, distances, ids_cfg.size)])


def carry_ids(work: Workdir, cfg: ConfigDict, vectors_dir: Path, ids: Sequence[str], start: Start
              ) -> dict:
  """The stage `tokenizer` of a run that goes on: the earlier run's tokenizer and IDs, and IDs of
  the new items by it. It writes what `tokenization.stage` does.

  work: of the stage. cfg: as `tokenization.settings`. vectors_dir: of the item vectors. ids: of the
  items. start: the earlier run; of ETEGRec what its best seed made of the tokenizer. -> counts.
  Raises DataError where an index file gives an old item other codes.
  """
  ids_cfg, old_dir = cfg.semantic_ids, find_stage(start.workdir, 'tokenizer')
  if ids_cfg.kind.endswith('.json'):
    counts = tokenization.stage(work, cfg, vectors_dir, ids)
    check_kept(ids_cfg.kind, ids, tokenization.read(old_dir), tokenization.read(work.folder))
    return counts
  for name in ('tokenizer.npz', 'codebooks.npy'):
    if (old_dir / name).exists():
      shutil.copy(old_dir / name, work.folder)
  table, trained = tokenization.read(old_dir), None
  if start.config.variant == 'etegrec':
    scores = run_files.need_json(start.folder / 'valid.json')['NDCG@10']
    best = sequential.load(start.folder / 'model.npz', int(np.argmax(scores)))
    table, trained = np.asarray(best['table'])[1:], best['id']
    sequential.save(work.folder / 'tokenizer.npz', trained)
  num_known = len(table)
  table = with_new_ids(
    start.workdir, ids_cfg, table, item_embeddings.read(vectors_dir)[num_known:], trained)
  np.save(work.folder / 'codes.npy', table, allow_pickle=False)
  stats = semantic_ids.codebook_stats(table[:, :ids_cfg.levels], ids_cfg.size)
  write_json(work.folder / 'health.json', stats)
  return {'items': len(table), 'new': len(table) - num_known,
          'usage': ', '.join(f'{share:.1%}' for share in stats['usage'])}


def check_kept(path: str, ids: Sequence[str], old: Int[np.ndarray, 'N Q'],
               new: Int[np.ndarray, 'M Q']) -> None:
  """Raises DataError where an index file gives an item other codes than it had.

  path: of the file. ids: of all items. old, new: tables, of which the first rows must be the same.
  """
  if old.shape[1] != new.shape[1]:
    raise DataError(
      f'{path} gives {new.shape[1]} codes an item, the earlier run had {old.shape[1]}')
  moved = np.flatnonzero((new[:len(old)] != old).any(1))
  if len(moved):
    raise DataError(f'{path} gives {ids[moved[0]]!r} other codes than the earlier run had for it '
                    f'({len(moved)} such items); old items keep theirs')


def new_vectors(workdir: Path, config: ConfigDict, dataset: Dataset,
                num_known: int) -> Float[np.ndarray, 'm d']:
  """Vectors of the items behind the first `num_known`, on the run's scale; made once. workdir,
  config: of the run. dataset: the later one. num_known: items of the run."""
  texts, vectors_dir = item_texts(dataset.catalog)[num_known:], find_stage(workdir, 'vectors')
  if config.vectors.unit:
    item_embeddings.check_scale(vectors_dir)

  def stage(work: Workdir, vectors_cfg: ConfigDict, texts: Sequence[str], vectors_dir: Path
           ) -> dict:
    vectors = item_embeddings.from_text(work, texts, vectors_cfg.encoder)
    np.save(
      work.folder / 'vectors.npy',
      item_embeddings.rescale(vectors, vectors_dir) if vectors_cfg.unit else vectors)
    return {'items': len(vectors)}

  with open_later_work(
    workdir, dataset, sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})) as work:
    return item_embeddings.read(
      work.stage('vectors', stage, item_embeddings.settings(config).vectors, texts, vectors_dir))


def encode_vectors(workdir: Path, ids_cfg: ConfigDict, x: Float[np.ndarray, 'm d'],
                   trained: PyTree | None) -> tuple[np.ndarray, np.ndarray]:
  """Codes by the run's tokenizer.

  ids_cfg: the config's group semantic_ids. x: item vectors. trained: what ETEGRec made of the
  tokenizer, or None. workdir: of the run. -> codes (m, L), distances of the last level (m, C).
  Raises ConfigError where it gives none.
  """
  ids_dir = find_stage(workdir, 'tokenizer')
  if (ids_dir / 'tokenizer.npz').exists():
    cfg = tokenization.rqvae_config(ids_cfg, x.shape[1])
    if ids_cfg.weights:
      cfg = rqvae.from_state_dict(safe_pickle.read_torch_state(ids_cfg.weights), ids_cfg.weights)[0]
    outputs = rqvae.forward(cfg, trained or sequential.load(ids_dir / 'tokenizer.npz'), x)
    return np.asarray(outputs['codes']), np.asarray(outputs['dist'][:, -1])
  if ids_cfg.kind in tokenization.RESIDUAL and (ids_dir / 'codebooks.npy').exists():
    codebooks = run_files.read_arrays(ids_dir / 'codebooks.npy')
    return semantic_ids.encode_residual(x, codebooks, ids_cfg.kind == 'rkmeans')
  raise ConfigError(
    f'semantic_ids.kind={ids_cfg.kind} of {workdir} gives no code to a new vector; train '
    f'again with one of {", ".join([*tokenization.NETWORKS, *tokenization.RESIDUAL])}')


def assign_codes(table: Int[np.ndarray, 'N Q'], codes: Int[np.ndarray, 'm L'],
                 distances: Float[np.ndarray, 'm C'], size: int) -> Int[np.ndarray, 'm Q']:
  """New IDs that nobody has, in turn.

  table: those that are taken. codes: of the new items. distances: to the codes of the last level.
  size: codes of a level. With a level more than L the first free code of it; else the nearest free
  one of the last level. Raises DataError where no code is free.
  """
  extra = table.shape[1] > codes.shape[1]
  taken, new_ids = set(map(tuple, table.tolist())), []
  for row, item_distances in zip(codes.tolist(), distances):
    head = tuple(row if extra else row[:-1])
    candidates = range(size) if extra else np.argsort(item_distances, kind='stable').tolist()
    free_code = next((code for code in candidates if (*head, code) not in taken), None)
    if free_code is None:
      raise DataError(f'all {size} IDs that begin with {head} are taken; train again on these data')
    new_ids.append((*head, free_code))
    taken.add(new_ids[-1])
  return np.array(new_ids, np.int32)
