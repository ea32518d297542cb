"""Makes probe_claims.md of probe_claims.json.

python docs/make_probe_claims.py
"""

import json
import pathlib
import statistics
from collections.abc import Iterator
from typing import Any

from scipy import stats

from adabatch.report import style
from adabatch.report.probe_figures import cost_figure

HERE = pathlib.Path(__file__).parent
HEAD = """# What probes said, and what following them bought

Made by `python docs/make_probe_claims.py` from
[probe_claims.json](probe_claims.json), which `python -m
benchmarks.probe_claims` writes. What is measured, and when it misleads, is in
[Probe](probe.md).
"""
TITLES = {
  'shakespeare': 'A Transformer of 4 layers on the characters of Shakespeare',
  'cnn': 'The small CNN on Fashion-MNIST',
  'fc': 'A fully connected network on Fashion-MNIST',
}


DRAWN = 'What each batch size costs at the last checkpoint, and the estimates'


def draw(name: str, probe: dict[str, Any]) -> None:
  """The last checkpoint."""
  epsilon = probe['run']['epsilon']
  cost_figure(probe['points'][-1], epsilon, style.LIGHT).savefig(
    HERE / f'probe_{name}.png',
    dpi=160,
    facecolor='white',
    bbox_inches='tight',
    metadata={'Software': None},
  )


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


def at_edge(arm: dict[str, Any]) -> bool:
  """Whether a rate beyond those tried may be better."""
  rates = [r['rate'] for r in arm['tuned']]
  return arm['rate'] in (min(rates), max(rates))


def of_study(found: dict[str, Any]) -> Iterator[str]:
  """The two ways of asking side by side."""
  s = found['study']
  yield (
    f'Asked as the [study]({s["name"]}.md) of the same network asks, which '
    'batch needs 20 % more examples than that of the run (each size with the '
    'best of the rates tried), the study says '
    f'{number(s["overhead_batch_size"])} '
    f'({between(*s["overhead_interval"])}) by its fit and '
    f'{number(s["overhead_of_rows"])} between its rows, over the whole run to '
    f'its goal after {number(s["examples_to_goal"])} examples. The probe:\n'
  )
  yield row(
    [
      'examples',
      'epsilon: what 20 % more examples buy',
      'size',
      'times the fit',
      'times the rows',
      'sizes whose best rate was the first or last tried',
    ]
  )
  yield '|---|---|---|---|---|---|'
  for one in found['points']:
    size = one['batch_size']
    point = f'none up to {one["tried"]:,}' if size is None else number(size)
    ratios = [
      '' if size is None or s[name] is None else f'{size / s[name]:.2f}'
      for name in ('overhead_batch_size', 'overhead_of_rows')
    ]
    yield row(
      [
        f'{one["examples"]:,}',
        f'{one["epsilon"]:.4f} ± {one["epsilon_error"]:.4f}',
        f'{point} ({between(one["low"], one["high"])})',
        *ratios,
        ', '.join(f'{size:,}' for size in one['at_an_end']),
      ]
    )
  yield ''


def over_small(arms: dict[str, Any], name: str) -> str:
  """Test loss less that of the small batch, seed by seed, with 95 %."""
  small = [r['loss'] for r in arms['small']['seeds']]
  more = [
    r['loss'] - other
    for r, other in zip(arms[name]['seeds'], small, strict=True)
  ]
  mean, count = statistics.mean(more), len(more)
  error = statistics.stdev(more) / count**0.5
  half = error * float(stats.t.ppf(0.975, count - 1))
  return f'{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})'


def of_arms(arms: dict[str, Any]) -> Iterator[str]:
  yield row(
    [
      'arm',
      'updates',
      'test loss',
      'less that of small, seed by seed (95 %)',
      'updates against small',
      'of the rate',
    ]
  )
  yield '|---|---|---|---|---|---|'
  updates = arms['small']['seeds'][0]['updates']
  for name, one in arms.items():
    losses = [r['loss'] for r in one['seeds']]
    spread = statistics.stdev(losses)
    yield row(
      [
        name,
        f'{one["seeds"][0]["updates"]:,}',
        f'{statistics.mean(losses):.4f} ± {spread:.4f}',
        '' if name == 'small' else over_small(arms, name),
        f'{one["seeds"][0]["updates"] / updates:.2f}',
        f'{one["rate"]:.2g}{" (the last tried)" * at_edge(one)}',
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
    f'{cost["seconds"] / 60:.1f} minutes ({cost["examples"]:,} examples, and '
    f'{cost["evaluated_examples"]:,} evaluated); epsilon '
    f'{probe["run"]["epsilon"]:g}.\n'
  )
  yield f'![{DRAWN}](probe_{name}.png)\n'
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
  if 'study' in found:
    yield from of_study(found['study'])
  if 'arms' in found:
    seeds = len(found['arms']['small']['seeds'])
    least = min(len(arm['tuned']) for arm in found['arms'].values())
    yield 'Followed, at equal examples and by the same rule of the rate, each'
    yield f'with the best of {least} or more factors of it; mean and standard'
    yield f'deviation of {seeds} other seeds:\n'
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
  for name, found in log['rows'].items():
    draw(name, found['probe'])
