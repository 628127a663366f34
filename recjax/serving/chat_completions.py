"""Chat in the form of OpenAI's chat completions, with the recommended items beside the text.

With `stream` the text comes while the model writes it, a title in one piece.
"""
import asyncio
import contextlib
import json
import secrets
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import fastapi
import pydantic
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse

from recjax.errors import UserError
from recjax.serving import routes
from recjax.serving.http_errors import RequestError, error_body, replace_surrogates
from recjax.serving.served_model import ServedModel
from recjax.serving.service import RecommendationService

MAX_MESSAGES, MAX_MESSAGE_CHARS, MAX_PARTS, MAX_TOKENS = 200, 20_000, 50, 100_000
MAX_ITEMS, MAX_REQUIRED_ITEMS = 10, 3
MAX_STOPS, MAX_STOP_CHARS = 4, 200
MAX_USER_ITEMS = 50  # newest items of a user that a model is told
NO_CHAT = 'for conversation serve the folder of a RecLM run'
EVENT_STREAM_HEADERS = {'Cache-Control': 'no-store', 'X-Accel-Buffering': 'no'}


# Fields of OpenAI that are not supported, with the values that ask for nothing. null does neither.
NEUTRAL = {
    'frequency_penalty': (0,), 'presence_penalty': (0,), 'top_p': (1,), 'logprobs': (False,),
    'top_logprobs': (0,), 'logit_bias': ({},), 'tools': ([],), 'functions': ([],),
    'tool_choice': ('none', 'auto'), 'function_call': ('none', 'auto'),
    'parallel_tool_calls': (True, False), 'tool_calls': ([],),
    'response_format': ({'type': 'text'},), 'modalities': (['text'],), 'store': (False,),
    'metadata': ({},), 'service_tier': ('auto', 'default'), 'annotations': ([],),
    'include_obfuscation': (False,)}


class OpenAIBody(routes.StrictBody):
  """A part of a request in OpenAI's form: fields that are not known are refused by name, but those
  that ask for nothing are passed over."""

  @pydantic.model_validator(mode='before')
  @classmethod
  def without_neutral(cls, values: Any) -> Any:
    """Returns `values` without fields that are not supported and ask for nothing."""
    if not isinstance(values, dict):
      return values
    return {name: value for name, value in values.items() if name in cls.model_fields or not (
        value is None or any(value == neutral and isinstance(value, bool) == isinstance(
            neutral, bool) for neutral in NEUTRAL.get(name, ())))}


class ContentPart(OpenAIBody):
  """A part of a message; only those of type 'text' are taken."""
  type: Literal['text']
  text: Annotated[str, pydantic.Field(max_length=MAX_MESSAGE_CHARS)]


class ChatMessage(OpenAIBody):
  """A turn of a conversation. role: who says it. content: what is said, a text or parts of one."""
  role: Literal['system', 'developer', 'user', 'assistant']
  content: Annotated[str, pydantic.Field(max_length=MAX_MESSAGE_CHARS)] | Annotated[
      list[ContentPart], pydantic.Field(max_length=MAX_PARTS)]


class StreamOptions(OpenAIBody):
  """What a stream says besides. include_usage: whether the last chunk counts tokens."""
  include_usage: pydantic.StrictBool = False


StopWord = Annotated[str, pydantic.Field(min_length=1, max_length=MAX_STOP_CHARS)]


