"""Samples drawn ahead: written as List[List[Dict]] files, and read instead of being drawn."""
import dataclasses
import pathlib
import re

import numpy as np
from ml_collections import ConfigDict

from recjax.data import splits
from recjax.data.formats import sft
from recjax.errors import ConfigError, DataError
from recjax.methods.reclm import sft_data, tokenized_catalog

TASKS = {'recommend': 'SFTSeqRec-CS-MR', 'chat': 'ShareChatGPT'}  # as published

OURS = {v: k for k, v in TASKS.items()}


def check(cfg):
  """Whether the folder that `train.static` names can be read at all. Raises ConfigError."""
  if cfg.train.static and not pathlib.Path(cfg.train.static).is_dir():
    raise ConfigError(f'train.static={cfg.train.static!r} is no folder; name one that holds '
                      'train.jsonl, or leave it empty to draw samples')


def of_run(cfg, shop, stock, teach, talk):
  """The samples of every epoch and of validation: read where `train.static` names a folder, else
  drawn. -> {'train': [[Sample]], 'valid': [Sample]}"""
  parts = {} if cfg.train.static else {'train': drawn(cfg, shop, stock, teach, talk)}
  if cfg.train.static:
    parts = read(cfg.train.static, shop, stock, sft_data.forms(cfg)['system'])
    if len(parts['train']) < cfg.train.epochs:
      raise ConfigError(f'train.epochs={cfg.train.epochs}, and {cfg.train.static} holds '
                        f'{len(parts["train"])} epochs; set train.epochs to that, or write more')
    parts['train'] = parts['train'][:cfg.train.epochs]
  if 'valid' not in parts:
    parts['valid'] = held_out(cfg, shop, stock, teach)
  return parts


def drawn(cfg, shop, stock, teach, talk):
  """The samples of every training epoch. -> [[Sample]]"""
  if cfg.control.share and not any(stock.categories):
    raise DataError(f'control.share={cfg.control.share} asks about categories, and no item has any;'
                    ' add `categories` to the items, or set it to 0')
  template = sft_data.forms(cfg)
  given = ConfigDict({**cfg.train.to_dict(), 'control': cfg.control.share, 'seed': cfg.seed})
  train = splits.leave_one_out(shop.interactions).train
  return [sft_data.epoch(given, stock, train, teach, e, template, talk, cfg.train.sample)
          for e in range(cfg.train.epochs)]


def held_out(cfg, shop, stock, teach):
  """Lists of validation: the last training item's follower, training's words. -> [Sample]"""
  valid = splits.leave_one_out(shop.interactions).valid
  few = np.arange(min(len(valid), cfg.train.valid_users))
  cases, rng = valid.select(few), np.random.default_rng(cfg.seed)
  asked = teach([cases.history(c) for c in few], sft_data.LONGEST + 1)
  plain = ConfigDict({**cfg.train.to_dict(), 'candidates': 0.0})
  template, out = sft_data.forms(cfg), []
  for c in few:
    target = int(cases.targets[c])
    labels = sft_data.label_list(target, asked[c].tolist(), sft_data.LONGEST)
    shown = cases.history(c)[-sft_data.LONGEST:]
    one = sft_data.recommend(stock, template, shown, labels, rng, plain)
    out.append(dataclasses.replace(one, user=int(cases.users[c]), target=target))
  return out


# Files.


def write(folder, parts, shop, stock):
  """Writes train.jsonl and valid.jsonl (`data.formats.sft`). parts: as from `of_run`. -> paths"""
  epochs = {'train': parts['train'], 'valid': [parts['valid']]}
  return [sft.write(folder, part, [[as_dict(s, shop, stock) for s in some] for some in each])
          for part, each in epochs.items()]


def as_dict(sample, shop, stock):
  """A sample under the published names."""
  name = shop.catalog.id_of
  texts = {role: [t['content'] for t in sample.turns if t['role'] == role]
           for role in ('system', 'user', 'assistant')}
  out = {'task': TASKS.get(sample.task, sample.task), 'system': texts['system'][0],
         'input_texts': [spelt(c, stock) for c in texts['user']],
         'output_texts': [spelt(c, stock) for c in texts['assistant']]}
  if sample.labels:
    titles = [stock.titles[i - 1] for i in sample.labels]
    out['output_field_data'] = {'item_list': [name(i) for i in sample.labels],
                                'item_title_list': titles}
  if sample.history or sample.user >= 0:
    out['input_field_data'] = {
        'user': shop.interactions.users[sample.user] if sample.user >= 0 else None,
        'target_item': name(sample.target) if sample.target else None,
        'sub_sequential': [name(i) for i in sample.history],
        'history': sft_data.quoted(stock, sample.history, ' → '),
        'target_category': (stock.categories[sample.target - 1] or [None])[-1]
                           if sample.target else None,
        'item_count': len(sample.labels), 'candidate_items': [name(i) for i in sample.candidates],
        'candidate_titles': sft_data.quoted(stock, sample.candidates, ', ')}
  return out


