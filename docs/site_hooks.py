"""What mkdocs adds to the pages of docs/: those that stand elsewhere, and the reference.

The reference holds all commands, the settings of every method, and the API: one page for each room
of the package and each method. It is made when the site is built, so that a new verb, setting or
module is on it without being named anywhere.
"""
import contextlib
import io
import pathlib
import posixpath
import re

from mkdocs.structure.files import File

from recjax import cli, experiment, setting_meanings

ROOT = pathlib.Path(__file__).parents[1]
# Pages of the site that are files outside docs/, under the same path there as in the repository.
ELSEWHERE = ('CONTRIBUTING.md', 'CHANGELOG.md', 'SECURITY.md', 'launch/README.md',
             'benchmarks/README.md', 'benchmarks/RESULTS.md')
# A config of each method whose settings the reference shows, and its presets.
CONFIGS = {'sequential_scientific': ('sample', 'paper'),
           'betag_scientific': ('sample', 'laptop', 'paper'),
           'bigrec_games': ('sample', 'laptop', 'paper'),
           'd3_scientific': ('sample', 'laptop', 'paper'),
           'llmemb_beauty': ('sample', 'laptop', 'paper'),
           'reclm_scientific': ('sample', 'laptop', 'paper'),
           'tiger_beauty': ('sample', 'paper'), 'etegrec_scientific': ('sample', 'paper')}
LINK = re.compile(r'(?<!\!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)')
FENCED = re.compile(r'^(```.*?^```)', re.DOTALL | re.MULTILINE)


def rooms() -> dict[str, list[str]]:
  """The pages of the reference. -> {'decoding': ['recjax.decoding.beam', ...], ...}"""
  found = {'recjax': ['recjax']}
  for path in sorted((ROOT / 'recjax').rglob('*.py')):
    parts = path.relative_to(ROOT).with_suffix('').parts
    if parts[-1].startswith('__'):
      parts = parts[:-1] if parts[-1] == '__init__' and path.stat().st_size else ()
    if len(parts) < 2:
      continue
    inside = (ROOT / 'recjax' / parts[1]).is_dir()
    of_method = parts[1] == 'methods' and len(parts) > 2
    room = '/'.join(parts[1:3]) if of_method else parts[1] if inside else 'recjax'
    found.setdefault(room, []).append('.'.join(parts))
  return found


def on_config(config):
  """Puts the reference behind the pages of mkdocs.yml."""
  pages, methods = [], []
  for room in rooms():
    place = methods if room.startswith('methods') else pages
    place.append({'all' if room == 'methods' else posixpath.basename(room): f'api/{room}.md'})
  config.nav.append({'Reference': [
      {'Commands': 'reference/commands.md'}, {'Settings': 'reference/settings.md'},
      {'API': [*pages, {'methods': methods}]}]})
  return config


def commands_page() -> str:
  """The help of every verb."""
  parts = ['# Commands\n\nWhat `recjax VERB --help` prints.']
  for verbs in cli.GROUPS.values():
    for name, verb in verbs.items():
      with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        cli.parser().parse_args([name, '--help'])
      parts.append(f'## recjax {name}\n\n{verb.HELP[0].upper()}{verb.HELP[1:]}.\n\n'
                   f'```text\n{text.getvalue()}```')
  return '\n\n'.join(parts) + '\n'


def settings_page() -> str:
  """A table of the settings of each method, by presets."""
  parts = ['# Settings\n\nWhat `--config.NAME=VALUE` changes, with the value of each preset. '
           '`recjax settings CONFIG [WORD ...]` prints the same for your config.']
  for name, presets in CONFIGS.items():
    columns = [list(setting_meanings.describe(experiment.read_config(
        name if preset == 'sample' else f'{name}:{preset}'))) for preset in presets]
    rows = [f'## {name}', '', f'| setting | {" | ".join(presets)} | meaning | may be |',
            '| --- ' * (len(presets) + 3) + '|']
    for same in zip(*columns, strict=True):
      values = ' | '.join(f'`{setting.value}`' if str(setting.value) else "`''`"
                          for setting in same)
      first = same[0]
      rows.append(f'| `{first.name}` | {values} | {escaped(first.meaning)} | '
                  f'{escaped(first.allowed)} |')
    parts.append('\n'.join(rows))
  return '\n\n'.join(parts) + '\n'


def escaped(text: str) -> str:
  """A text in a cell of a table."""
  return re.sub(r'([|*<>_])', r'\\\1', text)


def on_files(files, config):
  """Adds the pages that no file of docs/ holds."""
  for name in ELSEWHERE:
    files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
  for name, page in (('commands', commands_page), ('settings', settings_page)):
    files.append(File.generated(config, f'reference/{name}.md', content=page()))
  for room, modules in rooms().items():
    title = 'recjax' if room == 'recjax' else f'recjax.{room.replace("/", ".")}'
    text = f'# {title}\n\n' + '\n'.join(f'::: {module}\n' for module in modules)
    files.append(File.generated(config, f'api/{room}.md', content=text))
  return files


def on_page_markdown(markdown, page, config, files):
  """Links that hold in the repository become links of the site, or plain text where it has no such
  page."""
  del config
  here = page.file.src_uri
  if here.startswith(('api/', 'reference/')):
    return markdown
  source = here if here in ELSEWHERE else f'docs/{here}'  # in the repository

  def of_site(match):
    text, target = match.groups()
    path, _, anchor = target.partition('#')
    if not path or re.match(r'[a-z]+:', target):
      return match[0]
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    goal = 'index.md' if target == 'README.md' else target.removeprefix('docs/')
    if files.get_file_from_path(goal) is None:  # of what is nowhere mkdocs warns
      return text if (ROOT / target).exists() else match[0]
    link = posixpath.relpath(goal, posixpath.dirname(here) or '.')
    return f'[{text}]({link}{"#" + anchor if anchor else ""})'
  parts = FENCED.split(markdown)
  return ''.join(part if i % 2 else LINK.sub(of_site, part) for i, part in enumerate(parts))
