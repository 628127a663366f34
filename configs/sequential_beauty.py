"""Sequential recommenders on Amazon Beauty, the S3-Rec split.

  python -m recjax.main --config=configs/sequential_beauty.py
      # the built-in shop, SASRec with the full softmax: half a minute on two CPU cores
  python -m recjax.main --config=configs/sequential_beauty.py:paper,data=data/amazon-beauty
      # three seeds, length 50, width 64, Adam 1e-3, best epoch by validation NDCG@10
  ...:paper,data=data/amazon-beauty,model=gru4rec        # or bert4rec
  ...:paper,data=data/amazon-beauty,model=hstu --config.model.time=none
  ...:paper,data=data/amazon-beauty,loss=bce             # or gbce, sampled, chunked

Published on the split of S3-Rec (22,363 users, 12,101 items; HR@10 / NDCG@10, full ranking): SASRec
with the full softmax .0897 / .0539, with one negative and BCE .0550 / .0290 (the controlled study
in Haneol99/semantic-id-recsys), with 256 negatives and sampled softmax .0921 / .0531 (eSASRec,
RecSys 2025). Rows of .0605 / .0318 that many papers print are the BCE baseline of S3-Rec.
"""
from recjax.methods.sequential import config


def get_config(arg=''):
  """arg: 'paper', 'data=FOLDER', 'model=NAME', 'loss=NAME', in any order, separated by commas."""
  c = config.make(arg)
  if c.preset == 'paper':
    if c.loss.kind == 'bce':
      c.model.dropout = 0.5
    if c.model.kind == 'bert4rec':
      c.train.update(mask_share=0.6, max_masked=30)
  return c
