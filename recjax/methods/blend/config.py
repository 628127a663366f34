"""The settings of a blend, made of the flags of `recjax blend` and of its first run's config."""
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from recjax import base_config


def make(parts: Sequence[str], of_run: Mapping[str, Any], mask_history: bool = True) -> ConfigDict:
  """A blend's config.

  parts: runs by their place as seen from the blend's folder, rows as classical:NAME. of_run: the
  config of the first run, which says what the data are and how they are split. mask_history:
  whether items of a history are out of the ranking, as in the runs.
  """
  c = base_config.start('blend', 'blend', of_run['data'], parts=tuple(parts))
  c.seed = of_run.get('seed', c.seed)
  # mode: 'best' of both by validation, 'weights' or 'indicator'. weights: given, so not chosen
  # top: items of a list whose scores make the range, 0 for all. valid_users: at most, 0 for all
  c.mix = dict(mode='best', weights=(), top=0, valid_users=0)
  # tie_order, test_history, drop_cold_targets: those of the runs
  c.eval = dict(mask_history=mask_history, save_top=20, tie_order='file',
                test_history='train+valid', drop_cold_targets=False, **base_config.rows_beside())
  for key in ('tie_order', 'test_history', 'drop_cold_targets'):
    c.eval[key] = of_run.get('eval', {}).get(key, c.eval[key])
  c.split.update(of_run.get('split', {}))  # runs of before knew leave-one-out alone
  return c
