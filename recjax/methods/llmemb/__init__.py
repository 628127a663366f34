"""LLMEmb: a language model as the generator of item embeddings for sequential recommenders.

Liu et al., AAAI 2025, arXiv 2409.19925. Embeddings of item ids say little about items that few
people met. Here an LLM reads an item's attributes; contrastive fine-tuning (SCFT) teaches it that
two views of an item, each without some attributes, are the same item. Its vectors are reduced by
PCA, and a small adapter turns them into the item table of a recommender, which is trained while its
vectors are drawn toward those that ids alone gave (RAT). No LLM runs when recommending.

Deliberate differences from the authors' code (docs/llmemb.md lists them one by one, and
`profile=faithful` takes back those that change results):
  - cosine InfoNCE with negatives from all devices, views drawn anew in every epoch;
  - the adapter runs once a step over the distinct items of a batch, not over every position;
  - alignment compares distinct items; recommenders see no padding and no later item;
  - the epoch that is kept is the best on validation NDCG@10 of full ranking.

In all files `work` is the run's Workdir, `cfg` its config or the part that a stage's `settings`
takes of it, `dataset` users and items, `X_dir` the folder that stage X left, `outcome` what
results.json holds and `row` a name of its rows. Items are indices 1..N, 0 is none.
"""
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from recjax.data.loading import load_for_config
from recjax.evaluation import results
from recjax.methods.llmemb import (
  evaluate,
  export,
  inference,
  item_embeddings,
  planning,
  prompts,
  rat,
  report,
  scft,
  variants,
)
from recjax.training import continuation
from recjax.training.workdir import Workdir, find_stage


def run(cfg: ConfigDict, work: Workdir) -> None:
  """The experiment, stage by stage. cfg, work: of the run."""
  variants.check(cfg)
  dataset = load_for_config(cfg)
  work.log(dataset.summary)
  rat.check(cfg, len(dataset.catalog))
  start, used = rat.open_start(cfg, dataset.catalog), continuation.shortened(cfg)
  if start:
    work.log(f'{start.said(dataset.catalog)}; {used.train.epochs} epochs at {used.optim.lr:g}')

  def before(name: str) -> list[Path]:
    return [find_stage(start.workdir, name)] if start else []

  prompts_dir = work.stage('prompts', prompts.stage, prompts.settings(cfg), dataset)
  llm_dir = variants.llm_folder(cfg, work, prompts_dir, start)
  tables = {
    source: embeddings(cfg, work, prompts_dir, llm_dir, source, before)
    for source in variants.vector_sources(cfg)}
  id_dirs = {
    kind: work.stage(
      f'ids-{kind}', rat.ids_stage, rat.id_settings(used, kind), dataset, *before(f'ids-{kind}'))
    for kind in variants.id_models(cfg)}
  rat_dirs = {}
  for variant in variants.variants(cfg):
    source = variants.vector_source(cfg, variant)
    began = [start, *before(f'rat-{variant}'), *before(f'pca-{source}')] if start else []
    rat_dirs[variant] = work.stage(
      f'rat-{variant}', rat.stage, rat.settings(used, variant), dataset, tables[source],
      id_dirs[variants.alignment_target(cfg)], *began)
  results_dir = work.stage(
    'evaluate', evaluate.stage, evaluate.settings(cfg), dataset, tables, id_dirs, rat_dirs)
  work.publish(results_dir, 'results.json', 'ranks.parquet', 'predictions.parquet')
  report.write(cfg, work, dataset, tables, id_dirs, rat_dirs, results_dir)
  results.show(work, results_dir)
  evaluate.show(work, results_dir)


def embeddings(cfg: ConfigDict, work: Workdir, prompts_dir: Path, llm_dir: Path | None,
               source: str, before: Callable[[str], list[Path]]) -> Path:
  """One table of item vectors, through its own stages.

  source: as `variants.vector_source` names it. cfg, work: of the run. prompts_dir, llm_dir: of its
  stages. before: name of a stage -> its folder in the run that this one goes on from, [] without;
  such a run keeps the adapter of SCFT, which knows texts and nothing that users did, and the
  components. -> the folder that holds table.npy
  """
  if source == 'file':
    return work.stage(
      'pca-file', item_embeddings.reduce_file, item_embeddings.file_settings(cfg), prompts_dir,
      *before('pca-file'))
  if source == 'text':
    export_dir = work.stage(
      'export-text', item_embeddings.stage, item_embeddings.settings(cfg, source), prompts_dir,
      variants.text_folder(cfg), None, shared=True)
  else:
    name, scft_dir = f'scft-{source}', None
    if source != 'plain' and before(name):
      scft_dir = work.stage(name, continuation.carry_stage, *before(name))
    elif source != 'plain':
      scft_dir = work.stage(name, scft.stage, scft.settings(cfg, source), prompts_dir, llm_dir)
    export_dir = work.stage(
      f'export-{source}', item_embeddings.stage, item_embeddings.settings(cfg, source), prompts_dir,
      llm_dir, scft_dir, shared=True)
  name = f'pca-{source}'
  return work.stage(name, item_embeddings.reduce, cfg.pca, export_dir, *before(name))


SHARED = ('export',)  # stages made of shards, which parts of a run divide
recommender, cost, convert = inference.recommender, planning.cost, export.convert


def validated(cfg: ConfigDict) -> str:
  """The stage whose validation figures tell settings apart, for `recjax sweep`. cfg: the run's
  config."""
  return f'rat-{cfg.rat.variant}'
