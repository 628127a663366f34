"""The command recjax: run for experiments, and the verbs around them: prepare, recommend, ..."""
import argparse
import functools
import itertools
import os
import pathlib
import re
import shlex
import sys
import threading

from absl import app, flags

import recjax
from recjax import errors, experiment, methods, run_files, settings
from recjax import main as experiments
from recjax.data.prepare import cli as prepare_verb
from recjax.errors import ConfigError, WorkdirError

READ = ('interactions', 'items', 'reviews', 'meta', 'games', 'file', 'folder')  # of prepare
MADE = ('prepared.json', 'README.md')  # beside items and sequences
WRITES = {'prepare': 'out', 'recommend': 'output', 'compare': 'html', 'convert': 'out',
          'sweep': 'out'}  # which flag says where
LAYOUTS = ('peft', 'merged', 'npz', 'samples', 'index', 'vectors')


FIRST_HOUR = """\
from raw files to recommendations:
  recjax prepare table log.csv --out=data/mine                  counts after every step
  recjax doctor data/mine --config=CONFIG                       what is odd, what a run would cost
  recjax run CONFIG:data=data/mine --workdir=checkpoints/mine
  recjax recommend checkpoints/mine --user=ID                   or --history=, or --input=FILE
  recjax compare checkpoints/mine checkpoints/other --html=compare.html
  recjax serve checkpoints/mine                                 a shop at http://127.0.0.1:8000

CONFIG is one of configs/, e.g. betag_scientific, which has a built-in shop as well, or your file.
every verb tells more: recjax VERB --help"""
EXAMPLES = {
    'run': 'betag_scientific:data=data/mine --workdir=checkpoints/mine --config.seed=1',
    'prepare': 'table log.csv --columns=user=customer,item=sku --out=data/mine',
    'recommend': 'checkpoints/betag_scientific --user=U00001 --k=5',
    'chat': 'checkpoints/reclm_scientific',
    'serve': 'checkpoints/betag_scientific checkpoints/sequential_beauty',
    'doctor': 'sample --config=configs/betag_scientific.py:paper',
    'compare': 'checkpoints/a checkpoints/b --against=sasrec --html=compare.html',
    'sweep': '--config=configs/sequential_beauty.py --set optim.lr=1e-3,3e-3 --seeds=3',
    'convert': 'checkpoints/betag_scientific --to=peft --out=adapter'}


