"""BETag's generation, one item in 40 groups, against transformers' own group beam search.

Both run the same random Llama checkpoint in float32 on the CPU, turn by turn: the peer one prompt,
ours the same prompt. All rows must be equal token for token before a time is printed.

  python benchmarks/group_beam.py --peer-python=PATH   # one that has torch, transformers 4.55
"""
import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

SHAPE = dict(vocab_size=32_000, hidden_size=256, num_hidden_layers=4, num_attention_heads=8,
             num_key_value_heads=4, intermediate_size=704, max_position_embeddings=1024)
PENALTY, EOS, PAD = 1.0, 2, 0


def peer(folder, beams, new_tokens, weights):
  """The other side: saves its checkpoint in `folder` where no `weights` are given, then answers
  prompts from stdin."""
  import torch
  import transformers
  transformers.logging.set_verbosity_error()
  torch.manual_seed(0)
  if weights:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        weights, torch_dtype=torch.float32).eval()
  else:
    config = transformers.LlamaConfig(**SHAPE, initializer_range=0.05, eos_token_id=EOS,
                                      pad_token_id=PAD, tie_word_embeddings=False)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
  say({'transformers': transformers.__version__, 'torch': torch.__version__,
       'threads': torch.get_num_threads()})
  for line in sys.stdin:
    prompt = torch.tensor([json.loads(line)])
    start = time.perf_counter()
    with torch.inference_mode():
      out = model.generate(
          prompt, attention_mask=torch.ones_like(prompt), do_sample=False, num_beams=beams,
          num_beam_groups=beams, num_return_sequences=beams, diversity_penalty=PENALTY,
          min_new_tokens=new_tokens, max_new_tokens=new_tokens, return_dict_in_generate=True,
          output_scores=True)
    say({'seconds': time.perf_counter() - start, 'scores': out.sequences_scores.tolist(),
         'tokens': out.sequences[:, prompt.shape[1]:].tolist()})


def say(value):
  print('>' + json.dumps(value), flush=True)


def hear(process):
  """The peer's next answer; other lines that its libraries print are passed over."""
  for line in process.stdout:
    if line.startswith('>'):
      return json.loads(line[1:])
  raise SystemExit(f'the peer ended with code {process.wait()}; is --peer-python right?')


def compiled(model, params, items, args):
  """The whole generation as one program for `items` prompts. -> (program, seconds to compile)"""
  import jax
  import jax.numpy as jnp

  from recjax.decoding.constraints import Unconstrained
  from recjax.decoding.diverse_beam_search import DiverseBeamSearch, diverse_beam_search
  from recjax.decoding.lm_head import BoundDecoder, cache_lengths
  from recjax.models import llm_decoder
  cfg = DiverseBeamSearch(args.beams, args.beams, PENALTY, args.new_tokens, pad_id=PAD)
  free = Unconstrained((EOS,), args.new_tokens)

  def generate(params, prompts):
    variables = {'params': params}
    first, past = llm_decoder.prefill(model, variables, prompts,
                                 jnp.full(items, args.prompt), ())
    step, cache = llm_decoder.make_step(model, variables, (past,), items, args.beams,
                                   cache_lengths(args.new_tokens)[0])
    bound = BoundDecoder(step, grow=llm_decoder.grow_suffix)
    return diverse_beam_search(bound, cache, first, free, cfg)
  start = time.perf_counter()
  program = jax.jit(generate).lower(
      params, jax.ShapeDtypeStruct((items, args.prompt), 'int32')).compile()
  return program, time.perf_counter() - start


def timed(program, params, prompts):
  import jax
  start = time.perf_counter()
  found = jax.block_until_ready(program(params, prompts))
  return time.perf_counter() - start, found


def compare(answer, found):
  """Stops unless all rows are equal; equal values may change places, nothing else. -> worst gap"""
  def rows(tokens, scores):
    return sorted(zip([round(s, 4) for s in scores], map(tuple, tokens)), reverse=True)
  scores = found.scores[0].tolist()
  ours, theirs = rows(found.tokens[0].tolist(), scores), rows(answer['tokens'], answer['scores'])
  gap = max(abs(a - b) for a, b in zip(sorted(scores), sorted(answer['scores'])))
  equal = sum(a[1] == b[1] for a, b in zip(ours, theirs))
  if sorted(r for _, r in ours) != sorted(r for _, r in theirs) or gap > 1e-4:
    raise SystemExit(f'FAIL: {equal} of {len(ours)} rows are equal, scores differ by {gap:.2e}')
  return gap


