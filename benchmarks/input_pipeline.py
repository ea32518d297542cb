"""Decoded and augmented images a second, of this pipeline and of tf.data.

    python -m benchmarks.input_pipeline --data_dir=DIR

The same crops and flips of the same JPEGs, in batches of 256 as uint8: read by
`data.read_chunks` from the records on disk, or decoded by tf.data from encoded
images that it already holds in memory. TensorFlow (the extra `prepare`) decodes
with its default options, and with its fastest ones. Each measurement is a
process of its own; all are repeated in turn, so that a disturbance of the
machine does not fall on one of them alone. CPU time is that of all processes
and threads of the pipeline, without starting up. How long an evaluation waits
for its first examples is measured, too: the first one, which starts the
processes, and the next, a second after it ended.

Writes a log (`--log`) and prints tables: median (least–most). Ratios are pair
by pair, against the kind of tf.data that is faster here.
"""

import functools
import itertools
import json
import multiprocessing
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import app, flags, logging

from adabatch.data import jpeg, open_images, read_chunks, tfds_records
from adabatch.data.order import Order, take
from adabatch.data.streaming import CHUNK
from benchmarks import measure, page

LOG = flags.DEFINE_string(
  'log', str(measure.DOCS / 'input_pipeline.json'), 'Where the log is written.'
)
REPEATS = flags.DEFINE_integer('repeats', 5, 'Measurements of each kind.')
SECONDS = flags.DEFINE_float('seconds', 5.0, 'Length of each, at least.')
DATA_DIR = flags.DEFINE_string('data_dir', None, 'Default: as TFDS.')
NAME = flags.DEFINE_string('name', 'imagenet2012', 'The data set.')
KIND = flags.DEFINE_string('kind', None, 'Measure this alone and print it.')
THREADS = flags.DEFINE_integer('threads', 1, 'Workers or threads of KIND.')

BATCH_SIZE = 256
SIZE = 224
WARM_UP = 4  # batches
EVALUATIONS = 'evaluations'  # the kind that measures how long they wait
PACKAGES = (
  *('adabatch', 'simplejpeg', 'opencv-python-headless', 'grain'),
  *('tensorflow', 'tensorflow-cpu'),
)


def adabatch_batches(workers: int) -> Iterator[np.ndarray]:
  """Batches that worker processes read."""
  source = open_images(NAME.value, 'train', DATA_DIR.value, image_size=SIZE)
  with read_chunks(
    source, Order(source.num_examples, 0), 0, workers=workers
  ) as chunks:
    while True:
      batch = np.empty((BATCH_SIZE, SIZE, SIZE, 3), np.uint8)
      filled = 0
      while filled < BATCH_SIZE:
        images = next(chunks).arrays['image']
        batch[filled : filled + len(images)] = images
        filled += len(images)
      yield batch


def tf_batches(threads: int, fastest: bool) -> Iterator[np.ndarray]:
  """Batches of tf.data, with the crops that `read_chunks` would make."""
  import tensorflow  # the extra `prepare`

  tf: Any = tensorflow

  split = tfds_records.find_images(NAME.value, 'train', DATA_DIR.value)
  records = tfds_records.open_records(split.shards)
  encoded = [split.parse(records[i])[0] for i in range(len(records))]
  sizes = [jpeg.image_size(image) for image in encoded]
  # As many different crops as are decoded before they come again.
  count = 64 * BATCH_SIZE
  indices = take(Order(len(encoded), 0), 0, count)
  words = [jpeg.position_words(0, position) for position in range(count)]
  boxes = [
    jpeg.random_resized_box(*sizes[i], words=w)
    for i, w in zip(indices, words, strict=True)
  ]
  images = tf.constant(encoded)
  options: dict[str, Any] = (
    {'dct_method': 'INTEGER_FAST', 'fancy_upscaling': False} if fastest else {}
  )

  def example(index, box, flip):
    pixels = tf.image.decode_and_crop_jpeg(
      images[index], box, channels=3, **options
    )
    pixels = tf.image.resize(pixels, (SIZE, SIZE), method='bilinear')
    pixels = tf.cond(flip, lambda: pixels[:, ::-1], lambda: pixels)
    return tf.cast(tf.round(pixels), tf.uint8)

  parallel = tf.data.Options()
  parallel.threading.private_threadpool_size = threads
  parallel.threading.max_intra_op_parallelism = 1
  dataset = tf.data.Dataset.from_tensor_slices(
    (indices, np.array(boxes, np.int32), [jpeg.flips(w) for w in words])
  )
  dataset = (
    dataset.repeat()
    .map(example, num_parallel_calls=threads)
    .batch(BATCH_SIZE)
    .prefetch(2)
    .with_options(parallel)
  )
  return dataset.as_numpy_iterator()


