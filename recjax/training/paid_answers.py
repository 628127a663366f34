"""A stage's questions to a paid service, with answers that outlive the stage."""
from collections.abc import Hashable

from ml_collections import ConfigDict

from recjax.text import llm_api
from recjax.training.workdir import Workdir


def ask(work: Workdir, cfg: ConfigDict, requests: dict[Hashable, llm_api.Messages], title: str,
        unit: str) -> dict[Hashable, llm_api.Result]:
  """Answers requests, for the stage that runs now, with a bar.

  The journal lies in the run's folder answers/STAGE. A stage's own folder is cleared where its
  settings change, and a budget is a setting too. work: of the stage. cfg: a group of settings with
  those of `base_config.api`. requests: messages under names of the caller's. title, unit: of the
  bar. -> {name: Result}. Raises what `llm_api.run_requests` raises.
  """
  with work.progress(title, len(requests), unit=unit) as advance:
    seen = [0]

    def progress(done: int, total: int) -> None:
      advance(done - seen[0])
      seen[0] = done
    return llm_api.run_requests(requests, llm_api.from_settings(cfg),
                                work.path / 'answers' / work.current, log=work.log,
                                progress=progress)
