"""Which faults the tests see: plants them one at a time in a copy and runs the tests of that room.

  python -m benchmarks.mutants              # all of them, one line each, then the share killed
  python -m benchmarks.mutants beam rqvae   # those whose file or change holds a word
  python -m benchmarks.mutants --list

A fault is a small change that a person might make: a sign, a bound, a constant, a line left out. It
is killed where a test fails, named is the first that does. The tests must pass without it, which is
looked at once for each test file. Exit code 1 where less than 95 % are killed, 2 where a change no
longer fits the code.
"""
import argparse
import collections
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
KILLED = 0.95  # share of faults that tests must see
LIMIT = 900    # seconds of one test file; a fault that makes it hang is seen as well
FIRST = re.compile(r'^(?:FAIL|ERROR): (\S+) \(([\w.]+)\)', re.MULTILINE)


class Mutant(NamedTuple):
  """One fault. file: under recjax/. old: text that stands in it once. new: what takes its place.
  tests: test modules that should see it, under tests/."""
  file: str
  old: str
  new: str
  tests: tuple[str, ...]


def mutants() -> list[Mutant]:
  """All faults, by room."""
  out = []

  def room(file, tests, *changes):
    out.extend(Mutant(file, old, new, tuple(tests.split())) for old, new in changes)

  # Decoding.
  room('decoding/beam_search.py', 'decoding.beam_search_test decoding.generate_test',
       ('kept = (1 + constraint.num_end_tokens) * search.beams', 'kept = search.beams'),
       ('ended & state.is_open[:, None], state.t + 1 +',
        'ended & state.is_open[:, None], state.t +'),
       ('value = best_score / (length + length_offset)', 'value = best_score / length'),
       ('better |= value > values.min(-1)', 'better |= value > values.max(-1)'))
  room('decoding/diverse_beam_search.py', 'decoding.diverse_beam_search_test',
       ('search.diversity_penalty * counts', 'search.diversity_penalty * (counts > 0)'),
       ('finished.values.min(-1) >= value[..., 0]', 'finished.values.max(-1) >= value[..., 0]'),
       ('(t < min_new_tokens)', '(t + 1 < min_new_tokens)'))
  room('decoding/sampling.py', 'decoding.sampling_test decoding.generate_test',
       ('return order >= lax.fori_loop(', 'return order > lax.fori_loop('),
       ('jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, t), request), row)',
        'jax.random.fold_in(jax.random.fold_in(key, t), row)'))
  room('decoding/constraints.py', 'decoding.beam_search_test decoding.generate_test',
       (' + (at(self.low, hi) - at(self.low, lo))', ''),
       ('first = t * self.code_size', 'first = 0 * t'),
       ('over & (t + 1 < self.min_new_tokens)', 'over & (t < self.min_new_tokens)'))
  room('decoding/device_trie.py', 'decoding.beam_search_test decoding.trie_test',
       ('& (row_length(trie, node) <= depth)', ''))
  room('decoding/item_filter.py', 'decoding.beam_search_test decoding.trie_test',
       ('(taken >= lo[..., None]) & (taken < hi[..., None])',
        '(taken >= lo[..., None]) & (taken <= hi[..., None])'),
       ('return words, jnp.cumsum(counts, -1) - counts', 'return words, jnp.cumsum(counts, -1)'))
  room('decoding/item_span.py', 'decoding.item_span_test',
       ('return is_open & (state.count < self.settings.max_items)',
        'return is_open & (state.count <= self.settings.max_items)'),
       ('length - state.depth[..., None] - 1 <= left', 'length - state.depth[..., None] <= left'),
       ('used, state.count + closes)', 'used, state.count)'))
  room('retrieval/nearest.py', 'retrieval.nearest_test',
       ("(rows < target_rows) if ties == 'index' else (rows != target_rows)",
        "(rows != target_rows) if ties == 'index' else (rows < target_rows)"),
       ('value[:, -1] > last + slack', 'value[:, -1] > last - slack'))
  room('decoding/exhaustive_scoring.py', 'decoding.exhaustive_scoring_test',
       ('log_probs -= log_sum_exp(logits)[..., 0]', 'pass'))
  # Evaluation.
  room('evaluation/ranking.py', 'evaluation.ranking_test evaluation.invariance_test',
       ('own = _target_scores(scores, target)\n  ranks = _count(masked',
        'own = _target_scores(masked, target)\n  ranks = _count(masked'))
  room('evaluation/ties.py', 'evaluation.ranking_test',
       ('ahead = scores >= own if', 'ahead = scores > own if'))
  room('evaluation/baselines.py', 'evaluation.ranking_test',
       ('weight = 0.5 ** (ends', 'weight = 2.0 ** (ends'))
  room('evaluation/blocked_ranking.py', 'evaluation.blocked_ranking_test',
       ('others = fresh & (column != target[:, None] - 1)',
        'others = column != target[:, None] - 1'))
  room('evaluation/metrics.py', 'evaluation.metrics_test',
       ('np.minimum(3 * before //', 'np.minimum(2 * before //'),
       ('gain = 1 / np.log2(ranks + 2.0)', 'gain = 1 / np.log2(ranks + 1.0)'),
       ('surprise = -np.log2((counts + 1)', 'surprise = -np.log2((counts + 2)'))
  room('evaluation/statistics.py', 'evaluation.statistics_test',
       ('(len(p_values) - done) * p_values[name]', 'len(p_values) * p_values[name]'),
       ('(1 + far.sum()) / (1 + draws)', 'far.sum() / draws'),
       ('[(1 - level) / 2, (1 + level) / 2]', '[1 - level, level]'),
       ('np.std(apart, ddof=1)', 'np.std(apart)'))
  room('evaluation/audit.py', 'evaluation.audit_test',
       ('last[target] >= when', 'last[target] > when'),
       ('times[low[known]] > when[known]', 'times[high[known] - 1] > when[known]'),
       ('counts > SUPPORT', 'counts >= SUPPORT'),
       ('draws.random(len(items)), user', 'draws.random(len(items)), 0 * user'))
  room('evaluation/slices.py', 'evaluation.slices_test',
       ('(count <= FEW)', '(count < FEW)'),
       ('| _held(follow, v, u)', ''),
       ('| meet(lead, v, lead, u)', ''),
       ('np.minimum(lengths, hops)', 'np.minimum(lengths, 1)'))
  room('evaluation/beside.py', 'evaluation.beside_test',
       ("rows |= made.scores", "rows = made.scores | rows"),
       ('classical.titles(catalog), len(split.test)', 'classical.titles(catalog), 0'))
  room('data/splits.py', 'data.global_time_test',
       ('np.cumsum(times <= cut)', 'np.cumsum(times < cut)'),
       ('(known > 0) & (ends > known)', '(ends > known)'),
       ('read = known[users] if', 'read = places if'),
       ('learned[asked] = 0 if', 'learned[asked] = 1 if'),
       ('np.quantile(times[times <= cut], share)', 'np.quantile(times, share)'),
       ('train = until_cut if rule.refit', 'train = until_cut if True'),
       ("if rule.validation == 'users' else 2)", "if rule.validation == 'users' else 1)"),
       ('np.cumsum(of_user[order]) <= max_cases', 'np.cumsum(of_user[order]) <= 9'))
  room('evaluation/statistics.py', 'evaluation.statistics_test',
       ('/ np.bincount(user)', '/ np.bincount(user).max()'),
       ('None if owners is None else owners[mask]', 'None'))
  room('evaluation/metrics.py', 'evaluation.metrics_test',
       ('np.minimum(set_sizes, k) - 1', 'np.minimum(set_sizes, k + 1) - 1'))
  room('training/epoch_loop.py', 'training.epoch_loop_test',
       ('np.asarray(stop_at) == done', 'np.asarray(stop_at) + 1 == done'),
       ('int(stop_at.max())', 'int(stop_at.min())'))
  room('evaluation/classical.py', 'evaluation.classical_test',
       ('np.divide(0.5, largest', 'np.divide(1.0, largest'),
       ('min(len(left), room - len(ring))', 'min(len(left), 0)'))
  room('evaluation/sampled_ranking.py', 'evaluation.sampled_ranking_test',
       ("target_scores, 'pessimistic')", "target_scores, 'optimistic')"))
  room('evaluation/compare.py', 'evaluation.compare_test',
       ('rows[row][group][\'p\'] = p', 'rows[row][group][\'p\'] = tests[row, group]'),
       ('lambda run: -len(run[\'users\'])', 'lambda run: len(run[\'users\'])'))
  # Training.
  room('training/losses/item_losses.py', 'training.losses.item_losses_test',
       ('negatives) / (count + 1)', 'negatives) / count'),
       ('(t * (1 - 1 / sampling_rate) + 1 / sampling_rate)',
        '(t * (1 - 1 / sampling_rate)) + 1 / sampling_rate'),
       ('total = total * jnp.exp(highest - peak)', 'total = total'))
  room('training/losses/contrastive.py', 'training.losses.contrastive_test',
       ('along = jnp.where(valid, scores, NEVER)\n', 'along = scores\n'),
       ('total, _ = lax.scan(add, direct,',
        'total, _ = lax.scan(add, jax.tree.map(jnp.zeros_like, direct),'))
  room('training/sft.py', 'training.sft_test',
       ("'all' else len(prompt)\n", "'all' else len(prompt) + 1\n"),
       ('count += weight.sum() * len(prefix)', 'count += weight.sum()'))
  room('training/loop.py', 'training.loop_test training.fault_tolerance_test',
       ('lambda new, old: jnp.where(good, new, old), fresh', 'lambda new, old: new, fresh'))
  room('training/microbatch.py', 'training.microbatch_test',
       ('lambda g: g / count, grads)', 'lambda g: g, grads)'))
  room('training/optim.py', 'training.optim_test',
       ('max(1, steps - warmup))', 'max(1, steps))'))
  room('training/losses/trie_masked.py', 'training.losses.trie_masked_test',
       ('within = jnp.where(nodes == FORCED, 0, total - target_logits)',
        'within = total - target_logits'))
  room('training/workdir.py', 'training.workdir_test',
       ("'shape': list(value.shape),", ''))
  # Models.
  room('models/lora.py', 'models.lora_test',
       ('_merge_layer, cfg.lora_scale', '_merge_layer, cfg.lora_alpha'))
  room('models/rope.py', 'models.llm_test models.huggingface_test',
       ('keep + (1 - keep) / scaling', '(1 - keep) + keep / scaling'))
  room('models/gguf_checkpoint.py', 'models.gguf_checkpoint_test',
       ('.reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)', ''),
       ("'k': file.field('llama.attention.head_count_kv', int, heads)}", "'k': heads}"),
       ("if kind != 'llama':", "if kind == 'qwen3':"),
       ('scaling = _llama3(file, head, theta)', 'scaling = None'))
  room('text/gguf_tokenizer.py', 'text.gguf_tokenizer_test',
       ('pairs = [(-score, cut,', 'pairs = [(score, cut,'),
       ('ignore_merges=how.whole_words', 'ignore_merges=False'),
       ('if how.nfc:', 'if False:'),
       ("r'|\\p{N}{1,3}|'", "r'|\\p{N}{1,4}|'"))
  room('gguf_file.py', 'gguf_file_test',
       ('start = -(-cursor.at // alignment) * alignment', 'start = cursor.at'),
       ('if end > len(whole):', 'if begin > len(whole):'))
  room('models/llm.py', 'models.llm_test',
       ('allowed &= order[:, None] >= order', 'allowed &= order[:, None] > order - 2'))
  room('models/t5.py', 'models.t5_test',
       ('far = np.minimum(near + np.floor(far + 1e-9)', 'far = np.minimum(near + np.ceil(far)'))
  room('models/bert.py', 'models.bert_test training.text_embedding_test',
       ("(real * (order if how == 'last' else order[::-1]))",
        "(real * (order if how == 'cls' else order[::-1]))"))
  room('models/seqrec.py', 'models.seqrec_test',
       ('same &= order[:, None] >= order', 'same &= order[:, None] > order - 2'),
       ('state = jnp.where(begin[:, None], 0, state)', 'pass'),
       ('new = (1 - z) * jnp.tanh(candidate_x + r * candidate_h) + z * state',
        'new = z * jnp.tanh(candidate_x + r * candidate_h) + (1 - z) * state'))
  room('models/hstu.py', 'models.hstu_test',
       ('weights = nn.silu(scores + bias) / self.slots', 'weights = nn.silu(scores + bias)'),
       ('u * norm(y)', 'u * y'),
       ('guess - (gap < limits[guess])', 'guess'),
       ('asked[:, :, None] - seen[:, None]', 'seen[:, :, None] - seen[:, None]'))
  room('models/rqvae.py', 'models.rqvae_test',
       ('squared(part - constant(residual)) + cfg.beta * squared(constant(part) - residual)',
        'cfg.beta * squared(part - constant(residual)) + squared(constant(part) - residual)'),
       ('scale * (x - 2 * between', 'scale * (x - between'))
  room('retrieval/kmeans.py', 'models.rqvae_test',
       ('return n // k + (np.arange(k) < n % k)', 'return n // k + (np.arange(k) <= n % k)'))
  room('models/semantic_ids.py', 'models.rqvae_test',
       ('for i in group[1:]:', 'for i in group:'))
  room('retrieval/bm25.py', 'retrieval.bm25_test',
       ('keep = idf > idf_cutoff', 'keep = idf >= idf_cutoff'),
       ('norm = k1 * (1 - b + b * length', 'norm = k1 * (b + (1 - b) * length'))
  room('retrieval/pca.py', 'retrieval.pca_test',
       ('jnp.where(largest < 0, -1.0, 1.0)', 'jnp.where(largest < 0, 1.0, 1.0)'))
  # Files, text.
  room('file_io.py', 'file_io_test',
       ('os.fsync(file.fileno())\n    place(fresh, path)', 'pass\n    place(fresh, path)'),
       ('if first != whole and whole.startswith(first)', 'if not whole.startswith(first)'),
       ("        if torn:\n          return self._write(b'\\n')", ''))
  room('text/tokenizer.py', 'text.tokenizer_test',
       ("if t.special or t.content.strip(' \\t\\r\\n▁')}", 'if t.special}'))
  room('text/llm_api.py', 'text.llm_api_test',
       ("_Failure('rate_limited', detail", "_Failure('rejected', detail"),
       ('asked = [messages, api.model, api.n, api.temperature, api.max_tokens]',
        'asked = [messages, api.model, api.n, api.max_tokens]'))
  room('text/interest_terms.py', 'text.interest_terms_test',
       ('weights = np.repeat(FADE ** np.arange(len(parts))',
        'weights = np.repeat(FADE ** np.arange(len(parts))[::-1]'))
  # Data.
  room('data/splits.py', 'data.splits_test',
       ('ends - held_out - starts)', 'ends - back - starts)'),
       ('users = np.flatnonzero(lengths > holdout)', 'users = np.flatnonzero(lengths >= holdout)'))
  room('data/windows.py', 'data.windows_test',
       ('np.argsort(interactions.times[interactions.offsets[users] + places]',
        'np.argsort(interactions.times[interactions.offsets[users] + places - 1]'))
  room('data/dataset.py', 'data.dataset_test',
       ('first[data.offsets[:-1][data.lengths() > 0]] = True', 'pass'))
  room('data/batches.py', 'methods.betag_text_test methods.betag_test training.sft_test',
       ('weights[block, column] /= 2', 'weights[block, column] /= 4'))
  # Methods.
  room('methods/etegrec/batching.py', 'methods.etegrec_test',
       ('items[max(0, position - max_history):position]',
        'items[max(0, position - max_history - 1):position - 1]'))
  room('methods/reclm/list_metrics.py', 'methods.reclm_parts_test',
       ("1 / np.log2(place + 2)", "1 / np.log2(place + 1)"))
  room('methods/bigrec/evaluate.py', 'methods.bigrec_test',
       ('names = list(dict.fromkeys(titles[i - 1] for i in row if i))',
        'names = [titles[i - 1] for i in row if i]'))
  # Serving, sweeps, batches of recommendations.
  room('serving/limits.py', 'serving.attack_test serving.app_test',
       ('if depth > MAX_JSON_DEPTH:', 'if depth > MAX_JSON_DEPTH + 8:'),
       ("if limits.api_key and not hmac",
        "if limits.api_key and scope['method'] != 'GET' and not hmac"))
  room('serving/batcher.py', 'serving.app_test',
       ('for entry in unanswered if len(batch) > 1 else ():', 'for entry in ():'))
  room('sweep.py', 'sweep_test',
       ("return 'loss', min(figures['valid_loss']), False",
        "return 'loss', figures['valid_loss'][-1], False"))
  room('batch_recommend.py', 'batch_recommend_test',
       ('(min(total, i * blocks // parts * BLOCK) for i in (index, index + 1))',
        '(min(total, i * (blocks // parts) * BLOCK) for i in (index, index + 1))'))
  room('distributed/sharding.py', 'distributed.sharding_test',
       ("re.search(f'(^|/){r}$', path_of(path))", "re.search(f'{r}', path_of(path))"))
  return out


