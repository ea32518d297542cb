"""docs/performance.md from docs/performance.json; pure functions but the last.

Each section reads the log of one benchmark and says where its figures come
from; a section without a log says why.
"""

import functools
import json
import pathlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks import gpu_parts, measure
from benchmarks.measure import spread

MEASURED = 'measured'
ESTIMATE = "the compiler's estimate"
PUBLISHED = 'published'
BLANK = 'blank'

HEAD = """# Performance

Made by `python -m benchmarks` (`python docs/make_performance.py` makes the page
alone anew) from [performance.json](performance.json). A ratio is of two ways
that took turns in one run, pair by pair: median (least–most); above 1 adabatch
is faster. The last column of a table says whether a figure was *measured*, is
*the compiler's estimate* of a machine that was not there, was *published* by
others, or stays *blank*, and then why."""

Log = dict[str, Any]


class Row(NamedTuple):
  """A line of a table.

  Attributes:
    figure: what.
    found: the number, or '' where there is none.
    goal: least ratio, or another limit in words.
    met: 'yes', 'no' or ''.
    kind: MEASURED, ... or BLANK with the reason.
  """

  figure: str
  found: str
  goal: str
  met: str
  kind: str


class Section(NamedTuple):
  """What is said of one benchmark.

  Attributes:
    name: of the benchmark and its log.
    title: of the section.
    words: what is compared.
    rows: the log -> its rows.
    blanks: figures that are blank without a log, and their goals.
  """

  name: str
  title: str
  words: str
  rows: Callable[[Log], Iterator[Row]]
  blanks: Sequence[tuple[str, str]]


def at_least(
  figure: str, ratios: Sequence[float], goal: float, more: str = ''
) -> Row:
  """Of ratios whose median is to reach a goal."""
  met = statistics.median(ratios) >= goal
  found = spread(ratios) + more
  return Row(figure, found, f'≥ {goal:.2f}', 'yes' if met else 'no', MEASURED)


# --- adabatch and a loop by hand ---

STEADY_GOALS = {'digits MLP': 1.3}
OTHERS = 0.97
ADAPTIVE = 0.95  # of those
STEADY_BLANKS = [
  ('digits MLP at 16, 64, 256', '≥ 1.30'),
  ('small CNN at 64, 256, 1024', '≥ 0.97'),
  ('ResNet-8 at 64', '≥ 0.97'),
  ('Shakespeare Transformer at 16', '≥ 0.97'),
  ('with an adaptive rule', '≥ 0.95 of those'),
]


def steady_rows(log: Log) -> Iterator[Row]:
  for row in log['rows'].values():
    sizes, rates = row['batch_sizes'], row['examples_per_second']
    at = f'{sizes[0]}' if len(sizes) == 1 else f'{sizes[0]} to {sizes[-1]}'
    rule = '' if row['rule'] == 'constant' else f', {row["rule"]}'
    goal = STEADY_GOALS.get(row['network'], OTHERS)
    goal *= ADAPTIVE if rule else 1.0
    middle = [f'{statistics.median(v):,.0f}' for v in rates.values()]
    more = f'; {middle[0]} and {middle[1]} examples/s'
    more += ', made-up data' if row['data'] == 'made up' else ''
    if rule:
      more += f'; waits for compilers {statistics.median(row["stalled"]):.0%}'
    yield at_least(f'{row["network"]} at {at}{rule}', row['ratios'], goal, more)


# --- the authors' ---

RULES = {
  'constant': 'constant batch size',
  'padadamp': 'PadaDamp',
  'adadamp': 'AdaDamp, full loss before each update',
}


def peer_rows(log: Log) -> Iterator[Row]:
  for rule, row in log['rows'].items():
    rates = row['examples_per_second'].values()
    middle = [f'{statistics.median(v):,.0f}' for v in rates]
    more = f'; {middle[0]} and {middle[1]} examples/s, torch {row["torch"]}'
    yield at_least(RULES[rule], row['ratios'], 1.5, more)


# --- others' logs ---


def plain_rows(kind: str, log: Log) -> Iterator[Row]:
  """Of whatever rows of plain values a log has.

  Args:
    kind: MEASURED or ESTIMATE.
    log: `rows`, each with a `name`, perhaps with a `goal` and `met`.
  """
  for row in log['rows']:
    values = dict(row)
    name = str(values.pop('name', 'a step'))
    goal, met = str(values.pop('goal', '')), str(values.pop('met', ''))
    found = ', '.join(
      f'{key.replace("_", " ")} '
      + (f'{value:,.4g}' if isinstance(value, float) else str(value))
      for key, value in values.items()
      if isinstance(value, int | float | str)
    )
    yield Row(name, found, goal, met, kind)


