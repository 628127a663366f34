"""BIGRec: what the LLM wrote is placed among the items by distance.

Bao et al., A Bi-Step Grounding Paradigm, ACM TORS 3(4), 2025 (arXiv 2308.08434).
"""
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data.formats import bigrec as files
from recjax.data.splits import Cases
from recjax.decoding.prefix_generator import PrefixGenerator
from recjax.errors import ConfigError
from recjax.evaluation import ranking
from recjax.file_io import write_json
from recjax.methods.bigrec import cf_assistant, evaluate, instruction_data, prompts, train
from recjax.methods.bigrec import generate as gen
from recjax.methods.bigrec.instruction_data import Data
from recjax.models import bert
from recjax.protocols import ScoreFn
from recjax.retrieval import nearest
from recjax.training import llm_loading, sft, sharded_stage, text_embedding
from recjax.training.workdir import Workdir

KINDS = ('pop', 'cf')   # what may pull the distances

PARTS = ('valid', 'test')

ROWS = 256              # cases ranked at a time


def gammas(cfg: ConfigDict) -> Float[np.ndarray, ' G']:
  """The grid: 0, steps of `step` up to 1, then whole numbers up to `max_gamma`.

  cfg: the group `ground`. -> (G,) float32
  """
  if not 0 < cfg.step <= 1 or cfg.max_gamma < 1:
    raise ConfigError(f'ground.step={cfg.step} and ground.max_gamma={cfg.max_gamma}: steps lie in '
                      '0 .. 1, whole gammas begin at 1')
  fine = np.arange(0, 1 + cfg.step / 2, cfg.step)
  return np.concatenate([fine, np.arange(2, cfg.max_gamma + 1)]).astype(np.float32)


def generating(cfg: ConfigDict) -> ConfigDict:
  """Everything in the config that decides what is written. cfg: the run's config."""
  return ConfigDict({'eval': instruction_data.asked_settings(cfg), **{
      k: cfg[k] for k in ('data', 'samples', 'prompt', 'decode', 'llm', 'train')}})


def generate(work: Workdir, cfg: ConfigDict, data: Data, folder: pathlib.Path,
             made: pathlib.Path) -> dict[str, Any]:
  """Writes valid.json and test.json: the records with `predict`, the beams' texts.

  work: the Workdir. cfg: the run's config. data: the Data. folder: of the LLM. made: folder of the
  tuned model.
  """
  mesh = train.generation_mesh(folder, work.mesh)
  model, variables, tokenizer = train.tuned(cfg, folder, made, mesh)
  template = prompts.load_template(cfg.prompt.template)
  counts = {}
  with jax.set_mesh(mesh):
    for part in PARTS:
      rows = instruction_data.asked_rows(data, part, cfg.eval[f'max_{part}_users'])
      records = data.records_of(part, template, cfg.prompt.noun, rows)
      asked, counts[f'{part}_shortened'] = prompts.encode_prompts(
          tokenizer, template, records, cfg.prompt.max_prompt_tokens)
      writer = PrefixGenerator(model, variables, tokenizer, sft.common_prefix(asked),
                      max(map(len, asked)))
      found = sharded_stage.answer_all(
          work, part, work.folder / f'{part}.partial.jsonl', asked, cfg.decode.batch,
          lambda some, w=writer, a=asked: gen.texts(w, [a[i] for i in some], cfg.decode))
      texts = [[prompts.title_of(t) for t in beams] for beams, _ in found]
      files.write_predictions(work.folder / f'{part}.json', records, texts, [s for _, s in found])
      counts[f'{part}_prompts'] = len(rows)
  return counts


def embedding(cfg: ConfigDict) -> ConfigDict:
  """Everything in the config that decides vectors besides model and texts.

  cfg: the run's config.
  """
  return ConfigDict({k: cfg[k] for k in ('llm', 'ground', 'train')})


