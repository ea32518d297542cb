"""What benchmarks/gpu.py measures: parts that need nothing of one another.

Each is a function of whether to only try it (`smoke`: tiny sizes, for a CPU)
that gives rows of a figure in words, what was found in words, and the numbers.
Packages are imported where they are used, so that one that is missing is missed
by one part alone.
"""

import contextlib
import io
import statistics
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import measure, resnet50_peers

Figure = tuple[str, str, Any]

PEAK = 989e12  # FLOP/s of an H100, dense bfloat16
IMAGE = 24.3e9  # FLOP of a training step of ResNet-50, by image


class Part(NamedTuple):
  """One part.

  Attributes:
    meaning: in words.
    seconds: after which it is ended.
    run: smoke -> figures.
    needs: a package that may be missing.
  """

  meaning: str
  seconds: float
  run: Callable[[bool], list[Figure]]
  needs: str = 'jax'


def resnet50_size(smoke: bool) -> dict[str, int]:
  if smoke:
    return {'batch': 2, 'pixels': 32, 'steps': 1, 'stretches': 2}
  return {'batch': 256, 'pixels': 224, 'steps': 10, 'stretches': 8}


def images(what: str, rates: list[float]) -> list[Figure]:
  """Images a second, and the share of the peak that they are."""
  share = statistics.median(rates) * IMAGE / PEAK
  found = f'{measure.spread(rates, 0)} images/s; MFU {share:.1%} of 989 TFLOP/s'
  return [(f'ResNet-50 v1.5, bfloat16, {what}', found, rates)]


def resnet50_by_hand(smoke: bool) -> list[Figure]:
  found = resnet50_peers.with_jax(resnet50_size(smoke))
  return images('flax and optax by hand', found)


def resnet50_torch(smoke: bool) -> list[Figure]:
  found = resnet50_peers.with_torch(resnet50_size(smoke))
  return images('PyTorch (compiled, channels last, autocast)', found)


def resnet50(smoke: bool) -> list[Figure]:
  """Through `train`; images a second of each logged stretch."""
  from adabatch.data.made_up import made_up_images
  from adabatch.report import read_metrics
  from configs import resnet50_imagenet

  size, config = resnet50_size(smoke), resnet50_imagenet.get_config('256')
  batch, every = size['batch'], size['steps']
  config.update_from_flattened_dict(
    {
      'epochs': 1e6,
      # The first is slow, and the last looks shorter than it was.
      'max_updates': every * (size['stretches'] + 2),
      'model.dtype': 'bfloat16',
      'data.image_size': size['pixels'],
      'data.mean': (0.5, 0.5, 0.5),
      'data.std': (0.25, 0.25, 0.25),
      'controller.name': 'constant',
      'controller.initial_batch_size': batch,
      'controller.max_batch_size': batch,
      'buckets.max_per_device': batch,
      'learning_rate.base': 0.001,
      'log.every_updates': every,
      'eval.every_epochs': 1e6,
      'checkpoint.every_updates': 10**9,
    }
  )
  # Read at once, and laid on the device.
  train, evaluation = (
    made_up_images('imagenet2012', count, image_size=size['pixels'], seed=seed)
    for seed, count in enumerate((8 * batch, batch))
  )
  with tempfile.TemporaryDirectory() as workdir:
    quietly(config, workdir, (train, evaluation))
    lines, _ = read_metrics(workdir)
  seconds = np.diff([line['seconds'] for line in lines])[:-1]
  done = np.diff([line['examples'] for line in lines])[:-1]
  return images('adabatch', (done / seconds).tolist())


def quietly(config: Any, workdir: str, splits: Any) -> dict[str, Any]:
  """The summary of a run that says nothing.

  Raises:
    RuntimeError: if it did not end as it should.
  """
  from adabatch.train import train

  with contextlib.redirect_stderr(io.StringIO()):
    summary = train(config, workdir, splits=splits)
  if summary['status'] != 'completed':
    raise RuntimeError(f'the run ended as {summary["status"]}')
  return summary


STEADY = ('mlp64', 'cnn64', 'cnn1024', 'resnet8', 'shakespeare', 'cnn_padadamp')


def steady_state(smoke: bool) -> list[Figure]:
  from benchmarks.steady_state import CASES, measure_case

  found = []
  for name in STEADY[:1] if smoke else STEADY:
    case = CASES[name]
    made_up = None if case.config == 'digits_mlp' else 8192
    updates = 40 if smoke else min(case.updates, 1000)
    row = measure_case(
      case, 1 if smoke else 3, updates=updates, examples=made_up
    )
    figure = f'{case.network} at {case.batch_size}, {case.rule}, ratio by hand'
    found.append((figure, measure.spread(row['ratios']), row))
  return found


