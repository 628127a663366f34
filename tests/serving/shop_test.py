"""The web shop in headless Chromium: the whole path, hostile titles, a phone, the keyboard."""
import json

from absl.testing import absltest

from tests.browser import Browser
from tests.serving import app_test, fake_service

CARDS = "document.querySelectorAll('#items .card').length"


class Visitor:
  """A browser of the shop, without its page."""

  def __init__(self, shop):
    self.http = app_test.client(shop)
    self.user = self.http.get('/shop/state').json()['user']

  def buy(self, *items):
    for item in items:
      found = self.http.post('/v1/events', json={
          'user': self.user, 'item': item, 'type': 'purchase'})
      assert found.status_code == 200, found.text

  def forget(self, key):
    return self.http.delete('/shop/history', params={'key': key})


class SessionTest(absltest.TestCase):

  def test_histories_are_each_visitors_own(self):
    shop = fake_service.service()
    one, two = Visitor(shop), Visitor(shop)
    one.buy('i3')
    two.buy('i30')
    for visitor, first in ((one, 'i4'), (two, 'i31')):
      found = visitor.http.post('/v1/recommend', json={'user': visitor.user, 'k': 1}).json()
      self.assertEqual(found['items'][0]['id'], first)
    self.assertEqual(app_test.client(shop).get('/shop/state').json()['history'], [])
    one.buy(*(f'i{n % 60}' for n in range(60)))
    found = one.http.get('/shop/history').json()
    self.assertEqual([h['id'] for h in found['history']], [f'i{n}' for n in range(10, 60)])
    self.assertEqual(found['bought'], 61)
    self.assertEqual(one.forget('nix').status_code, 404)
    theirs = two.http.get('/shop/history').json()['history'][0]['key']
    self.assertEqual(one.forget(theirs).status_code, 404)
    found = one.forget(found['history'][0]['key']).json()
    self.assertEqual((found['history'][0]['id'], found['bought']), ('i9', 60))
    self.assertEqual(one.forget('').json()['history'], [])
    self.assertEqual(one.forget('').status_code, 200)
    self.assertLen(two.http.get('/shop/history').json()['history'], 1)

  def test_visitors_outlive_the_server(self):
    place = f'{self.create_tempdir().full_path}/events.sqlite'
    shop = fake_service.service(events=place)
    one = Visitor(shop)
    one.buy('i3', 'i7')
    shop.close()
    again = app_test.client(fake_service.service(events=place))
    again.cookies = one.http.cookies
    found = again.get('/shop/state').json()
    self.assertEqual(([h['id'] for h in found['history']], found['user']), (['i3', 'i7'], one.user))
    self.assertNotIn(again.cookies['recjax'], json.dumps(found))

  def test_the_cookie_is_out_of_reach_for_scripts(self):
    cookie = app_test.client().get('/shop/state').headers['set-cookie'].lower()
    self.assertIn('httponly', cookie)
    self.assertIn('samesite=strict', cookie)

  def test_search(self):
    http = app_test.client()
    found = http.get('/shop/items', params={'q': 'GREEN rop', 'limit': 5}).json()
    self.assertEqual(found['total'], 7)
    self.assertEqual([i['id'] for i in found['items']][0], 'i41')
    found = http.get('/shop/items', params={'category': 'light', 'offset': 18}).json()
    self.assertLen(found['items'], 2)
    self.assertEqual(http.get('/shop/items', params={'category': 'no'}).status_code, 422)
    self.assertEqual(http.get('/shop/items', params={'limit': 1000}).status_code, 422)
    self.assertLen(http.get('/shop/items', params={'q': 'long'}).json()['items'][0]['title'], 300)


class PageTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.browser = Browser()
    cls.addClassCleanup(cls.browser.close)

  def setUp(self):
    super().setUp()
    self.browser.size(1200, 900)
    self.browser.problems.clear()
    self.url = self.enterContext(fake_service.listening(fake_service.service()))
    self.browser.go(self.url)
    self.browser.until(f'{CARDS} === 24')

  def test_axe_finds_nothing(self):
    for theme in ('light', 'dark'):
      self.browser.theme(theme)
      self.assertEqual(self.browser.violations(), [], theme)

  def text(self, where):
    return self.browser.run(f'document.querySelector({json.dumps(where)}).textContent')

  def click(self, where):
    self.browser.run(f'document.querySelector({json.dumps(where)}).click()')

  def bought(self):
    return self.browser.run(
        "[...document.querySelectorAll('#history .open')].map(b => b.textContent)")

  def test_the_whole_path(self):
    b = self.browser
    self.assertEqual(self.text('#foryou-title'), 'Bought most')
    b.run("document.getElementById('query').focus()")
    b.type('green rope')
    b.until(f'{CARDS} === 7')
    self.click('#items .card .foot button')
    b.until("document.querySelectorAll('#chips li').length > 0")
    self.assertEqual(self.bought(), ['green rope 41'])
    b.until("document.querySelector('#recommended .open').textContent === 'red rope 42'")
    self.assertEqual(self.text('#foryou-title'), 'For you')
    self.assertIn('Shares tall, red', self.text('#recommended .why'))
    self.assertIn('Green Rope', self.text('#chips'))
    self.assertIn('Found here', self.text('#source'))
    self.click('#recommended .card .foot button')
    b.until("document.querySelectorAll('#history li').length === 2")
    b.until("document.querySelector('#recommended .open').textContent === 'blue rope 43'")
    self.click('#history .open')
    b.until("document.getElementById('one').open")
    self.assertEqual(self.text('#one-title'), 'red rope 42')
    b.key('Escape')
    b.until("!document.getElementById('one').open")
    self.click('#history .quiet')
    b.until("document.querySelectorAll('#history li').length === 1")
    self.assertEqual(self.bought(), ['green rope 41'])
    b.run("const m = document.getElementById('model'); m.value = 'talk';"
          "m.dispatchEvent(new Event('change'))")
    b.until("!document.getElementById('recommended').textContent.includes('Shares')")
    self.assertEqual(self.bought(), ['green rope 41'])
    b.run("document.getElementById('words').focus()")
    b.type('<b>More</b> rope')
    b.key('Enter')
    b.until("document.querySelectorAll('.turn.assistant li').length === 1")
    self.assertIn('You said: <b>More</b> rope', self.text('.turn.assistant'))
    self.click('.turn.assistant li button:last-child')
    b.until("document.querySelectorAll('#history li').length === 2")
    self.assertEqual(self.bought()[0], 'red rope 42')
    self.click('#clear')
    b.until("document.querySelectorAll('#history li').length === 0")
    b.until("document.getElementById('foryou-title').textContent === 'Bought most'")
    self.assertEqual(self.text('#source'), 'None yet.')
    self.assertEqual(b.problems, [])

  def test_what_is_found_comes_first_and_slips_are_forgiven(self):
    b = self.browser
    b.size(390, 844, True)
    first = "document.querySelector('#items .card').getBoundingClientRect().top"
    self.assertGreater(b.run(first), 400)
    b.run("document.getElementById('query').focus()")
    b.type('grene ropes')
    b.until(f'{CARDS} === 7')
    self.assertLess(b.run(first), 400)
    self.assertIn('No item has “grene ropes”; shown: “green rope”. 7 items', self.text('#total'))
    b.run("document.getElementById('query').value = 'qqqqqq'")
    self.click('#search')
    b.run("document.getElementById('search').requestSubmit()")
    b.until(f'{CARDS} === 0')
    self.assertIn('No item has all of these words', self.text('#total'))
    self.assertEqual(b.violations(), [])
    self.assertEqual(b.problems, [])

  def test_an_item_has_an_address_a_price_and_what_goes_with_it(self):
    b = self.browser
    self.click('#items .open')
    b.until("!document.getElementById('one-beside').hidden")
    self.assertEqual(self.text('#one-title'), 'red kettle 0')
    self.assertEqual(self.text('#one-price'), self.text('#items .price'))
    self.assertEqual(self.text('#one-others .open'), 'blue kettle 1')
    self.assertEqual(b.violations(), [])
    b.run("document.querySelector('#one-others .open').focus()")
    b.key('Enter')
    b.until("document.getElementById('one-title').textContent === 'blue kettle 1'")
    self.assertEqual(b.run('document.activeElement.id'), 'one-title')
    address = b.run('location.href')
    b.key('Escape')
    b.until("!document.getElementById('one').open && location.hash === ''")
    b.go('about:blank')
    b.go(address)
    b.until("document.getElementById('one')?.open")
    self.assertEqual(self.text('#one-title'), 'blue kettle 1')
    b.run("location.hash = 'item=nix'")
    b.until("!document.getElementById('trouble').hidden")
    self.assertIn('no such item', self.text('#trouble'))

  def test_of_two_items_the_one_pressed_last_is_shown(self):
    b = self.browser
    b.run("""
        const real = window.fetch;
        window.fetch = async (path, how) => {
          if (!path.endsWith('&id=i0')) return real(path, how);
          await new Promise(done => setTimeout(done, 500));
          const answer = await real(path, how);
          setTimeout(() => window.isLate = true, 1000);  // when it is shown, if it is
          return answer;
        };""")
    b.run("document.querySelectorAll('#items .open')[0].click();"
          "document.querySelectorAll('#items .open')[1].click()")
    b.until("window.isLate && !document.getElementById('one-beside').hidden")
    self.assertEqual(self.text('#one-title'), 'blue kettle 1')

  def test_hostile_titles_stay_text(self):
    b = self.browser
    for item in fake_service.HOSTILE:
      b.run(f"document.querySelectorAll('#items .foot button')[{item}].click()")
      b.until(f"document.querySelectorAll('#history li').length === {item - 6}")
    self.assertIn('<script>', self.bought()[-1])
    b.until("document.querySelectorAll('#chips li').length > 0")
    self.assertEqual(b.run('document.title'), 'Shop – recjax')
    self.assertEqual(b.run("document.querySelectorAll('main script, main img').length"), 0)
    for width in (360, 1200):
      b.size(width, 900, width < 500)
      self.assertLessEqual(b.run('document.documentElement.scrollWidth'), width)
    self.assertLess(b.run("Math.max(...[...document.querySelectorAll('#items .card')]"
                          ".map(c => c.offsetHeight))"), 400)
    self.assertEqual(b.problems, [])

  def test_the_policy_keeps_foreign_code_out(self):
    self.browser.run("const s = document.createElement('script'); s.textContent = 'window.bad = 1';"
                     "document.body.append(s)")
    self.assertIsNone(self.browser.run('window.bad'))
    self.assertTrue(any('Content Security Policy' in p for p in self.browser.problems))

  def test_keyboard_alone(self):
    b = self.browser
    b.key('Tab')
    self.assertEqual(b.run('document.activeElement.className'), 'skip')
    b.key('Enter')
    for _ in range(9):
      b.key('Tab')
      if b.run("document.activeElement.closest('#items') && "
               "document.activeElement.textContent === 'Buy'"):
        break
    b.key('Enter')
    b.until("document.querySelectorAll('#history li').length === 1")
    self.assertEqual(b.run("document.getElementById('said').textContent"), 'Bought: red kettle 0')
    self.assertTrue(b.run("[...document.querySelectorAll('button, select, input, textarea')].every("
                          "n => n.textContent || n.labels?.length || n.ariaLabel)"))

  def test_a_server_that_is_gone_is_said(self):
    b = self.browser
    b.run("fetch = () => Promise.reject(new Error('no connection'))")
    self.click('#items .card .foot button')
    b.until("!document.getElementById('trouble').hidden")
    self.assertIn('no connection', self.text('#trouble'))

  def test_the_api_page(self):
    """FastAPI's Swagger UI, from this server alone, with a request that is tried out."""
    b = self.browser
    b.go(f'{self.url}/docs')
    b.until("document.querySelectorAll('.opblock').length > 15")
    loaded = b.run("performance.getEntriesByType('resource').map(r => new URL(r.name).origin)")
    self.assertEqual(set(loaded), {self.url})
    part = "document.querySelector('[id$=v1_recommend_post]')"
    b.run(f"{part}.querySelector('.opblock-summary-control').click()")
    b.until(f"{part}.querySelector('.try-out__btn') !== null")
    b.run(f"{part}.querySelector('.try-out__btn').click()")
    b.until(f"{part}.querySelector('textarea') !== null")
    body = json.dumps(json.dumps({'history': ['i3'], 'k': 1}))
    b.run(f"const t = {part}.querySelector('textarea'); Object.getOwnPropertyDescriptor("
          f"HTMLTextAreaElement.prototype, 'value').set.call(t, {body});"
          "t.dispatchEvent(new Event('input', {bubbles: true}))")
    b.until(f"{part}.querySelector('.execute') !== null")
    b.run(f"{part}.querySelector('.execute').click()")
    b.until(f"{part}.innerText.includes('blue kettle 4')")
    self.assertEqual(b.problems, [])


class FirstPageTest(absltest.TestCase):

  def test_interests_come_by_events_of_the_newest_history(self):
    shop, hold = fake_service.service(), fake_service.Hold()
    calls = []
    inner = shop.find_interests

    def held(snapshot, history):
      calls.append(list(history))
      hold()
      return inner(snapshot, history)
    shop.find_interests = held
    import httpx
    with fake_service.listening(shop) as url, httpx.Client(
        base_url=url, timeout=fake_service.LONG) as http:
      user = http.get('/shop/state').json()['user']
      for item in ('i21', 'i24', 'i27', 'i41', 'i44'):
        http.post('/v1/events', json={'user': user, 'item': item, 'type': 'purchase'})
        http.get('/shop/history')
      self.assertLen(calls, 1)  # the others wait until its interests are there
      hold.go.set()
      with http.stream('GET', '/shop/events') as answer:
        for line in answer.iter_lines():
          if line.startswith('data:') and json.loads(line[5:])['interests']:
            break
    self.assertIn('Green Rope', json.loads(line[5:])['interests'])
    self.assertLen(calls, 2)
    self.assertEqual(calls[-1], [22, 25, 28, 42, 45])


if __name__ == '__main__':
  absltest.main()
