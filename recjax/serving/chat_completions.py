"""Chat in the form of OpenAI's chat completions, with the recommended items beside the text.

With `stream` the text comes while the model writes it, a title in one piece.
"""
import asyncio
import contextlib
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

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
NO_CHAT = 'for conversation serve the folder of a RecLM run'
EVENT_STREAM_HEADERS = {'Cache-Control': 'no-store', 'X-Accel-Buffering': 'no'}


class ContentPart(pydantic.BaseModel):
  """A part of a message; only those of type 'text' are taken."""
  type: str
  text: Annotated[str, pydantic.Field(max_length=MAX_MESSAGE_CHARS)] = ''


class ChatMessage(pydantic.BaseModel):
  """A turn of a conversation. role: who says it. content: what is said, a text or parts of one."""
  role: str = pydantic.Field(max_length=40)
  content: Annotated[str, pydantic.Field(max_length=MAX_MESSAGE_CHARS)] | Annotated[
      list[ContentPart], pydantic.Field(max_length=MAX_PARTS)]


class StreamOptions(pydantic.BaseModel):
  """What a stream says besides. include_usage: whether the last chunk counts tokens."""
  include_usage: bool = False


class ChatCompletionRequest(pydantic.BaseModel):
  """A conversation that waits for its next turn; OpenAI's other fields are taken and not needed.

  messages: the turns so far. model: name of the run, where several are served. stream,
  stream_options: whether the answer comes in chunks, and what they say. n: 1. max_tokens,
  max_completion_tokens: of the answer. temperature: 0 takes the likeliest token. seed: of the
  draws.
  """
  messages: Annotated[list[ChatMessage], pydantic.Field(min_length=1, max_length=MAX_MESSAGES)]
  model: str = ''
  stream: bool = False
  stream_options: StreamOptions | None = None
  n: int | None = pydantic.Field(None, ge=1, le=1)
  max_tokens: int | None = pydantic.Field(None, ge=1, le=MAX_TOKENS)
  max_completion_tokens: int | None = pydantic.Field(None, ge=1, le=MAX_TOKENS)
  temperature: float | None = pydantic.Field(None, ge=0, le=2)
  seed: int | None = pydantic.Field(None, ge=-2**63, lt=2**63)
  domain: str = pydantic.Field('', description='which catalog, where several are served')
  history: Annotated[list[routes.ItemId], pydantic.Field(max_length=routes.MAX_HISTORY)] = (
      pydantic.Field([], description='ids of items that the last turn is about'))
  min_items: int = pydantic.Field(0, ge=0, le=MAX_REQUIRED_ITEMS,
                                  description='items that must come')
  max_items: int = pydantic.Field(MAX_ITEMS, ge=1, le=MAX_ITEMS,
                                  description='items that may come')


def add_routes(app: fastapi.FastAPI, service: RecommendationService) -> None:
  """Adds the route to `app`. service: what answers."""
  @app.post('/v1/chat/completions', response_model=None)
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
    query = await run_in_threadpool(chat_query, model, body, tell=on_text if body.stream else None,
                                    gone=is_over.is_set)
    reply = asyncio.ensure_future(service.answer(request, model.chat_batcher, query))
    reply.add_done_callback(on_done)
    head = {'id': f'chatcmpl-{uuid.uuid4().hex}', 'created': int(time.time()), 'model': model.name}
    if not body.stream:
      return JSONResponse(completion(head, model, await reply))
    first_text = await texts.get()
    if first_text is None:
      reply.result()  # raises what keeps the reply from coming, while there is a status for it
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    return StreamingResponse(
        completion_events(head, model, first_text, texts, reply, with_usage),
        media_type='text/event-stream', headers=EVENT_STREAM_HEADERS)


def chat_query(model: ServedModel, body: ChatCompletionRequest, **listener: Any) -> Any:
  """Returns a request as the model's queue takes it.

  model: which is asked. body: the request. listener: `tell` and `gone`, as the chat model takes
  them. Raises RequestError for what it cannot answer.
  """
  turns = []
  for message in body.messages:
    content = message.content
    if not isinstance(content, str):
      if any(part.type != 'text' for part in content):
        raise RequestError(422, 'messages may hold text alone')
      content = '\n'.join(part.text for part in content)
    turns.append({'role': message.role, 'content': replace_surrogates(content)})
  try:
    return model.chat_model.asked(
        turns, domain=body.domain,
        history=model.chat_model.known(body.history, body.domain),
        least=min(body.min_items, body.max_items), most=body.max_items,
        tokens=body.max_completion_tokens or body.max_tokens or 0, temperature=body.temperature,
        seed=(body.seed or 0) % 2**31, **listener)
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


def completion(head: Mapping[str, Any], model: ServedModel, reply: Any) -> dict[str, Any]:
  """Returns a reply as one object of OpenAI's form.

  head: its id, time and model. model: whose reply it is. reply: what was written.
  """
  message = {'role': 'assistant', 'content': replace_surrogates(reply.text), 'refusal': None}
  choice = {'index': 0, 'logprobs': None, 'finish_reason': finish_reason(reply),
            'message': message}
  return {**head, 'object': 'chat.completion', 'usage': token_usage(reply), 'choices': [choice],
          'items': described_items(model, reply)}


async def completion_events(head: Mapping[str, Any], model: ServedModel, text: str | None,
                            texts: asyncio.Queue, reply: asyncio.Future,
                            with_usage: bool) -> AsyncIterator[str]:
  """Yields a reply as server-sent events: text as it comes, then the items, then the end.

  head, model: as `completion` takes them. text: what came first. texts: the queue of what comes,
  each the text so far, None at the end. reply: the whole reply; it is cancelled where nobody reads
  on. with_usage: whether the last event counts tokens.
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
    yield chunk({}, finish_reason(reply.result()), items=described_items(model, reply.result()))
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
