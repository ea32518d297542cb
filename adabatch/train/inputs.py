"""The data of a run: which splits, where they lie, how a batch is made."""

import copy
import math
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from adabatch import data
from adabatch.config import Config, ConfigError
from adabatch.config.smoke import EXAMPLES, shorten
from adabatch.data.made_up import made_up_images, made_up_text
from adabatch.data.source import Inputs
from adabatch.train.skipped import limits

PLACEMENTS = ('auto', 'resident', 'streaming')

# Examples from which a stream's mean and standard deviation are measured.
STATISTICS_EXAMPLES = 1024


class TextCache(NamedTuple):
  """Where the tokens of a text set are kept.

  Attributes:
    directory: writer -> the directory, made if it is the writer who asks.
    writer: whether this process makes the tokens; the others wait for them.
  """

  directory: Callable[[bool], pathlib.Path]
  writer: bool


def open_inputs(
  config: Config,
  splits: tuple[Any, Any] | None = None,
  cache: TextCache | None = None,
) -> Inputs:
  """Opens what `config.data` names.

  Args:
    config: the whole config.
    splits: training and evaluation split of the caller's own; None to open
      what the config names.
    cache: for the tokens of a text set.

  Raises:
    ConfigError: for settings that do not fit the data.
    data.DatasetError: for a data set that is not there.
  """
  d = config.data
  if d.placement not in PLACEMENTS:
    raise ConfigError(
      f'unknown data.placement {d.placement!r}: choose one of '
      f'{", ".join(PLACEMENTS)}'
    )
  text = config.task.name == 'language_modelling'
  if text and splits is None and d.name.startswith(data.FOLDER):
    raise ConfigError(
      f"data.name='{d.name}' names images, and task.name='language_modelling' "
      'needs text: set task.name and model.name, or another data.name'
    )
  if config.smoke and splits is None:
    config, splits = _open_small(config)
    d = config.data
  if splits is None:
    splits = _open_text(config, cache) if text else _open_images(config)
  return _text_inputs(config, splits) if text else _image_inputs(config, splits)


def _is_resident(splits: tuple[Any, Any]) -> bool:
  return all(isinstance(split, data.Split) for split in splits)


def _text_inputs(config: Config, splits: tuple[Any, Any]) -> Inputs:
  d, train, skipped = config.data, splits[0], ((), ())
  end_of_document = None
  if isinstance(train, data.TokenRows):
    if d.sequence_length >= train.tokens:
      raise ConfigError(
        f'data.sequence_length={d.sequence_length} must be below the '
        f'{train.tokens} tokens of {d.train_split}'
      )
    end_of_document = train.end_of_document
    skipped = tuple(
      _skipped_documents(config, name, split)
      for name, split in zip((d.train_split, d.eval_split), splits, strict=True)
    )
    if _lies_on_devices(config, splits):
      splits = splits[0].resident(), splits[1].resident()
  _check_classes(config, splits)
  train, evaluation = splits
  _check_text(train, evaluation)
  return Inputs(
    train,
    evaluation,
    streaming=not _is_resident(splits) or d.placement == 'streaming',
    workers=0,  # tokens only have to be copied
    load_train=lambda seed: gather,
    load=gather,
    tokens_per_example=train.shapes['tokens'].shape[0] - 1,
    end_of_document=end_of_document,
    skipped_train=skipped[0],
    skipped_evaluation=skipped[1],
  )


