"""Replies to conversations that clients keep: many at once, each as if nothing had been before.

What the model computed for the tokens that conversations begin with is remembered, to the bit.
"""
import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from recjax.decoding.block_generator import BlockGenerator, PromptGenerator
from recjax.decoding.prefix_memory import PrefixMemory
from recjax.decoding.sampling import own_draws
from recjax.errors import ConfigError, DataError
from recjax.methods.reclm import generate, item_limits, stop_words, train
from recjax.methods.reclm import prompts as prompts_lib
from recjax.methods.reclm.generate import GroundedModel, Reply
from recjax.methods.reclm.item_limits import Plan
from recjax.training import sft

BATCH_SIZES = (1, 8)  # conversations of a batch, padded up

MAX_ITEMS = 10  # items of a reply

UNLIKE_TEXTS = ('a', 'B', '1', '(')  # of turns that share what every conversation begins with

CHARS_PER_TOKEN = 32  # of a token at most, about

UNFINISHED = '\ufffd \t\r\n'  # at the end of a text: half a character, or space that may be cut


@dataclasses.dataclass(frozen=True)
class ChatRequest:
  """A conversation that waits for a reply.

  turns: ({'role', 'content'}, ...), the last a user's. domain: a catalog's name, '' the first.
  history: item indices that the last turn is about. least, most: items of the reply, within which
  its last turn may ask for fewer or more, as `item_limits` reads it. tokens: at
  most so many, 0 for no limit. temperature: None takes the run's. seed: of the draws. stop: words
  before which the text ends, as `stop_words` has it. tell: called with the text so far, to which
  more is only ever added, while the reply is made. gone: whether nobody waits for the reply any
  more, which then ends where it is.
  """
  turns: tuple[dict, ...]
  domain: str = ''
  history: tuple[int, ...] = ()
  least: int = 0
  most: int = MAX_ITEMS
  tokens: int = 0
  temperature: float | None = None
  seed: int = 0
  stop: tuple[str, ...] = ()
  tell: Callable[[str], Any] | None = None
  gone: Callable[[], bool] = lambda: False


@dataclasses.dataclass(frozen=True)
class ChatAnswer:
  """A reply.

  text: what a person reads. domain: the catalog's name. items: indices in the order that the text
  names them, titles: of these. complete: it ended by itself. tokens_in, tokens_out: of prompt and
  reply.
  """
  text: str
  domain: str
  items: tuple[int, ...]
  titles: tuple[str, ...]
  complete: bool
  tokens_in: int
  tokens_out: int


