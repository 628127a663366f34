"""What a run would cost before it runs."""
import jax
from ml_collections import ConfigDict

from recjax.data import splits
from recjax.data.dataset import Dataset
from recjax.training import cost_model, sequential


def cost(cfg: ConfigDict, dataset: Dataset) -> dict[str, str]:
  """What a run would take, before it runs.

  cfg: the run's config. dataset: the data set. -> {name: text}
  """
  train = splits.make_split(dataset).train
  step, steps, targets = sequential.planned(cfg, len(dataset.catalog), train)
  return cost_model.traced_lines(
    step, steps, targets, cfg.train.epochs, cfg.seeds, jax.device_count(), unit='targets'
  )
