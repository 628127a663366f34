"""Optimisers from a config group."""
import optax

from recjax.errors import ConfigError

SCHEDULES = {
    'linear': lambda lr, steps: optax.linear_schedule(lr, 0.0, steps),
    'cosine': lambda lr, steps: optax.cosine_decay_schedule(lr, steps),
    'square': lambda lr, steps: optax.polynomial_schedule(lr, min(lr, 1e-7), 2, steps),
    'constant': lambda lr, steps: optax.constant_schedule(lr),
}


def schedule(cfg, steps):
  """Learning rate by step: linear warm-up from 0, then `cfg.schedule` down to the last step.

  cfg: lr, warmup (steps; cut to half the run where the run is short), schedule.
  """
  if cfg.schedule not in SCHEDULES:
    raise ConfigError(f'optim.schedule is {cfg.schedule!r}; choose one of {sorted(SCHEDULES)}')
  warmup = min(cfg.warmup, steps // 2)
  after = SCHEDULES[cfg.schedule](cfg.lr, max(1, steps - warmup))
  if not warmup:
    return after
  return optax.join_schedules([optax.linear_schedule(0.0, cfg.lr, warmup), after], [warmup])


def make(cfg, steps):
  """AdamW with clipping by global norm. cfg: lr, warmup, schedule, decay, clip, beta2."""
  clip = optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity()
  return optax.chain(
      clip, optax.adamw(schedule(cfg, steps), b2=cfg.beta2, weight_decay=cfg.decay))
