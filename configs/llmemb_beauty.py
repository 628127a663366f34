"""LLMEmb on Amazon Beauty (2014, one-pass 5-core): 57,289 items (Liu et al., AAAI 2025).

  python -m recjax.main --config=configs/llmemb_beauty.py
      # the built-in shop and a tiny model: minutes on two CPU cores
  python -m recjax.main --config=configs/llmemb_beauty.py:paper,data=data/llmemb-beauty \
      --config.llm.weights=/models/llama-7b
      # the authors' settings; backbone=gru4rec or bert4rec for the other recommenders
  ...:paper,data=data/llmemb-beauty,profile=faithful --config.llm.weights=/models/llama-7b
      # with what the released code does otherwise

data: a canonical folder, or the authors' `handled` files. Published on the same data among 100
sampled items with SASRec, HR@10 / NDCG@10 (AlphaFuse, SIGIR 2025, Table 3): SASRec .4388 / .3030,
LLM-ESR .5672 / .3713, AlphaFuse .5793 / .4046; on tail items .0870 / .0649, .2257 / .1108,
.1625 / .1006. LLMEmb's own tables could not be checked.
"""
from recjax.methods.llmemb import config


def get_config(arg=''):
  """arg: 'paper' or 'laptop', 'data=', 'backbone=', 'variant=', 'profile=', separated by commas."""
  return config.make(arg, 'beauty')
