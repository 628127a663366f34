"""Diverse beam search over every item's own line, a shard for every batch."""
import functools
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree
from ml_collections import ConfigDict, FrozenConfigDict

from recjax.data.formats import betag as files
from recjax.decoding.constraints import Unconstrained
from recjax.decoding.diverse_beam_search import DiverseBeamSearch, diverse_beam_search
from recjax.decoding.lm_head import BoundDecoder, cache_lengths
from recjax.distributed import sharding
from recjax.distributed.multihost import to_host
from recjax.errors import DataError
from recjax.file_io import write_json
from recjax.methods.betag import prompts as prompts_lib
from recjax.models import huggingface, llm, llm_decoder
from recjax.run_files import read_json
from recjax.text import chat_template
from recjax.text.tokenizer import Tokenizer
from recjax.training import job_parts, llm_loading, sharded_stage
from recjax.training.loop import place
from recjax.training.workdir import Workdir

SHARDS = 'shards'
BUCKET = 16  # prompt lengths are rounded up to a multiple of this


def settings(cfg: ConfigDict) -> FrozenConfigDict:
  """Everything in the config that decides what is generated. cfg: the run's config."""
  decode = {k: v for k, v in cfg.decode.items() if k != 'drop_truncated'}
  return FrozenConfigDict({'sep': cfg.tags.sep, 'llm': cfg.llm, **decode})


def stage(work: Workdir, cfg: FrozenConfigDict, base: pathlib.Path, folder: pathlib.Path,
          lora: pathlib.Path) -> dict[str, Any]:
  """Writes raw_predict.json, the generated texts of every item. -> counts

  Every batch of items is a file in shards/ until all are there. Batches are cut the same way every
  time, so the end is the same. work: the Workdir. cfg: of `settings`. base: folder of the stage
  'base-tags'. folder: of the LLM. lora: folder of the adapter.
  """
  if (work.folder / 'raw_predict.json').exists():  # killed between it and the end of the stage
    job_parts.gather(work, work.folder)
    return finish(work, files.read_predictions(work.folder / 'raw_predict.json'))
  tags = files.read_tags(base / 'base_tags.json')
  mesh = sharding.generation_mesh(work.mesh, huggingface.read_config(folder).kv_heads)
  model, params, tokenizer = llm_loading.load_merged(folder, cfg.llm, lora, mesh)
  tags = prompts_lib.respell(tokenizer, tags)
  batches, prefix = prompt_batches(tags, tokenizer, cfg, model.cfg)
  search, ends = search_config(cfg, tokenizer)
  run = jax.jit(functools.partial(beams_of, model, search, ends))
  prefix_ids = jnp.asarray(prefix, jnp.int32)
  paths = [work.folder / SHARDS / f'{n:06d}-of-{len(batches):06d}.json'
           for n in range(len(batches))]

  def make(number: int, advance: Any) -> Any:
    items, ids, lengths = batches[number]
    placed = place({'ids': ids, 'lengths': lengths}, mesh)
    texts_of_item = run(params, {}, prefix_ids, **placed)
    tokens, lengths = to_host((texts_of_item.tokens, texts_of_item.lengths))
    write_json(paths[number], {
        item: texts_of(tokenizer, tags[item], cfg, tokens[b], lengths[b])
        for b, item in enumerate(items)})
    advance(len(items))
  with jax.set_mesh(mesh):
    sharded_stage.fill(work, 'generate', paths, [len(items) for items, *_ in batches], make)
  if not work.first:
    return {}
  texts_of_item = {item: texts for path in paths for item, texts in read_json(path).items()}
  write_json(work.folder / 'generation_config.json', published_config(cfg))
  raw = {item: texts_of_item[item] for item in tags}
  files.write_predictions(work.folder / 'raw_predict.json', raw)
  return finish(work, raw)


def search_config(cfg: ConfigDict | FrozenConfigDict,
                  tokenizer: Tokenizer | None = None) -> tuple[DiverseBeamSearch, Unconstrained]:
  """The published decoding; stopping at a line's end is an extra that is off there.

  cfg: the group `decode`. tokenizer: for the ends of lines.
  """
  ends = tuple(line_ends(tokenizer)) if tokenizer and cfg.stop_at_line_end else ()
  search = DiverseBeamSearch(
      beams=cfg.beams, groups=cfg.groups, diversity_penalty=float(cfg.diversity),
      new_tokens=cfg.new_tokens, length_penalty=float(cfg.length_penalty),
      pad_id=tokenizer.pad_id if tokenizer else 0)
  return search, Unconstrained(ends)


def line_ends(tokenizer: Tokenizer) -> list[int]:
  """Ids of all tokens that hold a newline. tokenizer: the LLM's."""
  return [i for i in range(tokenizer.vocab_size) if '\n' in tokenizer.decode([i])]


def published_config(cfg: FrozenConfigDict) -> dict[str, Any]:
  """The names that the authors' file has. cfg: of `settings`."""
  return {
      'do_sample': False, 'num_beams': cfg.beams, 'num_beam_groups': cfg.groups,
      'num_return_sequences': cfg.beams, 'diversity_penalty': cfg.diversity,
      'min_new_tokens': cfg.new_tokens, 'max_new_tokens': cfg.new_tokens,
      'no_repeat_ngram_size': 0, 'length_penalty': cfg.length_penalty,
      'stop_at_line_end': cfg.stop_at_line_end, 'max_n_tags': cfg.max_tags, 'sep': cfg.sep}


