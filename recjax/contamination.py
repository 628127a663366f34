"""How much of a data set a language model can recite: `recjax doctor DATA --contamination=MODEL`.

A model that has read the file of a data set knows its tests. Questions are lines as a file has
them, with SHOTS whole ones before; the model writes on, greedily, and what it writes is held
against the file. A rate alone says little, since much can be guessed: each question has a control,
and the gap between the two is what counts. After "Do LLMs Memorize Recommendation Datasets?" (arXiv
2505.10212), which samples at temperature .8 and has no control.

Letters of shapes: Q questions, N items.
"""
import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from recjax import base_config, gguf_file, run_files
from recjax.data import splits
from recjax.data.dataset import Dataset
from recjax.data.splits import Cases, Split
from recjax.decoding.constraints import Unconstrained
from recjax.decoding.prefix_generator import PrefixGenerator
from recjax.decoding.sampling import Sampling
from recjax.distributed import sharding
from recjax.errors import ConfigError
from recjax.evaluation import baselines, classical, ranking, statistics
from recjax.models import layers
from recjax.progress import PlainProgress
from recjax.report import run_section
from recjax.training import llm_loading, sft

FILE = run_section.CONTAMINATION
SHOTS = 5        # whole lines, or users, before each question
NEW_TOKENS = 48  # of an answer at most; what the file says in more is not asked
ROWS = 5         # of a user, before the one that is asked for
BLOCK = 32       # questions at once
QUINTILES = 5
SMALL_GAP = .02  # which the upper limit of a gap stays below where there is no sign
ASIN = re.compile(r'B0[0-9A-Z]{8}|[0-9]{9}[0-9X]')
WORD = re.compile(r'\w+')
YEAR = re.compile(r'\(\d{4}\)$')
RELEASED = ('MovieLens-100K is public since 1998, MovieLens-1M since 2003, the Amazon reviews of '
            '2014, 2018 and 2023 since those years')
VERDICTS = {
    'rows': 'rows known: this data set may be in the training data of the model, so that its '
            f'figures here may be memory ({RELEASED})',
    'titles': 'titles known: the model completes titles of this catalog more often than those of '
              'the control, and neither ids nor rows; that is knowledge of the products, not of '
              'who bought what',
    'none': f'no sign: no gap to a control can be {SMALL_GAP} or more',
    'open': 'undecided: no gap is above 0 for sure, and not every one is surely below '
            f'{SMALL_GAP}; ask more (--cases)'}
DECIDE = ('ids', 'halves', 'rows')  # probes that the verdict rests on
ASKED = {'ids': 'id -> title', 'halves': 'first half of a title -> the rest',
         'attributes': 'title -> {column}', 'rows': "five rows of a user -> the next row's {what}"}


@dataclasses.dataclass(frozen=True)
class Questions:
  """Lines to go on with. opening: what stands before all of them. lines: of the questions. answers:
  what the file says."""
  opening: str
  lines: list[str]
  answers: list[str]


@dataclasses.dataclass(frozen=True)
class Probe:
  """One kind of question. name: a key of ASKED. asked: what, for a reader. real: of the file.
  control: asked besides, None where the same answers are held against those of other questions.
  about: what the control is. items: whose popularity counts, one a question. left_out: how many
  could not be asked. others: {row: whether it has the same answer first}, of rows that train
  nothing."""
  name: str
  asked: str
  real: Questions
  control: Questions | None
  about: str
  items: Int[np.ndarray, ' Q']
  left_out: int = 0
  others: dict[str, Bool[np.ndarray, ' Q']] = dataclasses.field(default_factory=dict)


def fold(text: str) -> str:
  """Text without what does not count: Unicode forms, case, runs of spaces. text: any."""
  return ' '.join(unicodedata.normalize('NFKC', text).casefold().split())


def token_f1(answer: str, truth: str) -> float:
  """How many words two texts share: the harmonic mean of precision and recall of folded words
  without punctuation, as SQuAD counts it (arXiv 1606.05250). answer, truth: the texts."""
  given, wanted = (collections.Counter(WORD.findall(fold(text))) for text in (answer, truth))
  shared = (given & wanted).total()
  return 2 * shared / (given.total() + wanted.total()) if shared else 0.0


