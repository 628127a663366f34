"""Finished runs and classical rows mixed into one recommender, itself a run (`recjax blend`).

What each part says of a user is brought to 0..1 and added up by weights that validation users
chose, or by the memorization indicator of arXiv 2603.19809; `evaluation.blending` says how. Nothing
is trained. Parts are found by their place beside the blend's folder and are other methods' runs,
which are opened by `methods.find` alone, as any caller opens them.

In all files `work` is the run's Workdir, `cfg` its config, `dataset` users and items, `X_dir` the
folder that stage X left. Items are indices 1..N, 0 is none.
"""
import functools

from ml_collections import ConfigDict

from recjax.data.loading import load_for_config
from recjax.evaluation import results
from recjax.methods.blend import evaluate, export, inference, parts, planning, report
from recjax.training.workdir import Workdir


def run(cfg: ConfigDict, work: Workdir) -> None:
  """The experiment, stage by stage. cfg, work: of the run."""
  of_blend = parts.found(work.path, cfg.parts)
  dataset = load_for_config(cfg)
  parts.check_data(of_blend, dataset)
  work.log(dataset.summary)
  opened = evaluate.Opened(cfg, of_blend, dataset)
  cases = dataset, opened.protocol
  beside_dir = work.stage('beside', functools.partial(evaluate.rank_beside, opened=opened),
                          evaluate.beside_settings(cfg), *cases)
  opened.open_rows(beside_dir, work.log)
  lists_dirs = {
    part.name: work.stage(
      f'lists-{part.name}', functools.partial(evaluate.search, opened=opened), part.name,
      part.version, len(opened.valid or ()), *cases)
    for part in of_blend if opened.searches(part)}
  chosen_dir = work.stage(
    'choose', evaluate.choose, evaluate.choice_settings(cfg), opened, beside_dir, lists_dirs)
  results_dir = work.stage('evaluate', evaluate.stage, evaluate.settings(cfg), opened, beside_dir,
                           lists_dirs, chosen_dir)
  work.publish(results_dir, 'results.json', 'ranks.parquet', 'predictions.parquet')
  report.write(cfg, work, opened, chosen_dir, results_dir)
  results.show(work, results_dir)


recommender, cost, convert = inference.recommender, planning.cost, export.convert


def validated(cfg: ConfigDict) -> None:
  """None: a blend trains nothing, and `recjax sweep` has nothing to choose. cfg: of the run."""