class ChatCompletionRequest(OpenAIBody):
  """A conversation that waits for its next turn, in OpenAI's form.

  messages: the turns so far. model: name of the run, where several are served. stream,
  stream_options: whether the answer comes in chunks, and what they say. n: 1. max_tokens,
  max_completion_tokens: of the answer. temperature: 0 takes the likeliest token. seed: of the
  draws; another each time without it. stop: words before which the answer ends.
  """
  messages: Annotated[list[ChatMessage], pydantic.Field(min_length=1, max_length=MAX_MESSAGES)]
  model: str = ''
  stream: pydantic.StrictBool | None = False
  stream_options: StreamOptions | None = None
  n: routes.Whole | None = pydantic.Field(None, ge=1, le=1)
  max_tokens: routes.Whole | None = pydantic.Field(None, ge=1, le=MAX_TOKENS)
  max_completion_tokens: routes.Whole | None = pydantic.Field(None, ge=1, le=MAX_TOKENS)
  temperature: routes.Number | None = pydantic.Field(None, ge=0, le=2)
  seed: routes.Whole | None = pydantic.Field(None, ge=-2**63, lt=2**63)
  stop: StopWord | Annotated[list[StopWord], pydantic.Field(max_length=MAX_STOPS)] | None = None
  user: routes.UserId | None = pydantic.Field(
      None, description='an id: without `history` the last turn is about what this user did, as '
      'the training data and the events say')
  domain: str = pydantic.Field('', description='which catalog, where several are served')
  history: Annotated[list[routes.ItemId], pydantic.Field(max_length=routes.MAX_HISTORY)] = (
      pydantic.Field([], description='ids of items that the last turn is about'))
  min_items: routes.Whole = pydantic.Field(0, ge=0, le=MAX_REQUIRED_ITEMS,
                                  description='items that must come')
  max_items: routes.Whole = pydantic.Field(MAX_ITEMS, ge=1, le=MAX_ITEMS,
                                  description='items that may come')


class ReplyMessage(pydantic.BaseModel):
  """The next turn."""
  role: Literal['assistant'] = 'assistant'
  content: str
  refusal: None = None


class Choice(pydantic.BaseModel):
  """The only answer, and why it ended."""
  index: int = 0
  message: ReplyMessage
  logprobs: None = None
  finish_reason: Literal['stop', 'length']


class Usage(pydantic.BaseModel):
  """Tokens that were read and written."""
  prompt_tokens: int
  completion_tokens: int
  total_tokens: int


class ChatCompletion(pydantic.BaseModel):
  """A reply in OpenAI's form. items: what it recommends. request_id: by which events name the
  answer, where it is to a user."""
  id: str
  object: Literal['chat.completion'] = 'chat.completion'
  created: int
  model: str
  choices: list[Choice]
  usage: Usage
  items: list[routes.ShownItem]
  request_id: str | None


def add_routes(app: fastapi.FastAPI, service: RecommendationService) -> None:
  """Adds the route to `app`. service: what answers."""
  @app.post('/v1/chat/completions', response_model=None, responses={200: {
      'model': ChatCompletion, 'content': {'text/event-stream': {'schema': {
          'type': 'string', 'description': 'chat.completion.chunk objects, then [DONE]'}}}}})
  async def complete(body: ChatCompletionRequest, request: fastapi.Request
                     ) -> JSONResponse | StreamingResponse:
    """The next turn. `items` lists what it recommends: all of the catalog, none twice."""
    model = service.model(body.model, 'chat_model', NO_CHAT)
    is_over, texts, loop = threading.Event(), asyncio.Queue(), asyncio.get_running_loop()

    def on_text(text: str) -> None:
      with contextlib.suppress(RuntimeError):  # the server has ended
        loop.call_soon_threadsafe(texts.put_nowait, text)

    def on_done(reply: asyncio.Future) -> None:
      is_over.set()
      texts.put_nowait(None)
      if not reply.cancelled():
        reply.exception()  # looked at, wherever nobody waits for it
    history = body.history
    if body.user and 'history' not in body.model_fields_set:
      seen, _ = await service.user_history(model, body.user)
      history = [model.snapshot.item_id(item) for item in seen[-MAX_USER_ITEMS:]]
    query = await run_in_threadpool(chat_query, model, body, history,
                                    tell=on_text if body.stream else None, gone=is_over.is_set)
    reply = asyncio.ensure_future(service.answer(request, model.chat_batcher, query))
    reply.add_done_callback(on_done)
    head = {'id': f'chatcmpl-{uuid.uuid4().hex}', 'created': int(time.time()), 'model': model.name}

    async def shown() -> dict[str, Any]:
      items = described_items(model, reply.result())
      routes.note(request, model=model.name, items=len(items), user=body.user)
      request_id = body.user and items and await service.record_shown(
          request, body.user, model, [item['id'] for item in items])
      return {'items': items, 'request_id': request_id or None}
    if not body.stream:
      return JSONResponse({**completion(head, await reply), **await shown()})
    first_text = await texts.get()
    if first_text is None:
      reply.result()  # raises what keeps the reply from coming, while there is a status for it
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    return StreamingResponse(
        completion_events(head, first_text, texts, reply, shown, with_usage),
        media_type='text/event-stream', headers=EVENT_STREAM_HEADERS)