def embed_all(work: Workdir, cfg: ConfigDict, titles: list[str], folder: pathlib.Path,
              made: pathlib.Path, written: pathlib.Path) -> dict[str, Any]:
  """Vectors of the catalog and of each first beam: items.npy, valid.npy, test.npy.

  Texts are embedded once each, whichever side they stand on; an empty text has no vector (zeros).
  work: the Workdir. cfg: the run's config. titles: of the catalog. folder: of the LLM. made: folder
  of the tuned model. written: folder of the stage 'generate'.
  """
  texts = {p: [r['predict'][0] for r in run_files.need_json(written / f'{p}.json', list)]
           for p in PARTS}
  if cfg.ground.model not in ('base', 'tuned'):
    raise ConfigError(f"ground.model={cfg.ground.model!r}; choose 'base' or 'tuned'")
  reader = text_encoder(cfg, folder, made, work.mesh)
  every = sorted({t for t in [*titles, *texts['valid'], *texts['test']] if t})
  vectors, counts = text_embedding.embed_kept(work, reader, every, 'texts')
  place = {t: i for i, t in enumerate(every)}
  blank = np.zeros((1, vectors.shape[1]), np.float32)
  vectors = np.concatenate([vectors, blank])
  for name, part_texts in (('items', titles), *texts.items()):
    np.save(work.folder / f'{name}.npy', vectors[[place.get(t, len(every)) for t in part_texts]])
  return {'texts': len(every), 'width': vectors.shape[1], **counts}


def embed_new(work: Workdir, titles: list[str], before: list[str], vectors: pathlib.Path,
              embed: Callable) -> dict[str, Any]:
  """Vectors of a later catalog:

  items.npy. Titles of `before` keep what the stage at `vectors` made, the others are read by
  `embed`, equal ones once. work: the Workdir. titles: of the later catalog. -> counts
  """
  known = dict(zip(before, run_files.read_arrays(vectors / 'items.npy')))
  new_titles = sorted(set(titles) - known.keys())
  if new_titles:
    known |= dict(zip(new_titles, embed(new_titles)))
  np.save(work.folder / 'items.npy', np.stack([known[t] for t in titles]))
  return {'texts': len(new_titles)}


def text_encoder(cfg: ConfigDict, folder: pathlib.Path, made: pathlib.Path, mesh: Mesh,
                 ) -> text_embedding.Encoder:
  """The model that both sides are embedded by:

  the start token that its tokenizer puts before a text, if it does, the last layer's states, 'last'
  or 'avg'. cfg: the run's config. folder: of the LLM. made: folder of the tuned model. mesh: of the
  devices. -> encoder.Encoder
  """
  if cfg.ground.model == 'tuned':
    model, variables, tokenizer = train.tuned(cfg, folder, made, mesh)
  else:
    model, params, tokenizer = llm_loading.load(folder, cfg.llm, mesh)
    variables = {'params': params}

  def ids(texts: list[str]) -> list[list[int]]:
    return [[*tokenizer.before, *r, *tokenizer.after] for r in tokenizer.encode_batch(texts)]

  def run(variables: dict, tokens: Array, mask: Array) -> Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return bert.pool(model.apply(variables, tokens, positions, mask)[0], mask, cfg.ground.pooling)
  return text_embedding.Encoder(run, ids, variables, model.cfg.width, model,
                         {'most': model.cfg.max_positions})


def settings(cfg: ConfigDict) -> ConfigDict:
  """Everything in the config that decides the figures besides texts and vectors.

  cfg: the run's config.
  """
  return ConfigDict({k: cfg[k] for k in ('data', 'samples', 'ground', 'eval', 'seed')})


