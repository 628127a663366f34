"""The variants of a run and the tables of item vectors that they read."""
import dataclasses
import pathlib
from pathlib import Path

from ml_collections import ConfigDict

from recjax.errors import ConfigError
from recjax.methods.llmemb import prompts
from recjax.training import continuation, llm_loading, text_embedding
from recjax.training.continuation import Start
from recjax.training.workdir import Workdir, find_stage, saved_config


@dataclasses.dataclass(frozen=True)
class Variant:
  """Which vectors are read, whether through an adapter, frozen, and drawn to those of ids.

  source: as `vector_source` names it. adapter, freeze, align: whether there is an adapter, the
  vectors stay as they are, and the alignment counts.
  """
  source: str = 'tuned'
  adapter: bool = True
  freeze: bool = True
  align: bool = True


VARIANTS = {
  'full': Variant(), 'no_scft': Variant('plain'), 'no_adapter': Variant(adapter=False),
  'no_freeze': Variant(freeze=False), 'no_align': Variant(align=False),
  'pool_last': Variant('last'), 'pca': Variant('plain', adapter=False, align=False),
  'text': Variant('text')}


def variants(cfg: ConfigDict) -> list[str]:
  """The variants of a run, the one that the run is about first. cfg: the run's config."""
  return list(dict.fromkeys([cfg.rat.variant, *cfg.rat.ablations]))


def vector_source(cfg: ConfigDict, variant: str) -> str:
  """Where a variant's item vectors come from: a stage's name, or the file of the config. cfg: the
  run's config. variant: of VARIANTS."""
  return 'file' if cfg.export.file else VARIANTS[variant].source


def vector_sources(cfg: ConfigDict) -> list[str]:
  """The tables of item vectors that a run needs. 'plain' comes along where 'tuned' is shown. cfg:
  the run's config."""
  needed = [vector_source(cfg, v) for v in variants(cfg)]
  return list(dict.fromkeys(needed + (['plain'] if 'tuned' in needed else [])))


def needs_llm(cfg: ConfigDict) -> bool:
  """Whether the LLM is read at all. cfg: the run's config."""
  return any(s in ('tuned', 'plain', 'last') for s in vector_sources(cfg))


def row_name(variant: str) -> str:
  """The row of results.json. variant: of VARIANTS."""
  return 'llmemb' if variant == 'full' else f'llmemb:{variant}'


def alignment_target(cfg: ConfigDict) -> str:
  """Whose table is the aim of the alignment: SASRec's, or the same backbone's. cfg: the run's
  config."""
  return 'sasrec' if cfg.rat.align_source == 'sasrec' else cfg.model.kind


def id_models(cfg: ConfigDict) -> list[str]:
  """The recommenders over ids alone: the backbone's, and the aim of the alignment. cfg: the run's
  config."""
  return list(dict.fromkeys([cfg.model.kind, alignment_target(cfg)]))


def recommender_config(cfg: ConfigDict, kind: str) -> ConfigDict:
  """What `training.sequential` reads, for one kind of recommender; bugs of the profile in it. cfg:
  the run's config. kind: of `seqrec.KINDS`."""
  model = (cfg.model if kind == cfg.model.kind else cfg.base).to_dict()
  train = cfg.train.to_dict()
  model.update(
    future=cfg.reproduce_bugs.future_seen and kind == 'sasrec', pads=cfg.reproduce_bugs.pads_seen,
    bare=cfg.reproduce_bugs.bare_backbones)
  train.update(
    last_only=cfg.reproduce_bugs.last_target_only and kind == 'gru4rec',
    mask_by_chance=cfg.reproduce_bugs.noisy_masks and kind == 'bert4rec')
  return ConfigDict(
    {'model': model, 'train': train, **{k: cfg[k] for k in ('loss', 'optim', 'seed', 'seeds')}})


def check(cfg: ConfigDict) -> None:
  """What can be known to be wrong before anything runs. cfg: the run's config. Raises ConfigError.
  """
  llm_loading.check(cfg.llm)
  for variant in variants(cfg):
    if variant not in VARIANTS:
      raise ConfigError(f'rat.variant={variant!r} is unknown; choose one of {", ".join(VARIANTS)}')
  if cfg.rat.align_source not in ('sasrec', 'same_backbone'):
    raise ConfigError(f"rat.align_source={cfg.rat.align_source!r}; choose 'sasrec' or "
                      "'same_backbone'")
  if 'text' in vector_sources(cfg):
    text_embedding.check(text_folder(cfg), cfg.llm)
  scft = cfg.scft
  if scft.batch < 2:
    raise ConfigError(f'scft.batch={scft.batch}: contrast needs two items or more')
  if scft.parts < 1 or scft.batch % scft.parts:
    raise ConfigError(f'scft.parts={scft.parts} must divide scft.batch={scft.batch}')
  if not 0 <= scft.ratio < 1:
    raise ConfigError(f'scft.ratio={scft.ratio}: the share of attributes dropped lies in 0..1')
  if not scft.tau > 0 or not cfg.rat.tau > 0:
    raise ConfigError('scft.tau and rat.tau must be above 0')
  if cfg.export.file and any(VARIANTS[v].source in ('last', 'text') for v in variants(cfg)):
    raise ConfigError('export.file gives the item vectors, so variants pool_last and text have none'
                      '; leave them out')


def llm_folder(cfg: ConfigDict, work: Workdir, prompts_dir: Path,
               start: Start | None = None) -> pathlib.Path | None:
  """Where the LLM stands; trains the tiny one on the prompts. None where nothing reads it. cfg,
  work: of the run. prompts_dir: of the stage before. start: the run that it goes on from."""
  if not needs_llm(cfg):
    return None
  return continuation.llm_folder(cfg, work, start, lambda: llm_loading.folder(
    cfg, work, '\n', lambda: prompts.documents(prompts_dir, cfg.seed), prompts_dir))


def text_folder(cfg: ConfigDict) -> pathlib.Path:
  """The folder of the sentence encoder. cfg: the run's config. Raises ConfigError where there is
  none."""
  folder = pathlib.Path(cfg.text.weights)
  if not cfg.text.weights or not (folder / 'config.json').exists():
    raise ConfigError(f'text.weights={cfg.text.weights!r} holds no config.json, which variant=text '
                      'needs; name the folder of a sentence encoder, e.g. all-MiniLM-L6-v2')
  return folder


def main_stage(workdir: Path) -> pathlib.Path:
  """The stage of the variant that a run is about. workdir: of the run."""
  return find_stage(workdir, f'rat-{saved_config(workdir).rat.variant}')
