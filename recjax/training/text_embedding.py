"""Texts to vectors with whatever a checkpoint folder holds: a decoder LLM or a sentence encoder.

No head and no cache: a decoder gives its last states, pooled. N texts, B of them at a time, S
tokens, D width.
"""
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32
from ml_collections import ConfigDict

from recjax.distributed import multihost, sharding
from recjax.errors import ConfigError, DataError
from recjax.models import bert, embedding_resize, sentence_encoder
from recjax.progress import doing
from recjax.text import tokenizer as tokenizers
from recjax.training import llm_loading, loop, sharded_stage
from recjax.training.workdir import Workdir

PIECE = 4096  # texts whose vectors a kill may cost

ON_CPU, ON_ACCELERATOR = 2048, 8192  # padded tokens of a device's batch: caches hold 2,048 states


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
  """run(variables, tokens (B, S), mask (B, S)) -> (B, D) float32, pure; ids(texts) -> token lists.

  variables: weights on the mesh, {'params': ...}, and 'lora' where there is an adapter. width: D.
  model: the network. about: facts for the log, as plain JSON.
  """
  run: Callable
  ids: Callable
  variables: dict
  width: int
  model: Any
  about: dict


def load(folder: str | Path, cfg: ConfigDict, mesh: jax.sharding.Mesh, pool: str = '',
         most: int = 512, **adapter: Any) -> Encoder:
  """Opens a checkpoint folder. cfg: dtype, remat, quantize. mesh: the devices.

  pool: '' for the folder's own way, or 'avg'. most: tokens of a text at most, end included; longer
  ones are cut. adapter: lora_rank, lora_alpha of a decoder. folder: the checkpoint.
  """
  if sentence_encoder.is_bert(folder):
    if cfg.quantize != 'none':
      raise ConfigError(f'llm.quantize={cfg.quantize}: {folder} is a sentence encoder, which is '
                        'read as it is; leave the setting at none')
    return _sentence(folder, cfg, mesh, pool, most)
  if sentence_encoder.has_modules_list(folder) and not pool:
    raise ConfigError(f'{folder}: modules.json says how sentence-transformers makes vectors with '
                      'this model, which is done for bert alone; take an encoder of that kind')
  model, params, tokenizer = llm_loading.load(folder, cfg, mesh, **adapter)
  pool = pool or 'avg'

  def run(variables: dict, tokens: jax.Array, mask: jax.Array) -> jax.Array:
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

  def ids(texts: Sequence[str]) -> list[list[int]]:
    rows = tokenizer.encode_batch([spec.prompt + text for text in texts])
    return [[*before, *row[:room], *after] for row in rows]
  unread = 0 if spec.prompt_pooled or not spec.prompt else len(ids([''])[0]) - len(after)

  def run(variables: dict, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    hidden: Any = model.apply(variables, tokens, mask)
    z = bert.pool(hidden, mask * (jnp.cumsum(mask, -1) > unread), pool)
    if not spec.normalize:
      return z
    return z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
  return Encoder(run, ids, {'params': params}, shape.width, model,
                 {'model': str(folder), 'pool': pool, 'most': most, 'kind': 'sentence encoder'})


def rung(length: int, per_octave: int = 4) -> int:
  """The padded length for texts of `length`: per_octave shapes between powers of two, 16 first."""
  step = max(8, (1 << (int(length) - 1).bit_length()) // (2 * per_octave))
  return max(16, -(-int(length) // step) * step)


def padded(rows: Sequence[Sequence[int]],
           width: int) -> tuple[Int32[np.ndarray, 'B S'], Int32[np.ndarray, 'B S']]:
  """Token lists to arrays of `width` places, padded on the right. rows: token lists, none longer
  than width. -> tokens, mask"""
  mask = (np.arange(width) < np.array([len(r) for r in rows])[:, None]).astype(np.int32)
  tokens = np.zeros(mask.shape, np.int32)
  tokens[mask > 0] = [i for r in rows for i in r]
  return tokens, mask


def embed(encoder: Encoder, texts: Sequence[str], mesh: jax.sharding.Mesh, budget: int = 0,
          per_octave: int = 4, advance: Callable[[int], Any] | None = None
          ) -> tuple[Float32[np.ndarray, 'N D'], dict]:
  """Vectors of texts, those of like length together.

  budget: padded tokens of one batch, 0 for what suits the device. per_octave: as of `rung`.
  advance: called with how many texts are done. encoder: of `load`. texts: what is encoded. mesh:
  the devices. -> vectors, {'tokens', 'padding' (share of places that are padding), 'batches', 'cut'
  (texts that were longer than the encoder reads)}. Raises DataError naming the first text whose
  vector is not finite.
  """
  rows = encoder.ids(texts)
  lengths = np.array([len(r) for r in rows])
  order = np.argsort(-lengths, kind='stable')
  ways = max(1, mesh.size // mesh.shape.get('model', 1))
  on_cpu = mesh.devices.flat[0].platform == 'cpu'
  budget = budget or ways * (ON_CPU if on_cpu else ON_ACCELERATOR)
  run, outputs, start, places = jax.jit(encoder.run), [], 0, 0
  with jax.set_mesh(mesh):
    while start < len(order):
      width = rung(int(lengths[order[start]]), per_octave)
      left = 1 << (len(order) - start - 1).bit_length()
      size = max(ways, min(budget // width, left) // ways * ways)
      indices = order[start:start + size]
      tokens, mask = padded([rows[i] for i in indices] + [[]] * (size - len(indices)), width)
      batch = loop.place({'tokens': tokens, 'mask': mask}, mesh)
      with doing(f'the embedding of {size} texts of {width} tokens'):
        outputs.append((indices, run(encoder.variables, batch['tokens'], batch['mask'])))
        start, places = start + size, places + tokens.size
        if len(outputs) > 1:  # one batch computes while the one before comes back
          outputs[-2] = (outputs[-2][0], multihost.to_host(outputs[-2][1]))
          if advance:
            advance(len(outputs[-2][0]))
  if advance and outputs:
    outputs[-1] = (outputs[-1][0], multihost.to_host(outputs[-1][1]))
    advance(len(outputs[-1][0]))
  vectors = np.zeros((len(texts), encoder.width), np.float32)
  for indices, batch_vectors in outputs:
    vectors[indices] = multihost.to_host(batch_vectors)[:len(indices)]
  if not np.isfinite(vectors).all():
    bad = int((~np.isfinite(vectors)).any(1).argmax())
    raise DataError(f'the vector of text {bad} is not finite; try --config.llm.dtype=float32')
  total = int(lengths.sum())
  return vectors, {'tokens': total, 'padding': round(1 - total / places, 4),
                   'batches': len(outputs),
                   'cut': int((lengths >= encoder.about['most']).sum())}


def embed_kept(work: Workdir, encoder: Encoder, texts: Sequence[str],
               title: str) -> tuple[Float32[np.ndarray, 'N D'], dict]:
  """`embed` on the mesh of a running stage, in pieces that the stage finds again after a kill.

  title: of the progress bar, its own for each call of a stage. work: of the running stage. encoder,
  texts: as of `embed`. -> as `embed`
  """
  vectors, infos = [np.zeros((0, encoder.width), np.float32)], []
  with work.progress(title, len(texts), unit='text') as advance:
    for start in range(0, len(texts), PIECE):
      embedded = 0

      def tell(count: int) -> None:
        nonlocal embedded
        embedded += count
        advance(count)

      def make(part: Sequence[str] = texts[start:start + PIECE],
               tell: Callable[[int], None] = tell) -> dict:
        part_vectors, info = embed(encoder, part, work.mesh, advance=tell)
        return {'vectors': part_vectors, 'info': json.dumps(info)}
      piece = sharded_stage.compute_once(work, f'{title}-{start}', make)
      vectors.append(piece['vectors'])
      infos.append(json.loads(str(piece['info'])))
      if len(vectors[-1]) > embedded:  # found again after a kill
        advance(len(vectors[-1]) - embedded)
  tokens, batches, cut = (sum(i[k] for i in infos) for k in ('tokens', 'batches', 'cut'))
  places = sum(i['tokens'] / (1 - i['padding']) for i in infos)
  return np.concatenate(vectors), {
      'tokens': tokens, 'padding': round(1 - tokens / max(places, 1), 4), 'batches': batches,
      'cut': cut}