def rank_all(
    work: Workdir, cfg: ConfigDict, data: Data, vectors: pathlib.Path, helper: pathlib.Path | None,
) -> tuple:
  """Ranks of every gamma of every pull.

  work: the Workdir. cfg: the run's config. data: the Data. vectors: folder of the stage 'embed'.
  helper: folder of the assistant. -> {part: {kind: (G, n) int32}}, the test cases, the catalog's
  vectors, weights by popularity, the assistant's score function or None, vectors of the texts
  """
  n, grid = len(data.catalog), jnp.asarray(gammas(cfg.ground))
  items = nearest.center(run_files.read_arrays(vectors / 'items.npy'))
  counts = np.bincount(data.cases.known.items, minlength=n + 1)[1:]
  popular = nearest.popularity(counts)
  score = cf_assistant.scorer(helper, data)
  ranks_of_part = {}
  for part in PARTS:
    cases = getattr(data.cases, part).select(
      instruction_data.asked_rows(data, part, cfg.eval[f'max_{part}_users']))
    queries = run_files.read_arrays(vectors / f'{part}.npy')
    parts = {kind: [] for kind in KINDS}
    with work.progress(f'ranking {part}', len(cases), unit='case') as advance:
      for rows, *block in ranking.blocks(*cases.histories, n, ROWS, True):
        near, weight, seen, _ = pulls(items, popular, score, queries[rows], block, n,
                                      instruction_data.masked(cfg, data))
        for kind in KINDS:
          ranks = nearest.rank_curve(near, weight[kind], jnp.asarray(cases.targets[rows] - 1),
                                       grid, seen)
          parts[kind].append(np.asarray(ranks))
        advance(len(rows))
    ranks_of_part[part] = {k: np.concatenate(v, 1)[:, :len(cases)] for k, v in parts.items()}
  return ranks_of_part, cases, items, popular, score, queries


def pulls(items: nearest.Vectors, popular: np.ndarray, score: ScoreFn | None, queries: np.ndarray,
          block: tuple, n: int, mask: bool) -> tuple:
  """What a block is ranked by. block: histories and what to mask, as `ranking.blocks` gives it.

  An empty text (a vector of zeros) stands as far from an item as that is unpopular. items: vectors
  of the catalog. popular: weights by popularity. score: the assistant, or None. queries: vectors of
  the texts. n: items of the catalog. -> normalized distances (B, N), {kind: weights}, seen (B, N)
  bool or None, how many were empty
  """
  part, cuts, (rows, columns) = block
  near = nearest.min_max_normalize(nearest.distances(items, jnp.asarray(queries)))
  empty = ~queries.any(-1)
  near = jnp.where(jnp.asarray(empty)[:, None], 1 - popular, near)
  weight = {'pop': popular, 'cf': nearest.min_max_normalize(score(part, cuts))}
  seen = None
  if mask:
    seen = jnp.zeros((len(queries), n), bool).at[rows, columns].set(True, mode='drop')
  return near, weight, seen, int(empty.sum())


def curves(ranks: Int[np.ndarray, 'G n'], cases: Cases | None = None) -> dict[str, list[float]]:
  """Metrics for every gamma. ranks: (G, n). cases: as of `evaluate.means`. -> {metric: [G]}"""
  each = [evaluate.means(r, cases) for r in ranks]
  return {m: [e[m] for e in each] for m in each[0]}


def chosen(found: dict[str, dict[str, np.ndarray]], grid: np.ndarray,
           cases: dict[str, Cases | None]) -> dict[str, dict[str, Any]]:
  """The curves, one gamma by validation NDCG@10, and the published choice for each metric alone.

  found: of `rank_all`. grid: of `gammas`. cases: of each part, as of `evaluate.means`.
  -> {kind: {'gammas', 'valid', 'test': {metric: [G]}, 'one': gamma, 'place',
  'per_metric': {metric: {'gamma', 'test'}}}}
  """
  out = {}
  for kind in KINDS:
    valid, test = (curves(found[part][kind], cases[part]) for part in PARTS)
    gamma, place = nearest.best_gamma(valid['NDCG@10'], grid)
    each = {m: nearest.best_gamma(v, grid) for m, v in valid.items()}
    out[kind] = {'gammas': [round(float(g), 4) for g in grid], 'valid': valid, 'test': test,
                 'one': gamma, 'place': place,
                 'per_metric': {m: {'gamma': g, 'test': test[m][ranks_at]}
                                for m, (g, ranks_at) in each.items()}}
  return out


def closeness(near: Array, weight: Array, kind: str, gamma: float) -> Array:
  """What lists show as scores: 1 for the nearest item, 0 for the farthest.

  near, weight: as from `pulls`. kind: of the pull. gamma: how strong the pull is. -> (B, N)
  """
  return 1 - (near if kind == 'none' else near * (1 + weight[kind]) ** -gamma)


