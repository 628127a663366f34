"""The recommender that writes semantic IDs: T5 over codes, with what ETEGRec and fusion add.

Liu et al., SIGIR 2025 (ETEGRec); Rajput et al., NeurIPS 2023 (TIGER). An item is Q codes of C each;
every level has its own table, which is the output layer too (logits are not scaled). See
docs/etegrec.md.

Shape letters: B users, W items of a history, S = W * Q tokens, D width, K interests of a user, I
their width, N items.
"""
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from recjax.errors import ConfigError
from recjax.models import t5 as t5_lib
from recjax.models.layers import FAR
from recjax.protocols import AnyArray, Decoder

FUSION_SITES = ('none', 'pooled', 'encoder', 'prefix')
Interests = tuple[Float[AnyArray, 'B K I'], Bool[AnyArray, 'B K']]  # vectors, which are there


@dataclasses.dataclass(frozen=True)
class Config:
  """Shape; hashable. Raises ConfigError.

  t5: of the stacks. levels: Q, the one that tells equal items apart among them. size: C. item,
  code: widths of item vectors and of the tokenizer's codes, 0 where nothing is aligned. fusion:
  where interests come in. text: their width. fusion_heads, fusion_layers: of their attention.
  compat: at 'pooled' all users of a batch are seen, as released. apart: output tables of their own.
  """
  t5: t5_lib.Config
  levels: int = 4
  size: int = 256
  item: int = 256
  code: int = 128
  fusion: str = 'none'
  text: int = 0
  fusion_heads: int = 4
  fusion_layers: int = 3
  compat: bool = False
  apart: bool = False

  def __post_init__(self):
    if self.fusion not in FUSION_SITES:
      raise ConfigError(f'fusion={self.fusion!r}; choose one of {", ".join(FUSION_SITES)}')
    if self.fusion == 'pooled' and self.t5.width != self.code:
      raise ConfigError(f'fusion=pooled adds states of width {self.t5.width} to codes of width '
                        f'{self.code}; make model.width and semantic_ids.width equal')
    if self.fusion != 'none' and (self.text < 1 or self.t5.width % self.fusion_heads):
      raise ConfigError(f'fusion={self.fusion} needs interest vectors, and {self.fusion_heads} '
                        f'heads that divide a width of {self.t5.width}')


