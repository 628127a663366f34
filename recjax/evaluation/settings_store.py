"""Settings of classical rows that validation has chosen before, kept across runs.

A choice ranks validation users once for every setting of a grid, most of what these rows cost. It
depends on nothing but its inputs, so a file named by their hash holds what was chosen. A file that
cannot be read, or says what no grid has, counts as none; one that cannot be written is left out.
"""
import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import recjax
from recjax import file_io
from recjax.errors import DataError


def folder() -> pathlib.Path:
  """Where choices are kept: below the variable RECJAX_CACHE, or ~/.cache/recjax without one."""
  return file_io.cache_folder() / 'classical'


def key_of(*inputs: object) -> str:
  """The hash of a choice's inputs and of this version. inputs: arrays by their dtype, shape and
  numbers, everything else by what JSON or, last, `repr` says of it."""
  total = hashlib.sha256(recjax.__version__.encode())
  for value in inputs:
    if isinstance(value, np.ndarray):
      total.update(f'{value.dtype} {value.shape} '.encode())
      total.update(np.ascontiguousarray(value).view(np.uint8).data)
    else:
      total.update(json.dumps(value, sort_keys=True, default=repr).encode())
    total.update(b'\n')
  return total.hexdigest()[:32]


def read(store: str | os.PathLike, key: str, grids: Mapping[str, Mapping[str, Sequence[Any]]]
         ) -> dict[str, dict[str, Any]]:
  """What was chosen before, nothing where that is not known.

  store: the folder. key: of `key_of`. grids: {row: {setting: its values}} of the rows that are
  asked for. -> {row: {setting: value}} of all of them, or {}
  """
  try:
    chosen = file_io.read_json(pathlib.Path(store) / f'{key}.json')
    sound = set(chosen) == set(grids) and all(
        set(chosen[row]) == set(grid) and all(chosen[row][name] in grid[name] for name in grid)
        for row, grid in grids.items())
  except (OSError, DataError, TypeError):
    return {}
  return chosen if sound else {}


def write(store: str | os.PathLike, key: str, chosen: Mapping[str, Mapping[str, Any]]) -> None:
  """Keeps a choice. store: the folder, made where there is none. key: of `key_of`. chosen: {row:
  {setting: value}}."""
  with contextlib.suppress(OSError):
    pathlib.Path(store).mkdir(parents=True, exist_ok=True)
    file_io.write_json(pathlib.Path(store) / f'{key}.json', dict(chosen))
