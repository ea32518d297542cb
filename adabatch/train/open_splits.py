"""Opens the splits that a config names, and decides where they lie."""

import copy
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from adabatch import data
from adabatch.config import Config, ConfigError
from adabatch.config.extras import needing
from adabatch.config.smoke import EXAMPLES, shorten
from adabatch.data.made_up import made_up_images, made_up_text
from adabatch.data.source import Shape

PLACEMENTS = ('auto', 'resident', 'streaming')


class TextCache(NamedTuple):
  """Where the tokens of a text set are kept.

  Attributes:
    directory: writer -> the directory, made if it is the writer who asks.
    writer: whether this process makes the tokens; the others wait for them.
    wait_seconds: how long; 0 where they are to be there.
  """

  directory: Callable[[bool], pathlib.Path]
  writer: bool
  wait_seconds: float = 86_400.0


@needing()
def open_splits(
  config: Config, cache: TextCache | None, labels: str
) -> tuple[Any, Any]:
  """Opens the training and the evaluation split of `config.data`.

  Args:
    config: the whole config.
    cache: for the tokens of a text set.
    labels: what the task predicts; see `models.tasks.LABELS`.

  Raises:
    ConfigError: for settings that do not fit the data.
    data.DatasetError: for a data set that is not there.
  """
  d = config.data
  text = labels == 'tokens'
  kind = next((k for k, is_one in KINDS.items() if is_one(d.name)), None)
  if text and kind:
    raise ConfigError(
      f"data.name='{d.name}' names {kind}, and task.name='{config.task.name}' "
      'needs text: set task.name and model.name, or another data.name'
    )
  if kind != 'a table':
    for key in ('input_key', 'label_key'):
      if d[key] is not None:
        raise ConfigError(
          f"data.{key}='{d[key]}' names a column, and data.name='{d.name}' has "
          'none: leave it out'
        )
  if config.smoke:
    config, splits = _open_small(config, labels)
    if splits is not None:
      return splits
  if text:
    return _open_text(config, cache)
  if kind == 'a table':
    return _open_tables(config, labels)
  return _open_images(config)


KINDS: dict[str, Callable[[str], bool]] = {
  'images': lambda name: name.startswith(data.FOLDER),
  'a table': data.is_table,
}


def lie_on_devices(
  config: Config, shapes: Sequence[tuple[int, dict[str, Any]]]
) -> bool:
  """Whether the splits are to lie on every device.

  Args:
    config: the whole config.
    shapes: of each split the number of examples, and their arrays by name; a
      side may be None where examples differ.
  """
  placement = config.data.placement
  if placement != 'auto':
    return placement == 'resident'
  if any(None in s.shape for _, entries in shapes for s in entries.values()):
    return False
  size = sum(
    count * math.prod(s.shape) * np.dtype(s.dtype).itemsize
    for count, entries in shapes
    for s in entries.values()
  )
  return size <= config.data.max_resident_bytes


def _open_small(
  config: Config, labels: str
) -> tuple[Config, tuple[data.Split, data.Split] | None]:
  """Of a smoke run: the config with shorter splits, or made-up splits.

  Made up is what the set is not there for.

  Raises:
    data.DatasetError: if the set is there and no good.
  """
  d = config.data
  if d.name in data.EMBEDDED:
    return config, None
  if data.is_table(d.name):
    # Cut, where that is done in memory.
    first, second = (
      data.Split({k: v[:EXAMPLES] for k, v in s.arrays.items()}, s.num_classes)
      if isinstance(s, data.Split)
      else s
      for s in _open_tables(config, labels)
    )
    return config, (first, second)
  text = labels == 'tokens'
  find = data.find_split if text else data.find_images
  try:
    counts = [
      find(d.name, split, d.data_dir).num_examples
      for split in (d.train_split, d.eval_split)
    ]
  except data.NotPrepared:
    if jax.process_index() == 0:
      print(
        f'smoke: {d.name} is not prepared, so data of its shape is made up',
        file=sys.stderr,
      )

    def make(seed: int) -> data.Split:
      if text:
        length = d.sequence_length
        return made_up_text(EXAMPLES, sequence_length=length, seed=seed)
      size = d.image_size
      return made_up_images(d.name, EXAMPLES, image_size=size, seed=seed)

    return config, (make(0), make(1))
  short = copy.deepcopy(config)
  short.data.train_split = shorten(d.train_split, counts[0])
  short.data.eval_split = shorten(d.eval_split, counts[1])
  return short, None


def _open_images(config: Config) -> tuple[Any, Any]:
  d = config.data
  names = d.train_split, d.eval_split
  if d.name in data.EMBEDDED:
    train, evaluation = (data.load(d.name, split) for split in names)
    return train, evaluation
  found = [
    data.find_images(d.name, split, d.data_dir, data.EMBEDDED)
    for split in names
  ]
  return _open_found(config, found)


def _open_found(config: Config, found: Sequence[Any]) -> tuple[Any, Any]:
  """Images on disk, in memory where they fit."""
  d = config.data
  ours, theirs = (split.classes for split in found)
  if ours and theirs:
    data.check_same_classes(d.name, ours, theirs, d.eval_split)
  # Of a folder both are measured, and one may have more sizes.
  shape = min((s.image_shape for s in found), key=lambda s: None not in s)
  shapes = {
    'image': Shape(shape, np.dtype(np.uint8)),
    'label': Shape((), np.dtype(np.int32)),
  }
  if lie_on_devices(config, [(s.num_examples, shapes) for s in found]):
    train, evaluation = (
      data.load(split.name, split.split, d.data_dir, split)._replace(
        source=split.fingerprint
      )
      for split in found
    )
    return train, evaluation
  one_size, size, resized = None not in shape, d.image_size, d.eval_resize
  train, evaluation = (
    data.open_images(
      split.name,
      split.split,
      d.data_dir,
      seed=config.seed,
      flip=d.flip,
      image_size=None if one_size else size,
      eval_resize=round(size * 8 / 7) if resized is None else resized,
      min_area=d.min_area,
      found=split,
    )
    for split in found
  )
  return train, evaluation


def _open_text(config: Config, cache: TextCache | None) -> tuple[Any, Any]:
  d = config.data
  if cache is None:
    raise ConfigError('a text set needs a directory for its tokens')
  for split in (d.train_split, d.eval_split):
    data.find_split(d.name, split, d.data_dir)  # before anything is written
  directory = cache.directory(cache.writer)
  rows = [
    data.open_text(
      d.name,
      split,
      d.data_dir,
      tokenizer=d.tokenizer,
      vocab_size=d.vocab_size,
      sequence_length=d.sequence_length,
      cache_dir=directory,
      train_split=d.train_split,
      writer=cache.writer,
      wait_seconds=cache.wait_seconds,
    )
    for split in (d.train_split, d.eval_split)
  ]
  return rows[0], rows[1]


def _open_tables(config: Config, labels: str) -> tuple[Any, Any]:
  """Numbers are read into memory; encoded images are a set of images."""
  d, splits = config.data, (config.data.train_split, config.data.eval_split)
  keys = {'input_key': d.input_key, 'label_key': d.label_key}
  if data.holds_images(d.name, d.data_dir, **keys):
    if labels != 'classes':
      raise ConfigError(
        f"data.name='{d.name}' holds encoded images, whose labels are classes: "
        f"task.name='{config.task.name}' predicts {labels}"
      )
    found = data.find_parquet_images(d.name, splits, d.data_dir, **keys)
    return _open_found(config, found)
  train, evaluation = data.load_tables(
    d.name, splits, d.data_dir, labels=labels, **keys
  )
  return train, evaluation
