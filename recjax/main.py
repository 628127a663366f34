"""Runs one experiment: `python -m recjax.main --config=configs/betag_scientific.py`."""
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from recjax import errors, experiment

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'The experiment, e.g. configs/betag_scientific.py, with its argument after a '
    'colon: configs/betag_scientific.py:paper,data=data/mine. Any of its settings is a flag, too: '
    '--config.optim.lr=1e-3.', lock_config=True)
WORKDIR = flags.DEFINE_string(
    'workdir', None, "The run's folder; default: checkpoints/ and the config's name.")
MULTIHOST = flags.DEFINE_bool(
    'multihost', False, 'One of several processes that run this together; started on every host.')
COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT of process 0. Left out with the next two on TPU pods, SLURM '
    'and Kubernetes, where JAX finds all three, and where JAX_COORDINATOR_ADDRESS, '
    'JAX_NUM_PROCESSES and JAX_PROCESS_ID are set.')
PROCESSES = flags.DEFINE_integer('processes', None, 'How many processes run together.')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this one is, from 0.')
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


def main(_):
  """Runs the experiment; what went wrong becomes a sentence and an exit code."""
  logging.set_verbosity(logging.WARNING)  # jax tells of every backend that it does not find
  errors.guard(run)


def run():
  """The experiment that the flags name, from its first unfinished stage to its report."""
  cfg = read_config()
  name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS['config']))
  path = name.as_posix().partition(':')[0]
  workdir = WORKDIR.value or f'checkpoints/{pathlib.Path(path).stem}'
  import jax  # after the flags: a wrong flag should answer at once

  from recjax.training import guards, parts
  guarded = guards.Guards(ON_NAN.value, WATCHDOG.value, memory=MEMORY.value)
  part = parts.parse(PART.value)
  if part and MULTIHOST.value:
    raise errors.ConfigError('--part is for processes that know nothing of each other; leave it or '
                             '--multihost out')
  if MULTIHOST.value:
    join(jax)
  overrides = dict(config_flags.get_override_values(flags.FLAGS['config']))
  guards.listen()
  experiment.run(cfg, workdir, experiment.facts(
      ' '.join(['python -m recjax.main', *sys.argv[1:]]), overrides), guarded, part)


def join(jax):
  """Meets the other processes. Raises ConfigError where they are not found."""
  try:
    jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS_ID.value)
  except (ValueError, RuntimeError) as error:
    raise errors.ConfigError(
        f'--multihost: {str(error).splitlines()[0]}; on a TPU pod, under SLURM or Kubernetes leave '
        'the other flags out, elsewhere give all of --coordinator=HOST:PORT --processes=N '
        '--process_id=I, or use launch/local.py on one machine') from error


def read_config():
  """The config of the flags. Raises ConfigError where there is none, or no such file."""
  try:  # a file that is missing or broken is found out only when the config is read
    found = CONFIG.value
    if found is not None and not isinstance(found, ConfigDict):
      raise TypeError(type(found))  # or a stand-in for a file that cannot be read
  except Exception as error:
    name = config_flags.get_config_filename(flags.FLAGS['config'])
    if not pathlib.Path(name.partition(':')[0]).is_file():
      raise errors.ConfigError(f'{name} is not a config file; see configs/ for those there are, '
                               'e.g. --config=configs/betag_scientific.py') from error
    experiment.read_config(name)  # says what is wrong with it
    raise
  if found is None:
    raise errors.ConfigError('--config is missing; e.g. --config=configs/betag_scientific.py')
  return found


def parse(argv):
  """Flags from the command line; a wrong one is said in a sentence, with exit code 2."""
  try:
    return flags.FLAGS(argv)
  except (Exception, SystemExit) as error:  # of a config file, which may do anything
    known = isinstance(error, (flags.Error, ValueError, TypeError, AttributeError, KeyError,
                               OSError))
    said = explained(argv)
    if not said and not known:
      raise
    text = str(error.args[0] if error.args else error).strip()
    # Of an error inside a config file absl gives the whole traceback.
    text = said or (text.split('\n')[-1] if 'Traceback' in text else text)
    print('error:', text, file=sys.stderr)
    sys.exit(2)


def explained(argv):
  """What is wrong with the config or a setting of it, where absl names the bare key. -> str"""
  given = dict(word.removeprefix('--').partition('=')[::2] for word in argv[1:])
  try:
    cfg = experiment.read_config(given.get('config', ''))
    experiment.changed(cfg, [f'{name.removeprefix("config.")}={value}' for name, value
                             in given.items() if name.startswith('config.')])
  except errors.ConfigError as error:
    return str(error) if 'config' in given else ''
  except Exception:  # the config file itself is broken: absl tells where
    return ''
  return ''


if __name__ == '__main__':
  app.run(main, flags_parser=parse)
