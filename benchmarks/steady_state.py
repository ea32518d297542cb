"""Examples a second of adabatch against a loop written by hand (`by_hand.py`).

    python -m benchmarks.steady_state --data_dir=DIRECTORY_OF_TFDS_SETS

The same network, optimizer, data and batch sizes on the devices of this
machine. adabatch trains through `adabatch.train.train` with its default keys;
the loop follows an adaptive rule through the batch sizes that the rule chose.
Compiling is left out of both, and of the loop the first update too, which is
slow: a run is long enough for that not to count. What an adaptive run waited
for compilers that found their programs in the cache is told apart. Data that
are not prepared are made up. Writes a log (`--log`) and prints a table: median
(least–most) of the pairs.
"""

import argparse
import contextlib
import importlib
import io
import itertools
import json
import pathlib
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import logging

from adabatch import data
from adabatch.config import Config
from adabatch.data.made_up import made_up_images, made_up_text
from adabatch.report import read_metrics
from adabatch.train import train
from adabatch.train.build import Parts, build
from adabatch.train.open_splits import TextCache
from benchmarks import by_hand, measure

Sizes = list[tuple[int, int]]
MADE_UP = 45_000  # examples


class Case(NamedTuple):
  """One pair.

  Attributes:
    config: a file of `configs/`.
    network: in words.
    batch_size: the first, for a constant rule the only one.
    updates: of a run.
    rule: the controller's name.
    overrides: of the config.
  """

  config: str
  network: str
  batch_size: int
  updates: int
  rule: str = 'constant'
  overrides: dict[str, Any] = {}  # noqa: RUF012


MLP, CNN = ('digits_mlp', 'digits MLP'), ('fashion_mnist_cnn', 'small CNN')
FIRST, LARGEST = 64, 256  # batch sizes of adaptive runs


def padadamp(updates: int) -> dict[str, Any]:
  """Grows through four fifths of a run."""
  rate = (LARGEST - FIRST) / (0.8 * updates)
  return {
    'controller.padadamp.rate': rate,
    'controller.max_batch_size': LARGEST,
  }


ADADAMP = {
  'controller.adadamp.loss_source': 'ema',
  'controller.max_batch_size': LARGEST,
}
CASES = {
  'mlp16': Case(*MLP, 16, 8000),
  'mlp64': Case(*MLP, 64, 8000),
  'mlp256': Case(*MLP, 256, 4000),
  'cnn64': Case(*CNN, 64, 1200),
  'cnn256': Case(*CNN, 256, 450),
  'cnn1024': Case(*CNN, 1024, 120),
  'resnet8': Case('resnet8_cifar10', 'ResNet-8', 64, 100),
  'shakespeare': Case(
    'transformer_shakespeare', 'Shakespeare Transformer', 16, 120
  ),
  'mlp_padadamp': Case(*MLP, FIRST, 12_000, 'padadamp', padadamp(12_000)),
  'mlp_adadamp': Case(*MLP, FIRST, 12_000, 'adadamp', ADADAMP),
  'cnn_padadamp': Case(*CNN, FIRST, 1500, 'padadamp', padadamp(1500)),
  'cnn_adadamp': Case(*CNN, FIRST, 1500, 'adadamp', ADADAMP),
}


def make_config(case: Case, updates: int, data_dir: str | None) -> Config:
  """Of a run that neither evaluates nor saves before its end."""
  module = importlib.import_module(f'configs.{case.config}')
  config = module.get_config()
  config.update_from_flattened_dict(
    {
      'epochs': 1e6,
      'max_updates': updates,
      'controller.name': case.rule,
      'controller.initial_batch_size': case.batch_size,
      'controller.max_batch_size': case.batch_size,
      'learning_rate.scaling': 'none',
      'learning_rate.decay.name': 'constant',
      'eval.every_epochs': 1e6,
      'checkpoint.every_updates': 10**6,
      'target.value': None,
      'data.data_dir': data_dir,
      **case.overrides,
    }
  )
  return config


class Opened(NamedTuple):
  """What both are given.

  Attributes:
    parts: of the run.
    splits: for `train`; None: it opens the set itself.
    data: 'prepared' or 'made up'.
  """

  parts: Parts
  splits: tuple[data.Split, data.Split] | None
  data: str


def made_up(config: Config, examples: int) -> tuple[data.Split, data.Split]:
  """Both splits, shaped like the set."""
  d = config.data

  def make(seed: int) -> data.Split:
    if config.task.name == 'language_modelling':
      length = d.sequence_length
      return made_up_text(examples, sequence_length=length, seed=seed)
    size = d.image_size
    return made_up_images(d.name, examples, image_size=size, seed=seed)

  return make(0), make(1)


def open_data(config: Config, directory: str, examples: int | None) -> Opened:
  """The set where it is prepared, else one of its shape.

  Args:
    config: of the run.
    directory: for the tokens of a text.
    examples: how many to make up in any case; None: only where there is no set.
  """
  if examples is None:
    try:
      cache = TextCache(lambda writer: pathlib.Path(directory), True)
      parts = build(config, None, None, cache)
      train, evaluation = parts.recipe.inputs[:2]
      text = config.task.name == 'language_modelling'
      splits = None if text else (train, evaluation)
      return Opened(parts, splits, 'prepared')
    except data.NotPrepared as error:
      print(f'{config.data.name} is made up: {error}', flush=True)
  splits = made_up(config, examples or MADE_UP)
  return Opened(build(config, None, splits), splits, 'made up')