class ChatBatcher:
  """One model for many conversations.

  cfg: the run's config. domains: {name: GroundedModel}, the first is the run's own. system: what
  the model is told first. mesh: of devices. memory: of what was read, of this model alone; without
  it all is read anew.
  """

  def __init__(self, cfg: ConfigDict, domains: dict[str, GroundedModel], system: str,
               mesh: jax.sharding.Mesh, memory: PrefixMemory | None = None):
    self.cfg, self.domains, self.system, self.mesh = cfg, domains, system, mesh
    self.item_of_title = {
      name: domain_model.tokenized.index for name, domain_model in domains.items()}
    chat_model = next(iter(domains.values())).chat_model
    opening = sft.common_prefix([
      self.prompt(ChatRequest((prompts_lib.message('user', text),))) for text in UNLIKE_TEXTS])
    self.generator: PromptGenerator = BlockGenerator(
      chat_model.model, chat_model.variables, chat_model.tokenizer, memory or PrefixMemory(0),
      opening, self.longest_history())

  def longest_history(self) -> int:
    """Tokens of a first request with as long a history as may be shown. All prompts have room for
    as many, so that the programs of `warm` serve them; later rounds may need more."""
    tokenized = next(iter(self.domains.values())).tokenized
    sizes = list(map(len, tokenized.titles))
    items = np.argsort(sizes)[-prompts_lib.MAX_ITEMS:] + 1
    turns = (prompts_lib.message('user', UNLIKE_TEXTS[0]),)
    with contextlib.suppress(ConfigError):  # longer than fits
      return len(self.prompt(ChatRequest(turns, history=tuple(map(int, items)))))
    return self.cfg.prompt.max_prompt_tokens

  def domain_of(self, request: ChatRequest) -> tuple[str, GroundedModel]:
    """request: the conversation. -> its catalog's name, the model over it. Raises ConfigError
    naming the known ones."""
    name = request.domain or next(iter(self.domains))
    if name not in self.domains:
      raise ConfigError(f'there is no catalog {name!r:.60}; known are {", ".join(self.domains)}')
    return name, self.domains[name]

  def prompt(self, request: ChatRequest) -> list[int]:
    """The tokens of a conversation, its oldest rounds dropped where it is too long.

    request: the conversation. Raises ConfigError where the last turn alone is.
    """
    name, grounded = self.domain_of(request)
    tokenized = grounded.tokenized
    turns = [dict(t) for t in request.turns]
    if turns[0]['role'] != 'system':
      turns.insert(0, prompts_lib.message('system', self.system))
    max_chars = (
      CHARS_PER_TOKEN * self.cfg.prompt.max_prompt_tokens
    )  # more letters never fit, and take long to see
    while sum(len(t['content']) for t in turns) > max_chars and drop_oldest_round(turns):
      pass
    if request.history:
      items = list(request.history[-prompts_lib.MAX_ITEMS:])
      turns[-1]['content'] = prompts_lib.with_history(
        self.cfg, tokenized, items, turns[-1]['content'])
    turns = [prompts_lib.message(t['role'], restore_items(t['content'], self.item_of_title[name]))
             if t['role'] == 'assistant' else t for t in turns]
    encoder = train.make_encoder(self.cfg, grounded.chat_model, tokenized)
    ids = encoder.tokens(turns)
    while len(ids) > self.cfg.prompt.max_prompt_tokens:
      if not drop_oldest_round(turns):
        raise ConfigError(
          f'the last turn takes {len(ids)} tokens, {self.cfg.prompt.max_prompt_tokens} fit; '
          'say it in fewer words')
      ids = encoder.tokens(turns)
    return ids

  def __call__(self, requests: Sequence[ChatRequest],
               settle: Callable = lambda row, answer: None) -> list[ChatAnswer]:
    """Replies to a batch.

    settle: called with the row and the ChatAnswer of each whose reply ends before others'.
    requests: the conversations. Raises ConfigError or DataError of any.
    """
    answers, rows_by_program = [None] * len(requests), {}
    prompts = [self.prompt(request) for request in requests]
    plans = [self.plan(request) for request in requests]
    for row, request in enumerate(requests):
      if plans[row].refusal:
        answers[row] = self.refused(request, plans[row], len(prompts[row]))
        settle(row, answers[row])
        continue
      key = self.domain_of(request)[0], self.generator.room(prompts[row])
      rows_by_program.setdefault(key, []).append(row)
    for (name, _), rows in rows_by_program.items():
      for start in range(0, len(rows), BATCH_SIZES[-1]):
        batch_rows = rows[start:start + BATCH_SIZES[-1]]
        batch_answers = self.batch(
          self.domains[name], [requests[row_number] for row_number in batch_rows],
          [prompts[row_number] for row_number in batch_rows],
          [plans[row_number] for row_number in batch_rows],
          lambda place, answer, batch_rows=batch_rows: settle(batch_rows[place], answer))
        for row, chat_answer in zip(batch_rows, batch_answers):
          answers[row] = chat_answer
    return answers

  def batch(self, grounded: GroundedModel, requests: Sequence[ChatRequest],
            prompts: list[list[int]], plans: list[Plan], settle: Callable) -> list[ChatAnswer]:
    """Replies to conversations that one program takes together, each by its own seed and
    temperature: as it would be alone.

    grounded: the model over their catalog. prompts: of the requests. plans: which items may come,
    and how many. settle: as in `__call__`. requests: the conversations.
    """
    batch_size = next(size for size in BATCH_SIZES if size >= len(requests))
    num_padded = batch_size - len(requests)
    decode = ConfigDict({**self.cfg.decode.to_dict(), 'num_items': MAX_ITEMS, 'temperature': 1.0})
    padded = [*requests, *requests[-1:] * num_padded]
    draws = own_draws([request.seed for request in padded],
                      [self.temperature_of(request) for request in padded])
    is_over = np.arange(batch_size) >= len(requests)

    def answer_at(place: int, reply: Reply) -> ChatAnswer:
      return self.make_answer(grounded, requests[place], plans[place], reply, len(prompts[place]))

    def on_tokens(rows: list[list[int]]) -> np.ndarray:
      for place, (request, ids) in enumerate(zip(requests, rows)):
        if not is_over[place]:
          is_over[place] = self.report(grounded, request, plans[place], ids)
          if is_over[place]:
            settle(place, answer_at(place, grounded.read(ids)))
      return ~is_over
    padded_plans = plans + plans[-1:] * num_padded
    with jax.set_mesh(self.mesh):
      replies = generate.generate_replies(
        grounded, self.generator, decode, prompts + prompts[-1:] * num_padded,
        allowed=np.stack([plan.allowed for plan in padded_plans]),
        least=np.array([plan.least for plan in padded_plans]), seed=draws, on_tokens=on_tokens)
    return [answer_at(place, reply) for place, reply in enumerate(replies[: len(requests)])]

  def asked(self, turns: Sequence[dict], **fields: Any) -> ChatRequest:
    """A conversation, checked before it waits.

    turns: [{'role', 'content'}]. fields: of ChatRequest. Raises DataError or ConfigError for turns
    that no template takes, a catalog or an item that is not there, a last turn that is too long.
    """
    request = ChatRequest(check_turns(turns), **fields)
    self.prompt(request)
    return request

  def known(self, ids: Iterable[str], domain: str = '') -> tuple[int, ...]:
    """The indices of those item ids that a catalog has. domain: its name, '' the first."""
    grounded = self.domains.get(domain or next(iter(self.domains)))
    return tuple(filter(None, map(grounded.tokenized.catalog.find, ids))) if grounded else ()

  def item_id(self, answer: 'ChatAnswer', item: int) -> str:
    """The id of an item of a reply. answer: the reply. item: its index."""
    return self.domains[answer.domain].tokenized.catalog.id_of(item)

  def own(self, answer: ChatAnswer) -> bool:
    """Whether a reply is about the catalog that the model was trained on. answer: the reply."""
    return answer.domain == next(iter(self.domains))

  def temperature_of(self, request: ChatRequest) -> float:
    """The temperature that is used: the conversation's own, or the run's. request: the
    conversation."""
    return float(self.cfg.decode.temperature if request.temperature is None else
                 request.temperature)

  def plan(self, request: ChatRequest) -> Plan:
    """What the last turn of a conversation states in numbers. request: the conversation."""
    tokenized = self.domain_of(request)[1].tokenized
    return item_limits.plan(request.turns[-1]['content'], tokenized.prices, tokenized.on_offer,
                            request.least, request.most)

  def refused(self, request: ChatRequest, plan: Plan, tokens_in: int) -> ChatAnswer:
    """The answer to a conversation whose limits no item meets. plan: that says so. tokens_in: of
    the prompt. request: the conversation."""
    text = plan.refusal[:stop_words.stop_at(plan.refusal, (), request.stop)]
    if request.tell and not request.gone():
      request.tell(text)
    return ChatAnswer(text, self.domain_of(request)[0], (), (), True, tokens_in, 0)

  def report(self, grounded: GroundedModel, request: ChatRequest, plan: Plan,
             ids: list[int]) -> bool:
    """Tells a client the text of a reply's tokens so far.

    request: whose reply it is. plan: of the reply. ids: the tokens. grounded: the model over its
    catalog. -> whether the reply is at its end
    """
    if request.gone():
      return True
    size, is_over = reply_length(grounded.chat_model, ids, plan.most, request.tokens)
    if request.tell or request.stop:
      text, titles = text_so_far(grounded, plan, ids[:size])
      end = stop_words.stop_at(text, titles, request.stop)
      is_over |= end is not None
      if request.tell:
        request.tell(text[:stop_words.safe_length(text, titles, request.stop)
                          if end is None else end])
    return is_over or ids[-1] in grounded.chat_model.tokenizer.eos_ids

  def make_answer(self, grounded: GroundedModel, request: ChatRequest, plan: Plan, reply: Reply,
                  tokens_in: int) -> ChatAnswer:
    """The answer, cut where fewer items or tokens were asked for; a cut item is left out.

    request: that is answered. plan: of the reply. reply: to it. tokens_in: of the prompt. grounded:
    the model over its catalog.
    """
    reply = cut_reply(grounded, reply, plan.most, request.tokens)
    titles = tuple(grounded.tokenized.title(i) for i in reply.items)
    text, items, complete = plan.note + reply.text, tuple(map(int, reply.items)), reply.complete
    end = stop_words.stop_at(text, titles, request.stop)
    if end is not None:
      shown = sum(last <= end for _, last in stop_words.title_spans(text, titles))
      text, items, titles, complete = text[:end], items[:shown], titles[:shown], True
    return ChatAnswer(text, self.domain_of(request)[0], items, titles, complete, tokens_in,
                      len(reply.ids))

  def warm(self) -> None:
    """Reads the system turn for good, and compiles the programs of short conversations."""
    with jax.set_mesh(self.mesh):
      self.generator.keep_opening()
    for size in BATCH_SIZES:
      self([ChatRequest((prompts_lib.message('user', 'Hello'),))] * size)


