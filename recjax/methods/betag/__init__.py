"""BETag: behavior-enhanced item tagging with a fine-tuned LLM.

Lin et al., WWW 2025, pp. 4996-5009, doi 10.1145/3696410.3714769. The authors announced a patent
application; see docs/betag.md.

Every item starts with a few base tags. A causal LLM is LoRA-tuned on users' sequences in which each
item is spelled as its tags, so it learns which tags follow which. Shown one item, the tuned model
then writes the next line many times over by diverse beam search: those are the item's BETags, and
how many beams use a tag is its weight.

Deliberate differences from the authors' code:
  - samples are packed into rows with segment ids instead of padded to 1024 tokens, and the chat
    prefix, equal in all of them, runs once per step; gradients flow through it;
  - a batch has a fixed shape that draws fill in order, so a step sees 8 samples on average only;
  - tag order, thinning and windows are drawn from (seed, draw number), never from a worker's state;
  - text before and after the line's '2.' is encoded apart, in training as in generation;
  - a last tag cut by the token limit is dropped (decode.drop_truncated), equal scores go to the
    lower group.
"""
from ml_collections import ConfigDict

from recjax.data.loading import load_for_config
from recjax.errors import ConfigError
from recjax.evaluation import results
from recjax.methods.betag import (
  base_tags,
  evaluate,
  export,
  generate,
  inference,
  planning,
  prompts,
  report,
  sasrec,
)
from recjax.methods.betag import train as train_lib
from recjax.training import continuation, llm_loading
from recjax.training.workdir import Workdir


def run(cfg: ConfigDict, work: Workdir) -> None:
  """The experiment, stage by stage. cfg: the run's config. work: the Workdir."""
  check(cfg)
  dataset = load_for_config(cfg)
  work.log(f'{dataset.name}: {len(dataset.catalog):,} items, {len(dataset.interactions):,} users, '
           f'{len(dataset.interactions.items):,} interactions')
  start, used = continuation.open_llm_start(cfg, dataset.catalog), continuation.shortened(cfg)
  if start:
    work.log(f'{start.said(dataset.catalog)}; {used.train.epochs} epochs at {used.optim.lr:g}')
  base_dir = work.stage('base-tags', base_tags.stage, base_tags.settings(cfg), dataset,
                        alone=cfg.tags.source == 'api')
  llm_dir = continuation.llm_folder(cfg, work, start, lambda: llm_loading.folder(
      cfg, work, prompts.MESSAGES, lambda: base_tags.documents(dataset, base_dir, cfg.seed),
      dataset, base_dir))
  adapter_dir = work.stage('tune', train_lib.stage, train_lib.settings(used), dataset, base_dir,
                           llm_dir, *filter(None, [start]))
  generated_dir = work.stage('generate', generate.stage, generate.settings(cfg), base_dir, llm_dir,
                             adapter_dir, shared=True)
  tag_rows_dir = work.stage('parse', generate.parse, generate.parsing(cfg), generated_dir)
  sasrec_dir = sasrec.make(cfg, work, dataset)
  evaluated = work.stage('evaluate', evaluate.stage, evaluate.settings(cfg), dataset, base_dir,
                         tag_rows_dir, sasrec_dir)
  work.publish(evaluated, 'results.json', 'ranks.parquet', 'predictions.parquet')
  report.write(cfg, work, dataset, base_dir, evaluated)
  results.show(work, evaluated)


def check(cfg: ConfigDict) -> None:
  """What can be known to be wrong before anything runs.

  cfg: the run's config. Raises ConfigError.
  """
  train, decode = cfg.train, cfg.decode
  llm_loading.check(cfg.llm)
  if train.loss_on not in ('assistant', 'continuation'):
    raise ConfigError(f"train.loss_on={train.loss_on!r}; choose 'assistant' or 'continuation'")
  if train.min_seq_len < 2 or train.max_seq_len < train.min_seq_len:
    raise ConfigError(f'train.min_seq_len={train.min_seq_len} and train.max_seq_len='
                      f'{train.max_seq_len}: a sample needs two items, and the longest is not '
                      'below the shortest')
  if cfg.tags.sep.strip() == '':
    raise ConfigError(f'tags.sep={cfg.tags.sep!r} is blank, so tags could not be told apart')
  generate.search_config(decode)
  sasrec.check(cfg)


SHARED = ('generate',)  # stages made of shards, which parts of a run divide
recommender, cost, convert = inference.recommender, planning.cost, export.convert
item_tags = inference.item_tags


def validated(cfg: ConfigDict) -> None:
  """None: nothing is held out while an LLM is tuned on behavior. For `recjax sweep`.

  cfg: the run's config.
  """
  return None
