"""A headless Chromium that tests steer through its debugging pipe; skips where there is none."""
import base64
import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
import unittest

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')


class Browser:
  """One page. problems: what the page logged as errors, refusals by its policy among them."""

  def __init__(self):
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
      raise unittest.SkipTest('Chromium is not installed')
    self.folder = tempfile.mkdtemp()
    theirs_in, self.out = os.pipe()
    self.into, theirs_out = os.pipe()

    def place():
      os.dup2(theirs_in, 3, inheritable=True)
      os.dup2(theirs_out, 4, inheritable=True)
    theirs_in, theirs_out = os.dup(theirs_in), os.dup(theirs_out)
    self.process = subprocess.Popen(
        [found, '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-quic',
         '--hide-scrollbars', f'--user-data-dir={self.folder}', '--remote-debugging-pipe',
         '--window-size=1200,900', 'about:blank'],
        pass_fds=(3, 4, theirs_in, theirs_out), preexec_fn=place, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    os.close(theirs_in)
    os.close(theirs_out)
    self.rest, self.number, self.problems, self.session = b'', 0, [], None
    targets = self.call('Target.getTargets')['targetInfos']
    page = next(t for t in targets if t['type'] == 'page')
    self.session = self.call('Target.attachToTarget', targetId=page['targetId'],
                             flatten=True)['sessionId']
    for part in ('Page', 'Runtime', 'Log', 'Network'):
      self.call(f'{part}.enable')

  def call(self, method, **params):
    """Sends a command and waits for its answer."""
    self.number += 1
    message = {'id': self.number, 'method': method, 'params': params}
    if self.session:
      message['sessionId'] = self.session
    os.write(self.out, json.dumps(message).encode() + b'\0')
    while True:
      found = self.read()
      if found.get('id') == self.number:
        if 'error' in found:
          raise RuntimeError(f'{method}: {found["error"]}')
        return found['result']

  def read(self):
    """The next message; errors of the page are kept."""
    while b'\0' not in self.rest:
      more = os.read(self.into, 1 << 20)
      if not more:
        raise RuntimeError('the browser ended')
      self.rest += more
    one, _, self.rest = self.rest.partition(b'\0')
    found = json.loads(one)
    if found.get('method') == 'Runtime.exceptionThrown':
      self.problems.append(found['params']['exceptionDetails'].get('exception', {}).get(
          'description', 'exception'))
    elif found.get('method') == 'Log.entryAdded' and found['params']['entry']['level'] == 'error':
      self.problems.append(found['params']['entry']['text'])
    return found

  def go(self, url):
    """Opens a page."""
    self.call('Page.navigate', url=url)

  def run(self, code):
    """The value of JavaScript."""
    found = self.call('Runtime.evaluate', expression=code, awaitPromise=True, returnByValue=True)
    if 'exceptionDetails' in found:
      raise RuntimeError(found['exceptionDetails']['exception'].get('description', code))
    return found['result'].get('value')

  def until(self, code, seconds=30):
    """Waits for JavaScript to be true. -> its value"""
    end = time.monotonic() + seconds
    while True:
      with contextlib.suppress(RuntimeError):
        if value := self.run(code):
          return value
      if time.monotonic() > end:
        raise AssertionError(f'did not come true: {code}')
      time.sleep(0.05)

  def key(self, name, text=''):
    """Presses a key, as 'Tab' or 'Enter'."""
    code = {'Tab': 9, 'Enter': 13, 'Escape': 27}.get(name, 0)
    text = text or ('\r' if name == 'Enter' else '')
    more = {'text': text} if text else {}
    self.call('Input.dispatchKeyEvent', type='keyDown', key=name, code=name,
              windowsVirtualKeyCode=code, **more)
    self.call('Input.dispatchKeyEvent', type='keyUp', key=name, code=name,
              windowsVirtualKeyCode=code)

  def type(self, text):
    """Writes into what has the focus."""
    self.call('Input.insertText', text=text)

  def size(self, width, height, phone=False):
    """The window."""
    self.call('Emulation.setDeviceMetricsOverride', width=width, height=height,
              deviceScaleFactor=1, mobile=phone)

  def theme(self, name):
    """'light' or 'dark', as the system would ask for."""
    self.call('Emulation.setEmulatedMedia',
              features=[{'name': 'prefers-color-scheme', 'value': name}])

  def violations(self):
    """What axe-core finds against accessibility. -> ['rule: where']; skips where it is missing."""
    found = importlib.util.find_spec('axe_core_python')
    if found is None:
      raise unittest.SkipTest('axe-core-python is not installed')
    code = pathlib.Path(found.submodule_search_locations[0], 'axe.min.js').read_text()
    self.call('Runtime.evaluate', expression=code)
    return self.run('axe.run().then(r => r.violations.flatMap('
                    'v => v.nodes.map(n => `${v.id}: ${n.html.slice(0, 200)}`)))')

  def picture(self, path):
    """Writes what is seen as PNG."""
    data = self.call('Page.captureScreenshot', format='png')['data']
    pathlib.Path(path).write_bytes(base64.b64decode(data))

  def close(self):
    """Ends the browser."""
    self.process.kill()
    self.process.wait()
    os.close(self.out)
    os.close(self.into)
    shutil.rmtree(self.folder, ignore_errors=True)
