"""Generation: free titles by beam search, or real titles alone."""
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from recjax.decoding import constraints, device_trie, item_filter, trie
from recjax.decoding.beam_search import BeamSearch
from recjax.decoding.block_generator import PromptGenerator
from recjax.decoding.device_trie import DeviceTrie
from recjax.decoding.item_filter import ItemFilter
from recjax.decoding.trie import Trie
from recjax.errors import ConfigError, DataError
from recjax.methods.bigrec import prompts
from recjax.methods.bigrec.prompts import Template
from recjax.text import spelling
from recjax.text.tokenizer import Tokenizer


def texts(writer: PromptGenerator, asked: list[list[int]],
          cfg: ConfigDict) -> list[tuple[list[str], list[float]]]:
  """Beams of free text, best first. -> [([text], [score])] in the order of the prompts

  writer: the LLM. asked: prompts, as tokens. Raises ConfigError for an unknown cfg.length_norm.
  """
  if cfg.length_norm not in ('generated', 'full'):
    raise ConfigError(f"decode.length_norm={cfg.length_norm!r}; choose 'generated' or 'full'")
  offset = np.array([len(p) for p in asked]) if cfg.length_norm == 'full' else 0
  search = BeamSearch(cfg.beams, cfg.new_tokens, float(cfg.length_penalty), length_offset=offset)
  generated = writer.generate([writer.own(p) for p in asked], search,
                              constraints.Unconstrained(ends(writer)))
  return [([writer.tokenizer.decode(generated.row(b, k)) for k in range(cfg.beams)],
           [round(float(s), 5) for s in generated.scores[b]]) for b in range(len(asked))]


def titles(writer: PromptGenerator, asked: list[list[int]], cfg: ConfigDict, planted: DeviceTrie,
           limits: ItemFilter | None = None, mixing: Any = None, length_penalty: float = 0.0,
           token_scores: bool = False) -> Any:
  """Beams of titles of the catalog.

  writer: the LLM. asked: prompts, as tokens. cfg: the group `decode`. planted: the trie on the
  device. limits: what may come, or None. mixing: of `mixed`, or None. length_penalty: the power of
  the length that divides scores. token_scores: whether each token's log-probability is kept. ->
  Generated
  """
  search = BeamSearch(cfg.beams, length_penalty=float(length_penalty), token_scores=token_scores)
  only = constraints.CatalogConstraint(planted, limits or ItemFilter(), mixing)
  return writer.generate([writer.own(p) for p in asked], search, only)


def ends(writer: PromptGenerator) -> tuple[int, ...]:
  """Ids that end an answer. writer: the LLM."""
  return tuple(writer.tokenizer.eos_ids)


def title_trie(tokenizer: Tokenizer, template: Template,
               titles: list[str]) -> tuple[Trie, DeviceTrie]:
  """The catalog as a trie over the very tokens that training used. -> (Trie, Forest)

  tokenizer: the LLM's. template: of prompts. titles: of all items, by index - 1. Raises DataError
  where a title's tokens do not spell it again.
  """
  for title, back in zip(titles, prompts.come_back(tokenizer, template, titles)):
    if back != title:
      raise DataError(f'the title {title!r} comes back as {back!r} from its tokens: '
                      f'{spelling.difference(title, back)}; give titles as it spells them')
  rows = prompts.encode_answers(tokenizer, template, titles)
  tree = trie.build(rows, tokenizer.eos_ids[0], tokenizer.vocab_size)
  return tree, device_trie.to_device_trie(tree)


def limits(tree: Trie, histories: list, seen: bool,
           allowed: np.ndarray | None = None) -> ItemFilter:
  """Which items requests may have.

  histories: list of (n,) item arrays, 1..N. seen: whether those are out. allowed: (N,) bool or
  None. tree: the trie. -> Limits
  """
  return item_filter.build_item_filter(
      tree, None if allowed is None else allowed[None],
      None if allowed is None else np.zeros(len(histories), np.int32), histories if seen else None)


def mixed(planted: DeviceTrie, probabilities: Array | None, alpha: float) -> Any:
  """D3's assistant at one weight of the LLM; at 1 it changes no bit of a score.

  planted: the trie on the device. probabilities: of the assistant, or None. alpha: the LLM's
  weight.
  """
  return constraints.score_mixing(planted, jnp.asarray(probabilities), alpha)
