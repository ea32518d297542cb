"""What `benchmarks.torture` attacks: small real runs, and what they leave.

Each is the command that a user types, on a few devices, as one process or as
two; and whatever a run leaves behind that must not depend on what happened to
it on its way, as plain values that can be compared.
"""

import io
import json
import os
import pathlib
import socket
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from PIL import Image

from adabatch.study import archive

ROOT = pathlib.Path(__file__).parent.parent
# A program that is compiled quickly is the same to all runs of one setting, and
# most of a short run is compiling.
QUICKLY = '--xla_backend_optimization_level=0'

OFTEN = {'log.every_updates': 1, 'checkpoint.every_updates': 20}
GROWING = OFTEN | {
  'controller.max_batch_size': 128,
  'controller.every': 10,
  'model.mlp.hidden_sizes': (32,),
}
CONSTANT = OFTEN | {'controller.name': 'constant'}
SMALL_CNN = {
  'model.name': 'strided_cnn',
  'model.strided_cnn.channels': (4,),
  'model.strided_cnn.hidden_size': 8,
}


class Job(NamedTuple):
  """One command.

  Attributes:
    config: its file.
    keys: that are overridden; DATA in a value is where the made-up data lie.
    job: that of `--job`.
    workers: how many such commands share the directory.
    data: 'images', 'text', or '' for what needs none.
  """

  config: str
  keys: dict[str, Any]
  job: str = 'train'
  workers: int = 1
  data: str = ''

  @property
  def checkpoints(self) -> bool:
    """Whether it is a run of its own, with lines and checkpoints."""
    return self.job == 'train'


JOBS = {
  'adadamp': Job('digits_mlp', GROWING | {'epochs': 20.0}),
  'local_sgd': Job('digits_local_sgd', CONSTANT | {'epochs': 10.0}),
  'images': Job(
    'digits_mlp',
    GROWING
    | SMALL_CNN
    | {
      'epochs': 30.0,
      'eval.every_epochs': 10.0,  # each starts its readers anew
      'data.name': 'folder:DATA/images',
      'data.eval_split': 'val',
      'data.placement': 'streaming',
      'data.image_size': 16,
      'data.workers': 2,
      'learning_rate.base': 0.01,
    },
    data='images',
  ),
  'text': Job(
    'nanogpt_shakespeare',
    CONSTANT
    | {
      'epochs': 4.0,
      'controller.name': 'adadamp',
      'controller.max_batch_size': 48,
      'controller.every': 10,
      'data.name': 'made_up',
      'data.data_dir': 'DATA',
      'data.eval_split': 'train[:10%]',
      'data.sequence_length': 16,
      'model.transformer.num_layers': 1,
      'model.transformer.model_dim': 16,
      'model.transformer.num_heads': 2,
      'model.transformer.hidden_dim': 32,
    },
    data='text',
  ),
  # The mode is given: how fast each is must not decide how trials are rounded.
  'search': Job(
    'study_digits_mlp',
    {
      'epochs': 8.0,
      'controller.initial_batch_size': 32,
      'controller.max_batch_size': 32,
      'optimizer.name': 'nesterov',
      'search.trials': 24,
      'search.members': 2,
      'search.updates_per_call': 4,
      'search.grace': 2.0,
    },
    job='search',
    workers=2,
  ),
}


class Setting(NamedTuple):
  """A job, the devices of each of its processes, and how many of these."""

  name: str
  devices: int
  processes: int = 1

  def __str__(self) -> str:
    processes = f', {self.processes} processes' if self.processes > 1 else ''
    devices = f'{self.devices} device{"s" * (self.devices > 1)}'
    return f'{self.name}, {devices}{processes}'


def settings(names: list[str]) -> list[Setting]:
  """Of these jobs: on 1, 2 and 4 devices, and as two processes."""
  return [
    Setting(name, devices, processes)
    for name in names
    for devices, processes in ((1, 1), (2, 1), (4, 1), (1, 2))
    # The workers of a search are processes that do not know one another.
    if processes == 1 or JOBS[name].checkpoints
  ]


def commands(
  setting: Setting, workdir: pathlib.Path, data: pathlib.Path
) -> list[list[str]]:
  """The commands to be started together."""
  job = JOBS[setting.name]
  command = [
    sys.executable,
    'launch.py',
    f'--config=configs/{job.config}.py',
    f'--job={job.job}',
    f'--workdir={workdir}',
    *(
      f'--config.{key}={value}'.replace('DATA', str(data))
      for key, value in job.keys.items()
    ),
  ]
  if setting.processes == 1:
    return [command] * job.workers
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  together = ['--distributed', f'--coordinator_address={address}']
  together.append(f'--num_processes={setting.processes}')
  return [
    [*command, *together, f'--process_id={i}'] for i in range(setting.processes)
  ]


