"""What the TPU's compiler expects of whole train steps; it needs no TPU.

    pip install -e '.[tpu]'
    python -m benchmarks.tpu_steps

Programs of ours, made by the Trainer from the files in `configs/`, and the step
of Flax's ImageNet example (`flax_imagenet_step.py`) on the same machine with as
many images. Times are cycles of XLA's own cost model by the clock, without what
chips exchange; of that kind and number are counted. Of branches the cheapest is
taken: GhostBatchNorm reads its input again where its guess of the mean was far
off, as in the first updates (`spared_ms` more, where all do). Ghost groups of
32 are finer statistics than Flax's, which are over all images of a device.

What was found is kept in the log (`--log`) under `--label`, so that an earlier
version of adabatch, on PYTHONPATH, gives figures of before:

    python -m benchmarks.tpu_steps --label=before

A row for another program: an entry of PROGRAMS, and one of `rows`. Minutes a
program the first time; what the compiler said is kept.
"""

import argparse
import json
import pathlib
import runpy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from adabatch.config import ConfigError
from adabatch.config.files import cache_directory
from adabatch.plan import topology
from adabatch.plan.compiler import Compiled, Compiler, TooLarge
from adabatch.plan.figures import programs
from adabatch.plan.outline import outline
from adabatch.train.build import build
from adabatch.train.tasks import make_task
from benchmarks import flax_imagenet_step, measure

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'
NOW, BEFORE = 'now', 'before'  # labels that the page of all benchmarks shows
MAIN = 'percent', 'number', 'ratio of cycles', 'ms'  # figures of a row
SMALL = 1e6  # bytes of an exchange that is not that of all gradients


class Program(NamedTuple):
  """What is compiled.

  Attributes:
    machine: a topology.
    images: on each chip.
    config: a file of `configs/`, with its variant; '' for Flax's example.
    overrides: of the config.
  """

  machine: str
  images: int
  config: str = ''
  overrides: dict[str, Any] = {}  # noqa: RUF012


RESNET50 = 'resnet50_imagenet.py:256'
PROGRAMS = {
  'resnet50': Program('v5e:1x1', 64, RESNET50),
  'resnet50_no_bn': Program(
    'v5e:1x1', 64, RESNET50, {'model.resnet.batch_norm_group': 0}
  ),
  'resnet50_16x16': Program('v5e:16x16', 1, RESNET50),
  'resnet20': Program('v5e:1x1', 128, 'resnet20_cifar10.py'),
  'flax': Program('v5e:1x1', 64),
  'resnet50_4x4': Program('v5e:4x4', 64, RESNET50),
  'flax_4x4': Program('v5e:4x4', 64),
}

Found = dict[str, Any]


def compiled(program: Program) -> Compiled:
  """By the compiler of its machine.

  Raises:
    ConfigError: if that is not installed, or the program does not fit.
  """
  machine = topology.find(program.machine)
  compiler = Compiler(machine, cache_directory('plans'))
  if not program.config:
    made = compiler(flax_imagenet_step.lower(machine.devices, program.images))
  else:
    made = _ours(program, machine, compiler)
  if isinstance(made, TooLarge):
    raise ConfigError(f'{program}: {made.why}')
  return made


def _ours(
  program: Program, machine: topology.Topology, compiler: Compiler
) -> Compiled | TooLarge:
  file, _, variant = program.config.partition(':')
  get_config = runpy.run_path(str(CONFIGS / file))['get_config']
  config = get_config(*([variant] if variant else []))
  size = program.images * len(machine.devices)
  config.update_from_flattened_dict(
    {
      'model.dtype': 'bfloat16',
      'controller.initial_batch_size': size,
      'controller.max_batch_size': size,
      'buckets.max_per_device': program.images,
      **program.overrides,
    }
  )
  splits = outline(config, make_task(config).labels)
  parts = build(config, machine.devices, splits)
  return programs(parts, machine, compiler).rungs[size]


def said(program: Program, made: Compiled) -> Found:
  """Plain numbers."""
  cost, clock = made.cost, topology.CHIPS[program.machine.split(':')[0]].clock
  assert clock is not None
  exchanges: dict[str, int] = {}
  for c in cost.collectives:
    size = 'small' if c.bytes < SMALL else 'large'
    members = 'all' if c.devices is None else c.devices
    name = f'{size} {c.kind}, {members} chips'
    exchanges[name] = exchanges.get(name, 0) + c.times
  return {
    'cycles': cost.cycles,
    'ms': 1e3 * cost.cycles / clock,
    'spared_ms': 1e3 * getattr(cost, 'spared', 0.0) / clock,  # newer than some
    'temporary_mb': made.memory['temp'] / 1e6,
    'exchanges': exchanges,
  }


def compared(
  now: dict[str, Found], before: dict[str, Found]
) -> Iterator[Found]:
  """`rows` of now, with the main figure of before beside each."""
  known = {row['name']: row for row in rows(before)}
  for row in rows(now):
    main = next(key for key in MAIN if key in row)
    first = {key: row[key] for key in ('name', main)}
    if earlier := known.get(row['name']):
      first['before'] = earlier[main]
    yield first | row


