"""Conversations as tokens, with what is learnt and where titles are (reclm.md 3.2, 3.3)."""
import numpy as np

from recjax.text import chat
from recjax.training import scope
from recjax.training.dialogue import Example

MARKS = {'node': scope.FREE, 'item': 0}


class Renderer:
  """Turns to tokens. soi, eoi: the control tokens' ids. rows: title tokens by item index - 1.
  nodes: for each item the marks of its title and end token; None marks nothing."""

  def __init__(self, tokenizer, rows, soi, eoi, nodes=None, longest=1024, variables=None):
    self.tokenizer, self.rows, self.soi, self.eoi = tokenizer, rows, soi, eoi
    self.nodes, self.longest, self.variables = nodes, longest, variables or {}

  def answer(self, content):
    """An assistant's content. [str or item index] -> ids, nodes, items: (n,) each

    items: the item at its start symbol, -1 at its title and end, 0 in text.
    """
    ids, nodes, items = [], [], []
    for part in [content] if isinstance(content, str) else content:
      if isinstance(part, str):
        some = self.tokenizer.encode(part)
        ids += some
        nodes += [scope.FREE] * len(some)
        items += [0] * len(some)
        continue
      row = [*self.rows[part - 1], self.eoi]
      ids += [self.soi, *row]
      own = [scope.FREE] * len(row) if self.nodes is None else self.nodes[part - 1].tolist()
      nodes += [scope.FREE, *own]
      items += [part, *[-1] * len(row)]
    return ids, nodes, items

  def example(self, sample):
    """A sample as training sees it. -> Example"""
    slots, turns = [], []
    for turn in sample.turns:
      learnt = turn['role'] == 'assistant'
      if learnt or not isinstance(turn['content'], str):
        slots.append((learnt, self.answer(turn['content'])))
        turn = {**turn, 'content': [slots[-1][1][0]]}
      turns.append(turn)
    parts = chat.render_parts(self.tokenizer, turns, False, **self.variables)
    ids, weights, nodes, items, after = [], [], [], [], False
    for number, part in enumerate(parts):
      ids += part
      spoken, own = slots[number // 2] if number % 2 else (False, None)
      if own:
        nodes += own[1]
        items += own[2] if spoken else [0] * len(part)
        weights += [spoken] * len(part)
      else:
        nodes += [scope.FREE] * len(part)
        items += [0] * len(part)
        weights += [i == 0 and after for i in range(len(part))]  # the end of the turn is learnt
      after = spoken
    return Example(np.array(ids, np.int32), np.array(weights),
                   {'node': np.array(nodes, np.int32), 'item': np.array(items, np.int32)})

  def tokens(self, turns):
    """The tokens up to where the assistant begins. Contents are texts, lists of texts and item
    indices, or earlier answers as [ids]."""
    def whole(turn):
      content = turn['content']
      own = turn['role'] == 'assistant' or not isinstance(content, str)
      if own and not any(isinstance(p, list) for p in content):
        return {**turn, 'content': [self.answer(content)[0]]}
      return turn
    made = [whole(t) for t in turns]
    return chat.render(self.tokenizer, made, True, **self.variables)
