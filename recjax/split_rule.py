"""How a data set is split into training, validation and test, as a config asks for it."""
import dataclasses
from typing import Any

from ml_collections import ConfigDict

from recjax.errors import ConfigError

KINDS = ('leave_one_out', 'global_time')
TARGETS = ('last', 'first', 'random', 'successive', 'all')
# Methods whose training can be repeated up to the cut, for as many epochs as were best before it;
# a blend takes such runs.
REFITTED = ('sequential', 'llmemb', 'blend')
VALIDATIONS = ('time', 'users', 'last_train')


@dataclasses.dataclass(frozen=True)
class SplitRule:
  """Leave-one-out, or one moment for everybody; it travels with the data set.

  kind: of KINDS. All that follows belongs to 'global_time'. at: training ends there; a share of all
  interactions, such as '0.9', or a date of the data ('2014-05-13', the end of that day). target:
  which later items of a user are asked for, of TARGETS. validation: what epochs and settings are
  chosen by, of VALIDATIONS; `splits.global_time` says what they are. refit: train again to the cut
  for the chosen epochs. seed: of what is drawn, not that of a run: all runs ask the same.
  """
  kind: str = 'leave_one_out'
  at: str = '0.9'
  target: str = 'last'
  validation: str = 'time'
  refit: bool = True
  seed: int = 0

  @property
  def default(self) -> bool:
    """Whether it is leave-one-out."""
    return self.kind == 'leave_one_out'


LEAVE_ONE_OUT = SplitRule()


def settings(method: str) -> dict[str, Any]:
  """The group `split` of a config by default, and what runs did that are older than it. method: of
  the config."""
  return {name: getattr(LEAVE_ONE_OUT, name) for name in ('kind', 'at', 'target', 'validation')
          } | {'refit': method in REFITTED}


def for_config(cfg: ConfigDict) -> SplitRule:
  """The rule of a run. cfg: its config. Raises ConfigError for what is not known."""
  group = cfg.split
  if group.kind == 'leave_one_out':
    if idle := [name for name in ('at', 'target', 'validation')
                if group[name] != getattr(LEAVE_ONE_OUT, name)]:
      raise ConfigError(f'split.{idle[0]}={group[idle[0]]!r} says nothing under leave-one-out; add '
                        "split=global_time to the config's argument, or leave it out")
    return LEAVE_ONE_OUT
  for name, known in (('kind', KINDS), ('target', TARGETS), ('validation', VALIDATIONS)):
    if group[name] not in known:
      raise ConfigError(f'split.{name}={group[name]!r}; choose one of {", ".join(known)}')
  if group.refit and cfg.method not in REFITTED:
    raise ConfigError(f'split.refit=True is for {" and ".join(REFITTED)}; {cfg.method} is trained '
                      "once, up to where validation begins. Set it to False, or with "
                      "split.validation='users' validation takes no time away")
  return SplitRule(group.kind, str(group.at), group.target, group.validation, bool(group.refit))