def parser():
  """Every verb with its flags."""
  top = argparse.ArgumentParser(
      prog='recjax', description='Recommendation with language models, on JAX.', epilog=FIRST_HOUR,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  top.add_argument('--version', action='version', version=f'recjax {recjax.__version__}')
  verbs = top.add_subparsers(dest='verb', required=True, metavar='VERB')

  add_run_verb(verbs)
  prepare_verb.add_flags(verbs.add_parser('prepare', help='raw files to a data set'))

  verb = verbs.add_parser('recommend', help='items for a history, a user, or a file of users')
  verb.add_argument('workdir', help='the folder of a finished run')
  who = verb.add_mutually_exclusive_group(required=True)
  who.add_argument('--history', help='item ids, oldest first, parted by commas')
  who.add_argument('--user', help='id of a user in the data')
  who.add_argument('--input', help='users.jsonl, {"user_id": ..., "items": [...]} a line, or '
                   'users.parquet with these columns')
  verb.add_argument('--output', help='where the answers to --input go: x.jsonl or x.parquet; the '
                    'same command goes on where it was stopped')
  verb.add_argument('--part', metavar='I/N', help='answer only share I of N of --input, here or on '
                    'another host; the last to finish merges all into --output')
  verb.add_argument('--k', type=settings.flag(int, 'at least 1'), default=10,
                    help='how many items (default 10)')
  verb.add_argument('--data', metavar='NEW', help='the data as `recjax prepare --update` carried '
                    'them on: new items are recommended, too, where the method can read them')

  verb = verbs.add_parser('chat', help='talk to a trained chat model, its items all real')
  verb.add_argument('workdir', help='the folder of a finished run')
  verb.add_argument('--data', action='append', default=[], metavar='FOLDER',
                    help='a further data set to recommend from; /domain NAME switches')

  verb = verbs.add_parser('serve', help='trained runs over HTTP, and a web shop')
  verb.add_argument('workdirs', nargs='+', metavar='workdir', help='folders of finished runs')
  verb.add_argument('--host', default='127.0.0.1', help='address to listen on (default '
                    '127.0.0.1, this machine alone)')
  verb.add_argument('--port', type=int, default=8000, help='(default 8000)')
  verb.add_argument('--data', action='append', default=[], metavar='FOLDER',
                    help='a further data set that chat models recommend from')
  verb.add_argument('--later', metavar='NEW', help='the data of the runs as `recjax prepare '
                    '--update` carried them on: new items are recommended, too')
  verb.add_argument('--catalogue', metavar='FILE', help='items as they are now, items.jsonl; read '
                    'again at POST /v1/catalogue/reload')
  verb.add_argument('--timeout', type=settings.flag(float, 'above 0'), default=60.,
                    help='seconds that an answer may take (default 60)')
  verb.add_argument('--most', type=settings.flag(int, 'at least 1'), default=256,
                    help='requests at a time (default 256)')
  verb.add_argument('--interests-url', default='', metavar='URL', help='an OpenAI-compatible '
                    'endpoint that foresees interests; its key is in OPENAI_API_KEY')
  verb.add_argument('--interests-model', default='', metavar='NAME', help='the model to ask there')

  add_study_verbs(verbs)
  for name, verb in verbs.choices.items():
    verb.epilog = f'example:\n  recjax {name} {EXAMPLES[name]}'
    verb.formatter_class = argparse.RawDescriptionHelpFormatter  # a command stays in one line
  return top


def add_run_verb(verbs):
  """`recjax run`, with the flags of recjax.main."""
  verb = verbs.add_parser('run', help='an experiment, from its first unfinished stage on')
  verb.add_argument('config', metavar='CONFIG[:ARG]', help='one of configs/ by its name, from here '
                    'or as it came with recjax, or a file; ARG is paper, data=FOLDER, or what else '
                    'it takes. Its settings change by --config.a.b=VALUE')
  for holder in experiments.RUN_FLAGS:
    flag = flags.FLAGS[holder.name]
    kind = {'action': 'store_true'} if flag.boolean else {}
    verb.add_argument(f'--{flag.name}', help=flag.help.replace('%', '%%'), **kind)


def add_study_verbs(verbs):
  """The verbs that look at data and at runs, or make many runs."""
  verb = verbs.add_parser('doctor', help='what is wrong with data, what a config costs')
  verb.add_argument('data', help="folder of a data set, or 'sample'")
  verb.add_argument('--config', help='a config file (with :argument) whose cost to print; its '
                    'settings change by --config.a.b=VALUE, as in recjax.main')

  verb = verbs.add_parser('compare', help='one table of several runs, with paired tests')
  verb.add_argument('workdirs', nargs='+', metavar='workdir', help='folders of finished runs')
  verb.add_argument('--against', default='', metavar='ROW', help='test every row against '
                    'this one alone, e.g. sasrec; RUN:ROW where several runs have it')
  verb.add_argument('--rows', default='', metavar='ROW,…', help='only these, as ROW or RUN:ROW '
                    '(default: all)')
  verb.add_argument('--format', default='text', choices=('text', 'csv', 'markdown', 'latex'),
                    help='of the table (default text)')
  verb.add_argument('--html', default='', help='also write a page, e.g. compare.html')

  verb = verbs.add_parser('sweep', help='a grid of settings and seeds, the best by validation')
  verb.add_argument('--config', required=True, help='a config file, as recjax.main takes it')
  verb.add_argument('--set', action='append', default=[], metavar='KEY=V1,V2', help='values of a '
                    'setting, e.g. optim.lr=1e-3,3e-4; several --set make a grid')
  verb.add_argument('--seeds', type=settings.flag(int, 'at least 1'), default=1,
                    help='runs of each setting (default 1)')
  verb.add_argument('--out', default='', help="the sweep's folder; default: checkpoints/sweep- and "
                    "the config's name. The same command goes on where it was stopped")

  verb = verbs.add_parser('convert', help='the trained model for other programs')
  verb.add_argument('workdir', help='the folder of a finished run; for vectors, of a sentence '
                    'encoder (sentence-transformers) or another checkpoint')
  verb.add_argument('--to', required=True, choices=LAYOUTS,
                    help='a PEFT adapter folder or a whole Hugging Face checkpoint; plain '
                    'arrays, of methods without a language model; what RecLM was trained on; '
                    'the semantic IDs of all items; or vectors of the texts of --data, a .npy')
  verb.add_argument('--data', default='', help="of vectors: a data set, or 'sample'")
  verb.add_argument('--out', required=True, help='folder or file to make')


def main():
  """Runs the verb that the command line names."""
  top = parser()
  words, rest = settings.taken(sys.argv[1:])
  args = top.parse_args(rest)
  args.settings = words
  if words and args.verb not in ('doctor', 'run'):
    top.error(f'--config.{words[0]}: settings are of `recjax run` and `recjax doctor`')
  if args.verb == 'run':
    return run(args)
  errors.guard(lambda: call_verb(args))


def run(args):
  """Runs an experiment, as `python -m recjax.main` does."""
  given = {holder.name: getattr(args, holder.name) for holder in experiments.RUN_FLAGS}
  argv = ['recjax run', f'--config={args.config}', *(f'--config.{word}' for word in args.settings),
          *(f'--{name}' if value is True else f'--{name}={value}' for name, value in given.items()
            if value not in (None, False))]
  command = f'recjax {shlex.join(sys.argv[1:])}'
  app.run(functools.partial(experiments.main, command=command), argv, experiments.parse)


def call_verb(args):
  """Runs a verb. What it writes to is named where the disk is full."""
  try:
    globals()[args.verb](args)
  except errors.UserError:
    raise
  except Exception as error:
    flag = WRITES.get(args.verb, '')
    found = getattr(args, flag, '') and errors.disk_fault(error)
    if not found:
      raise
    raise WorkdirError(f'--{flag}={getattr(args, flag)}: {found}; make room there and run the same '
                       'command again, or name another place') from error


def prepare(args):
  """Writes the canonical data set and says what was left out."""
  if getattr(args, 'overwrite', False):
    check_overwrite(args.out, [value for name in READ if (value := getattr(args, name, ''))])
  prepare_verb.run(args)


def check_overwrite(out, sources):
  """Raises ConfigError where --overwrite would remove what `recjax prepare` did not make, or what
  it is to read. sources: the paths that are read."""
  out = pathlib.Path(out)
  if not out.is_dir():
    return
  for source in sources:
    if pathlib.Path(source).resolve().is_relative_to(out.resolve()):
      raise ConfigError(f'--overwrite would remove {source}, which is read; name another --out')
  odd = sorted(p.name for p in out.iterdir() if not (
      p.name in MADE or p.name.partition('.')[0] in ('items', 'sequences') and p.is_file()
      or re.fullmatch(r'\.(README\.md|prepared\.json)\.\d+\.tmp', p.name)))
  if odd or any(out.iterdir()) and not (out / 'prepared.json').is_file():
    what = f'{odd[0]}, which' if odd else 'a data set that'
    raise ConfigError(f'--overwrite: {out} holds {what} `recjax prepare` did not make; name '
                      'another --out, or remove it yourself')


def recommend(args):
  """Prints item ids, scores and titles, or answers a file of users."""
  from recjax import recommend as face
  from recjax.training import job_parts
  if args.input and not args.output:
    raise ConfigError('--input needs --output, the file for the answers')
  if args.part and not args.input:
    raise ConfigError('--part shares out the users of --input; add it, or leave --part out')
  part = job_parts.parse(args.part)
  ask, shop = face.load(args.workdir, args.data)
  if args.input:
    written = face.batch(
      ask, shop, args.input, args.output, args.k, face.model_version(args.workdir), part=part
    )
    print(f'{written} users answered, ' + (f'part {args.part}' if part else f'in {args.output}'))
    return
  if args.history == '':
    raise ConfigError('--history is empty; give item ids, parted by commas')
  history = args.history.split(',') if args.history else face.history_of(shop, args.user)
  items, scores = ask([history], args.k)
  for item, score in zip(items[0], scores[0]):
    print(f'{item}\t{score:.4f}\t{face.title_of(shop.catalog, item)}')


def chat(args):
  """A conversation in the terminal."""
  import recjax.chat
  recjax.chat.run(args.workdir, args.data)


def serve(args):
  """Answers over HTTP until stopped; RECJAX_API_KEY, where set, guards every route."""
  from recjax.serving import server
  from recjax.serving.service import Settings
  if bool(args.interests_url) != bool(args.interests_model):
    raise ConfigError('--interests-url and --interests-model go together')
  settings = Settings(args.host, args.port, seconds=args.timeout, most=args.most,
                      interests_url=args.interests_url, interests_model=args.interests_model)
  server.run(args.workdirs, settings, args.data, args.catalogue, args.later)
  if any(t.daemon for t in threading.enumerate()):  # a model that still warms would abort the end
    sys.stdout.flush()
    os._exit(0)


def doctor(args):
  """Prints findings about the data and the cost of a config."""
  from recjax.data import dataset
  from recjax.data import validate as checks
  if args.settings and not args.config:
    raise ConfigError(f'--config.{args.settings[0]} changes a config; name it, e.g. '
                      '--config=configs/betag_scientific.py')
  cfg = args.config and experiment.changed(experiment.read_config(args.config), args.settings)
  shop = dataset.load_data(args.data)
  print(f'{shop.name}: {len(shop.catalog):,} items, {len(shop.interactions):,} users, '
        f'{len(shop.interactions.items):,} interactions, fingerprint {shop.fingerprint[:16]}')
  for finding in checks.check(shop):
    print(f'{finding.severity}: {finding.what}: {finding.count:,}'
          + (f', e.g. {", ".join(map(str, finding.examples[:3]))}' if finding.examples else ''))
    print(f'    {finding.remedy}')
  if cfg:
    with experiment.complete():
      found = methods.find(cfg.method, args.config).cost(cfg, shop)
    for name, value in found.items():
      print(f'{name}: {value}')


def compare(args):
  """Prints the table of several runs."""
  from recjax.evaluation import compare as comparison
  if args.html:
    run_files.absent(args.html, '--html')
  table = comparison.compare(args.workdirs, args.rows.split(',') if args.rows else (),
                             args.against)
  sys.stdout.write(getattr(comparison, f'{args.format}_table')(table).rstrip() + '\n')
  if args.html:
    from recjax.report import html
    run_files.absent(args.html, '--html')  # a comparison takes a while
    html.write(args.html, compare_page(args.workdirs, table, comparison))
    print(f'page: {args.html}')


def compare_page(workdirs, table, comparison):
  """The page of `recjax compare --html`. -> str"""
  from recjax.report import html, results
  tests = [] if table['against'] else [html.section('Paired tests', html.table(
      ['Rows', 'HR@10', 'NDCG@10'], [[name, results.p_value(p['HR@10']), results.p_value(
          p['NDCG@10'])] for name, p in table['tests'].items()], 'p-values, Holm-corrected'))]
  heads = ['Run', 'Method', 'Preset', 'Revision', 'Seeds', 'Users', 'Left out']
  runs = [[name, *(run[k] or '–' for k in ('method', 'preset', 'revision')), ', '.join(
      map(str, run['seeds'])), run['users'], table['left_out'][name]]
          for name, run in table['runs'].items()]
  commands = '\n'.join(run['command'] for run in table['runs'].values() if run['command'])
  notes = [f'{name}: {run["note"]}.' for name, run in table['runs'].items() if run['note']]
  said, labels = comparison.note(table), {row: row.replace(':', ': ', 1) for row in table['rows']}
  return html.page('Runs compared', ', '.join(workdirs), [
      f'{table["users"]:,} users that all runs ranked. Protocol of every row: {table["protocol"]}.',
      f'{said}.' if said else ''], [
          html.section('Results', results.results_table(
              table, comparison.SHOWN, main='HR@10', reference=table['against'], sizes=True,
              labels=labels)), *tests, *results.by_group(table['groups'], labels),
          html.section('The runs', html.table(heads, runs, 'What each run is', 'lllllrr'), notes,
                       html.code(commands) if commands else None,
                       intro='Left out: users of a run that the others did not rank.')])


def sweep(args):
  """Runs a grid and chooses by validation; exit code 1 where runs failed."""
  from recjax import sweep as sweeps
  out = args.out or f'checkpoints/sweep-{pathlib.Path(args.config.partition(":")[0]).stem}'
  sweeps.check_folder(out, args.config)
  points = sweeps.grid(args.set)
  cfgs = {}
  for (place, point), s in itertools.product(enumerate(points), range(args.seeds)):
    cfg = experiment.read_config(args.config)
    with experiment.complete():
      cfg.seed += s
    cfgs[place, cfg.seed] = experiment.changed(cfg, [f'{k}={v}' for k, v in point.items()])
  sweeps.check_points(points, [cfgs[key] for key in cfgs if key[1] == cfg.seed])
  sys.exit(sweeps.run(args.config, points, cfgs, out) > 0)


def convert(args):
  """Writes the trained model in a layout that other programs read."""
  if args.to == 'vectors':
    return embed(args)
  from recjax import recommend as face
  method, _ = face.method_of(args.workdir)
  with run_files.opening(args.workdir), settings.of_run(args.workdir):
    method.convert(args.workdir, args.to, args.out)
  print(f'{args.to}: {args.out}')


def embed(args):
  """Writes the vectors of a catalogue's texts by an encoder, row i - 1 of item i, float32."""
  import numpy as np
  from ml_collections import ConfigDict

  from recjax.data import dataset
  from recjax.distributed import sharding
  from recjax.training import text_embedding
  from recjax.training.workdir import plain_progress
  out = pathlib.Path(args.out)
  if not args.data:
    raise ConfigError('--to=vectors embeds the items of a data set; add --data=FOLDER')
  if out.suffix != '.npy':
    raise ConfigError(f'--out={out}: name a .npy file that does not exist yet')
  run_files.absent(out, '--out')
  shop = dataset.load_data(args.data)
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  reader = text_embedding.load(args.workdir, ConfigDict({'dtype': 'auto', 'remat': 'none'}), mesh)
  advance = plain_progress(print, 'embedding', len(shop.catalog), 0, 'item')
  found, about = text_embedding.embed(
    reader, dataset.item_texts(shop.catalog), mesh, advance=advance
  )
  with run_files.new_file(out, '--out') as fresh, open(fresh, 'wb') as f:
    np.save(f, found.astype(np.float32), allow_pickle=False)
  cut = f'; {about["cut"]:,} texts were cut' if about['cut'] else ''
  print(f'{out}: {len(found):,} items, {found.shape[1]} numbers each{cut}')


if __name__ == '__main__':
  main()
