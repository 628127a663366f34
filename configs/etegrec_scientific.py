"""ETEGRec on Amazon Industrial and Scientific (2023): IDs and recommender trained together.

  python -m recjax.main --config=configs/etegrec_scientific.py
      # the built-in shop with the fusion of interests, two CPU cores
  python -m recjax.main --config=configs/etegrec_scientific.py:fusion=none     # pooled, prefix
  python -m recjax.main --config=configs/etegrec_scientific.py:paper,data=data/scientific

The authors' settings: SASRec vectors of 256 numbers, 3 x 256 codes, T5 of 6 + 6 layers, 400 epochs
in turn, then finetuning, batches of 512. Published (Recall@10 / NDCG@10): .0455 / .0241; others who
ran that code measured .0436 / .0231.
"""
from recjax.methods.etegrec import config


def get_config(arg=''):
  """arg: 'paper', 'data=FOLDER', 'fusion=SITE', in any order, separated by commas."""
  return config.make_etegrec(arg)