def chat_query(model: ServedModel, body: ChatCompletionRequest,
               history: Sequence[str | int], **listener: Any) -> Any:
  """Returns a request as the model's queue takes it.

  model: which is asked. body: the request. history: ids of items that it is about. listener: `tell`
  and `gone`, as the chat model takes them. Raises RequestError for what it cannot answer.
  """
  turns = []
  for message in body.messages:
    content = message.content
    if not isinstance(content, str):
      content = '\n'.join(part.text for part in content)
    turns.append({'role': message.role, 'content': replace_surrogates(content)})
  try:
    return model.chat_model.asked(
        turns, domain=body.domain,
        history=model.chat_model.known(history, body.domain),
        least=min(body.min_items, body.max_items), most=body.max_items,
        tokens=body.max_completion_tokens or body.max_tokens or 0, temperature=body.temperature,
        seed=(secrets.randbits(31) if body.seed is None else body.seed) % 2**31,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()), **listener)
  except UserError as error:
    raise RequestError(422, replace_surrogates(str(error))) from error


def finish_reason(reply: Any) -> str:
  """Returns why a reply ended, in OpenAI's words."""
  return 'stop' if reply.complete else 'length'


def token_usage(reply: Any) -> dict[str, int]:
  """Returns how many tokens were read and written for a reply."""
  return {'prompt_tokens': reply.tokens_in, 'completion_tokens': reply.tokens_out,
          'total_tokens': reply.tokens_in + reply.tokens_out}


def described_items(model: ServedModel, reply: Any) -> list[dict[str, Any]]:
  """Returns the items of a reply as people are shown them.

  model: whose reply it is. reply: what was written. Items of further catalogs have a title alone.
  """
  described = []
  is_own = model.chat_model.own(reply)
  for item, title in zip(reply.items, reply.titles):
    described.append(model.snapshot.describe(item) if is_own else
                     {'id': model.chat_model.item_id(reply, item), 'title': title})
  return described


def completion(head: Mapping[str, Any], reply: Any) -> dict[str, Any]:
  """Returns a reply as one object of OpenAI's form.

  head: its id, time and model. reply: what was written.
  """
  message = {'role': 'assistant', 'content': replace_surrogates(reply.text), 'refusal': None}
  choice = {'index': 0, 'logprobs': None, 'finish_reason': finish_reason(reply),
            'message': message}
  return {**head, 'object': 'chat.completion', 'usage': token_usage(reply), 'choices': [choice]}


async def completion_events(
    head: Mapping[str, Any], text: str | None, texts: asyncio.Queue, reply: asyncio.Future,
    shown: Callable[[], Awaitable[dict[str, Any]]], with_usage: bool) -> AsyncIterator[str]:
  """Yields a reply as server-sent events: text as it comes, then the items, then the end.

  head: as `completion` takes it. text: what came first. texts: the queue of what comes, each the
  text so far, None at the end. reply: the whole reply; it is cancelled where nobody reads on.
  shown: gives what is said of its items. with_usage: whether the last event counts tokens.
  """
  head, sent = {**head, 'object': 'chat.completion.chunk'}, 0

  def chunk(delta: dict, reason: str | None = None, **more) -> Any:
    choice = {'index': 0, 'delta': delta, 'logprobs': None, 'finish_reason': reason}
    return server_sent_event({**head, 'choices': [choice], **more})
  try:
    yield chunk({'role': 'assistant', 'content': ''})
    while True:
      so_far = replace_surrogates(reply.result().text if text is None else text)
      if len(so_far) > sent:
        yield chunk({'content': so_far[sent:]})
        sent = len(so_far)
      if text is None:
        break
      text = await texts.get()
    yield chunk({}, finish_reason(reply.result()), **await shown())
    if with_usage:
      yield server_sent_event({**head, 'choices': [], 'usage': token_usage(reply.result())})
    yield 'data: [DONE]\n\n'
  except RequestError as error:  # the status is sent already
    yield server_sent_event(error_body(error.status, replace_surrogates(error.message)))
  finally:
    reply.cancel()


def server_sent_event(value: Any) -> str:
  """Returns a JSON value as one server-sent event."""
  return f'data: {json.dumps(value)}\n\n'
