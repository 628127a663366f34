"""RecLM: a chat model whose recommended items always exist.

Liao et al., *Eliminating Out-of-Domain Recommendations in LLM-based Recommender Systems: A Unified
View*, ACL Findings 2026 (arXiv 2505.03336); Lu et al., *Aligning LLMs for Controllable
Recommendations*, arXiv 2403.05063.

Two new tokens open and close an item. Between them decoding may only follow the catalog's titles
(`grounding='cgen'`), pastes the title that is nearest to a projected state ('ret'), or follows
semantic IDs ('token'). A SASRec teacher completes the lists that the model learns.

Deliberate differences from the authors' code (docs/reclm.md):
  - one BOS, no loss on padding, any batch size; samples stand side by side in rows;
  - the teacher is asked for all windows of an epoch at once, in process;
  - the rows of new tokens are trained and stored; a constraint never opens, and the end of an item
    is masked in training as in decoding (`train.scope_end`);
  - empty lists count in every rate; epochs are drawn up front and trained in one shuffled pass.

In all files `work` is the run's Workdir, `cfg` its config or the part that a stage's `settings`
takes of it, `dataset` users and items, `X_dir` the folder that stage X left, `outcome` what
results.json holds and `row` a name of its rows. Items are indices 1..N, 0 is none.
"""
import pathlib
from pathlib import Path

from ml_collections import ConfigDict

from recjax.data.dataset import Dataset
from recjax.data.loading import load_data, load_for_config
from recjax.errors import ConfigError
from recjax.evaluation import results
from recjax.methods.reclm import (
  chat_encoding,
  evaluate,
  export,
  inference,
  item_embeddings,
  offline_samples,
  own_talk,
  planning,
  prompts,
  report,
  teacher,
  tokenized_catalog,
  train,
)
from recjax.text import tokenizer as tokenizer_lib
from recjax.training import continuation, llm_loading
from recjax.training.losses import trie_masked
from recjax.training.workdir import Workdir

GROUNDINGS = ('cgen', 'ret', 'token')


def run(cfg: ConfigDict, work: Workdir) -> None:
  """The experiment, stage by stage. cfg, work: of the run."""
  template = check(cfg)
  dataset = load_for_config(cfg)
  work.log(dataset.summary)
  titles = [' '.join((title or '').split()) for title in dataset.catalog.columns.get('title') or ()]
  opening = [prompts.message('system', template['system'])]
  start, used = train.open_start(cfg, dataset.catalog), continuation.shortened(cfg)
  began = [start] if start else []
  if start:
    work.log(f'{start.said(dataset.catalog)}; {used.train.epochs} epochs at {used.optim.lr:g}')
  llm_dir = continuation.llm_folder(cfg, work, start, lambda: llm_loading.folder(
    cfg, work, opening, lambda: planning.documents(template, titles, cfg.seed), dataset))
  check_texts(cfg, dataset, llm_dir)
  teacher_dir = work.stage('teacher', teacher.stage, teacher.settings(cfg), dataset, *began)
  codes_dir = None
  if cfg.grounding == 'token':
    codes_dir = work.stage(
      'codes', item_embeddings.stage, item_embeddings.settings(cfg), dataset, llm_dir, teacher_dir)
  talk_dir = None
  if cfg.talk.source == 'own' and (cfg.train.multi_round or cfg.train.chat_share):
    talk_dir = work.stage('own-talk', own_talk.stage, own_talk.settings(cfg), llm_dir)
  static_dir = pathlib.Path(cfg.train.static) if cfg.train.static else None
  tuned_dir = work.stage(
    'tune', train.stage, train.settings(used), dataset, llm_dir, teacher_dir, codes_dir, static_dir,
    talk_dir, *began)
  results_dir = work.stage(
    'evaluate', evaluate.stage, evaluate.settings(cfg), dataset, llm_dir, tuned_dir, teacher_dir,
    codes_dir)
  work.publish(results_dir, 'results.json', 'ranks.parquet', 'predictions.parquet')
  report.write(cfg, work, dataset, results_dir)
  results.show(work, results_dir)


def check(cfg: ConfigDict) -> dict[str, str]:
  """What can be known to be wrong before anything runs. cfg: the run's config. -> template parts.
  Raises ConfigError."""
  llm_loading.check(cfg.llm, cfg.train.mode)
  if cfg.grounding not in GROUNDINGS:
    raise ConfigError(f'grounding={cfg.grounding!r}; choose one of {", ".join(GROUNDINGS)}')
  if cfg.train.scope not in trie_masked.KINDS:
    raise ConfigError(
      f'train.scope={cfg.train.scope!r}; choose one of {", ".join(trie_masked.KINDS)}')
  if cfg.train.average not in train.AVERAGES:
    raise ConfigError(f'train.average={cfg.train.average!r}; choose one of '
                      f'{", ".join(train.AVERAGES)}')
  if cfg.train.control_like not in train.INIT_WORDS:
    raise ConfigError(f'train.control_like={cfg.train.control_like!r}; choose one of '
                      f'{", ".join(train.INIT_WORDS)}')
  if cfg.decode.num_items < 10:
    raise ConfigError(
      f'decode.num_items={cfg.decode.num_items}: lists of ten are judged; ask for 10 or more')
  if cfg.decode.batch < 1 or cfg.train.batch < 1:
    raise ConfigError(f'decode.batch={cfg.decode.batch} and '
                      f'train.batch={cfg.train.batch} must be at least 1')
  if not 0 <= cfg.control.share <= 1:
    raise ConfigError(f'control.share={cfg.control.share} must lie between 0 and 1')
  offline_samples.check(cfg)
  missing_files(cfg)
  return prompts.read_template(cfg)


def check_texts(cfg: ConfigDict, dataset: Dataset, llm_dir: Path) -> None:
  """What the tokenizer of `llm_dir` may not be able to write, before anything is trained: what its
  chat template makes of conversations, titles of the catalog and of the test's other one.

  cfg, dataset: of the run. Raises ConfigError naming the folder, DataError naming the item.
  """
  tokenizer = tokenizer_lib.load(llm_dir)
  several = bool(cfg.train.multi_round or cfg.train.static or cfg.eval.rounds
                 or cfg.eval.words == 'acknowledged')
  try:
    chat_encoding.check(tokenizer, dict(cfg.prompt.variables), several)
  except ConfigError as error:
    raise ConfigError(f'{llm_dir}: {error}') from error
  for tested in (dataset, load_data(cfg.eval.cross) if cfg.eval.cross else None):
    if tested:
      tokenized_catalog.load(tested.catalog, tokenizer)


def missing_files(cfg: ConfigDict) -> None:
  """Raises ConfigError for a file that a later stage reads and that is not there. cfg: the run's
  config."""
  chats = cfg.train.multi_round or cfg.train.chat_share
  named = {'talk.source': cfg.talk.source if chats else '',
           'talk.questions': cfg.talk.questions if cfg.eval.rounds else '',
           'eval.cross': cfg.eval.cross,
           'ret.vectors': cfg.ret.vectors if cfg.grounding == 'ret' else ''}
  for key, value in named.items():
    known = value in ('', 'teacher', 'text', 'own') or value.partition(':')[0] == 'sample'
    if not known and not pathlib.Path(value).exists():
      raise ConfigError(f'{key}={value!r} does not exist; name what does')


recommender, cost, convert = inference.recommender, planning.cost, export.convert
converse, faces = inference.converse, inference.faces


def validated(cfg: ConfigDict) -> str:
  """The stage whose validation figures tell settings apart, for `recjax sweep`. cfg: the run's
  config."""
  return 'tune'
