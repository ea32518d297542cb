"""Random configs: each has to end in a run or be refused in one line.

    python -m benchmarks.fuzz --tries=3000 --seed=0 --log=docs/fuzz.json

Takes a config of configs/ in its small form, gives one to four keys values of
other kinds, sizes, names and combinations, and makes the parts of the run, in a
process with little memory. One in `--train_every` is trained for two updates,
with all its files; where a key of searches is changed, a search is begun.
A traceback, a process that dies, or one that takes more than `--seconds`, is a
failure; the log keeps each with the number of its try, which `--only` repeats.
"""

import collections
import contextlib
import importlib
import json
import math
import multiprocessing
import os
import pathlib
import random
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple

from absl import app, flags

from adabatch import config as config_lib
from adabatch.config import Config
from adabatch.config.smoke import shrink

ROOT = pathlib.Path(__file__).parent.parent
TRIES = flags.DEFINE_integer('tries', 3000, 'How many.')
FIRST = flags.DEFINE_integer(
  'first', 0, 'To begin with; the log, of those before, is gone on with.'
)
SEED = flags.DEFINE_integer('seed', 0, 'Of all of them.')
LOG = flags.DEFINE_string('log', None, 'Where the log is written, if at all.')
WORKERS = flags.DEFINE_integer('workers', 2, 'Processes.')
TRAIN_EVERY = flags.DEFINE_integer('train_every', 4, 'See above.')
SECONDS = flags.DEFINE_float(
  'seconds', 60.0, 'Of a processor that a try may take; five times that at all.'
)
ONLY = flags.DEFINE_list('only', [], 'Numbers of tries to repeat.')

MEMORY = 16 * 2**30  # bytes that a process may address
# Whose networks take long to compile come seldom.
QUICK = ('digits_mlp', 'digits_local_sgd', 'fc_mnist', 'nanogpt_shakespeare')

ODD = (
  *(None, True, False, 0, 1, -1, 2, 3, 7, 33, 10**5, 2**31, 2**40, 10**12),
  *(2**63, 2**70, 0.0, -1.0, 0.5, 1.5, -0.5, 1e-9, 1e-300, 1e9, 1e300),
  *(math.nan, math.inf, -math.inf, '', 'x', 'none', '2.5B', '-1', 'nan'),
  *((), (0,), (1,), (-1,), (1, 2), (3, 2, 1), ('x',), (1e300,), (math.nan,)),
  *((None,), [1, 2], ['x', 3], {}, {'a': 1}, b'x', 1j, ((1, 2), (3, 4))),
  (('learning_rate.base', 'log', 1e-3, 1.0),),
  (('model.mlp.hidden_sizes', 'integer', 1, 10),),
  (('controller.initial_batch_size', 'integer', 1, 10**9),),
)  # fmt: skip
# Names that keys know, of any key and of some.
WORDS = (
  'none linear sqrt adascale constant gradual epochs examples tokens updates '
  'run piecewise cosine polynomial wsd 1-sqrt full subset ema min mean median '
  'max up exact nearest shard_map pmap accuracy loss halton sobol tpe bytes '
  'sentencepiece resident streaming auto float32 bfloat16 digits mnist cifar10 '
  'imagenet2012 folder:. npz:. csv:x parquet: 0:4 0:8 train train[:10%] '
  'train[90%:] train[:0] validation test sgd adam squared absolute'
)
CHOICES = {
  'controller.name': 'constant adadamp padadamp geodamp radadamp adadamp_grad '
  'step_table ramp_up from_lr_schedule noise_scale norm_test cabs goodput '
  'probe',
  'controller.noise_norm': 'l2 normalisation adam l1',
  'controller.goodput.per': 'second device_second',
  'model.name': 'mlp lenet strided_cnn pooled_cnn simple_cnn cifar_resnet '
  'transformer lstm',
  'task.name': 'classification regression multi_label language_modelling',
  'optimizer.name': 'sgd momentum nesterov adam adamw lars lamb muon '
  'optax.lion optax.adamw optax.contrib.sophia optax.nothing',
  'sync.name': 'synchronous local_sgd post_local_sgd qsr slowmo diloco easgd '
  'sma',
  'learning_rate.decay.name': 'constant piecewise cosine linear polynomial wsd',
  'learning_rate.warmup.kind': 'none constant gradual',
  'learning_rate.scaling': 'none linear sqrt adascale',
}
OF_TEXT = 'transformer', 'lstm'


class Try(NamedTuple):
  """One config.

  Attributes:
    base: file in configs/ that it starts from.
    small: whether that is made small before the changes, not after.
    changes: values by their keys.
  """

  base: str
  small: bool
  changes: dict[str, Any]