def spelt(content, stock):
  """An answer's parts as text, items between the control symbols."""
  return ''.join(
    p
    if isinstance(p, str)
    else f'{tokenized_catalog.SOI}{stock.titles[p - 1]}{tokenized_catalog.EOI}'
    for p in content
  )


def read(folder, shop, stock, opening):
  """Samples of a folder, in its order. opening: the system's turn where a sample has none.

  -> {'train': [[Sample]], 'valid': [Sample] where there is such a file}. Raises DataError naming
  the file, the line and the user, item or title that the data set lacks.
  """
  users = {name: i for i, name in enumerate(shop.interactions.users)}
  parts = {}
  for part in ('train', 'valid'):
    epochs = sft.read(folder, part)
    if epochs:
      parts[part] = [[_sample(one, place, shop, stock, users, opening) for place, one in some]
                     for some in epochs]
  if 'train' not in parts:
    raise DataError(f'{folder} holds no {" or ".join(sft.PARTS["train"])}')
  if 'valid' in parts:
    parts['valid'] = [s for some in parts['valid'] for s in some]
  return parts


def _sample(one, place, shop, stock, users, opening):
  said = sft_data.said
  turns = [said('system', one.get('system') or opening)]
  for question, answer in zip(one['input_texts'], one['output_texts']):
    turns += [said('user', told(question, stock)), said('assistant', parsed(answer, stock, place))]
  items = [p for t in turns if t['role'] == 'assistant' for p in t['content']
           if not isinstance(p, str)]
  facts = one.get('input_field_data') or {}

  def numbers(key):
    try:
      return tuple(shop.catalog.index(str(i)) for i in facts.get(key) or ())
    except DataError as error:
      raise DataError(f'{place}, {key}: {error}') from error
  user = facts.get('user')
  if user is not None and str(user) not in users:
    raise DataError(f'{place}: user {user!r:.60} is not in the data set')
  target = facts.get('target_item')
  facts = {**facts, 'target_item': [] if target is None else [target]}
  task = one.get('task', 'recommend' if items else 'chat')
  return sft_data.Sample(turns, OURS.get(task, task), -1 if user is None else users[str(user)],
                        numbers('sub_sequential'), (*numbers('target_item'), 0)[0], tuple(items),
                        numbers('candidate_items'))


def told(text, stock):
  """A request as it was: text, or [str or item index] where it names items between the control
  symbols; all else is plain text."""
  parts = re.split(f'{tokenized_catalog.SOI}(.*?){tokenized_catalog.EOI}', text)
  known = [stock.index.get(title) for title in parts[1::2]]
  if not any(known):
    return text
  out = [parts[0]]
  for item, title, after in zip(known, parts[1::2], parts[2::2]):
    if item:
      out += [item, after]
    else:
      out[-1] += f'{tokenized_catalog.SOI}{title}{tokenized_catalog.EOI}{after}'
  return out


def parsed(text, stock, place):
  """A text as parts: what stands between the control symbols is an item. -> [str or item index]

  Raises DataError for a title that the catalogue lacks, or a symbol that nothing closes.
  """
  out = []
  while True:
    plain, opened, rest = text.partition(tokenized_catalog.SOI)
    out += [plain] if plain else []
    if not opened:
      return out
    ends = [i for i in range(len(rest)) if rest.startswith(tokenized_catalog.EOI, i)]
    end = next((i for i in ends if rest[:i] in stock.index), None)  # titles may hold the symbol
    if end is None:
      what = f'{rest[:ends[0]]!r:.80} is no title of the catalogue' if ends else 'is never closed'
      raise DataError(f'{place}: {tokenized_catalog.SOI} {what}')
    out.append(stock.index[rest[:end]])
    text = rest[end + len(tokenized_catalog.EOI):]
