"""What the configs of several methods share: how their argument is read, and groups of settings."""
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from recjax import split_rule

# Presets of a method with an LLM, beside 'sample' with its tiny model: the published settings, and
# those for a model of 100 to 500 million parameters on a CPU.
LLM_PRESETS = ('paper', 'laptop')
# LoRA of the preset 'laptop'.
LAPTOP_LORA = dict(rank=16, alpha=32.0, targets=('q', 'k', 'v', 'o', 'gate', 'up', 'down'))


def parse(arg: str, defaults: Mapping[str, str],
          choices: Mapping[str, Sequence[str]] | None = None,
          presets: Sequence[str] = ('paper',)) -> tuple[str, dict[str, str]]:
  """Reads what stands behind the colon of --config=FILE:ARGUMENT.

  arg: a preset's name and KEY=VALUE, in any order, separated by commas; split=KIND is a key of all.
  defaults: the value of each other known key that is not given. choices: what the values of some
  keys may be. presets: those that the config has beside 'sample'. -> preset, {key: value}. Raises
  ValueError for anything that is not known.
  """
  preset, values = 'sample', {'split': 'leave_one_out', **defaults}
  if 'split' not in defaults:
    choices = {'split': split_rule.KINDS, **(choices or {})}
  for part in filter(None, arg.split(',')):
    key, equals, value = part.partition('=')
    if part in presets and preset in ('sample', part):
      preset = part
    elif part in presets:
      raise ValueError(f'config arguments {preset!r} and {part!r}: choose one preset')
    elif equals and key in values:
      values[key] = value
    else:
      known = (f'{k}={"FOLDER" if k in ("data", "other") else "NAME"}' for k in values)
      raise ValueError(f'unknown config argument {part!r}; known: {", ".join([*presets, *known])}')
  for key, known in (choices or {}).items():
    if values[key] not in known:
      raise ValueError(f'{key}={values[key]!r} is unknown; choose one of {", ".join(known)}')
  return preset, values


def start(method: str, preset: str, data: str, **more: Any) -> ConfigDict:
  """A config with what every config has. method, preset, data: its settings of these names. more:
  further settings. -> ConfigDict

  split: how the data are split; `split_rule.SplitRule` says what its settings are. start: as of
  `start_settings`.
  """
  return ConfigDict(dict(
      method=method, preset=preset, data=data, seed=0, mesh=dict(data=-1, fsdp=1, model=1),
      split=split_rule.settings(method), start=start_settings(), **more))


def start_settings() -> dict[str, Any]:
  """The group `start`: where training begins.

  run: folder of the run whose weights it goes on from, '' for none. epochs_share, lr_factor: its
  epochs and learning rate then, as shares of train.epochs and optim.lr.
  """
  return dict(run='', epochs_share=0.25, lr_factor=1.0)


def llm(preset: str, remat: str = 'dots') -> dict[str, str]:
  """The group `llm`: 'tiny' trains a tokenizer and a small model on the texts of the catalog, else
  weights is a checkpoint folder, which 'paper' and 'laptop' have to be given.

  preset: the config's. remat: that of the paper's preset.
  """
  if preset == 'paper':
    return dict(weights='', dtype='auto', remat=remat, quantize='none')
  if preset == 'laptop':
    return dict(weights='', dtype='auto', remat='none', quantize='none')
  return dict(weights='tiny', dtype='auto', remat='none', quantize='none')


def api(samples: int) -> dict[str, Any]:
  """Settings of a job at an OpenAI-compatible service, for a group that may ask one.

  samples: answers to a request. api_timeout: seconds. api_budget, api_price_in, api_price_out:
  money, prices per million tokens; a budget of 0 sets no limit. api_max_tokens: of an answer.
  api_failure_ratio: share of the requests that may fail.
  """
  return dict(api_url='https://api.openai.com/v1', api_model='gpt-4o-mini', api_samples=samples,
              api_max_tokens=256, api_timeout=60.0, api_concurrency=8, api_budget=5.0,
              api_price_in=0.15, api_price_out=0.6, api_failure_ratio=0.05)


def tiny(**changes: Any) -> dict[str, Any]:
  """The group `tiny`: size and training of that small model. changes: other values."""
  return dict(vocab=2048, width=128, layers=2, heads=4, kv_heads=2, ffn=352, row_tokens=256,
              batch=4, epochs=2.0, lr=4e-3, warmup=20, schedule='linear', decay=0.01, clip=1.0,
              beta2=0.98, log_every=20, save_every=100) | changes


def rows_beside() -> dict[str, Any]:
  """Settings of the rows that stand beside a method's own, for its group `eval`.

  classical: whether Markov chains, neighbors, EASE, titles and graphs do. classical_minutes: of two
  cores, by a count of operations, that they may take.
  """
  return dict(classical=True, classical_minutes=5.0)


def recommender(**more: Any) -> dict[str, Any]:
  """The groups of a sequential recommender that stands beside something else. more: further ones.

  model.max_history: items of a history that are read. model.hidden: inner width, or the GRU's
  state. loss.negative_scope: negatives are shared by a 'position', a 'sequence' or the whole
  'batch'. loss.gbce_t: calibration of gBCE. train.patience: epochs without a better validation
  NDCG@10. train.mask_share, max_masked, mask_last: of BERT4Rec.
  """
  return dict(
      model=dict(kind='sasrec', max_history=50, width=64, layers=2, heads=1, hidden=64,
                 dropout=0.2, norm='pre', separate=False),
      loss=dict(kind='ce', negatives=1, negative_scope='position', exclude='train_history',
                gbce_t=0.75, log_q=False, chunk=4096),
      train=dict(batch=256, epochs=30, patience=5, save_every=10, valid_users=1000,
                 mask_share=0.2, max_masked=50, mask_last=0.5),
      optim=dict(lr=2e-3, warmup=0, schedule='constant', decay=0.0, clip=0.0, beta2=0.98), **more)


# What may follow the training of a recommender that generates: nothing, a policy loss, the
# published form of one, or a preference loss.
POLICIES = ('none', 'grpo', 'minionerec', 'dpo', 'sdpo', 'dmpo')


def policy_tuning(kind: str, **changes: Any) -> dict[str, Any]:
  """The group `policy`: tuning on lists that the trained model rolls out itself.

  kind: of POLICIES. changes: other values. 'minionerec' is the released code of MiniOneRec (arXiv
  2510.24431), whose rows are beams.

  loss: 'none' for no such stage. Settings up to kl_clip are those of `policy.tuning` and
  `training.losses.policy`. epochs: passes over the training rows; steps: 0, or a number that counts
  instead. batch: requests of a step. eval_every: steps between validations. patience: validations
  without a gain, 0 keeps the last weights whatever they are worth.
  """
  preference = kind in ('dpo', 'sdpo', 'dmpo')
  group = dict(loss='grpo' if kind == 'minionerec' else kind, rollout='swor', rows=16,
               reward='rank', advantage='mean', ratio='product', clip_low=0.2, clip_high=0.28,
               average='answer', flat='drop', divergence='k2', beta=0.1 if preference else 1e-3,
               kl_clip=10.0, nll=0.0 if preference else 0.1)
  if preference:
    group.update(rollout='beams', rows=4)
  if kind == 'minionerec':
    group.update(rollout='beams', advantage='std', ratio='token', clip_high=0.2, flat='keep',
                 divergence='k3', nll=0.0)
  return group | dict(epochs=1.0, steps=0, batch=64, lr=5e-4, warmup=10, schedule='cosine',
                      decay=0.0, clip=0.3, beta2=0.999, log_every=10, save_every=100, eval_every=50,
                      patience=4) | changes
