"""ETEGRec on Amazon Video Games (2023): IDs and recommender trained together.

  python -m recjax.main --config=configs/etegrec_game.py
      # the built-in shop with the fusion of interests, two CPU cores
  python -m recjax.main --config=configs/etegrec_game.py:fusion=none     # pooled, prefix
  python -m recjax.main --config=configs/etegrec_game.py:paper,data=data/game

The authors' settings: SASRec vectors of 256 numbers, 3 x 256 codes, T5 of 6 + 6 layers, 400 epochs
in turn, then finetuning, batches of 512. Published (Recall@10 / NDCG@10):
.0947 / .0507; no other run of that code is public.
"""
from recjax.methods.etegrec import config


def get_config(arg=''):
  """arg: 'paper', 'data=FOLDER', 'fusion=SITE', in any order, separated by commas."""
  return config.make_etegrec(arg)
