"""The settings of ETEGRec and TIGER: the sample preset, and the published one on top of it."""
from ml_collections import ConfigDict

from recjax import base_config

TOKENIZERS = ('rqvae', 'letter', 'rqkmeans_plus', 'rvq', 'rqkmeans', 'rkmeans', 'rkmeans_balanced',
              'rkmeans_mapped', 'pq', 'opq', 'random', 'lsh')


def make_etegrec(arg: str) -> ConfigDict:
  """arg: 'paper', 'data=FOLDER', 'fusion=SITE', 'policy=KIND', in any order, separated by commas.
  """
  preset, given = base_config.parse(
      arg, dict(data='sample', fusion='encoder', policy='none'),
      dict(fusion=('none', 'pooled', 'encoder', 'prefix'), policy=base_config.POLICIES))
  c = common('etegrec', preset, given)
  c.split.kind = given['split']
  # weights of both alignments, after `warm` epochs. sign, reduce: 'pos' and 'mean_levels' are the
  # released code's
  c.align = dict(sia=1e-4, psa=3e-4, sign='neg', reduce='sum_levels', temperature=1.0, tau=0.07,
                 warm=2)
  # cycle: of so many epochs one is the tokenizer's. patience: epochs, of either kind
  c.train = dict(epochs=8, cycle=2, patience=8, batch=128, save_every=4, valid_users=500)
  c.id_optim = dict(lr=1e-4, warmup=50, schedule='cosine', decay=0.05, clip=1.0, beta2=0.999)
  c.finetune = dict(epochs=3, patience=2, save_every=3, lr=1e-3, warmup=0, schedule='cosine',
                    decay=0.05, clip=1.0, beta2=0.999)
  if preset == 'paper':
    c.vectors.model.update(width=256, hidden=256, layers=4, heads=4)
    c.vectors.train.update(epochs=100, patience=10, valid_users=0)
    c.semantic_ids.update(hidden=(512, 256), width=128, size=256, steps=30_000, eval_every=500,
                          save_every=500)
    c.model.update(max_history=50, width=128, layers=6, decoder_layers=6, head_dim=64, ffn=512)
    c.align.warm = 10
    c.train.update(epochs=400, patience=30, batch=512, valid_users=0, save_every=2)
    c.optim.update(lr=5e-3, warmup=8000)
    c.id_optim.warmup = 4000
    c.finetune.update(epochs=100, patience=10, lr=5e-4, save_every=5)
  return c


def make_tiger(arg: str) -> ConfigDict:
  """arg: 'paper', 'data=FOLDER', 'tokenizer=KIND', 'fusion=SITE', 'policy=KIND', separated by
  commas."""
  preset, given = base_config.parse(
      arg, dict(data='sample', tokenizer='rqvae', fusion='none', policy='none'),
      dict(tokenizer=TOKENIZERS, fusion=('none', 'encoder', 'prefix'),
           policy=base_config.POLICIES))
  c = common('tiger', preset, given)
  c.split.kind = given['split']
  c.semantic_ids.kind = given['tokenizer']  # may be an index file too (.json)
  c.train = dict(epochs=8, patience=4, batch=128, save_every=4, valid_users=500)
  c.finetune = dict(epochs=0)
  if given['tokenizer'] == 'letter':
    c.semantic_ids.width = c.vectors.model.width
  if given['tokenizer'] in ('pq', 'opq'):
    c.semantic_ids.levels = 4
  if preset == 'paper':
    c.vectors.train.update(epochs=60, patience=8)
    c.semantic_ids.update(hidden=(512, 256, 128), size=256, steps=4000, eval_every=200,
                          save_every=400)
    c.model.update(width=128, layers=4, decoder_layers=4, heads=6, head_dim=64, ffn=1024)
    c.train.update(epochs=200, patience=20, batch=256, valid_users=2000, save_every=1)
    c.optim.update(lr=1e-3, warmup=1000, decay=0.01)
  return c


def common(variant: str, preset: str, given: dict[str, str]) -> ConfigDict:
  """What both share, the sample preset but for the first stage's rate and the test's mask.

  variant: 'etegrec' or 'tiger'. preset: 'sample' or 'paper'. given: 'data', 'fusion', 'policy'.
  """
  c = base_config.start('etegrec', preset, given['data'], variant=variant, fusion=given['fusion'],
                        seeds=1)
  # source: 'train' a SASRec here, the folder of a `sequential` run, a .npy file, or 'text' with the
  # folder of a text encoder. unit: centered, mean square 1
  c.vectors = base_config.recommender(source='train', encoder='', unit=False)
  if preset == 'paper':
    c.vectors.optim.lr = 1e-3
  # kind: rqvae, letter, rqkmeans_plus, rvq. weights: a released state dict instead of training.
  # collaborative, diversity: LETTER's weights. sinkhorn: eps of each level, or ()
  c.semantic_ids = dict(kind='rqvae', weights='', hidden=(128,), width=32, levels=3, size=64,
                        beta=0.25, alpha=1.0, reduction='mean', residual='ste', distance='l2',
                        recon='mse', estimator='ste', sinkhorn=(), tau=0.1, collaborative=0.01,
                        diversity=1e-4, dedupe='suffix', steps=600, batch=1024, eval_every=50,
                        save_every=200, revive=True, lr=1e-3, warmup=50, schedule='linear',
                        decay=1e-4, clip=1.0, beta2=0.999)
  # source: 'local', 'api', or a folder of *.processed.jsonl. encoder: of texts; '' hashes words
  c.interests = dict(source='local', encoder='', **base_config.api(samples=1))
  # max_history: items that are read. untied_output: output tables of their own. fusion_*: of the
  # site 'pooled', heads of all; reproduce_release: as released, all users of a batch in one
  c.model = dict(max_history=20, width=64, layers=2, decoder_layers=2, heads=4, head_dim=16,
                 ffn=256, dropout=0.1, gated=False, dtype='float32', fusion_heads=4,
                 fusion_layers=3, reproduce_release=False, untied_output=False)
  c.optim = dict(lr=3e-3, warmup=50, schedule='cosine', decay=0.05, clip=1.0, beta2=0.999)
  c.policy = base_config.policy_tuning(given['policy'])
  c.decode = dict(beams=20, batch=256)
  c.eval = dict(mask_history=preset != 'paper', save_top=20, **base_config.rows_beside())
  return c