def _image_inputs(config: Config, splits: tuple[Any, Any]) -> Inputs:
  d, (train, evaluation) = config.data, splits
  _check_classes(config, splits)
  _check_images(train, evaluation, d.crop_padding)
  statistics = _statistics(config, train)
  # A stream of squares cut at random is augmented where it is decoded.
  cropped = isinstance(train, data.ImageRecords) and train.cropped
  if cropped and d.crop_padding:
    raise ConfigError(
      f'data.crop_padding={d.crop_padding} is for images of one size, those of '
      f"'{d.name}' are cropped by data.image_size and data.min_area: set it to "
      '0'
    )
  streaming = not _is_resident(splits) or d.placement == 'streaming'
  return Inputs(
    train,
    evaluation,
    streaming,
    workers=_workers(d.workers) if streaming else 0,
    load_train=lambda seed: make_load(
      statistics,
      seed=seed,
      padding=d.crop_padding,
      flip=d.flip and not cropped,
    ),
    load=make_load(statistics),
  )


def _open_small(
  config: Config,
) -> tuple[Config, tuple[data.Split, data.Split] | None]:
  """Of a smoke run: the config with shorter splits, or made-up splits.

  Made up is what the set is not there for.

  Raises:
    data.DatasetError: if the set is there and no good.
  """
  d = config.data
  if d.name in data.EMBEDDED:
    return config, None
  text = config.task.name == 'language_modelling'
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
  ours, theirs = (split.classes for split in found)
  if ours and theirs:
    data.check_same_classes(d.name, ours, theirs, d.eval_split)
  # Of a folder both are measured, and one may have more sizes.
  shape = min((s.image_shape for s in found), key=lambda s: None not in s)
  size = math.prod(side or 0 for side in shape)
  examples = sum(split.num_examples for split in found)
  fits = 0 < size * examples <= d.max_resident_bytes
  if d.placement == 'resident' or (d.placement == 'auto' and fits):
    train, evaluation = (
      data.load(split.name, split.split, d.data_dir, split) for split in found
    )
    return train, evaluation
  one_size = None not in shape
  train, evaluation = (
    data.open_images(
      split.name,
      split.split,
      d.data_dir,
      seed=config.seed,
      flip=d.flip,
      image_size=None if one_size else d.image_size,
      eval_resize=d.eval_resize,
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
    )
    for split in (d.train_split, d.eval_split)
  ]
  return rows[0], rows[1]


def _skipped_documents(
  config: Config, name: str, split: data.TokenRows
) -> tuple[str, ...]:
  """What is told of each, if they are not too many."""
  found = tuple(
    f'{number} of {name}: {reason}' for number, reason in split.skipped
  )
  if found:
    limits(config).check(
      len(found),
      'documents',
      name,
      split.documents + len(found),
      remedy=f'(the first: {found[0]}) repair the data set',
    )
  return found


def _check_classes(config: Config, splits: tuple[Any, Any]) -> None:
  """Refuses labels and tokens that are none, as far as they can be seen now.

  What is streamed is checked again wherever it is read.
  """
  d = config.data
  for name, split in zip((d.train_split, d.eval_split), splits, strict=True):
    if isinstance(split, data.ImageRecords):
      split.check_labels()
    elif isinstance(split, data.Split):
      data.check_classes(
        split.arrays,
        split.num_classes,
        lambda row, name=name: f"split '{name}', record {row}",
      )


def _lies_on_devices(config: Config, splits: tuple[Any, Any]) -> bool:
  """Whether both splits are to lie on every device."""
  if config.data.placement != 'auto':
    return config.data.placement == 'resident'
  size = sum(
    split.num_examples * math.prod(shape.shape) * np.dtype(shape.dtype).itemsize
    for split in splits
    for shape in split.shapes.values()
  )
  return size <= config.data.max_resident_bytes


def _workers(workers: int | None) -> int:
  return len(os.sched_getaffinity(0)) if workers is None else workers


