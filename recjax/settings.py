"""One parser of settings for the command line, Python, `recjax sweep` and `recjax doctor`.

A setting is a value of a config, named by dots: optim.lr. A text becomes a value of the type that
the config has there, a value of Python must be of that type. What there is no such setting of, what
is of another type or out of its range is refused with a ConfigError, before anything is trained.
"""
import argparse
import ast
import contextlib
import fnmatch
import json
import math
import numbers
import os
import pathlib
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from recjax import split_rule
from recjax.errors import ConfigError, WorkdirError

WORDS = {'true': True, '1': True, 'yes': True, 'on': True,
         'false': False, '0': False, 'no': False, 'off': False}
OPEN = ('prompt.variables',)  # settings whose names the config does not know: any may be given

# What settings were called before 0.2, with their names today. * stands for any letters, the same
# in both.
RENAMED = {
    'judge.test_most': 'eval.max_test_users', 'judge.valid_most': 'eval.max_valid_users',
    'judge.*': 'eval.*', 'judge': 'eval',
    '*loss.t': '*loss.gbce_t', '*loss.shared': '*loss.negative_scope',
    '*model.length': '*model.max_history', 'base.length': 'base.max_history',
    'model.history': 'model.max_history', 'samples.history': 'samples.max_history',
    '*train.mask_most': '*train.max_masked',
    'train.row': 'train.row_tokens', 'tiny.row': 'tiny.row_tokens',
    'prompt.cutoff': 'prompt.max_prompt_tokens', 'tags.most': 'tags.max_base_tags',
    'ground.most': 'ground.max_gamma', 'ground.inject': 'ground.prior', 'way': 'variant',
    'tokenizer.look_every': 'semantic_ids.eval_every', 'tokenizer.*': 'semantic_ids.*',
    'tokenizer': 'semantic_ids', 'token.*': 'semantic_ids.*', 'token': 'semantic_ids',
    'model.apart': 'model.untied_output', 'model.compat': 'model.reproduce_release',
    'defects.*': 'reproduce_bugs.*', 'defects': 'reproduce_bugs',
    'decode.count': 'decode.num_items', 'rat.align_most': 'rat.max_align_items',
}

