"""What people are after, as vectors: texts from items of their past alone, then a text encoder.

The texts are of the kind that docs/etegrec.md describes under interests.
"""
import pathlib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from recjax import base_config, run_files
from recjax.data import splits
from recjax.data.dataset import Dataset
from recjax.data.formats import etegrec as files
from recjax.errors import ConfigError, DataError
from recjax.file_io import write_json
from recjax.methods.etegrec import batching
from recjax.text import interest_terms as words
from recjax.text import keywords, tag_parsing
from recjax.training import paid_answers, text_embedding
from recjax.training.workdir import Workdir

MAX_INTERESTS = words.MAX_INTERESTS
HASH_WIDTH = 64  # numbers of a vector without an encoder


def settings(cfg: ConfigDict) -> ConfigDict:
  """What of the config decides the interests; of a service nothing where none is asked. cfg: the
  run's config."""
  group = {key: value for key, value in cfg.interests.items()
           if cfg.interests.source == 'api' or not key.startswith('api_')}
  return ConfigDict({'interests': group, 'most': cfg.model.max_history})


def make(cfg: ConfigDict, work: Workdir, dataset: Dataset) -> Path:
  """The stages that make interests, for `interests.source=api` in two. cfg, work, dataset: of the
  run. -> folder of the last, for `read`"""
  answered = []
  if cfg.interests.source == 'api':
    answered = [work.stage('ask-interests', ask, settings(cfg), dataset, alone=True)]
  return work.stage('interests', stage, settings(cfg), dataset, *answered)


def ask(work: Workdir, cfg: ConfigDict, dataset: Dataset) -> dict:
  """Writes asked.processed.jsonl: what a chat model foresees of each history, asked once each.

  work: of the stage. cfg: as `settings`. dataset: of the run. -> counts
  """
  histories = dict.fromkeys(tuple(map(int, history)) for history in all_histories(cfg, dataset))
  requests = {history: words.interest_messages(history, dataset.catalog.columns)
              for history in histories if history}
  answers = paid_answers.ask(work, cfg.interests, requests, 'ask for interests', 'history')
  found = {history: tag_parsing.pool_samples(
      [files.parse_interests(text) for text in answer.texts], MAX_INTERESTS)
           for history, answer in answers.items()}
  files.write_interests(work.folder / 'asked.processed.jsonl', (
      {'inter_history': [dataset.catalog.id_of(i) for i in history], 'interests': texts}
      for history, texts in found.items()))
  return {'histories': len(found), 'failed': sum(not a.texts for a in answers.values()),
          'answers_without_interests': sum(
              bool(answers[history].texts) and not texts for history, texts in found.items())}


def all_histories(cfg: ConfigDict, dataset: Dataset) -> list[np.ndarray]:
  """Item indices of the rows, oldest first: prefixes of the training part, then the validation and
  the test users. cfg: as `settings`. dataset: of the run."""
  split = splits.make_split(dataset)
  histories = list(batching.prefixes(split.train, cfg.most)[0])
  return histories + [cases.history(i)[-cfg.most:]
                      for cases in (split.valid, split.test) for i in range(len(cases))]


def stage(work: Workdir, cfg: ConfigDict, dataset: Dataset, answered: Path | None = None) -> dict:
  """Writes texts.json (all texts), vectors.npy (their vectors, row 0 for none) and rows.npy.

  work: of the stage. cfg: as `settings`. dataset: of the run. answered: folder of the stage that
  asked a service.

  Rows are those of `all_histories`; they hold row numbers of vectors.npy. -> counts
  """
  histories = all_histories(cfg, dataset)
  texts_of_rows, counts = interest_texts(work, cfg.interests, dataset, histories, answered)
  numbers = {}
  rows = np.zeros((len(texts_of_rows), MAX_INTERESTS), np.int32)
  for row, texts in zip(rows, texts_of_rows):
    for place, text in enumerate(texts):
      row[place] = numbers.setdefault(text, len(numbers) + 1)
  encoded = text_vectors(work, cfg.interests.encoder, list(numbers), kept=True)
  np.save(work.folder / 'vectors.npy', np.pad(encoded, [(1, 0), (0, 0)]), allow_pickle=False)
  np.save(work.folder / 'rows.npy', rows, allow_pickle=False)
  write_json(work.folder / 'texts.json', ['', *numbers])
  return {'rows': len(texts_of_rows), 'interests': len(numbers),
          'rows_without_any': int((rows == 0).all(1).sum()), **counts}


