"""The settings that all configs of this method share."""
from collections.abc import Mapping

from ml_collections import ConfigDict

from recjax import base_config


def ground(arg: str, other: Mapping[str, str] | None = None) -> ConfigDict:
  """BIGRec. arg: 'paper' or 'laptop', 'data=FOLDER',
  'split=auto' (or leave_one_out, global_time, time, rows), with commas.

  other: {'other': FOLDER}, the second data set of a config that learns from two.
  """
  c, given = _common('ground', 'bigrec', arg, other or {})
  # batch: prompts answered together. length_norm: what divides a score, the answer's tokens
  # ('generated') or the prompt's too ('full', as old releases of transformers did)
  c.decode = dict(beams=4, batch=64, new_tokens=32, length_penalty=1.0, length_norm='generated')
  # model: 'base' or 'tuned' embeds both sides, by its 'last' token or 'avg'. prior: what the lists
  # are pulled by (none, pop, cf); rows of all three are ranked. step, max_gamma: the grid of gammas
  c.ground = dict(model='base', pooling='last', prior='none', step=0.01, max_gamma=99)
  c.eval = dict(mask_history='auto', max_valid_users=1000, max_test_users=2000, save_top=20,
                **base_config.rows_beside())
  if other:
    c.domains = ((given['other'], 'goods'),)
  if c.preset == 'paper':
    c.train.update(mode='lora', sample=1024, batch=128, epochs=50, patience=5, row_tokens=512,
                   valid_sample=1024)
    c.optim.update(lr=1e-4, beta2=0.999)
    c.decode.update(new_tokens=128, batch=8)
    c.eval.update(max_test_users=5000, max_valid_users=5000)
  if c.preset == 'laptop':
    c.eval.update(max_valid_users=200, max_test_users=1000)
  return c


def decode(arg: str) -> ConfigDict:
  """D3. arg: as of `ground`."""
  c, _ = _common('decode', 'd3', arg, {})
  # alphas: weights of the LLM, one is chosen on validation; batch: prompts decoded together
  c.decode = dict(beams=10, batch=64, alphas=(1.0, 0.6, 0.3), plain_length_penalty=1.0,
                  ghost_cases=64)
  # duplicate_titles: 'exact_id' wants the very item, 'best' any item of its title
  c.eval = dict(mask_history='auto', max_valid_users=192, max_test_users=1024,
                duplicate_titles='exact_id', **base_config.rows_beside())
  if c.preset == 'paper':
    c.samples.window = 'every'
    c.train.update(batch=128, epochs=3, patience=1, row_tokens=512, loss_on='response',
                   valid_sample=2000)
    c.optim.update(lr=3e-4, beta2=0.999)
    c.assist.model.update(max_history=10, width=32, layers=1, hidden=32, dropout=0.3)
    c.assist.loss.kind = 'bce'
    c.assist.train.update(batch=1024, epochs=500, patience=20)
    c.assist.optim.update(lr=1e-3, decay=1e-5, beta2=0.999)
    c.eval.update(max_test_users=0, max_valid_users=2000)
  if c.preset == 'laptop':
    c.eval.update(max_valid_users=100, max_test_users=1000)
  return c


def _common(variant: str, template: str, arg: str,
            other: Mapping[str, str]) -> tuple[ConfigDict, dict[str, str]]:
  preset, given = base_config.parse(arg, dict(data='sample', **other, split='auto'),
                                    presets=base_config.LLM_PRESETS)
  c = base_config.start('bigrec', preset, given['data'], variant=variant)
  c.llm, c.tiny = base_config.llm(preset), base_config.tiny()
  # window: which places of a sequence are asked for in training: movie, game, every
  by_moment = given['split'] == 'global_time'
  c.split.kind = 'global_time' if by_moment else 'leave_one_out'
  c.samples = dict(window='game', split='auto' if by_moment else given['split'], max_history=10)
  c.domains = ()  # further (data, noun) pairs that are learned from
  c.prompt = dict(template=template, noun='goods', max_prompt_tokens=512)
  # mode: 'lora' or 'full' (a model as small as the tiny one learns little through an adapter)
  # sample, valid_sample: samples drawn (-1 or 0: all); row_tokens: of a packed row
  c.train = dict(mode='full', sample=-1, valid_sample=128, batch=8, epochs=2, patience=2,
                 row_tokens=256, loss_on='all')
  c.lora = dict(rank=8, alpha=16.0, targets=('q', 'v'))
  c.optim = dict(lr=4e-3, warmup=20, schedule='linear', decay=0.0, clip=1.0, beta2=0.98,
                 log_every=20, save_every=200)
  if preset == 'laptop':
    c.samples.max_history = 5
    c.train.update(mode='lora', sample=2048, valid_sample=128, epochs=2, row_tokens=512)
    c.lora = dict(base_config.LAPTOP_LORA)
    c.optim.update(lr=1e-3, beta2=0.999, log_every=5, save_every=25)
  # source: 'train' a sequential recommender here, the folder of a `sequential` run, or scores.npz
  c.assist = base_config.recommender(source='train')
  return c, given
