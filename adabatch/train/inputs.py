"""The data of a run: what is read, where it lies, how a batch is made."""

import os
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import numpy as np

from adabatch import data
from adabatch.config import Config, ConfigError
from adabatch.data.source import Inputs
from adabatch.models.tasks import MIXED_LABEL, MIXED_SHARE
from adabatch.train.open_splits import (
  PLACEMENTS,
  TextCache,
  lie_on_devices,
  open_splits,
)
from adabatch.train.skipped import limits


def open_inputs(
  config: Config,
  splits: tuple[Any, Any] | None = None,
  cache: TextCache | None = None,
  *,
  labels: str,
) -> Inputs:
  """Opens what `config.data` names.

  Args:
    config: the whole config.
    splits: training and evaluation split of the caller's own; None to open
      what the config names.
    cache: for the tokens of a text set.
    labels: what the task predicts; see `models.tasks.LABELS`.

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
  if splits is None:
    splits = open_splits(config, cache, labels)
  if labels == 'tokens':
    return _text_inputs(config, splits)
  return _example_inputs(config, splits, labels)


def _placed(config: Config, splits: tuple[Any, Any]) -> tuple[Any, Any]:
  """The splits, in memory if they are to lie on every device and can."""
  if _on_devices(config, splits):
    # Under the name of what was read, so that a run may go on from a stream.
    train, evaluation = (
      split.resident()._replace(source=split.fingerprint)
      if hasattr(split, 'resident')
      else split
      for split in splits
    )
    return train, evaluation
  return splits


def _on_devices(config: Config, splits: tuple[Any, Any]) -> bool:
  """Whether they do; both have one place."""
  return all(
    isinstance(split, data.Split) or hasattr(split, 'resident')
    for split in splits
  ) and lie_on_devices(config, [(s.num_examples, s.shapes) for s in splits])


def _text_inputs(config: Config, splits: tuple[Any, Any]) -> Inputs:
  d, train, skipped = config.data, splits[0], ((), ())
  for key in ('crop_padding', 'flip', 'randaugment', 'random_erasing', 'mixup'):
    if d[key]:
      raise ConfigError(
        f'data.{key}={d[key]} has no effect on text: leave it out'
      )
  end_of_document = tokenizer = None
  if isinstance(train, data.TokenRows):
    if d.sequence_length >= train.tokens:
      raise ConfigError(
        f'data.sequence_length={d.sequence_length} must be below the '
        f'{train.tokens} tokens of {d.train_split}'
      )
    end_of_document, tokenizer = train.end_of_document, train.tokenizer
    skipped = tuple(
      _skipped_documents(config, name, split)
      for name, split in zip((d.train_split, d.eval_split), splits, strict=True)
    )
  splits = _placed(config, splits)
  _check_classes(config, splits)
  train, evaluation = splits
  _check_text(config, train, evaluation)
  return Inputs(
    train,
    evaluation,
    streaming=not _on_devices(config, splits),
    workers=0,  # tokens only have to be copied
    load_train=lambda seed: gather,
    load=gather,
    tokens_per_example=train.shapes['tokens'].shape[0] - 1,
    end_of_document=end_of_document,
    tokenizer=tokenizer,
    skipped_train=skipped[0],
    skipped_evaluation=skipped[1],
  )


def _example_inputs(
  config: Config, splits: tuple[Any, Any], labels: str
) -> Inputs:
  d, (train, evaluation) = config.data, _placed(config, splits)
  _check_classes(config, splits)
  _check_examples(config, train, evaluation, labels)
  statistics = _statistics(config, train)
  # A stream of squares cut at random is augmented where it is decoded.
  cropped = isinstance(train, data.ImageRecords) and train.cropped
  if cropped and d.crop_padding:
    raise ConfigError(
      f'data.crop_padding={d.crop_padding} is for images of one size, those of '
      f"'{d.name}' are cropped by data.image_size and data.min_area: set it to "
      '0'
    )
  streaming = not _on_devices(config, splits)
  augmentation = _augmentation(config, train, streaming)
  # What need not be decoded is read by a thread, and need not be picklable.
  thread = not isinstance(train, data.ImageRecords) and d.workers is None
  return Inputs(
    train,
    evaluation,
    streaming,
    workers=_workers(d.workers) if streaming and not thread else 0,
    load_train=lambda seed: make_load(statistics, augmentation, seed=seed),
    load=make_load(statistics),
    statistics=statistics,
  )


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


def _workers(workers: int | None) -> int:
  return len(os.sched_getaffinity(0)) if workers is None else workers


def _statistics(config: Config, train: Any) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of each channel."""
  d = config.data
  channels = train.shapes[entry(train.shapes)].shape[-1]
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
    try:
      both = data.channel_statistics(train)
    except data.DatasetError as error:
      raise data.DatasetError(f"data set '{d.name}': {error}") from None
    mean = both[0] if mean is None else mean
    std = both[1] if std is None else std
  return mean, std