def probe(dataset: Dataset, model: str | os.PathLike, cases: int, seed: int, control: Dataset,
          log: Callable[[str], object]) -> dict[str, Any]:
  """Asks a model about a data set.

  dataset: the data. model: a Hugging Face folder, a GGUF file, or a run's folder, which names its
  model. cases: questions of each probe at most. seed: draws them. control: of another catalog,
  whose titles the model cannot know. log: told how far it is. -> {'model', 'revision', 'prompts':
  hash of all that was asked, 'data', 'seed', 'probes': [of `scored`], 'skipped': {name: why},
  'verdict': a key of VERDICTS, 'sentence'}; for a model that the run trained from nothing 'model'
  and 'sentence' alone. Raises ConfigError for a model that writes no text.
  """
  path, trained_here = model_path(model)
  if trained_here:
    return {'model': str(model), 'sentence': 'trained here from nothing: what the model of this '
            'run knows of the data the run has taught it; nothing was asked'}
  writer = Writer(path, log)
  probes, skipped, found = [], {}, []
  for name, made in _probes(dataset, control, writer.fits, cases, seed):
    if isinstance(made, str):
      skipped[name] = made
    else:
      probes.append(made)
  digest = hashlib.sha256()
  counts = np.bincount(splits.leave_one_out(dataset.interactions).train.items,
                       minlength=len(dataset.catalog) + 1)[1:]
  for made in probes:
    for part in filter(None, (made.real, made.control)):
      digest.update(json.dumps([part.opening, part.lines]).encode())
    try:
      answers = writer(made.real, made.name)
      besides = writer(made.control, f'{made.name}, control') if made.control else None
    except ConfigError as error:
      skipped[made.name] = str(error)
      continue
    found.append(scored(made, answers, besides, quintiles(counts)[made.items - 1], seed))
  key = verdict(found)
  return {**writer.about, 'prompts': digest.hexdigest()[:12], 'data': dataset.fingerprint,
          'seed': seed, 'control': control.name, 'probes': found, 'skipped': skipped,
          'verdict': key, 'sentence': VERDICTS[key]}


def model_path(model: str | os.PathLike) -> tuple[pathlib.Path, bool]:
  """Where the weights are, and whether a run trained them from nothing. model: as `probe` takes it.
  Raises ConfigError for a run without a language model."""
  path = pathlib.Path(model)
  if not run_files.is_config(path / 'config.json'):
    return path, path.parent.name == 'stages' and (path / run_files.DONE).exists()
  settings = run_files.read_config(path)['config'].get('llm')
  if not settings or not settings.get('weights'):
    raise ConfigError(f'{model}: the run has no language model that writes text; name a Hugging '
                      'Face folder, a .gguf file, or a run of BETag, BIGRec or RecLM')
  return pathlib.Path(settings['weights']), settings['weights'] == 'tiny'


class Writer:
  """Goes on behind questions, greedily, to the end of the line.

  path: of a Hugging Face folder or a GGUF file. log: told how far it is. `about`: what the model
  is, for the record.
  """

  def __init__(self, path: pathlib.Path, log: Callable[[str], object]):
    self.model, params, self.tokenizer = llm_loading.load(
        path, ConfigDict(base_config.llm('sample')),
        sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1}))
    self.variables, self.log = {'params': params}, log
    texts = self.tokenizer.backend.decode_batch(
        [[i] for i in range(self.tokenizer.vocab_size)], skip_special_tokens=False)
    ends = [i for i, text in enumerate(texts) if '\n' in text]
    self.rule = Unconstrained(tuple(sorted({*ends, *self.tokenizer.eos_ids})))
    self.about = {'model': str(path), 'revision': revision(path),
                  'parameters': layers.count_params(params)}

  def fits(self, texts: Sequence[str]) -> Bool[np.ndarray, ' Q']:
    """Which texts an answer has room for, of those that say something. texts: of the file."""
    sizes = [len(ids) for ids in self.tokenizer.encode_batch(list(texts))]
    return np.array([0 < size <= NEW_TOKENS - 2 and bool(fold(text))
                     for size, text in zip(sizes, texts)], bool)

  def __call__(self, asked: Questions, title: str) -> list[str]:
    """What the model writes behind each question, up to the end of the line.

    asked: the questions. title: what progress calls them. Raises ConfigError where the longest is
    beyond what the model reads.
    """
    prompts = self.tokenizer.encode_batch([asked.opening + line for line in asked.lines])
    prompts = [[*self.tokenizer.before, *ids] for ids in prompts]
    longest, room = max(map(len, prompts)), self.model.cfg.max_positions
    if longest + NEW_TOKENS > room:
      raise ConfigError(f'a question of the probe {title} has {longest} tokens, and the model '
                        f'reads {room} with its answer of {NEW_TOKENS}; it cannot be asked')
    generator = PrefixGenerator(self.model, self.variables, self.tokenizer,
                                sft.common_prefix(prompts), longest)
    advance = PlainProgress(self.log, title, len(prompts), 0, 'question')
    answers = []
    for begin in range(0, len(prompts), BLOCK):
      block = [generator.own(prompt) for prompt in prompts[begin:begin + BLOCK]]
      whole = block + block[-1:] * (BLOCK - len(block))  # so that all blocks are one program
      found = generator.generate(whole, Sampling(new_tokens=NEW_TOKENS, temperature=0), self.rule)
      answers += [self.tokenizer.decode(found.row(i, 0)).split('\n')[0]
                  for i in range(len(block))]
      advance(len(block))
    return answers


