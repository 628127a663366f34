"""Tuning of generative recommenders on lists that they roll out: rewards, roll-outs, the loss."""
