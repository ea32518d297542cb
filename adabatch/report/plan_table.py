"""A plan in words, for a terminal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from adabatch.report.layout import duration, quantity
from adabatch.report.plan_scaling import scaling_lines, scaling_tables

MOST_EXCHANGES = 3  # kinds that are told apart


def in_bytes(size: Any) -> str:
  """Bytes for a person.

  >>> in_bytes(208_980), in_bytes(1.57e9), in_bytes(None)
  ('209 kB', '1.57 GB', '–')
  """
  return _scaled(size, 'B')


def flops(value: Any) -> str:
  """Floating-point operations for a person.

  >>> flops(140_397), flops(24.3e9), flops(None)
  ('140 kFLOP', '24.3 GFLOP', '–')
  """
  return _scaled(value, 'FLOP')


def _scaled(value: Any, unit: str) -> str:
  if value is None:
    return '–'
  for size, prefix in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= size:
      return f'{value / size:.3g} {prefix}{unit}'
  return f'{value:.3g} {unit}'


def ladder_table(plan: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
  """Columns and rows of the ladder."""
  columns = ['batch size', 'a device at once', 'accumulated', 'devices']
  replicas = any(rung['replicas'] > 1 for rung in plan['ladder'])
  columns += ['replicas'] if replicas else []
  columns += ['empty slots']
  known = 'schedule' in plan
  columns += ['updates', 'examples', 'from update'] if known else []
  rows = []
  for rung in plan['ladder']:
    row = [
      quantity(rung[key])
      for key in (
        'batch_size',
        'microbatch_size',
        'accumulation_steps',
        'devices',
        *(['replicas'] if replicas else []),
        'empty_slots',
      )
    ]
    if known:
      row += [quantity(rung.get(key, 0)) for key in ('updates', 'examples')]
      row.append(quantity(rung.get('first_update')))
    rows.append(row)
  return columns, rows


def machine_tables(
  plan: Mapping[str, Any],
) -> Iterator[tuple[str, list[str], list[list[str]]]]:
  """Title, columns and rows of what was compiled for a topology, if it was."""
  if 'topology' not in plan:
    return
  devices = plan['devices']['number']
  evaluation = plan['topology']['evaluation']
  rungs = [(quantity(r['batch_size']), r) for r in plan['ladder']]
  both = [*rungs, ('evaluation', evaluation)]
  yield (
    f'Memory of each of {devices:,} devices (exact)',
    ['batch size', 'program', 'beside it', 'together', 'of', ''],
    [[name, *_memory(what)] for name, what in both],
  )
  there = [(name, what) for name, what in both if 'memory' in what]
  if not there:
    return
  yield (
    'Time of an update, or of an evaluation',
    [
      'batch size',
      'step (estimate)',
      'exchange (model)',
      'FLOPs bound',
      'HBM bound',
      'an example (compiled)',
      'examples/s',
      'FLOP use',
      'a host reads',
    ],
    [[name, *_times(what)] for name, what in there],
  )
  yield (
    'What chips exchange in an update (exact)',
    ['batch size', 'how', 'bytes each', 'asynchronous', 'compiled in'],
    [
      [name if not i else '', *row]
      for name, what in _programs(there, evaluation)
      for i, row in enumerate(_exchanges(what))
    ],
  )


def _programs(
  there: Iterable[tuple[str, Any]], evaluation: Any
) -> Iterator[tuple[str, Any]]:
  for name, what in there:
    if what is not evaluation:
      yield name, what
      if 'without_sync' in what:
        yield f'{name}, no sync', what['without_sync']


def _memory(what: Mapping[str, Any]) -> list[str]:
  if 'memory' not in what:
    return ['–', '–', 'too large', '–', _fits_with(what)]
  return [
    in_bytes(what['memory']['peak']),
    in_bytes(what['beside_bytes']),
    in_bytes(what['bytes']),
    in_bytes(what['memory_limit']),
    '' if what['fits'] else f'too large{_fits_with(what)}',
  ]


def _fits_with(what: Mapping[str, Any]) -> str:
  if 'fits_with' not in what:
    return ''
  most = what['fits_with']
  if most is None:
    return ': nothing fits'
  return f': buckets.max_per_device={most} fits'


def _times(what: Mapping[str, Any]) -> list[str]:
  use, rate = what.get('flops_utilisation'), what.get('host_bytes_per_second')
  host = what.get('host_examples_per_second')
  return [
    duration(what['compiler_seconds']),
    duration(what['all_reduce_seconds']),
    duration(what.get('flops_bound_seconds')),
    duration(what.get('bandwidth_bound_seconds')),
    flops(what.get('compiled_flops_per_example')),
    quantity(_rounded(what.get('examples_per_second'))),
    '–' if use is None else f'{use:.1%}',
    '–' if host is None else f'{host:,.0f}/s, {in_bytes(rate)}/s',
  ]


def _rounded(value: float | None) -> float | None:
  return value if value is None or value < 1000 else round(value)


def _exchanges(what: Mapping[str, Any]) -> list[list[str]]:
  took = duration(what['compile_seconds'] or None)
  if not what['collectives']:
    return [['nothing', '–', '–', took]]
  rows = [
    [
      f'{c["times"]:,} x {c["kind"]}'
      + (f' of {c["devices"]:,}' if c['devices'] else ''),
      in_bytes(c['bytes']),
      'yes' if c['overlapped'] else 'no',
      '' if i else took,
    ]
    for i, c in enumerate(what['collectives'])
  ]
  if len(rows) <= MOST_EXCHANGES:
    return rows
  rest = what['collectives'][MOST_EXCHANGES - 1 :]
  times = sum(c['times'] for c in rest)
  size = in_bytes(sum(c['times'] * c['bytes'] for c in rest))
  return [
    *rows[: MOST_EXCHANGES - 1],
    [f'{times:,} smaller ones', f'{size} in all', '', ''],
  ]


def lines_of_totals(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  """What is known of the schedule, and how it is called."""
  schedule = plan.get('schedule')
  if schedule is not None:
    words = 'exact' if plan['exact'] else 'of the assumed loss'
    yield words, totals(schedule)
  for size, spent in plan.get('range', {}).items():
    yield f'if every batch had {int(size):,}', totals(spent)


def totals(spent: Mapping[str, Any]) -> str:
  """What a schedule spends, in a line."""
  return (
    f'{spent["updates"]:,} updates, {spent["examples"]:,} examples, '
    f'{spent["epochs"]:.4g} epochs, {spent["evaluations"]:,} evaluations, '
    f'{spent["checkpoints"]:,} checkpoints, {spent["syncs"]:,} syncs, '
    f'programs: {spent["programs"]}'
  ) + _time_of(spent)


def _time_of(spent: Mapping[str, Any]) -> str:
  if 'seconds' not in spent:
    return ''
  evaluations = spent.get('evaluation_seconds')
  return (
    f'; by the estimate {duration(spent["seconds"])}, '
    f'{spent["chip_hours"]:,.3g} chip-hours{_in_use(spent)}'
  ) + (f', and {duration(evaluations)} to evaluate' if evaluations else '')


def _in_use(spent: Mapping[str, Any]) -> str:
  """Where devices idle."""
  share = spent.get('in_use', 1.0)
  return f', devices in use {share:.0%} of it' if share < 0.995 else ''


def programs_line(plan: Mapping[str, Any]) -> str | None:
  """What was put in a directory of programs; None where nothing was.

  >>> programs_line({'programs': {'directory': 'd', 'number': 5, 'bytes': 2e6,
  ...   'compiled': 3, 'too_large': 0, 'seconds': 9.5}})
  'programs: 5 in d, 2 MB, 3 of them compiled now, in 9.5 s'
  """
  saved = plan.get('programs')
  if saved is None:
    return None
  left_out = f', {saved["too_large"]} too large' if saved['too_large'] else ''
  return (
    f'programs: {saved["number"]:,} in {saved["directory"]}, '
    f'{in_bytes(saved["bytes"])}, {saved["compiled"]:,} of them compiled now, '
    f'in {duration(saved["seconds"])}{left_out}'
  )


def describe_plan(plan: Mapping[str, Any]) -> str:
  """The whole plan as text."""
  model, about, disk = plan['model'], plan['data'], plan['disk']
  there = '' if plan.get('data_there', True) else ' (not prepared here)'
  streaming = 'streamed' if about['streaming'] else 'on the devices'
  lines = [
    f'{model["name"]}: {model["parameters"]:,} parameters, '
    f'{flops(model["flops_per_example"])} an example, state of '
    f'{in_bytes(model["state_bytes"])}',
    f'{about["name"]}{there}: {about["examples"]:,} examples, '
    f'{about["evaluation_examples"]:,} to evaluate, {streaming}',
    f'{plan["devices"]["number"]} x {plan["devices"]["kind"]}',
  ]
  columns, rows = ladder_table(plan)
  lines += ['', *_aligned([columns, *rows]), '']
  for title, columns, rows in machine_tables(plan):
    lines += [title, *_aligned([columns, *rows]), '']
  lines += [f'{name}: {text}' for name, text in lines_of_totals(plan)]
  lines.append(
    f'disk: {in_bytes(disk["bytes"])}, of which each checkpoint '
    f'{in_bytes(disk["checkpoint_bytes"])}'
  )
  if (line := programs_line(plan)) is not None:
    lines.append(line)
  for title, columns, rows in scaling_tables(plan):
    lines += ['', title, *_aligned([columns, *rows])]
  lines += scaling_lines(plan)
  return '\n'.join([*lines, *plan['remarks']])


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    cells = (text.rjust(width) for text, width in zip(row, widths, strict=True))
    yield '  '.join(cells)
