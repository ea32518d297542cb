"""What `probe.json` says, as the page and the terminal want it."""

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from adabatch.report.records import number

# Name of an estimate -> its colour in the style sheet.
CRITICAL = 'critical size'
ESTIMATES = {
  CRITICAL: 's2',
  'noise scale': 's3',
  'noise scale, Adam': 's4',
  'norm test': 's5',
}
NOISE = {'simple': 'noise scale', 'adam': 'noise scale, Adam'}


class Estimate(NamedTuple):
  """A batch size by one way of telling it.

  Attributes:
    name: one of `ESTIMATES`.
    value: in examples; NaN if it is not known.
    low: end of its interval; NaN if there is none.
    high: likewise; infinite if the interval is open, NaN if there is none.
    text: all three in words.
  """

  name: str
  value: float
  low: float
  high: float
  text: str

  @property
  def known(self) -> bool:
    """Whether it says anything that can be drawn."""
    return not (math.isnan(self.value) and math.isnan(self.low))


def estimates(point: Mapping[str, Any]) -> list[Estimate]:
  """The critical size of a checkpoint, and the cheap estimates beside it."""
  found = [critical_of(point)]
  found += [
    _cheap(NOISE[name], said)
    for name, said in point['noise'].items()
    if said is not None
  ]
  if point['norm_test'] is not None:
    found.append(_cheap('norm test', point['norm_test']))
  return found


def critical_of(point: Mapping[str, Any]) -> Estimate:
  """The critical size; where no batch was too large, at least so much.

  >>> said = {'batch_size': None, 'low': 40.0, 'high': None, 'tried': 64}
  >>> critical_of({'critical': said})[1:]
  (nan, 40.0, inf, 'none up to 64, for certain up to 40')
  """
  said = point['critical']
  value, low = number(said['batch_size']), number(said['low'])
  if math.isnan(low):  # not even the run's own batch size came through
    return Estimate(CRITICAL, math.nan, math.nan, math.nan, 'not known')
  high = math.inf if said['high'] is None else number(said['high'])
  tried = number(said['tried'])
  if math.isnan(value):
    text = f'none up to {size(tried)}'
    text += f', for certain up to {size(low)}' if low < tried else ''
  else:
    beyond = f'beyond {size(tried)}' if math.isinf(high) else size(high)
    text = f'{size(value)} ({size(low)} to {beyond})'
  return Estimate(CRITICAL, value, low, high, text)


def _cheap(name: str, said: Mapping[str, Any]) -> Estimate:
  """What gradients of the checkpoint alone say."""
  value, low = number(said['value']), number(said['low'])
  high = number(said['high'])
  if math.isnan(high) and not math.isnan(low):
    high = math.inf
  if value == 0:
    text = '0: no noise'
  elif math.isnan(low):
    text = 'not known' if math.isnan(value) else size(value)
  elif math.isnan(value):
    text = f'at least {size(low)}'
  else:
    ends = f'to {size(high)}' if math.isfinite(high) else 'or more'
    text = f'{size(value)} ({size(low)} {ends})'
  return Estimate(name, value, low, high, text)


def size(value: float) -> str:
  """A batch size that need not be whole, for a person.

  >>> size(55.74), size(1194.04), size(2.345), size(2.5e6), size(math.nan)
  ('56', '1,194', '2.3', '2.5M', '–')
  """
  if math.isnan(value):
    return '–'
  for unit, suffix in ((1e9, 'B'), (1e6, 'M')):
    if value >= unit:
      return f'{value / unit:.3g}{suffix}'
  return f'{value:,.0f}' if value >= 10 or value % 1 == 0 else f'{value:.2g}'


def with_error(value: float, half: float) -> str:
  """A difference with half its interval, to two digits of that.

  >>> with_error(0.01239, 0.0236), with_error(-1.5, 0.0), with_error(-0.3, 21.0)
  ('+0.012 ± 0.024', '-1.5 ± 0', '+0 ± 21')
  """
  if not half > 0:
    return f'{value:+.4g} ± 0'
  digits = max(0, 1 - math.floor(math.log10(half)))
  return f'{value:+z.{digits}f} ± {half:.{digits}f}'


def sentence(text: str) -> str:
  """A verdict with a capital and a full stop.

  >>> sentence('no batch is too large')
  'No batch is too large.'
  """
  return f'{text[:1].upper()}{text[1:]}.'


def steps_of(found: Mapping[str, Any]) -> list[tuple[int, int]]:
  """(from so many examples on, batch size) of the ramp; [] if there is none."""
  ramp = found.get('ramp') or {}
  return [(int(at), int(b)) for at, b in ramp.get('steps', ())]


def ramp_flags(ramp: Mapping[str, Any]) -> str:
  """What makes a run of this project follow a ramp, as it was probed."""
  return ' '.join(
    f'--config.{key}={shlex.quote(str(value))}'
    for key, value in ramp['keys'].items()
  )


def ramp_lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  """(for what, a line to copy) of the ramp."""
  ramp, steps = found['ramp'], steps_of(found)
  also = '' if ramp['words'] is None else f', and besides: {ramp["words"]}'
  yield f'here, after adabatch train CONFIG{also}', ramp_flags(ramp)
  rate = '' if ramp['rate'] is None else f'; {ramp["rate"]}'
  tokens = found.get('tokens_per_example')
  unit = 'tokens' if tokens else 'examples, as there are no tokens here'
  schedule = shlex.quote(ramp['megatron'])
  yield (
    f'Megatron-LM (starts in {unit}{rate})',
    f'--step-batch-size-schedule {schedule}',
  )
  if ramp['olmo'] is not None:
    line = f'BatchSizeSchedulerCallback({ramp["olmo"]})'
    yield f'OLMo-core (all in tokens{rate})', line
  named = [{'examples': at, 'batch_size': b} for at, b in steps]
  yield 'JSON', json.dumps(named)


def counted(count: int, what: str, plural: str = 's') -> str:
  """A number of things.

  >>> counted(1, 'checkpoint'), counted(1200, 'branch', 'es')
  ('1 checkpoint', '1,200 branches')
  """
  return f'{count:,} {what}{"" if count == 1 else plural}'


def describe_probe(found: Mapping[str, Any]) -> str:
  """A probe in a line for each checkpoint, between its cost and its ramp."""
  points: Sequence[Mapping[str, Any]] = found['points']
  cost = found['cost']
  lines = [
    f'{found["status"]}: {counted(len(points), "checkpoint")}, '
    f'{counted(cost["branches"], "branch", "es")} over '
    f'{cost["examples"]:,} examples, {cost["evaluated_examples"]:,} '
    f'evaluated, {cost["seconds"]:.1f} s; in {found["directory"]}'
  ]
  lines += [
    f'update {point["update"]:,}, batch size {point["batch_size"]:,}: '
    f'{point["verdict"]}'
    for point in points
  ]
  if len(steps_of(found)) > 1:
    lines.append(f'ramp: {ramp_flags(found["ramp"])}')
    if steps_of(found)[1][0] >= max(point['examples'] for point in points):
      lines.append(
        '  it grows from the last checkpoint on that was asked; an earlier '
        'one may allow it before: probe.at=all, of a run with more of them '
        '(checkpoint.every_updates, checkpoint.keep)'
      )
    if (words := found['ramp']['words']) is not None:
      lines.append(f'  and besides: {words}')
  return '\n'.join(lines)
