"""Answers of many requests to a model, on disk batch by batch, so that a killed stage goes on."""
import json
import os

from recjax.errors import WorkdirError


class Journal:
  """Batches of rows: one JSON line each, flushed to disk; a torn last line is cut off."""

  def __init__(self, path):
    self.path, self.batches, self.items = path, 0, 0
    whole = 0
    if path.exists():
      for number, line in enumerate(path.read_bytes().split(b'\n')[:-1], 1):
        self.items += len(rows_of(path, number, line))
        self.batches += 1
        whole += len(line) + 1
      os.truncate(path, whole)

  def add(self, rows):
    """Appends a batch of rows, each a list that begins with the name of its request."""
    with open(self.path, 'a', encoding='utf-8') as f:
      f.write(json.dumps(rows, ensure_ascii=False) + '\n')
      f.flush()
      os.fsync(f.fileno())

  def read(self):
    """-> {name: the rest of its row}"""
    with open(self.path, encoding='utf-8') as f:
      return {name: rest for line in f for name, *rest in json.loads(line)}


def rows_of(path, number, line):
  """The rows of a line of a journal. -> list. Raises WorkdirError where it is damaged."""
  try:
    rows = json.loads(line)
    if isinstance(rows, list) and all(isinstance(row, list) and row for row in rows):
      return rows
  except (ValueError, RecursionError):
    pass
  raise WorkdirError(f'{path} line {number} is damaged; delete it and the lines behind it, and run '
                     'the same command again')


def answer_all(work, title, path, prompts, batch, run):
  """Answers prompts of like length together, `batch` at a time; the last batch repeats its last.

  prompts: token lists. run: list of `batch` prompt numbers -> one JSON-ready list for each. path:
  the journal. -> [list] in the order of the prompts
  """
  order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
  journal = Journal(path)
  with work.progress(title, len(prompts), journal.items, unit='prompt') as advance:
    for number, start in enumerate(range(0, len(order), batch)):
      if number < journal.batches:
        continue
      members = order[start:start + batch]
      found = run(members + members[-1:] * (batch - len(members)))
      journal.add([[i, *answer] for i, answer in zip(members, found)])
      advance(len(members))
  rows = journal.read()
  return [rows[i] for i in range(len(prompts))]
