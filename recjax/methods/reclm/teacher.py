"""The teacher that completes label lists: a SASRec in process, or behind HTTP (reclm.md 2)."""
import json
import urllib.error
import urllib.request

import numpy as np
from ml_collections import ConfigDict

from recjax.data import splits
from recjax.errors import DataError
from recjax.evaluation import ranking
from recjax.file_io import write_json
from recjax.methods.reclm import tokenized_catalog
from recjax.run_files import read_json
from recjax.training import auxiliary_recommender, sequential

RANKING_BLOCK = 1024  # histories whose whole rankings are held at once


def settings(cfg):
  """Everything in the config that decides the teacher."""
  if cfg.teacher.source == 'train':
    return ConfigDict({'teacher': cfg.teacher, 'seed': cfg.seed})
  return ConfigDict({'teacher': {'source': cfg.teacher.source}})


def stage(work, cfg, shop):
  """Trains the teacher on the training part, or checks and takes over a trained one."""
  source, n = cfg.teacher.source, len(shop.catalog)
  if source.startswith('http'):
    write_json(work.folder / 'served.json', {'url': source})
    return {'url': source}
  if source != 'train':
    return auxiliary_recommender.adopt(
      work, source, shop, 'teacher.source', "the address of a served one (http://...), or 'train'"
    )
  given, split = (
    auxiliary_recommender.settings(cfg.teacher, cfg.seed),
    splits.leave_one_out(shop.interactions),
  )
  model = sequential.model_config(given, n)
  judge = ranking.validator(lambda p: sequential.scorer(model, p), split.valid, n, 1,
                            given.train.valid_users)
  return auxiliary_recommender.train(work, given, n, split.train, judge)


def scorer(made, shop):
  """The teacher's scores of all items. -> score function, or None where it is behind HTTP"""
  return (
    None
    if read_json(made / 'served.json')
    else auxiliary_recommender.scorer(made, len(shop.catalog))
  )


def make_teacher(made, shop):
  """-> teach(histories, k, signs=None): (M, k) item indices, best first, none of the history, 0
  behind. signs: '+CATEGORY' of each history for items of it alone, '-CATEGORY' for others."""
  score, n = scorer(made, shop), len(shop.catalog)
  if score is None:
    url = read_json(made / 'served.json')['url']
    return lambda histories, k, signs=None: ask_server(url, shop.catalog, histories, k, signs=signs)

  def best(histories, k):
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in histories])]).astype(np.int64)
    flat = np.concatenate(histories).astype(np.int32)
    return ranking.top_items(score, flat, offsets, n, min(k, n))[0]

  def teach(histories, k, signs=None):
    if signs is None:
      return best(histories, k)
    groups, out = category_masks(shop.catalog), np.zeros((len(histories), k), np.int32)
    for start in range(0, len(histories), RANKING_BLOCK):
      order = best(histories[start:start + RANKING_BLOCK], n)
      for row, items, sign in zip(out[start:], order, signs[start:]):
        kept = items[groups[sign[1:]][items] == (sign[0] == '+')]
        kept = kept[kept > 0][:k]
        row[:len(kept)] = kept
    return out
  return teach


def category_masks(catalog):
  """-> {category: (N + 1,) bool, by item index}, categories as in `tokenized_catalog.paths`"""
  out = {}
  for item, some in enumerate(tokenized_catalog.category_paths(catalog), 1):
    for path in some:
      out.setdefault(path, np.zeros(len(catalog) + 1, bool))[item] = True
  return out


def ask_server(url, catalog, histories, k, batch=512, signs=None):
  """Asks a served teacher, many histories a request (reclm.md 2.2). -> (M, k) int32

  Raises DataError where it cannot be reached or names items that the catalogue lacks.
  """
  out = np.zeros((len(histories), k), np.int32)
  for start in range(0, len(histories), batch):
    some = histories[start:start + batch]
    found = post(f'{url.rstrip("/")}/inference', {
        'users': [str(i) for i in range(len(some))], 'item_lengths': [len(h) for h in some],
        'item_lists': [[catalog.id_of(int(i)) for i in h] for h in some], 'k': k,
        'immediately': 1,
        **({'target_category': signs[start:start + batch]} if signs else {})})['inference']
    for row, items in zip(out[start:], found):
      row[:len(items)] = [catalog.index(i) for i in items[:k]]
  return out


def post(url, request, timeout=60):
  """One JSON request. Raises DataError with what went wrong. -> the answer"""
  body = json.dumps(request).encode()
  call = urllib.request.Request(url, body, {'Content-Type': 'application/json'})
  try:
    with urllib.request.urlopen(call, timeout=timeout) as answer:
      return json.loads(answer.read())
  except urllib.error.HTTPError as error:
    raise DataError(f'{url} answered {error.code}: {error.read()[:200].decode(errors="replace")}'
                    ) from error
  except (OSError, ValueError, EOFError) as error:
    raise DataError(f'{url} does not answer ({error}); start it with `recjax serve WORKDIR`, '
                    'or set teacher.source=train') from error
