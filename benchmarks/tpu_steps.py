"""Train steps by the compiler of TPUs, which needs none: its estimates.

    pip install -e '.[tpu]'
    python -m benchmarks.tpu_steps

For each row a whole train step is compiled for chips that are not there, and
the cycles are added up that XLA's own cost model gives each instruction, loops
as often as they go round. Nothing of it was measured on a TPU, and exchanges
have no estimate of their own. What the compiler said is kept in the user's
cache directory, so that a second time takes minutes. `--label before` keeps the
figures under another name in the log, which is how those of an older commit are
put beside. Writes a log (`--log`).
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from adabatch.config import Config
from adabatch.config.files import cache_directory
from adabatch.plan.compiler import Compiled, Compiler
from adabatch.plan.figures import programs
from adabatch.plan.outline import outline
from adabatch.plan.topology import find
from adabatch.train.build import build
from adabatch.train.tasks import make_task
from benchmarks import measure
from configs import resnet20_cifar10, resnet50_imagenet

ONE, SIXTEEN, POD = 'v5e:1x1', 'v5e:4x4', 'v5e:16x16'


def compiler_of(machine: Any) -> Compiler:
  return Compiler(machine, cache_directory('plans'))


def ours(config: Config, name: str, batch_size: int) -> Compiled:
  """The step of a constant batch size in bfloat16."""
  machine = find(name)
  config.update_from_flattened_dict(
    {
      'model.dtype': 'bfloat16',
      'controller.name': 'constant',
      'controller.initial_batch_size': batch_size,
      'controller.max_batch_size': batch_size,
    }
  )
  splits = outline(config, make_task(config).labels)
  parts = build(config, machine.devices, splits)
  made = programs(parts, machine, compiler_of(machine)).rungs[batch_size]
  assert isinstance(made, Compiled), made.why
  return made


def resnet50(chips: str, images: int, norm: bool = True) -> Compiled:
  config = resnet50_imagenet.get_config()
  if not norm:
    config.model.resnet.batch_norm_group = 0
  return ours(config, chips, images * len(find(chips).devices))


def flax_example(chips: str, images: int) -> Compiled:
  from benchmarks.flax_imagenet_step import lowered

  machine = find(chips)
  made = compiler_of(machine)(lowered(machine.devices, images))
  assert isinstance(made, Compiled), made.why
  return made


def resnet20() -> Compiled:
  return ours(resnet20_cifar10.get_config(), ONE, 128)


# name -> what compiles it
STEPS: dict[str, Callable[[], Compiled]] = {
  'ResNet-20, 128 images on the chip': resnet20,
  'ResNet-50, 64 images on a chip': lambda: resnet50(ONE, 64),
  'ResNet-50, 64 images on a chip, without BatchNorm': lambda: resnet50(
    ONE, 64, norm=False
  ),
  "flax's ImageNet example, 64 images on a chip": lambda: flax_example(ONE, 64),
  'ResNet-50, 64 images on each of 16 chips': lambda: resnet50(SIXTEEN, 64),
  "flax's ImageNet example, 64 images on each of 16 chips": lambda: (
    flax_example(SIXTEEN, 64)
  ),
  'ResNet-50, 1 image on each of 256 chips': lambda: resnet50(POD, 1),
}


def row(name: str, made: Compiled) -> dict[str, Any]:
  """What the table has of a program."""
  small = [c for c in made.cost.collectives if c.bytes < 1e6]
  kinds: dict[str, int] = {}
  for c in small:
    over = f'{c.kind} over {c.devices}'
    kinds[over] = kinds.get(over, 0) + c.times
  return {
    'name': name,
    'cycles': made.cost.cycles,
    'unknown': made.cost.unknown,
    'peak_bytes': made.memory['peak'],
    'small_exchanges': kinds,
    'large_exchanges': sum(
      c.times for c in made.cost.collectives if c.bytes >= 1e6
    ),
  }


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--log', default=measure.DOCS / 'tpu_steps.json')
  parser.add_argument('--label', default='now')
  parser.add_argument('--only', default='', help='names that contain it')
  given = parser.parse_args(argv)
  logging.set_verbosity(logging.ERROR)
  path = pathlib.Path(given.log)
  log = json.loads(path.read_text()) if path.exists() else {}
  clock = find(ONE).chip.clock
  for name, compiled in STEPS.items():
    if given.only not in name:
      continue
    found = row(name, compiled())
    found['milliseconds'] = 1e3 * found['cycles'] / clock
    log.setdefault(given.label, {})[name] = found
    print(
      f'{name}: {found["milliseconds"]:.2f} ms, '
      f'{found["peak_bytes"] / 1e9:.2f} GB, {found["small_exchanges"]}',
      flush=True,
    )
    versions = compiler_of(find(ONE)).versions
    measure.write(path, log | {'versions': versions})
  return 0


if __name__ == '__main__':
  raise SystemExit(main())
