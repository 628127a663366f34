"""RecLM on Amazon Scientific: a chat model whose recommended items always exist.

  python -m recjax.main --config=configs/reclm_scientific.py
      # the built-in shop, a small model really trained on it, two CPU cores
  python -m recjax.main --config=configs/reclm_scientific.py:grounding=ret       # or token
  python -m recjax.main --config=configs/reclm_scientific.py:paper,data=data/amazon-scientific \\
      --config.llm.weights=/models/Meta-Llama-3-8B-Instruct

The authors' settings: LoRA 16 on all linear layers, 20 epochs, 64 samples a step, 1e-4. They train
on Steam, Movies and Toys; no figure for this data set is published. Out-of-catalog rate 0 with
every grounding (arXiv 2505.03336).
"""
from recjax.methods.reclm import config


def get_config(arg=''):
  """arg: 'paper' or 'laptop', 'data=FOLDER', 'grounding=NAME', in any order, by commas."""
  return config.make(arg)
