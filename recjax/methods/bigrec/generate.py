"""Generation: free titles by beam search (bigrec.md 3.4), or real titles alone (4.4)."""
import jax.numpy as jnp
import numpy as np

from recjax.decoding import constraints, device_trie, item_filter, trie
from recjax.decoding.beam_search import BeamSearch
from recjax.errors import ConfigError, DataError
from recjax.methods.bigrec import prompts
from recjax.text import spelling


def texts(writer, asked, cfg):
  """Beams of free text, best first. -> [([text], [score])] in the order of the prompts

  Raises ConfigError for an unknown cfg.length_norm.
  """
  if cfg.length_norm not in ('generated', 'full'):
    raise ConfigError(f"decode.length_norm={cfg.length_norm!r}; choose 'generated' or 'full'")
  offset = np.array([len(p) for p in asked]) if cfg.length_norm == 'full' else 0
  search = BeamSearch(cfg.beams, cfg.new_tokens, float(cfg.length_penalty), length_offset=offset)
  found = writer.generate([writer.own(p) for p in asked], search,
                          constraints.Unconstrained(ends(writer)))
  return [([writer.tokenizer.decode(found.row(b, k)) for k in range(cfg.beams)],
           [round(float(s), 5) for s in found.scores[b]]) for b in range(len(asked))]


def titles(writer, asked, cfg, planted, limits=None, mixing=None, length_penalty=0.0,
           token_scores=False):
  """Beams of titles of the catalogue, a Forest. -> Generated"""
  search = BeamSearch(cfg.beams, length_penalty=float(length_penalty), token_scores=token_scores)
  only = constraints.CatalogConstraint(planted, limits or item_filter.ItemFilter(), mixing)
  return writer.generate([writer.own(p) for p in asked], search, only)


def ends(writer):
  """Ids that end an answer."""
  return tuple(writer.tokenizer.eos_ids)


def plant(tokenizer, template, titles):
  """The catalogue as a trie over the very tokens that training used. -> (Trie, Forest)

  Raises DataError where a title's tokens do not spell it again.
  """
  for title, back in zip(titles, prompts.come_back(tokenizer, template, titles)):
    if back != title:
      raise DataError(f'the title {title!r} comes back as {back!r} from its tokens: '
                      f'{spelling.difference(title, back)}; give titles as it spells them')
  rows = prompts.encode_answers(tokenizer, template, titles)
  tree = trie.build(rows, tokenizer.eos_ids[0], tokenizer.vocab_size)
  return tree, device_trie.to_device_trie(tree)


def limits(tree, histories, seen, allowed=None):
  """Which items requests may have. histories: list of (n,) item arrays, 1..N. seen: whether those
  are out. allowed: (N,) bool or None -> Limits"""
  taken = [np.asarray(h) - 1 for h in histories] if seen else None
  return item_filter.build_item_filter(tree, None if allowed is None else allowed[None],
                      None if allowed is None else np.zeros(len(histories), np.int32), taken)


def mixed(planted, probabilities, alpha):
  """D3's assistant at one weight of the LLM; at 1 it changes no bit of a score."""
  return constraints.score_mixing(planted, jnp.asarray(probabilities), alpha)
