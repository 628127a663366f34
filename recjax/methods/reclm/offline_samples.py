"""Samples drawn ahead: written as List[List[Dict]] files, and read instead of being drawn."""
import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from recjax.data import splits
from recjax.data.dataset import Dataset
from recjax.data.formats import conversations, sft
from recjax.errors import ConfigError, DataError
from recjax.methods.reclm import prompts, sft_data, tokenized_catalog
from recjax.methods.reclm.sft_data import Sample
from recjax.methods.reclm.tokenized_catalog import TokenizedCatalog

TASKS = {'recommend': 'SFTSeqRec-CS-MR', 'chat': 'ShareChatGPT'}  # as published

TASK_OF = {v: k for k, v in TASKS.items()}


def check(cfg: ConfigDict) -> None:
  """Whether the folder that `train.static` names can be read at all. cfg: the run's config. Raises
  ConfigError."""
  if cfg.train.static and not pathlib.Path(cfg.train.static).is_dir():
    raise ConfigError(f'train.static={cfg.train.static!r} is no folder; name one that holds '
                      'train.jsonl, or leave it empty to draw samples')


def run_samples(cfg: ConfigDict, dataset: Dataset, tokenized: TokenizedCatalog, teach: Callable,
                talk: Sequence[tuple[str, str]]) -> dict[str, list]:
  """The samples of every epoch and of validation: read where `train.static` names a folder, else
  drawn.

  cfg: of the run. teach: as `teacher.make_teacher` gives it. talk: chat pairs. dataset: of the run.
  tokenized: its catalog. -> {'train': [[Sample]], 'valid': [Sample]}
  """
  parts = {} if cfg.train.static else {'train': draw_samples(cfg, dataset, tokenized, teach, talk)}
  if cfg.train.static:
    parts = read(cfg.train.static, dataset, tokenized, prompts.read_template(cfg)['system'])
    if len(parts['train']) < cfg.train.epochs:
      raise ConfigError(f'train.epochs={cfg.train.epochs}, and {cfg.train.static} holds '
                        f'{len(parts["train"])} epochs; set train.epochs to that, or write more')
    parts['train'] = parts['train'][:cfg.train.epochs]
  if 'valid' not in parts:
    parts['valid'] = validation_samples(cfg, dataset, tokenized, teach)
  return parts


def draw_samples(cfg: ConfigDict, dataset: Dataset, tokenized: TokenizedCatalog, teach: Callable,
                 talk: Sequence[tuple[str, str]]) -> list[list[Sample]]:
  """The samples of every training epoch. Raises DataError where categories are asked about and
  there are none.

  talk: chat pairs. cfg, dataset: of the run. tokenized: the catalog. teach: as of
  `teacher.make_teacher`.
  """
  if cfg.control.share and not any(tokenized.categories):
    raise DataError(f'control.share={cfg.control.share} asks about categories, and no item has any;'
                    ' add `categories` to the items, or set it to 0')
  template = prompts.read_template(cfg)
  sample_cfg = ConfigDict({**cfg.train.to_dict(), 'control': cfg.control.share, 'seed': cfg.seed})
  train = splits.make_split(dataset).train
  return [
    sft_data.epoch_samples(
      sample_cfg, tokenized, train, teach, epoch, template, talk, cfg.train.sample)
    for epoch in range(cfg.train.epochs)]


def validation_samples(cfg: ConfigDict, dataset: Dataset, tokenized: TokenizedCatalog,
                       teach: Callable) -> list[Sample]:
  """Lists of validation: the last training item's follower, training's words. cfg, dataset: of the
  run. tokenized: the catalog. teach: as of `teacher.make_teacher`."""
  valid = splits.make_split(dataset).valid
  rows = np.arange(min(len(valid), cfg.train.valid_users))
  cases, rng = valid.select(rows), np.random.default_rng(cfg.seed)
  taught = teach([cases.history(case) for case in rows], prompts.MAX_ITEMS + 1)
  plain_cfg = ConfigDict({**cfg.train.to_dict(), 'candidates': 0.0})
  template, samples = prompts.read_template(cfg), []
  for case in rows:
    target = int(cases.targets[case])
    labels = sft_data.label_list(target, taught[case].tolist(), prompts.MAX_ITEMS)
    shown = cases.history(case)[-prompts.MAX_ITEMS:]
    sample = sft_data.recommendation_sample(tokenized, template, shown, labels, rng, plain_cfg)
    samples.append(dataclasses.replace(sample, user=int(cases.users[case]), target=target))
  return samples


# Files.


def write(folder: Path, parts: dict, dataset: Dataset, tokenized: TokenizedCatalog) -> list[Path]:
  """Writes train.jsonl and valid.jsonl (`data.formats.sft`). parts: as from `run_samples`. folder:
  to write to. dataset: of the run. tokenized: its catalog."""
  epochs = {'train': parts['train'], 'valid': [parts['valid']]}
  return [
    sft.write(
      folder, part,
      [
        [as_dict(sample, dataset, tokenized) for sample in epoch_samples]
        for epoch_samples in part_epochs])
    for part, part_epochs in epochs.items()]