def text_rows(log: Log) -> Iterator[Row]:
  """In parts and as a whole, side by side."""
  for name, parts in log['rows'].items():
    figure, _, way = name.rpartition(', ')
    if way == 'whole' or (figure + ', whole') not in log['rows']:
      continue
    whole = log['rows'][figure + ', whole']
    found = (
      f'{parts["milliseconds"]:.1f} ms in {way}, {whole["milliseconds"]:.1f} '
      f'whole; {parts["temporary_gigabytes"]:.2f} and '
      f'{whole["temporary_gigabytes"]:.2f} GB of temporaries'
    )
    yield Row(figure, found, '', '', ESTIMATE)


def resnet50_rows(log: Log) -> Iterator[Row]:
  """The last stretch looks shorter than it was."""
  for row in log['rows']:
    ((_, found, _),) = gpu_parts.images('', row['images_per_second'][:-1])
    figure = f'ResNet-50 v1.5, bfloat16, adabatch, batch {row["batch_size"]}'
    yield Row(figure, found, '', '', MEASURED)


def input_rows(log: Log) -> Iterator[Row]:
  found, core = log['measurements'], 'images_per_core_second'
  for kind in found:
    name, _, threads = kind.rpartition(' x ')
    if name != 'adabatch':
      continue
    # "Fastest decoding" is not faster everywhere.
    peers = [
      rates[core]
      for other, rates in found.items()
      if other.startswith('tf.data') and other.endswith(f' x {threads}')
    ]
    mine, fastest = found[kind][core], max(peers, key=statistics.median)
    more = f'; {statistics.median(mine):,.0f} images/s and core'
    figure = f"images per core, against tf.data's fastest, {threads} at work"
    yield at_least(figure, measure.ratios(mine, fastest), 1.25, more)
  waits = log['seconds_to_first_examples_of_an_evaluation']
  for which, seconds in waits.items():
    figure = f'the {which} evaluation waits for its first examples'
    # Only the first one starts processes.
    goal = '< 0.5 s' if which == 'next' else ''
    met = 'yes' if statistics.median(seconds) < 0.5 else 'no'
    waited = f'{spread(seconds, 3)} s'
    yield Row(figure, waited, goal, met if goal else '', MEASURED)


def trial_rows(log: Log) -> Iterator[Row]:
  for size, row in log['batch_sizes'].items():
    share = row['share_of_best']
    rates = row['trials_per_hour'][row['chosen']]
    found = f'{share:.0%} of the best; {spread(rates, 0)} trials an hour'
    met = 'yes' if share >= 0.9 else 'no'
    figure = f'the automatic choice at {size}: {row["chosen"]}'
    yield Row(figure, found, '≥ 90 % of the best', met, MEASURED)


def call_rows(log: Log) -> Iterator[Row]:
  for name, times in log['microseconds'].items():
    size, _, number = name.partition(' x ')
    figure = f'an update at {size}, {number} a call'
    yield Row(figure, f'{spread(times, 0)} µs', '', '', MEASURED)


def switching_rows(log: Log) -> Iterator[Row]:
  first = log['first_over_median']
  met = 'yes' if statistics.median(first) <= 1.5 else 'no'
  figure = 'first update of a new bucket over the median one'
  found = f'{spread(first)} over {len(first)} buckets'
  yield Row(figure, found, '≤ 1.50', met, MEASURED)
  share = log['stalled']
  yield Row(
    f'training time that waits for compilers, {log["buckets"]} buckets',
    f'{spread([100 * s for s in share], 1)} %',
    '< 2 %',
    'yes' if statistics.median(share) < 0.02 else 'no',
    MEASURED,
  )
  yield Row(
    'the first program, which is waited for before that',
    f'{spread(log["first_program_seconds"])} s',
    '',
    '',
    MEASURED,
  )


def gpu_rows(log: Log) -> Iterator[Row]:
  known = log['parts']
  for name, part in gpu_parts.PARTS.items():
    done = known.get(name, {'status': 'not run'})
    if done['status'] != 'done':
      yield Row(part.meaning, '', '', '', f'{BLANK}: {done["status"]}')
      continue
    for figure, found in done['figures']:
      yield Row(figure, found, '', '', MEASURED)
  published = '2,791 images/s'
  yield Row('ResNet-50 by Lambda, AMP, one H100', published, '', '', PUBLISHED)


