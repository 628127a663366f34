"""BIGRec and D3: an LLM writes the title of the next item.

Bao et al., *A Bi-Step Grounding Paradigm for Large Language Models in Recommendation Systems*, ACM
TORS 3(4), 2025 (arXiv 2308.08434); Bao et al., *Decoding Matters*, EMNLP 2024 (arXiv 2406.14900).

An LLM is tuned on prompts that list a person's items and answers that are the next title. BIGRec
(`variant='ground'`) lets it write freely, embeds what it wrote and ranks the whole catalog by
distance, pulled by popularity or a collaborative recommender. D3 (`variant='decode'`) decodes
titles of the catalog alone, does not divide scores by their length, and mixes a recommender
without text into every step.

Deliberate differences from the authors' code:
  - prompts and answers are packed into rows, what all prompts share runs once a step, and the loss
    is a mean over the tokens of a batch, so its size in pieces does not matter;
  - prompt and answer are encoded apart in training, generation and trie alike;
  - histories that are too long lose their oldest titles, never the answer's end;
  - hits are items, not strings (`eval.duplicate_titles='best'` is theirs), ties count against the
    target, and one gamma is chosen on validation beside the published one for each metric.
"""

from ml_collections import ConfigDict

from recjax import split_rule
from recjax.errors import ConfigError
from recjax.evaluation import results
from recjax.methods.bigrec import (
  cf_assistant,
  d3,
  export,
  grounding,
  inference,
  instruction_data,
  planning,
  prompts,
  report,
  train,
)
from recjax.text import tokenizer
from recjax.training import continuation, llm_loading
from recjax.training.workdir import Workdir

VARIANTS = ('ground', 'decode')


def run(cfg: ConfigDict, work: Workdir) -> None:
  """The experiment, stage by stage. cfg: the run's config. work: the Workdir."""
  template = check(cfg)
  data = instruction_data.load(cfg.data, cfg.samples, split_rule.for_config(cfg))
  work.log(f'{data.name}: {len(data.catalog):,} items; {len(data.cases.train):,} training, '
           f'{len(data.cases.valid):,} validation, {len(data.cases.test):,} test cases'
           + ''.join(f'; {v:,} {k.replace("_", " ")}' for k, v in data.notes.items() if v))
  opening, texts = train.documents(template, cfg.prompt.noun, data.titles, cfg.seed)
  start, used = train.open_start(cfg, data), continuation.shortened(cfg)
  if start:
    work.log(f'{start.said(data.catalog)}; {used.train.epochs} epochs at {used.optim.lr:g}')
  llm = continuation.llm_folder(
    cfg, work, start, lambda: llm_loading.folder(cfg, work, opening, lambda: texts, data))
  data = instruction_data.respell(data, tokenizer.load(llm), template)
  if respelled := data.notes.get('titles_as_the_tokenizer_spells_them'):
    work.log(f'{respelled:,} titles are read and written as the tokenizer spells them')
  tuned = work.stage('tune', train.stage, train.settings(used), data, llm,
                     *filter(None, [start]))
  assistant = work.stage('assistant', cf_assistant.stage, cf_assistant.settings(cfg), data)
  if cfg.variant == 'ground':
    written = work.stage('generate', grounding.generate, grounding.generating(cfg), data, llm,
                         tuned)
    vectors = work.stage(
      'embed', grounding.embed_all, grounding.embedding(cfg), data.titles, llm, tuned, written)
    evaluated = work.stage(
      'evaluate', grounding.stage, grounding.settings(cfg), data, written, vectors, assistant)
  else:
    choice = work.stage('choose', d3.choose, d3.decoding(cfg), data, llm, tuned, assistant)
    beams = work.stage('decode', d3.decode, d3.decoding(cfg), data, llm, tuned, assistant,
                       choice)
    evaluated = work.stage('evaluate', d3.stage, d3.settings(cfg), data, assistant, choice, beams)
  work.publish(evaluated, 'results.json', 'ranks.parquet', 'predictions.parquet')
  report.write(cfg, work, data, evaluated)
  results.show(work, evaluated)


def check(cfg: ConfigDict) -> prompts.Template:
  """What can be known to be wrong before anything runs.

  cfg: the run's config. Raises ConfigError. -> Template
  """
  llm_loading.check(cfg.llm, cfg.train.mode)
  if cfg.variant not in VARIANTS:
    raise ConfigError(f'variant={cfg.variant!r}; choose one of {", ".join(VARIANTS)}')
  if cfg.decode.beams < 1 or cfg.decode.batch < 1 or cfg.train.batch < 1:
    raise ConfigError(f'decode.beams={cfg.decode.beams}, decode.batch={cfg.decode.batch} and '
                      f'train.batch={cfg.train.batch} must be at least 1')
  if cfg.variant == 'decode' and cfg.decode.beams < 10:
    raise ConfigError(f'decode.beams={cfg.decode.beams}: lists of ten are judged, and fewer beams '
                      'cannot fill them; choose 10 or more')
  template = prompts.load_template(cfg.prompt.template)
  if prompts.title_of(template.reply('Title')) != 'Title':
    raise ConfigError(f'prompt.template={cfg.prompt.template!r}: [answer] must be the title alone, '
                      'on its first line, in quotes or without')
  return template


recommender, faces = inference.recommender, inference.faces
cost, convert = planning.cost, export.convert


def validated(cfg: ConfigDict) -> str:
  """The stage whose validation figures tell settings apart, for `recjax sweep`.

  cfg: the run's config.
  """
  return 'tune'
