"""Against the authors' adadamp in PyTorch: the small CNN, equal settings.

    python -m benchmarks.peer_adadamp --data_dir=DIRECTORY_OF_TFDS_SETS \\
        --python=ENVIRONMENT_WITH_TORCH/bin/python --adadamp=DIRECTORY

`--adadamp` holds `damping.py` of the package adadamp 0.1.0 (`pip download
--no-deps adadamp==0.1.0`, unpacked). Each runs in a process of its own, in
turn, on Fashion-MNIST (prepared; else made up, which is told): Nesterov
momentum 0.9, rate 0.05, batches from 64 to at most 1,024, equal examples.
Theirs draws rows with replacement through a `DataLoader`. AdaDamp computes the
loss on all examples before each update, ours as theirs; their seconds count,
their examples do not. Starting and compiling are left out. Writes a log
(`--log`) and prints a table: median (least–most) of the pairs.
"""

import argparse
import contextlib
import io
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import measure

ROOT = pathlib.Path(__file__).parent.parent
# Examples trained on; a full loss before each update costs as many again, each.
EXAMPLES = {'constant': 60_000, 'padadamp': 60_000, 'adadamp': 1_280}
SETTINGS = {'initial': 64, 'most': 1024, 'growth': 0.2, 'rate': 0.05}


def with_torch(given: argparse.Namespace) -> None:
  """In an environment with PyTorch: prints one JSON line."""
  import torch  # pyright: ignore[reportMissingImports]

  sys.path.insert(0, given.adadamp)
  import damping  # pyright: ignore[reportMissingImports]

  torch.manual_seed(0)
  arrays = np.load(given.arrays)
  images = torch.tensor(arrays['image']).permute(0, 3, 1, 2)
  images = images.float() / 255
  labels = torch.tensor(arrays['label']).long()
  model = torch.nn.Sequential(
    torch.nn.Conv2d(1, 16, 3, 2, 1),
    torch.nn.ReLU(),
    torch.nn.Conv2d(16, 32, 3, 2, 1),
    torch.nn.ReLU(),
    torch.nn.Flatten(),
    torch.nn.Linear(32 * 49, 128),
    torch.nn.ReLU(),
    torch.nn.Linear(128, 10),
  )
  optimizer = torch.optim.SGD(
    model.parameters(), SETTINGS['rate'], momentum=0.9, nesterov=True
  )

  def loss(outputs, target, reduction):
    return torch.nn.functional.cross_entropy(
      outputs, target, reduction=reduction
    )

  make, extra = {
    'constant': (damping.BaseDamper, {}),
    'padadamp': (damping.PadaDamp, {'batch_growth_rate': SETTINGS['growth']}),
    'adadamp': (damping.AdaDamp, {}),
  }[given.rule]

  damper = make(
    model,
    torch.utils.data.TensorDataset(images, labels),
    optimizer,
    loss=loss,
    initial_batch_size=SETTINGS['initial'],
    max_batch_size=SETTINGS['most'],
    **extra,
  )
  damper.step()  # what is slow the first time
  before = damper.meta['num_examples']
  begin = time.perf_counter()
  while damper.meta['num_examples'] - before < given.examples:
    damper.step()
  seconds = time.perf_counter() - begin
  print(
    json.dumps(
      {
        'examples_per_second': (damper.meta['num_examples'] - before) / seconds,
        'last_batch_size': int(damper.meta['batch_size']),
        'torch': torch.__version__,
        'threads': torch.get_num_threads(),
      }
    )
  )