def reply_length(chat_model: train.ChatModel, ids: list[int], most: int,
                 tokens: int = 0) -> tuple[int, bool]:
  """How many of a reply's tokens count, and whether more would not: enough were asked for, or an
  item more than may come is begun.

  ids: the reply's tokens. most: items that may come. tokens: that may come, 0 for no limit.
  chat_model: the LLM.
  """
  ends = [i + 1 for i, token in enumerate(ids) if token == chat_model.eoi]
  size, is_over = len(ids), False
  if sum(token == chat_model.soi for token in ids) > most:
    size, is_over = ends[most - 1], True
  if tokens and size >= tokens:
    size, is_over = tokens, True
  return size, is_over


def text_so_far(grounded: GroundedModel, plan: Plan, ids: list[int]
                ) -> tuple[str, tuple[str, ...]]:
  """What a person may see of a reply that goes on, and the titles in it: what follows the last item
  that may come is left out, where another item may follow it.

  plan: of the reply. ids: its tokens so far. grounded: the model over its catalog.
  """
  ends = [i + 1 for i, token in enumerate(ids) if token == grounded.chat_model.eoi]
  shown_ids = ids[:ends[plan.most - 1]] if len(ends) >= plan.most else ids
  reply = grounded.read(shown_ids)
  return (plan.note + reply.text.rstrip(UNFINISHED),
          tuple(grounded.tokenized.title(item) for item in reply.items))