def make_try(seed: int, number: int) -> Try:
  """The same for the same numbers."""
  rng = random.Random(f'{seed}/{number}')
  bases = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
  base = rng.choice(QUICK if rng.random() < 0.7 else bases)
  known = config_lib.flatten(config_lib.default())
  keys = rng.sample(sorted(known), rng.choice((1, 1, 1, 2, 2, 3, 4)))
  changes: dict[str, Any] = {}
  for key in keys:
    # Mostly where it is read.
    table, *name = key.split('.')[:-1] or [key]
    of = f'{table}.name'
    if table == 'learning_rate' and name == ['decay']:
      changes['learning_rate.decay.name'] = _name(
        rng, 'learning_rate.decay.name'
      )
    elif name and of in known and name[0] not in ('tune', 'args'):
      changes[of] = name[0]
    if table == 'sync':
      changes.setdefault('sync.name', _name(rng, 'sync.name'))
      changes.setdefault('sync.replicas', 2)
    if table == 'model' and name:
      base = 'nanogpt_shakespeare' if name[0] in OF_TEXT else 'digits_mlp'
  changes |= {key: _value(rng, key, known[key]) for key in keys}
  # Data are made up as large as images are said to be, which is for small ones.
  small = rng.random() < 0.7 and 'data.image_size' not in changes
  return Try(base, small, changes)


def _name(rng: random.Random, key: str) -> str:
  return rng.choice(CHOICES.get(key, WORDS).split())


def _value(rng: random.Random, key: str, default: Any) -> Any:
  """Mostly of the right kind, or near it."""
  if rng.random() < 0.15:
    return rng.choice(ODD)
  if isinstance(default, bool):
    return not default
  if isinstance(default, str):
    return _name(rng, key)
  if isinstance(default, int):
    return rng.choice(
      (0, 1, 2, 3, 5, 16, 64, default + 1, 10**4, 10**9, 10**15, -default)
    )
  if isinstance(default, float):
    powers = (1e-20, 1e-3, 0.5, 1.0, 2.0, 17.3, 1e4, 1e20)
    return rng.choice((1, -1, 1, 1)) * (default or 1.0) * rng.choice(powers)
  if isinstance(default, tuple):
    some = [_value(rng, key, entry) for entry in default]
    return tuple(some[: rng.randrange(len(some) + 2)])
  return rng.choice((1, 2, 3, 10, 0.5, 4.0, '10', '1K', (0.5,), (2, 9)))


def make_config(one: Try, data_dir: str) -> Config:
  """The config of a try."""
  module = importlib.import_module(f'configs.{one.base}')
  config = module.get_config()
  config.data.data_dir = data_dir  # where no set is: it is made up
  config = shrink(config) if one.small else config
  config.smoke = True
  with config.unlocked(), config.ignore_type():
    for key, value in one.changes.items():
      *tables, last = key.split('.')
      table = config
      for name in tables:
        table = table[name]
      table[last] = value
  return config


def attempt(one: Try, directory: str, *, trains: bool) -> str:
  """What comes of it: 'run', 'made', 'refused: ...' or 'failed: ...'."""
  # Where JAX is only in the processes that train.
  from adabatch.data import DatasetError
  from adabatch.search.job import search
  from adabatch.search.study_job import study
  from adabatch.train import build, job
  from adabatch.train.checkpoints import CheckpointError
  from adabatch.train.open_splits import TextCache
  from adabatch.train.workdir import Workdir

  workdir = pathlib.Path(directory) / 'run'
  try:
    config = make_config(one, directory)
    tables = {key.split('.')[0] for key in one.changes}
    if tables & {'search', 'study'}:
      stop = threading.Event()
      stop.set()  # before the first trial
      made = study if 'study' in tables else search
      made(config, workdir, stop=stop)
    elif trains:
      with made_small_already(job, one.small):
        job.train(config, workdir, last_update=2)
    else:
      build.check(config, 1)
      config = config if one.small else shrink(config)
      text = TextCache(Workdir(workdir).text_directory, writer=True)
      build.build(config, cache=text)
      return 'made'
  except (config_lib.ConfigError, DatasetError, CheckpointError) as error:
    line = str(error)
    kind = 'failed' if '\n' in line else 'refused'
    return f'{kind}: {line}'
  except BaseException as error:  # noqa: BLE001 what is looked for
    ours = [
      f'{pathlib.Path(frame.filename).relative_to(ROOT)}:{frame.name}'
      for frame in traceback.extract_tb(error.__traceback__)
      if frame.filename.startswith(str(ROOT))
    ]
    line = ' '.join(str(error).split())[:300]
    return (
      f'failed: {type(error).__name__}: {line} ({" < ".join(ours[:-5:-1])})'
    )
  return 'run'


