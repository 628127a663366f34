"""What tuning leaves of a chat model's talk, whether it keeps to what requests state, and how soon
its first word comes.

  python -m benchmarks.chat WORKDIR [--questions=50] [--new-tokens=64]

WORKDIR is a finished RecLM run. talk: plain questions, none of which training knows
(`plain_questions` holds others), answered greedily by the model before and after tuning; the
perplexity of each side's replies under both, and how many first sentences are unchanged. requests:
goods asked for in plain words, with numbers and prices that replies must keep to. first word:
seconds from a turn to the first text that a person sees, in a conversation that is warm.
"""
import argparse
import json
import pathlib
import re
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from recjax.decoding.prefix_generator import PrefixGenerator
from recjax.methods.reclm import (
  chat_batcher,
  conversation,
  inference,
  item_limits,
  own_talk,
  plain_questions,
  prompts,
)
from recjax.training import llm_loading, workdir

QUESTIONS = """
What is the capital of Italy?
What is the capital of Mexico?
Who painted the Mona Lisa?
Which planet is closest to the sun?
How many continents are there?
What gas do plants take in?
What is the boiling point of water in degrees Celsius?
Which language is spoken in Portugal?
What is the largest ocean?
In which year did the first man walk on the moon?
What is 6 times 7?
What is 45 plus 55?
What is 20 percent of 50?
If I have 12 apples and eat 5, how many are left?
A train goes 60 kilometers in an hour. How far does it go in three hours?
What is the square of 9?
What is 1000 divided by 8?
Is 17 a prime number?
How many minutes are there in a day?
What is the next number: 5, 10, 15, 20?
How can I wake up earlier?
What should I pack for a weekend at the sea?
How do I apologize to a colleague?
What is a good way to start running?
How can I remember names better?
I have a headache. What can I do?
How do I keep my houseplants alive?
What can I cook with eggs and potatoes?
How should I prepare for an exam?
How can I save money every month?
Hi there!
How was your day?
Nice to meet you.
What is your favorite season?
Do you like music?
I am a bit tired today.
Tell me a joke.
What do you think about cats?
Have a nice evening!
My sister is getting married tomorrow.
Rewrite in one word: very big
Make this sentence shorter: The weather today is very nice and the sun is shining all day long.
Rewrite as a question: You are coming to the party.
Put into the future tense: I write a book.
Correct the spelling: I recieved your leter yesterday.
Replace the verb: She walked to the station.
Make this polite: Give me the salt.
Turn into a list: apples, pears and plums
Write a title for a story about a lost dog.
Finish the sentence: The early bird
"""

# Requests, and the category whose items fit; none is in the words of training.
REQUESTS = """
for a chemistry lab, three items, not over 50 | Laboratory Glassware, Chemicals & Reagents
Hello! I set up a chemistry lab. Please suggest three items, not over 50 each. |
two items under 20 |
I would like to see five products between 10 and 30 euros |
Which chemicals do you sell? One item, please. | Chemicals & Reagents
beakers, please, not more than 15 dollars |
My budget is 40 dollars. Four items for an electronics workshop, please. | Electronic Components
What can I get for $10 or less? At least three items. |
Something for measuring, two products, at least 30 euros |
six items, nothing above 12 |
Could you find me glassware below 10? Three items. | Laboratory Glassware
Name seven products. |
"""


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
  parser.add_argument('workdir')
  parser.add_argument('--questions', type=int, default=50)
  parser.add_argument('--new-tokens', type=int, default=64)
  parser.add_argument('--show', default='', help='a file to add all replies to, as JSON Lines')
  args = parser.parse_args()
  questions = QUESTIONS.strip().splitlines()[:args.questions]
  assert not set(questions) & set(plain_questions.questions(10**6)), 'training knows a question'
  cfg, _, grounded, mesh = inference.open_run(pathlib.Path(args.workdir))
  cfg.decode.new_tokens = max(cfg.decode.new_tokens, args.new_tokens)
  with jax.set_mesh(mesh):
    for part in (lambda: first_word(cfg, grounded), lambda: compare_requests(cfg, grounded, mesh),
                 lambda: compare_talk(args, cfg, grounded, mesh, questions)):
      shown = part()
      if args.show:
        with open(args.show, 'a') as file:
          file.writelines(json.dumps(row, ensure_ascii=False) + '\n' for row in shown)


def compare_talk(args, cfg, grounded, mesh, questions):
  """The model before and after tuning, on questions that are none about goods."""
  weights = cfg.llm.weights
  folder = workdir.find_stage(pathlib.Path(args.workdir), 'llm') if weights == 'tiny' else weights
  model, params, tokenizer = llm_loading.load(folder, cfg.llm, mesh)
  prompt_ids = own_talk.encode(cfg, tokenizer, questions)
  generator = PrefixGenerator(model, {'params': params}, tokenizer, [], max(map(len, prompt_ids)))
  before = [tokenizer.decode(ids).strip()
            for ids in own_talk.answers(generator, prompt_ids, args.new_tokens)]
  speak = chat_batcher.ChatBatcher(cfg, {'own': grounded}, inference.system_prompt(cfg), mesh)
  answers = speak([chat_batcher.ChatRequest((prompts.message('user', question),),
                                            tokens=args.new_tokens) for question in questions])
  after = [answer.text for answer in answers]
  sides = {'before': (model, {'params': params}),
           'after': (grounded.chat_model.model, grounded.chat_model.variables)}
  print(f'{len(questions)} plain questions, replies of at most {args.new_tokens} tokens')
  for name, texts in (('before', before), ('after', after)):
    ids = [tokenizer.encode(text) for text in texts]
    values = {side: perplexity(*given, prompt_ids, ids) for side, given in sides.items()}
    print(f'  perplexity of the replies {name} tuning: ' + ', '.join(
      f'{value:.3f} under the model {side}' for side, value in values.items()))
  same = sum(first_sentence(a) == first_sentence(b) for a, b in zip(before, after))
  listed = sum(bool(answer.items) for answer in answers)
  print(f'  first sentences unchanged: {same} of {len(questions)}; whole replies: '
        f'{sum(a == b for a, b in zip(before, after))}; replies that name items: {listed}')
  count_unknown(grounded, answers)
  return [{'question': q, 'before': a, 'after': b} for q, a, b in zip(questions, before, after)]


