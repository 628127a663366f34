"""Sequential recommenders on MovieLens-1M, the file of the SASRec authors.

  python -m recjax.main --config=configs/sequential_ml1m.py
      # the built-in shop, SASRec with the full softmax: half a minute on two CPU cores
  python -m recjax.main --config=configs/sequential_ml1m.py:paper,data=data/ml-1m
      # three seeds, length 200, width 64; with loss=gbce gSASRec at width 128
  ...:paper,data=data/ml-1m,model=gru4rec        # or bert4rec
  ...:paper,data=data/ml-1m,loss=bce             # or gbce, sampled, chunked
  ...:paper,data=data/ml-1m-times,model=hstu     # prepared from GroupLens' ratings, with times
  ...:paper,data=data/ml-1m,model=hstu --config.model.time=none      # SASRec's file has none
      # HSTU: width 50, 128 negatives, cosines over .05; HSTU-large: --config.model.layers=8
      # --config.model.heads=2

Published (HR@10 / NDCG@10, full ranking): SASRec with the full softmax .3152 / .1821, with BCE
.2500 / .1341, BERT4Rec .2843 / .1537 (Klenitskiy and Vasilev, RecSys 2023); gSASRec .3003 / .1726
(Petrov and Macdonald, RecSys 2023); HSTU .3097 / .1720, HSTU-large .3294 / .1893, beside a SASRec
with their loss .2853 / .1603 (Zhai et al., ICML 2024: another order of tied times, validation items
trained on, the time of the target told).
"""
from recjax.methods.sequential import config


def get_config(arg=''):
  """arg: 'paper', 'data=FOLDER', 'model=NAME', 'loss=NAME', in any order, separated by commas."""
  c = config.make(arg)
  if c.preset == 'paper':
    c.model.update(max_history=200, dropout=0.1)
    c.train.update(batch=128, epochs=100, max_masked=40)
    if c.loss.kind == 'gbce':  # gSASRec
      c.model.update(width=128, hidden=128, dropout=0.5, separate=True)
      c.train.update(epochs=200, patience=30)
    if c.loss.kind == 'bce':
      c.model.dropout = 0.2
    if c.model.kind == 'bert4rec':
      c.train.update(epochs=400, patience=30)
    if c.model.kind == 'hstu':
      c.model.update(width=50, dropout=0.2)
      c.train.update(epochs=101)
  return c
