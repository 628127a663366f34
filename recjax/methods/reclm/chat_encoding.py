"""Conversations as tokens, with what is learned and where titles are.

Titles stand between two control tokens, as in Liao et al., ACL Findings 2026, arXiv 2505.03336.
"""
from collections.abc import Sequence

import numpy as np

from recjax.text import chat_template
from recjax.text.packing import TokenSample
from recjax.text.tokenizer import Tokenizer
from recjax.training.losses import trie_masked

MARKS = {'node': trie_masked.FREE, 'item': 0}


class ChatEncoder:
  """Turns to tokens.

  tokenizer: of the model. title_tokens: of each item, by index - 1. soi, eoi: the control tokens'
  ids. nodes: for each item the marks of its title and end token; None marks nothing. longest:
  tokens of a prompt. variables: of the chat template.
  """

  def __init__(self, tokenizer: Tokenizer, title_tokens: Sequence[Sequence[int]], soi: int,
               eoi: int, nodes: Sequence[np.ndarray] | None = None, longest: int = 1024,
               variables: dict | None = None):
    self.tokenizer, self.title_tokens, self.soi, self.eoi = tokenizer, title_tokens, soi, eoi
    self.nodes, self.longest, self.variables = nodes, longest, variables or {}
    self.endings = {}

  def answer(self, content: str | list) -> tuple[list[int], list[int], list[int]]:
    """An assistant's content as ids, nodes and items, of one length.

    content: a text, or [str or item index]. items: the item at its start symbol, -1 at its title
    and end, 0 in text.
    """
    ids, nodes, items = [], [], []
    for part in [content] if isinstance(content, str) else content:
      if isinstance(part, str):
        text_ids = self.tokenizer.encode(part)
        ids += text_ids
        nodes += [trie_masked.FREE] * len(text_ids)
        items += [0] * len(text_ids)
        continue
      title_ids = [*self.title_tokens[part - 1], self.eoi]
      ids += [self.soi, *title_ids]
      title_nodes = (
        [trie_masked.FREE] * len(title_ids) if self.nodes is None else self.nodes[part - 1].tolist()
      )
      nodes += [trie_masked.FREE, *title_nodes]
      items += [part, *[-1] * len(title_ids)]
    return ids, nodes, items

  def examples(self, turns: Sequence[dict]) -> list[TokenSample]:
    """A conversation as training sees it: every answer behind the very tokens that ask for it.

    It is one row as long as the template keeps what was learned as it was. Where it lays an earlier
    answer out anew (Qwen3 without thinking, Llama 2), what follows is a row of its own, behind what
    it will be asked with, and the earlier answers are learned in theirs. turns: [{'role',
    'content'}].
    """
    rows, tails = [], []
    for position, turn in enumerate(turns):
      if turn['role'] != 'assistant':
        continue
      row = [(token, False, node, 0) for token, node in zip(*self.asked(turns[:position]))]
      if rows and [entry[0] for entry in row[:len(rows[-1])]] == [entry[0] for entry in rows[-1]]:
        tails.pop()
        earlier = rows.pop()
        row[:len(earlier)] = earlier
      row += [(token, True, node, item) for token, node, item in zip(*self.answer(turn['content']))]
      if turn.get('cut') and turn is turns[-1]:  # it goes on, so no end is learned
        rows.append(row)
        tails.append([])
        continue
      end, *tail = self.ending(turns[:position + 1])
      rows.append([*row, (end, True, trie_masked.FREE, 0)])
      tails.append([(token, False, trie_masked.FREE, 0) for token in tail])
    return [self.example(*zip(*row, *tail)) for row, tail in zip(rows, tails)]

  @staticmethod
  def example(ids: Sequence[int], weights: Sequence[bool], nodes: Sequence[int],
              items: Sequence[int] | np.ndarray) -> TokenSample:
    """Columns of tokens as a TokenSample. ids, weights, nodes, items: of each token."""
    return TokenSample(np.array(ids, np.int32), np.array(weights),
                       {'node': np.array(nodes, np.int32), 'item': np.array(items, np.int32)})

  def ending(self, turns: Sequence[dict]) -> list[int]:
    """What is learned behind the answer that ends `turns`: an end token, and what the template
    writes behind it.

    Decoding stops at end tokens alone, so where the template writes another text first the end
    token follows the answer at once, and nothing else.
    """
    roles = tuple(turn['role'] for turn in turns)
    if roles not in self.endings:
      ends = self.tokenizer.eos_ids
      dummy_turns = [
        {**turn, 'content': [[]]} if turn['role'] == 'assistant' else {**turn, 'content': 'x'}
        for turn in turns]
      tail = chat_template.render_parts(self.tokenizer, dummy_turns, False, **self.variables)[-1]
      self.endings[roles] = tail if tail[:1] and tail[0] in ends else [
          next((token for token in tail if token in ends), ends[0])]
    return self.endings[roles]

  def asked(self, turns: Sequence[dict]) -> tuple[list[int], list[int]]:
    """The tokens up to where the assistant begins, and the marks of titles in them.

    turns: contents are texts, lists of texts and item indices, or earlier answers as [ids]. -> ids,
    nodes, of one length
    """
    encoded_turns, marks = [], []
    for turn in turns:
      content = turn['content']
      has_items = turn['role'] == 'assistant' or not isinstance(content, str)
      if has_items and any(isinstance(part_ids, list) for part_ids in content):
        marks += [
          [trie_masked.FREE] * len(part_ids) for part_ids in content if isinstance(part_ids, list)]
      elif has_items:
        answer_ids, nodes, _ = self.answer(content)
        turn = {**turn, 'content': [answer_ids]}
        marks.append(nodes)
      encoded_turns.append(turn)
    ids, nodes = [], []
    parts = chat_template.prompt_parts(self.tokenizer, encoded_turns, **self.variables)
    for number, part in enumerate(parts):
      ids += part
      nodes += marks[number // 2] if number % 2 else [trie_masked.FREE] * len(part)
    return ids, nodes

  def tokens(self, turns: Sequence[dict]) -> list[int]:
    """The tokens of `asked`. turns: as of `asked`."""
    return self.asked(turns)[0]


def check(tokenizer: Tokenizer, variables: dict, several: bool = True) -> None:
  """Raises ConfigError where a tokenizer's chat template cannot lay out what training and decoding
  need: a request after a system turn, an answer, and, with `several`, another round.

  variables: of the template.
  """
  turns = [{'role': role, 'content': 'text'} for role in ('system', *['user', 'assistant'] * 2)]
  encoder = ChatEncoder(tokenizer, [], -1, -1, variables=variables)
  for size in (3, 5) if several else (3,):
    encoder.ending(turns[:size])
    encoder.asked(turns[:size - 1])