def revision(path: pathlib.Path) -> str:
  """What tells the weights from others: a hash of names, sizes and first and last megabytes of the
  files. path: of a Hugging Face folder or a GGUF file."""
  found, part = hashlib.sha256(), 1 << 20
  files = [path] if gguf_file.is_gguf(path) else sorted(
      file for file in path.iterdir() if file.suffix in ('.json', '.safetensors'))
  for file in files:
    size = file.stat().st_size
    with open(file, 'rb') as content:
      found.update(f'{file.name} {size} '.encode() + content.read(part))
      content.seek(max(0, size - part))
      found.update(content.read(part))
  return found.hexdigest()[:12]


def _probes(dataset: Dataset, control: Dataset, fits: Callable, cases: int,
            seed: int) -> Iterator[tuple[str, Probe | str]]:
  """Every probe, or why it cannot be asked."""
  public, why = public_ids(dataset)
  yield 'ids', _ids(dataset, fits, cases, seed) if public else why
  yield 'halves', _halves(dataset, control, fits, cases, seed)
  yield 'attributes', _attributes(dataset, fits, cases, seed)
  yield 'rows', _rows(dataset, public, fits, cases, seed)


def public_ids(dataset: Dataset) -> tuple[bool, str]:
  """Whether item ids are those under which the items are known: Amazon's, or MovieLens's numbers.
  dataset: the data. -> whether, why not"""
  ids, titles = dataset.catalog.ids, classical.titles(dataset.catalog)
  amazon = np.mean([bool(ASIN.fullmatch(i)) for i in ids])
  films = np.mean([i.isdecimal() and bool(YEAR.search(title)) for i, title in zip(ids, titles)])
  return max(amazon, films) > .9, ('ids of the items are not public: neither ASINs nor the numbers '
                                   'of MovieLens, whose titles end with a year')


