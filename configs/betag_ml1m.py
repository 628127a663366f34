"""BETag on MovieLens-1M (Lin et al., WWW 2025): tags that know what people watch.

  python -m recjax.main --config=configs/betag_ml1m.py
      # the built-in shop and a tiny model: minutes on two CPU cores
  python -m recjax.main --config=configs/betag_ml1m.py:data=data/ml-1m
      # the same small model on your data
  python -m recjax.main --config=configs/betag_ml1m.py:paper,data=data/ml-1m \
      --config.llm.weights=/models/Meta-Llama-3-8B-Instruct
      # the authors' settings: LoRA rank 64 on a Llama-3-8B-Instruct, 40 groups, 64 tokens

The paper's tables are not public in a form that we could check; its abstract claims better
retrieval and recommendation than human tags and other automatic tags.
"""
from recjax.methods.betag import config


def get_config(arg=''):
  """arg: 'paper' or 'laptop', and 'data=FOLDER', in any order, separated by commas."""
  return config.make(arg)
