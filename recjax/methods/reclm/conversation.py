"""A conversation that recommends: rounds over one KV cache, real items, several catalogs."""
import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from recjax.data.dataset import Catalog
from recjax.decoding.generate import Generated
from recjax.decoding.streaming import stream
from recjax.errors import ConfigError
from recjax.methods.reclm import (
  chat_batcher,
  generate,
  item_limits,
  prompts,
  tokenized_catalog,
  train,
)
from recjax.methods.reclm.generate import GroundedModel, Reply
from recjax.methods.reclm.item_limits import Plan
from recjax.models import llm_decoder

READ_TOKENS = 64  # that are read together, so that one program reads turns of any length


class Conversation:
  """One person's rounds. Keys of earlier rounds are kept, so that a round reads new tokens alone;
  items are not repeated within a reply.

  cfg: the run's config. domains: {name: GroundedModel}. system: what the model is told first.
  """

  def __init__(self, cfg: ConfigDict, domains: dict[str, GroundedModel], system: str):
    self.cfg, self.domains, self.system = cfg, domains, system
    self.domain = next(iter(domains))
    self.read_tokens = 0  # all that the model has read, for those who want to know
    self.clear()

  @property
  def grounded(self) -> GroundedModel:
    return self.domains[self.domain]

  def clear(self) -> None:
    """Forgets every round."""
    self.turns = [prompts.message('system', self.system)]
    self.cached_ids, self.cache = [], None

  def use(self, domain: str) -> None:
    """Recommends from another catalog from now on. domain: its name. Raises ConfigError naming the
    known ones."""
    if domain not in self.domains:
      raise ConfigError(f'there is no catalog {domain!r}; known are {", ".join(self.domains)}')
    self.domain = domain

  def say(self, text: str, max_items: int = 10, history: Sequence[str] = (), seed: int = 0,
          tell: Callable | None = None) -> Reply:
    """A person's turn.

    max_items: of the reply, 10 at most; the text may ask for fewer, and for prices, as
    `item_limits` reads it. history: item ids that it is about, shown before the text. seed: of
    the draws. tell: called with the Reply so far while it is made; its text is only ever added to.
    The oldest rounds are dropped where the conversation would grow beyond prompt.max_prompt_tokens.
    """
    grounded, chat_model = self.grounded, self.grounded.chat_model
    plan = item_limits.plan(text, grounded.tokenized.prices, grounded.tokenized.on_offer, 0,
                            min(max_items, chat_batcher.MAX_ITEMS))
    if history:
      items = [grounded.tokenized.catalog.index(token) for token in history][-prompts.MAX_ITEMS:]
      text = prompts.with_history(self.cfg, grounded.tokenized, items, text)
    encoder = train.make_encoder(self.cfg, chat_model, grounded.tokenized)
    self.turns.append(prompts.message('user', text))
    ids = encoder.tokens(self.turns)
    fit = self.cfg.prompt.max_prompt_tokens
    while len(ids) > fit:
      if len(self.turns) < 4:
        self.turns.pop()
        raise ConfigError(f'this turn takes {len(ids)} tokens, {fit} fit; say it in fewer '
                          'words')
      del self.turns[1:3]
      ids = encoder.tokens(self.turns)
    if plan.refusal:
      self.turns.append(prompts.message('assistant', [plan.refusal]))
      reply = Reply([], [], plan.refusal, True, False)
      if tell:
        tell(reply)
      return reply
    reply = self._generate(ids, plan, seed, tell)
    ends = set(chat_model.tokenizer.eos_ids)
    self.turns.append(
      prompts.message('assistant', [[token for token in reply.ids if token not in ends]]))
    return dataclasses.replace(reply, text=plan.note + reply.text)

  def warm(self) -> None:
    """Compiles what a first reply needs, so that its first word comes soon."""
    tokenized = self.grounded.tokenized
    ids = train.make_encoder(self.cfg, self.grounded.chat_model, tokenized).tokens(
      [*self.turns, prompts.message('user', 'Hello')])
    plan = item_limits.plan('', tokenized.prices, tokenized.on_offer, 0, 1)
    self._stream(ids, plan, 0, lambda rows: np.array([len(rows[0]) < 2]))
    self.clear()

  def _generate(self, ids: list[int], plan: Plan, seed: int, tell: Callable | None) -> Reply:
    """The reply to a conversation of tokens, told while it is made."""
    grounded, chat_model = self.grounded, self.grounded.chat_model
    ends = [[token] for token in chat_model.tokenizer.eos_ids]

    def on_tokens(rows: list[list[int]]) -> np.ndarray:
      size, is_over = chat_batcher.reply_length(chat_model, rows[0], plan.most)
      if tell:
        reply = grounded.read(rows[0][:size])
        tell(dataclasses.replace(
          reply, text=chat_batcher.text_so_far(grounded, plan, rows[0][:size])[0]))
      return np.array([not is_over and rows[0][-1:] not in ends])
    generated = self._stream(ids, plan, seed, on_tokens)
    return chat_batcher.cut_reply(grounded, grounded.read(generated.row(0, 0)), plan.most)

  def _stream(self, ids: list[int], plan: Plan, seed: int, on_tokens: Callable) -> Generated:
    """Reads what is new, but the last token, into the cache; the reply goes on from there."""
    chat_model = self.grounded.chat_model
    model, decode = chat_model.model, self.cfg.decode
    num_same = next((i for i, (a, b) in enumerate(zip(self.cached_ids, ids)) if a != b),
                    min(len(self.cached_ids), len(ids)))
    num_same = min(num_same, len(ids) - 1)
    size = READ_TOKENS * -(-self.cfg.prompt.max_prompt_tokens // READ_TOKENS)
    if self.cache is None:
      self.cache = llm_decoder.empty_block(model.cfg, size)
    mask = self.cache.mask & (jnp.arange(size) < num_same)
    self.cache = self.cache._replace(mask=mask)
    new_ids = ids[num_same:-1]
    for start in range(0, len(new_ids), READ_TOKENS):
      read_ids = new_ids[start:start + READ_TOKENS]
      tokens = np.zeros((1, READ_TOKENS), np.int32)
      tokens[0, :len(read_ids)] = read_ids
      self.cache = _extend_cache(model, chat_model.variables, self.cache, jnp.asarray(tokens),
                                 jnp.int32(len(read_ids)))
    self.read_tokens += len(new_ids) + 1
    self.cached_ids = list(ids[:-1])
    reply_decode = ConfigDict({**decode.to_dict(), 'num_items': chat_batcher.MAX_ITEMS})
    constraint = self.grounded.constraint(reply_decode, 1, allowed=plan.allowed[None],
                                          least=np.array([plan.least]))
    search = dataclasses.replace(generate.sampling(decode), pad_id=chat_model.tokenizer.pad_id)
    return stream(
      _decoder(model), {'variables': chat_model.variables, 'past': self.cache}, [ids[-1:]], search,
      constraint, on_tokens, seed=seed, bucket=1)


_decoder = functools.lru_cache(4)(llm_decoder.continuing_decoder)

_extend_cache = jax.jit(llm_decoder.append_tokens, static_argnums=0)


def untrained_models(chat_model: train.ChatModel,
                     catalogs: dict[str, Catalog]) -> dict[str, GroundedModel]:
  """Catalogs of titles for a chat model as it is: real items alone, no training.

  chat_model: as from `train.new_chat_model`. catalogs: by name.
  """
  return {
    name: generate.GroundedModel(
      chat_model, [tokenized_catalog.load(catalog, chat_model.tokenizer)], [name])
    for name, catalog in catalogs.items()}