class SemanticIdT5(nn.Module):
  """Codes of a history in, states of the next item's codes out."""
  cfg: Config

  def setup(self) -> None:
    cfg, std = self.cfg, nn.initializers.normal(self.cfg.t5.std)
    width = cfg.t5.width
    self.shared = self.param('shared', std, (1, width))
    self.codes = self.param('codes', std, (cfg.levels, cfg.size, width))
    if cfg.apart:
      self.output = self.param('output', std, (cfg.levels, cfg.size, width))
    self.stacks = t5_lib.Stacks(cfg.t5)
    dense = functools.partial(nn.Dense, kernel_init=std)
    if cfg.code:
      self.enc_adapter = dense(cfg.code)
    if cfg.item:
      self.dec_adapter = dense(cfg.item)
    if cfg.fusion != 'none':
      self.interest = dense(width)
    if cfg.fusion == 'encoder':
      self.fuse, self.fuse_norm = CrossAttention(width, cfg.fusion_heads), nn.LayerNorm(1e-5)
      self.gate = self.param('gate', nn.initializers.zeros, ())
    if cfg.fusion == 'prefix':
      self.kind = self.param('kind', std, (width,))
    if cfg.fusion == 'pooled':
      self.fuses = [CrossAttention(width, cfg.fusion_heads) for _ in range(cfg.fusion_layers)]
      self.fuse_norms = [nn.LayerNorm(1e-5) for _ in range(cfg.fusion_layers)]

  def __call__(
      self, history: Int[AnyArray, 'B W Q'], target: Int[AnyArray, 'B Q'],
      interests: Interests | None = None, train: bool = False,
  ) -> tuple[Float[Array, 'B Q C'], dict[str, Float[Array, 'B _']]]:
    """history: codes, -1 for none. target: codes of the next item. interests: of the users.

    train: whether there is dropout. -> float32 logits, {'pooled': (B, code), 'first': (B, item)}
    where aligned
    """
    memory, mask = self.read(history, interests, train)
    started = jnp.broadcast_to(self.shared[None], (len(target), 1, self.shared.shape[1]))
    before = self.embed(target[:, :-1], jnp.arange(self.cfg.levels - 1))
    states = self.stacks.decode(jnp.concatenate([started, before], 1), memory, mask, train)
    logits = jnp.einsum('bqd,qcd->bqc', states, self.table(), preferred_element_type=jnp.float32)
    aligned = {}
    if self.cfg.code:
      aligned['pooled'] = self.enc_adapter(self.pool(memory, mask, interests))
    if self.cfg.item:
      aligned['first'] = self.dec_adapter(states[:, 0])
    return logits, aligned

  def table(self) -> Float[Array, 'Q C D']:
    """The output layer."""
    return self.output if self.cfg.apart else self.codes

  def embed(
      self, codes: Int[AnyArray, 'B n'], level: Int[AnyArray, ' n']) -> Float[Array, 'B n D']:
    """Rows of codes of the levels `level`; padding gets the start's row."""
    rows = self.codes[level, jnp.maximum(codes, 0)]
    return jnp.where((codes >= 0)[..., None], rows, self.shared[0])

  def read(
      self, history: Int[AnyArray, 'B W Q'], interests: Interests | None = None,
      train: bool = False) -> tuple[Float[Array, 'B S D'], Bool[AnyArray, 'B S']]:
    """The memory of a history, as `__call__` takes it, and where it is real. interests, train: as
    there."""
    batch, items, levels = history.shape
    tokens = history.reshape(batch, items * levels)
    mask = tokens >= 0
    x = self.embed(tokens, jnp.arange(items * levels) % levels)
    if self.cfg.fusion == 'prefix' and interests is not None:
      vectors, present = interests
      # In front: positions are relative, so the history's own are what they were.
      x = jnp.concatenate([self.interest(vectors) + self.kind, x], 1)
      mask = jnp.concatenate([present, mask], 1)
    memory = self.stacks.encode(x, mask, train)
    if self.cfg.fusion == 'encoder' and interests is not None:
      vectors, present = interests
      fused = self.fuse(self.fuse_norm(memory), self.interest(vectors), present)
      fused = jnp.where(jnp.any(present, 1)[:, None, None], fused, 0)
      memory = memory + jnp.tanh(self.gate) * fused
    return memory, mask

  def pool(
      self, memory: Float[Array, 'B S D'], mask: Bool[AnyArray, 'B S'], interests: Interests | None,
  ) -> Float[Array, 'B D']:
    """The mean over tokens, never divided by 0; with interests at the site 'pooled'. memory, mask:
    of `read`. interests: of the users, or None."""
    weights = mask / jnp.maximum(mask.sum(1, keepdims=True), 1)
    pooled = jnp.einsum('bsd,bs->bd', memory, weights)
    if self.cfg.fusion != 'pooled' or interests is None:
      return pooled
    vectors, present = interests
    count = jnp.maximum(present.sum(1, keepdims=True), 1)
    query = self.interest(jnp.where(present[..., None], vectors, 0).sum(1) / count)
    for attend, norm in zip(self.fuses, self.fuse_norms):
      if self.cfg.compat:  # unbatched input: each user attends to the states of all
        keys = jnp.broadcast_to(pooled, (1, *pooled.shape))
        attended = attend(query[None], keys, jnp.ones((1, len(pooled)), bool))[0]
      else:
        attended = attend(query[:, None], pooled[:, None], jnp.ones((len(pooled), 1), bool))[:, 0]
      query = norm(query + attended)
    fused = pooled + query
    return fused if self.cfg.compat else jnp.where(jnp.any(present, 1)[:, None], fused, pooled)

  def remember(
      self, history: Int[AnyArray, 'B W Q'], interests: Interests | None = None,
  ) -> tuple[t5_lib.CrossKV, Bool[AnyArray, 'B S']]:
    """The keys and values of a history for `step`, and where they are real. interests: of the
    users, or None."""
    memory, mask = self.read(history, interests)
    return self.stacks.cross(memory), mask

  def step(
      self, tokens: Int[Array, 'B K'] | None, cross: t5_lib.CrossKV, mask: Bool[AnyArray, 'B S'],
      slots: t5_lib.Slots, t: int | Int[Array, ''],
  ) -> tuple[Float[Array, 'B K D'], t5_lib.Slots]:
    """States after tokens of level t - 1, counted through all levels; None for the start.

    cross, mask: of `remember`. slots: what beams wrote, as `t5.Stacks.step` takes them.
    """
    if tokens is None:
      y = jnp.broadcast_to(self.shared[None], (len(mask), 1, self.shared.shape[1]))
    else:
      y = self.codes.reshape(-1, self.codes.shape[-1])[tokens]
    return self.stacks.step(y, cross, mask, slots, t)


