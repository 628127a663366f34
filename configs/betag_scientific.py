"""BETag on Amazon Scientific (Lin et al., WWW 2025): tags that know what people do.

  python -m recjax.main --config=configs/betag_scientific.py
      # the built-in shop and a tiny model: minutes on two CPU cores
  python -m recjax.main --config=configs/betag_scientific.py:data=data/amazon-scientific
      # the same small model on your data
  python -m recjax.main --config=configs/betag_scientific.py:paper,data=data/amazon-scientific \
      --config.llm.weights=/models/Meta-Llama-3-8B-Instruct
      # the authors' settings: LoRA rank 64 on a Llama-3-8B-Instruct, 40 groups, 64 tokens

The paper's tables are not public in a form that we could check; its abstract claims better
retrieval and recommendation than human tags and other automatic tags.
"""
from recjax.methods.betag import config


def get_config(arg=''):
  """arg: 'paper' or 'laptop', and 'data=FOLDER', in any order, separated by commas."""
  return config.make(arg)