# What numbers may be: the patterns of settings (* takes any letters, dots too), by their range. Of
# a tuple every element counts.
RANGES = {
    'at least 1': '''
        seeds *.batch *.log_every *.save_every *model.layers *model.heads *model.hidden
        *model.max_history *model.width base.layers base.heads base.hidden base.max_history
        base.width model.decoder_layers model.head_dim model.ffn model.fusion_heads
        model.fusion_layers tiny.vocab tiny.width tiny.layers tiny.heads tiny.kv_heads tiny.ffn
        tiny.row_tokens *loss.chunk *loss.negatives *train.max_masked tags.max_base_tags
        *.api_samples *.api_concurrency *.api_max_tokens talk.own talk.answer_tokens lora.rank
        train.row_tokens train.max_len train.max_seq_len train.min_seq_len train.longest_list
        train.cycle decode.beams
        decode.groups decode.num_items decode.new_tokens decode.max_tags decode.ghost_cases
        select.save_top eval.save_top eval.memory eval.answer_tokens prompt.max_prompt_tokens
        samples.max_history ret.tokens semantic_ids.hidden semantic_ids.width semantic_ids.levels
        semantic_ids.size semantic_ids.steps semantic_ids.eval_every scft.steps scft.parts
        scft.max_len export.rungs export.shard pca.dim rat.max_align_items ground.max_gamma''',
    'at least 0': '''
        model.slots *.patience *.warmup *.decay *.clip *.muon *.valid_users align.sia align.psa
        align.warm control.users decode.diversity decode.temperature export.budget eval.candidates
        eval.cross_users eval.free eval.rounds eval.tail_item eval.tail_user eval.max_test_users
        eval.max_valid_users eval.users eval.vague eval.classical_minutes rat.alpha rat.hidden
        rat.ids_from rat.spread policy.beta policy.nll policy.steps policy.eval_every
        ret.alpha ret.hidden select.k1 select.top_k select.top_m *.api_budget *.api_price_in
        *.api_price_out semantic_ids.alpha semantic_ids.beta semantic_ids.collaborative
        semantic_ids.diversity semantic_ids.sinkhorn train.free train.gamma train.prompt''',
    'above 0': '''
        *.lr *.epochs start.epochs_share start.lr_factor *.api_timeout lora.alpha align.temperature
        align.tau model.temperature rat.tau scft.tau semantic_ids.tau ground.step policy.kl_clip''',
    'between 0 and 1': '''
        *loss.gbce_t *train.mask_share *train.mask_last control.share decode.alphas select.b
        *.api_failure_ratio train.candidates train.chat_share train.keep train.multi_round
        train.rule train.wishes''',
    'at least 2': 'policy.rows',
    'above 0 and below 1': 'policy.clip_low policy.clip_high',
    'at least 0 and below 1': '*.beta2 *model.dropout base.dropout scft.ratio',
    'above 0 and at most 1': 'decode.top_p',
    'a count, or -1 for all': 'train.sample train.valid_sample',
    'a count above 0, or -1 for what is left': 'mesh.*',
    'between 0 and 2147483647': 'seed',
}
WITHIN = {
    'at least 1': lambda x: x >= 1, 'at least 2': lambda x: x >= 2,
    'above 0 and below 1': lambda x: 0 < x < 1,
    'at least 0': lambda x: x >= 0, 'above 0': lambda x: x > 0,
    'between 0 and 1': lambda x: 0 <= x <= 1, 'at least 0 and below 1': lambda x: 0 <= x < 1,
    'above 0 and at most 1': lambda x: 0 < x <= 1,
    'a count, or -1 for all': lambda x: x >= -1,
    'a count above 0, or -1 for what is left': lambda x: x >= 1 or x == -1,
    'between 0 and 2147483647': lambda x: 0 <= x < 1 << 31,  # else JAX takes another seed's key
}
UNBOUNDED = ('select.idf_cutoff',)  # -inf keeps all tags
EXCEPT = {'finetune.epochs': 'at least 0'}  # before the patterns