def perplexity(model, variables, prompt_ids, reply_ids, batch=5, bucket=64):
  """exp of the mean negative log-likelihood of replies' tokens behind their prompts."""
  rows = [(prompt, reply) for prompt, reply in zip(prompt_ids, reply_ids) if reply]
  width = bucket * -(-max(len(p) + len(r) for p, r in rows) // bucket)

  @jax.jit
  def log_likelihood(variables, tokens, is_reply):
    places = jnp.broadcast_to(jnp.arange(width), tokens.shape)
    hidden, _ = model.apply(variables, tokens, places, jnp.ones_like(tokens))
    logits = model.apply(variables, hidden[:, :-1], method='logits').astype(jnp.float32)
    picked = jnp.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
    return ((picked - jax.nn.logsumexp(logits, -1)) * is_reply[:, 1:]).sum()
  total, count = 0.0, 0
  for start in range(0, len(rows), batch):
    tokens, is_reply = np.zeros((batch, width), np.int32), np.zeros((batch, width), bool)
    for row, (prompt, reply) in enumerate(rows[start:start + batch]):
      size = len(prompt) + len(reply)
      tokens[row, :size] = [*prompt, *reply]
      is_reply[row, len(prompt):size] = True
    total += float(log_likelihood(variables, tokens, is_reply))
    count += int(is_reply.sum())
  return float(np.exp(-total / count))


def first_sentence(text):
  """What a reply says first."""
  return re.split(r'(?<=[.!?])\s|\n', text.strip())[0]


def compare_requests(cfg, grounded, mesh):
  """Goods asked for: numbers and prices kept to, and goods of the kind."""
  tokenized = grounded.tokenized
  speak = chat_batcher.ChatBatcher(cfg, {'own': grounded}, inference.system_prompt(cfg), mesh)
  rows = [line.rsplit('|', 1) for line in REQUESTS.strip().splitlines()]
  texts = [text.strip() for text, _ in rows]
  answers = speak([chat_batcher.ChatRequest((prompts.message('user', text),)) for text in texts])
  kept, num_priced, num_items, fitting, num_asked = 0, 0, 0, 0, 0
  shown = []
  for (text, kinds), answer in zip(rows, answers):
    stated = item_limits.read(text)
    prices = tokenized.prices[np.array(answer.items, int) - 1]
    num_ok = stated.least <= len(answer.items) <= (stated.most or chat_batcher.MAX_ITEMS)
    kept += bool(num_ok and answer.items and stated.meets(prices).all())
    num_priced += int(stated.meets(prices).sum())
    num_items += len(answer.items)
    wanted = [kind.strip() for kind in kinds.split(', ') if kind.strip()]
    if wanted:
      num_asked += len(answer.items)
      fitting += sum(tokenized.categories_of(item)[0] in wanted for item in answer.items)
    shown.append({'request': text.strip(), 'reply': answer.text, 'prices': prices.tolist()})
  print(f'{len(rows)} requests for goods: {kept} kept to number and price; {num_priced} of '
        f'{num_items} items cost what was asked; of the kind asked for {fitting} of {num_asked}')
  count_unknown(grounded, answers)
  return shown


def count_unknown(grounded, answers):
  """Items that replies name and the catalog lacks, and repeats."""
  titles = set(grounded.tokenized.titles)
  named = [title for answer in answers for title in answer.titles]
  repeats = sum(len(answer.items) - len(set(answer.items)) for answer in answers)
  print(f'  items named: {len(named)}; that do not exist: {sum(t not in titles for t in named)}; '
        f'repeats: {repeats}')


def first_word(cfg, grounded, rounds=5):
  """Seconds to the first text of a reply, in a conversation that is warm."""
  talk = conversation.Conversation(cfg, {'own': grounded}, inference.system_prompt(cfg))
  start = time.perf_counter()
  talk.warm()
  print(f'first word: ready after {time.perf_counter() - start:.1f} s')
  times, cpu, shown = [], [], []
  for text in ['for a chemistry lab, three items, not over 50', 'What is the capital of Italy?',
               'Hi there!', 'two items under 20', 'How can I wake up earlier?'][:rounds]:
    begun, begun_cpu, told = time.perf_counter(), time.process_time(), []

    def tell(reply, begun=begun, begun_cpu=begun_cpu, told=told):
      if reply.text and not told:
        told.append((time.perf_counter() - begun, time.process_time() - begun_cpu))
    reply = talk.say(text, tell=tell)
    times.append(told[0][0])
    cpu.append(told[0][1])
    shown.append({'turn': text, 'reply': reply.text})
  print(f'  {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f}), '
        f'{statistics.median(cpu):.2f} CPU seconds ({min(cpu):.2f} to {max(cpu):.2f}); '
        f'{len(times)} turns of one conversation')
  return shown


if __name__ == '__main__':
  main()
