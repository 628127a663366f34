"""Optimizers from a config group."""
import jax
import optax
from jaxtyping import PyTree
from ml_collections import ConfigDict
from optax import contrib

from recjax.errors import ConfigError

SCHEDULES = {
    'linear': lambda lr, steps: optax.linear_schedule(lr, 0.0, steps),
    'cosine': lambda lr, steps: optax.cosine_decay_schedule(lr, steps),
    'square': lambda lr, steps: optax.polynomial_schedule(lr, min(lr, 1e-7), 2, steps),
    'constant': lambda lr, steps: optax.constant_schedule(lr),
}


def schedule(cfg: ConfigDict, steps: int) -> optax.Schedule:
  """Learning rate by step: linear warm-up from 0, then `cfg.schedule` down to the last step.

  cfg: lr, warmup (steps; cut to half the run where the run is short), schedule. steps: of the run.
  Raises ConfigError for an unknown schedule.
  """
  if cfg.schedule not in SCHEDULES:
    raise ConfigError(f'optim.schedule is {cfg.schedule!r}; choose one of {sorted(SCHEDULES)}')
  warmup = min(cfg.warmup, steps // 2)
  after = SCHEDULES[cfg.schedule](cfg.lr, max(1, steps - warmup))
  if not warmup:
    return after
  return optax.join_schedules([optax.linear_schedule(0.0, cfg.lr, warmup), after], [warmup])


def make(cfg: ConfigDict, steps: int) -> optax.GradientTransformation:
  """AdamW with clipping by global norm. cfg: lr, warmup, schedule, decay, clip, beta2.

  steps: of the training, for the schedule.

  A group that has `muon` too, above 0, gives with it the peak rate of Muon (Jordan 2024, arXiv
  2502.16982) for the matrices of stacked layers (layers, in, out), on the same schedule; AdamW with
  Nesterov's step has the rest.
  """
  clip = optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity()
  rate = schedule(cfg, steps)
  if not hasattr(cfg, 'muon') or not cfg.muon:
    return optax.chain(clip, optax.adamw(rate, b2=cfg.beta2, weight_decay=cfg.decay))
  return optax.chain(clip, contrib.muon(
      lambda step: rate(step) * (cfg.muon / cfg.lr), weight_decay=cfg.decay,
      adam_learning_rate=rate, adam_b2=cfg.beta2, adam_weight_decay=cfg.decay,
      muon_weight_dimension_numbers=stacked))


def stacked(params: PyTree) -> PyTree:
  """Which leaves are matrices, one a layer: a tree of optax's MuonDimensionNumbers or None. params:
  what is trained."""
  return jax.tree.map(
      lambda x: contrib.MuonDimensionNumbers(1, 2) if x.ndim == 3 else None, params)
