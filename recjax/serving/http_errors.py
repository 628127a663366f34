"""Errors as clients see them: one JSON form, which OpenAI's clients read too."""
from collections.abc import Mapping
from typing import Any

ERROR_TYPES = {401: 'authentication_error', 403: 'permission_error', 404: 'not_found_error',
               408: 'timeout_error', 413: 'invalid_request_error', 429: 'rate_limit_error',
               503: 'overloaded_error', 504: 'timeout_error'}
CLIENT_CLOSED_REQUEST = 499  # as nginx logs a client that went away


class RequestError(Exception):
  """A request that is answered with an error status.

  status: the HTTP status. message: what is wrong and how to mend it. headers: further headers of
  the answer.
  """

  def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
    super().__init__(message)
    self.status, self.message, self.headers = status, message, dict(headers or {})


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
  """Returns the body of an error answer.

  status: the HTTP status. message: what is wrong. param: the field that is wrong, if it is one.
  """
  kind = ERROR_TYPES.get(status, 'invalid_request_error' if status < 500 else 'server_error')
  return {'detail': message, 'error': {'message': message, 'type': kind, 'param': param,
                                       'code': str(status)}}


def replace_surrogates(text: str) -> str:
  """Returns `text` as it can be sent: halves of surrogate pairs become question marks."""
  return text.encode('utf-8', 'replace').decode()
