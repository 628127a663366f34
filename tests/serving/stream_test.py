"""Chat over real sockets: streams that come while the reply is made, clients that leave or half
close, and the control symbols of RecLM in what people write."""
import contextlib
import json
import socket
import threading

from absl.testing import absltest, parameterized

from recjax.errors import DataError
from tests.serving import fake_service
from tests.serving.fake_service import LONG, settled

ASK = {'messages': [{'role': 'user', 'content': 'some words'}], 'stream': True, 'model': 'talk'}


def sent(url, body=ASK, path='/v1/chat/completions'):
  """A connection on which a request was sent."""
  data = json.dumps(body).encode()
  pipe = socket.create_connection(('127.0.0.1', int(url.rpartition(':')[2])), timeout=LONG)
  pipe.sendall(b'POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n'
               b'Content-Length: %d\r\n\r\n%s' % (path.encode(), len(data), data))
  return pipe


def until(pipe, what):
  """Reads until `what` came, or the end, which None waits for. -> bytes"""
  found = b''
  while (what is None or what not in found) and (more := pipe.recv(4096)):
    found += more
  return found


class StreamTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.shop = fake_service.service()
    self.talker, self.go = self.shop.models['talk'].chat_model, threading.Event()
    self.talker.before = lambda: self.go.wait(LONG)

  def test_the_first_words_come_before_the_others_are_made(self):
    with fake_service.listening(self.shop) as url:
      pipe = sent(url)
      first = until(pipe, b'"You"')
      self.assertEqual(self.talker.words, 1)
      self.assertNotIn(b'said', first)
      self.go.set()
      rest = until(pipe, b'[DONE]').decode()
      pipe.close()
    events = [json.loads(line[6:]) for line in rest.splitlines() if line.startswith('data: {')]
    deltas = [e['choices'][0]['delta'].get('content', '') for e in events]
    self.assertEqual('You' + ''.join(deltas), 'You said: some words\nTry "red kettle 0".')
    self.assertGreater(sum(map(bool, deltas)), 5)
    self.assertEqual([i['id'] for i in events[-1]['items']], ['i0'])
    self.assertEqual(events[-1]['choices'][0]['finish_reason'], 'stop')

  @parameterized.parameters('close', 'reset', 'write')
  def test_who_leaves_within_a_stream_ends_it(self, how):
    """To end one's sending side counts as leaving: it looks the same from here."""
    with fake_service.listening(self.shop) as url:
      pipe = sent(url)
      until(pipe, b'"You"')
      if how == 'write':
        pipe.shutdown(socket.SHUT_WR)
        self.assertNotIn(b'[DONE]', until(pipe, b'[DONE]'))  # the end, not a wait
      elif how == 'reset':
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
        pipe.close()
      else:
        pipe.close()
      self.assertTrue(settled(lambda: self.shop.limits.running == 0))
      self.go.set()
      self.assertTrue(settled(lambda: self.talker.ended == 1))
      self.assertEqual(self.talker.words, 1)
      self.assertEqual(self.answered(url), 200)
      pipe.close()

  def test_who_reads_no_more_leaves_the_others_alone(self):
    with fake_service.listening(self.shop) as url:
      pipe = sent(url)
      until(pipe, b'"You"')
      pipe.shutdown(socket.SHUT_RD)
      self.go.set()
      self.assertTrue(settled(lambda: self.shop.limits.running == 0))
      self.assertEqual(self.answered(url), 200)
      pipe.close()

  def answered(self, url):
    with contextlib.closing(sent(url, {'history': ['i1']}, '/v1/recommend')) as pipe:
      return int(until(pipe, b'\r\n').split()[1])

  @parameterized.parameters('/v1/recommend', '/v1/interests', '/v1/events')
  def test_half_closed_requests_end_and_hurt_nobody(self, path):
    self.go.set()
    body = {'/v1/events': {'user': 'u', 'item': 'i1', 'type': 'click'}}.get(
        path, {'history': ['i1']})
    with fake_service.listening(self.shop) as url:
      for side in (socket.SHUT_WR, socket.SHUT_RD):
        pipe = sent(url, body, path)
        pipe.shutdown(side)
        self.assertIn(until(pipe, b'}')[9:12], (b'', b'200'))
        pipe.close()
      part = socket.create_connection(('127.0.0.1', int(url.rpartition(':')[2])), timeout=LONG)
      part.sendall(b'POST /v1/recommend HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{')
      part.shutdown(socket.SHUT_WR)
      self.assertEqual(until(part, b'}')[9:12], b'')
      part.close()
      self.assertTrue(settled(lambda: self.shop.limits.running == 0))
      self.assertEqual(self.answered(url), 200)

  def test_a_reply_that_fails_is_said_by_a_status_or_in_the_stream(self):
    self.go.set()
    steps = []

    def fail():
      steps.append(1)
      raise DataError('no more words')
    with fake_service.listening(self.shop) as url:
      self.talker.before = fail
      with contextlib.closing(sent(url)) as pipe:
        found = until(pipe, b'}}')
      self.assertIn(b'no more words', found)
      self.assertNotIn(b'[DONE]', found)
      self.shop.models['talk'].chat_batcher.answer_batch = lambda some, settle: fail()
      with contextlib.closing(sent(url)) as pipe:
        found = until(pipe, b'}}')
      self.assertIn(b' 422 ', found)
    self.assertLen(steps, 2)


if __name__ == '__main__':
  absltest.main()