SECTIONS = (
  Section(
    'steady_state',
    'Against a loop by hand',
    'adabatch with default keys through `train`, and the least loop in JAX for '
    'the same network, optimizer and data on the device; compiling left out.',
    steady_rows,
    STEADY_BLANKS,
  ),
  Section(
    'peer_adadamp',
    "Against the authors' adadamp in PyTorch",
    'The small CNN on Fashion-MNIST at equal settings.',
    peer_rows,
    [(name, '≥ 1.50') for name in RULES.values()],
  ),
  Section(
    'updates_per_call',
    "The host's part of an update",
    'The digits MLP, by how many updates one call does.',
    call_rows,
    [('an update with one a call', '')],
  ),
  Section(
    'host_part',
    'What the host does in an update',
    'Python of an update on the host, and its synchronisations.',
    functools.partial(plain_rows, MEASURED),
    [('Python of an update, one a call', '≤ 40 µs')],
  ),
  Section(
    'switching',
    'Switching the batch size',
    'The small CNN on made-up images, 30 epochs, whose batch doubles from 8 to '
    '1,024 seven times; nothing was compiled before.',
    switching_rows,
    [('first update of a new bucket over the median one', '≤ 1.50')],
  ),
  Section(
    'devices_as_needed',
    'Devices as needed',
    'Eight virtual devices, AdaDamp from 16 to 512, against all of them.',
    functools.partial(plain_rows, MEASURED),
    [('device_seconds, of those of all devices', '≤ 0.60')],
  ),
  Section(
    'trials_per_hour',
    'Trials',
    'Sixteen of the digits MLP, 1,000 updates each.',
    trial_rows,
    [('the automatic choice', '≥ 90 % of the best')],
  ),
  Section(
    'input_pipeline',
    'Inputs',
    'Full-size JPEGs, cropped and flipped.',
    input_rows,
    [("images per core, against tf.data's fastest", '≥ 1.25')],
  ),
  Section(
    'tpu_steps',
    'On a TPU, by its compiler',
    'Cycles of the compiled programs; no TPU was at hand.',
    functools.partial(plain_rows, ESTIMATE),
    [
      ('ResNet-20 on CIFAR-10, 128 images', '< 2.6 ms'),
      ('GhostBatchNorm in a step of ResNet-50', '≤ 12 %'),
      ("ResNet-50 against flax's example", '≤ its cycles'),
    ],
  ),
  Section(
    'tpu_text',
    'Long vocabularies and rows on a TPU, by its compiler',
    'Forward and backward, in bfloat16, on one chip of a v5e. Logits of more '
    'than 1 GiB are made in chunks, for their memory.',
    text_rows,
    [('loss and attention in parts', '')],
  ),
  Section(
    'gpu',
    'On a GPU',
    '`python -m benchmarks.gpu`, on one H100 in under 8 minutes.',
    gpu_rows,
    [],
  ),
  Section(
    'resnet50_images',
    'ResNet-50 by batch size',
    'Made-up images on the device, at most 256 at once, more accumulated.',
    resnet50_rows,
    [('images a second of ResNet-50', '')],
  ),
)


def where(log: Log) -> str:
  """The line under a table: hardware, versions, how busy the machine was."""
  versions = log.get('versions', {})
  if 'jax' in log:
    versions = {'jax': log['jax'], **versions}
  about = [str(log.get('hardware', 'hardware not recorded'))]
  about += [f'{package} {version}' for package, version in versions.items()]
  if (load := log.get('load')) is not None:
    first = load[0] if isinstance(load, list) else load
    about.append(f'load {first}')
  if log.get('quick'):
    about.append('**quick: no figures, only a try**')
  return f'*{", ".join(about)}*'


def section(one: Section, entry: dict[str, Any]) -> str:
  """The text of a section.

  Args:
    one: which.
    entry: of performance.json: `status`, and `log` if there is one.
  """
  log, status = entry.get('log'), entry['status']
  if log is None and one.name == 'gpu':
    log = {'parts': dict.fromkeys(gpu_parts.PARTS, {'status': status})}
    rows, under = list(one.rows(log)), ''
  elif log is None:
    rows = [
      Row(figure, '', goal, '', f'{BLANK}: {status}')
      for figure, goal in one.blanks
    ]
    under = ''
  else:
    rows, under = list(one.rows(log)), where(log)
  columns = ['figure', 'found', 'goal', 'met', 'kind']
  parts = [f'## {one.title}', one.words, measure.table(columns, rows), under]
  if log is not None and status.startswith('failed'):
    parts.append(f'The last try {status}; these are the figures before it.')
  return '\n\n'.join(filter(None, parts))


def page(entries: dict[str, dict[str, Any]]) -> str:
  """The whole page.

  Args:
    entries: of performance.json, by the name of the benchmark.
  """
  missing = {'status': 'not run'}
  texts = (section(one, entries.get(one.name, missing)) for one in SECTIONS)
  return '\n\n'.join([HEAD, *texts]) + '\n'


def write(directory: pathlib.Path) -> pathlib.Path:
  """Makes performance.md beside performance.json."""
  entries = json.loads((directory / 'performance.json').read_text())
  path = directory / 'performance.md'
  path.write_text(page(entries['figures']))
  return path