def as_dict(sample: Sample, dataset: Dataset, tokenized: TokenizedCatalog) -> dict:
  """A sample under the published names. sample: the sample. dataset: of the run. tokenized: its
  catalog."""
  id_of = dataset.catalog.id_of
  texts = {role: [turn['content'] for turn in sample.turns if turn['role'] == role]
           for role in ('system', 'user')}
  answers = [[*turn['content'], *[conversations.CUT] * ('cut' in turn)]
             for turn in sample.turns if turn['role'] == 'assistant']
  fields = {'task': TASKS.get(sample.task, sample.task), 'system': texts['system'][0],
            'input_texts': [spell_items(content, tokenized) for content in texts['user']],
            'output_texts': [spell_items(answer, tokenized) for answer in answers]}
  if sample.labels:
    titles = [tokenized.title(item) for item in sample.labels]
    fields['output_field_data'] = {'item_list': [id_of(item) for item in sample.labels],
                                   'item_title_list': titles}
  if sample.history or sample.user >= 0:
    fields['input_field_data'] = {
      'user': dataset.interactions.users[sample.user] if sample.user >= 0 else None,
      'target_item': id_of(sample.target) if sample.target else None,
      'sub_sequential': [id_of(item) for item in sample.history],
      'history': prompts.quote_titles(tokenized, sample.history, ' → '),
      'target_category': (tokenized.categories_of(sample.target) or [None])[-1]
      if sample.target
      else None, 'item_count': len(sample.labels),
      'candidate_items': [id_of(item) for item in sample.candidates],
      'candidate_titles': prompts.quote_titles(tokenized, sample.candidates, ', ')}
  return fields


def spell_items(content: str | list, tokenized: TokenizedCatalog) -> str:
  """An answer's parts as text, items between the control symbols. content: [str or item index].
  tokenized: the catalog."""
  return ''.join(
    part
    if isinstance(part, str)
    else f'{tokenized_catalog.SOI}{tokenized.title(part)}{tokenized_catalog.EOI}'
    for part in content)


def read(folder: Path, dataset: Dataset, tokenized: TokenizedCatalog,
         opening: str) -> dict[str, list]:
  """Samples of a folder, in its order. opening: the system's turn where a sample has none.

  folder: to read. dataset: of the run. tokenized: its catalog. -> {'train': [[Sample]], 'valid':
  [Sample] where there is such a file}. Raises DataError naming the file, the line and the user,
  item or title that the data set lacks.
  """
  users = {name: i for i, name in enumerate(dataset.interactions.users)}
  parts = {}
  for part in ('train', 'valid'):
    epochs = sft.read(folder, part)
    if epochs:
      parts[part] = [
        [
          _sample(fields, place, dataset, tokenized, users, opening)
          for place, fields in epoch_samples]
        for epoch_samples in epochs]
  if 'train' not in parts:
    raise DataError(f'{folder} holds no {" or ".join(sft.PARTS["train"])}')
  if 'valid' in parts:
    parts['valid'] = [sample for epoch_samples in parts['valid'] for sample in epoch_samples]
  return parts


def _sample(fields: dict, place: str, dataset: Dataset, tokenized: TokenizedCatalog,
            users: dict[str, int], opening: str) -> Sample:
  message = prompts.message
  turns = [message('system', fields.get('system') or opening)]
  for question, answer in zip(fields['input_texts'], fields['output_texts']):
    reply = message('assistant',
                    parse_answer(answer.removesuffix(conversations.CUT), tokenized, place))
    turns += [message('user', parse_request(question, tokenized)),
              {**reply, 'cut': True} if answer.endswith(conversations.CUT) else reply]
  items = [
    part
    for turn in turns
    if turn['role'] == 'assistant'
    for part in turn['content']
    if not isinstance(part, str)]
  facts = fields.get('input_field_data') or {}

  def item_indices(key: str) -> tuple[int, ...]:
    try:
      return tuple(dataset.catalog.index(str(item)) for item in facts.get(key) or ())
    except DataError as error:
      raise DataError(f'{place}, {key}: {error}') from error
  user = facts.get('user')
  if user is not None and str(user) not in users:
    raise DataError(f'{place}: user {user!r:.60} is not in the data set')
  target = facts.get('target_item')
  facts = {**facts, 'target_item': [] if target is None else [target]}
  task = fields.get('task', 'recommend' if items else 'chat')
  return sft_data.Sample(
    turns, TASK_OF.get(task, task), -1 if user is None else users[str(user)],
    item_indices('sub_sequential'), (*item_indices('target_item'), 0)[0], tuple(items),
    item_indices('candidate_items'))


def parse_request(text: str, tokenized: TokenizedCatalog) -> str | list:
  """A request as it was: text, or [str or item index] where it names items between the control
  symbols; all else is plain text. text: the request. tokenized: the catalog."""
  parts = re.split(f'{tokenized_catalog.SOI}(.*?){tokenized_catalog.EOI}', text)
  items = [tokenized.index.get(title) for title in parts[1::2]]
  if not any(items):
    return text
  content = [parts[0]]
  for item, title, after in zip(items, parts[1::2], parts[2::2]):
    if item:
      content += [item, after]
    else:
      content[-1] += f'{tokenized_catalog.SOI}{title}{tokenized_catalog.EOI}{after}'
  return content


def parse_answer(text: str, tokenized: TokenizedCatalog, place: str) -> list:
  """A text as parts: what stands between the control symbols is an item. -> [str or item index]

  place: file and line, for errors. text: the answer. tokenized: the catalog. Raises DataError for a
  title that the catalog lacks, or a symbol that nothing closes.
  """
  content = []
  while True:
    plain, opened, rest = text.partition(tokenized_catalog.SOI)
    content += [plain] if plain else []
    if not opened:
      return content
    ends = [
      position for position in range(len(rest)) if rest.startswith(tokenized_catalog.EOI, position)]
    end = next(
      (position for position in ends if rest[:position] in tokenized.index), None
    )  # titles may hold the symbol
    if end is None:
      what = f'{rest[:ends[0]]!r:.80} is no title of the catalog' if ends else 'is never closed'
      raise DataError(f'{place}: {tokenized_catalog.SOI} {what}')
    content.append(tokenized.index[rest[:end]])
    text = rest[end + len(tokenized_catalog.EOI):]
