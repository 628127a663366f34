"""LLMEmb on Yelp (RecSys challenge 2013): 11,383 items (Liu et al., AAAI 2025).

  python -m recjax.main --config=configs/llmemb_yelp.py
      # the built-in shop and a tiny model: minutes on two CPU cores
  python -m recjax.main --config=configs/llmemb_yelp.py:paper,data=data/llmemb-yelp \
      --config.llm.weights=/models/llama-7b
      # the authors' settings; backbone=gru4rec or bert4rec for the other recommenders
  ...:paper,data=data/llmemb-yelp,profile=faithful --config.llm.weights=/models/llama-7b
      # with what the released code does otherwise

data: a canonical folder, or the authors' `handled` files. Published on the same data among 100
sampled items with SASRec, HR@10 / NDCG@10 (AlphaFuse, SIGIR 2025, Table 3): SASRec .5940 / .3597,
LLM-ESR .6673 / .4208, AlphaFuse .6631 / .4219; on tail items .1142 / .0495, .1893 / .0845,
.1815 / .0775. LLMEmb's own tables could not be checked.
"""
from recjax.methods.llmemb import config


def get_config(arg=''):
  """arg: 'paper' or 'laptop', 'data=', 'backbone=', 'variant=', 'profile=', separated by commas."""
  return config.make(arg, 'yelp')