KINDS = {
  'adabatch': adabatch_batches,
  'tf.data': lambda threads: tf_batches(threads, fastest=False),
  'tf.data, fastest decoding': lambda threads: tf_batches(threads, True),
}


def cpu_seconds() -> float:
  """Of this process and of those that it started, so far."""
  own = resource.getrusage(resource.RUSAGE_SELF)
  total = own.ru_utime + own.ru_stime
  for child in multiprocessing.active_children():
    stat = pathlib.Path(f'/proc/{child.pid}/stat').read_text()
    user, system = stat.rpartition(')')[2].split()[11:13]
    total += (int(user) + int(system)) / os.sysconf('SC_CLK_TCK')
  return total


def images_a_second(kind: str, threads: int) -> dict[str, float]:
  """Images a second, and for each second of one core's time."""
  batches = iter(KINDS[kind](threads))
  for _ in range(WARM_UP):
    next(batches)
  wall, cpu, images = time.perf_counter(), cpu_seconds(), 0
  while time.perf_counter() - wall < SECONDS.value:
    images += len(next(batches))
  return {
    'images_per_second': images / (time.perf_counter() - wall),
    'images_per_core_second': images / (cpu_seconds() - cpu),
  }


def first_examples(workers: int) -> dict[str, float]:
  """Seconds that an evaluation waits for its first chunk."""
  begin = time.perf_counter()
  source = open_images(NAME.value, 'train', DATA_DIR.value, image_size=SIZE)
  with read_chunks(source, None, 0, workers=workers, again=True) as chunks:
    next(chunks)
    first = time.perf_counter() - begin
    for _ in range(CHUNK, source.num_examples, CHUNK):
      next(chunks)
    time.sleep(1)  # training goes on
    begin = time.perf_counter()
    next(chunks)
    return {'first': first, 'next': time.perf_counter() - begin}


def in_process(kind: str, threads: int) -> dict[str, float]:
  """What a kind measures, in a fresh process."""
  command = [sys.executable, '-m', 'benchmarks.input_pipeline']
  command += [f'--kind={kind}', f'--threads={threads}']
  command += [f'--seconds={SECONDS.value}', f'--name={NAME.value}']
  if DATA_DIR.value:
    command.append(f'--data_dir={DATA_DIR.value}')
  environment = os.environ | {'TF_CPP_MIN_LOG_LEVEL': '3'}
  done = subprocess.run(
    command, env=environment, stdout=subprocess.PIPE, check=True
  )
  return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  if KIND.value:
    threads = THREADS.value
    evaluates = KIND.value == EVALUATIONS
    print(
      json.dumps(
        first_examples(threads)
        if evaluates
        else images_a_second(KIND.value, threads)
      )
    )
    return
  cores = len(os.sched_getaffinity(0))
  threads = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= cores]
  kinds = [*itertools.product(KINDS, threads), (EVALUATIONS, cores)]
  found = measure.side_by_side(
    {kind: functools.partial(in_process, *kind) for kind in kinds},
    REPEATS.value,
    warm=False,
  )
  columns = {
    kind: {key: [value[key] for value in values] for key in values[0]}
    for kind, values in found.items()
  }
  waits = columns.pop((EVALUATIONS, cores))
  log = measure.record(
    versions=measure.versions(*PACKAGES),
    measurements={
      f'{kind} x {n}': rates for (kind, n), rates in columns.items()
    },
    seconds_to_first_examples_of_an_evaluation=waits,
  )
  measure.write(LOG.value, log)
  head = ['pipeline', 'workers or threads', 'images/s', 'images/s and core']
  rows = [
    [kind, str(n), *(measure.spread(rate, 0) for rate in rates.values())]
    for (kind, n), rates in columns.items()
  ]
  print(measure.table(head, rows), end='\n\n')
  rows = [[row.figure, row.found, row.goal] for row in page.input_rows(log)]
  print(measure.table(['figure', 'found', 'goal'], rows))


if __name__ == '__main__':
  app.run(main)
