"""Items that come after training: IDs out of their texts, by the run's own tokenizer."""
import numpy as np

from recjax import run_files
from recjax.data import update
from recjax.data.dataset import item_texts
from recjax.data.formats import safe_pickle
from recjax.distributed import sharding
from recjax.errors import ConfigError, DataError, WorkdirError
from recjax.methods.etegrec import item_embeddings, tokenization
from recjax.models import rqvae, semantic_ids
from recjax.training import sequential
from recjax.training.workdir import find_stage, open_adopted

FROM = {'train': 'a SASRec that knows items by their numbers alone',
        'file': 'a file that holds those of the run alone'}


def carried_on(workdir, config, shop, data, params):
  """The table of IDs of a later data set; old items keep theirs, whatever they say now.

  params: of the run, as `train.trained` gives them. -> Dataset, table (M + 1, Q) int32. Raises
  ConfigError where vectors do not come from texts, or the tokenizer cannot read others.
  """
  known, source = len(shop.catalog), config.vectors.source
  if source != 'text':
    kind = FROM['file' if source.endswith('.npy') else 'train']
    raise ConfigError(f'the item vectors of {workdir} come from {kind}, so new items have none; '
                      'train it again on the later data, or with --config.vectors.source=text')
  shop = update.load_continuation(data, shop.catalog, workdir)
  table = np.asarray(params['table'])
  if len(shop.catalog) == known:
    return shop, table
  how = config.tokenizer
  plain, dist = encoded(workdir, how, made_of(workdir, config, shop, known), params.get('id'))
  try:
    more = settled(table[1:], plain, dist, how.size)
  except DataError as error:
    raise DataError(f'{shop.name}: {error}') from error
  return shop, np.concatenate([table, more])


def made_of(workdir, config, shop, known):
  """Vectors of the items behind the first `known`, on the run's scale; made once. -> (m, d)"""
  texts, made = item_texts(shop.catalog)[known:], find_stage(workdir, 'vectors')
  if config.vectors.unit and not (made / 'scale.npz').exists():
    raise WorkdirError(f'{workdir} was made by an earlier version, which did not keep the scale of '
                       'its vectors; run its experiment again')

  def stage(work, how, texts, made):
    found = item_embeddings.of_text(work, texts, how.encoder)
    np.save(work.folder / 'vectors.npy', item_embeddings.scaled(found, made) if how.unit else found)
    return {'items': len(found)}
  with open_adopted(workdir, shop, sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})) as work:
    return item_embeddings.read(
      work.stage('vectors', stage, item_embeddings.settings(config).vectors, texts, made)
    )


def encoded(workdir, how, x, trained):
  """Codes by the run's tokenizer. trained: what ETEGRec made of it, or None. -> codes (m, L),
  distances of the last level (m, C)"""
  coded = find_stage(workdir, 'tokenizer')
  if (coded / 'tokenizer.npz').exists():
    cfg = tokenization.shape(how, x.shape[1])
    if how.weights:
      cfg = rqvae.from_state(safe_pickle.read_torch_state(how.weights), how.weights)[0]
    found = rqvae.forward(cfg, trained or sequential.load(coded / 'tokenizer.npz'), x)
    return np.asarray(found['codes']), np.asarray(found['dist'][:, -1])
  if how.kind in tokenization.RESIDUAL and (coded / 'codebooks.npy').exists():
    books = run_files.read_arrays(coded / 'codebooks.npy')
    return semantic_ids.encode_residual(x, books, how.kind == 'rkmeans')
  raise ConfigError(
    f'tokenizer.kind={how.kind} of {workdir} gives no code to a new vector; train '
    f'again with one of {", ".join([*tokenization.NETWORKS, *tokenization.RESIDUAL])}'
  )


def settled(table, plain, dist, size):
  """New IDs that nobody has, in turn. table: (N, Q), those that are taken. plain: (m, L).

  With a level more than L the first free code of it; else the nearest free one of the last level,
  dist (m, C). -> (m, Q) int32. Raises DataError where no code is free
  """
  extra = table.shape[1] > plain.shape[1]
  taken, out = set(map(tuple, table.tolist())), []
  for row, far in zip(plain.tolist(), dist):
    head = tuple(row if extra else row[:-1])
    order = range(size) if extra else np.argsort(far, kind='stable').tolist()
    free = next((c for c in order if (*head, c) not in taken), None)
    if free is None:
      raise DataError(f'all {size} IDs that begin with {head} are taken; train again on these data')
    out.append((*head, free))
    taken.add(out[-1])
  return np.array(out, np.int32)
