"""What is learned from and asked: windows of a data set, or instruction records as they are."""
import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from recjax import base_config
from recjax.data import dataset, loading, splits, update, windows
from recjax.data.dataset import Dataset, Interactions
from recjax.data.formats import bigrec as files
from recjax.data.splits import Cases
from recjax.errors import ConfigError, DataError
from recjax.methods.bigrec import prompts
from recjax.methods.bigrec.prompts import Template
from recjax.split_rule import LEAVE_ONE_OUT, SplitRule
from recjax.text import spelling
from recjax.text.tokenizer import Tokenizer

PARTS = ('train', 'valid', 'test')


@dataclasses.dataclass(frozen=True)
class Data:
  """A catalog of titles, cases, and their records.

  titles: by index - 1, in one spelling. longest: items of a history that a prompt shows. records:
  {part: [record]}, empty where the template makes them. notes: what was odd, counted. name: of the
  data set. catalog, cases: of the run. fingerprint: hash of its content.
  """
  name: str
  catalog: dataset.Catalog
  titles: list
  cases: windows.CaseSplit
  longest: int
  records: dict
  fingerprint: str
  notes: dict

  def records_of(self, part: str, template: Template, noun: str,
                 rows: np.ndarray | None = None) -> list[dict[str, str]]:
    """The records of some cases of a part.

    template: of prompts. noun: what items are called. rows: which cases; all if None. -> list of
    {'instruction', 'input', 'output'}
    """
    cases = getattr(self.cases, part)
    rows = range(len(cases)) if rows is None else rows
    if self.records:
      return [self.records[part][r] for r in rows]
    return [template.record(noun, [self.titles[i - 1] for i in cases.history(r)
                                   [-self.longest:]],
                            self.titles[cases.targets[r] - 1]) for r in rows]


def load(source: str, cfg: ConfigDict, rule: SplitRule = LEAVE_ONE_OUT) -> Data:
  """Reads a canonical data set, the sample shop, or a folder of BIGRec's own files.

  cfg: window, split, history. source: a data set or a folder. rule: how the data are split where
  `cfg` says nothing. -> Data. Raises DataError where a
  title is missing.
  """
  folder = pathlib.Path(str(source))
  if all((folder / f'{part}.json').is_file() for part in PARTS):
    if not rule.default:
      raise DataError(f'{folder} holds samples that were split before and has no times; leave '
                      "split.kind='leave_one_out', which takes them as they are")
    return load_records(folder)
  source_data = dataset.with_rule(loading.load_data(source), rule)
  titles = titles_of(source_data)
  cases = windows.make_samples(source_data, folder, cfg.window, cfg.split, cfg.max_history)
  return Data(source_data.name, source_data.catalog, titles, cases, cfg.max_history, {},
              source_data.fingerprint, noted(titles, {}))


def respell(data: Data, tokenizer: Tokenizer, template: Template) -> Data:
  """The Data with titles as they come back from the tokens of answers. -> Data

  data: the Data. template: of prompts. Raises DataError naming an item whose title the tokenizer
  cannot write.
  """
  titles = spelling.round_trip(lambda some: prompts.come_back(tokenizer, template, some),
                            data.titles, data.catalog.ids)
  more = spelling.count_changes(data.titles, titles)
  return dataclasses.replace(data, titles=titles, notes={**noted(titles, data.notes), **more})


def titles_of(source_data: Dataset) -> list[str]:
  """The titles of a data set in one spelling.

  source_data: the data set. -> [str]. Raises DataError where one is missing
  """
  raw = source_data.catalog.columns.get('title')
  if raw is None:
    raise DataError(f'{source_data.name} has no titles to write; add `title` to its items')
  titles = [files.clean_title(t or '') for t in raw]
  empty = [source_data.catalog.ids[i] for i, t in enumerate(titles) if not t]
  if empty:
    raise DataError(f'{len(empty)} items of {source_data.name} have no title, e.g. '
                    f'{", ".join(empty[:3])}; give them one, or remove them')
  return titles


def carried_on(data: Data, source: str, workdir: str | os.PathLike) -> Data:
  """The same Data with the items of a later data set, about which its cases say nothing.

  source: a data set or a folder. workdir: the run's folder. -> Data
  """
  source_data = update.load_continuation(source, data.catalog, workdir)
  return dataclasses.replace(data, catalog=source_data.catalog, titles=titles_of(source_data),
                             fingerprint=source_data.fingerprint)


