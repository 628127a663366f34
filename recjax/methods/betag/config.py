"""The settings that all configs of this method share."""
from ml_collections import ConfigDict

from recjax import base_config


def make(arg: str) -> ConfigDict:
  """arg: 'paper' or 'laptop', and 'data=FOLDER', in any order, separated by commas."""
  preset, given = base_config.parse(arg, dict(data='sample'), presets=base_config.LLM_PRESETS)
  c = base_config.start('betag', preset, given['data'])
  c.split.kind = given['split']
  c.llm, c.tiny = base_config.llm(preset), base_config.tiny()
  # source: auto (the data's own column 'tags', else keywords), data, keywords, file, api
  c.tags = dict(source='auto', file='', sep='| ', max_base_tags=4, on_missing='error',
                on_bad_tag='error', **base_config.api(samples=5))
  c.lora = dict(rank=32, alpha=64.0)
  # batch: samples a step, on average; row_tokens: of a packed row, or more where a sample is longer
  c.train = dict(epochs=4.0, batch=10, max_seq_len=10, min_seq_len=3, keep=(0.8, 1.0), max_len=1024,
                 row_tokens=256, loss_on='assistant')
  c.optim = dict(lr=6e-3, warmup=30, schedule='linear', decay=0.0, clip=1.0, beta2=0.98,
                 log_every=20, save_every=100)
  # batch: items that go through the search together
  c.decode = dict(beams=20, groups=20, diversity=1.0, new_tokens=18, length_penalty=1.0,
                  stop_at_line_end=False, max_tags=15, drop_truncated=True, batch=32)
  # top_m, top_k: beams and tags kept (0: all), chosen on validation users
  c.select = dict(top_m=(2, 5, 10, 20), top_k=(8, 16, 32, 0), casefold=False,
                  dedup_within_beam=False, k1=0.75, b=0.75, idf_cutoff=0.0, reducer='sum',
                  mask_history=True, save_top=20)
  c.eval = base_config.rows_beside()
  # beside the tags; source: 'train' it here, the folder of a `sequential` run, or 'none'
  c.sasrec = base_config.recommender(source='train')
  c.sasrec.train.update(epochs=16, patience=6)
  c.sasrec.optim.update(lr=5e-3, schedule='cosine')
  if preset == 'paper':
    c.tags.update(source='api', max_base_tags=15)
    c.lora = dict(rank=64, alpha=16.0)
    c.train.update(epochs=5.0, batch=8, max_seq_len=15, row_tokens=512)
    c.optim.update(lr=1e-4, warmup=1000, beta2=0.999, save_every=500)
    c.decode.update(beams=40, groups=40, new_tokens=64, batch=8)
  if preset == 'laptop':
    c.lora = dict(rank=16, alpha=32.0)
    c.train.update(epochs=0.25, batch=8, row_tokens=512)
    c.optim.update(lr=1e-3, warmup=20, beta2=0.999, log_every=5, save_every=25)
    c.decode.update(beams=10, groups=10, new_tokens=20)
  return c