def planted(mutant: Mutant, folder: pathlib.Path) -> str:
  """Plants a fault in the copy in `folder`. -> what stood in the file; raises ValueError where the
  old text does not stand in it just once."""
  path = folder / 'recjax' / mutant.file
  text = path.read_text()
  if text.count(mutant.old) != 1:
    raise ValueError(f'{mutant.file}: {mutant.old!r} stands in it {text.count(mutant.old)} times')
  path.write_text(text.replace(mutant.old, mutant.new))
  return text


def copy(folder: pathlib.Path) -> None:
  """Copies what tests need: the files that git knows, and new ones that it does not ignore."""
  listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT,
                          capture_output=True, text=True, check=True).stdout.splitlines()
  for name in listed:
    if (ROOT / name).is_file():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(ROOT / name, folder / name)


def run_tests(folder: pathlib.Path, module: str, long: bool = False) -> str:
  """Runs one test module until its first failure. long: its long tests too. -> '' or the name of
  what failed"""
  from tests.__main__ import environment
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as room:
    try:
      done = subprocess.run(
          [sys.executable, '-m', f'tests.{module}', f'--test_tmpdir={room}'],
          env={**environment(), 'TMPDIR': room, 'PYTHONPATH': str(folder),
               'RECJAX_TEST_ALL': str(int(long)),
               'PYTHONDONTWRITEBYTECODE': '1', 'TESTBRIDGE_TEST_RUNNER_FAIL_FAST': '1'},
          cwd=folder, capture_output=True, text=True, errors='replace', timeout=LIMIT)
    except subprocess.TimeoutExpired:
      return f'{module} (no end within {LIMIT} s)'
  if not done.returncode:
    return ''
  found = FIRST.search(done.stdout + done.stderr)
  return f'{module}: {found[1]}' if found else f'{module} (exit code {done.returncode})'


