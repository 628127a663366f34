"""The settings of RecLM: the sample preset, and the published one on top of it."""
from ml_collections import ConfigDict

from recjax import base_config


def make(arg: str) -> ConfigDict:
  """arg: 'paper' or 'laptop', 'data=FOLDER', 'grounding=NAME', in any order, by commas."""
  preset, given = base_config.parse(arg, dict(data='sample', grounding='cgen'),
                                    dict(grounding=('cgen', 'ret', 'token')),
                                    base_config.LLM_PRESETS)
  c = sample(preset, given['data'], given['grounding'])
  c.split.kind = given['split']
  if given['data'].partition(':')[0] != 'sample':  # real titles are longer, users more
    c.train.update(sample=0, epochs=1)
    c.decode.new_tokens = 640
  if preset == 'paper':
    c.teacher.model.update(max_history=10, width=128, hidden=256, heads=2, dropout=0.5,
                           norm='unirec')
    c.teacher.train.update(batch=1024, epochs=100, patience=10, valid_users=0)
    c.teacher.optim.update(lr=1e-3, beta2=0.999)
    c.prompt.template = 'reclm'
    c.train.update(mode='lora', average='samples', control_like='words', prompt=0.0, free=0.0,
                   rule=0.5, sample=0, full_histories=False, scope_end=False, full_lists=False,
                   epochs=20, patience=0, batch=64, row_tokens=1024, valid_users=320,
                   candidates=0.5, chat_share=0.0)
    c.ret.update(vectors='text', hidden=2048, tokens=1024)
    c.semantic_ids.update(levels=4, size=256)
    c.optim.update(lr=1e-4, muon=0.0, warmup=39, schedule='square', decay=0.01, beta2=0.999)
    c.decode.update(new_tokens=1024, batch=16)
    c.eval.update(words='plain', users=0, rounds=1319, mask_history=False)
  if preset == 'laptop':
    c.talk.source = 'own'
    c.train.update(mode='lora', sample=1500, epochs=1, valid_users=64, free=0.0, chat_share=0.1,
                   wishes=0.2)
    c.lora = dict(base_config.LAPTOP_LORA)
    c.optim.update(lr=1e-3, muon=0.0, beta2=0.999, log_every=5, save_every=25)
    c.decode.update(batch=32)
  return c


def sample(preset: str, data: str, grounding: str) -> ConfigDict:
  """The sample preset, whatever the data. preset, data, grounding: as given."""
  c = base_config.start('reclm', preset, data, grounding=grounding, llm=base_config.llm(preset),
                        tiny=base_config.tiny(epochs=1.0))
  # max_prompt_tokens: tokens of a conversation. variables: of the chat template, such as
  # enable_thinking
  c.prompt = dict(template='last', max_prompt_tokens=1024, variables=dict())
  # source: chat pairs for training: 'sample', a file, '', or 'own', what the model itself answers
  # to `own` plain questions before it is tuned, in at most `answer_tokens`. questions: of the
  # multi-round test
  c.talk = dict(source='sample', questions='sample', own=200, answer_tokens=96)
  # source: 'train' here, the folder of a `sequential` run, or http://... of a served one
  c.teacher = base_config.recommender(source='train')
  # scope: where the softmax is over the catalog's tokens alone: none, all, branches; scope_end:
  # at the end token too. sample: users an epoch (0: all). longest_list: items of a training list;
  # full_lists: always that many. candidates, rule: shares of prompts with them. multi_round: share
  # with a chat turn beside; chat_share: chat alone; wishes: requests in plain words, by category,
  # number and price. gamma, focus: focal weighting. static: a folder
  # of samples to read instead of drawing them. prompt: weight of the tokens of requests, whose
  # histories are sequences too; 0 learns answers alone. full_histories: whole ones, not
  # windows cut at random. control_like: what <SOI> and <EOI> begin as, words or quotes. free:
  # weight of the loss over the whole vocabulary beside the scope's, in titles
  # average: the loss is a mean over the tokens of a batch, or over its samples, each the mean of
  # its own tokens
  c.train = dict(mode='full', scope='all', scope_end=True, epochs=2, patience=3, batch=4,
                 row_tokens=512, sample=3000, valid_users=128, longest_list=10, full_lists=True,
                 candidates=0.05, rule=0.1, multi_round=0.1, chat_share=0.05, wishes=0.0, gamma=0.0,
                 focus='title', static='', prompt=1.0, full_histories=True, control_like='quotes',
                 free=1.0, average='tokens')
  # requests about categories: share of training samples, users asked with each of them in the test
  c.control = dict(share=0.0, users=100)
  c.lora = dict(rank=16, alpha=8.0, targets=('q', 'k', 'v', 'o', 'gate', 'up', 'down'))
  # vectors: 'teacher', 'text' or a .npy. alpha: weight of fetching in the loss
  c.ret = dict(vectors='teacher', hidden=256, alpha=1.0, tokens=256)
  c.semantic_ids = dict(levels=3, size=32)
  c.optim = dict(lr=4e-3, muon=0.02, warmup=20, schedule='linear', decay=0.0, clip=1.0,
                 beta2=0.98, log_every=20, save_every=200)
  # num_items: of a list. temperature 0 is greedy
  c.decode = dict(num_items=10, new_tokens=320, batch=64, temperature=0.0, top_p=1.0)
  # words: of the request: plain, rule, acknowledged, trained. users: asked at most (0: all).
  # rounds: conversations of the multi-round test. cross: another data set for the same weights.
  # candidates: so many that each user chooses from in a further test (0: no such test).
  # free: users whom the same model answers without the constraint, to see what it would make up;
  # vague: edits within which such a title passes for an item's
  c.eval = dict(words='trained', mask_history=True, users=500, rounds=64, answer_tokens=96,
                cross='', cross_users=500, candidates=0, free=0, vague=0,
                **base_config.rows_beside())
  return c
