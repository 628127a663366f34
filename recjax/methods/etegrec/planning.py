"""What a run would cost before it runs."""
from typing import Any

import jax
from ml_collections import ConfigDict

from recjax.data.dataset import Dataset
from recjax.methods.etegrec import train
from recjax.training import cost_model, cpu_cost


def cost(cfg: ConfigDict, dataset: Dataset) -> dict[str, Any]:
  """What a run would take, before it runs: of the recommender's side. cfg, dataset: of the run.
  -> {name: text, or `cpu_cost.Estimate`}"""
  cfg = train.shortened(cfg)
  step, steps, bins = train.trace_step(cfg, dataset)
  model, num_levels = cfg.model, train.num_levels(cfg)
  positions_read = sum(one_bin.history.size for one_bin in bins) * num_levels
  num_targets = sum(int((one_bin.target > 0).sum()) for one_bin in bins)
  # A beam keeps its own codes, a request what it has read, once for every decoder layer.
  cache_bytes = (
    model.decoder_layers
    * 2
    * model.heads
    * model.head_dim
    * jax.numpy.dtype(model.dtype).itemsize
    * (cfg.decode.batch * num_levels * (cfg.decode.beams + model.max_history)))
  return {
    'variant': cfg.variant,
    'codes': f'{num_levels} levels of {cfg.semantic_ids.size}, by {cfg.semantic_ids.kind}',
    **cost_model.traced_lines(
      step, steps, positions_read, cfg.train.epochs, cfg.seeds, jax.device_count(), cache_bytes,
      unit=f'code positions read for {num_targets:,} targets'),
    **cpu_cost.traced_lines(step, steps, cfg.train.epochs, cfg.seeds), **tuning_line(cfg)}


def tuning_line(cfg: ConfigDict) -> dict[str, str]:
  """What is rolled out after the training, nothing without tuning. cfg: the run's config."""
  group = cfg.policy
  if group.loss == 'none':
    return {}
  length = f'{group.steps:,} steps' if group.steps else f'{group.epochs:g} epochs'
  return {'policy tuning': f'{length} of {group.batch} requests, {group.rows} rows each '
                           f'({group.rollout}); not in the times above'}