def best(near: Array, weight: Array, kind: str, gamma: float, shut: Array | None,
         k: int) -> tuple[np.ndarray, np.ndarray]:
  """The k items with the smallest Dn (1 + W) ** -gamma, by its logarithm, as ranks are: closeness
  is 1 for many items where gamma is large.

  near, weight: as from `pulls`. shut: (B, N) bool, items that may not come, or None. kind: of the
  pull. -> items (B, k) int32, 0 for none, closeness (B, k), -inf there
  """
  value = (0 if kind == 'none' else gamma * jnp.log1p(weight[kind])) - jnp.log(near)
  if shut is not None:
    value = jnp.where(shut, -jnp.inf, value)
  value, columns = jax.lax.top_k(value, k)
  score = jnp.take_along_axis(closeness(near, weight, kind, gamma), columns, 1)
  there = value > -jnp.inf
  return (np.asarray(jnp.where(there, columns + 1, 0), np.int32),
          np.asarray(jnp.where(there, score, -jnp.inf)))


def top(items: nearest.Vectors, popular: np.ndarray, score: ScoreFn | None, queries: np.ndarray,
        cases: Cases, n: int, k: int, kind: str, gamma: float,
        mask: bool) -> tuple[np.ndarray, np.ndarray]:
  """The best k of each case under one pull.

  popular: weights by popularity. score: the assistant, or None. queries: vectors of the texts.
  cases: the cases. n: items of the catalog. kind: of the pull. gamma: how strong the pull is. mask:
  whether items of a history are out. -> items (m, k) int32, 0 for none, scores (m, k)
  """
  out = []
  for rows, *block in ranking.blocks(*cases.histories, n, ROWS, True):
    near, weight, seen, _ = pulls(items, popular, score, queries[rows], block, n, mask)
    out.append(best(near, weight, kind, gamma, seen, k))
  return tuple(np.concatenate(x)[:len(cases)] for x in zip(*out))


def stage(work: Workdir, cfg: ConfigDict, data: Data, written: pathlib.Path, vectors: pathlib.Path,
          helper: pathlib.Path) -> dict[str, Any]:
  """Every result file of BIGRec.

  work: the Workdir. cfg: the run's config. data: the Data. written: folder of the stage 'generate'.
  vectors: folder of the stage 'embed'. helper: folder of the stage 'assistant'.
  """
  all_ranks, cases, items, popular, score, queries = rank_all(work, cfg, data, vectors, helper)
  grid, n = gammas(cfg.ground), len(data.catalog)
  choice = chosen(all_ranks, grid, {
      part: instruction_data.of_users(data, part, cfg.eval[f'max_{part}_users']) for part in PARTS})
  write_json(work.folder / 'gamma.json', choice)
  ranks = {'bigrec': all_ranks['test']['pop'][0]}
  for kind in KINDS:
    ranks[f'bigrec:{kind}'] = all_ranks['test'][kind][choice[kind]['place']]
  kind = cfg.ground.prior
  if kind not in ('none', *KINDS):
    raise ConfigError(f'ground.prior={kind!r}; choose one of none, {", ".join(KINDS)}')
  gamma = 0.0 if kind == 'none' else choice[kind]['one']
  lists = top(items, popular, score, queries, cases, n, min(cfg.eval.save_top, n), kind, gamma,
              instruction_data.masked(cfg, data))
  texts = [r['predict'] for r in run_files.need_json(written / 'test.json', list)]
  known = set(data.titles)
  invalid = float(np.mean([t not in known for beams in texts for t in beams]))
  first = float(np.mean([beams[0] not in known for beams in texts]))
  empty = sum(not beams[0] for beams in texts)
  main = 'bigrec' if kind == 'none' else f'bigrec:{kind}'
  return evaluate.save(work, cfg, data, cases, main, ranks, lists, score,
                       invalid_titles=invalid, invalid_first=first, empty_texts=empty,
                       chosen={k: choice[k]['one'] for k in KINDS},
                       list_of={'prior': kind, 'gamma': gamma})