def entry(arrays: Collection[str]) -> str:
  """What the network is fed: pictures, or rows of numbers."""
  return 'image' if 'image' in arrays else 'features'


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


class Augmentation(NamedTuple):
  """What is done to training examples, each by its position alone.

  Attributes:
    padding: pixels of the random crop's padding; 0 for none.
    flip: whether to flip at random.
    randaugment: (operations, magnitude); None for none.
    erasing: probability of a random rectangle.
    mixup: alpha; 0 for none.
  """

  padding: int = 0
  flip: bool = False
  randaugment: tuple[int, float] | None = None
  erasing: float = 0.0
  mixup: float = 0.0

  def bytes(self, values: jax.Array, keys: jax.Array) -> jax.Array:
    """Of inputs as the set has them."""
    if self.padding or self.flip:
      values = data.random_crop_flip(
        values, keys, padding=self.padding, flip=self.flip
      )
    if self.randaugment is not None:
      number, magnitude = self.randaugment
      values = data.randaugment(
        values, data.stream_of(keys, 0), number=number, magnitude=magnitude
      )
    return values

  def floats(self, values: jax.Array, keys: jax.Array) -> jax.Array:
    """Of standardised ones."""
    if self.erasing:
      values = data.random_erasing(
        values, data.stream_of(keys, 1), probability=self.erasing
      )
    return values


def _augmentation(config: Config, train: Any, streaming: bool) -> Augmentation:
  """Refuses what does not fit the training split."""
  d, shape = config.data, train.shapes[entry(train.shapes)]
  if d.mixup and streaming:
    raise ConfigError(
      f'data.mixup={d.mixup} mixes with any example of {d.train_split}, which '
      'is streamed: set data.placement=resident, if it fits, or data.mixup=0'
    )
  if d.randaugment is not None:
    channels = shape.shape[-1]
    if np.dtype(shape.dtype) != np.uint8 or channels not in (1, 3):
      raise ConfigError(
        f'data.randaugment={d.randaugment} is for 8-bit images of 1 or 3 '
        f'channels, these are {np.dtype(shape.dtype)} of {channels}: leave it '
        'out'
      )
    numbers = _numbers('data.randaugment', d.randaugment)
    number, magnitude = (
      numbers.tolist()
      if numbers is not None and numbers.shape == (2,)
      else (0, 0)
    )
    if number < 1 or number % 1 or not 0 <= magnitude <= 10:
      raise ConfigError(
        f'data.randaugment={d.randaugment} must be (operations, magnitude), '
        'such as (2, 9): a whole number from 1 on, and a number from 0 to 10'
      )
  # A stream of squares cut at random is flipped where it is decoded.
  cropped = isinstance(train, data.ImageRecords) and train.cropped
  return Augmentation(
    d.crop_padding,
    d.flip and not cropped,
    None if d.randaugment is None else (int(number), magnitude),
    d.random_erasing,
    d.mixup,
  )