def interest_texts(work: Workdir, cfg: ConfigDict, dataset: Dataset,
                   histories: Sequence[np.ndarray], answered: Path | None = None
                   ) -> tuple[list[list[str]], dict]:
  """Texts of each history, from the source that the config names.

  cfg: the group `interests`. histories: item indices, oldest first. work: of the stage. dataset:
  the histories' own. answered: folder of the answers of a service. -> texts, counts. Raises
  ConfigError where the source is not there, DataError where it knows no history.
  """
  if cfg.source == 'local':
    terms, texts = words.read_terms(dataset.catalog.columns, len(dataset.catalog)), []
    with work.progress('interests', len(histories), unit='history') as advance:
      for start in range(0, len(histories), 1000):
        batch = histories[start : start + 1000]
        texts += [
          words.interests([int(i) for i in history], terms, MAX_INTERESTS) for history in batch]
        advance(len(batch))
    return texts, {}
  folder = pathlib.Path(answered or cfg.source)
  paths = sorted(folder.glob('*.processed.jsonl')) if folder.is_dir() else [folder]
  if not paths or not paths[0].exists():
    raise ConfigError(f"interests.source={cfg.source!r} is neither 'local' nor 'api' nor a "
                      '*.processed.jsonl file or a folder of them')
  known, counts = files.read_interests(paths)
  texts = [
    known.get(tuple(dataset.catalog.id_of(int(i)) for i in history), []) for history in histories]
  if not any(texts):
    raise DataError(
      f'{cfg.source} knows no history of {dataset.name}; it must have been made of the '
      'same items, cut to the same length')
  return texts, {'known_to_the_file': sum(map(bool, texts)), **counts}


def text_vectors(work: Workdir, folder: str, texts: Sequence[str],
                 kept: bool = False) -> Float[np.ndarray, 'n d']:
  """Vectors of texts.

  folder: of a text encoder; '' hashes words. kept: in pieces that a killed stage finds again. work:
  of the stage. texts: what is encoded.
  """
  if not folder:
    return np.array([hash_words(text) for text in texts], np.float32).reshape(
      len(texts), HASH_WIDTH)
  encoder = text_embedding.load(folder, ConfigDict(base_config.llm('sample')), work.mesh)
  if kept:
    return text_embedding.embed_kept(work, encoder, texts, 'embedding')[0]
  return np.asarray(text_embedding.embed(encoder, texts, work.mesh)[0], np.float32)


def hash_words(text: str, dim: int = HASH_WIDTH) -> Float[np.ndarray, ' d']:
  """A unit vector: the sum of one random direction a word, drawn by the word's own checksum.

  text: of an interest. dim: its width.
  """
  total = np.zeros(dim)
  for word in text.lower().split():
    seed = zlib.crc32(keywords.stem(word).encode())
    total += np.random.default_rng(seed).normal(size=dim)
  return total / max(np.linalg.norm(total), 1e-9)


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """What `stage` wrote. folder: of the stage. -> rows (R, K) int32, vectors (T, d) float32, texts
  [T]"""
  folder = pathlib.Path(folder)
  return (run_files.read_arrays(folder / 'rows.npy'), run_files.read_arrays(folder / 'vectors.npy'),
          run_files.need_json(folder / 'texts.json', list))


def history_encoder(work: Workdir, cfg: ConfigDict, dataset: Dataset) -> Callable:
  """Interests of new histories.

  cfg: the group `interests`. work: for the mesh. dataset: the histories' own. -> encode([item
  indices of each history]) -> vectors (B, K, d) float32, whether there is one (B, K) bool
  """
  terms = words.read_terms(dataset.catalog.columns, len(dataset.catalog))

  def encode(histories: Sequence) -> tuple[np.ndarray, np.ndarray]:
    texts_of_rows = [words.interests([int(i) for i in h], terms, MAX_INTERESTS) for h in histories]
    distinct_texts = list(dict.fromkeys(term for texts in texts_of_rows for term in texts))
    vectors = text_vectors(work, cfg.encoder, distinct_texts)
    row_vectors = np.zeros(
      (len(texts_of_rows), MAX_INTERESTS, vectors.shape[1] if len(distinct_texts) else HASH_WIDTH),
      np.float32)
    present = np.zeros((len(texts_of_rows), MAX_INTERESTS), bool)
    index = {term: i for i, term in enumerate(distinct_texts)}
    for row, texts in enumerate(texts_of_rows):
      for place, text in enumerate(texts):
        row_vectors[row, place], present[row, place] = vectors[index[text]], True
    return row_vectors, present
  return encode
