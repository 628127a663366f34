"""SASRec, GRU4Rec, BERT4Rec and HSTU over packed rows.

Kang and McAuley, ICDM 2018; Hidasi et al., ICLR 2016; Sun et al., CIKM 2019; Zhai et al., ICML
2024. Several users share a row of L slots: `segment` says whose token a slot holds (0: nobody's)
and `position` where the token would stand if its user had the row alone, padded on the left; so the
last token of every user is at L - 1, and more padding in front changes nothing.

Shape letters: R rows, L slots, D width, H heads, F inner width, B histories, W their length, N
items: ids 1..N, 0 is padding, N + 1 the mask of BERT4Rec.
"""
import dataclasses
import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from recjax.errors import ConfigError
from recjax.models import hstu
from recjax.models.layers import FAR
from recjax.protocols import AnyArray

# Whose token a slot holds: from 1 up, 0 for nobody's; one user alone may be a mask.
Segments = Int[AnyArray, 'R L'] | Bool[AnyArray, 'R L']

KINDS = ('sasrec', 'gru4rec', 'bert4rec', 'hstu')
NORMS = ('pre', 'original', 'post', 'ligr', 'unirec')
PAPERS = {  # BibTeX, for reports
    'sasrec': '''\
@inproceedings{kang2018sasrec,
  title = {Self-Attentive Sequential Recommendation},
  author = {Kang, Wang-Cheng and McAuley, Julian},
  booktitle = {2018 IEEE International Conference on Data Mining (ICDM)},
  pages = {197--206},
  year = {2018}
}''',
    'gru4rec': '''\
@inproceedings{hidasi2016gru4rec,
  title = {Session-based Recommendations with Recurrent Neural Networks},
  author = {Hidasi, Bal{\\'a}zs and Karatzoglou, Alexandros and Baltrunas, Linas and Tikk,
            Domonkos},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2016},
  note = {arXiv 1511.06939}
}''',
    'bert4rec': '''\
@inproceedings{sun2019bert4rec,
  title = {{BERT4Rec}: Sequential Recommendation with Bidirectional Encoder Representations from
           Transformer},
  author = {Sun, Fei and Liu, Jun and Wu, Jian and Pei, Changhua and Lin, Xiao and Ou, Wenwu and
            Jiang, Peng},
  booktitle = {Proceedings of the 28th ACM International Conference on Information and Knowledge
               Management (CIKM)},
  pages = {1441--1450},
  year = {2019}
}''',
    'hstu': '''\
@inproceedings{zhai2024hstu,
  title = {Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
           Recommendations},
  author = {Zhai, Jiaqi and Liao, Lucy and Liu, Xing and Wang, Yueming and Li, Rui and Cao, Xuan and
            Gao, Leon and Gong, Zhaojie and Gu, Fangda and He, Jiayuan and Lu, Yinghai and Shi, Yu},
  booktitle = {International Conference on Machine Learning (ICML)},
  year = {2024},
  note = {arXiv 2402.17152}
}'''}
RESERVE = 11  # slots of HSTU beyond the history, as published
REMAT = 4     # layers of HSTU beyond which their attention is computed again instead of kept


