"""The recommender that writes semantic IDs: T5 over codes, with what ETEGRec and fusion add.

Liu et al., SIGIR 2025 (ETEGRec); Rajput et al., NeurIPS 2023 (TIGER). An item is Q codes of C each;
every level has its own table, which is the output layer too (logits are not scaled). B users, W
items of a history, S = W * Q tokens, K interests of a user. (specification: etegrec.md 4, 10)
"""
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from recjax.errors import ConfigError
from recjax.models import t5

SITES = ('none', 'pooled', 'encoder', 'prefix')

FAR = t5.FAR


@dataclasses.dataclass(frozen=True)
class Config:
  """Shape; hashable. levels: Q, the one that tells equal items apart among them. item, code: widths
  of item vectors and of the tokenizer's codes, 0 where nothing is aligned. fusion: where interests
  come in; text: their width. compat: at 'pooled' all users of a batch are seen, as released.
  apart: output tables of their own.
  """
  t5: t5.Config
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
    if self.fusion not in SITES:
      raise ConfigError(f'fusion={self.fusion!r}; choose one of {", ".join(SITES)}')
    if self.fusion == 'pooled' and self.t5.width != self.code:
      raise ConfigError(f'fusion=pooled adds states of width {self.t5.width} to codes of width '
                        f'{self.code}; make model.width and semantic_ids.width equal')
    if self.fusion != 'none' and (self.text < 1 or self.t5.width % self.fusion_heads):
      raise ConfigError(f'fusion={self.fusion} needs interest vectors, and {self.fusion_heads} '
                        f'heads that divide a width of {self.t5.width}')


class SemanticIdT5(nn.Module):
  """Codes of a history in, states of the next item's codes out."""
  cfg: Config

  def setup(self):
    cfg, std = self.cfg, nn.initializers.normal(self.cfg.t5.std)
    width = cfg.t5.width
    self.shared = self.param('shared', std, (1, width))
    self.codes = self.param('codes', std, (cfg.levels, cfg.size, width))
    if cfg.apart:
      self.output = self.param('output', std, (cfg.levels, cfg.size, width))
    self.stacks = t5.Stacks(cfg.t5)
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

  def __call__(self, history, target, interests=None, train=False):
    """history: (B, W, Q) int32, -1 for none. target: (B, Q). interests: (B, K, text), (B, K) mask.

    -> (logits (B, Q, C) float32, {'pooled': (B, code), 'first': (B, item)} where aligned)
    """
    memory, mask = self.read(history, interests, train)
    started = jnp.broadcast_to(self.shared[None], (len(target), 1, self.shared.shape[1]))
    before = self.embed(target[:, :-1], jnp.arange(self.cfg.levels - 1))
    states = self.stacks.decode(jnp.concatenate([started, before], 1), memory, mask, train)
    logits = jnp.einsum('bqd,qcd->bqc', states, self.table(), preferred_element_type=jnp.float32)
    out = {}
    if self.cfg.code:
      out['pooled'] = self.enc_adapter(self.pool(memory, mask, interests))
    if self.cfg.item:
      out['first'] = self.dec_adapter(states[:, 0])
    return logits, out

  def table(self):
    return self.output if self.cfg.apart else self.codes

  def embed(self, codes, level):
    """Codes (B, n) of levels (n,); padding gets the start's row."""
    rows = self.codes[level, jnp.maximum(codes, 0)]
    return jnp.where((codes >= 0)[..., None], rows, self.shared[0])

  def read(self, history, interests=None, train=False):
    """-> memory (B, S, D), its mask (B, S) bool"""
    batch, items, levels = history.shape
    tokens = history.reshape(batch, items * levels)
    mask = tokens >= 0
    x = self.embed(tokens, jnp.arange(items * levels) % levels)
    if self.cfg.fusion == 'prefix' and interests is not None:
      given, there = interests
      # In front: positions are relative, so the history's own are what they were.
      x = jnp.concatenate([self.interest(given) + self.kind, x], 1)
      mask = jnp.concatenate([there, mask], 1)
    memory = self.stacks.encode(x, mask, train)
    if self.cfg.fusion == 'encoder' and interests is not None:
      given, there = interests
      keys = self.interest(given)
      seen = self.fuse(self.fuse_norm(memory), keys, there)
      memory = memory + jnp.tanh(self.gate) * jnp.where(there.any(1)[:, None, None], seen, 0)
    return memory, mask

  def pool(self, memory, mask, interests):
    """The mean over tokens, never divided by 0; with interests at the site 'pooled'."""
    share = mask / jnp.maximum(mask.sum(1, keepdims=True), 1)
    seq = jnp.einsum('bsd,bs->bd', memory, share)
    if self.cfg.fusion != 'pooled' or interests is None:
      return seq
    given, there = interests
    count = jnp.maximum(there.sum(1, keepdims=True), 1)
    query = self.interest(jnp.where(there[..., None], given, 0).sum(1) / count)
    for layer, norm in zip(self.fuses, self.fuse_norms):
      if self.cfg.compat:  # unbatched input: each user attends to the states of all
        keys = jnp.broadcast_to(seq, (1, *seq.shape))
        seen = layer(query[None], keys, jnp.ones((1, len(seq)), bool))[0]
      else:
        seen = layer(query[:, None], seq[:, None], jnp.ones((len(seq), 1), bool))[:, 0]
      query = norm(query + seen)
    fused = seq + query
    return fused if self.cfg.compat else jnp.where(there.any(1)[:, None], fused, seq)

  def remember(self, history, interests=None):
    memory, mask = self.read(history, interests)
    return self.stacks.cross(memory), mask

  def step(self, tokens, across, mask, slots, t):
    """tokens: (B, K) of level t - 1, counted through all levels; None for the start."""
    if tokens is None:
      y = jnp.broadcast_to(self.shared[None], (len(mask), 1, self.shared.shape[1]))
    else:
      y = self.codes.reshape(-1, self.codes.shape[-1])[tokens]
    return self.stacks.step(y, across, mask, slots, t)


