"""The recommender of a run: one face for all methods, for the command line, Python and serving."""
import os
import pathlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from recjax import methods, run_files, settings
from recjax.data import array_record, loading
from recjax.data import times as times_lib
from recjax.data.array_record import Records
from recjax.data.dataset import Catalog, Dataset
from recjax.errors import DataError, WorkdirError


def load(workdir: str | os.PathLike, data: str | os.PathLike | None = None
         ) -> tuple[Callable, Dataset | Records]:
  """Opens what a run trained. -> (recommend, its data)

  recommend(histories, k, exclude_seen=True, allowed=None) -> (item ids [B][k], scores [B, k]);
  histories are lists of item ids, oldest first, and may come from people never seen in training.

  workdir: the run's folder. data: a later data set, made from the run's by `recjax prepare
  --update`: its new items come along without training, or a ConfigError says why this run cannot
  read them. Raises WorkdirError for a folder that is no finished run, or is damaged.
  """
  method, opened = open_data(workdir, data)
  with run_files.opening(workdir), settings.reading(workdir):
    return without_retired(method.recommender(workdir, data), opened.catalog), opened


def open_data(workdir: str | os.PathLike, data: str | os.PathLike | None = None
              ) -> tuple[ModuleType, Dataset | Records]:
  """The package of the method that made a run, and the run's data, or later ones.

  workdir, data: as `load` takes them, with the same errors.
  """
  method, config = method_of(workdir)
  if not data and not isinstance(config['data'], str):
    raise WorkdirError(f'{workdir}/config.json: "data" is {config["data"]!r:.60}, no folder')
  data = data or config['data']
  load = array_record.load if array_record.is_record_folder(data) else loading.load_data
  return method, load(data)


def method_of(workdir: str | os.PathLike) -> tuple[ModuleType, dict]:
  """The package of the method that made a run, and its config. workdir: of the run. Raises
  WorkdirError for no run, ConfigError where it names no method."""
  config = run_files.read_config(workdir)['config']
  return methods.find(config['method'], f'{workdir}/config.json'), config


def without_retired(recommend: Callable, catalog: Catalog) -> Callable:
  """The same recommender without retired items, which stay known in histories. recommend: a
  Recommender. catalog: its items."""
  live = catalog.active_ids()
  if live is None:
    return recommend

  def among_live(histories: Any, k: int, exclude_seen: bool = True, allowed: Any = None) -> Any:
    return recommend(histories, k, exclude_seen, live if allowed is None else live & set(allowed))
  return among_live


def model_version(workdir: str | os.PathLike) -> str:
  """What tells the model of a run from one that is trained later in the same folder. workdir: of
  the run."""
  done = sorted((pathlib.Path(workdir) / 'stages').glob(f'*/{run_files.DONE}'))
  return ' '.join(str(run_files.need_json(path)['fingerprint'])[:12] for path in done)


def history_of(data: Dataset | Records, user_id: str) -> list[str]:
  """Ids of all items of a known user, oldest first. data: that knows the user. user_id: of that
  user. Raises DataError for an unknown one."""
  if isinstance(data, Records):
    raise DataError(f'{data.name} keeps its users on disk, by number; give the items themselves: '
                    '--history=ID,ID,...')
  users = data.interactions.users
  if user_id not in users:
    raise DataError(f'user {user_id!r} is not among the {len(users)} users of {data.name}')
  return [data.catalog.id_of(i) for i in data.interactions.history(users.index(user_id))]


def times_of(data: Dataset | Records, user_id: str) -> list[int] | None:
  """Seconds of the items of a known user and, once more the last, of a request; None where the data
  have no times. data, user_id: as of `history_of`."""
  if isinstance(data, Records) or data.interactions.times is None:
    return None
  user = data.interactions.users.index(user_id)
  own = slice(*data.interactions.offsets[user:user + 2])
  seconds = times_lib.in_seconds(data.interactions.times)[own].tolist()
  return seconds + seconds[-1:]


def title_of(catalog: Catalog, item_id: str) -> str:
  """The title of an item id of a catalog, '' where it has none. item_id: of the catalog."""
  titles = catalog.columns.get('title')
  return titles[catalog.index(item_id) - 1] or '' if titles else ''