@dataclasses.dataclass(frozen=True)
class Config:
  """Shape of a model; hashable. Raises ConfigError.

  kind: sasrec, gru4rec, bert4rec, hstu. items: N. max_history: L. width, layers, heads: sizes.
  hidden: inner width of the feed-forward layers; the GRU's state. dropout: share in training. norm,
  of SASRec: 'pre', 'original' (the authors': residual from the normalized query), 'post', 'ligr'
  (eSASRec's: pre, gated branches, SwiGLU), or 'unirec' (post, a norm of the input instead of its
  scale and the last norm, GELU; RecLM's teacher). separate: scores use an output table. unit:
  scores are cosines over `temperature`.

  Of HSTU: slots, its constant n, 0 for max_history and RESERVE; time, 'bias' where it is told when
  things happened.

  Of published code: future, tokens see later ones. pads, padding in front is seen (as zeros by
  attention, as the table's row 0 by the GRU). count, positions run from the 'start' of a history
  (1, 2, ...; 0 on padding), not its 'end'. bare, as LLMEmb's authors released them: BERT4Rec is
  SASRec's block without its causal mask, GRU4Rec has neither dropout nor an output layer.
  """
  kind: str
  items: int
  max_history: int
  width: int = 64
  layers: int = 2
  heads: int = 1
  hidden: int = 64
  dropout: float = 0.2
  norm: str = 'pre'
  separate: bool = False
  future: bool = False
  pads: bool = False
  count: str = 'end'
  bare: bool = False
  slots: int = 0
  time: str = 'none'
  unit: bool = False
  temperature: float = 1.0

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ConfigError(f'model.kind={self.kind!r}; choose one of {", ".join(KINDS)}')
    if self.norm not in NORMS:
      raise ConfigError(f'model.norm={self.norm!r}; choose one of {", ".join(NORMS)}')
    if self.count not in ('end', 'start'):
      raise ConfigError(f"model.count={self.count!r}; choose 'end' or 'start'")
    if self.width % self.heads:
      raise ConfigError(f'model.width={self.width} does not divide into {self.heads} heads')
    if self.bare and self.kind == 'gru4rec' and self.hidden != self.width:
      raise ConfigError(f'model.hidden={self.hidden} must equal model.width={self.width} where '
                        'GRU4Rec has no output layer (reproduce_bugs.bare_backbones)')
    if self.time not in hstu.TIMES or self.time != 'none' and self.kind != 'hstu':
      raise ConfigError(f"model.time={self.time!r} with model.kind={self.kind!r}; 'none' is for "
                        "all kinds, 'bias' for hstu")
    if self.kind == 'hstu' and self.num_slots < self.max_history:
      raise ConfigError(f'model.slots={self.slots} is less than model.max_history='
                        f'{self.max_history}; give as many or more, or 0 for {RESERVE} more')
    if not 0 < self.temperature < float('inf') or self.temperature != 1 and not self.unit:
      raise ConfigError(f'model.temperature={self.temperature} with model.unit={self.unit}: it '
                        'must be above 0, and divides cosines alone, which model.unit=True asks '
                        'for')
    if self.items < 2 or self.max_history < 1:
      raise ConfigError(f'{self.items} items and max_history {self.max_history}: a recommender '
                        'needs two items and a history')

  @property
  def bert(self) -> bool:
    """Whether blocks are those of BERT: norms behind the residuals, GELU."""
    return self.kind == 'bert4rec' and not self.bare or self.norm == 'unirec'

  @property
  def sasrec(self) -> bool:
    """Whether blocks are SASRec's, which BERT4Rec borrows where it is bare."""
    return self.kind == 'sasrec' or self.kind == 'bert4rec' and self.bare

  @property
  def shifted(self) -> bool:
    """Whether a full history's mask stands at L + 1, its items from 2 on, as released (bare)."""
    return self.kind == 'bert4rec' and self.bare

  @property
  def num_slots(self) -> int:
    """HSTU's constant n."""
    return self.slots or self.max_history + RESERVE

  @property
  def mask(self) -> int:
    """The id that stands for a hidden item."""
    return self.items + 1

  @property
  def causal(self) -> bool:
    """Whether a token sees only those before it."""
    return self.kind != 'bert4rec'


# Parameters with a row for padding, each item and the mask.
ITEM_TABLES = ('items', 'output', 'bias')


def init_std(std: float = 0.02) -> nn.initializers.Initializer:
  """New weights: normal, of standard deviation `std`."""
  return nn.initializers.normal(std)


