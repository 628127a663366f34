"""What a run would cost before it runs."""
from typing import Any

import jax
from ml_collections import ConfigDict

from recjax.data import splits
from recjax.data.dataset import Dataset
from recjax.training import continuation, cost_model, cpu_cost, sequential


def cost(cfg: ConfigDict, dataset: Dataset) -> dict[str, Any]:
  """What a run would take, before it runs.

  cfg: the run's config. dataset: the data set. -> {name: text,
  or `cpu_cost.Estimate`}
  """
  train, cfg = splits.make_split(dataset).train, continuation.shortened(cfg)
  step, steps, targets = sequential.planned(cfg, len(dataset.catalog), train)
  return {
    **cost_model.traced_lines(
      step, steps, targets, cfg.train.epochs, cfg.seeds, jax.device_count(), unit='targets'),
    **cpu_cost.traced_lines(step, steps, cfg.train.epochs, cfg.seeds)}
