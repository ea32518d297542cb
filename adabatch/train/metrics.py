"""What a run leaves behind while it trains: lines, events, a summary.

`metrics.jsonl` is the record that other programs read; TensorBoard events hold
the same numbers. A resumed run goes on where its checkpoint was: lines of
updates after it are removed before they are written again.
"""

import json
import os
import pathlib
from typing import Any

from tensorboardX import SummaryWriter

from adabatch.config.files import finite
from adabatch.train.in_flight import Update


def train_record(
  done: Update,
  logged: tuple[int, float],
  num_examples: int,
  tokens_per_example: int | None = None,
  distances: dict[str, float] | None = None,
) -> dict[str, Any]:
  """The record of one update.

  Args:
    done: the update.
    logged: examples and seconds at the record before.
    num_examples: size of an epoch.
    tokens_per_example: of text.
    distances: of replicas at the last sync, by name.
  """
  examples, seconds = logged
  record = {
    'update': done.update,
    'examples': done.examples,
    'epoch': done.examples / num_examples,
    'seconds': done.seconds,
    'loss': done.report.loss,
    'batch_size': done.plan.batch_size,
    'nominal_batch_size': done.nominal,
    'damping': done.plan.damping,
    'learning_rate': done.report.learning_rate,
    'examples_per_second': (done.examples - examples)
    / max(done.seconds - seconds, 1e-9),
  }
  if tokens_per_example is not None:
    record['tokens'] = done.examples * tokens_per_example
    record['tokens_per_second'] = (
      record['examples_per_second'] * tokens_per_example
    )
  if done.noise is not None:
    # Of this update alone: noisy, and without meaning where |G|^2 <= 0.
    trace, norm = done.noise
    record['gradient_noise_scale'] = trace / norm if norm > 0 else None
  return record | (distances or {})


def _keep_lines_until(path: pathlib.Path, update: int) -> None:
  """Removes lines of later updates, and a line that was cut short."""
  if not path.exists():
    return
  temporary = path.with_name(path.name + '.tmp')
  with path.open() as old, temporary.open('w') as new:
    for line in old:
      if not line.endswith('\n'):
        break
      if json.loads(line)['update'] <= update:
        new.write(line)
  os.replace(temporary, path)


class MetricsWriter:
  """Appends records to `metrics.jsonl` and to TensorBoard event files."""

  def __init__(self, workdir: pathlib.Path, after_update: int):
    """Opens the files; records after `after_update` are dropped from them."""
    path = workdir / 'metrics.jsonl'
    _keep_lines_until(path, after_update)
    self._file = path.open('a', buffering=1)
    # An events file is named after the second it was opened in; the suffix
    # keeps a run that is resumed within it from overwriting the file.
    self._events = SummaryWriter(
      str(workdir / 'tensorboard'),
      purge_step=after_update + 1,
      filename_suffix=f'.{after_update}',
    )

  def write(self, kind: str, record: dict[str, Any]) -> None:
    """One record; `kind` is `train`, `eval` or `replicas`."""
    line = {'kind': kind, **finite(record)}
    self._file.write(json.dumps(line) + '\n')
    prefix = f'{kind}/{record["split"]}' if 'split' in record else kind
    for name, value in record.items():
      if isinstance(value, int | float) and name != 'update':
        self._events.add_scalar(f'{prefix}/{name}', value, record['update'])

  def close(self) -> None:
    self._file.close()
    self._events.close()
