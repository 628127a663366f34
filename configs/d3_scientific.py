"""D3 on Amazon Scientific (Bao et al., EMNLP 2024): beams of real titles, an assistant mixed in.

  python -m recjax.main --config=configs/d3_scientific.py
      # the built-in shop and a tiny model: minutes on two CPU cores
  python -m recjax.main --config=configs/d3_scientific.py:data=data/minionerec-scientific
      # the same small model on your data, with its own held-out rows where it has them
  python -m recjax.main --config=configs/d3_scientific.py:paper,split=time,data=data/scientific \
      --config.llm.weights=/models/Qwen2-0.5B
      # the authors' settings: all weights tuned, 10 beams, windows separated by time

Published on Industrial & Scientific, full ranking by 10 beams (HR@10 / NDCG@10, MiniOneRec's
table, arXiv 2510.24431): BIGRec .1370 / .0997, D3 .1500 / .1082.
"""
from recjax.methods.bigrec import config


def get_config(arg=''):
  """arg: 'paper' or 'laptop', 'data=FOLDER', 'split=auto', separated by commas."""
  c = config.decode(arg)
  if c.preset == 'sample' and c.data == 'sample':
    c.eval.update(max_valid_users=128, max_test_users=512)
  return c
