"""Runs one experiment: `python -m recjax.main --config=configs/betag_scientific.py`.

`recjax run betag_scientific` is the same.
"""
import pathlib
import shlex
import sys
from collections.abc import Sequence

from absl import app, flags, logging

from recjax import errors, experiment, progress, settings

CONFIG = flags.DEFINE_string(
    'config', None, 'The experiment, e.g. configs/betag_scientific.py, with its argument after a '
    'colon: configs/betag_scientific.py:paper,data=data/mine. Any of its settings is a flag, too: '
    '--config.optim.lr=1e-3.')
WORKDIR = flags.DEFINE_string(
    'workdir', None, "The run's folder; default: checkpoints/ and the config's name.")
FROM = flags.DEFINE_string(
    'from', '', "The finished run of the same method whose weights training goes on from, as of "
    'yesterday, where the data were made of its data by `recjax prepare --update`: '
    '--config.start.run.')
MULTIHOST = flags.DEFINE_bool(
    'multihost', False, 'One of several processes that run this together; started on every host.')
COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT of process 0. Left out with the next two on TPU pods, SLURM '
    'and Kubernetes, where JAX finds all three, and where JAX_COORDINATOR_ADDRESS, '
    'JAX_NUM_PROCESSES and JAX_PROCESS_ID are set.')
PROCESSES = flags.DEFINE_integer('processes', None, 'How many processes run together.',
                                 lower_bound=1)
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this one is, from 0.',
                                  lower_bound=0)
PART = flags.DEFINE_string(
    'part', '', 'I/N: one of N commands, alike but for I, that share the shards of a stage (BETag: '
    'generate, LLMEmb: export), on hosts that see the same --workdir.')
ON_NAN = flags.DEFINE_string(
    'on_nan', 'stop', "At a step whose loss is no number: 'stop', or 'skip' its batch.")
WATCHDOG = flags.DEFINE_float(
    'watchdog', 0.0, 'End the process (code 75) after so many seconds without a step; 0: never.')
MEMORY = flags.DEFINE_float(
    'memory', 0.0, 'GiB of a device that a step of LLM training may take; one that is planned to '
    'take more goes through in parts. 0: what the device says.')
# What `recjax run` takes besides the config, in the order of its help.
RUN_FLAGS = (WORKDIR, FROM, ON_NAN, WATCHDOG, MEMORY, PART, MULTIHOST, COORDINATOR, PROCESSES,
             PROCESS_ID)


def main(argv: list[str], command: str = '') -> None:
  """Runs the experiment; what went wrong becomes a sentence and an exit code.

  argv: as `parse` gives it. command: what the user typed, by default python -m recjax.main.
  """
  logging.set_verbosity(logging.WARNING)  # jax tells of every backend that it does not find
  with progress.printing('starting'):
    errors.guard(lambda: run(argv[1:], command))


def run(words: Sequence[str], command: str = '') -> None:
  """The experiment that the flags name, from its first unfinished stage to its report.

  words: the settings of the command line, as `settings.split_command_line` gives them. command:
  what the run's report says to run again, by default python -m recjax.main with its flags.
  """
  if not CONFIG.value:
    raise errors.ConfigError('--config is missing; e.g. --config=configs/betag_scientific.py')
  cfg = experiment.read_config(CONFIG.value)
  changed = settings.change(cfg, [*words, *([f'start.run={FROM.value}'] if FROM.value else [])])
  cfg.lock()
  path = pathlib.Path(CONFIG.value.partition(':')[0])
  file = experiment.find_config(str(path))
  if file != path and file.parent == experiment.CONFIGS:
    print(f'{path} is not in this folder; the config that came with recjax runs: {file}',
          flush=True)
  workdir = WORKDIR.value or f'checkpoints/{path.stem}'
  misplaced = [f'--{flag.name}' for flag in (COORDINATOR, PROCESSES, PROCESS_ID)
               if flag.value is not None and not MULTIHOST.value]
  if misplaced:
    raise errors.ConfigError(f'{", ".join(misplaced)} is of --multihost; add it, or leave that out')
  # After the flags: a wrong flag should answer at once.
  from recjax.training import fault_tolerance, job_parts
  guards = fault_tolerance.Guards(ON_NAN.value, WATCHDOG.value, memory=MEMORY.value)
  part = job_parts.parse(PART.value)
  if part and MULTIHOST.value:
    raise errors.ConfigError('--part is for processes that know nothing of each other; leave it or '
                             '--multihost out')
  if MULTIHOST.value:
    join()
  fault_tolerance.listen()
  command = command or f'python -m recjax.main {shlex.join(sys.argv[1:])}'
  experiment.run(cfg, workdir, experiment.facts(command, changed), guards, part)


def join() -> None:
  """Meets the other processes. Raises ConfigError where they are not found."""
  import jax
  try:
    jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS_ID.value)
  except (ValueError, RuntimeError) as error:
    raise errors.ConfigError(
        f'--multihost: {str(error).splitlines()[0]}; on a TPU pod, under SLURM or Kubernetes leave '
        'the other flags out, elsewhere give all of --coordinator=HOST:PORT --processes=N '
        '--process_id=I, or use launch/local.py on one machine') from error


def parse(argv: list[str]) -> list[str]:
  """Flags from the command line, but for settings; a wrong one is said in a sentence, exit code 2.

  argv: of the process. -> the program's name and the settings, ['optim.lr=1e-3', ...], for `main`
  """
  words, rest = settings.split_command_line(argv[1:])
  try:
    left = flags.FLAGS([argv[0], *rest])[1:]
    text = left and (f'{" ".join(left)}: flags alone are read, and --config names the experiment, '
                     'e.g. --config=configs/betag_scientific.py')
  except flags.Error as error:
    text = str(error).strip()
  if text:
    print('error:', text, file=sys.stderr)
    sys.exit(2)
  return [argv[0], *words]


if __name__ == '__main__':
  app.run(main, flags_parser=parse)