def _statistics(config: Config, train: Any) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of each channel."""
  d = config.data
  channels = train.shapes['image'].shape[-1]
  given = [_numbers(f'data.{key}', d[key]) for key in ('mean', 'std')]
  for key, values in zip(('mean', 'std'), given, strict=True):
    if values is not None and values.shape != (channels,):
      raise ConfigError(
        f'data.{key}={tuple(values.tolist())} must have {channels} numbers, '
        'one for each channel'
      )
    if key == 'std' and values is not None and not (values > 0).all():
      raise ConfigError(
        f'data.std={tuple(values.tolist())} must be above 0: values are '
        'divided by it'
      )
  mean, std = given
  if mean is None or std is None:
    measured = train
    if not isinstance(train, data.Split):
      rng = np.random.Generator(np.random.Philox(config.seed))
      size = min(STATISTICS_EXAMPLES, train.num_examples)
      chosen = rng.choice(train.num_examples, size, replace=False)
      chunk = train.read(np.sort(chosen), None)
      arrays = chunk.arrays
      real = arrays['weight'] > 0
      measured = data.Split(
        {name: array[real] for name, array in arrays.items()},
        train.num_classes,
      )
      if not real.any():
        raise data.DatasetError(
          f"data set '{d.name}': none of {size} records can be read (record "
          f'{chunk.skipped[0][0]}: {chunk.skipped[0][1]})'
        )
    both = data.channel_statistics(measured)
    mean = both[0] if mean is None else mean
    std = both[1] if std is None else std
  return mean, std


def _numbers(key: str, values: Any) -> np.ndarray | None:
  try:
    numbers = None if values is None else np.array(values, np.float32)
  except (ValueError, TypeError):
    numbers = np.array([np.nan])
  if numbers is not None and not np.isfinite(numbers).all():
    raise ConfigError(f'{key}={values} must be finite numbers')
  return numbers


def gather(arrays, indices, positions):
  """The examples as they are."""
  del positions
  return {name: array[indices] for name, array in arrays.items()}


def make_load(
  statistics: tuple[np.ndarray, np.ndarray],
  *,
  seed: jax.typing.ArrayLike = 0,
  padding: int = 0,
  flip: bool = False,
) -> Callable[..., dict[str, jax.Array]]:
  """Gathers, augments and standardises images on the device.

  Args:
    statistics: mean and standard deviation of each channel of the training
      split's images.
    seed: of the augmentation.
    padding: pixels of the random crop's padding; 0 for none.
    flip: whether to flip at random.
  """
  mean, std = statistics

  def load(arrays, indices, positions):
    batch = gather(arrays, indices, positions)
    images = batch['image']
    if positions is not None and (padding or flip):
      keys = data.position_keys(jax.random.key(seed), *positions)
      images = data.random_crop_flip(images, keys, padding=padding, flip=flip)
    return {**batch, 'image': data.to_float(images, mean, std)}

  return load


def _check_text(train: Any, evaluation: Any) -> None:
  for split in (train, evaluation):
    if 'tokens' not in split.shapes:
      raise ConfigError(
        "task.name='language_modelling' needs rows of 'tokens', the data has "
        f'{", ".join(split.shapes)}'
      )
  if train.num_classes != evaluation.num_classes:
    raise ConfigError(
      f'the splits differ: training has {train.num_classes} tokens, evaluation '
      f'{evaluation.num_classes}'
    )


def _check_images(train: Any, evaluation: Any, padding: int) -> None:
  """Refuses splits that do not fit one another."""
  for split in (train, evaluation):
    if 'image' not in split.shapes:
      raise ConfigError(
        "task.name='classification' needs an 'image', the data has "
        f'{", ".join(split.shapes)}: set task.name'
      )
  image, other = train.shapes['image'], evaluation.shapes['image']
  same = image.shape == other.shape and image.dtype == other.dtype
  if not same or train.num_classes != evaluation.num_classes:
    raise ConfigError(
      f'the splits differ: training has {image.dtype} images of shape '
      f'{image.shape} in {train.num_classes} classes, evaluation '
      f'{other.dtype} {other.shape} in {evaluation.num_classes}'
    )
  if padding >= min(image.shape[:2]):
    raise ConfigError(
      f'data.crop_padding={padding} must be below the size of the images, '
      f'{image.shape[0]}x{image.shape[1]}'
    )