def cut_reply(grounded: GroundedModel, reply: Reply, most: int, tokens: int = 0) -> Reply:
  """A reply without what is more than may come; one that ends with its last item is complete.

  reply: as generated. most, tokens: as in `reply_length`. grounded: the model over its catalog.
  """
  size, _ = reply_length(grounded.chat_model, reply.ids, most, tokens)
  if size == len(reply.ids):
    return reply
  cut = grounded.read(reply.ids[:size])
  return dataclasses.replace(cut, complete=len(cut.items) == most and cut.ids[-1:] == [
    grounded.chat_model.eoi])


def drop_oldest_round(turns: list[dict]) -> bool:
  """Takes the oldest round out, in place.

  turns: system first. -> whether there was one besides the last
  """
  next_round = next((i for i in range(2, len(turns)) if turns[i]['role'] == 'user'), None)
  if next_round is not None:
    del turns[1:next_round]
  return next_round is not None


def restore_items(text: str, item_of_title: dict[str, int]) -> list:
  """An earlier reply as it was: quoted titles become the items they are.

  text: the reply. item_of_title: item indices by title. -> [str or item index]
  """
  parts = []
  for part in re.split(r'("[^"\n]{1,400}")', text):
    item = item_of_title.get(part[1:-1]) if part[:1] == '"' else None
    if item is not None:
      parts.append(item)
    elif parts and isinstance(parts[-1], str):
      parts[-1] += part
    elif part:
      parts.append(part)
  return parts or ['']


def check_turns(turns: Iterable[dict]) -> tuple[dict, ...]:
  """Turns in an order that a template takes: system first if at all, then user and assistant by
  turns, a user last; neighbors of one role are joined. Raises DataError."""
  checked = []
  for turn in turns:
    role = 'system' if turn['role'] == 'developer' else turn['role']
    if role not in ('system', 'user', 'assistant'):
      raise DataError(f'a message has the role {role!r:.40}; give system, user or assistant')
    if role == 'system' and checked and checked[-1]['role'] != 'system':
      raise DataError('the system message stands first, before the others')
    if checked and checked[-1]['role'] == role:
      checked[-1] = prompts_lib.message(role, checked[-1]['content'] + '\n' + turn['content'])
    else:
      checked.append(prompts_lib.message(role, turn['content']))
  if not checked or checked[-1]['role'] != 'user':
    raise DataError('the last message must be of the user')
  if checked[0]['role'] == 'assistant' or checked[0]['role'] == 'system' and len(checked) > 1 and (
      checked[1]['role'] == 'assistant'):
    raise DataError('the first message after the system message must be of the user')
  return tuple(checked)