def judge(mutant: Mutant, folders: 'collections.deque[pathlib.Path]') -> tuple[str, float]:
  """Plants a fault in a free copy, runs its tests, the long ones where no other saw it, takes it
  back. -> who killed it, or an empty text, and seconds"""
  start, folder = time.monotonic(), folders.popleft()
  before = planted(mutant, folder)
  try:
    killer = next(filter(None, (run_tests(folder, module, long) for long in (False, True)
                                for module in mutant.tests)), '')
  finally:
    (folder / 'recjax' / mutant.file).write_text(before)
    folders.append(folder)
  return killer, time.monotonic() - start


def main() -> int:
  """Command line; see the top. -> exit code"""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('words', nargs='*', help='only faults whose file or text holds one of these')
  parser.add_argument('--list', action='store_true', help='what there is, without running it')
  parser.add_argument('--trusted', action='store_true', help='the suite has just passed: tests are '
                      'not run without faults first')
  parser.add_argument('--workers', type=int, default=os.cpu_count())
  args = parser.parse_args()
  chosen = [m for m in mutants() if not args.words or any(
      word in m.file or word in m.old for word in args.words)]
  with tempfile.TemporaryDirectory() as room:
    folders = collections.deque(pathlib.Path(room) / str(i) for i in range(args.workers))
    data = ROOT.parent / 'shared'  # real tokenizers and data beside the checkout, where there are
    if data.is_dir():
      (pathlib.Path(room) / data.name).symlink_to(data)
    for folder in folders:
      copy(folder)
    try:
      for mutant in chosen:
        (folders[0] / 'recjax' / mutant.file).write_text(planted(mutant, folders[0]))
    except ValueError as error:
      print(error)
      return 2
    if args.list:
      print('\n'.join(f'{m.file}: {m.old!r} -> {m.new!r}' for m in chosen))
      return 0
    with concurrent.futures.ThreadPoolExecutor(args.workers) as pool:
      modules = [] if args.trusted else sorted({module for m in chosen for module in m.tests})
      broken = [f for f in pool.map(lambda m: run_tests(folders[0], m), modules) if f]
      if broken:
        print('these fail without any fault:', *broken, sep='\n  ')
        return 1
      if modules:
        print(f'{len(modules)} test files pass without faults', flush=True)
      killed = 0
      for mutant, (killer, seconds) in zip(chosen, pool.map(
          lambda m: judge(m, folders), chosen)):
        killed += bool(killer)
        print(f'{"killed" if killer else "ALIVE":6} {seconds:5.0f} s  {mutant.file}: '
              f'{mutant.old.strip()[:60]!r}  {killer}', flush=True)
  print(f'{killed} of {len(chosen)} faults killed, {killed / max(1, len(chosen)):.0%}')
  return 0 if killed >= KILLED * len(chosen) else 1


if __name__ == '__main__':
  sys.exit(main())
