"""BIGRec tuned on several domains at once (Bao et al., ACM TORS 2025), tested on the first.

  python -m recjax.main --config=configs/bigrec_multidomain.py
      # the built-in shop and a second one: minutes on two CPU cores
  python -m recjax.main --config=configs/bigrec_multidomain.py:data=data/games,other=data/ml-100k
      # the same small model on your own two data sets
  python -m recjax.main --config=configs/bigrec_multidomain.py:paper,data=data/games,other=data/ml \
      --config.llm.weights=/models/llama-7b
      # the authors' settings: 1,024 samples of each domain

The paper claims in its abstract that what is learned carries over between domains; its table was
not at hand.
"""
from recjax.methods.bigrec import config


def get_config(arg=''):
  """arg: 'paper' or 'laptop', 'data=FOLDER', 'other=FOLDER', 'split=auto', separated by commas."""
  c = config.ground(arg, dict(other='sample:1'))
  if c.preset == 'sample':
    c.train.sample = 2500
  return c
