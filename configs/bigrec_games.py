"""BIGRec on Amazon Games (Bao et al., ACM TORS 2025): a title is written, then grounded.

  python -m recjax.main --config=configs/bigrec_games.py
      # the built-in shop and a tiny model: minutes on two CPU cores
  python -m recjax.main --config=configs/bigrec_games.py:data=data/amazon-games
      # the same small model on your data, or on a folder of the authors' own files
  python -m recjax.main --config=configs/bigrec_games.py:paper,split=time,data=data/games \
      --config.llm.weights=/models/llama-7b
      # the authors' settings: LoRA rank 8 on 1,024 samples, 4 beams of up to 128 tokens

Published on Video Games, full ranking (secondary sources): NDCG@5 .0189, HR@10 .0329, HR@20 .0457
(the CoVE paper's table); HR@20 .0532, NDCG@20 .0341 (the DLLM2Rec paper's).
"""
from ml_collections import ConfigDict


def get_config(arg=''):
  """arg: 'paper', 'data=FOLDER', 'split=auto' (or leave_one_out, time, rows), with commas."""
  given = dict(data='sample', split='auto')
  preset = 'sample'
  for part in [p for p in arg.split(',') if p]:
    key, equals, value = part.partition('=')
    if part == 'paper':
      preset = 'paper'
    elif equals and key in given:
      given[key] = value
    else:
      raise ValueError(f'unknown config argument {part!r}; known: paper, data=FOLDER, split=NAME')
  c = ConfigDict(dict(method='bigrec', variant='ground', preset=preset, data=given['data'], seed=0))
  c.mesh = dict(data=-1, fsdp=1, model=1)

  # weights: 'tiny' trains a tokenizer and a small model on the catalogue; or a checkpoint folder
  c.llm = dict(weights='tiny', dtype='auto', remat='none')
  c.tiny = dict(vocab=2048, width=128, layers=2, heads=4, kv_heads=2, ffn=352, row_tokens=256,
                batch=4, epochs=2.0, lr=4e-3, warmup=20, schedule='linear', decay=0.01, clip=1.0,
                beta2=0.98, log_every=20, save_every=100)
  # window: which places of a sequence are asked for in training: movie, game, every
  c.samples = dict(window='game', split=given['split'], max_history=10)
  # domains: further (data, noun) pairs that are learnt from
  c.domains = ()
  c.prompt = dict(template='bigrec', noun='goods', max_prompt_tokens=512)
  # mode: 'lora' or 'full' (a model as small as the tiny one learns little through an adapter)
  # sample, valid_sample: samples drawn (-1 or 0: all); row_tokens: of a packed row
  c.train = dict(mode='full', sample=-1, valid_sample=128, batch=8, epochs=2, patience=2,
                 row_tokens=256, loss_on='all')
  c.lora = dict(rank=8, alpha=16.0, targets=('q', 'v'))
  c.optim = dict(lr=4e-3, warmup=20, schedule='linear', decay=0.0, clip=1.0, beta2=0.98,
                 log_every=20, save_every=200)
  # source: 'train' a sequential recommender here, the folder of a `sequential` run, or scores.npz
  c.assist = dict(source='train')
  c.assist.model = dict(kind='sasrec', max_history=50, width=64, layers=2, heads=1, hidden=64,
                        dropout=0.2, norm='pre', separate=False)
  c.assist.loss = dict(kind='ce', negatives=1, negative_scope='position', exclude='train_history',
                       gbce_t=0.75, log_q=False, chunk=4096)
  c.assist.train = dict(batch=256, epochs=30, patience=5, save_every=10, valid_users=1000,
                        mask_share=0.2, max_masked=50, mask_last=0.5)
  c.assist.optim = dict(lr=2e-3, warmup=0, schedule='constant', decay=0.0, clip=0.0, beta2=0.98)
  # batch: prompts answered together. length_norm: what divides a score, the answer's tokens
  # ('generated') or the prompt's too ('full', as old releases of transformers did)
  c.decode = dict(beams=4, batch=64, new_tokens=32, length_penalty=1.0,
                  length_norm='generated')
  # model: 'base' or 'tuned' embeds both sides, by its 'last' token or 'avg'. prior: what the lists
  # are pulled by (none, pop, cf); rows of all three are judged. step, max_gamma: the grid of gammas
  c.ground = dict(model='base', pooling='last', prior='none', step=0.01, max_gamma=99)
  c.eval = dict(mask_history='auto', max_valid_users=1000, max_test_users=2000, save_top=20)
  if preset == 'paper':
    c.llm.weights, c.llm.remat = '', 'dots'
    c.prompt.noun = 'games'
    c.train.update(mode='lora', sample=1024, batch=128, epochs=50, patience=5, row_tokens=512,
                   valid_sample=1024)
    c.optim.update(lr=1e-4, beta2=0.999)
    c.decode.update(new_tokens=128, batch=8)
    c.eval.update(max_test_users=5000, max_valid_users=5000)
  return c