def rows(found: dict[str, Found]) -> Iterator[Found]:
  """Lines of the table, of programs that are there."""

  def there(*names: str) -> bool:
    return all(name in found for name in names)

  if there('resnet50'):
    ms = found['resnet50']['ms']
    yield {'name': 'ResNet-50, 64 images on a chip', 'ms': ms}
  if there('resnet50', 'resnet50_no_bn'):
    without = found['resnet50_no_bn']['ms']

    def share(name: str) -> float:
      return 100 * (1 - without / found[name]['ms'])

    row = {
      'name': 'GhostBatchNorm in a step of ResNet-50',
      'percent': share('resnet50'),
    }
    if there('flax'):
      row["of Flax's example"] = share('flax')
    yield _limit(row, share('resnet50'), 12.0, '%')
  if there('resnet50_16x16'):
    exchanges = found['resnet50_16x16']['exchanges']
    reduced = sum(
      times
      for name, times in exchanges.items()
      if name.startswith('small all-reduce')
    )
    yield _limit(
      {
        'name': 'small all-reduces of ResNet-50, 1 image on each of 256 chips',
        'number': reduced,
        'of all': _words(exchanges),
        'ms': found['resnet50_16x16']['ms'],
      },
      reduced,
      60,
      '',
    )
  if there('resnet20'):
    ms = found['resnet20']['ms']
    name = 'ResNet-20 on CIFAR-10, 128 images'
    yield _limit({'name': name, 'ms': ms}, ms, 2.6, 'ms')
  for more, where in (('', 'a chip'), ('_4x4', 'each of 16 chips')):
    if there('resnet50' + more, 'flax' + more):
      ours, theirs = (found[name + more]['cycles'] for name in OURS_AND_FLAX)
      row = {
        'name': f"ResNet-50 against Flax's example, 64 images on {where}",
        'ratio of cycles': ours / theirs,
        'theirs, ms': found['flax' + more]['ms'],
        'note': 'ours has statistics of 32 images, theirs of 64',
      }
      yield _limit(row, ours / theirs, 1.0, '')


OURS_AND_FLAX = 'resnet50', 'flax'


def _limit(row: Found, value: float, most: float, unit: str) -> Found:
  goal = f'≤ {most:g} {unit}'.rstrip()
  return row | {'goal': goal, 'met': 'yes' if value <= most else 'no'}


def _words(exchanges: dict[str, int]) -> str:
  return '; '.join(f'{n} {name}' for name, n in exchanges.items())


def tables(log: Found) -> Iterator[str]:
  """Of every label, in Markdown."""
  columns = ['step', 'found', 'goal', 'met']
  for label, found in log['found'].items():
    yield f'\n{label} ({_words_of(found["versions"])})\n'
    lines = []
    for row in rows(found['programs']):
      values = dict(row)
      ends = [str(values.pop(key, '')) for key in ('goal', 'met')]
      name = values.pop('name')
      cells = [
        f'{key} {value:.4g}' if isinstance(value, float) else f'{key} {value}'
        for key, value in values.items()
      ]
      lines.append([name, ', '.join(cells), *ends])
    yield measure.table(columns, lines)


def _words_of(versions: dict[str, str]) -> str:
  return ', '.join(f'{name} {version}' for name, version in versions.items())


def measured(
  log: Found,
  label: str,
  names: list[str],
  compile_: Callable[[Program], Compiled] = compiled,
) -> Iterator[Found]:
  """The log with one program more each time."""
  about = {
    'versions': measure.versions('jax', 'jaxlib', 'libtpu', 'flax', 'optax')
  }
  of_label = log.setdefault('found', {}).setdefault(label, {'programs': {}})
  of_label |= about
  for name in names:
    program = PROGRAMS[name]
    of_label['programs'][name] = said(program, compile_(program))
    shown = log['found'].get(NOW, of_label)['programs']
    earlier = log['found'].get(BEFORE, {'programs': {}})['programs']
    yield (
      log
      | about
      | {
        'hardware': 'no TPU, by its compiler',
        'rows': list(compared(shown, earlier)),
      }
    )


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--log', default=measure.DOCS / 'tpu_steps.json')
  parser.add_argument('--label', default=NOW, help='of what is compiled')
  parser.add_argument(
    '--only', default=','.join(PROGRAMS), help='the rest stay'
  )
  parser.add_argument('--from_log', action='store_true', help='no compiling')
  given = parser.parse_args(argv)
  names = given.only.split(',')
  if unknown := sorted(set(names) - set(PROGRAMS)):
    parser.error(f'--only: {unknown} are none of {", ".join(PROGRAMS)}')
  path = pathlib.Path(given.log)
  log = json.loads(path.read_text()) if path.exists() else {'found': {}}
  if not given.from_log:
    for new in measured(log, given.label, names):
      measure.write(path, new)
      log = new
  print('\n'.join(tables(log)))
  return 0


if __name__ == '__main__':
  raise SystemExit(main())