def _drawn(fits: Bool[np.ndarray, ' N'], cases: int, *seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Places of questions and, apart from them, of shots, both drawn."""
  order = np.random.default_rng(seed).permutation(np.flatnonzero(fits))
  return np.sort(order[SHOTS:SHOTS + cases]), order[:SHOTS]


FEW = 'fewer than two {} could be asked about'


def _ids(dataset: Dataset, fits: Callable, cases: int, seed: int) -> Probe | str:
  ids, titles = dataset.catalog.ids, classical.titles(dataset.catalog)
  good = fits(titles)
  places, shots = _drawn(good, cases, seed, 1)
  if len(places) < 2:
    return FEW.format('titles')
  opening = ''.join(f'{ids[i]}::{titles[i]}\n' for i in shots)
  return Probe('ids', ASKED['ids'],
               Questions(opening, [f'{ids[i]}::' for i in places], [titles[i] for i in places]),
               None, 'titles of other ids', places + 1, int((~good).sum()))


def _attributes(dataset: Dataset, fits: Callable, cases: int, seed: int) -> Probe | str:
  titles, columns = classical.titles(dataset.catalog), dataset.catalog.columns
  column = next((c for c in ('categories', 'brand') if any(columns.get(c) or ())), '')
  if not column:
    return 'the items have neither categories nor a brand'
  values = [('|'.join(map(str, v)) if isinstance(v, list | tuple) else str(v or '')).replace(
      '\n', ' ') for v in columns[column]]
  good = fits(values) & np.array([bool(fold(t)) for t in titles])
  places, shots = _drawn(good, cases, seed, 3)
  if len(places) < 2:
    return FEW.format(column)
  opening = ''.join(f'{titles[i]}::{values[i]}\n' for i in shots)
  return Probe('attributes', ASKED['attributes'].format(column=column),
               Questions(opening, [f'{titles[i]}::' for i in places], [values[i] for i in places]),
               None, f'{column} of other titles; much can be guessed, so the verdict leaves it out',
               places + 1, int((~good).sum()))


def halved(title: str) -> tuple[str, str]:
  """A title's first half, of an odd number of words the larger one, and the rest. title: of an
  item."""
  every = title.split()
  middle = (len(every) + 1) // 2
  return ' '.join(every[:middle]), ' '.join(every[middle:])


def _halves(dataset: Dataset, control: Dataset, fits: Callable, cases: int,
            seed: int) -> Probe | str:
  made, good = [], np.zeros(0, bool)
  for data in (control, dataset):
    titles = classical.titles(data.catalog)
    halves = [halved(title) for title in titles]
    good = fits([rest for _, rest in halves])
    places, shots = _drawn(good, cases, seed, 2)
    if len(places) < 2:
      return FEW.format(f'titles of two words and more of {data.name}')
    made.append((Questions(''.join(f'{" ".join(titles[i].split())}\n' for i in shots),
                           [halves[i][0] for i in places], [halves[i][1] for i in places]), places))
  (other, _), (real, places) = made
  return Probe('halves', ASKED['halves'], real, other, f'titles of {control.name}', places + 1,
               int((~good).sum()))


def _rows(dataset: Dataset, public: bool, fits: Callable, cases: int, seed: int) -> Probe | str:
  split = splits.leave_one_out(dataset.interactions)
  test, titles = split.test, classical.titles(dataset.catalog)
  names = list(dataset.catalog.ids) if public else [' '.join(title.split()) for title in titles]
  good = (np.diff(test.histories[1]) >= ROWS) & fits([names[i - 1] for i in test.targets])
  places, shots = _drawn(good, cases, seed, 4)
  if len(places) < 2:
    return FEW.format(f'users of {ROWS + 1} items')
  draws = np.random.default_rng((seed, 5))
  users = dataset.interactions.users

  def listed(case: int, names: Sequence[str], order: np.ndarray) -> str:
    head = f'{users[test.users[case]]}::' if public else ''
    history = test.history(case)[-ROWS:][order]
    return ''.join(f'{head}{names[i - 1]}\n' for i in history) + head

  def asked(names: Sequence[str], orders: Sequence[np.ndarray]) -> Questions:
    opening = ''.join(f'{listed(c, names, np.arange(ROWS))}{names[test.targets[c] - 1]}\n\n'
                      for c in shots)
    return Questions(opening, [listed(c, names, order) for c, order in zip(places, orders)],
                     [names[test.targets[c] - 1] for c in places])
  straight = [np.arange(ROWS)] * len(places)
  if public:
    mixed = draws.permutation(len(names))
    control, about = asked([names[i] for i in mixed], straight), 'the same rows, ids permuted'
  else:
    control = asked(names, [_moved(draws) for _ in places])
    about = 'the same rows in another order'
  cases_asked = test.select(places)
  return Probe('rows', ASKED['rows'].format(what='id' if public else 'title'),
               asked(names, straight), control, about, cases_asked.targets, int((~good).sum()),
               _first_of(split, cases_asked, len(names)))


def _moved(draws: np.random.Generator) -> Int[np.ndarray, ' R']:
  """An order of ROWS rows that leaves none at its place."""
  while True:
    order = draws.permutation(ROWS)
    if (order != np.arange(ROWS)).all():
      return order


def _first_of(split: Split, cases: Cases, n_items: int) -> dict[str, Bool[np.ndarray, ' Q']]:
  """Whether the target stands first in the list of rows that train nothing."""
  rows = {'markov': classical.markov(split.train, n_items),
          'popularity': baselines.popularity(split.train.items, n_items)}
  return {name: np.asarray(ranking.rank_cases(row, cases, n_items)) == 0
          for name, row in rows.items()}


def quintiles(counts: Int[np.ndarray, ' N']) -> Int[np.ndarray, ' N']:
  """The fifth of the catalog that each item is in, 0 that of the most popular. counts: how often
  each item was met; ties go by index."""
  place = np.empty(len(counts), np.int64)
  place[np.argsort(-counts, kind='stable')] = np.arange(len(counts))
  return QUINTILES * place // len(counts)


def scored(asked: Probe, answers: Sequence[str], besides: Sequence[str] | None,
           fifth: Int[np.ndarray, ' Q'], seed: int) -> dict[str, Any]:
  """What answers come to.

  asked: the probe. answers: to its questions. besides: to those of the control; None holds the
  answers against the truths of other questions. fifth: the quintile of each question's item. seed:
  draws which other. -> {'name', 'asked', 'about', 'left_out', 'real', 'control': {'hits', 'n',
  'exact', 'low', 'high', 'f1'}, 'gap', 'gap_low', 'gap_high', 'others': {row: the same},
  'quintiles': [of the same], 'examples': [[question, truth, answer]]}. The gap is to the best of
  control and others, Newcombe's interval.
  """
  truths = asked.real.answers
  right = exact(answers, truths)
  if besides is None:
    shift = int(np.random.default_rng((seed, 9)).integers(1, len(truths)))
    besides, wrong_truths = answers, [*truths[shift:], *truths[:shift]]
  else:
    assert asked.control
    wrong_truths = asked.control.answers
  by_chance = exact(besides, wrong_truths)
  others = {name: _rate(hits) for name, hits in asked.others.items()}
  control = {**_rate(by_chance), 'f1': _f1(besides, wrong_truths)}
  real = {**_rate(right), 'f1': _f1(answers, truths)}
  best = max([control, *others.values()], key=lambda rate: rate['exact'])
  gap, low, high = statistics.newcombe(real['hits'], real['n'], best['hits'], best['n'])
  last = [line.rsplit('\n', 2 if asked.name == 'rows' else 1)[-1] or line
          for line in asked.real.lines]
  return {'name': asked.name, 'asked': asked.asked, 'about': asked.about,
          'left_out': asked.left_out, 'real': real, 'control': control, 'others': others,
          'gap': gap, 'gap_low': low, 'gap_high': high,
          'quintiles': [_rate(right[fifth == k]) for k in range(QUINTILES) if (fifth == k).any()],
          'examples': [[last[i], truths[i], answers[i]] for i in np.flatnonzero(right)[:3]]}


def exact(answers: Sequence[str], truths: Sequence[str]) -> Bool[np.ndarray, ' Q']:
  """Which answers are the truth, folded. answers, truths: one a question."""
  return np.array([fold(a) == fold(t) for a, t in zip(answers, truths)], bool)


def _f1(answers: Sequence[str], truths: Sequence[str]) -> float:
  return float(np.mean([token_f1(a, t) for a, t in zip(answers, truths)]))


def _rate(hits: Bool[np.ndarray, ' Q']) -> dict[str, float]:
  low, high = statistics.wilson(int(hits.sum()), len(hits))
  return {'hits': int(hits.sum()), 'n': len(hits), 'exact': float(hits.mean()), 'low': low,
          'high': high}


def verdict(found: Sequence[dict]) -> str:
  """What the gaps come to, a key of VERDICTS. found: of `scored`, those of DECIDE count."""
  gaps = {probe['name']: probe for probe in found if probe['name'] in DECIDE}
  above = {name for name, probe in gaps.items() if probe['gap_low'] > 0}
  if above & {'ids', 'rows'}:
    return 'rows'
  if above:
    return 'titles'
  return 'none' if gaps and all(p['gap_high'] < SMALL_GAP for p in gaps.values()) else 'open'


def told(result: dict[str, Any]) -> Iterator[str]:
  """What `recjax doctor` prints. result: of `probe`."""
  if 'probes' not in result:
    yield f'contamination: {result["model"]}: {result["sentence"]}'
    return
  yield (f'contamination: {result["model"]}, {result["parameters"]:,} parameters, revision '
         f'{result["revision"]}, prompts {result["prompts"]}, seed {result["seed"]}')
  for found in result['probes']:
    yield f'{found["name"]}: {found["asked"]}, {found["real"]["n"]} asked'
    yield f'    exact {shown(found["real"])}, word F1 {found["real"]["f1"]:.3f}'
    yield (f'    control ({found["about"]}): {shown(found["control"])}, word F1 '
           f'{found["control"]["f1"]:.3f}')
    for row, rate in found['others'].items():
      yield f'    {row} on the same questions: {shown(rate)}'
    yield (f'    gap {found["gap"]:+.3f} [{found["gap_low"]:+.3f}, {found["gap_high"]:+.3f}]'
           + (' to the best of these' if found['others'] else ''))
    yield '    by popularity, most popular fifth first: ' + '; '.join(
        map(shown, found['quintiles']))
    for question, truth, answer in found['examples']:
      yield f'    e.g. {question!r}: {answer.strip()!r}' + (
          '' if fold(answer) == fold(truth) else f', not {truth!r}')
  for name, why in result['skipped'].items():
    yield f'{name}: not asked, {why}'
  yield f'{result["sentence"]}'


def shown(rate: dict[str, float]) -> str:
  """A rate with its interval, for a line. rate: 'exact', 'low', 'high', 'n'."""
  return f'{rate["exact"]:.3f} [{rate["low"]:.3f}, {rate["high"]:.3f}] of {rate["n"]}'
