"""A plan in words, for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adabatch.report.layout import duration, quantity
from adabatch.report.plan_scaling import scaling_lines, scaling_tables


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


def machine_table(
  plan: Mapping[str, Any],
) -> tuple[list[str], list[list[str]]] | None:
  """Columns and rows of what was compiled for a topology, if it was."""
  if 'topology' not in plan:
    return None
  columns = [
    'batch size',
    'memory a chip',
    'of',
    'step (estimate)',
    'all-reduce (model)',
    'FLOPs bound',
    'HBM bound',
    'examples/s',
    'FLOP use',
    'collectives',
  ]
  rows = []
  for rung in plan['ladder']:
    if 'memory' not in rung:
      fits = rung.get('fits_with')
      hint = 'nothing fits' if fits is None else f'{fits} at once fit'
      rows.append(
        [quantity(rung['batch_size']), f'too large: {hint}', *['–'] * 8]
      )
      continue
    use = rung.get('flops_utilisation')
    rows.append(
      [
        quantity(rung['batch_size']),
        in_bytes(rung['memory']['peak'] + rung['next_batch_bytes']),
        in_bytes(rung['memory_limit']),
        duration(rung['compiler_seconds']),
        duration(rung['all_reduce_seconds']),
        duration(rung.get('flops_bound_seconds')),
        duration(rung['bandwidth_bound_seconds']),
        quantity(rung.get('examples_per_second')),
        '–' if use is None else f'{use:.1%}',
        _collectives(rung['collectives']),
      ]
    )
  return columns, rows


def _collectives(collectives: Sequence[Mapping[str, Any]]) -> str:
  number = sum(c['times'] for c in collectives)
  size = sum(c['times'] * c['bytes'] for c in collectives)
  return f'{number:,} of {in_bytes(size)}'


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
  ) + (
    f'; by the estimate {duration(spent["seconds"])}, '
    f'{spent["chip_hours"]:,.3g} chip-hours'
    if 'seconds' in spent
    else ''
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
  if (machine := machine_table(plan)) is not None:
    lines += [*_aligned([machine[0], *machine[1]]), '']
  lines += [f'{name}: {text}' for name, text in lines_of_totals(plan)]
  lines.append(
    f'disk: {in_bytes(disk["bytes"])}, of which each checkpoint '
    f'{in_bytes(disk["checkpoint_bytes"])}'
  )
  for title, columns, rows in scaling_tables(plan):
    lines += ['', title, *_aligned([columns, *rows])]
  lines += scaling_lines(plan)
  return '\n'.join([*lines, *plan['remarks']])


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    cells = (text.rjust(width) for text, width in zip(row, widths, strict=True))
    yield '  '.join(cells)
