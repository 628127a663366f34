"""TIGER on Amazon Beauty (2014): semantic IDs of item vectors, and a T5 that writes the next one.

  python -m recjax.main --config=configs/tiger_beauty.py
      # the built-in shop, two CPU cores
  python -m recjax.main --config=configs/tiger_beauty.py:paper,data=data/amazon-beauty
  ...:paper,data=data/amazon-beauty,tokenizer=letter    # or rkmeans, rqkmeans, pq, random, lsh, ...
  ...:paper,data=data/amazon-beauty --config.vectors.source=text --config.vectors.encoder=FOLDER
      # the authors' way: vectors of title, price, brand and category by a sentence encoder

Published (Recall@10 / NDCG@10): .0648 / .0384 (Rajput et al., NeurIPS 2023); others measured .0594
/ .0321 and .0559 / .0298. The IDs of the paper come from Sentence-T5 vectors; by default here they
come from a SASRec that is trained first. User tokens of the paper are left out: its own table gives
the same Recall@10 without them, and new users would have none.
"""
from recjax.methods.etegrec import config


def get_config(arg=''):
  """arg: 'paper', 'data=FOLDER', 'tokenizer=KIND', 'fusion=SITE', separated by commas."""
  return config.make_tiger(arg)
