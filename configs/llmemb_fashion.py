"""LLMEmb on Amazon Fashion (2018): 9,049 users, 4,722 items (Liu et al., AAAI 2025).

  python -m recjax.main --config=configs/llmemb_fashion.py
      # the built-in shop and a tiny model: minutes on two CPU cores
  python -m recjax.main --config=configs/llmemb_fashion.py:paper,data=data/llmemb-fashion \
      --config.llm.weights=/models/llama-7b
      # the authors' settings; backbone=gru4rec or bert4rec for the other recommenders
  ...:paper,data=data/llmemb-fashion,profile=faithful --config.llm.weights=/models/llama-7b
      # with what the released code does otherwise

data: a canonical folder, or the authors' `handled` files. Published on the same data among 100
sampled items with SASRec, HR@10 / NDCG@10 (AlphaFuse, SIGIR 2025, Table 3): SASRec .4956 / .4429,
LLM-ESR .5619 / .4743, AlphaFuse .6008 / .5103; on tail items .0454 / .0235, .1095 / .0520,
.2601 / .1646. LLMEmb's own tables could not be checked.
"""
from recjax.methods.llmemb import config


def get_config(arg=''):
  """arg: 'paper' or 'laptop', 'data=', 'backbone=', 'variant=', 'profile=', separated by commas."""
  return config.make(arg, 'fashion')