def make_load(
  statistics: tuple[np.ndarray, np.ndarray],
  augmentation: Augmentation | None = None,
  *,
  seed: int | jax.Array = 0,
) -> Callable[..., dict[str, jax.Array]]:
  """Gathers, augments and standardises examples on the device.

  Args:
    statistics: mean and standard deviation of each channel of the training
      split's images.
    augmentation: where positions are given; None: none.
    seed: of the augmentation (`data.seed_key`).
  """
  mean, std = statistics
  made = Augmentation() if augmentation is None else augmentation

  def one(arrays, indices, keys):
    batch = gather(arrays, indices, None)
    name = entry(batch)
    values = batch[name] if keys is None else made.bytes(batch[name], keys)
    values = data.to_float(values, mean, std)
    if keys is not None:
      values = made.floats(values, keys)
    return batch, name, values

  def load(arrays, indices, positions):
    if positions is None or made == Augmentation():
      batch, name, values = one(arrays, indices, None)
      return {**batch, name: values}
    keys = data.position_keys(data.seed_key(seed), *positions)
    batch, name, values = one(arrays, indices, keys)
    if not made.mixup:
      return {**batch, name: values}
    partners, share = data.draw_partners(
      data.stream_of(keys, 2),
      alpha=made.mixup,
      num_examples=len(arrays[name]),
    )
    other, _, others = one(arrays, partners, data.stream_of(keys, 3))
    wide = share.reshape(-1, *[1] * (values.ndim - 1))
    return {
      **batch,
      name: wide * values + (1 - wide) * others,
      MIXED_LABEL: other['label'],
      MIXED_SHARE: share,
    }

  return load


def _check_text(config: Config, train: Any, evaluation: Any) -> None:
  for split in (train, evaluation):
    if 'tokens' not in split.shapes:
      raise ConfigError(
        f"task.name='{config.task.name}' needs rows of 'tokens', the data has "
        f'{", ".join(split.shapes)}'
      )
  if train.num_classes != evaluation.num_classes:
    raise ConfigError(
      f'the splits differ: training has {train.num_classes} tokens, evaluation '
      f'{evaluation.num_classes}'
    )


def _check_examples(
  config: Config, train: Any, evaluation: Any, labels: str
) -> None:
  """Refuses splits that fit neither one another nor the task."""
  d, task = config.data, config.task.name
  for split in (train, evaluation):
    if {'image', 'features'}.isdisjoint(split.shapes):
      raise ConfigError(
        f"task.name='{task}' needs an 'image' or 'features', the data has "
        f'{", ".join(split.shapes)}: set task.name'
      )
  one, other = (_kind(split) for split in (train, evaluation))
  if one != other:
    raise ConfigError(
      f'the splits differ: training has {one}, evaluation {other}'
    )
  if (train.shapes['label'].dtype.kind == 'f') == (labels == 'classes'):
    has = 'classes' if labels != 'classes' else 'numbers'
    raise ConfigError(
      f"task.name='{task}' predicts {labels}, and the labels are {has}: set "
      'task.name'
    )
  name, shape = entry(train.shapes), train.shapes[entry(train.shapes)].shape
  if name == 'features' and (d.crop_padding or d.flip):
    raise ConfigError(
      'data.crop_padding and data.flip are for images, and these data are '
      'features: set them to 0 and False'
    )
  if name == 'features' and (d.random_erasing or d.randaugment):
    raise ConfigError(
      'data.random_erasing and data.randaugment are for images, and these data '
      'are features: leave them out'
    )
  if name == 'image' and d.crop_padding >= min(shape[:2]):
    raise ConfigError(
      f'data.crop_padding={d.crop_padding} must be below the size of the '
      f'images, {shape[0]}x{shape[1]}'
    )


def _kind(split: Any) -> str:
  """What has to be the same in both splits."""
  name = entry(split.shapes)
  values, label = split.shapes[name], split.shapes['label']
  what = 'images' if name == 'image' else name
  into = 'classes' if label.dtype.kind != 'f' else 'numbers'
  return (
    f'{values.dtype} {what} of shape {tuple(values.shape)} in '
    f'{split.num_classes} {into}'
  )
