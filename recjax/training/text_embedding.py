"""Texts to vectors with whatever a checkpoint folder holds: a decoder LLM or a sentence encoder.

No head and no cache: a decoder gives its last states, pooled. N texts, B of them at a time, S
tokens, d width.
"""
import dataclasses
import functools
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from recjax.distributed import multihost, sharding
from recjax.errors import ConfigError, DataError
from recjax.models import bert, embedding_resize, sentence_encoder
from recjax.text import tokenizer as tokenizers
from recjax.training import llm_loading, loop, sharded_stage

PIECE = 4096  # texts whose vectors a kill may cost

ON_CPU, ON_ACCELERATOR = 2048, 8192  # padded tokens of a device's batch: caches hold 2,048 states


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
  """run(variables, tokens (B, S), mask (B, S)) -> (B, d) float32, pure; ids(texts) -> token lists.

  variables: weights on the mesh, {'params': ...}, and 'lora' where there is an adapter.
  """
  run: Callable
  ids: Callable
  variables: dict
  width: int
  model: object
  about: dict


def load(folder, cfg, mesh, pool='', most=512, **adapter):
  """Opens a checkpoint folder. cfg: dtype, remat. pool: '' for the folder's own way, or 'avg'.

  most: tokens of a text at most, end included; longer ones are cut. adapter: lora_rank,
  lora_alpha of a decoder. -> Encoder
  """
  if sentence_encoder.is_bert(folder):
    return _sentence(folder, cfg, mesh, pool, most)
  if sentence_encoder.has_modules_list(folder) and not pool:
    raise ConfigError(f'{folder}: modules.json says how sentence-transformers makes vectors with '
                      'this model, which is done for bert alone; take an encoder of that kind')
  model, params, tokenizer = llm_loading.load(folder, cfg, mesh, **adapter)
  pool = pool or 'avg'

  def run(variables, tokens, mask):
    at = jnp.maximum(jnp.cumsum(mask, -1) - 1, 0)  # padding may stand on either side
    hidden, _ = model.apply(variables, tokens, at, mask)
    return bert.pool(hidden, mask, pool)
  ids = functools.partial(_decoder_ids, tokenizer, most)
  return Encoder(run, ids, {'params': params}, model.cfg.width, model,
                 {'model': str(folder), 'pool': pool, 'most': most, 'kind': 'decoder'})


def _decoder_ids(tokenizer, most, texts):
  """No token in front, cut, and the end token behind."""
  end = tokenizer.eos_ids[0]
  return [ids[:most - 1] + [end] for ids in tokenizer.encode_batch(texts)]


def _sentence(folder, cfg, mesh, pool, most):
  spec, tokenizer = sentence_encoder.read_spec(folder), tokenizers.load(folder)
  embedding_resize.check_rows(folder, tokenizer, spec.cfg.vocab)
  if spec.lower:
    tokenizer = tokenizers.lowercased(tokenizer)
  shape = dataclasses.replace(spec.cfg, dtype=llm_loading.dtype_of(cfg))
  where = sharding.shardings(bert.shapes(shape), bert.RULES, mesh)
  params, model = sentence_encoder.load(folder, shape, where), bert.Bert(shape)
  pool, most = pool or spec.pool, min(most, spec.max_tokens)
  before, after = tokenizer.before, tokenizer.after
  room = most - len(before) - len(after)
  if room < 1:
    raise ConfigError(f'{folder}: of {most} tokens of a text none is left beside '
                      f'{len(before) + len(after)} special ones')

  def ids(texts):
    rows = tokenizer.encode_batch([spec.prompt + text for text in texts])
    return [[*before, *row[:room], *after] for row in rows]
  unread = 0 if spec.prompt_pooled or not spec.prompt else len(ids([''])[0]) - len(after)

  def run(variables, tokens, mask):
    hidden = model.apply(variables, tokens, mask)
    z = bert.pool(hidden, mask * (jnp.cumsum(mask, -1) > unread), pool)
    if not spec.normalize:
      return z
    return z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
  return Encoder(run, ids, {'params': params}, shape.width, model,
                 {'model': str(folder), 'pool': pool, 'most': most, 'kind': 'sentence encoder'})


