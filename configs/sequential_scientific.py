"""Sequential recommenders on Amazon Scientific.

  python -m recjax.main --config=configs/sequential_scientific.py
      # the built-in shop, SASRec with the full softmax: half a minute on two CPU cores
  python -m recjax.main --config=configs/sequential_scientific.py:paper,data=data/amazon-scientific
      # the settings of Amazon Beauty
  ...:paper,data=data/amazon-scientific,model=gru4rec        # or bert4rec
  ...:paper,data=data/amazon-scientific,loss=bce             # or gbce, sampled, chunked

There is no agreed published row for this data set under full ranking.
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
