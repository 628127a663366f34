"""D3: beams of real titles, not divided by length, an assistant mixed in.

Bao et al., Decoding Matters, EMNLP 2024 (arXiv 2406.14900).
"""
import functools
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data.splits import Cases
from recjax.decoding.item_filter import ItemFilter
from recjax.decoding.prefix_generator import PrefixGenerator
from recjax.errors import ConfigError
from recjax.evaluation import metrics
from recjax.file_io import write_json
from recjax.methods.bigrec import cf_assistant, evaluate, instruction_data, prompts, train
from recjax.methods.bigrec import generate as gen
from recjax.methods.bigrec.instruction_data import Data
from recjax.run_files import read_json
from recjax.training import sft, sharded_stage
from recjax.training.workdir import Workdir

GHOST = 0.99  # a token likelier than this tells nothing


def decoding(cfg: ConfigDict) -> ConfigDict:
  """Everything in the config that decides the beams. cfg: the run's config."""
  return ConfigDict({'eval': instruction_data.asked_settings(cfg), **{
      k: cfg[k] for k in ('data', 'samples', 'prompt', 'decode', 'llm', 'train', 'seed')}})


class Search:
  """Constrained beams over the cases of a part. work: of the stage. cfg, data: of the run. folder:
  of the LLM. made: of the trained adapter. helper: of the assistant, None for none."""

  def __init__(self, work: Workdir, cfg: ConfigDict, data: Data, folder: pathlib.Path,
               made: pathlib.Path, helper: pathlib.Path | None) -> None:
    self.work, self.cfg, self.data = work, cfg, data
    self.mesh = train.generation_mesh(folder, work.mesh)
    self.model, self.variables, self.tokenizer = train.tuned(cfg, folder, made, self.mesh)
    self.template = prompts.load_template(cfg.prompt.template)
    self.catalog = gen.title_trie(self.tokenizer, self.template, data.titles)
    self.score = cf_assistant.scorer(helper, data) if helper else None

  def cases(self, part: str, most: int) -> tuple[Cases, list[list[int]], int]:
    """part: 'valid' or 'test'. most: how many at most, 0 for all. -> Cases that are asked, their
    prompts, how many were shortened"""
    rows = instruction_data.asked_rows(self.data, part, most)
    records = self.data.records_of(part, self.template, self.cfg.prompt.noun, rows)
    asked, cut = prompts.encode_prompts(self.tokenizer, self.template, records,
                                        self.cfg.prompt.max_prompt_tokens)
    return getattr(self.data.cases, part).select(rows), asked, cut

  def writer(self, asked: list[list[int]]) -> PrefixGenerator:
    """The LLM, with what these prompts share run once. asked: prompts, as tokens."""
    return PrefixGenerator(self.model, self.variables, self.tokenizer, sft.common_prefix(asked),
                      max(map(len, asked)))

  def beams(self, writer: PrefixGenerator, cases: Cases, asked: list[list[int]], alpha: float,
            length_penalty: float, chosen: list[int]) -> tuple[Any, ItemFilter]:
    """The beams of some cases.

    writer: of `writer`. asked: prompts, as tokens. alpha: the LLM's weight. length_penalty: the
    power of the length that divides scores. chosen: which of the cases. -> Generated with each
    token's log-probability where scores are not divided, Limits
    """
    mask = instruction_data.masked(self.cfg, self.data)
    histories = [cases.history(i) for i in chosen]
    tree, planted = self.catalog
    closed = gen.limits(tree, histories, mask)
    share = cf_assistant.probabilities(self.score, histories, mask)
    generated = gen.titles(writer, [asked[i] for i in chosen], self.cfg.decode, planted, closed,
                       gen.mixed(planted, share, alpha), length_penalty, not length_penalty)
    return generated, closed

  def rows(self, *asked_for: Any) -> tuple[np.ndarray, np.ndarray]:
    """The items of some cases, as `beams` takes them. asked_for: as `beams` takes them. -> items
    (b, beams), scores (b, beams)"""
    generated, closed = self.beams(*asked_for)
    return generated.best(self.cfg.decode.beams, self.catalog[0], closed)

  def run(self, name: str, cases: Cases, asked: list[list[int]], alpha: float,
          length_penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """All cases, resumable.

    name: of the journal. asked: prompts, as tokens. alpha: the LLM's weight. length_penalty: the
    power of the length that divides scores. -> items (n, beams) int32, scores (n, beams) float32
    """
    writer = self.writer(asked)

    def answer(chosen: list[int]) -> list:
      items, scores = self.rows(writer, cases, asked, alpha, length_penalty, chosen)
      return [[i.tolist(), [round(float(x), 5) for x in s]] for i, s in zip(items, scores)]
    with jax.set_mesh(self.mesh):
      lists = sharded_stage.answer_all(self.work, name, self.work.folder / f'{name}.jsonl', asked,
                                 self.cfg.decode.batch, answer)
    return (np.array([i for i, _ in lists], np.int32), np.array([s for _, s in lists], np.float32))


def choose(work: Workdir, cfg: ConfigDict, data: Data, folder: pathlib.Path, made: pathlib.Path,
           helper: pathlib.Path) -> dict[str, Any]:
  """The LLM's weight with the best validation NDCG@10: alpha.json, with the whole curve.

  work: the Workdir. cfg: the run's config. data: the Data. folder: of the LLM. made: folder of the
  tuned model. helper: folder of the stage 'assistant'.
  """
  alphas = tuple(cfg.decode.alphas)
  if not alphas or not all(0 <= a <= 1 for a in alphas):
    raise ConfigError(f'decode.alphas={alphas}: give weights of the LLM between 0 and 1')
  search = Search(work, cfg, data, folder, made, helper)
  cases, asked, cut = search.cases('valid', cfg.eval.max_valid_users)
  curve = {}
  for alpha in alphas:
    items, _ = search.run(f'alpha {alpha}', cases, asked, alpha, 0.0)
    ranks = evaluate.rank_in(items, cases.targets, data.titles, cfg.eval.duplicate_titles,
                             len(data.catalog) - 1)
    curve[alpha] = evaluate.means(
        ranks, instruction_data.of_users(data, 'valid', cfg.eval.max_valid_users), ks(cfg))
  best = max(alphas, key=lambda a: curve[a]['NDCG@10'])
  write_json(work.folder / 'alpha.json', {'alpha': best, 'cases': len(cases), 'by': 'NDCG@10',
                                          'curve': [[a, curve[a]] for a in alphas]})
  return {'alpha': best, 'cases': len(cases), 'shortened_prompts': cut}


def ks(cfg: ConfigDict) -> tuple[int, ...]:
  """Cut-offs that lists of so many beams can tell. cfg: the run's config."""
  return tuple(k for k in metrics.KS if k <= cfg.decode.beams)


def variants(cfg: ConfigDict, alpha: float) -> dict[str, tuple[float, float]]:
  """{row: (weight of the LLM, length penalty)}: the method, without mixing, and as BIGRec would.

  cfg: the run's config. alpha: the LLM's weight.
  """
  return {'d3': (alpha, 0.0), 'd3:no_mixing': (1.0, 0.0),
          'd3:length_norm': (1.0, float(cfg.decode.plain_length_penalty))}


def decode(work: Workdir, cfg: ConfigDict, data: Data, folder: pathlib.Path, made: pathlib.Path,
           helper: pathlib.Path, choice: pathlib.Path) -> dict[str, Any]:
  """The test cases under every variant: one .npz each, and ghosts.json.

  work: the Workdir. cfg: the run's config. data: the Data. folder: of the LLM. made: folder of the
  tuned model. helper: folder of the stage 'assistant'. choice: folder of the stage 'choose'.
  """
  search = Search(work, cfg, data, folder, made, helper)
  cases, asked, cut = search.cases('test', cfg.eval.max_test_users)
  alpha = read_json(choice / 'alpha.json')['alpha']
  done, items_of_row = {}, {}
  for name, weights in variants(cfg, alpha).items():
    if weights not in done:
      done[weights] = search.run(name.replace(':', ' '), cases, asked, *weights)
    items_of_row[name], scores = done[weights]
    with open(work.folder / f'{name.replace(":", "-")}.npz', 'wb') as f:
      np.savez(f, items=items_of_row[name], scores=scores)
  table = ghosts(search, cases, asked, cfg.decode.ghost_cases, items_of_row)
  write_json(work.folder / 'ghosts.json', table)
  return {'cases': len(cases), 'shortened_prompts': cut}


def ghosts(search: Search, cases: Cases, asked: list[list[int]], most: int,
           found: dict[str, np.ndarray]) -> dict[str, Any]:
  """Tokens that are all but certain, and what they do to a mean over tokens (arXiv 2406.14900).

  found: {row: items (n, beams)}. search: the Search. cases: the cases. asked: their prompts, as
  tokens. most: cases that are looked at. -> {'share', 'tokens': [[text, times, mean probability]],
  'length': {row: mean tokens of the first title}}
  """
  writer, size, each = search.writer(asked), search.cfg.decode.batch, {}
  rows = list(range(min(most, len(asked))))
  rows += rows[-1:] * (-len(rows) % size)
  with jax.set_mesh(search.mesh):
    for start in range(0, len(rows), size):
      beams, _ = search.beams(writer, cases, asked, 1.0, 0.0, rows[start:start + size])
      for b in range(size):
        for token, logp in zip(beams.row(b, 0), beams.token_scores[b, 0]):
          each.setdefault(token, []).append(float(np.exp(logp)))
  every = np.concatenate(list(map(np.array, each.values())))
  table = sorted(((t, [p for p in ps if p > GHOST]) for t, ps in each.items()),
                 key=lambda row: -len(row[1]))[:12]
  tree = search.catalog[0]
  return {'share': float(np.mean(every > GHOST)),
          'tokens': [[search.tokenizer.decode([t]), len(ps), float(np.mean(ps))]
                     for t, ps in table if ps],
          'length': {name: float(np.mean([len(tree.row(i - 1)) for i in items[:, 0] if i]))
                     for name, items in found.items()}}


def settings(cfg: ConfigDict) -> ConfigDict:
  """Everything in the config that decides the figures besides the beams. cfg: the run's config."""
  return ConfigDict({k: cfg[k] for k in ('data', 'samples', 'decode', 'eval', 'seed')})


def stage(work: Workdir, cfg: ConfigDict, data: Data, helper: pathlib.Path, choice: pathlib.Path,
          decoded: pathlib.Path) -> dict[str, Any]:
  """Every result file of D3.

  work: the Workdir. cfg: the run's config. data: the Data. helper: folder of the stage 'assistant'.
  choice: folder of the stage 'choose'. decoded: folder of the stage 'decode'.
  """
  cases = data.cases.test.select(instruction_data.asked_rows(data, 'test', cfg.eval.max_test_users))
  alpha, n = read_json(choice / 'alpha.json')['alpha'], len(data.catalog)
  rank = functools.partial(evaluate.rank_in, targets=cases.targets, titles=data.titles,
                           policy=cfg.eval.duplicate_titles, last=n - 1)
  ranks, lists, alike = {}, {}, {}
  for name in variants(cfg, alpha):
    arrays = run_files.read_arrays(decoded / f'{name.replace(":", "-")}.npz')
    lists[name] = arrays['items'], arrays['scores']
    ranks[name] = rank(lists[name][0])
    shown = lists[name][0]
    counts = np.bincount(data.cases.known.items, minlength=n + 1)[1:]
    alike[name] = {'alike': evaluate.likeness(shown, data.titles),
                   **metrics.list_properties(shown, counts, cases.histories)}
  score = cf_assistant.scorer(helper, data)
  return evaluate.save(work, cfg, data, cases, 'd3', ranks, lists['d3'], score, ks(cfg),
                       invalid_titles=alike['d3']['out_of_catalog'], alpha=alpha,
                       homogeneity=alike)