def rung(length, per_octave=4):
  """The padded length for texts of `length`: per_octave shapes between powers of two, 16 first."""
  step = max(8, (1 << (int(length) - 1).bit_length()) // (2 * per_octave))
  return max(16, -(-int(length) // step) * step)


def padded(rows, width):
  """Token lists to arrays, padded on the right. -> tokens (B, S), mask (B, S), int32 both"""
  mask = (np.arange(width) < np.array([len(r) for r in rows])[:, None]).astype(np.int32)
  tokens = np.zeros(mask.shape, np.int32)
  tokens[mask > 0] = [i for r in rows for i in r]
  return tokens, mask


def embed(encoder, texts, mesh, budget=0, per_octave=4, advance=None):
  """Vectors of texts, those of like length together.

  budget: padded tokens of one batch, 0 for what suits the device. -> (N, d) float32, {'tokens',
  'padding' (share of places that are padding), 'batches', 'cut' (texts that were longer than the
  encoder reads)}. Raises DataError naming the first text whose vector is not finite.
  """
  rows = encoder.ids(texts)
  lengths = np.array([len(r) for r in rows])
  order = np.argsort(-lengths, kind='stable')
  ways = max(1, mesh.size // mesh.shape.get('model', 1))
  on_cpu = mesh.devices.flat[0].platform == 'cpu'
  budget = budget or ways * (ON_CPU if on_cpu else ON_ACCELERATOR)
  run, out, at, places = jax.jit(encoder.run), [], 0, 0
  with jax.set_mesh(mesh):
    while at < len(order):
      width = rung(lengths[order[at]], per_octave)
      left = 1 << (len(order) - at - 1).bit_length()
      size = max(ways, min(budget // width, left) // ways * ways)
      some = order[at:at + size]
      tokens, mask = padded([rows[i] for i in some] + [[]] * (size - len(some)), width)
      batch = loop.place({'tokens': tokens, 'mask': mask}, mesh)
      out.append((some, run(encoder.variables, batch['tokens'], batch['mask'])))
      at, places = at + size, places + tokens.size
      if len(out) > 1:  # one batch computes while the one before comes back
        out[-2] = (out[-2][0], multihost.to_host(out[-2][1]))
      if advance:
        advance(len(some))
  found = np.zeros((len(texts), encoder.width), np.float32)
  for some, z in out:
    found[some] = multihost.to_host(z)[:len(some)]
  if not np.isfinite(found).all():
    bad = int((~np.isfinite(found)).any(1).argmax())
    raise DataError(f'the vector of text {bad} is not finite; try --config.llm.dtype=float32')
  total = int(lengths.sum())
  return found, {'tokens': total, 'padding': round(1 - total / places, 4), 'batches': len(out),
                 'cut': int((lengths >= encoder.about['most']).sum())}


def embed_kept(work, encoder, texts, title):
  """`embed` on the mesh of a running stage, in pieces that the stage finds again after a kill.

  title: of the progress bar, its own for each call of a stage. -> as `embed`
  """
  found, infos = [np.zeros((0, encoder.width), np.float32)], []
  with work.progress(title, len(texts), unit='text') as advance:
    for at in range(0, len(texts), PIECE):
      def make(part=texts[at:at + PIECE]):
        vectors, info = embed(encoder, part, work.mesh)
        return {'vectors': vectors, 'info': json.dumps(info)}
      piece = sharded_stage.compute_once(work, f'{title}-{at}', make)
      found.append(piece['vectors'])
      infos.append(json.loads(str(piece['info'])))
      advance(len(found[-1]))
  tokens, batches, cut = (sum(i[k] for i in infos) for k in ('tokens', 'batches', 'cut'))
  places = sum(i['tokens'] / (1 - i['padding']) for i in infos)
  return np.concatenate(found), {'tokens': tokens, 'padding': round(1 - tokens / max(places, 1), 4),
                                 'batches': batches, 'cut': cut}
