"""What the chat model itself answers to plain questions, before it is tuned: chat pairs that keep
its talk (`talk.source='own'`)."""
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from recjax import file_io
from recjax.data.formats import conversations
from recjax.decoding import constraints
from recjax.decoding.prefix_generator import PrefixGenerator
from recjax.decoding.sampling import Sampling
from recjax.methods.reclm import chat_encoding, plain_questions, prompts
from recjax.text.tokenizer import Tokenizer
from recjax.training import llm_loading, sft, sharded_stage
from recjax.training.workdir import Workdir

BATCH = 32  # questions that are answered together

PAIRS = 'pairs.jsonl'


def settings(cfg: ConfigDict) -> ConfigDict:
  """Everything in the config that decides this stage's result. cfg: the run's config."""
  return ConfigDict({'talk': cfg.talk, 'prompt': cfg.prompt, 'llm': cfg.llm, 'seed': cfg.seed})


def stage(work: Workdir, cfg: ConfigDict, llm_dir: Path) -> dict[str, int]:
  """Asks the LLM of `llm_dir` plain questions and writes each with its answer, cut ones marked.

  work: of the stage. cfg: as `settings`. -> counts
  """
  model, params, tokenizer = llm_loading.load(llm_dir, cfg.llm, work.mesh)
  asked = plain_questions.questions(cfg.talk.own, cfg.seed)
  prompt_ids = encode(cfg, tokenizer, asked)
  with jax.set_mesh(work.mesh):
    generator = PrefixGenerator(model, {'params': params}, tokenizer,
                                sft.common_prefix(prompt_ids), max(map(len, prompt_ids)))

    def answer_batch(rows: list[int]) -> list:
      return [[ids] for ids in answers(generator, [prompt_ids[row] for row in rows],
                                       cfg.talk.answer_tokens)]
    answered = sharded_stage.answer_all(work, 'own talk', work.folder / 'answers.jsonl',
                                        prompt_ids, min(BATCH, len(asked)), answer_batch)
  records = [
    {'question': question, 'answer': answer_text(tokenizer, ids)}
    for question, (ids,) in zip(asked, answered)]
  records = [record for record in records if record['answer'].strip(conversations.CUT)]
  file_io.write_atomic(work.folder / PAIRS, file_io.encode_lines(records))
  num_cut = sum(record['answer'].endswith(conversations.CUT) for record in records)
  return {'questions': len(asked), 'answers': len(records), 'cut': num_cut}


def answer_text(tokenizer: Tokenizer, ids: list[int]) -> str:
  """An answer, with `conversations.CUT` behind one that did not end. tokenizer: of the model. ids:
  of the answer."""
  if ids and ids[-1] in tokenizer.eos_ids:
    return tokenizer.decode(ids[:-1]).strip()
  return tokenizer.decode(ids).strip().rstrip('\ufffd') + conversations.CUT


def encode(cfg: ConfigDict, tokenizer: Tokenizer, questions: list[str]) -> list[list[int]]:
  """Prompts of questions, each asked first, behind the system turn of the run's template.

  cfg: the run's config. tokenizer: of the model. -> token lists
  """
  system = prompts.read_template(ConfigDict({**cfg.to_dict(), 'control': {'share': 0.0}}))['system']
  encoder = chat_encoding.ChatEncoder(tokenizer, [], -1, -1,
                                      longest=cfg.prompt.max_prompt_tokens,
                                      variables=dict(cfg.prompt.variables))
  return [encoder.tokens([prompts.message('system', system), prompts.message('user', question)])
          for question in questions]


def answers(generator: PrefixGenerator, prompt_ids: list[list[int]],
            new_tokens: int) -> list[list[int]]:
  """The likeliest answers, greedily, end tokens included where they come.

  generator: of the model. prompt_ids: of the questions. new_tokens: of an answer at most.
  """
  ends = tuple(generator.tokenizer.eos_ids)
  generated = generator.generate([generator.own(ids) for ids in prompt_ids],
                                 Sampling(1, new_tokens, 0.0), constraints.Unconstrained(ends))
  return [np.asarray(generated.row(row, 0)).tolist() for row in range(len(prompt_ids))]


def read(folder: Path) -> list[tuple[str, str]]:
  """The pairs of question and answer that `stage` left in `folder`."""
  return conversations.read(folder / PAIRS)[0]