def environment(setting: Setting, cache: pathlib.Path) -> dict[str, str]:
  """Of its processes; compiled programs are kept in `cache`."""
  devices = f'--xla_force_host_platform_device_count={setting.devices}'
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{devices} {QUICKLY}',
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    # JAX sizes its threads by the cores; with fewer than devices a collective
    # could wait for a participant that never gets one.
    'NPROC': '16',
  }


# Made-up data.


def make_images(directory: pathlib.Path, examples: int = 160) -> None:
  """JPEGs of several sizes in DIRECTORY/train and val, in two classes."""
  rng = np.random.default_rng(0)
  for i in range(examples):
    split = 'val' if i % 5 == 0 else 'train'
    label = i % 2
    path = directory / split / f'class_{label}' / f'{i:04}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (*rng.integers(20, 40, 2), 3)
    pixels = rng.integers(0, 128, size, np.uint8) + np.uint8(100 * label)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, 'JPEG')
    path.write_bytes(encoded.getvalue())


def make_text(directory: pathlib.Path, documents: int = 200) -> None:
  """A text set 'made_up' below DIRECTORY, of words of a few letters."""
  from tests.tfds_sets import write_set

  rng = np.random.default_rng(0)
  letters = np.frombuffer(b'abcdefgh   ', np.uint8)
  write_set(
    directory,
    [rng.choice(letters, 60).tobytes() for _ in range(documents)],
    name='made_up',
  )


def make_data(directory: pathlib.Path, kind: str) -> None:
  """Whatever a job of that kind of data reads, unless it is there."""
  if kind == 'images' and not (directory / 'images').exists():
    make_images(directory / 'images')
  if kind == 'text' and not (directory / 'made_up').exists():
    make_text(directory)


# What is left behind.


def records(directory: pathlib.Path) -> list[pathlib.Path]:
  """The whole records of a directory of checkpoints, from the oldest."""
  if not directory.is_dir():
    return []
  found = [path for path in directory.iterdir() if path.name.isdigit()]
  return sorted(found, key=lambda path: int(path.name))


def arrays(record: pathlib.Path) -> dict[str, np.ndarray]:
  """The whole train state of a record by name, as NumPy has it."""
  with ocp.PyTreeCheckpointer() as checkpointer:
    tree = checkpointer.metadata(record / 'state').item_metadata.tree
    plain = ocp.RestoreArgs(restore_type=np.ndarray)
    restored = checkpointer.restore(
      record / 'state', restore_args=jax.tree.map(lambda _: plain, tree)
    )
  leaves = jax.tree_util.tree_leaves_with_path(restored)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def without_clock(value: Any) -> Any:
  """Without what depends on when it was done, and on how often it started.

  >>> without_clock({'loss': 0.5, 'seconds': 3.1, 'at': {'stall_seconds': 1}})
  {'loss': 0.5, 'at': {}}
  """
  if not isinstance(value, dict):
    return value
  clock = ('second', 'compilations', 'buckets_visited')
  return {
    key: without_clock(item)
    for key, item in value.items()
    if not any(word in key for word in clock)
  }


def table(directory: pathlib.Path) -> list[Any]:
  """The trials of a search, without the clock."""
  return sorted(
    [
      found.optimizer,
      found.batch_size,
      trial.number,
      trial.status,
      trial.steps,
      sorted(trial.parameters.items()),
      [
        [name, values.tolist()]
        for name, values in sorted(trial.measurements.items())
        if name != 'seconds'
      ],
    ]
    for found in archive.read_tree(directory)
    for trial in found.trials
  )


def results(workdir: pathlib.Path) -> dict[str, Any]:
  """All that a finished run left and that can be told from another's."""
  found: dict[str, Any] = {}
  for name in ('checkpoints', 'best'):
    for record in records(workdir / name)[-1:]:
      found[f'{name}: update'] = record.name
      for leaf, values in arrays(record).items():
        found[f'{name}: {leaf}'] = values.tobytes()
  if (metrics := workdir / 'metrics.jsonl').exists():
    lines = map(json.loads, metrics.read_text().splitlines())
    for i, line in enumerate(map(without_clock, lines), 1):
      found[f'metrics.jsonl: line {i}'] = line
  summary = json.loads((workdir / 'summary.json').read_text())
  del summary['checksum']  # of the seconds too
  for key, value in without_clock(summary).items():
    found[f'summary.json: {key}'] = value
  if (workdir / 'trials').exists():
    for row in table(workdir / 'trials'):
      found[f'trials: {" ".join(map(str, row[:3]))}'] = row[3:]
  return found


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
  """The names under which two results differ.

  >>> differences({'a': 1, 'b': b'x'}, {'a': 1, 'b': b'y', 'c': 0})
  ['b', 'c']
  """
  missing = object()
  return [
    name
    for name in {**theirs, **ours}
    if ours.get(name, missing) != theirs.get(name, missing)
  ]
