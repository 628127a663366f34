"""FastAPI's Swagger UI at /docs, with the assets of the package fastapi-offline: no network."""
import base64
import hashlib
import importlib.resources
import re
from collections.abc import Callable

import fastapi
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response

ASSETS = {'swagger-ui-bundle.js': 'text/javascript', 'swagger-ui.css': 'text/css',
          'favicon.png': 'image/png'}
ASSETS_FOLDER = importlib.resources.files('fastapi_offline') / 'static'
ASSETS_PATH = '/docs/assets'
INLINE_SCRIPT = re.compile(r'<script>(.*?)</script>', re.DOTALL)


def add_api_docs(app: fastapi.FastAPI) -> None:
  """Adds the API page to `app`, which must have been made with docs_url=None.

  Its content security policy allows the one script that FastAPI writes into the page, by its hash,
  and the styles that Swagger UI sets on elements.
  """
  contents = {name: (ASSETS_FOLDER / name).read_bytes() for name in ASSETS}
  page = get_swagger_ui_html(
      openapi_url=app.openapi_url or '', title=f'{app.title} API',
      swagger_js_url=f'{ASSETS_PATH}/swagger-ui-bundle.js',
      swagger_css_url=f'{ASSETS_PATH}/swagger-ui.css',
      swagger_favicon_url=f'{ASSETS_PATH}/favicon.png').body
  page = bytes(page).decode()
  policy = content_security_policy(page)

  @app.get('/docs', include_in_schema=False)
  async def docs():
    return HTMLResponse(page, headers={'Content-Security-Policy': policy})

  for name, media_type in ASSETS.items():
    app.add_api_route(f'{ASSETS_PATH}/{name}', static_route(contents[name], media_type),
                      include_in_schema=False)


def static_route(content: bytes, media_type: str) -> Callable[[], Response]:
  """Returns a route that answers with `content` of type `media_type`."""
  def route():
    return Response(content, media_type=media_type, headers={'Cache-Control': 'max-age=3600'})
  return route


def content_security_policy(page: str) -> str:
  """Returns the policy under which a page of Swagger UI works and nothing else does.

  page: its HTML; its inline scripts are allowed as they stand.
  """
  hashes = ' '.join(
      f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
      for script in INLINE_SCRIPT.findall(page))
  return (f"default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; "
          "img-src 'self' data:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
          "frame-ancestors 'none'")