def switching(smoke: bool) -> list[Figure]:
  from benchmarks.switching import SIZES, figures

  sizes = SIZES[:2] if smoke else SIZES
  short: dict[str, Any] = {'every': 2, 'examples': 64} if smoke else {}
  row = figures(1, sizes=sizes, **short)
  return [
    (
      'first update of a new bucket over the median one',
      measure.spread(row['first_over_median']),
      row['first_over_median'],
    ),
    (
      f'training that waits for compilers, {len(sizes)} buckets',
      f'{100 * row["stalled"][0]:.1f} %',
      row['stalled'],
    ),
  ]


def populations(smoke: bool) -> list[Figure]:
  """Sixteen trials in one program against one after the other."""
  from adabatch.search.population import Mode
  from benchmarks import trials_per_hour as trials

  number, updates = (2, 20) if smoke else (trials.TRIALS, trials.UPDATES)
  population, parts = trials.make_population(64, updates)
  many = min(20, updates)
  ways = {
    'together': lambda: trials.run(
      population, parts, Mode(number, many), number, updates
    ),
    'alone': lambda: trials.run(
      population, parts, Mode(1, many), number, updates
    ),
  }
  seconds = measure.side_by_side(ways, 1 if smoke else 3)
  gain = measure.ratios(seconds['alone'], seconds['together'])
  figure = f'{number} trials in one program, as fast as alone times'
  return [(figure, measure.spread(gain), seconds)]


def learnable(examples: int, seed: int) -> Any:
  """Ten pictures of 28 x 28 and noise, so that a loss falls."""
  from adabatch.data import from_arrays

  pictures = np.random.default_rng(0).integers(0, 256, (10, 28, 28, 1))
  rng = np.random.default_rng(1 + seed)
  labels = rng.integers(0, 10, examples)
  noise = rng.integers(0, 256, (examples, 28, 28, 1), np.uint8)
  mixed = (pictures[labels] + 3 * noise.astype(np.uint16)) // 4
  image = mixed.astype(np.uint8)
  return from_arrays({'image': image, 'label': labels}, 10)


def adaptive(smoke: bool) -> list[Figure]:
  """Training seconds of the small CNN, AdaDamp against a constant batch."""
  from configs import fashion_mnist_cnn

  examples, epochs = (256, 1.0) if smoke else (60_000, 5.0)
  splits = learnable(examples, 0), learnable(256, 1)
  runs: dict[str, list[dict[str, Any]]] = {'adadamp': [], 'constant': []}

  def run(rule: str) -> float:
    config = fashion_mnist_cnn.get_config()
    config.epochs, config.controller.name = epochs, rule
    config.eval.every_epochs = 1e6
    if rule == 'constant':
      config.controller.max_batch_size = config.controller.initial_batch_size
    with tempfile.TemporaryDirectory() as workdir:
      runs[rule].append(quietly(config, workdir, splits))
    return runs[rule][-1]['seconds']

  ways: dict[str, Callable[[], float]] = {
    rule: lambda rule=rule: run(rule) for rule in runs
  }
  seconds = measure.side_by_side(ways, 1 if smoke else 2, warm=not smoke)
  found = []
  for rule, times in seconds.items():
    last = runs[rule][-1]
    accuracy = last['final'][next(iter(last['final']))]['accuracy']
    words = f'{measure.spread(times, 1)} s, {last["updates"]:,} updates'
    words += f', accuracy {accuracy:.1%}'
    figure = f'small CNN, {epochs:g} epochs of made-up images, {rule}'
    found.append((figure, words, times))
  return found


PARTS = {
  'resnet50': Part('ResNet-50 v1.5, adabatch', 90, resnet50),
  'resnet50_by_hand': Part(
    'ResNet-50 v1.5, flax and optax by hand', 60, resnet50_by_hand
  ),
  'resnet50_torch': Part(
    'ResNet-50 v1.5, PyTorch', 90, resnet50_torch, 'torch'
  ),
  'steady_state': Part('against a loop by hand', 100, steady_state),
  'switching': Part('switching the batch size', 60, switching),
  'populations': Part('populations', 40, populations),
  'adaptive': Part('small CNN, adaptive and constant', 40, adaptive),
}
