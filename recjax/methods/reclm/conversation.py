"""A conversation that recommends: rounds over one KV cache, real items, several catalogues."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from recjax.decoding.streaming import stream
from recjax.errors import ConfigError
from recjax.methods.reclm import chat_batcher, generation, sft_data, tokenized_catalog, train
from recjax.models import llm_decoder

STEP = 64  # tokens that are read together are padded to a multiple


class Conversation:
  """One person's rounds. Keys of earlier rounds are kept, so that a round reads new tokens alone;
  items are not repeated within a reply. cfg: the run's config. domains: {name: Shelf}."""

  def __init__(self, cfg, domains, system):
    self.cfg, self.domains, self.system = cfg, domains, system
    self.domain = next(iter(domains))
    self.read_tokens = 0  # all that the model has read, for those who want to know
    self.clear()

  @property
  def shelf(self):
    return self.domains[self.domain]

  def clear(self):
    """Forgets every round."""
    self.turns = [sft_data.said('system', self.system)]
    self.held, self.past = [], None

  def use(self, domain):
    """Recommends from another catalogue from now on. Raises ConfigError naming the known ones."""
    if domain not in self.domains:
      raise ConfigError(f'there is no catalogue {domain!r}; known are {", ".join(self.domains)}')
    self.domain = domain

  def say(self, text, max_items=10, history=(), seed=0, tell=None):
    """A person's turn. history: item ids that it is about, shown before the text. -> Reply

    tell: called with the Reply so far while it is made; its text is only ever added to. The oldest
    rounds are dropped where the conversation would grow beyond prompt.max_prompt_tokens.
    """
    shelf, speaker = self.shelf, self.shelf.speaker
    if history:
      rows = [shelf.stocks[0].catalog.index(i) for i in history][-sft_data.LONGEST:]
      text = sft_data.about(self.cfg, shelf.stocks[0], rows, text)
    turn = train.renderer(self.cfg, speaker, shelf.stocks[0])
    self.turns.append(sft_data.said('user', text))
    ids = turn.tokens(self.turns)
    fit = self.cfg.prompt.max_prompt_tokens
    while len(ids) > fit:
      if len(self.turns) < 4:
        self.turns.pop()
        raise ConfigError(f'this turn takes {len(ids)} tokens, {fit} fit; say it in fewer '
                          'words')
      del self.turns[1:3]
      ids = turn.tokens(self.turns)
    found = self._generate(ids, max_items, seed, tell)
    ends = set(speaker.tokenizer.eos_ids)
    self.turns.append(sft_data.said('assistant', [[i for i in found.ids if i not in ends]]))
    return found

  def _generate(self, ids, max_items, seed, tell):
    """Reads what is new, but the last token, into the cache; the reply goes on from there."""
    speaker = self.shelf.speaker
    model, how = speaker.model, self.cfg.decode
    same = next((i for i, (a, b) in enumerate(zip(self.held, ids)) if a != b),
                min(len(self.held), len(ids)))
    same = min(same, len(ids) - 1)
    size = STEP * -(-self.cfg.prompt.max_prompt_tokens // STEP)
    if self.past is None:
      self.past = llm_decoder.room(model.cfg, size)
    mask = self.past.mask & (jnp.arange(size) < same)
    self.past = self.past._replace(mask=mask)
    fresh = ids[same:-1]
    if fresh:
      wide = STEP * -(-len(fresh) // STEP)
      tokens = np.zeros((1, wide), np.int32)
      tokens[0, :len(fresh)] = fresh
      self.past = _remember(model, speaker.variables, self.past, jnp.asarray(tokens),
                            jnp.int32(len(fresh)))
    self.read_tokens += len(fresh) + 1
    self.held = list(ids[:-1])
    given = ConfigDict({**how.to_dict(), 'count': max_items})
    rule = self.shelf.constraint(given, 1)

    def told(rows):
      if tell:
        made = self.shelf.read(rows[0])
        tell(dataclasses.replace(made, text=made.text.rstrip(chat_batcher.UNSURE)))
      return np.array([rows[0][-1:] not in ends])
    ends = [[t] for t in speaker.tokenizer.eos_ids]
    found = stream(_decoder(model), {'variables': speaker.variables, 'past': self.past},
                   [ids[-1:]], rule, told, new_tokens=how.new_tokens, width=generation.RUNS[0],
                   temperature=float(how.temperature), top_p=float(how.top_p),
                   pad_id=speaker.tokenizer.pad_id, seed=seed, bucket=1)
    return self.shelf.read(found.row(0, 0))


_decoder = functools.lru_cache(4)(llm_decoder.continuing)

_remember = jax.jit(llm_decoder.remembered, static_argnums=0)


def untrained(speaker, catalogs):
  """Catalogues of titles for a chat model as it is: real items alone, no training.

  speaker: as from `train.fresh`. catalogs: {name: Catalog}. -> {name: Shelf}
  """
  return {name: generation.Shelf(speaker, [tokenized_catalog.load(c, speaker.tokenizer)], [name])
          for name, c in catalogs.items()}
