"""BIGRec on MovieLens (Bao et al., ACM TORS 2025): a title is written, then grounded.

  python -m recjax.main --config=configs/bigrec_movies.py
      # the built-in shop and a tiny model: minutes on two CPU cores
  python -m recjax.main --config=configs/bigrec_movies.py:data=data/ml-100k,split=time
      # the same small model on MovieLens-100K, windows of ten separated by time as published
  python -m recjax.main --config=configs/bigrec_movies.py:paper,split=time,data=data/ml-10m \
      --config.llm.weights=/models/llama-7b
      # the authors' settings: LoRA rank 8 on 1,024 samples, 4 beams of up to 128 tokens

Published on MovieLens-10M, full ranking (DLLM2Rec, RecSys 2024, its teacher run): HR@20 .0541,
NDCG@20 .0370.
"""
from recjax.methods.bigrec import config


def get_config(arg=''):
  """arg: 'paper' or 'laptop', 'data=FOLDER', 'split=auto', separated by commas."""
  c = config.ground(arg)
  if c.preset == 'paper':
    c.prompt.noun, c.samples.window = 'movies', 'movie'
  return c