class SeqRec(nn.Module):
  """The models behind one interface: item ids in, a state for each slot out."""
  cfg: Config

  @nn.compact
  def __call__(
      self, items: Int[AnyArray, 'R L'], position: Int[AnyArray, 'R L'],
      segment: Segments, train: bool = False, times: Int[AnyArray, '2 R L'] | None = None,
  ) -> Float[Array, 'R L D']:
    """States, zeros where segment is 0.

    items: ids. position: of each token in its history. segment: whose token it is. train: whether
    there is dropout. times: seconds at which each token came, and the one behind it; where HSTU's
    time bias is not told them it is 0.
    """
    if self.cfg.kind == 'hstu':
      x = self._hstu(items, position, segment, train, times)
    else:
      x = self._states(items, position, segment, train)
    return hstu.unit_rows(x) if self.cfg.unit else x

  def _hstu(self, items: AnyArray, position: AnyArray, segment: Segments, train: bool,
            times: AnyArray | None) -> Array:
    cfg, real = self.cfg, (segment > 0)[..., None]
    table = self.param('items', nn.initializers.truncated_normal(0.02), (cfg.items + 2, cfg.width))
    if cfg.separate:
      self.param('output', nn.initializers.truncated_normal(0.02), table.shape)
    places = self.param('positions', nn.initializers.xavier_normal(), (cfg.num_slots, cfg.width))
    x = table[items] * cfg.width ** 0.5 + places[position]
    x = nn.Dropout(cfg.dropout, deterministic=not train)(x) * real
    visible = attention_mask(segment, True)
    timed = cfg.time == 'bias'
    buckets = None if times is None or not timed else hstu.time_buckets(times[1], times[0])
    block = nn.remat(hstu.HstuBlock, static_argnums=(4,)) if cfg.layers > REMAT else hstu.HstuBlock
    for layer in range(cfg.layers):
      x = block(cfg.heads, cfg.num_slots, cfg.dropout, timed, name=f'block_{layer}')(
          x, visible, buckets, train) * real
    return x

  def _states(self, items: AnyArray, position: AnyArray, segment: Segments, train: bool) -> Array:
    cfg = self.cfg
    table = self.param('items', init_std(), (cfg.items + 2, cfg.width))
    if cfg.separate:
      self.param('output', init_std(), (cfg.items + 2, cfg.width))
    if cfg.kind == 'bert4rec' and not cfg.bare:
      self.param('bias', nn.initializers.zeros, (cfg.items + 2,))
    real = (segment > 0)[..., None]
    x = table[items]
    unirec = cfg.kind == 'sasrec' and cfg.norm == 'unirec'
    if cfg.sasrec and not unirec:
      x = x * cfg.width ** 0.5
    if cfg.kind != 'gru4rec':
      x = x + self.param('positions', init_std(), (
          cfg.max_history + (cfg.count == 'start' or unirec) + cfg.shifted, cfg.width))[position]
    if cfg.kind == 'bert4rec' and not cfg.bare or unirec:
      x = nn.LayerNorm(epsilon=1e-12, name='norm_in')(x)
    if cfg.kind == 'gru4rec':
      rate = 0 if cfg.bare else cfg.dropout
      x = nn.Dropout(rate, deterministic=not train)(x) * real
      for layer in range(cfg.layers):
        x = GRU(cfg.hidden, name=f'gru_{layer}')(x, segment)
      return x if cfg.bare else nn.Dense(cfg.width, kernel_init=init_std(), name='out')(x) * real
    if cfg.pads:  # seen, and yet zeros in front of every block
      real = (items > 0)[..., None]
    x = nn.Dropout(cfg.dropout, deterministic=not train)(x) * real
    visible = attention_mask(segment, cfg.causal and not cfg.future)
    for layer in range(cfg.layers):
      x = Block(cfg, name=f'block_{layer}')(x, visible, train) * real
    if unirec:
      return x
    if cfg.sasrec:
      return nn.LayerNorm(epsilon=1e-8, name='norm')(x) * real
    x = nn.gelu(nn.Dense(cfg.width, kernel_init=init_std(), name='out')(x), approximate=False)
    return nn.LayerNorm(epsilon=1e-12, name='norm_out')(x) * real


def attention_mask(segment: Segments, causal: bool) -> Bool[AnyArray, 'R 1 L L']:
  """Which slots each slot sees: its own user's, with `causal` only those not after it. segment: as
  of `SeqRec`."""
  same = (segment[:, :, None] == segment[:, None]) & (segment > 0)[:, None]
  if causal:
    order = jnp.arange(segment.shape[1])
    same &= order[:, None] >= order
  return same[:, None]


