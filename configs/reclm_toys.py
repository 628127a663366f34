"""RecLM on Amazon Toys and Games: a chat model whose recommended items always exist.

  python -m recjax.main --config=configs/reclm_toys.py
      # the built-in shop, a small model really trained on it, two CPU cores
  python -m recjax.main --config=configs/reclm_toys.py:grounding=ret       # or token
  python -m recjax.main --config=configs/reclm_toys.py:paper,data=data/amazon-toys \\
      --config.llm.weights=/models/Meta-Llama-3-8B-Instruct

The authors' settings: LoRA 16 on all linear layers, 20 epochs, 64 samples a step, 1e-4. None of
their lists holds an item that is not sold (arXiv 2505.03336); no full table is public. Their set:
users with 17 interactions or more, cut to the first 17, 10,000 drawn: `recjax prepare` makes it.
"""
from recjax.methods.reclm import config


def get_config(arg=''):
  """arg: 'paper' or 'laptop', 'data=FOLDER', 'grounding=NAME', in any order, by commas."""
  return config.make(arg)
