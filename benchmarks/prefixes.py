"""What a memory of prefixes saves: seconds to a reply's first text and to its end, and of lists.

  python -m benchmarks.prefixes MODEL [--part=chat] [--turns=3] [--words=750]

MODEL is a Hugging Face folder of a chat model, used untrained over the built-in shop, as RecLM's
server uses it. A conversation of some 800 tokens gets a reply (`first`), and then goes on by that
reply and a question (`second`); a history gets a list, and then one with an item more. Sides, by
turns in one process, each conversation with new words: `memory`, which finds what was read in the
first round; `none`, blocks without a memory; `before`, the whole prompt at once, as until version
0.1. Replies of `memory` and `none` must be equal.
"""
import argparse
import collections
import functools
import pathlib
import random
import statistics
import time

import jax

from recjax import experiment
from recjax.data.loading import load_data
from recjax.decoding.block_generator import BlockGenerator
from recjax.decoding.prefix_generator import PrefixGenerator
from recjax.decoding.prefix_memory import PrefixMemory
from recjax.distributed import sharding
from recjax.methods.reclm import (
  chat_batcher,
  conversation,
  generate,
  inference,
  prompts,
  train,
)

WORDS = """
lamp kettle bench drawer cable sensor glass motor tent rope saw pump filter valve lens mirror shelf
hammer drill stove chair clock radio battery screw
"""
CONFIG = 'configs/reclm_scientific.py'
MAX_PROMPT, NEW_TOKENS, BUCKET = 1024, 16, 128


class WholePrompts(PrefixGenerator):
  """As before: prompts are read whole, padded to a multiple of 128 tokens."""

  def room(self, prompt):
    return -(-len(prompt) // BUCKET)

  def keep_opening(self):
    """There was none."""


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
  parser.add_argument('model')
  parser.add_argument('--part', choices=PARTS)
  parser.add_argument('--turns', type=int, default=3)
  parser.add_argument('--words', type=int, default=750, help='of the first round')
  args = parser.parse_args()
  cfg = experiment.read_config(CONFIG)
  cfg.llm.weights, cfg.prompt.max_prompt_tokens = args.model, MAX_PROMPT
  cfg.decode.new_tokens = NEW_TOKENS
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  chat_model = train.new_chat_model(cfg, pathlib.Path(args.model), mesh)
  grounded = conversation.untrained_models(
    chat_model, {'own': load_data('sample:1:60').catalog})['own']
  with jax.set_mesh(mesh):
    for part in [args.part] if args.part else PARTS:
      PARTS[part](args, cfg, grounded, mesh)


def compare_chats(args, cfg, grounded, mesh):
  """Two rounds of new conversations, on all sides by turns."""
  sides = {name: chat_batcher.ChatBatcher(cfg, {'own': grounded}, inference.system_prompt(cfg),
                                          mesh, PrefixMemory(size)) for name, size in (
    ('memory', 256 << 20), ('none', 0), ('before', 0))}
  chat_model = grounded.chat_model
  sides['before'].generator = WholePrompts(
    chat_model.model, chat_model.variables, chat_model.tokenizer, [], BUCKET)
  counts = []
  sides['memory'].generator.memory.on_prompt = lambda *found_read: counts.append(found_read)
  sides['memory'].generator.keep_opening()
  times, sizes = collections.defaultdict(list), collections.defaultdict(list)
  for turn in range(-1, args.turns):  # the first compiles
    rng = random.Random(1000 + turn)
    first = [prompts.message('user', sentence(rng, args.words))]
    second = [*first, prompts.message('assistant', sentence(rng, 40)),
              prompts.message('user', sentence(rng, 12))]
    order = list(sides)[turn % 3:] + list(sides)[:turn % 3]
    replies = collections.defaultdict(dict)
    for name in order:
      for number, turns in (('first', first), ('second', second)):
        answer, seconds = timed_reply(sides[name], turns, turn % 7)
        replies[number][name] = answer
        sizes[number].append(answer.tokens_in)
        if turn >= 0:
          times[number, name].append(seconds)
    for by_side in replies.values():
      assert by_side['memory'] == by_side['none'], 'the memory changed a reply'
  print(f'chat: first round {min(sizes["first"])} to {max(sizes["first"])} tokens, second '
        f'{min(sizes["second"])} to {max(sizes["second"])}; {args.turns} conversations; replies '
        'with and without the memory are equal')
  print(f'  tokens found and read of the last: {counts[-2:]}')
  for number in ('first', 'second'):
    for what, place in (('first text', 0), (f'{NEW_TOKENS} tokens', 1)):
      show(f'{number} round, {what}',
           {name: [seconds[place] for seconds in times[number, name]] for name in sides})


def timed_reply(batcher, turns, seed):
  """-> a reply, seconds to its first text and to its end"""
  seconds = []
  start = time.perf_counter()
  answer, = batcher([chat_batcher.ChatRequest(
    tuple(turns), seed=seed, temperature=1.0, tokens=NEW_TOKENS,
    tell=lambda text: seconds.append(time.perf_counter() - start))])
  return answer, (seconds[0], time.perf_counter() - start)


def compare_lists(args, cfg, grounded, mesh):
  """Lists of twenty for a history, and for the same with an item more."""
  del mesh
  chat_model, tokenized = grounded.chat_model, grounded.tokenized
  llm = chat_model.model, chat_model.variables, chat_model.tokenizer
  encoder = train.make_encoder(cfg, chat_model, tokenized)
  template = prompts.read_template(cfg)
  make = functools.partial(prompts.make_prompts, encoder, tokenized, template, count=20)
  sides = {'memory': BlockGenerator(*llm, PrefixMemory(256 << 20), longest=MAX_PROMPT // 2),
           'none': BlockGenerator(*llm, PrefixMemory(0), longest=MAX_PROMPT // 2),
           'before': WholePrompts(*llm, [], MAX_PROMPT // 2)}
  times = collections.defaultdict(list)
  for turn in range(-1, args.turns):
    history = random.Random(1000 + turn).sample(range(1, len(tokenized.titles) + 1), 10)
    lists = {}
    for name in list(sides)[turn % 3:] + list(sides)[:turn % 3]:
      for number, items in (('first', history[:9]), ('second', history)):
        prompt, = make([items])[0]
        start = time.perf_counter()
        found, scores = generate.rank_items(grounded, sides[name], [prompt], 20)
        if turn >= 0:
          times[number, name].append(time.perf_counter() - start)
        lists[number, name] = found.tolist(), scores.tolist()
    assert lists['second', 'memory'] == lists['second', 'none'], 'the memory changed a list'
  print(f'lists: prompts of {len(prompt)} tokens, equal with and without the memory')
  for number in ('first', 'second'):
    show(f'{number} list', {name: times[number, name] for name in sides})


def sentence(rng, count):
  """Words that were not together before."""
  return ' '.join(rng.choices(WORDS.split(), k=count)).capitalize() + '.'


def show(what, seconds):
  """A line: medians of the sides, their range, and how often `memory` goes into the others."""
  medians = {name: statistics.median(values) for name, values in seconds.items()}
  print(f'  {what}: ' + '; '.join(
    f'{name} {medians[name]:.2f} s ({min(values):.2f} to {max(values):.2f})'
    for name, values in seconds.items())
    + f'; none / memory {medians["none"] / medians["memory"]:.2f}, before / memory '
      f'{medians["before"] / medians["memory"]:.2f}')


PARTS = {'chat': compare_chats, 'lists': compare_lists}

if __name__ == '__main__':
  main()
