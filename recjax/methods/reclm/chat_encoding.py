"""Conversations as tokens, with what is learnt and where titles are (reclm.md 3.2, 3.3)."""
import numpy as np

from recjax.text import chat_template
from recjax.text.packing import TokenSample
from recjax.training.losses import trie_masked

MARKS = {'node': trie_masked.FREE, 'item': 0}


class ChatEncoder:
  """Turns to tokens. soi, eoi: the control tokens' ids. rows: title tokens by item index - 1.
  nodes: for each item the marks of its title and end token; None marks nothing."""

  def __init__(self, tokenizer, rows, soi, eoi, nodes=None, longest=1024, variables=None):
    self.tokenizer, self.rows, self.soi, self.eoi = tokenizer, rows, soi, eoi
    self.nodes, self.longest, self.variables = nodes, longest, variables or {}
    self.endings = {}

  def answer(self, content):
    """An assistant's content. [str or item index] -> ids, nodes, items: (n,) each

    items: the item at its start symbol, -1 at its title and end, 0 in text.
    """
    ids, nodes, items = [], [], []
    for part in [content] if isinstance(content, str) else content:
      if isinstance(part, str):
        some = self.tokenizer.encode(part)
        ids += some
        nodes += [trie_masked.FREE] * len(some)
        items += [0] * len(some)
        continue
      row = [*self.rows[part - 1], self.eoi]
      ids += [self.soi, *row]
      own = [trie_masked.FREE] * len(row) if self.nodes is None else self.nodes[part - 1].tolist()
      nodes += [trie_masked.FREE, *own]
      items += [part, *[-1] * len(row)]
    return ids, nodes, items

  def examples(self, sample):
    """A sample as training sees it: every answer behind the very tokens that ask for it.

    A conversation is one row as long as the template keeps what was learnt as it was. Where it lays
    an earlier answer out anew (Qwen3 without thinking, Llama 2), what follows is a row of its own,
    behind what it will be asked with, and the earlier answers are learnt in theirs.

    -> [TokenSample]
    """
    rows, rest = [], []
    for at, turn in enumerate(sample.turns):
      if turn['role'] != 'assistant':
        continue
      row = [(i, False, node, 0) for i, node in zip(*self.asked(sample.turns[:at]))]
      if rows and [t[0] for t in row[:len(rows[-1])]] == [t[0] for t in rows[-1]]:
        rest.pop()
        before = rows.pop()
        row[:len(before)] = before
      row += [(i, True, node, item) for i, node, item in zip(*self.answer(turn['content']))]
      end, *more = self.ending(sample.turns[:at + 1])
      rows.append([*row, (end, True, trie_masked.FREE, 0)])
      rest.append([(i, False, trie_masked.FREE, 0) for i in more])
    return [self.example(*zip(*row, *more)) for row, more in zip(rows, rest)]

  @staticmethod
  def example(ids, weights, nodes, items):
    """Columns of tokens as a TokenSample."""
    return TokenSample(np.array(ids, np.int32), np.array(weights),
                       {'node': np.array(nodes, np.int32), 'item': np.array(items, np.int32)})

  def ending(self, turns):
    """What is learnt behind the answer that ends `turns`: an end token, and what the template
    writes behind it. -> ids

    Decoding stops at end tokens alone, so where the template writes another text first the end
    token follows the answer at once, and nothing else.
    """
    roles = tuple(t['role'] for t in turns)
    if roles not in self.endings:
      ends = self.tokenizer.eos_ids
      made = [{**t, 'content': [[]]} if t['role'] == 'assistant' else {**t, 'content': 'x'}
              for t in turns]
      tail = chat_template.render_parts(self.tokenizer, made, False, **self.variables)[-1]
      self.endings[roles] = tail if tail[:1] and tail[0] in ends else [
          next((i for i in tail if i in ends), ends[0])]
    return self.endings[roles]

  def asked(self, turns):
    """The tokens up to where the assistant begins, and the marks of titles in them. Contents are
    texts, lists of texts and item indices, or earlier answers as [ids]. -> ids, nodes: (n,) each"""
    made, marks = [], []
    for turn in turns:
      content = turn['content']
      own = turn['role'] == 'assistant' or not isinstance(content, str)
      if own and any(isinstance(p, list) for p in content):
        marks += [[trie_masked.FREE] * len(p) for p in content if isinstance(p, list)]
      elif own:
        some, nodes, _ = self.answer(content)
        turn = {**turn, 'content': [some]}
        marks.append(nodes)
      made.append(turn)
    ids, nodes = [], []
    parts = chat_template.ask_parts(self.tokenizer, made, **self.variables)
    for number, part in enumerate(parts):
      ids += part
      nodes += marks[number // 2] if number % 2 else [trie_masked.FREE] * len(part)
    return ids, nodes

  def tokens(self, turns):
    """The tokens of `asked`."""
    return self.asked(turns)[0]


def check(tokenizer, variables, several=True):
  """Raises ConfigError where a tokenizer's chat template cannot lay out what training and decoding
  need: a request after a system turn, an answer, and, with `several`, another round."""
  said = [{'role': role, 'content': 'text'} for role in ('system', *['user', 'assistant'] * 2)]
  turn = ChatEncoder(tokenizer, [], -1, -1, variables=variables)
  for size in (3, 5) if several else (3,):
    turn.ending(said[:size])
    turn.asked(said[:size - 1])
