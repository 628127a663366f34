"""Workbooks of spreadsheets, row by row: Excel's .xlsx, .xlsm, .xlsb and .xls, and .ods.

The only file that imports calamine.
"""
import collections
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from recjax.errors import ConfigError, DataError

LOOKED_AT = 50  # rows that tell where the table begins


def choose_sheet(path: pathlib.Path, name: str, fits: Callable[[list[str]], bool]) -> str:
  """The sheet called `name` of the workbook at `path`, or the only one that could be meant.

  fits: says whether columns of those names are. Raises ConfigError where there are several, or none
  of that name.
  """
  names = _open(path).sheet_names
  if name:
    if name not in names:
      raise ConfigError(f'{path} has no sheet {name!r}; it has {", ".join(names)}')
    return name
  filled = {sheet: [*(first[1] or ())] for sheet in names
            if (first := next(read(path, sheet), None))}
  fitting = [sheet for sheet, row in filled.items() if len(filled) == 1 or fits(row)]
  if len(fitting) != 1:
    listed = '; '.join(f'{sheet} ({", ".join(row)})' for sheet, row in filled.items())
    raise ConfigError(f'{path}: which sheet? It has {listed or "none with rows"}. Say '
                      '--query=SHEET (--items-query=SHEET for the items)')
  return fitting[0]


def _open(path: pathlib.Path | str) -> Any:
  import python_calamine
  try:
    return python_calamine.load_workbook(str(path))
  except (python_calamine.CalamineError, OSError) as error:
    raise DataError(f'{path} cannot be read as a workbook: {error}.') from error


def read(path: pathlib.Path | str, sheet: str, header: Sequence[str] = ()
         ) -> Iterator[tuple[int, dict | None, str]]:
  """Yields (row, values by column, '') of a `sheet` of the workbook at `path`.

  Titles above the names of the columns are left out: these stand in the first row that is filled
  as widely as most. header: the names, of a sheet without. Empty rows are left out, whole numbers
  are not floats, as spreadsheets have them.
  """
  rows = [(number, row) for number, row in enumerate(
      _open(path).get_sheet_by_name(sheet).to_python(skip_empty_area=False), 1) if any(
          value != '' for value in row)]
  if not rows:
    return
  widths = collections.Counter(_width(row) for _, row in rows[:LOOKED_AT])
  usual = max(widths, key=lambda width: (widths[width], width))
  first = 0 if header else next(
      (n for n, (_, row) in enumerate(rows) if _width(row) >= usual), 0)
  names = list(header) or [str(_plain(value)).strip() for value in rows[first][1]]
  while names and not names[-1]:
    names.pop()
  names = [name or f'(no name {n})' for n, name in enumerate(names, 1)]
  if len(set(names)) < len(names):
    raise DataError(f'{path}, sheet {sheet}: row {rows[first][0]} must name each column once, '
                    f'found {names!r:.120}')
  for number, row in rows[first if header else first + 1:]:
    yield number, {name: _plain(value) for name, value in zip(names, row)}, ''


def _width(row: Sequence) -> int:
  """How many cells there are up to the last filled one."""
  return max((n for n, value in enumerate(row, 1) if value != ''), default=0)


def _plain(value: Any) -> Any:
  return int(value) if isinstance(value, float) and value.is_integer() else value
