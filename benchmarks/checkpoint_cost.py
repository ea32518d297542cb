"""What checksums add to a checkpoint, and what it takes to read it back.

    python -m benchmarks.checkpoint_cost

Saves states of several sizes with and without checksums, in turn, so that a
disturbance of the machine does not fall on one of them alone. Writes a log
(`--log`) and prints a table: medians of the seconds that training waits, until
all is on disk, of the checksums alone, and of reading back, which goes on in
the background; and what memory of the process each save takes for ever.
"""

import os
import pathlib
import statistics
import tempfile
import time
from unittest import mock

import jax
import numpy as np
from absl import app, flags, logging

from adabatch.devices.checksums import checksums
from adabatch.train import checkpoints as checkpoints_lib
from adabatch.train.checkpoints import Checkpoints
from benchmarks import measure

LOG = flags.DEFINE_string(
  'log',
  str(measure.DOCS / 'checkpoint_cost.json'),
  'Where the log is written.',
)
REPEATS = flags.DEFINE_integer('repeats', 11, 'Saves of each kind.')

MEGABYTES = 10, 100, 400
ARRAYS = 16
SAVES = 200  # after as many, to see what memory each takes for ever


def make_state(megabytes: int, seed: int) -> dict[str, jax.Array]:
  """As many bytes of noise, which does not compress."""
  noise = np.random.default_rng(seed)
  shape = megabytes * 10_000 // 4 // ARRAYS, 100
  return {
    str(i): jax.device_put(noise.standard_normal(shape, np.float32))
    for i in range(ARRAYS)
  }


def save(directory: str, state: dict[str, jax.Array]) -> dict[str, float]:
  """Seconds of one save into an empty directory."""
  begin = time.perf_counter()
  written = Checkpoints(pathlib.Path(directory) / 'checkpoints', 1)
  # Reading back waits for its turn, so that each has its own seconds.
  with mock.patch.object(written, '_confirm', return_value=None):
    written.save(1, state, {})
    waited = time.perf_counter()
    written.wait()
  on_disk = time.perf_counter()
  written.close()
  return {'waits': waited - begin, 'on_disk': on_disk - begin}


def costs(megabytes: int, seed: int) -> dict[str, float]:
  """One save without and one with checksums; and what else there is."""
  found = {}
  for kind in ('without', 'with')[:: 1 if seed % 2 else -1]:
    # Of its own, because JAX keeps a copy on the host once there is one.
    state = jax.block_until_ready(make_state(megabytes, seed))
    none = mock.patch.object(checkpoints_lib, 'checksums', return_value={})
    with tempfile.TemporaryDirectory() as directory:
      if kind == 'without':
        with none:
          seconds = save(directory, state)
      else:
        seconds = save(directory, state)
        begin = time.perf_counter()
        template = {k: np.empty(x.shape, x.dtype) for k, x in state.items()}
        reader = Checkpoints(pathlib.Path(directory) / 'checkpoints', None)
        reader.read(1, template)
        found['read_back'] = time.perf_counter() - begin
        reader.close()
    found |= {f'{name} {kind}': value for name, value in seconds.items()}
  state = jax.block_until_ready(make_state(megabytes, seed))
  begin = time.perf_counter()
  checksums(state)
  return found | {'checksums': time.perf_counter() - begin}


def kept_bytes(saves: int) -> float:
  """By which the memory of this process grows with each save."""
  state = {str(i): jax.device_put(np.ones((10, 10))) for i in range(8)}
  with tempfile.TemporaryDirectory() as directory:
    written = Checkpoints(pathlib.Path(directory) / 'checkpoints', 2)
    before = 0
    for update in range(1, 2 * saves + 1):
      written.save(update, state, {})
      if update == saves:  # what is slow, or large, the first time
        written.wait()
        before = resident_bytes()
    written.close()
  return (resident_bytes() - before) / saves


def resident_bytes() -> int:
  pages = pathlib.Path('/proc/self/statm').read_text().split()[1]
  return int(pages) * os.sysconf('SC_PAGE_SIZE')


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  costs(MEGABYTES[0], 0)  # what is slow the first time
  runs = {size: [] for size in MEGABYTES}
  for seed in range(REPEATS.value):
    for size, found in runs.items():
      found.append(costs(size, seed))
  seconds = {f'{size} MB': found for size, found in runs.items()}
  log = measure.record(kept_bytes_of_a_save=kept_bytes(SAVES), seconds=seconds)
  log['versions'] |= measure.versions('tensorstore')
  measure.write(LOG.value, log)
  names, rows = list(runs[MEGABYTES[0]][0]), []
  for size, found in runs.items():
    middle = {n: statistics.median(run[n] for run in found) for n in names}
    share = middle['checksums'] / middle['on_disk without']
    cells = [f'{middle[n]:.3f}' for n in names]
    rows.append([str(size), *cells, f'{share:.1%}'])
  print(measure.table(['MB', *names, 'of a save'], rows))
  print(f'kept of each save: {log["kept_bytes_of_a_save"] / 1e3:.1f} kB')


if __name__ == '__main__':
  app.run(main)
