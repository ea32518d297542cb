"""A summary in words, for a terminal."""

from typing import Any

from adabatch.report.plan_table import describe_plan
from adabatch.report.probe_points import describe_probe
from adabatch.report.records import device_time


def describe(summary: dict[str, Any]) -> str:
  """A run in two or three lines; others in a line for each size or checkpoint.

  >>> print(describe({'status': 'completed', 'updates': 9, 'examples': 1000,
  ...                 'epochs': 2.5, 'seconds': 1.25, 'final': {}}))
  completed: 9 updates, 1,000 examples, 2.5 epochs, 1.2 s of training
  """
  if summary.get('job') == 'plan':
    return describe_plan(summary)
  if summary.get('job') == 'probe':
    return describe_probe(summary)
  if 'job' in summary:
    return _describe_search(summary)
  lines = [
    f'{summary["status"]}: {summary["updates"]:,} updates, '
    f'{summary["examples"]:,} examples, {summary["epochs"]:.1f} epochs, '
    f'{summary["seconds"]:.1f} s of training'
  ]
  if (used := device_time(summary)) is not None:
    lines[0] += (
      f' ({used[0]:.1f} device-seconds, {used[1]:.0%} of {summary["devices"]} '
      'devices always)'
    )
  if 'wanted_devices' in summary:
    lines.append(
      f'start it again with {summary["wanted_devices"]} devices; it goes on '
      'with fewer too'
    )
  for key in ('skipped_updates', 'rollbacks'):
    if summary.get(key):
      lines[0] += f', {key.replace("_", " ")}: {summary[key]}'
  if 'message' in summary:
    lines.append(summary['message'])
  for split, metrics in summary['final'].items():
    values = ', '.join(f'{k} {v:.4f}' for k, v in metrics.items())
    lines.append(f'{split}: {values}')
  return '\n'.join(lines)


def _describe_search(summary: dict[str, Any]) -> str:
  trials = summary['trials']
  blind = ''
  if trials['unmeasured']:
    blind = f' ({trials["unmeasured"]:,} ended before their first evaluation)'
  lines = [
    f'{summary["status"]}: {trials["complete"]:,} trials{blind} and '
    f'{trials["infeasible"]:,} that diverged, {summary["seconds"]:.0f} s'
  ]
  best = summary.get('best')
  if best:
    steps = '' if best['steps'] is None else f', goal after {best["steps"]:,}'
    value = f'{summary["metric"]} {best["value"]:.4f}'
    lines.append(f'best: trial {best["trial"]}, {value}{steps}')
    lines += [f'  {key} {v:.4g}' for key, v in best['parameters'].items()]
  for workload in summary.get('workloads', []):
    lines += [_describe_row(workload['optimizer'], r) for r in workload['rows']]
    fit = workload['fit']
    if fit is not None:
      size = fit['critical_batch_size']  # None if the data leave it open
      size = 'not bounded' if size is None else f'{size:,.0f}'
      lines.append(
        f'{workload["optimizer"]}: least updates {fit["min_steps"]:,.0f}, '
        f'critical batch size {size}'
      )
    if workload['lack_of_fit'] is not None:
      lines.append(f'lack of fit: {workload["lack_of_fit"]}')
  return '\n'.join(lines)


def _describe_row(optimizer: str, row: dict[str, Any]) -> str:
  values = ', '.join(f'{k} {v:.4g}' for k, v in row['parameters'].items())
  steps = row['steps']
  result = f'more than {row["longest"]:,}' if steps is None else f'{steps:,}'
  edges = ''.join(
    f'; near the {side} end of {key}' for key, side in row['edges']
  )
  return (
    f'{optimizer} {row["batch_size"]:>6}: {result} updates  {values}{edges}'
  )
