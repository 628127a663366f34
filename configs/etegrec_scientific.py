"""ETEGRec on Amazon Industrial and Scientific (2023): IDs and recommender trained together.

  python -m recjax.main --config=configs/etegrec_scientific.py
      # the built-in shop with the fusion of interests, two CPU cores
  python -m recjax.main --config=configs/etegrec_scientific.py:fusion=none     # pooled, prefix
  python -m recjax.main --config=configs/etegrec_scientific.py:paper,data=data/scientific

The authors' settings: SASRec vectors of 256 numbers, 3 x 256 codes, T5 of 6 + 6 layers, 400 epochs
in turn, then finetuning, batches of 512. Published (Recall@10 / NDCG@10): .0455 / .0241; others who
ran that code measured .0436 / .0231.
"""
from ml_collections import ConfigDict

FUSIONS = ('none', 'pooled', 'encoder', 'prefix')


def get_config(arg=''):
  """arg: 'paper', 'data=FOLDER', 'fusion=SITE', in any order, parted by commas."""
  given = dict(data='sample', fusion='')
  preset = 'sample'
  for part in [p for p in arg.split(',') if p]:
    key, equals, value = part.partition('=')
    if part == 'paper':
      preset = 'paper'
    elif equals and key in given:
      given[key] = value
    else:
      raise ValueError(f'unknown config argument {part!r}; known: paper, data=FOLDER, fusion=SITE')
  fusion = given['fusion'] or 'encoder'
  if fusion not in FUSIONS:
    raise ValueError(f'fusion={fusion!r} is unknown; choose one of {", ".join(FUSIONS)}')
  c = ConfigDict(dict(method='etegrec', variant='etegrec', fusion=fusion, preset=preset,
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
  # kind: rqvae, letter, rqkmeans_plus, rvq. weights: a released state dict instead of training.
  # collaborative, diversity: LETTER's weights. sinkhorn: eps of each level, or ()
  c.tokenizer = dict(kind='rqvae', weights='', hidden=(128,), width=32, levels=3, size=64,
                     beta=0.25, alpha=1.0, reduction='mean', residual='ste', distance='l2',
                     recon='mse', estimator='ste', sinkhorn=(), tau=0.1, collaborative=0.01,
                     diversity=1e-4, dedupe='suffix', steps=600, batch=1024, look_every=50,
                     save_every=200, revive=True, lr=1e-3, warmup=50, schedule='linear',
                     decay=1e-4, clip=1.0, beta2=0.999)
  # source: 'local', or a folder of *.processed.jsonl. encoder: of texts; '' hashes words
  c.interests = dict(source='local', encoder='')
  # max_history: items that are read. apart: output tables of their own. fusion_*: of the site
  # 'pooled', heads of all; compat: as released, all users of a batch in one
  c.model = dict(max_history=20, width=64, layers=2, decoder_layers=2, heads=4, head_dim=16,
                 ffn=256, dropout=0.1, gated=False, dtype='float32', fusion_heads=4,
                 fusion_layers=3, compat=False, apart=False)
  # weights of both alignments, after `warm` epochs. sign, reduce: 'pos' and 'mean_levels' are the
  # released code's
  c.align = dict(sia=1e-4, psa=3e-4, sign='neg', reduce='sum_levels', temperature=1.0, tau=0.07,
                 warm=2)
  # cycle: of so many epochs one is the tokenizer's. patience: epochs, of either kind
  c.train = dict(epochs=8, cycle=2, patience=8, batch=128, save_every=4, valid_users=500)
  c.optim = dict(lr=3e-3, warmup=50, schedule='cosine', decay=0.05, clip=1.0, beta2=0.999)
  c.id_optim = dict(lr=1e-4, warmup=50, schedule='cosine', decay=0.05, clip=1.0, beta2=0.999)
  c.finetune = dict(epochs=3, patience=2, save_every=3, lr=1e-3, warmup=0, schedule='cosine',
                    decay=0.05, clip=1.0, beta2=0.999)
  c.decode = dict(beams=20, batch=256)
  c.eval = dict(mask_history=True, save_top=20)
  if preset == 'paper':
    c.vectors.model.update(width=256, hidden=256, layers=4, heads=4)
    c.vectors.optim.lr = 1e-3
    c.vectors.train.update(epochs=100, patience=10, valid_users=0)
    c.tokenizer.update(hidden=(512, 256), width=128, size=256, steps=30_000, look_every=500,
                       save_every=500)
    c.model.update(max_history=50, width=128, layers=6, decoder_layers=6, head_dim=64, ffn=512)
    c.align.warm = 10
    c.train.update(epochs=400, patience=30, batch=512, valid_users=0, save_every=2)
    c.optim.update(lr=5e-3, warmup=8000)
    c.id_optim.warmup = 4000
    c.finetune.update(epochs=100, patience=10, lr=5e-4, save_every=5)
    c.eval.mask_history = False
  return c