@contextlib.contextmanager
def made_small_already(job: Any, small: bool):
  """So that changes of what is made small are tried, too."""
  before = job.shrink
  if small:
    job.shrink = lambda config: config
  try:
    yield
  finally:
    job.shrink = before


def work(seed: int, train_every: int, connection: Any) -> None:
  """A process: gets the numbers of tries, and gives what comes of them."""
  os.setsid()
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
  with open(os.devnull, 'w') as nothing:
    os.dup2(nothing.fileno(), 1)
    os.dup2(nothing.fileno(), 2)
  while True:
    number = connection.recv()
    with tempfile.TemporaryDirectory() as directory:
      one, trains = make_try(seed, number), number % train_every == 0
      connection.send(attempt(one, directory, trains=trains))


class Worker:
  """A process that is started anew where it died."""

  def __init__(self, *arguments: int):
    """`arguments` are those of `work`."""
    self._arguments = arguments
    self.start()

  def start(self) -> None:
    context = multiprocessing.get_context('spawn')
    self.connection, theirs = context.Pipe()
    self._process = context.Process(
      target=work, args=(*self._arguments, theirs)
    )
    self._process.start()
    theirs.close()

  def end(self) -> None:
    # With those that read for it; SIGTERM would only ask for a checkpoint.
    assert self._process.pid is not None
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    self._process.kill()
    self._process.join()

  def give(self, number: int) -> None:
    self._since = time.monotonic(), self._processor_seconds()
    self.connection.send(number)

  def _processor_seconds(self) -> float:
    stat = pathlib.Path(f'/proc/{self._process.pid}/stat').read_text()
    ticks = stat.rpartition(')')[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf('SC_CLK_TCK')

  def result(self, seconds: float) -> str | None:
    """Of the try that it is at; None: it is not done."""
    try:
      if self.connection.poll(0.02):
        return self.connection.recv()
    except (EOFError, ConnectionResetError):
      self._process.join()
      code = self._process.exitcode
      self.start()
      return f'failed: the process ended with {code}'
    # Others may be at work on the machine, or nobody on the try.
    worked = self._processor_seconds() - self._since[1]
    if worked < seconds and time.monotonic() - self._since[0] < 5 * seconds:
      return None
    self.end()
    self.start()
    return f'failed: not done after {seconds:g} s'


def run(
  numbers: list[int], workers: list[Worker], seconds: float
) -> Iterator[tuple[int, str]]:
  """Yields (number, what came of it)."""
  left = numbers[::-1]
  busy = {worker: left.pop() for worker in workers[: len(left)]}
  for worker, number in busy.items():
    worker.give(number)
  try:
    while busy:
      for worker, number in list(busy.items()):
        result = worker.result(seconds)
        if result is None:
          continue
        yield number, result
        if left:
          busy[worker] = left.pop()
          worker.give(busy[worker])
        else:
          del busy[worker]
  finally:
    for worker in workers:
      worker.end()


def main(argv: list[str]) -> None:
  del argv
  os.environ |= {
    'XLA_FLAGS': '--xla_backend_optimization_level=0',
    'TF_CPP_MIN_LOG_LEVEL': '3',
  }
  begin = time.monotonic()
  first, numbers = FIRST.value, list(range(FIRST.value, TRIES.value))
  numbers = [int(n) for n in ONLY.value] or numbers
  before = {}
  if first and LOG.value:
    before = json.loads(pathlib.Path(LOG.value).read_text())
  counts = collections.Counter(before.get('outcomes', {}))
  failures = before.get('failures', [])
  workers = [
    Worker(SEED.value, TRAIN_EVERY.value) for _ in range(WORKERS.value)
  ]
  results = run(numbers, workers, SECONDS.value)
  for done, (number, result) in enumerate(results, start=1):
    kind, _, reason = result.partition(': ')
    counts[kind] += 1
    one = make_try(SEED.value, number)
    if kind == 'failed' or ONLY.value:
      print(f'{number}: {one} {result}', flush=True)
    if kind == 'failed':
      changes = {key: repr(value) for key, value in one.changes.items()}
      failures.append(
        {'try': number, 'config': one.base, 'small': one.small}
        | {'changes': changes, 'error': reason}
      )
    if done % 100 == 0 or done == len(numbers):
      print(
        f'{first + done} tries, {dict(counts)}', file=sys.stderr, flush=True
      )
      log = {
        'seed': SEED.value,
        'tries': first + done,
        'train_every': TRAIN_EVERY.value,
        'seconds': before.get('seconds', 0) + round(time.monotonic() - begin),
        'outcomes': dict(counts),
        'failures': sorted(failures, key=lambda failure: failure['try']),
      }
      if LOG.value:
        pathlib.Path(LOG.value).write_text(json.dumps(log, indent=1) + '\n')
  sys.exit(1 if failures else 0)


if __name__ == '__main__':
  app.run(main)
