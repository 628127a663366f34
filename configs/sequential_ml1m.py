"""Sequential recommenders on MovieLens-1M, the file of the SASRec authors.

  python -m recjax.main --config=configs/sequential_ml1m.py
      # the built-in shop, SASRec with the full softmax: half a minute on two CPU cores
  python -m recjax.main --config=configs/sequential_ml1m.py:paper,data=data/ml-1m
      # three seeds, length 200, width 64; with loss=gbce gSASRec at width 128
  ...:paper,data=data/ml-1m,model=gru4rec        # or bert4rec
  ...:paper,data=data/ml-1m,loss=bce             # or gbce, sampled, chunked

Published (HR@10 / NDCG@10, full ranking): SASRec with the full softmax .3152 / .1821, with BCE
.2500 / .1341, BERT4Rec .2843 / .1537 (Klenitskiy and Vasilev, RecSys 2023); gSASRec .3003 / .1726
(Petrov and Macdonald, RecSys 2023).
"""
from ml_collections import ConfigDict

MODELS = ('sasrec', 'gru4rec', 'bert4rec')
LOSSES = ('ce', 'chunked', 'bce', 'gbce', 'sampled')


def get_config(arg=''):
  """arg: 'paper', 'data=FOLDER', 'model=NAME', 'loss=NAME', in any order, parted by commas."""
  given = dict(model='sasrec', loss='ce', data='sample')
  preset = 'sample'
  for part in [p for p in arg.split(',') if p]:
    key, equals, value = part.partition('=')
    if part == 'paper':
      preset = 'paper'
    elif equals and key in given:
      given[key] = value
    else:
      raise ValueError(f'unknown config argument {part!r}; known: paper, data=FOLDER, model=NAME, '
                       'loss=NAME')
  for key, known in (('model', MODELS), ('loss', LOSSES)):
    if given[key] not in known:
      raise ValueError(f'{key}={given[key]!r} is unknown; choose one of {", ".join(known)}')
  c = ConfigDict(dict(method='sequential', preset=preset, data=given['data'], seed=0, seeds=1))
  c.mesh = dict(data=-1, fsdp=1, model=1)
  # max_history: items of a history that are read. hidden: inner width, or the GRU's state
  c.model = dict(kind=given['model'], max_history=50, width=64, layers=2, heads=1, hidden=64,
                 dropout=0.2, norm='pre', separate=False)
  # negatives are shared by a 'position', a 'sequence' or the whole 'batch'; gbce_t: of gBCE
  c.loss = dict(kind=given['loss'], negatives=1, negative_scope='position', exclude='train_history',
                gbce_t=0.75, log_q=False, chunk=4096)
  # patience: epochs without a better validation NDCG@10. mask_*: of BERT4Rec
  c.train = dict(batch=256, epochs=16, patience=6, save_every=5, valid_users=0, mask_share=0.2,
                 max_masked=50, mask_last=0.5)
  c.optim = dict(lr=5e-3, warmup=0, schedule='cosine', decay=0.0, clip=0.0, beta2=0.98)
  # sampled: also rank among few items, as old tables do: uniform100, uniform99, pop100, ...
  # memory: MiB that the scores of one block of users may take
  # tie_order: of equal times, or 'shuffle(SEED)'. seen_mask: or 'zero'. test_history: or 'train'
  c.eval = dict(mask_history=True, save_top=20, sampled='', memory=256, tie_order='file',
                seen_mask='inf', test_history='train+valid', drop_cold_targets=False)
  if given['loss'] == 'sampled':
    c.loss.update(negatives=256, exclude='target')
  if given['loss'] == 'gbce':
    c.loss.update(negatives=256, negative_scope='sequence', exclude='target')
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
    c.model.update(max_history=200, dropout=0.1)
    c.train.update(batch=128, epochs=100, patience=10, max_masked=40)
    if given['loss'] == 'gbce':  # gSASRec
      c.model.update(width=128, hidden=128, dropout=0.5, separate=True)
      c.train.update(epochs=200, patience=30)
    if given['loss'] == 'bce':
      c.model.dropout = 0.2
    if given['model'] == 'bert4rec':
      c.train.update(epochs=400, patience=30)
  return c
