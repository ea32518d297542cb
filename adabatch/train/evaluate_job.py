"""Evaluates the newest model of a run, on any split."""

import contextlib
import json
import os
import threading
from collections.abc import Sequence
from typing import Any

from adabatch import config as config_lib
from adabatch import data
from adabatch.config import Config, ConfigError
from adabatch.config.files import GrowingFile, finite
from adabatch.config.smoke import shrink
from adabatch.devices.mesh import is_first_process
from adabatch.devices.trainer import Restored, Trainer
from adabatch.train import agreement
from adabatch.train.build import build, check_values
from adabatch.train.load import read_checkpoint
from adabatch.train.open_splits import TextCache
from adabatch.train.workdir import Workdir


def evaluate(
  config: Config,
  workdir: str | os.PathLike[str],
  *,
  devices: Sequence[Any] | None = None,
  splits: tuple[data.Split, data.Split] | None = None,
  stop: threading.Event | None = None,
) -> dict[str, Any]:
  """Metrics of `data.eval_split`, which may be any split of any set.

  Adds a line to `evaluations.jsonl`; nothing else is changed.

  Args:
    config: that of the run, but for `data.*` and the keys that are free.
    workdir: of the run.
    devices: devices to use; None for all of all processes.
    splits: arrays of the caller's own, of which the second is evaluated.
    stop: not looked at.

  Returns:
    What `summary.json` would hold, with `final` of this split alone.

  Raises:
    ConfigError: for a directory without a run, or a config that is not its.
    data.DatasetError: for a data set that is not there.
    CheckpointError: if the checkpoint cannot be read.
    WriteError: if the line cannot be added.
  """
  del stop
  check_values(config)
  files, config = Workdir(workdir), config.copy_and_resolve_references()
  agreement.same_start(config, files.path)
  about = files.read_inputs()
  if about is None:
    raise ConfigError(f'{files.path} holds no run: give --workdir of one')
  if config.smoke:
    config = shrink(config)
  _check_config(files, config)
  if about['statistics'] is not None:  # those that were trained with
    config.data.mean, config.data.std = map(tuple, about['statistics'])
  first = is_first_process()
  with contextlib.ExitStack() as stack:
    stack.callback(files.unlock)  # which a text set has locked
    cache = TextCache(files.text_directory, first)
    parts = build(config, devices, splits, cache)
    agreement.same_data(parts.fingerprints)
    outputs = parts.recipe.inputs.train.num_classes
    if outputs != about['num_classes']:
      raise ConfigError(
        f'{files.path} has a network of {about["num_classes"]} outputs, and '
        f'these data ask for {outputs}: give data of the same classes'
      )
    saved = read_checkpoint(files, parts, 'last')
    replicas = saved.host['replicas']['replicas']
    restored = Restored(saved.state, replicas)
    trainer = Trainer(parts.recipe, restored, replicas=replicas)
    stack.callback(trainer.close)
    metrics = trainer.evaluate()
  at, split = saved.host['progress'], config.data.eval_split
  if first:
    line = {'data': config.data.name, 'split': split, 'update': saved.update}
    path = files.path / 'evaluations.jsonl'
    with contextlib.closing(GrowingFile(path)) as file:
      file.append(json.dumps(finite(line | metrics)).encode() + b'\n')
  return {
    'status': 'completed',
    'updates': saved.update,
    'examples': at['examples'],
    'epochs': at['examples'] / parts.extent.epoch,
    'seconds': at['seconds'],
    'final': {split: metrics},
  }


def _check_config(files: Workdir, config: Config) -> None:
  """Refuses a config of which something else than the data is another."""
  old, new = (
    config_lib.flatten(json.loads(json.dumps(c.to_dict())))
    for c in (files.read_config(), config)
  )
  keys = [
    key
    for key in config_lib.differences(old, new)
    if not key.startswith('data.')
  ]
  if keys:
    raise ConfigError(
      f'{files.path} was trained with {keys[0]}={old.get(keys[0])!r}, not '
      f'{new.get(keys[0])!r}: give its config, and other data alone'
    )
