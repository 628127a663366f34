"""Conversation in the form of OpenAI's chat completions, its items beside the text.

With `stream` the text comes while the model writes it, a title in one piece.
"""
import asyncio
import contextlib
import json
import threading
import time
import uuid
from typing import Annotated

import fastapi
import pydantic
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse

from recjax.errors import UserError
from recjax.serving import service as services
from recjax.serving.limits import Refused, trouble

MESSAGES, LETTERS = 200, 20_000  # of a conversation, of a message
NO_CHAT = 'for conversation serve the folder of a RecLM run'


class Part(pydantic.BaseModel):
  """A piece of a message."""
  type: str
  text: Annotated[str, pydantic.Field(max_length=LETTERS)] = ''


class Message(pydantic.BaseModel):
  """A turn."""
  role: str = pydantic.Field(max_length=40)
  content: Annotated[str, pydantic.Field(max_length=LETTERS)] | Annotated[
      list[Part], pydantic.Field(max_length=50)]


class StreamOptions(pydantic.BaseModel):
  """What a stream says besides."""
  include_usage: bool = False


class Talk(pydantic.BaseModel):
  """A conversation that waits for its next turn; OpenAI's other fields are taken and not needed."""
  messages: Annotated[list[Message], pydantic.Field(min_length=1, max_length=MESSAGES)]
  model: str = ''
  stream: bool = False
  stream_options: StreamOptions | None = None
  n: int | None = pydantic.Field(None, ge=1, le=1)
  max_tokens: int | None = pydantic.Field(None, ge=1, le=100_000)
  max_completion_tokens: int | None = pydantic.Field(None, ge=1, le=100_000)
  temperature: float | None = pydantic.Field(None, ge=0, le=2)
  seed: int | None = pydantic.Field(None, ge=-2**63, lt=2**63)
  domain: str = pydantic.Field('', description='which catalogue, where several are served')
  history: Annotated[list[Annotated[
      pydantic.StrictStr, pydantic.Field(max_length=500)] | pydantic.StrictInt], pydantic.Field(
      max_length=services.MOST_HISTORY)] = pydantic.Field(
          [], description='ids of items that the last turn is about')
  min_items: int = pydantic.Field(0, ge=0, le=3, description='items that must come')
  max_items: int = pydantic.Field(10, ge=1, le=10, description='items that may come')


def add(app, service):
  """The route."""
  @app.post('/v1/chat/completions', response_model=None)
  async def complete(talk: Talk, request: fastapi.Request) -> JSONResponse | StreamingResponse:
    """The next turn. `items` lists what it recommends: all of the catalogue, none twice."""
    model = service.model(talk.model, 'talk', NO_CHAT)
    over, heard, loop = threading.Event(), asyncio.Queue(), asyncio.get_running_loop()

    def tell(text):
      with contextlib.suppress(RuntimeError):  # the server has ended
        loop.call_soon_threadsafe(heard.put_nowait, text)

    def done(answer):
      over.set()
      heard.put_nowait(None)
      answer.cancelled() or answer.exception()  # looked at, wherever nobody waits for it
    asking = await run_in_threadpool(asked, model, talk, tell=tell if talk.stream else None,
                                     gone=over.is_set)
    answer = asyncio.ensure_future(service.wait(request, model.chat, asking))
    answer.add_done_callback(done)
    head = {'id': f'chatcmpl-{uuid.uuid4().hex}', 'created': int(time.time()), 'model': model.name}
    if not talk.stream:
      return JSONResponse(whole(head, model, await answer))
    first = await heard.get()
    if first is None:
      answer.result()  # raises what keeps the reply from coming, while there is a status for it
    usage = talk.stream_options is not None and talk.stream_options.include_usage
    return StreamingResponse(
        pieces(head, model, first, heard, answer, usage), media_type='text/event-stream',
        headers={'Cache-Control': 'no-store', 'X-Accel-Buffering': 'no'})


def asked(model, talk, **how):
  """The request as the model takes it. how: of a listener, `tell` and `gone`. Raises Refused."""
  turns = []
  for message in talk.messages:
    content = message.content
    if not isinstance(content, str):
      if any(part.type != 'text' for part in content):
        raise Refused(422, 'messages may hold text alone')
      content = '\n'.join(part.text for part in content)
    turns.append({'role': message.role, 'content': services.clean(content)})
  try:
    return model.talk.asked(
        turns, domain=talk.domain, history=model.talk.known(map(str, talk.history), talk.domain),
        least=min(talk.min_items, talk.max_items), most=talk.max_items,
        tokens=talk.max_completion_tokens or talk.max_tokens or 0, temperature=talk.temperature,
        seed=(talk.seed or 0) % 2**31, **how)
  except UserError as error:
    raise Refused(422, services.clean(str(error))) from error


def ended(answer):
  """Why the reply ended, in OpenAI's words."""
  return 'stop' if answer.complete else 'length'


def usage_of(answer):
  """Tokens read and written."""
  return {'prompt_tokens': answer.tokens_in, 'completion_tokens': answer.tokens_out,
          'total_tokens': answer.tokens_in + answer.tokens_out}


def listed(model, answer):
  """The items of a reply. Those of further catalogues have their title alone."""
  out = []
  for item, title in zip(answer.items, answer.titles):
    index = model.stock.index(item)
    same = index and model.talk.own(answer)
    out.append(model.stock.show(index) if same else {'id': item, 'title': title})
  return out


def whole(head, model, answer):
  """The reply as one object."""
  message = {'role': 'assistant', 'content': services.clean(answer.text), 'refusal': None}
  return {**head, 'object': 'chat.completion', 'usage': usage_of(answer), 'choices': [
      {'index': 0, 'logprobs': None, 'finish_reason': ended(answer), 'message': message}],
      'items': listed(model, answer)}


async def pieces(head, model, text, heard, answer, usage):
  """The reply as server-sent events: text as it comes, then the items, then the end.

  text: what was heard first, heard: a queue of what comes, each the text so far, None at the end.
  answer: a task of the Answer; it is cancelled where nobody reads on.
  """
  head, sent = {**head, 'object': 'chat.completion.chunk'}, 0

  def event(delta, reason=None, **more):
    choice = {'index': 0, 'delta': delta, 'logprobs': None, 'finish_reason': reason}
    return said({**head, 'choices': [choice], **more})
  try:
    yield event({'role': 'assistant', 'content': ''})
    while True:
      final = text is None
      text = services.clean(answer.result().text if final else text)
      if len(text) > sent:
        yield event({'content': text[sent:]})
        sent = len(text)
      if final:
        break
      text = await heard.get()
    yield event({}, ended(answer.result()), items=listed(model, answer.result()))
    if usage:
      yield said({**head, 'choices': [], 'usage': usage_of(answer.result())})
    yield 'data: [DONE]\n\n'
  except Refused as error:  # the status is sent already
    yield said(trouble(error.status, services.clean(error.message)))
  finally:
    answer.cancel()


def said(value):
  """One server-sent event."""
  return f'data: {json.dumps(value)}\n\n'