class CrossAttention(nn.Module):
  """Attention with biases, scaled; queries over keys of their own row."""
  width: int
  heads: int

  @nn.compact
  def __call__(
      self, x: Float[Array, 'B S D'], keys: Float[Array, 'B K D'], present: Bool[AnyArray, 'B K'],
  ) -> Float[Array, 'B S D']:
    """x: what asks. keys: what is seen, where it is present."""
    def project(name: str, y: AnyArray) -> Array:
      dense = nn.Dense(self.width, name=name, kernel_init=nn.initializers.xavier_uniform())
      return dense(y).reshape(*y.shape[:2], self.heads, -1)
    q, k, v = project('q', x), project('k', keys), project('v', keys)
    scores = jnp.einsum('bshd,bkhd->bhsk', q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores + jnp.where(present, 0.0, FAR)[:, None, None], -1)
    self.sow('intermediates', 'share', weights)  # nothing, unless a report asks for it
    out = jnp.einsum('bhsk,bkhd->bshd', weights, v).reshape(x.shape[0], x.shape[1], -1)
    return nn.Dense(self.width, name='o', kernel_init=nn.initializers.normal(0.02))(out)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def init(cfg: Config, key: Key[Array, '']) -> PyTree:
  """Random parameters, float32. cfg: the model's shape. key: of the draws."""
  history, target = jnp.zeros((1, 1, cfg.levels), jnp.int32), jnp.zeros((1, cfg.levels), jnp.int32)
  interests = (jnp.zeros((1, 1, max(cfg.text, 1))), jnp.ones((1, 1), bool))
  return SemanticIdT5(cfg).init(key, history, target, interests)['params']


@functools.lru_cache(maxsize=16)
def decoder(cfg: Config) -> Decoder:
  """The model as `recjax.decoding` wants it.

  cfg: the model's shape.

  Prompts are items 1..N; params is {'params', 'table': (N + 1, Q) int32 with -1 in row 0,
  'interests': those of the users, or None}. Tokens count through all levels: level q's code c is q
  * C + c.
  """
  model = SemanticIdT5(cfg)
  exact = jax.lax.Precision.HIGHEST  # lists hang on these products

  def read(params: PyTree, items: AnyArray, lengths: AnyArray) -> tuple:
    real = jnp.arange(items.shape[1]) < lengths[:, None]
    history = params['table'][jnp.where(real, items, 0)]
    return model.apply({'params': params['params']}, history, params.get('interests'),
                       method='remember')

  def step(params: PyTree, tokens: AnyArray | None, cross: tuple, mask: AnyArray, slots: tuple,
           t: AnyArray | int) -> tuple:
    return model.apply({'params': params['params']}, tokens, cross, mask, slots, t, method='step')

  def output_rows(params: PyTree) -> AnyArray:
    table = params['params']['output' if cfg.apart else 'codes']
    return table.reshape(-1, table.shape[-1])

  def logits(params: PyTree, states: AnyArray) -> Array:
    return jnp.matmul(states, output_rows(params).T, precision=exact)

  def rows(params: PyTree, states: AnyArray, ids: AnyArray) -> Array:
    return jnp.einsum('bkd,bkcd->bkc', states, output_rows(params)[ids], precision=exact)

  def window(params: PyTree, states: AnyArray, first: AnyArray | int, size: int) -> Array:
    rows = jax.lax.dynamic_slice_in_dim(output_rows(params), first, size)
    return jnp.matmul(states, rows.T, precision=exact)
  return t5_lib.make_decoder(cfg.t5, read, step, logits, rows, window)
