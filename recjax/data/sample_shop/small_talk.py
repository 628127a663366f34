"""Small talk of the built-in shop: sums in words with a worked answer, made from a seed.

They stand where a run has no chat data of its own: mixed into training so that the model keeps
answering plainly, and as questions of the multi-round test, whose answers end as GSM8K's do.
"""
import numpy as np

THINGS = ('screws', 'lenses', 'beakers', 'drill bits', 'labels', 'batteries', 'magnets', 'filters',
          'gloves', 'clamps')
PLACES = ('box', 'drawer', 'crate', 'shelf', 'kit', 'bag')
NAMES = ('Ada', 'Emil', 'Mina', 'Tomas', 'Rosa', 'Ivan', 'Lena', 'Omar')


def questions(count: int, seed: int = 0) -> list[tuple[str, str]]:
  """`count` questions and answers, made from `seed`; answers end with '#### ' and the number."""
  rng = np.random.default_rng((seed, 71))
  return [_question(rng) for _ in range(count)]


def _question(rng: np.random.Generator) -> tuple[str, str]:
  thing, place, name = (words[rng.integers(len(words))] for words in (THINGS, PLACES, NAMES))
  kind, a, b = rng.integers(3), int(rng.integers(2, 10)), int(rng.integers(2, 10))
  if kind == 0:
    return (f'A {place} holds {a} {thing}. How many {thing} do {b} of them hold?',
            f'{b} times {a} is {a * b}.\n#### {a * b}')
  if kind == 1:
    return (f'{name} has {a} {thing} and buys {b} more. How many {thing} are there now?',
            f'{a} plus {b} is {a + b}.\n#### {a + b}')
  return (f'{name} has {a + b} {thing} and gives away {b}. How many {thing} are left?',
          f'{a + b} minus {b} is {a}.\n#### {a}')