def memory(model, params, args):
  """Bytes of the prompt's keys and values, held once and copied to every beam, from real arrays.

  -> (once, copied, temporary bytes of the compiled step with each)
  """
  import jax
  import jax.numpy as jnp

  from recjax.models import attention, llm_decoder
  variables = {'params': params}
  prompts = jnp.ones((1, args.prompt), jnp.int32)
  lengths = jnp.full(1, args.prompt)
  _, past = jax.jit(lambda p: llm_decoder.prefill(model, variables, p, lengths))(prompts)
  one = (1, args.beams)
  copied = attention.KVBlock(*(jnp.repeat(x[:, :, None], args.beams, 2) for x in (past.k, past.v)),
                    jnp.broadcast_to(past.mask[:, None], (*one, args.prompt)))
  tokens, order = jnp.ones(one, jnp.int32), jnp.full(one, args.prompt)
  apart = jnp.arange(1, args.beams + 1)[None]

  def total(block):
    step = jax.jit(lambda past: model.apply(variables, tokens, order, apart, (past,)))
    stats = step.lower(block).compile().memory_analysis()
    return block.k.nbytes + block.v.nbytes, stats.argument_size_in_bytes + stats.temp_size_in_bytes
  return total(past), total(copied)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--peer-python', help='interpreter that has transformers 4.55 and torch')
  parser.add_argument('--peer', help=argparse.SUPPRESS)  # the checkpoint folder, in the subprocess
  parser.add_argument('--weights', default='', help='a checkpoint folder instead of a random one')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--beams', type=int, default=40)
  parser.add_argument('--new-tokens', type=int, default=64)
  parser.add_argument('--prompt', type=int, default=160)
  parser.add_argument('--items', type=int, default=8, help='items per batch in the last line')
  parser.add_argument('--results', default=str(pathlib.Path(__file__).parent / 'RESULTS.md'))
  args = parser.parse_args()
  if args.peer:
    return peer(args.peer, args.beams, args.new_tokens, args.weights)
  if not args.peer_python:
    parser.error('--peer-python is missing; name an interpreter with transformers 4.55 and torch')
  with tempfile.TemporaryDirectory() as folder:
    command = [args.peer_python, __file__, f'--peer={folder}', f'--beams={args.beams}',
               f'--new-tokens={args.new_tokens}', f'--weights={args.weights}']
    # Without the script's folder, whose tokenizers.py would stand before the package of that name.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, 'PYTHONSAFEPATH': '1'},
                          stderr=subprocess.DEVNULL) as process:
      versions = hear(process)
      report(measure(process, args.weights or folder, args), versions, args)
      process.stdin.close()
  return None


def measure(process, folder, args):
  """-> the figures of all rounds as a dict; stops at the first row that differs."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from recjax.models import huggingface, llm
  shape = dataclasses.replace(huggingface.read_config(folder), scan_unroll=4)
  model, params = llm.LM(shape), huggingface.load(folder, shape)
  program, compile_time = compiled(model, params, 1, args)
  rng = np.random.default_rng(0)
  theirs, ours, gaps = [], [], []
  for number in range(args.rounds):
    prompt = rng.integers(3, shape.vocab, (1, args.prompt), dtype=np.int32)
    process.stdin.write(json.dumps(prompt[0].tolist()) + '\n')
    process.stdin.flush()
    answer = hear(process)
    seconds, found = timed(program, params, jnp.asarray(prompt))
    gaps.append(compare(answer, jax.device_get(found)))
    theirs.append(answer['seconds'])
    ours.append(seconds)
    print(f'round {number + 1}: peer {theirs[-1]:.2f} s, ours {seconds:.3f} s, all '
          f'{args.beams} rows equal', flush=True)
  batch, _ = compiled(model, params, args.items, args)
  prompts = rng.integers(3, shape.vocab, (args.items, args.prompt), dtype=np.int32)
  timed(batch, params, prompts)
  many = statistics.median(timed(batch, params, prompts)[0] for _ in range(3))
  work = llm.flops_per_token(shape, args.prompt + args.new_tokens / 2)
  return dict(theirs=theirs, ours=ours, gap=max(gaps), compile=compile_time, many=many,
              flops=work * args.beams * (args.new_tokens - 1), memory=memory(model, params, args))


def report(found, versions, args):
  """Prints the figures and appends them to the results file."""
  import jax
  ratios = [a / b for a, b in zip(found['theirs'], found['ours'])]
  ours, theirs = statistics.median(found['ours']), statistics.median(found['theirs'])
  (once, once_step), (copied, copied_step) = found['memory']
  lines = [
      f'## Group beam search, {args.beams} groups x {args.new_tokens} tokens',
      f'{datetime.date.today()}, {os.cpu_count()} CPU cores ({platform.machine()}), float32, '
      f'{args.weights or "random 4-layer Llama (width 256, vocabulary 32,000)"}, prompt '
      f'{args.prompt}, jax {jax.__version__}; peer transformers {versions["transformers"]}, torch '
      f'{versions["torch"]}, {versions["threads"]} threads; {args.rounds} rounds, interleaved.', '',
      '| | seconds per item, median | min - max |', '| --- | --- | --- |',
      f'| transformers | {theirs:.2f} | {min(found["theirs"]):.2f} - {max(found["theirs"]):.2f} |',
      f'| recjax | {ours:.3f} | {min(found["ours"]):.3f} - {max(found["ours"]):.3f} |',
      f'| recjax, {args.items} items at once | {found["many"] / args.items:.3f} | |',
      f'| ratio of each round | **{statistics.median(ratios):.1f}x** | '
      f'{min(ratios):.1f}x - {max(ratios):.1f}x |', '',
      f'All {args.beams} rows of every round equal token for token, scores within '
      f'{found["gap"]:.1e}. Compile time {found["compile"]:.1f} s, not counted. The model alone '
      f'is {found["flops"] / 1e9:.1f} GFLOP per item: {found["flops"] / ours / 1e9:.0f} GFLOP/s '
      'reached.',
      f'Prompt keys and values: {once:,} bytes held once, {copied:,} bytes copied to each beam '
      f'({copied / once:.0f}x); arguments and temporaries of one compiled model pass, weights '
      f'aside: {once_step:,} and {copied_step:,} bytes.', '']
  print('\n'.join(lines))
  with open(args.results, 'a', encoding='utf-8') as f:
    f.write('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
