"""What a run says about the users that it ranked, held against its figures."""
import re

ASKED = re.compile(r'(\d+) (?:of (\d+) users|test (?:samples|rows|records))')


def check(results):
  """Fails where the protocol names another number of users than every figure of results.json has.

  results: what results.json holds. -> how many were asked, and of how many (None: not told)
  """
  found = ASKED.search(results['protocol'])
  assert found, f'no number of users: {results["protocol"]}'
  asked, every = int(found[1]), int(found[2]) if found[2] else None
  for row, cells in results['rows'].items():
    for metric, cell in cells.items():
      if ':' not in metric:  # of all users, not of a group
        assert cell['n'] == asked, f'{row}, {metric}: n is {cell["n"]}; {results["protocol"]}'
  return asked, every
