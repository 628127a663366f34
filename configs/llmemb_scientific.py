"""LLMEmb on Amazon Scientific: an LLM as the generator of item embeddings (Liu et al., AAAI 2025).

  python -m recjax.main --config=configs/llmemb_scientific.py
      # a young shop of 1,200 users, built in, and a tiny model: minutes on two CPU cores
  python -m recjax.main --config=configs/llmemb_scientific.py:data=data/amazon-scientific
      # the same small model on your data
  ...:data=data/amazon-scientific,variant=text --config.text.weights=/models/all-MiniLM-L6-v2
      # plain text embeddings of a sentence encoder
  ...:paper,data=data/amazon-scientific --config.llm.weights=/models/llama-7b
      # the authors' settings of Beauty; backbone=gru4rec or bert4rec for the other recommenders
  ...:paper,data=data/amazon-scientific,profile=faithful
      # with what the released code does otherwise

Variants: full, no_scft, no_adapter, no_freeze, no_align, pool_last, pca, text. The paper's tables
are not public in a form that we could check; it claims gains over LLM-based baselines for three
recommenders on three data sets, larger on tail items.
"""
from recjax.methods.llmemb import config


def get_config(arg=''):
  """arg: 'paper' or 'laptop', 'data=', 'backbone=', 'variant=', 'profile=', separated by commas."""
  return config.make(arg, 'scientific')