class CrossAttention(nn.Module):
  """Attention with biases, scaled; queries over keys of their own row."""
  width: int
  heads: int

  @nn.compact
  def __call__(self, x, keys, there):
    """x: (B, S, D), keys: (B, K, D), there: (B, K) bool -> (B, S, D)"""
    part = lambda name, y: nn.Dense(self.width, name=name, kernel_init=(  # noqa: E731
        nn.initializers.xavier_uniform()))(y).reshape(*y.shape[:2], self.heads, -1)
    q, k, v = part('q', x), part('k', keys), part('v', keys)
    scores = jnp.einsum('bshd,bkhd->bhsk', q, k) * q.shape[-1] ** -0.5
    share = jax.nn.softmax(scores + jnp.where(there, 0.0, FAR)[:, None, None], -1)
    self.sow('intermediates', 'share', share)  # nothing, unless a report asks for it
    out = jnp.einsum('bhsk,bkhd->bshd', share, v).reshape(x.shape[0], x.shape[1], -1)
    return nn.Dense(self.width, name='o', kernel_init=nn.initializers.normal(0.02))(out)


def init(cfg, key):
  """Random parameters, float32."""
  history, target = jnp.zeros((1, 1, cfg.levels), jnp.int32), jnp.zeros((1, cfg.levels), jnp.int32)
  interests = (jnp.zeros((1, 1, max(cfg.text, 1))), jnp.ones((1, 1), bool))
  return SemanticIdT5(cfg).init(key, history, target, interests)['params']


@functools.lru_cache(maxsize=16)
def decoder(cfg):
  """The model as `recjax.decoding` wants it. -> Decoder

  Prompts are items 1..N; params is {'params', 'table': (N + 1, Q) int32 with -1 in row 0,
  'interests': ((B, K, text), (B, K) bool) or None}. Tokens count through all levels: level q's
  code c is q * C + c.
  """
  model = SemanticIdT5(cfg)

  def read(given, items, lengths):
    real = jnp.arange(items.shape[1]) < lengths[:, None]
    history = given['table'][jnp.where(real, items, 0)]
    return model.apply({'params': given['params']}, history, given.get('interests'),
                       method='remember')

  def step(given, tokens, across, mask, slots, t):
    return model.apply({'params': given['params']}, tokens, across, mask, slots, t, method='step')

  def rows(given):
    table = given['params']['output' if cfg.apart else 'codes']
    return table.reshape(-1, table.shape[-1])

  def logits(given, states):
    return states @ rows(given).T

  def some(given, states, ids):
    return jnp.einsum('bkd,bkcd->bkc', states, rows(given)[ids])

  def window(given, states, first, size):
    return states @ jax.lax.dynamic_slice_in_dim(rows(given), first, size).T
  return t5.steps(cfg.t5, read, step, logits, some, window)
