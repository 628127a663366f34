"""Questions of a preparation: on a terminal people answer, scripts are told which flag says it."""
import sys
from collections.abc import Callable, Sequence

from recjax.errors import ConfigError

# question, possible answers (the likeliest first), whether that one may be taken without asking by
# --yes, and what to write instead of answering. Gives the answer, or raises ConfigError.
Ask = Callable[[str, Sequence[str], bool, str], str]


def refuse(question: str, options: Sequence[str], likely: bool, remedy: str) -> str:
  """Raises ConfigError: what cannot be told is never guessed in silence. Parameters: as of Ask.

  question: what is not known. options: could be it. likely: whether --yes takes the first. remedy:
  which flag says it.
  """
  yes = f', or --yes to take {options[0]}' if likely else ''
  raise ConfigError(f'{question} {remedy}{yes}')


class Asker:
  """Asks once: the answers are kept, so that a second reading of the same source asks no more.

  yes: take what is likely. terminal: somebody is there to answer.
  """

  def __init__(self, yes: bool = False, terminal: bool | None = None):
    self.yes = yes
    self.terminal = (sys.stdin.isatty() and sys.stderr.isatty()) if terminal is None else terminal
    self.answers: dict[str, str] = {}

  def __call__(self, question: str, options: Sequence[str], likely: bool, remedy: str) -> str:
    """The answer to `question`, one of `options`. likely, remedy: as of Ask. Raises ConfigError."""
    if question not in self.answers:
      if self.yes and likely:
        self.answers[question] = options[0]
        print(f'{question} Taken, as --yes says: {options[0]}', file=sys.stderr)
      elif self.terminal and not self.yes and options:
        self.answers[question] = self._ask(question, options, remedy)
      else:
        refuse(question, options, likely and not self.yes, remedy)
    return self.answers[question]

  def _ask(self, question: str, options: Sequence[str], remedy: str) -> str:
    lines = [question, *(f'  {n}  {option}' for n, option in enumerate(options, 1))]
    print('\n'.join(lines), file=sys.stderr)
    while True:
      answer = self._answer(f'Which (1 to {len(options)}, Enter for 1, q to stop)? ')
      if answer in ('', *map(str, range(1, len(options) + 1))):
        return options[int(answer or 1) - 1]
      if answer in options:
        return answer
      if answer.lower() in ('q', 'n', 'no'):
        raise ConfigError(f'{question} {remedy}')

  def confirm(self, remedy: str) -> None:
    """Asks whether what was shown is right. Raises ConfigError with `remedy` where it is not."""
    if self.terminal and not self.yes and self._answer('Is this right (Enter for yes, n to stop)? '
                                                       ).lower() not in ('', 'y', 'yes', 'j', 'ja'):
      raise ConfigError(f'Nothing was written. {remedy}')

  def _answer(self, prompt: str) -> str:
    print(prompt, end='', file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
      raise ConfigError('No answer came, and nothing was written; --yes asks nothing')
    return line.strip()