# What texts may be (* as above). Of a tuple every element counts.
CHOICES = {
    '*.schedule': ('linear', 'cosine', 'square', 'constant'),
    '*.model.norm': ('pre', 'original', 'post', 'ligr', 'unirec'),  # model.norm: by the method
    'base.norm': ('pre', 'original', 'post', 'ligr', 'unirec'),
    '*model.kind': ('sasrec', 'gru4rec', 'bert4rec', 'hstu'),
    'base.kind': ('sasrec', 'gru4rec', 'bert4rec', 'hstu'), 'model.time': ('none', 'bias'),
    'model.count': ('end', 'start'), 'base.count': ('end', 'start'),
    'model.dtype': ('float32', 'bfloat16'),
    '*.loss.kind': ('ce', 'chunked', 'bce', 'gbce', 'sampled'),
    'loss.kind': ('ce', 'chunked', 'bce', 'gbce', 'sampled'),
    '*loss.negative_scope': ('position', 'sequence', 'batch'),
    '*loss.exclude': ('train_history', 'target', 'none'),
    'llm.dtype': ('auto', 'float32', 'bfloat16', 'float16'),
    'llm.remat': ('none', 'dots', 'full'), 'llm.quantize': ('none', 'int8'),
    'lora.targets': ('q', 'k', 'v', 'o', 'gate', 'up', 'down'),
    'fusion': ('none', 'pooled', 'encoder', 'prefix'),
    'grounding': ('cgen', 'ret', 'token'),
    'policy.loss': ('none', 'grpo', 'dpo', 'pairs', 'sdpo', 'dmpo'),
    'policy.reward': ('hit', 'rank', 'rank_above', 'rank_paper', '*+*'),
    'policy.rollout': ('swor', 'samples', 'beams'),
    'policy.advantage': ('mean', 'std', 'loo'),
    'policy.ratio': ('product', 'token', 'sequence'),
    'policy.average': ('answer', 'token', 'constant'), 'policy.flat': ('drop', 'keep'),
    'policy.divergence': ('k1', 'k2', 'k3'),
    'align.sign': ('neg', 'pos'), 'align.reduce': ('sum_levels', 'mean_levels'),
    'semantic_ids.reduction': ('mean', 'sum'), 'semantic_ids.residual': ('ste', 'sg'),
    'semantic_ids.distance': ('l2', 'dot', 'cos'), 'semantic_ids.recon': ('mse', 'l1', 'infonce'),
    'semantic_ids.kind': ('rqvae', 'letter', 'rqkmeans_plus', 'rvq', 'rqkmeans', 'rkmeans',
                          'rkmeans_balanced', 'rkmeans_mapped', 'pq', 'opq', 'random', 'lsh',
                          '*.json'),
    'semantic_ids.estimator': ('ste', 'rotation', 'gumbel'),
    'semantic_ids.dedupe': ('suffix', 'random', 'nearest', 'sinkhorn', 'balance', 'none'),
    'samples.window': ('movie', 'game', 'every'),
    'split.kind': split_rule.KINDS, 'split.target': split_rule.TARGETS,
    'split.validation': split_rule.VALIDATIONS,
    'samples.split': ('auto', 'leave_one_out', 'time', 'rows'),
    'decode.length_norm': ('generated', 'full'),
    'ground.model': ('base', 'tuned'), 'ground.pooling': ('avg', 'last', 'cls'),
    'ground.prior': ('none', 'pop', 'cf'),
    'eval.duplicate_titles': ('exact_id', 'best'),
    'eval.mask_history': ('auto', 'yes', 'no'),
    'eval.sampled': ('', 'uniform100', 'uniform100_sasrec', 'uniform99', 'pop100'),
    'eval.tie_order': ('file', 'shuffle(*)'),
    'eval.seen_mask': ('inf', 'zero'), 'eval.test_history': ('train+valid', 'train'),
    'eval.words': ('plain', 'rule', 'acknowledged', 'trained'),
    'select.reducer': ('union', 'sum', 'intersection', 'last'),
    'tags.source': ('auto', 'data', 'file', 'keywords', 'api'),
    'tags.on_missing': ('error', 'drop_item', 'drop_sequence'),
    'tags.on_bad_tag': ('error', 'escape'),
    'train.mode': ('lora', 'full'), 'train.scope': ('none', 'all', 'branches'),
    'train.focus': ('title', 'all'), 'train.control_like': ('words', 'quotes'),
    'train.loss_on': ('all', 'response', 'assistant', 'continuation'),
    'train.average': ('tokens', 'samples'),
    'prompts.rules': ('any', 'beauty', 'fashion', 'yelp'), 'prompts.empty': ('omit', 'none'),
    'text.pool': ('', 'avg', 'last', 'cls'), 'scft.pool': ('avg', 'last', 'cls'),
    'scft.loss': ('infonce', 'soft_target', 'decoupled'),
    'rat.align_loss': ('infonce', 'soft_target', 'decoupled'),
    'rat.align_source': ('sasrec', 'same_backbone'),
    'rat.align_items': ('distinct', 'positions'), 'rat.activation': ('none', 'gelu', 'relu'),
    'rat.variant': ('full', 'no_scft', 'no_adapter', 'no_freeze', 'no_align', 'pool_last', 'pca',
                    'text'),
    'rat.ablations': ('full', 'no_scft', 'no_adapter', 'no_freeze', 'no_align', 'pool_last', 'pca',
                      'text'),
}
# An element of tuples that may be empty.
ELEMENTS = {'semantic_ids.sinkhorn': 0.0, 'domains': ('', ''), 'rat.ablations': ''}