def masked(cfg: ConfigDict, data: Data) -> bool:
  """Whether items of a history may not be recommended: as the split's origin does, or as told.

  cfg: the run's config. data: the Data.
  """
  how = cfg.eval.mask_history
  if how not in ('auto', 'yes', 'no'):
    raise ConfigError(f"eval.mask_history={how!r}; choose 'auto', 'yes' or 'no'")
  return data.cases.masked if how == 'auto' else how == 'yes'


def asked_settings(cfg: ConfigDict) -> ConfigDict:
  """The group `eval` without what decides the rows beside alone, which no text depends on.

  cfg: the run's config.
  """
  return ConfigDict({k: v for k, v in cfg.eval.items() if k not in base_config.rows_beside()})


def asked_rows(data: Data, part: str, most: int) -> Int[np.ndarray, ' n']:
  """Which cases of a part are asked: `most` drawn once, or all (0).

  data: the Data. -> rows (n,), ascending
  """
  return splits.sample_cases(getattr(data.cases, part), most, '')[0]


def of_users(data: Data, part: str, most: int) -> Cases | None:
  """The cases of `asked_rows` where they are averaged within users, None where each counts alike.

  data: the Data.
  """
  if not data.cases.by_user:
    return None
  return getattr(data.cases, part).select(asked_rows(data, part, most))


def noted(titles: list[str], notes: dict[str, Any]) -> dict[str, Any]:
  """How many items share their title with another, beside other notes. titles: of all items."""
  return {**notes, 'items_with_a_shared_title': len(titles) - len(set(titles))}


def load_records(folder: str | os.PathLike) -> Data:
  """A folder with train.json, valid.json, test.json and a title list; records stay as they are, but
  for titles that were misread (`files.mend`), which are counted.

  Where a title belongs to several items the first one is meant. Titles of histories that the
  catalog lacks are counted and left out; a target that it lacks is an error.
  """
  records = {part: files.read_records(folder / f'{part}.json') for part in PARTS}
  ids, records, mended = files.repair_titles(files.read_titles(folder), records)
  titles = [files.clean_title(t) for t in ids.values()]
  first = {}
  for index, title in enumerate(titles, 1):
    first.setdefault(title, index)
  notes = {'unknown_history_titles': 0, **{k: v for k, v in mended.items() if v}}
  cases = {part: cases_of(rows, first, folder / f'{part}.json', notes)
           for part, rows in records.items()}
  known = sequences(cases['train'])
  protocol = (f'the records of {folder.name}: {len(cases["test"])} test records')
  mark = hashlib.sha256(repr((titles, [sorted(r.items()) for part in PARTS
                                       for r in records[part]])).encode()).hexdigest()[:32]
  return Data(folder.resolve().name, dataset.Catalog(tuple(ids), {'title': titles}), titles,
              windows.CaseSplit(**cases, known=known, masked=False, protocol=protocol), 10**6,
              records, mark, noted(titles, notes))


def cases_of(records: list[dict], first: dict[str, int], path: pathlib.Path,
             notes: dict[str, Any]) -> Cases:
  """Cases of records whose titles are known. first: {title: index}.

  path: of the file, for messages. notes: what was counted so far. -> Cases
  """
  users, flat, offsets, targets = [], [], [0], []
  lost = [i for i, r in enumerate(records) if files.clean_title(r['output']) not in first]
  if lost:
    raise DataError(f'{path}: the targets of {len(lost)} records are no title of the catalog, '
                    f'e.g. record {lost[0]}: {records[lost[0]]["output"][:60]}; correct them, or '
                    'remove these records')
  for number, record in enumerate(records):
    history = list(map(files.clean_title, files.unquote_titles(record['input'])))
    known = [first[t] for t in history if t in first]
    notes['unknown_history_titles'] += len(history) - len(known)
    users.append(number)
    flat.extend(known)
    offsets.append(len(flat))
    targets.append(first[files.clean_title(record['output'])])
  return Cases(np.array(users, np.int32), (np.array(flat, np.int32), np.array(offsets, np.int64)),
               np.array(targets, np.int32))


def sequences(cases: Cases) -> Interactions:
  """Each case's history and target as a sequence of its own. cases: the cases. -> Interactions"""
  flat, offsets = cases.histories
  ends = offsets[1:] + np.arange(1, len(cases) + 1)
  items = np.insert(flat, offsets[1:], cases.targets)
  return dataset.Interactions(tuple(f'record {i}' for i in range(len(cases))),
                              items.astype(np.int32), np.concatenate([[0], ends]))
