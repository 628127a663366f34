"""D3 on Amazon Games (Bao et al., EMNLP 2024): beams of real titles, an assistant mixed in.

  python -m recjax.main --config=configs/d3_games.py
      # the built-in shop and a tiny model: minutes on two CPU cores
  python -m recjax.main --config=configs/d3_games.py:data=data/amazon-games
      # the same small model on your data
  python -m recjax.main --config=configs/d3_games.py:paper,split=time,data=data/games \
      --config.llm.weights=/models/Qwen2-0.5B
      # the authors' settings: all weights tuned, 10 beams, windows separated by time

Published on Video Games with Qwen2-0.5B (the authors' README, decoding not stated): NDCG@10 .052,
HR@10 .085.
"""
from recjax.methods.bigrec import config


def get_config(arg=''):
  """arg: 'paper' or 'laptop', 'data=FOLDER', 'split=auto', separated by commas."""
  return config.decode(arg)