def prompt_batches(
    tags: dict[str, list[str]], tokenizer: Tokenizer, cfg: FrozenConfigDict, shape: llm.Config,
) -> tuple[list[tuple[list[str], np.ndarray, np.ndarray]], list[int]]:
  """Items by prompt length, in batches of fixed shape; the last one repeats its last item.

  tags: of each item. tokenizer: the LLM's. cfg: of `settings`. -> ([(item ids, token ids (B, P),
  lengths (B,))], prefix ids)
  """
  prefix = chat_template.prompt_ids(tokenizer, prompts_lib.MESSAGES)
  heading = tokenizer.encode(prompts_lib.HEADING)
  items = list(tags)
  prompts = [heading + ids for ids in tokenizer.encode_batch(
      [prompts_lib.generation_prompt(tags[i], cfg.sep, cfg.max_tags) for i in items])]
  room = shape.max_positions - len(prefix) - cfg.new_tokens
  for item, ids in zip(items, prompts):
    if len(ids) > room:
      raise DataError(f'item {item}: its tags take {len(ids)} tokens, {room} fit the model; '
                      'give it fewer or shorter tags, or lower decode.max_tags')
  order = sorted(range(len(items)), key=lambda i: (len(prompts[i]), i))
  batches = []
  for start in range(0, len(order), cfg.batch):
    members = order[start:start + cfg.batch]
    full = members + members[-1:] * (cfg.batch - len(members))
    longest = max(len(prompts[i]) for i in members)
    ids = np.zeros((cfg.batch, -(-longest // BUCKET) * BUCKET), np.int32)
    for row, i in enumerate(full):
      ids[row, :len(prompts[i])] = prompts[i]
    lengths = np.array([len(prompts[i]) for i in full], np.int32)
    batches.append(([items[i] for i in members], ids, lengths))
  return batches, prefix


def beams_of(model: llm.LM, search: DiverseBeamSearch, ends: Unconstrained, params: PyTree,
             adapter: PyTree, prefix: Int[Array, ' P0'], ids: Int[Array, 'B P'],
             lengths: Int[Array, ' B']) -> Any:
  """All beams of a batch of items. prefix: (P0,). ids: (B, P). lengths: (B,). -> Beams

  ends: the tokens that end a tag list.

  The chat prefix and each item's line are kept once, whatever the number of beams. model: the LLM.
  search: how beams are searched. params: its weights. adapter: LoRA's, {} where it is merged.
  """
  variables = {'params': llm.gather_tables(params), 'lora': adapter}
  _, shared = llm.prefill_prefix(model, variables, prefix)
  logits, prompt = llm_decoder.prefill(model, variables, ids, lengths, (shared,))
  step, cache = llm_decoder.make_step(
    model, variables, (shared, prompt), ids.shape[0], search.beams,
    cache_lengths(search.new_tokens)[0]
  )
  bound = BoundDecoder(step, reorder=llm_decoder.reorder_suffix, grow=llm_decoder.grow_suffix)
  return diverse_beam_search(bound, cache, logits, ends, search)


def texts_of(tokenizer: Tokenizer, tags: list[str], cfg: FrozenConfigDict, tokens: np.ndarray,
             lengths: np.ndarray) -> list[str]:
  """What the authors' raw_predict.json holds: the item's line, '2.', and what was generated.

  tokenizer: the LLM's. tags: the item's. cfg: of `settings`. tokens: the beams' tokens. lengths:
  how many of them count.
  """
  prompt = prompts_lib.generation_prompt(tags, cfg.sep, cfg.max_tags)
  return [prompt + tokenizer.decode(row[:n]) for row, n in zip(tokens.tolist(), lengths.tolist())]


def finish(work: Workdir, raw: dict[str, list[str]]) -> dict[str, int]:
  """Removes the shards of the published file. raw: {item id: [text]}, as it holds.

  work: the Workdir. -> counts
  """
  room, gone = work.folder / SHARDS, work.folder / '.shards'
  if room.exists():
    os.replace(room, gone)  # parts see all shards or none
  shutil.rmtree(gone, ignore_errors=True)
  return {'items': len(raw), 'beams': sum(map(len, raw.values()))}


def parsing(cfg: ConfigDict) -> FrozenConfigDict:
  """Everything in the config that decides how texts become tags; nothing is generated again.

  cfg: the run's config.
  """
  return FrozenConfigDict({'sep': cfg.tags.sep, 'beams': cfg.decode.beams,
                           'drop_truncated': cfg.decode.drop_truncated})


def parse(work: Workdir, cfg: FrozenConfigDict, raw: pathlib.Path) -> dict[str, int]:
  """Writes raw_betags.json, rows of tags, and parse_report.json, what was dropped.

  work: the Workdir. cfg: of `parsing`. raw: folder of the stage 'generate'. -> counts
  """
  texts = files.read_predictions(raw / 'raw_predict.json')
  rows, counts = prompts_lib.parse_raw(texts, cfg.sep, cfg.beams, cfg.drop_truncated)
  files.write_betags(work.folder / 'raw_betags.json', rows)
  write_json(work.folder / 'parse_report.json', counts)
  return counts