class Block(nn.Module):
  """Self-attention and a feed-forward layer, with the norms where `cfg.norm` says."""
  cfg: Config

  @nn.compact
  def __call__(
      self, x: Float[Array, 'R L D'], visible: Bool[AnyArray, 'R 1 L L'], train: bool,
  ) -> Float[Array, 'R L D']:
    """x: the states. visible: of `attention_mask`. train: whether there is dropout."""
    cfg = self.cfg
    drop = nn.Dropout(cfg.dropout, deterministic=not train)
    attend = Attention(cfg, name='attention')
    feed = FeedForward(cfg, name='feed')

    def norm(name: str, y: Array) -> Array:
      return nn.LayerNorm(epsilon=1e-12 if cfg.bert else 1e-8, name=name)(y)

    def gate(name: str, y: Array) -> Array:
      return nn.sigmoid(nn.Dense(cfg.width, kernel_init=init_std(), name=name)(y))
    if cfg.bert or cfg.norm == 'post':
      x = norm('norm_1', x + drop(attend(x, x, visible, train)))
      return norm('norm_2', x + drop(feed(x, train)))
    if cfg.norm == 'original':
      query = norm('norm_1', x)
      x = norm('norm_2', query + attend(query, x, visible, train))
      return x + drop(feed(x, train))
    y = norm('norm_1', x)
    if cfg.norm == 'ligr':
      x = x + gate('gate_1', x) * drop(attend(y, y, visible, train))
      return x + gate('gate_2', x) * drop(feed(norm('norm_2', x), train))
    x = x + drop(attend(y, y, visible, train))
    return x + drop(feed(norm('norm_2', x), train))


class Attention(nn.Module):
  """Attention of each slot to the slots it sees."""
  cfg: Config

  @nn.compact
  def __call__(
      self, query: Float[Array, 'R L D'], x: Float[Array, 'R L D'],
      visible: Bool[AnyArray, 'R 1 L L'], train: bool) -> Float[Array, 'R L D']:
    """query: what asks. x: what is seen. visible: of `attention_mask`. train: whether there is
    dropout."""
    cfg = self.cfg
    size = cfg.width // cfg.heads

    def heads(name: str, y: Array) -> Array:
      return nn.DenseGeneral((cfg.heads, size), kernel_init=init_std(), name=name)(y)
    q, k, v = heads('q', query), heads('k', x), heads('v', x)
    scores = jnp.einsum('rqhd,rkhd->rhqk', q, k) / size ** 0.5
    weights = nn.softmax(jnp.where(visible, scores.astype(jnp.float32), FAR), -1)
    weights = nn.Dropout(cfg.dropout, deterministic=not train)(jnp.where(visible, weights, 0))
    out = jnp.einsum('rhqk,rkhd->rqhd', weights.astype(v.dtype), v)
    return nn.DenseGeneral(cfg.width, axis=(-2, -1), kernel_init=init_std(), name='out')(out)


class FeedForward(nn.Module):
  """Two layers at each slot: ReLU in SASRec (SwiGLU with LiGR), GELU in BERT4Rec."""
  cfg: Config

  @nn.compact
  def __call__(self, x: Float[Array, 'R L D'], train: bool) -> Float[Array, 'R L D']:
    """x: the states. train: whether there is dropout."""
    cfg = self.cfg

    def up(name: str) -> Array:
      return nn.Dense(cfg.hidden, kernel_init=init_std(), name=name)(x)
    if cfg.kind == 'sasrec' and cfg.norm == 'ligr':
      y = nn.silu(up('up')) * up('side')
    else:
      y = nn.gelu(up('up'), approximate=False) if cfg.bert else nn.relu(up('up'))
    y = nn.Dropout(cfg.dropout, deterministic=not train)(y)
    return nn.Dense(cfg.width, kernel_init=init_std(), name='down')(y)


