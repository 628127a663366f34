"""Sequential recommenders on Amazon Books, HSTU's largest public set.

  python -m recjax.main --config=configs/sequential_books.py
      # the built-in shop, HSTU with sampled softmax: a minute on two CPU cores
  python -m recjax.main --config=configs/sequential_books.py:paper,data=data/amazon-books
      # HSTU as published: 4 layers, 4 heads, width 64, 512 negatives, 201 epochs; an accelerator
  ...:paper,data=data/amazon-books --config.model.layers=16 --config.model.heads=8     # HSTU-large
  ...:paper,data=data/amazon-books,model=sasrec,loss=sampled     # SASRec with the same loss

Published (HR@10 / NDCG@10, full ranking): SASRec with the same loss .0306 / .0164, HSTU .0416 /
.0227, HSTU-large .0478 / .0262 (Zhai et al., ICML 2024). `recjax prepare` makes the data out of the
file of Books ratings (2014) with their times.
"""
from recjax.methods.sequential import config


def get_config(arg=''):
  """arg: 'paper', 'data=FOLDER', 'model=NAME', 'loss=NAME', in any order, separated by commas."""
  c = config.make(arg if 'model=' in arg else f'{arg},model=hstu')
  if c.preset == 'paper':
    c.seeds = 1
    c.model.update(layers=4, heads=4, dropout=0.5)
    c.train.update(batch=128, epochs=201)
    if c.loss.kind == 'sampled':
      c.model.update(unit=True, temperature=0.05)
      c.loss.negatives = 512
  return c
