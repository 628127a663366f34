"""Sequential recommenders on Amazon Beauty, the S3-Rec split.

  python -m recjax.main --config=configs/sequential_beauty.py
      # the built-in shop, SASRec with the full softmax: half a minute on two CPU cores
  python -m recjax.main --config=configs/sequential_beauty.py:paper,data=data/amazon-beauty
      # three seeds, length 50, width 64, Adam 1e-3, best epoch by validation NDCG@10
  ...:paper,data=data/amazon-beauty,model=gru4rec        # or bert4rec
  ...:paper,data=data/amazon-beauty,loss=bce             # or gbce, sampled, chunked

Published on the split of S3-Rec (22,363 users, 12,101 items; HR@10 / NDCG@10, full ranking): SASRec
with the full softmax .0897 / .0539, with one negative and BCE .0550 / .0290 (the controlled study
in Haneol99/semantic-id-recsys), with 256 negatives and sampled softmax .0921 / .0531 (eSASRec,
RecSys 2025). Rows of .0605 / .0318 that many papers print are the BCE baseline of S3-Rec.
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
    c.train.update(epochs=200, patience=10)
    if given['loss'] == 'bce':
      c.model.dropout = 0.5
    if given['model'] == 'bert4rec':
      c.train.update(epochs=400, patience=30, mask_share=0.6, max_masked=30)
  return c
