"""The settings of LLMEmb: the sample preset, the published one and the released code's faults."""
from typing import NamedTuple

from ml_collections import ConfigDict

from recjax import base_config
from recjax.methods.llmemb.variants import VARIANTS
from recjax.models import seqrec


class Published(NamedTuple):
  """The authors' settings of a data set.

  rules: of prompts. tail_item, tail_user: fewer interactions, or a shorter input, are tail. batch:
  of SCFT.
  """
  rules: str = 'any'
  tail_item: int = 3
  tail_user: int = 9
  batch: int = 128


DATASETS = {'beauty': Published('beauty', 4, 9), 'fashion': Published('fashion', 4, 3, 256),
            'yelp': Published('yelp', 13, 12, 256), 'scientific': Published()}


def make(arg: str, name: str) -> ConfigDict:
  """arg: 'paper' or 'laptop', 'data=FOLDER', 'backbone=NAME', 'variant=NAME', 'profile=NAME',
  in any order, separated by commas. name: of DATASETS."""
  preset, given = base_config.parse(
      arg, dict(data='sample:1:1200', backbone='sasrec', variant='full', profile='fixed'),
      dict(backbone=seqrec.KINDS, variant=tuple(VARIANTS), profile=('fixed', 'faithful')),
      base_config.LLM_PRESETS)
  c = sample(preset, given['data'], given['backbone'], given['variant'])
  c.split.kind = given['split']
  if given['backbone'] == 'gru4rec':
    c.model.update(layers=1, hidden=128, dropout=0.3)
  if given['backbone'] == 'bert4rec':
    c.model.update(heads=2, hidden=256)
    c.train.update(epochs=80, patience=12)
  if preset == 'paper':
    paper(c, DATASETS[name])
  if preset == 'laptop':
    c.lora = dict(rank=16, alpha=32.0)
    c.scft.update(steps=60, batch=32, max_len=128)
    c.scft.optim.update(lr=5e-4, warmup=10, log_every=5, save_every=20)
    c.train.update(epochs=40, patience=5)
    c.rat.ablations = ()
  if given['variant'] != 'full':
    c.rat.ablations = ()
  if given['profile'] == 'faithful':
    c.reproduce_bugs = {name: True for name in c.reproduce_bugs}
    c.scft.loss = 'soft_target'
    c.loss.kind = 'bce'
    c.rat.update(hidden=0, activation='none', whiten=False, alpha=0.01, tau=2.0,
                 align_loss='soft_target', align_items='positions', ids_from=0)
    c.scft.optim.warmup = 0
    for model in (c.model, c.base):
      model.update(norm='original', count='start', heads=1, hidden=model.width)
  return c


def paper(c: ConfigDict, published: Published) -> None:
  """Makes the published preset of the sample's, in place. c: the config."""
  c.seed, c.seeds = 42, 3
  c.prompts.rules = published.rules
  c.eval.update(tail_item=published.tail_item, tail_user=published.tail_user)
  c.lora = dict(rank=8, alpha=32.0)
  c.scft.update(steps=4000, batch=published.batch, max_len=1024, tau=0.05)
  c.scft.optim = dict(lr=2e-4, warmup=120, schedule='linear', decay=0.0, clip=1.0, beta2=0.999,
                      log_every=20, save_every=500)
  c.export.budget, c.pca.dim = 65536, 1536
  for model in (c.model, c.base):
    model.update(max_history=200, width=128, hidden=128, dropout=0.5)
  c.loss.kind = 'bce'
  c.train.update(batch=128, epochs=200, patience=20, mask_share=0.6, max_masked=120)
  c.optim = dict(lr=1e-3, warmup=0, schedule='constant', decay=0.0, clip=0.0, beta2=0.999)
  c.rat.update(hidden=0, activation='none', whiten=False, alpha=0.01, tau=2.0,
               align_loss='soft_target', ids_from=0, ablations=(
                   'no_scft', 'no_adapter', 'no_freeze', 'no_align', 'pool_last'))


def sample(preset: str, data: str, backbone: str, variant: str) -> ConfigDict:
  """The sample preset, whatever the backbone. preset, data, backbone, variant: as given."""
  c = base_config.start('llmemb', preset, data, seeds=1, llm=base_config.llm(preset, 'full'),
                        tiny=base_config.tiny(width=256, layers=1, epochs=1.0))
  # a sentence encoder for variant=text; pool: '' as its folder says
  c.text = dict(weights='', pool='')
  # rules: any, beauty, fashion, yelp. header: '' for that of the rules. empty: omit, none
  c.prompts = dict(rules='any', header='', empty='omit')
  c.lora = dict(rank=32, alpha=64.0)
  # parts: pieces in which a batch goes through the model (gradient caching). loss: infonce,
  # soft_target (as released), decoupled
  c.scft = dict(steps=120, batch=128, parts=1, ratio=0.4, pool='avg', loss='infonce', tau=0.1,
                max_len=256)
  c.scft.optim = dict(lr=2e-3, warmup=20, schedule='linear', decay=0.0, clip=1.0, beta2=0.999,
                      log_every=20, save_every=100)
  # budget: padded tokens of a batch (0: by device). rungs: padded lengths between powers of two.
  # shard: items of a file. file: item vectors from elsewhere (.npy, .pkl), instead of the LLM
  c.export = dict(budget=0, rungs=4, shard=65536, file='')
  c.pca = dict(dim=192)

  c.update(base_config.recommender())
  c.model.kind = backbone
  c.model.count = 'end'
  c.base = dict(c.model, kind='sasrec')
  c.train.update(epochs=80, patience=10, save_every=5, valid_users=0)
  # hidden: inner width of the adapter, 0 for half of pca.dim. spread: size of its first outputs.
  # whiten: components enter with equal spread. alpha, tau: of the alignment. max_align_items:
  # distinct items compared a step
  # ids_from: items with so many training interactions have a row of their own beside it (0: none)
  c.rat = dict(variant=variant, ablations=('no_scft', 'no_align'),
               hidden=512, activation='gelu', spread=0.02, whiten=True, alpha=0.1, tau=0.1,
               align_loss='infonce', align_source='sasrec', align_items='distinct',
               max_align_items=4096, ids_from=5)
  # sampled: also rank among few items. tail_*: fewer interactions, or a shorter input, are tail
  c.eval = dict(mask_history=True, save_top=20, sampled='uniform100', memory=256, tail_item=3,
                tail_user=9, **base_config.rows_beside())
  # what the released code does otherwise; docs/llmemb.md numbers them
  c.reproduce_bugs = dict(early_mask_row=False, future_seen=False, pads_seen=False,
                          lone_attribute_lost=False, views_frozen=False, learned_tau=False,
                          local_negatives=False, crude_values=False, popularity_of_all=False,
                          last_target_only=False, raw_vectors=False, bare_backbones=False,
                          noisy_masks=False)
  return c