class GRU(nn.Module):
  """A gated recurrent layer without biases, reset where another user's tokens begin.

  r, z from input and state; the candidate's reset acts after its projection, as in cuDNN.
  """
  hidden: int

  @nn.compact
  def __call__(
      self, x: Float[Array, 'R L D'], segment: Segments) -> Float[Array, 'R L F']:
    """x: inputs. segment: whose token a slot holds; nobody's leave the state as it is."""
    w = self.param('input', nn.initializers.xavier_uniform(), (x.shape[-1], 3 * self.hidden))
    u = self.param('state', nn.initializers.xavier_uniform(), (self.hidden, 3 * self.hidden))
    before = jnp.pad(segment[:, :-1], [(0, 0), (1, 0)])
    begins = (segment != before) & (segment > 0)

    def step(state: Array, of_slot: tuple) -> tuple[Array, Array]:
      projected, begin, real = of_slot
      state = jnp.where(begin[:, None], 0, state)
      gates_x, candidate_x = jnp.split(projected, [2 * self.hidden], -1)
      gates_h, candidate_h = jnp.split(state @ u, [2 * self.hidden], -1)
      r, z = jnp.split(nn.sigmoid(gates_x + gates_h), 2, -1)
      new = (1 - z) * jnp.tanh(candidate_x + r * candidate_h) + z * state
      state = jnp.where(real[:, None], new, state)
      return state, state

    start = jnp.zeros((len(x), self.hidden), x.dtype)
    inputs = (x @ w, begins, segment > 0)
    _, states = lax.scan(step, start, tuple(jnp.moveaxis(y, 1, 0) for y in inputs))
    return jnp.moveaxis(states, 1, 0)


def output_table(
    params: PyTree, cfg: Config) -> tuple[Float[AnyArray, 'N D'], Float[AnyArray, ' N'] | None]:
  """What states are multiplied with for scores: rows of items 1..N, and their bias or None. With
  cfg.unit rows of length 1 / temperature. params: of `SeqRec`. cfg: its shape."""
  table = params['output' if cfg.separate else 'items'][1:cfg.items + 1]
  if cfg.unit:
    table = hstu.unit_rows(table) / cfg.temperature
  bias = params['bias'][1:cfg.items + 1] if 'bias' in params else None
  return table, bias


@functools.partial(jax.jit, static_argnums=0, inline=True)
def init(cfg: Config, key: Key[Array, '']) -> PyTree:
  """Parameters of a new model, float32. cfg: the model's shape. key: of the draws."""
  zeros = jnp.zeros((1, cfg.max_history), jnp.int32)
  return SeqRec(cfg).init(key, zeros, zeros, zeros)['params']


def history_positions(cfg: Config, rows: Int[AnyArray, 'B W']) -> Int[Array, 'B W']:
  """The position of each token of histories. rows: their items, padded on the left. cfg: the
  model's shape. HSTU counts from the first item, 0, the others as cfg.count says."""
  if cfg.kind == 'hstu':
    return jnp.maximum(jnp.cumsum(rows > 0, -1) - 1, 0)
  if cfg.count == 'start':
    return jnp.cumsum(rows > 0, -1)
  width = rows.shape[1]
  return jnp.broadcast_to(jnp.arange(width) + cfg.max_history - width, rows.shape)


def last_states(
    cfg: Config, params: PyTree, rows: Int[AnyArray, 'B W'],
    times: Int[AnyArray, 'B W1'] | None = None) -> Float[Array, 'B D']:
  """The state that answers 'what comes next' for histories.

  cfg, params: the model. rows: items, padded with 0 on the left, BERT4Rec's end with its mask; at
  most cfg.max_history, or one more of which the first is counted and not read (cfg.shifted). times:
  seconds at which each item came, and behind them when the next one is asked for; or None.
  """
  position, rows = history_positions(cfg, rows)[:, -cfg.max_history:], rows[:, -cfg.max_history:]
  segment = ((rows > 0) | cfg.pads).astype(jnp.int32)
  pair = None if times is None else jnp.stack([times[:, :-1], times[:, 1:]])
  states = cast(Any, SeqRec(cfg).apply({'params': params}, rows, position, segment, times=pair))
  return states[:, -1]
