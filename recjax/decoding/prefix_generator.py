"""A language model that continues prompts with a common opening, which runs once."""
import functools

import jax

from recjax.decoding.generate import generate, padded
from recjax.decoding.streaming import stream
from recjax.models import llm, llm_decoder

STEP = 32  # prompts are padded to a multiple


class PrefixGenerator:
  """The LLM behind the opening `prefix` of its prompts. `generate` and `stream` are those of
  `decoding` on it.

  longest: tokens of the longest prompt to come, about; prompts are padded to that, so that one
  program serves them all.
  """

  def __init__(self, model, variables, tokenizer, prefix, longest):
    self.tokenizer, self.prefix, self.variables = tokenizer, list(prefix), variables
    past = ()
    if self.prefix:
      past = (jax.jit(lambda v: llm.prefill_prefix(model, v, self.prefix)[1])(variables),)
    self.decoder = llm_decoder.decoder(model, past)
    bucket = -(-max(1, longest - len(self.prefix)) // STEP) * STEP
    self.generate, self.stream = (
        functools.partial(call, self.decoder, variables, bucket=bucket, pad_id=tokenizer.pad_id)
        for call in (generate, stream))

  def states(self, prompts):
    """The state after each prompt's last token. prompts: what comes after the opening. -> (B, D)"""
    tokens, lengths = padded(prompts, self.generate.keywords['bucket'],
                             pad_id=self.tokenizer.pad_id)
    return _states(self.decoder, self.variables, tokens, lengths)

  def own(self, prompt):
    """What of a prompt comes after the opening."""
    return prompt[len(self.prefix):]


@functools.partial(jax.jit, static_argnums=0)
def _states(decoder, variables, tokens, lengths):
  return decoder.start(variables, tokens, lengths, 1, 1)[0]
