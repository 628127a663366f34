"""Base tags from every source, and what happens to items without them."""
import http.server
import json
import os
import pathlib
import threading
from unittest import mock

from absl.testing import absltest

from recjax import errors
from recjax.data.loading import load_data
from recjax.methods.betag import base_tags
from recjax.text import llm_api
from recjax.training import workdir as workdir_lib
from tests.methods import betag_test as toy


class Service(http.server.BaseHTTPRequestHandler):
  """An OpenAI-compatible endpoint that tags by the title's words, and refuses one item."""
  asked = []

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    text = body['messages'][-1]['content']
    self.asked.append((self.headers['Authorization'], text))
    words = next(line for line in text.split('\n') if line.startswith('title: ')).split()[1:]
    reply = '\n'.join(f'{i}. "{w}"' for i, w in enumerate(words, 1))
    answer = json.dumps({
        'choices': [{'message': {'role': 'assistant', 'content': reply},
                     'finish_reason': 'stop'}] * body['n'],
        'usage': {'prompt_tokens': 10, 'completion_tokens': 5}}).encode()
    self.send_response(200)
    self.send_header('Content-Length', str(len(answer)))
    self.end_headers()
    self.wfile.write(answer)

  def log_message(self, *_):
    pass


class TagsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def stage(self, **changes):
    data = toy.write_toy(self.folder / 'toy')
    cfg = toy.toy_config(data)
    cfg.tags.update(**changes)
    shop = load_data(data)
    with workdir_lib.open_work(self.folder / 'run', {}) as work:
      folder = work.stage('base-tags', base_tags.stage, cfg.tags, shop)
    read = {n: json.loads((folder / n).read_text())
            for n in ('base_tags.json', 'inters.train.json', 'DONE.json')}
    return read['base_tags.json'], read['inters.train.json'], read['DONE.json']['counts']

  def test_the_datas_own_column_is_taken_and_the_last_two_items_are_held_out(self):
    found, sequences, counts = self.stage()
    self.assertEqual(found, {i: list(w) for i, w in toy.WORDS.items()})
    self.assertEqual(sequences[0], list('abcab'))
    self.assertEqual(counts['source'], 'data')

  def test_keywords_need_nothing_but_the_text(self):
    found, _, _ = self.stage(source='keywords')
    self.assertEqual(set(found), set(toy.WORDS))
    self.assertTrue(all(found.values()))

  def test_items_without_tags_can_be_dropped_and_are_counted(self):
    path = self.folder / 'some.json'
    path.write_text(json.dumps({i: list(w) for i, w in toy.WORDS.items() if i != 'b'}))
    found, sequences, counts = self.stage(source='file', file=str(path), on_missing='drop_item')
    self.assertNotIn('b', found)
    self.assertFalse([s for s in sequences if 'b' in s])
    self.assertEqual(counts['missing_items'], 1)
    _, sequences, counts = self.stage(source='file', file=str(path), on_missing='drop_sequence')
    self.assertEqual(counts['dropped_sequences'], 18)

  def test_a_file_of_tags_that_holds_the_separator_can_be_escaped(self):
    path = self.folder / 'some.json'
    path.write_text(json.dumps({**{i: list(w) for i, w in toy.WORDS.items()}, 'b': ['x| y']}))
    with self.assertRaisesRegex(errors.DataError, "'b'"):
      self.stage(source='file', file=str(path))
    found, _, counts = self.stage(source='file', file=str(path), on_bad_tag='escape')
    self.assertEqual((found['b'], counts['escaped_tags']), (['x y'], 1))

  def test_an_api_is_asked_once_an_item_and_its_key_reaches_no_file(self):
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Service.asked.clear()
    try:
      with mock.patch.dict(os.environ, OPENAI_API_KEY='secret-of-the-test'):
        found, _, counts = self.stage(
            source='api', api_url=f'http://127.0.0.1:{server.server_port}/v1', api_samples=2)
        self.stage(source='api', api_url=f'http://127.0.0.1:{server.server_port}/v1', api_samples=2)
    finally:
      server.shutdown()
      server.server_close()
    self.assertEqual(found['b'], ['stove', 'gas', 'fuel'])
    self.assertLen(Service.asked, 6)
    self.assertEqual(Service.asked[0][0], 'Bearer secret-of-the-test')
    self.assertEqual(counts['without_numbered_list'], 0)
    for path in (self.folder / 'run').rglob('*'):
      if path.is_file():
        self.assertNotIn(b'secret-of-the-test', path.read_bytes(), path)

  def test_another_budget_or_number_of_tags_asks_for_nothing_twice(self):
    """A stage whose settings change starts anew; what was paid for must not."""
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Service.asked.clear()
    given = dict(source='api', api_url=f'http://127.0.0.1:{server.server_port}/v1', api_samples=1,
                 api_price_in=0., api_price_out=1e6, api_max_tokens=50, api_concurrency=1)
    try:
      with self.assertRaisesRegex(errors.ServiceError, 'before passing max_cost'):
        self.stage(**given, api_budget=62.)  # 5 an item as served, 50 at its worst
      self.assertLen(Service.asked, 3)
      found, _, _ = self.stage(**given, api_budget=1000.)
      fewer, _, _ = self.stage(**given, api_budget=1000., max_base_tags=1)
    finally:
      server.shutdown()
      server.server_close()
    self.assertEqual((found['b'], fewer['b']), (['stove', 'gas', 'fuel'], ['stove']))
    self.assertLen(Service.asked, 6)

  def test_what_a_model_writes_can_stand_in_a_line_and_half_a_tag_is_none(self):
    answers = iter(['1. camp| stove\n2. gas\n3. out', '1. a\n2. b'])

    def answer(requests, *_, **__):
      text = next(answers)
      return {key: llm_api.Result((text,), cut=(text.endswith('out'),)) for key in requests}
    with mock.patch.object(llm_api, 'run_requests', answer):
      found, _, counts = self.stage(source='api', api_url='http://localhost/v1')
    self.assertEqual(found['b'], ['camp stove', 'gas'])
    self.assertEqual(counts['cut_at_max_tokens'], 6)

  def test_settings_of_a_service_that_is_not_asked_decide_nothing(self):
    cfg = toy.toy_config(self.folder / 'toy')
    before = base_tags.settings(cfg)
    cfg.tags.api_max_tokens = 7
    self.assertEqual(before, base_tags.settings(cfg))
    cfg.tags.source = 'api'
    self.assertEqual(base_tags.settings(cfg).api_max_tokens, 7)

  def test_an_unknown_source_is_refused(self):
    with self.assertRaisesRegex(errors.ConfigError, 'tags.source'):
      self.stage(source='magic')


if __name__ == '__main__':
  absltest.main()
