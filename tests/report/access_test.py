"""A real report in headless Chromium: no error, no network, nothing that axe-core objects to."""
import contextlib
import pathlib
import sys

from absl.testing import absltest

from recjax import experiment
from tests.browser import Browser


class PagesTest(absltest.TestCase):

  def test_a_report_in_both_themes(self):
    browser = Browser()
    self.addCleanup(browser.close)
    room = pathlib.Path(self.create_tempdir().full_path)
    with contextlib.redirect_stdout(sys.stderr):
      experiment.train('configs/sequential_beauty.py', room / 'run', {
          'data': 'sample:1:150', 'train.epochs': 1, 'eval.classical': False})
    browser.call('Page.setBypassCSP', enabled=True)  # for axe-core, not for the page
    browser.go((room / 'run' / 'report.html').as_uri())
    browser.until("document.readyState === 'complete' && document.querySelector('h1') !== null")
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for theme in ('light', 'dark'):
      browser.theme(theme)
      self.assertEqual(browser.violations(), [], theme)
    self.assertEqual(browser.problems, [])
    self.assertEqual(browser.run("performance.getEntriesByType('resource').length"), 0)


if __name__ == '__main__':
  absltest.main()
