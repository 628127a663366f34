"""TIGER on Amazon Beauty (2014): semantic IDs of item vectors, and a T5 that writes the next one.

  python -m recjax.main --config=configs/tiger_beauty.py
      # the built-in shop, two CPU cores
  python -m recjax.main --config=configs/tiger_beauty.py:paper,data=data/amazon-beauty
  ...:paper,data=data/amazon-beauty,tokenizer=letter    # or rkmeans, rqkmeans, pq, random, lsh, ...
  ...:paper,data=data/amazon-beauty --config.vectors.source=text --config.vectors.encoder=FOLDER
      # the authors' way: vectors of title, price, brand and category by a sentence encoder

Published (Recall@10 / NDCG@10): .0648 / .0384 (Rajput et al., NeurIPS 2023); others measured .0594
/ .0321 and .0559 / .0298. The IDs of the paper come from Sentence-T5 vectors; by default here they
come from a SASRec that is trained first. User tokens of the paper are left out: its own table gives
the same Recall@10 without them, and new users would have none.
"""
from ml_collections import ConfigDict

TOKENIZERS = ('rqvae', 'letter', 'rqkmeans_plus', 'rvq', 'rqkmeans', 'rkmeans', 'rkmeans_balanced',
              'rkmeans_mapped', 'pq', 'opq', 'random', 'lsh')
FUSIONS = ('none', 'encoder', 'prefix')


def get_config(arg=''):
  """arg: 'paper', 'data=FOLDER', 'tokenizer=KIND', 'fusion=SITE', parted by commas."""
  given = dict(data='sample', tokenizer='rqvae', fusion='none')
  preset = 'sample'
  for part in [p for p in arg.split(',') if p]:
    key, equals, value = part.partition('=')
    if part == 'paper':
      preset = 'paper'
    elif equals and key in given:
      given[key] = value
    else:
      raise ValueError(f'unknown config argument {part!r}; known: paper, data=FOLDER, '
                       'tokenizer=KIND, fusion=SITE')
  for key, known in (('tokenizer', TOKENIZERS), ('fusion', FUSIONS)):
    if given[key] not in known:
      raise ValueError(f'{key}={given[key]!r} is unknown; choose one of {", ".join(known)}')
  c = ConfigDict(dict(method='etegrec', variant='tiger', fusion=given['fusion'], preset=preset,
                      data=given['data'], seed=0, seeds=1))
  c.mesh = dict(data=-1, fsdp=1, model=1)
  # source: 'train' a SASRec here, the folder of a `sequential` run, a .npy file, or 'text' with the
  # folder of a text encoder. unit: centred, mean square 1
  c.vectors = dict(source='train', encoder='', unit=False)
  c.vectors.model = dict(kind='sasrec', max_history=50, width=64, layers=2, heads=1, hidden=64,
                         dropout=0.2, norm='pre', separate=False)
  c.vectors.loss = dict(kind='ce', negatives=1, negative_scope='position', exclude='train_history',
                        gbce_t=0.75, log_q=False, chunk=4096)
  c.vectors.train = dict(batch=256, epochs=30, patience=5, save_every=10, valid_users=1000,
                         mask_share=0.2, max_masked=50, mask_last=0.5)
  c.vectors.optim = dict(lr=2e-3, warmup=0, schedule='constant', decay=0.0, clip=0.0, beta2=0.98)
  # kind may be an index file too (.json). weights: a released state dict instead of training.
  # collaborative, diversity: LETTER's weights. sinkhorn: eps of each level, or ()
  c.tokenizer = dict(kind=given['tokenizer'], weights='', hidden=(128,), width=32, levels=3,
                     size=64, beta=0.25, alpha=1.0, reduction='mean', residual='ste', distance='l2',
                     recon='mse', estimator='ste', sinkhorn=(), tau=0.1, collaborative=0.01,
                     diversity=1e-4, dedupe='suffix', steps=600, batch=1024, look_every=50,
                     save_every=200, revive=True, lr=1e-3, warmup=50, schedule='linear',
                     decay=1e-4, clip=1.0, beta2=0.999)
  # source: 'local', or a folder of *.processed.jsonl. encoder: of texts; '' hashes words
  c.interests = dict(source='local', encoder='')
  # max_history: items that are read. apart: output tables of their own
  c.model = dict(max_history=20, width=64, layers=2, decoder_layers=2, heads=4, head_dim=16,
                 ffn=256, dropout=0.1, gated=False, dtype='float32', fusion_heads=4,
                 fusion_layers=3, compat=False, apart=False)
  c.train = dict(epochs=8, patience=4, batch=128, save_every=4, valid_users=500)
  c.optim = dict(lr=3e-3, warmup=50, schedule='cosine', decay=0.05, clip=1.0, beta2=0.999)
  c.finetune = dict(epochs=0)
  c.decode = dict(beams=20, batch=256)
  c.eval = dict(mask_history=True, save_top=20)
  if given['tokenizer'] == 'letter':
    c.tokenizer.width = c.vectors.model.width
  if given['tokenizer'] in ('pq', 'opq'):
    c.tokenizer.levels = 4
  if preset == 'paper':
    c.vectors.optim.lr = 1e-3
    c.vectors.train.update(epochs=60, patience=8)
    c.tokenizer.update(hidden=(512, 256, 128), size=256, steps=4000, look_every=200,
                       save_every=400)
    c.model.update(width=128, layers=4, decoder_layers=4, heads=6, head_dim=64, ffn=1024)
    c.train.update(epochs=200, patience=20, batch=256, valid_users=2000, save_every=1)
    c.optim.update(lr=1e-3, warmup=1000, decay=0.01)
    c.eval.mask_history = False
  return c
