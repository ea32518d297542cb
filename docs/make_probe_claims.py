"""Makes probe_claims.md of probe_claims.json.

python docs/make_probe_claims.py
"""

import json
import pathlib
import statistics
from collections.abc import Iterator
from typing import Any

HERE = pathlib.Path(__file__).parent
HEAD = """# What probes said, and what following them bought

Made by `python docs/make_probe_claims.py` from
[probe_claims.json](probe_claims.json), which `python -m
benchmarks.probe_claims` writes. What is measured, and when it misleads, is in
[probe.md](probe.md).
"""
TITLES = {
  'shakespeare': 'A Transformer of 4 layers on the characters of Shakespeare',
  'cnn': 'The small CNN on Fashion-MNIST',
}


def number(x: float | None) -> str:
  return 'open' if x is None else f'{x:,.0f}'


def between(low: float | None, high: float | None) -> str:
  return f'{number(low)} to {"beyond" if high is None else number(high)}'


def of_noise(found: dict[str, Any] | None) -> str:
  if found is None or found['value'] is None:
    return 'not known'
  return f'{number(found["value"])} ({between(found["low"], found["high"])})'


def row(cells: list[str]) -> str:
  return f'| {" | ".join(cells)} |'


def of_points(probe: dict[str, Any]) -> Iterator[str]:
  """A line for each checkpoint."""
  yield row(
    [
      'examples',
      'critical batch size',
      'noise scale',
      "noise scale, Adam's",
      'norm test',
    ]
  )
  yield '|---|---|---|---|---|'
  for one in probe['points']:
    c = one['critical']
    point = f'none up to {c["tried"]:,}'
    if c['batch_size'] is not None:
      point = number(c['batch_size'])
    yield row(
      [
        f'{one["examples"]:,}',
        f'{point} ({between(c["low"], c["high"])})',
        of_noise(one['noise'].get('simple')),
        of_noise(one['noise'].get('adam')),
        of_noise(one['norm_test']),
      ]
    )


def of_sizes(probe: dict[str, Any]) -> Iterator[str]:
  """Differences of each size, a column for each checkpoint."""
  points = probe['points']
  yield row(['batch size', *(f'after {one["examples"]:,}' for one in points)])
  yield '|---|' + '---|' * len(points)
  for rows in zip(*(one['table'] for one in points), strict=True):
    cells = [
      f'{r["difference"]:+.4f} ± {r["half_width"]:.4f}'
      if r['difference'] is not None
      else 'diverged'
      for r in rows
    ]
    yield row([f'{rows[0]["batch_size"]:,}', *cells])


def variance_ratios(probe: dict[str, Any]) -> list[float]:
  """Of paired over unpaired differences."""
  return [
    (r['error'] / r['unpaired_error']) ** 2
    for one in probe['points']
    for r in one['table']
    if r['batch_size'] != one['batch_size'] and r['unpaired_error']
  ]


def of_growth(found: dict[str, Any] | None) -> str:
  if found is None:
    return (
      'No power law is fitted: fewer than two checkpoints have a critical size.'
    )
  low, high = found['power_low'], found['power_high']
  says = 'it grows' if low > 0 else 'that it grows is not shown'
  return (
    f'The critical size goes as examples to the power {found["power"]:.2f} '
    f'({low:.2f} to {high:.2f}, {found["points"]} checkpoints): {says}.'
  )


def of_arms(arms: dict[str, Any]) -> Iterator[str]:
  yield row(['arm', 'updates', 'test loss', 'factor of the rate'])
  yield '|---|---|---|---|'
  for name, one in arms.items():
    losses = [r['loss'] for r in one['seeds']]
    spread = statistics.stdev(losses)
    yield row(
      [
        name,
        f'{one["seeds"][0]["updates"]:,}',
        f'{statistics.mean(losses):.4f} ± {spread:.4f}',
        f'{one["rate"]:g}',
      ]
    )


def section(name: str, found: dict[str, Any]) -> Iterator[str]:
  probe = found['probe']
  cost, ratios = probe['cost'], variance_ratios(probe)
  yield f'## {TITLES[name]}\n'
  yield (
    f'A run of {found["run"]["updates"]:,} updates in constant batches of '
    f'{probe["points"][0]["batch_size"]}; {cost["branches"]} branches of '
    f'{probe["points"][0]["branch_examples"]:,} examples, in '
    f'{found["wall_seconds"] / 60:.1f} minutes; epsilon '
    f'{probe["run"]["epsilon"]:g}.\n'
  )
  yield from of_points(probe)
  yield ''
  for one in probe['points']:
    yield f'- after {one["examples"]:,}: {one["verdict"]}'
  yield f'\n{of_growth(probe["growth"])}\n'
  yield 'Held-out loss less that of the batch size of the run, ± half of the'
  yield 'interval of 95 %:\n'
  yield from of_sizes(probe)
  yield (
    f'\nPaired differences have {statistics.median(ratios):.2f} times the '
    f'variance of unpaired ones (median; {min(ratios):.2f} to '
    f'{max(ratios):.2f}).\n'
  )
  yield f'The ramp: `{probe["ramp"]["step_table"]}` (examples:size).\n'
  if 'arms' in found:
    seeds = len(found['arms']['small']['seeds'])
    yield 'Followed, at equal examples, each with the best of five rates, mean'
    yield f'and standard deviation of {seeds} other seeds:\n'
    yield from of_arms(found['arms'])
  else:
    yield 'What following it buys has not been measured yet.'
  yield ''


def page(log: dict[str, Any]) -> str:
  lines = [HEAD]
  for name, found in log['rows'].items():
    lines += section(name, found)
  hardware, versions = log['hardware'], log['versions']
  words = [f'{k} {v}' for k, v in versions.items()]
  lines.append(f'*{hardware}; {", ".join(words)}*')
  return '\n'.join(lines) + '\n'


if __name__ == '__main__':
  log = json.loads((HERE / 'probe_claims.json').read_text())
  (HERE / 'probe_claims.md').write_text(page(log))