def with_adabatch(rule: str, examples: int, splits: Any) -> dict[str, Any]:
  """The same by adabatch, its other keys the defaults."""
  from adabatch.train import train
  from benchmarks.steady_state import Case, make_config

  overrides = {
    'max_updates': None,
    'max_examples': examples,
    'controller.max_batch_size': SETTINGS['most'],
    'controller.every': 1,
    'controller.padadamp.rate': SETTINGS['growth'],
    'controller.adadamp.loss_source': 'full',
    'learning_rate.base': SETTINGS['rate'],
    'optimizer.name': 'nesterov',
  }
  if rule == 'constant':  # has no other size, and nothing to decide
    overrides['controller.max_batch_size'] = SETTINGS['initial']
    del overrides['controller.every']
  case = Case('fashion_mnist_cnn', '', SETTINGS['initial'], 1, rule, overrides)
  config = make_config(case, 1, None)
  silent = contextlib.redirect_stderr(io.StringIO())
  with tempfile.TemporaryDirectory() as workdir, silent:
    summary = train(config, workdir, splits=splits)
  seconds, stalled = summary['seconds'], summary['stall_seconds']
  return {
    'examples_per_second': summary['examples'] / seconds,
    'stalled': stalled / (seconds + stalled),
  }


def pairs(
  rule: str, given: argparse.Namespace, splits: Any, arrays: pathlib.Path
) -> dict[str, Any]:
  """The figures of one rule."""
  examples = EXAMPLES[rule] // (10 if given.quick else 1)

  def theirs() -> dict[str, Any]:
    command = [given.python, '-m', 'benchmarks.peer_adadamp']
    command += ['--rule', rule, '--examples', str(examples)]
    command += ['--adadamp', given.adadamp, '--arrays', str(arrays)]
    done = subprocess.run(
      command, check=True, capture_output=True, text=True, cwd=ROOT
    )
    return json.loads(done.stdout)

  found = measure.side_by_side(
    {
      'adabatch': lambda: with_adabatch(rule, examples, splits),
      'adadamp': theirs,
    },
    2 if given.quick else given.repeats,
  )
  rates = {
    name: [one['examples_per_second'] for one in runs]
    for name, runs in found.items()
  }
  return {
    'examples': examples,
    'examples_per_second': rates,
    'ratios': measure.ratios(rates['adabatch'], rates['adadamp']),
    'stalled': [one['stalled'] for one in found['adabatch']],
    'torch': found['adadamp'][0]['torch'],
    'threads': found['adadamp'][0]['threads'],
  }


def table(rows: dict[str, dict[str, Any]]) -> str:
  """The rules, as Markdown."""
  columns = ['rule', 'adabatch, examples/s', 'adadamp, examples/s', 'ratio']
  return measure.table(
    columns,
    [
      [
        rule,
        *(measure.spread(v, 0) for v in row['examples_per_second'].values()),
        measure.spread(row['ratios']),
      ]
      for rule, row in rows.items()
    ],
  )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--log', default=measure.DOCS / 'peer_adadamp.json')
  parser.add_argument('--python', help='of an environment with PyTorch')
  parser.add_argument('--adadamp', required=True, help='holds damping.py')
  parser.add_argument('--data_dir', help='where the TFDS sets lie')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--quick', action='store_true', help='short, made up')
  for name in ('--rule', '--examples', '--arrays'):  # of its own use
    kind = int if name == '--examples' else str
    parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
  given = parser.parse_args(argv)
  if given.rule is None and given.python is None:
    parser.error('give --python, of an environment with PyTorch')
  return given


def main(argv: Sequence[str] | None = None) -> int:
  given = parse(argv)
  if given.rule is not None:
    with_torch(given)
    return 0
  from benchmarks.steady_state import CASES, make_config, open_data

  config = make_config(CASES['cnn64'], 1, given.data_dir)
  rows = {}
  with tempfile.TemporaryDirectory() as directory:
    quick = 2048 if given.quick else None
    opened = open_data(config, directory, quick)
    arrays = pathlib.Path(directory) / 'arrays.npz'
    np.savez(arrays, **opened.parts.recipe.inputs.train.arrays)
    for rule in EXAMPLES:
      rows[rule] = pairs(rule, given, opened.splits, arrays)
      print(rule, measure.spread(rows[rule]['ratios']), flush=True)
      log = measure.record(quick=given.quick, data=opened.data, rows=rows)
      measure.write(given.log, log | {'adadamp': '0.1.0'})
  print(table(rows))
  return 0


if __name__ == '__main__':
  raise SystemExit(main())
