"""Images a second of ResNet-50, by batch size, as a run trains it.

    python -m benchmarks.resnet50_images --log=docs/resnet50_images.json

Made-up images of 224 x 224 that lie on the device, bfloat16, GhostBatchNorm
over 32; `--max_per_device` at once, larger batches are accumulated. Compiling
is left out, and told. Prints a table: median (least-most) of the logged
stretches of ten updates; but the last, which looks shorter than it was, as the
lines before it were logged when calls after them were under way.
"""

import json
import pathlib
import tempfile

import numpy as np
from absl import app, flags, logging

from adabatch.report import read_metrics
from adabatch.train import train
from benchmarks import measure
from configs import resnet50_imagenet

LOG = flags.DEFINE_string('log', None, 'Where the log is written.')
BATCH_SIZES = flags.DEFINE_list('batch_sizes', ['32', '256', '1024'], 'Which.')
MAX_PER_DEVICE = flags.DEFINE_integer('max_per_device', 256, 'At once.')
UPDATES = flags.DEFINE_integer('updates', 100, 'Of each batch size.')
IMAGES = flags.DEFINE_integer('images', 2048, 'That lie on the device.')
IMAGE_SIZE = flags.DEFINE_integer('image_size', 224, 'Pixels of a side.')

EVERY = 10  # updates in a stretch


def make_images(path: pathlib.Path) -> None:
  rng = np.random.default_rng(0)
  shape = (IMAGES.value, IMAGE_SIZE.value, IMAGE_SIZE.value, 3)
  images = rng.integers(0, 256, shape, dtype=np.uint8)
  np.savez(path, image=images, label=np.arange(len(images)) % 1000)


def train_at(
  batch_size: int, data: pathlib.Path, workdir: pathlib.Path
) -> dict:
  """Seconds to compile, and images a second of each stretch but the first."""
  config = resnet50_imagenet.get_config('256')
  config.update_from_flattened_dict(
    {
      'epochs': 1e6,
      'max_updates': UPDATES.value,
      'data.name': f'npz:{data}',
      'data.train_split': 'train[:90%]',
      'data.eval_split': 'train[90%:]',
      'model.dtype': 'bfloat16',
      'controller.initial_batch_size': batch_size,
      'controller.max_batch_size': batch_size,
      'buckets.max_per_device': MAX_PER_DEVICE.value,
      'learning_rate.base': 0.001,
      'log.every_updates': EVERY,
      'eval.every_epochs': 1e6,
      'checkpoint.every_updates': 10**9,
      'compilation_cache': False,
    }
  )
  summary = train(config, workdir)
  lines, _ = read_metrics(workdir)
  seconds = np.diff([line['seconds'] for line in lines])
  images = np.diff([line['examples'] for line in lines])
  if summary['status'] != 'completed':
    raise SystemExit(f'batch size {batch_size}: {summary}')
  return {
    'batch_size': batch_size,
    'compile_seconds': summary['compile_seconds'],
    'images_per_second': (images / seconds).tolist(),
  }


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  rows = []
  with tempfile.TemporaryDirectory() as directory:
    home = pathlib.Path(directory)
    make_images(home / 'images.npz')
    for size in map(int, BATCH_SIZES.value):
      rows.append(train_at(size, home / 'images.npz', home / str(size)))
      print(json.dumps(rows[-1]), flush=True)
  if LOG.value:
    figures = measure.record(max_per_device=MAX_PER_DEVICE.value, rows=rows)
    measure.write(LOG.value, figures)
  cells = [
    [
      str(row['batch_size']),
      measure.spread(row['images_per_second'][:-1], 0),
      f'{row["compile_seconds"]:.0f}',
    ]
    for row in rows
  ]
  columns = ['batch size', 'images a second', 'seconds to compile']
  print(measure.table(columns, cells))


if __name__ == '__main__':
  app.run(main)
