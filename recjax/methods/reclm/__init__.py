"""RecLM: a chat model whose recommended items always exist (reclm.md).

Liao et al., *Eliminating Out-of-Domain Recommendations in LLM-based Recommender Systems: A Unified
View*, ACL Findings 2026 (arXiv 2505.03336); Lu et al., *Aligning LLMs for Controllable
Recommendations*, arXiv 2403.05063.

Two new tokens open and close an item. Between them decoding may only follow the catalogue's titles
(`grounding='cgen'`), pastes the title that is nearest to a projected state ('ret'), or follows
semantic IDs ('token'). A SASRec teacher completes the lists that the model learns.

Deliberate differences from the authors' code:
  - one BOS, no loss on padding, any batch size; samples stand side by side in rows;
  - the teacher is asked for all windows of an epoch at once, in process;
  - the rows of new tokens are trained and stored; a constraint never opens, and the end of an item
    is masked in training as in decoding (`train.scope_end`);
  - empty lists count in every rate; epochs are drawn up front and trained in one shuffled pass.
"""
import pathlib

from recjax.data.dataset import load_data
from recjax.errors import ConfigError
from recjax.evaluation import results
from recjax.methods.reclm import (
  chat_encoding,
  evaluate,
  inference,
  offline_samples,
  planning,
  report,
  semantic_ids,
  sft_data,
  teacher,
  tokenized_catalog,
  train,
)
from recjax.text import tokenizer as tokenizer_lib
from recjax.training import llm_loading
from recjax.training.losses import trie_masked

GROUNDINGS = ('cgen', 'ret', 'token')


def run(cfg, work):
  """The experiment, stage by stage."""
  template = check(cfg)
  shop = load_data(cfg.data)
  work.say(f'{shop.name}: {len(shop.catalog):,} items, {len(shop.interactions):,} users, '
           f'{len(shop.interactions.items):,} interactions, fingerprint {shop.fingerprint[:12]}')
  titles = [' '.join((t or '').split()) for t in shop.catalog.columns.get('title') or ()]
  opening = [sft_data.said('system', template['system'])]
  llm = llm_loading.folder(
    cfg, work, opening, lambda: planning.documents(template, titles, cfg.seed), shop
  )
  check_texts(cfg, shop, llm)
  helper = work.stage('teacher', teacher.stage, teacher.settings(cfg), shop)
  coded = None
  if cfg.grounding == 'token':
    coded = work.stage('codes', semantic_ids.stage, semantic_ids.settings(cfg), shop, llm, helper)
  given = pathlib.Path(cfg.train.static) if cfg.train.static else None
  made = work.stage('tune', train.stage, train.settings(cfg), shop, llm, helper, coded, given)
  found = work.stage('evaluate', evaluate.stage, evaluate.settings(cfg), shop, llm, made, helper,
                     coded)
  work.publish(found, 'results.json', 'ranks.parquet', 'predictions.parquet')
  report.write(cfg, work, shop, found)
  results.show(work, found)


def check(cfg):
  """What can be known to be wrong before anything runs. Raises ConfigError. -> template parts"""
  llm_loading.check(cfg.llm)
  if cfg.grounding not in GROUNDINGS:
    raise ConfigError(f'grounding={cfg.grounding!r}; choose one of {", ".join(GROUNDINGS)}')
  if cfg.train.scope not in trie_masked.KINDS:
    raise ConfigError(
      f'train.scope={cfg.train.scope!r}; choose one of {", ".join(trie_masked.KINDS)}'
    )
  if cfg.train.average not in train.AVERAGES:
    raise ConfigError(f'train.average={cfg.train.average!r}; choose one of '
                      f'{", ".join(train.AVERAGES)}')
  if cfg.train.control_like not in train.LIKE:
    raise ConfigError(f'train.control_like={cfg.train.control_like!r}; choose one of '
                      f'{", ".join(train.LIKE)}')
  if cfg.decode.count < 10:
    raise ConfigError(f'decode.count={cfg.decode.count}: lists of ten are judged; ask for 10 or '
                      'more')
  if cfg.decode.batch < 1 or cfg.train.batch < 1:
    raise ConfigError(f'decode.batch={cfg.decode.batch} and '
                      f'train.batch={cfg.train.batch} must be at least 1')
  if not 0 <= cfg.control.share <= 1:
    raise ConfigError(f'control.share={cfg.control.share} must lie between 0 and 1')
  offline_samples.check(cfg)
  missing_files(cfg)
  return sft_data.forms(cfg)


def check_texts(cfg, shop, folder):
  """What the tokenizer of `folder` may not be able to write, before anything is trained: what its
  chat template makes of conversations, titles of the catalogue and of the test's other one.

  Raises ConfigError naming the folder, DataError naming the item.
  """
  tokenizer = tokenizer_lib.load(folder)
  several = bool(cfg.train.multi_round or cfg.train.static or cfg.eval.rounds
                 or cfg.eval.words == 'acknowledged')
  try:
    chat_encoding.check(tokenizer, dict(cfg.prompt.variables), several)
  except ConfigError as error:
    raise ConfigError(f'{folder}: {error}') from error
  for one in (shop, load_data(cfg.eval.cross) if cfg.eval.cross else None):
    if one:
      tokenized_catalog.load(one.catalog, tokenizer)


def missing_files(cfg):
  """Raises ConfigError for a file that a later stage reads and that is not there."""
  chats = cfg.train.multi_round or cfg.train.chat_share
  named = {'talk.source': cfg.talk.source if chats else '',
           'talk.questions': cfg.talk.questions if cfg.eval.rounds else '',
           'eval.cross': cfg.eval.cross,
           'ret.vectors': cfg.ret.vectors if cfg.grounding == 'ret' else ''}
  for key, value in named.items():
    known = value in ('', 'teacher', 'text') or value.partition(':')[0] == 'sample'
    if not known and not pathlib.Path(value).exists():
      raise ConfigError(f'{key}={value!r} does not exist; name what does')


recommender, cost, convert = inference.recommender, planning.cost, planning.convert
converse, faces = inference.converse, inference.faces


def validated(cfg):
  """The stage whose validation figures tell settings apart, for `recjax sweep`."""
  return 'tune'
