"""What a blend would cost before it runs."""
from ml_collections import ConfigDict

from recjax.data.dataset import Dataset


def cost(cfg: ConfigDict, dataset: Dataset) -> dict[str, str]:
  """What a blend would take, before it runs. cfg: of the run. dataset: the data set. -> {name:
  text}"""
  return {'parts': str(len(cfg.parts)), 'training': 'none: parts are finished runs',
          'histories that each part is asked for': f'{2 * len(dataset.interactions):,} at most'}