def make_loop(config: Config, parts: Parts) -> by_hand.Loop:
  """The loop by hand of the same network and data."""
  model, arrays = parts.recipe.model, parts.recipe.inputs.train.arrays
  if 'tokens' in arrays:
    loss = by_hand.text_loss(model)
  else:
    loss = by_hand.image_loss(model, config.data.flip)
  tx = by_hand.make_tx(config.optimizer, config.learning_rate.base)
  return by_hand.Loop(model, arrays, loss, tx)


def visited(lines: Sequence[dict[str, Any]]) -> Sizes:
  """Batch sizes of a run and updates at each, from its records."""
  return [
    (line['batch_size'], line['update'] - before['update'])
    for before, line in itertools.pairwise([{'update': 0}, *lines])
  ]


def ours(config: Config, splits: Any) -> tuple[float, float, Sizes]:
  """Examples a second, what compilers took besides, and batch sizes.

  The second is a share of both together: the clock of a run stands still while
  it waits for a compiler.
  """
  silent = contextlib.redirect_stderr(io.StringIO())
  with tempfile.TemporaryDirectory() as workdir:
    with silent:
      summary = train(config, workdir, splits=splits)
    sizes = visited(read_metrics(workdir)[0])
  if summary['status'] != 'completed':
    raise RuntimeError(f'the run ended as {summary["status"]}')
  seconds, stalled = summary['seconds'], summary['stall_seconds']
  return summary['examples'] / seconds, stalled / (seconds + stalled), sizes


def measure_case(
  case: Case,
  repeats: int,
  data_dir: str | None = None,
  *,
  updates: int | None = None,
  examples: int | None = None,
) -> dict[str, Any]:
  """The figures of one pair.

  Args:
    case: which.
    repeats: pairs.
    data_dir: where the TFDS sets lie.
    updates: of each run; None: the case's.
    examples: see `open_data`.
  """
  config = make_config(case, updates or case.updates, data_dir)
  with tempfile.TemporaryDirectory() as directory:
    opened = open_data(config, directory, examples)
    loop = make_loop(config, opened.parts)
    runs = [ours(config, opened.splits)]

    def with_adabatch() -> float:
      runs.append(ours(config, opened.splits))
      return runs[-1][0]

    def without() -> float:
      sizes = runs[-1][-1]
      return sum(b * n for b, n in sizes) / loop.seconds(sizes)

    ways = {'adabatch': with_adabatch, 'by_hand': without}
    # The run before compiled for adabatch; the loop compiles on its own time.
    rates = measure.side_by_side(ways, repeats, warm=False)
  return {
    'network': case.network,
    'data': opened.data,
    'rule': case.rule,
    'batch_sizes': sorted({b for b, _ in runs[-1][-1]}),
    'updates': config.max_updates,
    'examples_per_second': rates,
    'ratios': measure.ratios(rates['adabatch'], rates['by_hand']),
    'stalled': [stalled for _, stalled, _ in runs[-repeats:]],
  }


def table(rows: dict[str, dict[str, Any]]) -> str:
  """The pairs, as Markdown."""

  def line(row: dict[str, Any]) -> list[str]:
    rates = row['examples_per_second']
    least, *_, most = [*row['batch_sizes'], row['batch_sizes'][-1]]
    return [
      row['network'] + (' (made-up data)' if row['data'] == 'made up' else ''),
      row['rule'],
      f'{least}' if least == most else f'{least} to {most}',
      measure.spread(rates['adabatch'], 0),
      measure.spread(rates['by_hand'], 0),
      measure.spread(row['ratios']),
      f'{statistics.median(row["stalled"]):.1%}',
    ]

  columns = ['network', 'rule', 'batch size', 'adabatch, examples/s']
  columns += ['by hand, examples/s', 'ratio', 'stalled besides']
  return measure.table(columns, map(line, rows.values()))


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--log', default=measure.DOCS / 'steady_state.json')
  parser.add_argument('--data_dir', help='where the TFDS sets lie')
  parser.add_argument('--only', default=','.join(CASES), help='the rest stay')
  parser.add_argument('--repeats', type=int, default=11)
  parser.add_argument('--quick', action='store_true', help='short, made up')
  given = parser.parse_args(argv)
  logging.set_verbosity(logging.ERROR)
  if unknown := set(given.only.split(',')) - set(CASES):
    parser.error(f'unknown {", ".join(unknown)}: choose of {", ".join(CASES)}')
  short: dict[str, Any] = {}
  path = pathlib.Path(given.log)
  known = json.loads(path.read_text()) if path.exists() else {}
  stay = not given.quick and not known.get('quick', True)
  rows = known['rows'] if stay else {}
  for name in given.only.split(','):
    case, repeats = CASES[name], given.repeats
    if given.quick:
      repeats = 2
      short = {'updates': max(case.updates // 20, 20)}
      short['examples'] = None if case.config == 'digits_mlp' else 2048
    rows[name] = measure_case(case, repeats, given.data_dir, **short)
    print(name, measure.spread(rows[name]['ratios']), flush=True)
    measure.write(path, measure.record(quick=given.quick, rows=rows))
  print(table(rows))
  return 0


if __name__ == '__main__':
  raise SystemExit(main())
