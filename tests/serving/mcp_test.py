"""Tools of assistants, asked by the client of the official SDK: in process, by stdio, by HTTP."""
import asyncio
import importlib.util
import pathlib
import re
import signal
import subprocess
import sys
import unittest

from absl.testing import absltest, parameterized

from recjax.serving import mcp_server
from tests.long import long
from tests.serving import fake_service
from tests.serving.fake_service import LONG

ROOT = pathlib.Path(__file__).parents[2]
SERVER = '''
import sys
from recjax.serving import mcp_server, server
from tests.long import long
from tests.serving import fake_service
service = fake_service.service(port=0, api_key=sys.argv[2] if sys.argv[2:] else '')
tools = mcp_server.build(service)
if sys.argv[1] == 'stdio':
  tools.run('stdio')
else:
  mcp_server.listen_http(tools, service, server.bind_sockets(service.settings), print)
'''


def setUpModule():
  if importlib.util.find_spec('mcp') is None:
    raise unittest.SkipTest('mcp is not installed')


def asked(where, task):
  """What task(client) gives, of a client of `where`."""
  from mcp import Client

  async def ask():
    async with asyncio.timeout(LONG):
      async with Client(where) as client:
        return await task(client)
  return asyncio.run(ask())


async def whole_trip(client):
  """An assistant that shops: every tool once, and what is refused. -> what came"""
  tools = (await client.list_tools()).tools
  assert all(tool.annotations.read_only_hint and tool.output_schema for tool in tools)
  async def call(name, **given):
    answer = await client.call_tool(name, given)
    return answer.content[0].text if answer.is_error else answer.structured_content
  found = await call('search', query='green rop', limit=2)
  first = found['items'][0]
  return {'tools': sorted(tool.name for tool in tools), 'search': found,
          'item': await call('item', id=first['id']),
          'recommend': await call('recommend', history=[first['id'], 'nix'], k=3,
                                  category='climbing', without=['i42']),
          'why': await call('why', id='i42', history=[first['id']]),
          'no item': await call('item', id='nix'), 'k': await call('recommend', k=0),
          'category': await call('search', category='nix')}


class ToolsTest(parameterized.TestCase):

  def check(self, found):
    self.assertEqual(found['tools'], ['item', 'recommend', 'search', 'why'])
    self.assertEqual([i['id'] for i in found['search']['items']], ['i41', 'i44'])
    self.assertEqual(found['search']['total'], 7)
    self.assertEqual((found['item']['title'], found['item']['price']), ('green rope 41', 41.5))
    items = found['recommend']['items']
    self.assertEqual([i['id'] for i in items], ['i43', 'i44', 'i45'])
    self.assertEqual(found['recommend']['unknown'], ['nix'])
    self.assertEqual(items[0]['why']['tags'], ['tall', 'red'])
    self.assertEqual(found['why']['tags'], ['tall', 'red'])
    self.assertIn("no item 'nix'", found['no item'])
    self.assertIn('greater than', found['k'])
    self.assertIn('kitchen', found['category'])

  def test_in_process(self):
    self.check(asked(mcp_server.build(fake_service.service()), whole_trip))

  @long
  def test_stdio(self):
    from mcp import StdioServerParameters
    self.check(asked(StdioServerParameters(
        command=sys.executable, args=['-c', SERVER, 'stdio'], cwd=str(ROOT)), whole_trip))

  def started(self, *words):
    """A server over HTTP. -> its address"""
    process = subprocess.Popen([sys.executable, '-c', SERVER, 'http', *words], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE)
    self.addCleanup(process.stdout.close)
    self.addCleanup(self.ended, process)
    return re.match(r'(http://\S+/mcp) has the tools', process.stdout.readline())[1]

  def ended(self, process):
    process.send_signal(signal.SIGTERM)
    self.assertIn('SIGTERM: no new connections', process.stdout.read())
    self.assertEqual(process.wait(LONG), 0)

  @long
  def test_http(self):
    self.check(asked(self.started(), whole_trip))

  @long
  def test_http_with_a_key_and_from_foreign_pages(self):
    import httpx
    url = self.started('secret')
    body = {'jsonrpc': '2.0', 'id': 1, 'method': 'tools/list'}
    key = {'Authorization': 'Bearer secret', 'Accept': 'application/json, text/event-stream'}
    for heads, status in (({}, 401), (key, 200), ({**key, 'Origin': 'http://evil.example'}, 403),
                          ({**key, 'Host': 'evil.example'}, 421)):
      answer = httpx.post(url, json=body, headers=heads, timeout=LONG)
      self.assertEqual(answer.status_code, status, (heads, answer.text))

  def test_users_are_known_by_id_and_histories_overrule(self):
    service = fake_service.service(split='ring:1')
    from recjax.serving.events import Event
    service.store.write([[Event('k', 'u', 'i5', 'purchase', 1)]])

    async def task(client):
      async def first(**given):
        answer = await client.call_tool('recommend', {'k': 1, **given})
        return [i['id'] for i in answer.structured_content['items']]
      return [await first(user='u'), await first(user='u', history=['i9']),
              await first(user='new'), await first(history=['i9'], only=['i3', 'i11', 'nix'])]
    self.assertEqual(asked(mcp_server.build(service), task), [['i6'], ['i10'], ['i0'], ['i11']])


if __name__ == '__main__':
  absltest.main()
