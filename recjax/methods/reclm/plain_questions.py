"""Plain questions, none about goods: what a chat model is asked so that its answers can be kept.

Forms of requests and, set in below each, what fills them; every filled form is one question. They
were written for this package; `benchmarks/chat.py` holds others, which no training sees.
"""
import re

import numpy as np

# 'form | what fills it', separated by semicolons.
FORMS = """
What is the capital of {}?
    Spain; Japan; Canada; Egypt; Brazil; Norway; Kenya; Australia; Poland; Peru
In one sentence, what is {}?
    gravity; a volcano; democracy; photosynthesis; an eclipse; inflation; a poem; an algorithm;
    a virus; the moon
What does a {} do?
    plumber; librarian; pilot; carpenter; nurse; gardener; judge; baker; farmer; translator
Briefly, how does {} work?
    a bicycle; a refrigerator; a compass; a battery; a sail; a zip; a telescope; a magnet
What is the opposite of '{}'?
    cold; early; generous; narrow; noisy; ancient; brave; empty
What color is {}?
    a ripe banana; the sky at noon; snow; grass; a raven; a ruby
What is {}?
    7 times 8; 15 plus 27; half of 90; 100 minus 37; 12 times 12; 81 divided by 9; a third of 33;
    250 plus 250
How many {}?
    days are in a week; legs has a spider; minutes are in two hours; sides has a hexagon;
    months have 31 days; grams are in a kilogram
Who wrote {}?
    Hamlet; Don Quixote; Pride and Prejudice; The Odyssey; War and Peace; Faust
Give me one short tip for {}.
    sleeping better; learning a language; saving water; a job interview; growing tomatoes;
    public speaking; staying focused; cooking rice
Name three {}.
    planets; rivers of Europe; musical instruments; kinds of cheese; mammals that swim;
    old professions; primary colors; famous painters
Write one sentence about {}.
    autumn; the sea; a lost key; an old train; a winter market; friendship; a garden at night; rain
Write a two-line poem about {}.
    a cat; the sun; a river; silence; bread; a lighthouse
Rewrite politely: '{}'
    Send me the report now.; You are late again.; I do not like this plan.; Stop calling me.;
    That answer is wrong.; Be quiet.
Correct the grammar: '{}'
    She go to school.; I has two dogs.; They was tired.; He don't know.; We is ready.;
    The cats sleeps.
Put this in the past tense: '{}'
    I walk home.; She sings well.; They eat early.; We see a bird.; He writes a letter.
Translate into Spanish: '{}'
    Good morning.; Thank you.; Where is the station?; I am hungry.; See you tomorrow.
Summarize in a few words: '{}'
    The meeting was moved to Friday since the manager is ill.;
    The bridge will be closed for two weeks for repairs.;
    Our team won the match in the last minute.; The library opens later in summer.
Why do {}?
    leaves fall in autumn; birds sing; we dream; cats purr; people yawn; ships float
What should I do when {}?
    I cannot sleep; a friend is sad; I have lost my keys; it rains on a picnic; I feel nervous;
    my bread does not rise
{}
    Hello!; How are you today?; Good evening.; Thank you very much.; What can you do?;
    Tell me something nice.; I had a long day.; Goodbye!; Are you a person?; I am bored.;
    Good morning, how is it going?; Can you help me?
Is it true that {}?
    the earth is round; bats are blind; whales are fish; gold is heavier than iron; bees make honey;
    glass is made of sand
Which is larger, {}?
    a whale or an elephant; Africa or Europe; a kilometer or a mile; the sun or the earth;
    0.5 or 0.25
What comes next: {}?
    2, 4, 6, 8; Monday, Tuesday, Wednesday; 1, 3, 9, 27; A, C, E; spring, summer, autumn
Explain to a child what {} is.
    a cloud; money; a map; a rainbow; a museum; the internet
What is a good name for {}?
    a small brown dog; a sailing boat; a bakery; a chess club; a robot
"""


def questions(count: int, seed: int = 0) -> list[str]:
  """Different questions, in an order drawn from `seed`: `count` of them, or all that there are."""
  made = []
  for block in re.split(r'\n(?! )', FORMS.strip()):
    form, *lines = block.splitlines()
    fillings = ' '.join(map(str.strip, lines)).split('; ')
    made += [form.replace('{}', filling) for filling in fillings]
  order = np.random.default_rng((seed, 72)).permutation(len(made))
  return [made[place] for place in order[:count]]
