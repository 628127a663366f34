"""What people are after, as vectors: texts from items of their past alone, then a text encoder.

(etegrec.md 9, 10.4)
"""
import pathlib
import zlib

import numpy as np
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data import splits
from recjax.data.formats import etegrec as files
from recjax.errors import ConfigError, DataError
from recjax.file_io import write_json
from recjax.methods.etegrec import batching
from recjax.text import interest_terms as words
from recjax.text import keywords
from recjax.training import text_embedding

MOST = words.MOST
HASHED = 64  # numbers of a vector without an encoder


def settings(cfg):
  """What of the config decides the interests."""
  return ConfigDict({'interests': cfg.interests, 'most': cfg.model.max_history})


def stage(work, cfg, shop):
  """Writes texts.json (all texts, their owners) and vectors.npy (U + 1, d), row 0 for none.

  Rows are those of `batching.prefixes` on the training part, then the validation and the test
  users.
  """
  split = splits.leave_one_out(shop.interactions)
  asked = batching.prefixes(split.train, cfg.most)[0]
  asked += [c.history(i)[-cfg.most:] for c in (split.valid, split.test) for i in range(len(c))]
  said, counts = told(work, cfg.interests, shop, asked)
  numbers = {}
  table = np.zeros((len(said), MOST), np.int32)
  for row, texts in zip(table, said):
    for at, text in enumerate(texts):
      row[at] = numbers.setdefault(text, len(numbers) + 1)
  found = vectors(work, cfg.interests.encoder, list(numbers), kept=True)
  np.save(work.folder / 'vectors.npy', np.pad(found, [(1, 0), (0, 0)]), allow_pickle=False)
  np.save(work.folder / 'rows.npy', table, allow_pickle=False)
  write_json(work.folder / 'texts.json', ['', *numbers])
  return {'rows': len(said), 'interests': len(numbers),
          'rows_without_any': int((table == 0).all(1).sum()), **counts}


def told(work, cfg, shop, histories):
  """Texts of each history, from the source that the config names. -> [[text]], counts"""
  if cfg.source == 'local':
    terms, out = words.read_terms(shop.catalog.columns, len(shop.catalog)), []
    with work.progress('interests', len(histories), unit='history') as advance:
      for start in range(0, len(histories), 1000):
        some = histories[start:start + 1000]
        out += [words.interests([int(i) for i in h], terms, MOST) for h in some]
        advance(len(some))
    return out, {}
  folder = pathlib.Path(cfg.source)
  paths = sorted(folder.glob('*.processed.jsonl')) if folder.is_dir() else [folder]
  if not paths or not paths[0].exists():
    raise ConfigError(f"interests.source={cfg.source!r} is neither 'local' nor a *.processed.jsonl "
                      'file or a folder of them')
  known, counts = files.read_interests(paths)
  out = [known.get(tuple(shop.catalog.id_of(int(i)) for i in h), []) for h in histories]
  if not any(out):
    raise DataError(f'{cfg.source} knows no history of {shop.name}; it must have been made of the '
                    'same items, cut to the same length')
  return out, {'known_to_the_file': sum(map(bool, out)), **counts}


def vectors(work, folder, texts, kept=False):
  """-> (n, d) float32, of a text encoder's folder; without one, words are hashed. kept: in pieces
  that a killed stage finds again"""
  if not folder:
    return np.array([hashed(t) for t in texts], np.float32).reshape(len(texts), HASHED)
  reader = text_embedding.load(folder, ConfigDict({'dtype': 'auto', 'remat': 'none'}), work.mesh)
  if kept:
    return text_embedding.embed_kept(work, reader, texts, 'embedding')[0]
  return np.asarray(text_embedding.embed(reader, texts, work.mesh)[0], np.float32)


def hashed(text, dim=HASHED):
  """A unit vector: the sum of one random direction a word, drawn by the word's own checksum."""
  out = np.zeros(dim)
  for word in text.lower().split():
    seed = zlib.crc32(keywords.stem(word).encode())
    out += np.random.default_rng(seed).normal(size=dim)
  return out / max(np.linalg.norm(out), 1e-9)


def read(folder):
  """-> rows (R, K) int32, vectors (U + 1, d) float32, texts [U + 1]"""
  folder = pathlib.Path(folder)
  return (run_files.read_arrays(folder / 'rows.npy'), run_files.read_arrays(folder / 'vectors.npy'),
          run_files.need_json(folder / 'texts.json', list))


def asker(work, cfg, shop):
  """Interests of new histories. -> ask([[item index]]) -> ((B, K, d) float32, (B, K) bool)"""
  terms = words.read_terms(shop.catalog.columns, len(shop.catalog))

  def ask(histories):
    said = [words.interests([int(i) for i in h], terms, MOST) for h in histories]
    flat = list(dict.fromkeys(t for texts in said for t in texts))
    table = vectors(work, cfg.encoder, flat)
    out = np.zeros((len(said), MOST, table.shape[1] if len(flat) else HASHED), np.float32)
    there = np.zeros((len(said), MOST), bool)
    at = {t: i for i, t in enumerate(flat)}
    for b, texts in enumerate(said):
      for k, text in enumerate(texts):
        out[b, k], there[b, k] = table[at[text]], True
    return out, there
  return ask
