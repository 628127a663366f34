"""The settings that all configs of this method share."""
from ml_collections import ConfigDict

from recjax import base_config
from recjax.models import seqrec
from recjax.training import sequential


def make(arg: str) -> ConfigDict:
  """arg: 'paper', 'data=FOLDER', 'model=NAME', 'loss=NAME', in any order, separated by commas."""
  preset, given = base_config.parse(
      arg, dict(data='sample', model='sasrec',
                loss='sampled' if 'model=hstu' in arg.split(',') else 'ce'),
      dict(model=seqrec.KINDS, loss=sequential.LOSSES))
  c = base_config.start('sequential', preset, given['data'], seeds=1, **base_config.recommender())
  c.split.kind = given['split']
  c.model.kind, c.loss.kind = given['model'], given['loss']
  # unit, temperature: scores are cosines over it. Of HSTU: time, 'bias' where the data have times;
  # slots, its constant n, 0 for max_history + 11
  c.model.update(unit=False, temperature=1.0, time='none', slots=0)
  c.train.update(epochs=16, patience=6, save_every=5, valid_users=0)
  c.optim.update(lr=5e-3, schedule='cosine')
  # sampled: also rank among few items, as old tables do: uniform100, uniform99, pop100, ...
  # memory: MiB that the scores of one block of users may take
  # tie_order: of equal times, or 'shuffle(SEED)'. seen_mask: or 'zero'. test_history: or 'train'
  c.eval = dict(mask_history=True, save_top=20, sampled='', memory=256, tie_order='file',
                seen_mask='inf', test_history='train+valid', drop_cold_targets=False,
                **base_config.rows_beside())
  if given['loss'] == 'sampled':
    c.loss.update(negatives=256, exclude='target')
  if given['loss'] == 'gbce':
    c.loss.update(negatives=256, negative_scope='sequence', exclude='target')
  if given['model'] == 'hstu':
    c.model.update(unit=True, temperature=0.05, time='bias')
    c.loss.update(negatives=128)
    c.train.update(epochs=30)
  if given['model'] == 'gru4rec':
    c.model.update(layers=1, hidden=128, dropout=0.3)
    c.train.update(epochs=40, patience=5)
    c.optim.update(lr=4e-3, schedule='constant')
  if given['model'] == 'bert4rec':
    c.model.update(heads=2, hidden=256)
    c.train.update(epochs=80, patience=12)
    c.optim.update(lr=2e-3, schedule='constant')
  if preset == 'paper':
    c.seeds = 3
    c.optim.update(lr=1e-3, schedule='constant')
    c.train.update(epochs=400 if given['model'] == 'bert4rec' else 200, patience=10)
    if given['model'] == 'bert4rec':
      c.train.patience = 30
  return c