def split_command_line(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """The settings out of a command line. argv: words, e.g. ['--config.optim.lr=1e-3', '--x=2'].

  -> settings ['optim.lr=1e-3'], the other words. A setting's value may also be the next word; one
  that stands alone is true, --noconfig.NAME is false.
  """
  settings, rest, words = [], [], list(argv)
  while words:
    word = words.pop(0)
    match = re.fullmatch(r'--?(no)?config\.([^=]*)(=.*)?', word, re.DOTALL)
    if word == '--' or not match:
      rest += [word, *words] if word == '--' else [word]
      words = [] if word == '--' else words
      continue
    no, name, value = match.groups()
    if value is None and not no and words and not re.match(r'-(?!\.?\d|inf\b)', words[0]):
      value = f'={words.pop(0)}'
    settings.append(name + ('=false' if no and value is None else value or '=true'))
  return settings, rest


def change(cfg: ConfigDict, settings: Sequence[str] | Mapping[str, object]) -> dict[str, object]:
  """Changes settings of a config. settings: ['a.b=TEXT'], or {'a.b': value} from Python.

  cfg: it changes in place. -> the values that were set, {'a.b': value}. Raises ConfigError for a
  setting that there is not, or a value of another type or out of its range.
  """
  _check_names(cfg)
  free = {name for name, value in flat(cfg) if isinstance(value, ConfigDict)} | set(OPEN)
  texts = not isinstance(settings, dict)
  pairs = [tuple(word.partition('=')[::2]) for word in settings] if texts else settings.items()
  values = {}
  for word, (name, value) in zip(settings if texts else pairs, pairs):
    shown = f'--config.{word}' if texts else f'{name}={value!r}'
    if texts and '=' not in word:
      raise ConfigError(f'{shown} has no value; write --config.{name}=VALUE')
    if name in values:
      raise ConfigError(f'{shown}: {name} is given twice')
    try:
      values[name] = _put(cfg, str(name), value, texts, free)
    except (TypeError, ValueError, SyntaxError, MemoryError, RecursionError) as error:
      why = error.msg if isinstance(error, SyntaxError) else str(error)
      raise ConfigError(f'{shown[:200]}: {why[:200]}') from error
  check(cfg)
  return values


def check(cfg: ConfigDict) -> None:
  """Raises ConfigError for a number out of its range, a text that is no choice, or an old name.
  cfg: all of its settings are looked at."""
  _check_names(cfg)
  for name, value in flat(cfg):
    for element in value if isinstance(value, (tuple, list)) else (value,):
      numeric = isinstance(element, numbers.Real) and not isinstance(element, bool)
      if numeric and (math.isnan(element) or math.isinf(element) and name not in UNBOUNDED):
        raise ConfigError(f'{name}={value}: {element} is no number to calculate with')
      rule = range_of(name) if numeric else None
      if rule and not WITHIN[rule](element):
        raise ConfigError(f'{name}={value}: it must be {rule}')
      known = choices_of(name) if isinstance(element, str) else None
      if known and not any(fnmatch.fnmatchcase(str(element), k) for k in known):
        listed = ', '.join(k or 'nothing' for k in known)
        raise ConfigError(f'{name}={value!r}; choose one of {listed}')


@contextlib.contextmanager
def reading(workdir: str | os.PathLike | None = None) -> Iterator[None]:
  """Code that reads settings. Raises ConfigError for one that the config has not, or WorkdirError
  where the config is the one that a run's folder keeps: those of earlier versions may lack it, or
  have it under another name.

  workdir: that folder.
  """
  path = pathlib.Path(workdir) / 'config.json' if workdir else None
  if path and (old := next(filter(renamed, _saved_names(path)), None)):
    raise WorkdirError(f'{path}: {old} is called {renamed(old)} since 0.2, so the run was made '
                       'before 0.2; train anew in a new folder, or use the version that made it')
  try:
    yield
  except (AttributeError, KeyError) as error:
    if 'ml_collections' not in traceback.extract_tb(error.__traceback__)[-1].filename:
      raise
    if workdir is None:
      raise ConfigError(f'the config lacks a setting that is read: {str(error).strip()[:200]}; '
                        'compare it with a file of configs/') from error
    name = re.search(r"""['"](\w+)['"]""", str(error))
    raise WorkdirError(
        f'{workdir}/config.json has no setting {name[1] if name else error}, which this version '
        'reads: the run was made by an earlier one. Run its command again in a new folder, or use '
        f'the version that it names') from error


def _saved_names(path):
  """The settings of a config.json, none where it cannot be read: whoever opens it tells that."""
  try:
    return [name for name, _ in flat(ConfigDict(json.loads(path.read_bytes())['config']))]
  except (OSError, ValueError, TypeError, KeyError, RecursionError):
    return []


def renamed(name: str) -> str | None:
  """The name today of a setting that had another one before 0.2; None of any other."""
  for old, new in RENAMED.items():
    match = re.fullmatch(re.escape(old).replace(r'\*', '(.*)'), name)
    if match:
      return new.replace('*', match[1]) if '*' in old else new
  return None


def _check_names(cfg):
  for name, _ in flat(cfg):
    if new := renamed(name):
      raise ConfigError(f'{name} is called {new} since 0.2; mend the config')


def range_of(name: str) -> str | None:
  """The range of a number, in words; None where any will do. name: of the setting."""
  return EXCEPT.get(name) or next(
      (rule for rule, patterns in RANGES.items()
       if any(fnmatch.fnmatchcase(name, p) for p in patterns.split())), None)


def choices_of(name: str) -> tuple[str, ...] | None:
  """What a text may be; None where any will do. name: of the setting."""
  return next((known for p, known in CHOICES.items() if fnmatch.fnmatchcase(name, p)), None)


def flag(kind: type, rule: str = '', name: str = '') -> Callable[[str], float]:
  """What argparse makes of a flag's text: a number of a range.

  kind: int or float. rule: the range, in the words of RANGES. name: what the number counts, for the
  message.
  """
  def read(text: str) -> Any:
    try:
      value: Any = of_text(text, kind())
    except ValueError:
      what = 'whole number' if kind is int else 'number'
      raise argparse.ArgumentTypeError(f'{text!r} is no {what}{name and " of "}{name}') from None
    if math.isinf(value) or rule and not WITHIN[rule](value):
      raise argparse.ArgumentTypeError(f'{text} must be {rule or "finite"}')
    return value
  return read


def size(text: str) -> str:
  """What argparse makes of an amount of memory, as DuckDB writes it: the text."""
  match = re.fullmatch(r'(\d+(?:\.\d+)?) ?(?:[KMGT](?:i?B)?|B|%)', text, re.IGNORECASE)
  if not match or not float(match[1]):
    raise argparse.ArgumentTypeError(f'{text!r} is no size, as in 2GB or 500MB')
  return text


def month(text: str) -> str:
  """What argparse makes of a month, as in 2017-10: the text."""
  if not re.fullmatch(r'[0-9]{4}-(0[1-9]|1[0-2])', text):
    raise argparse.ArgumentTypeError(f'{text!r} is no month, as in 2017-10')
  return text


def flat(cfg: ConfigDict, above: str = '') -> Iterator[tuple[str, Any]]:
  """Yields the name and the value of every setting, and groups without any. cfg: a config or a
  group of it. above: what stands before the names of that group."""
  for key, value in cfg.items():
    if isinstance(value, ConfigDict) and len(value):
      yield from flat(value, f'{above}{key}.')
    else:
      yield f'{above}{key}', value


def _put(cfg, name, value, texts, free):
  """Sets one setting. free: groups that take any name. -> the value of its type"""
  holder, parts, group = cfg, name.split('.'), ''
  for i, part in enumerate(parts):
    if group in free:
      return _put_free(holder, '.'.join(parts[i:]), group, value, texts)
    if not isinstance(holder, ConfigDict) or part not in holder:
      if new := renamed(name):
        raise ConfigError(f'--config.{name}={value}: {name} is called {new} since 0.2')
      why = (f'{part} is not among {", ".join(holder)}' if isinstance(holder, ConfigDict) else
             f'{group} holds a value and no {part}')
      raise ConfigError(f'--config.{name}={value}: there is no such setting; {why}')
    above, holder, group = holder, holder[part], f'{group}.{part}'.lstrip('.')
  if isinstance(holder, ConfigDict):
    return _put_group(holder, name, value, texts, free)
  value = (of_text if texts else of_python)(value, holder, name)
  with above.unlocked():
    above[parts[-1]] = value
  return value


def _put_group(group, name, value, texts, free):
  """A whole group at once, which only one that takes any name can be. -> dict"""
  example = next(iter(group), 'NAME')
  if name not in free:
    raise ConfigError(f'--config.{name}={value}: {name} holds settings; name one of them, e.g. '
                      f'--config.{name}.{example}=...')
  entries = ast.literal_eval(value) if texts and value.lstrip().startswith('{') else value
  entries = entries.to_dict() if isinstance(entries, ConfigDict) else entries
  if not isinstance(entries, dict) or not all(
      isinstance(k, str) and k.isidentifier() for k in entries):
    raise ConfigError(f'--config.{name}={value}: {name} takes any names; give each a flag, e.g. '
                      f'--config.{name}.{example}=VALUE')
  with group.unlocked():
    for key in [k for k in group if k not in entries]:
      del group[key]
    group.update(entries)
  return entries


def _put_free(group, key, name, value, texts):
  """A setting in a group that takes any name: numbers, true, false, None, or else a text."""
  if not key.isidentifier():
    raise ConfigError(f'--config.{name}.{key}={value}: {key!r} is no name; write '
                      f'--config.{name}.NAME=VALUE')
  if texts:
    if value.lower() in ('true', 'false'):
      value = value.title()
    with contextlib.suppress(ValueError, SyntaxError):  # a word stays one
      value = ast.literal_eval(value)
  with group.unlocked(), group.ignore_type():
    group[key] = value
  return value


def of_text(text: str, like: object, name: str = '') -> object:
  """The value that a text stands for, of the type of `like`. name: of the setting, for ELEMENTS.
  Raises ValueError, SyntaxError."""
  if isinstance(like, bool):
    if text.lower() not in WORDS:
      raise ValueError(f'{text!r} is neither true nor false; write one of {", ".join(WORDS)}')
    return WORDS[text.lower()]
  if isinstance(like, int):
    try:
      return int(text)
    except ValueError as error:
      raise ValueError(f'{error}; it must be a whole number') from None
  if isinstance(like, float):
    return _number(float(text))
  if isinstance(like, (tuple, list)):
    return _elements(_listed(text), like, name)
  if like is None:
    return None if text in ('None', '') else text
  return text


def of_python(value: Any, like: object, name: str = '') -> object:
  """A value of Python as one of the type of `like`. name: of the setting, for ELEMENTS. Raises
  TypeError, ValueError."""
  if hasattr(value, 'item') and getattr(value, 'ndim', None) == 0:
    value = value.item()  # of numpy or jax
  kind = type(like)
  if isinstance(like, (tuple, list)) and isinstance(value, (tuple, list)):
    return _elements(value, like, name)
  if kind is float and type(value) is int:
    value = float(value)
  if like is not None and type(value) is not kind:
    raise TypeError(f'{value!r} is of type {type(value).__name__}; it must be of type '
                    f'{kind.__name__}, as {like!r} is')
  return _number(value) if kind is float else value


def _number(value):
  if math.isnan(value):
    raise ValueError(f'{value} is no number to calculate with')
  return value


def _listed(text):
  """The elements of a tuple that stands as text: (1, 2), [1, 2], 1,2, 'a', or words a,b."""
  try:
    elements = ast.literal_eval(text) if text.strip() else ()
  except ValueError:
    elements = tuple(word.strip() for word in text.strip('()[]').split(',') if word.strip())
  return elements if isinstance(elements, (tuple, list)) else (elements,)


def _elements(elements, like, name):
  """Elements of the types that those of `like` have, in its own type of list."""
  each = like[0] if len(like) else ELEMENTS.get(name)
  if any(isinstance(x, float) for x in like):
    each = 0.0
  if len({type(x) for x in like} - {int, float}) > 1 or each is None:
    return type(like)(elements)
  return type(like)(_pair(x, each) if isinstance(each, tuple) else of_python(x, each)
                    for x in elements)


def _pair(values, like):
  if not isinstance(values, (tuple, list)) or len(values) != len(like):
    raise TypeError(f'{values!r} must be {len(like)} values, as in {like!r}')
  return tuple(of_python(x, y) for x, y in zip(values, like))
