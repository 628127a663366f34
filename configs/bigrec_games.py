"""BIGRec on Amazon Games (Bao et al., ACM TORS 2025): a title is written, then grounded.

  python -m recjax.main --config=configs/bigrec_games.py
      # the built-in shop and a tiny model: minutes on two CPU cores
  python -m recjax.main --config=configs/bigrec_games.py:data=data/amazon-games
      # the same small model on your data, or on a folder of the authors' own files
  python -m recjax.main --config=configs/bigrec_games.py:paper,split=time,data=data/games \
      --config.llm.weights=/models/llama-7b
      # the authors' settings: LoRA rank 8 on 1,024 samples, 4 beams of up to 128 tokens

Published on Video Games, full ranking (secondary sources): NDCG@5 .0189, HR@10 .0329, HR@20 .0457
(the CoVE paper's table); HR@20 .0532, NDCG@20 .0341 (the DLLM2Rec paper's).
"""
from recjax.methods.bigrec import config


def get_config(arg=''):
  """arg: 'paper' or 'laptop', 'data=FOLDER', 'split=auto', separated by commas."""
  c = config.ground(arg)
  if c.preset == 'paper':
    c.prompt.noun = 'games'
  return c
