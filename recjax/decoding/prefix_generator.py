"""A language model that continues prompts with a common opening, which runs once."""
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from recjax.decoding.generate import Generated, Search, generate, pad_prompts
from recjax.decoding.sampling import Draws, Sampling
from recjax.decoding.streaming import stream
from recjax.models import llm, llm_decoder
from recjax.protocols import Constraint, Decoder

BUCKET = 32  # prompts are padded to a multiple


class PrefixGenerator:
  """The LLM behind the opening `prefix` of its prompts.

  model, variables, tokenizer: of the LLM. prefix: token ids. longest: tokens of the longest prompt
  to come, about; prompts are padded to that, so that one program serves them all.
  """

  def __init__(self, model: llm.LM, variables: PyTree, tokenizer: Any, prefix: Sequence,
               longest: int) -> None:
    self.tokenizer, self.prefix, self.variables = tokenizer, list(prefix), variables
    past = ()
    if self.prefix:
      past = (jax.jit(lambda v: llm.prefill_prefix(model, v, self.prefix)[1])(variables),)
    self.decoder = llm_decoder.decoder(model, past)
    self.bucket = -(-max(1, longest - len(self.prefix)) // BUCKET) * BUCKET

  def generate(self, prompts: Sequence, search: Search, constraint: Constraint | None = None,
               seed: int | Draws = 0) -> Generated:
    """As `generate.generate`, of what comes after the opening; rows end in the tokenizer's pads.
    prompts: what comes after the opening. search, constraint, seed: as of `generate.generate`."""
    search = dataclasses.replace(search, pad_id=self.tokenizer.pad_id)
    return generate(self.decoder, self.variables, prompts, search, constraint, seed=seed,
                    bucket=self.bucket)

  def stream(self, prompts: Sequence, search: Sampling, constraint: Constraint, on_rows: Callable,
             seed: int | Draws = 0) -> Generated:
    """As `streaming.stream`, of what comes after the opening. prompts, search, constraint, on_rows,
    seed: as of `streaming.stream`."""
    search = dataclasses.replace(search, pad_id=self.tokenizer.pad_id)
    return stream(self.decoder, self.variables, prompts, search, constraint, on_rows, seed=seed,
                  bucket=self.bucket)

  def states(self, prompts: Sequence) -> Float[Array, 'B D']:
    """The state after each prompt's last token. prompts: what comes after the opening."""
    tokens, lengths = pad_prompts(prompts, self.bucket, pad_id=self.tokenizer.pad_id)
    return _states(self.decoder, self.variables, tokens, lengths)

  def own(self, prompt: Sequence | np.ndarray) -> Sequence | np.ndarray:
    """What of a prompt comes after the opening."""
    return prompt[len(self.prefix):]


@functools.partial(jax.jit, static_argnums=0)
def _states(decoder: Decoder, variables: PyTree, tokens: Int[Array, 'B P'],
            lengths: Int[Array, ' B']) -> Float[Array, 'B D']:
  return decoder.start(variables, tokens, lengths, 1, 1)[0]
