"""What a blend has for other programs: nothing of its own."""
import os

from recjax.errors import ConfigError


def convert(workdir: str | os.PathLike, kind: str, out: str | os.PathLike) -> None:
  """Raises ConfigError: a blend has no weights of its own. workdir: of the run. kind, out: as
  `recjax convert` takes them."""
  raise ConfigError(f'--to={kind} --out={out}: {workdir} is a blend and trained nothing; convert '
                    'its parts')
