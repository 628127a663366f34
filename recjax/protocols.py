"""What the parts of recjax expect of each other: models, constraints, score functions, methods.

Nothing is registered or inherited: whatever has these functions fits.
"""
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree
from ml_collections import ConfigDict

if TYPE_CHECKING:
  AnyArray: TypeAlias = Any  # checkers know no function of JAX that takes both and gives one
  NewTokens: TypeAlias = Any
else:
  AnyArray = jax.Array | np.ndarray  # on the device or on the host
  NewTokens = int | None  # of a search; None until the longest row of a constraint takes its place


class Decoder(NamedTuple):
  """An autoregressive model as decoding sees it. Functions are pure; params is any pytree.

  start: (params, tokens (B, P), lengths (B,), beams, new_tokens) -> (state (B, D) after each
  prompt, cache of `beams` suffixes each). step: (params, cache, tokens (B, K), t) -> (state
  (B, K, D), cache), where tokens are number t of what was generated. reorder: (cache, parents
  (B, K)) -> cache whose row i goes on from row parents[i]. logits: (params, state (..., D)) ->
  (..., V).

  Optional, None where the model has none: rows: (params, state (B, K, D), ids (B, K, C)) -> those
  logits alone. window: (params, state (..., D), first, size) -> logits first .. first + size - 1.
  extend: several tokens of a request in one pass, see `lookahead_beam_search`. grow: (cache,
  new_tokens) -> the cache with room for so many, so that long searches begin small.
  select_requests: (cache, requests (R,)) -> the cache of those requests alone, so that few do not
  pay for many that are done.
  """
  start: Callable
  step: Callable
  reorder: Callable
  logits: Callable
  rows: Callable | None = None
  window: Callable | None = None
  extend: Callable | None = None
  grow: Callable | None = None
  select_requests: Callable | None = None


@runtime_checkable
class Constraint(Protocol):
  """What may come next; a registered pytree. B requests, K beams, C candidates, M chosen ones.

  longest: tokens of the longest row, 0 where nothing bounds it. num_end_tokens: how many different
  tokens may end a row.
  """
  longest: int
  num_end_tokens: int

  def start(self, batch: int) -> PyTree:
    """The state before the first token, a pytree with leading axes (B, 1). batch: B, the requests.
    """

  def candidates(self, head: Any, state: PyTree, t: Array | int, limit: int,
                 choose: Callable[[Array, Array, Array], Any]) -> Any:
    """What `choose` makes of the tokens that may come as number t.

    head: a `decoding.lm_head.LMHead` on the beams' states. limit: how many of the best candidates
    of a beam are enough, 0 for all. choose: (log_probs, tokens, nodes) -> anything; each is (B, K,
    C); log-probabilities are at most 0, DEAD where a token may not come, tokens ascending where
    values tie. C is the constraint's affair, so what `choose` returns must not have it in its
    shape. state: of the beams. t: number of the token, from 0.
    """

  def advance(self, state: PyTree, token: Int[Array, 'B M'], node: Int[Array, 'B M']) -> PyTree:
    """The state after chosen tokens and their nodes. state: of the rows that they continue. token:
    what was chosen. node: what came with it."""

  def is_final(self, state: PyTree, token: Int[Array, 'B M'], t: Array | int) -> Bool[Array, 'B M']:
    """Whether token number t, which led to `state`, is a row's last; () or (B, M) for t. token: of
    the rows."""
    ...

  def select_requests(self, requests: Int[Array, ' R']) -> 'Constraint':
    """The constraint of some of the requests. requests: their numbers, from 0."""
    ...


@runtime_checkable
class ScoreFn(Protocol):
  """Scores a block of histories against the whole catalog."""

  def __call__(self, items: Int[np.ndarray, ' M'], offsets: Int[np.ndarray, ' B1']
               ) -> Float[Array, 'B N'] | Float[np.ndarray, 'B N']:
    """items: of all histories, 1..N, oldest first. offsets: history b is items[offsets[b]:
    offsets[b + 1]]. -> column j scores item j + 1, -inf for an item that may not come"""
    ...


class Recommender(Protocol):
  """A trained method's face."""

  def __call__(self, histories: Sequence[Sequence[str]], k: int, exclude_seen: bool = True,
               allowed: Collection[str] | Bool[np.ndarray, 'B N'] | None = None,
               times: Sequence[Sequence[int]] | None = None
               ) -> tuple[list[list[str]], Float[np.ndarray, 'B K'] | list]:
    """The k best items of each history of item ids, oldest first.

    exclude_seen: whether items of the history are out. allowed: the ids that may come, or a mask,
    of a row a history where the recommender has `masks_by_row`; None for all. histories: of B
    users. times: of each the seconds of its items and of the request, for one that is `timed`. ->
    ids, fewer than k where fewer may come; their scores. Raises DataError for unknown ids.
    """
    ...


@runtime_checkable
class Method(Protocol):
  """A method package, `recjax.methods.NAME`: a module with these functions."""

  def run(self, cfg: ConfigDict, work: Any) -> None:
    """The experiment, stage by stage. work: a `training.workdir.Workdir`. cfg: its settings."""

  def recommender(self, workdir: Any, data: str | None = None) -> Recommender:
    """The face of what was trained in a folder. data: a later data set than the run's. workdir:
    that folder."""
    ...

  def cost(self, cfg: ConfigDict, dataset: Any) -> dict[str, Any]:
    """What a run would take, before it runs: {what: how much, for people}, where a value is text or
    a `training.cpu_cost.Estimate`. cfg: its settings. dataset: a `Dataset`."""
    ...

  def convert(self, workdir: Any, kind: str, out: Any) -> Any:
    """Writes files for other programs. workdir: of the run. out: file or folder to make. Raises
    ConfigError for an unknown kind."""

  def validated(self, cfg: ConfigDict) -> str | None:
    """The stage whose validation figures tell settings apart, for `recjax sweep`; None for none.
    cfg: its settings."""
