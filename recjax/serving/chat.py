"""Conversation in the form of OpenAI's chat completions, its items beside the text.

A reply is made whole and then sent; with `stream` it comes in pieces of a few words.
"""
import asyncio
import json
import re
import time
import uuid
from typing import Annotated

import fastapi
import pydantic
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse

from recjax.errors import UserError
from recjax.serving import service as services
from recjax.serving.limits import Refused

MESSAGES, LETTERS = 200, 20_000  # of a conversation, of a message
PIECES = re.compile(r'\s*\S+(?:\s+$)?')
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
    said = await run_in_threadpool(asked, model, talk)
    answer = await service.wait(request, model.chat, said)
    head = {'id': f'chatcmpl-{uuid.uuid4().hex}', 'created': int(time.time()), 'model': model.name}
    if talk.stream:
      usage = talk.stream_options is not None and talk.stream_options.include_usage
      return StreamingResponse(pieces(head, model, answer, usage), media_type='text/event-stream',
                               headers={'Cache-Control': 'no-store'})
    return JSONResponse({
        **head, 'object': 'chat.completion', 'usage': usage_of(answer),
        'choices': [{'index': 0, 'logprobs': None, 'finish_reason': ended(answer), 'message': {
            'role': 'assistant', 'content': services.clean(answer.text), 'refusal': None}}],
        'items': listed(model, answer)})


def asked(model, talk):
  """The request as the model takes it. Raises Refused."""
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
        seed=(talk.seed or 0) % 2**31)
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


async def pieces(head, model, answer, usage):
  """The reply as server-sent events: words, then the items, then the end."""
  head = {**head, 'object': 'chat.completion.chunk'}

  def event(delta, reason=None, **more):
    choice = {'index': 0, 'delta': delta, 'logprobs': None, 'finish_reason': reason}
    return f'data: {json.dumps({**head, "choices": [choice], **more})}\n\n'
  yield event({'role': 'assistant', 'content': ''})
  for piece in PIECES.findall(services.clean(answer.text)):
    yield event({'content': piece})
    await asyncio.sleep(0)
  yield event({}, ended(answer), items=listed(model, answer))
  if usage:
    yield f'data: {json.dumps({**head, "choices": [], "usage": usage_of(answer)})}\n\n'
  yield 'data: [DONE]\n\n'
