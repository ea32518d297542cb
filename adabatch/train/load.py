"""The network of a run, taken home: its parameters and what it is fed."""

import contextlib
import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from adabatch import data
from adabatch.config import Config, ConfigError
from adabatch.config.extras import needing
from adabatch.data.source import Inputs, Shape
from adabatch.data.tokenizers import (
  ByteTokenizer,
  Tokenizer,
  load_sentencepiece,
)
from adabatch.devices.mesh import make_devices
from adabatch.devices.state import to_evaluate
from adabatch.devices.trainer import template
from adabatch.train.build import Parts, assemble
from adabatch.train.calls import Progress
from adabatch.train.checkpoints import Checkpoints, Saved
from adabatch.train.inputs import gather, make_load
from adabatch.train.register import registered
from adabatch.train.workdir import Workdir


class Loaded:
  """A trained network with its preprocessing.

  Attributes:
    config: of the run.
    update: updates of the checkpoint.
    params, model_state: as the network has them; of a run with averaged
      weights the average.
    model: called as `model.apply({'params': params, **model_state}, x,
      train=False)`, x being standardised.
    task: losses and metrics.
    classes: their names, in the order of the outputs; () where they have none.
    mean, std: of each channel, as floats; None of text.
    tokenizer: of a text: `encode(text)` gives its tokens and `decode(tokens)`
      the text; None of all else, and where the tokens were given.
  """

  def __init__(self, config: Config, update: int, state: Any, parts: Any):
    recipe, about = parts.recipe, parts.recipe.inputs.train.about
    self.config, self.update = config, update
    state = to_evaluate(state)
    self.params, self.model_state = state.params, state.model_state
    self.model, self.task = recipe.model, recipe.task
    self.classes = tuple(about['classes'])
    statistics = recipe.inputs.statistics
    self.mean, self.std = (None, None) if statistics is None else statistics
    self.tokenizer = recipe.inputs.tokenizer
    self._shapes, self._about = recipe.inputs.train.shapes, about
    self._entry = next(iter(self._shapes))
    self._apply = jax.jit(recipe.devices.in_precision(self._outputs))

  def __call__(self, inputs: Any) -> jax.Array:
    """Outputs for examples as the data set has them, not yet standardised.

    Args:
      inputs: images, uint8 [B, H, W, C] of the size that was trained on,
        features [B, ...], or tokens [B, T]. Of a run with a tokenizer also a
        str, the beginning of one document.

    Returns:
      What the network makes of them: logits [B, C], or numbers [B, D]; of
      tokens [B, T, V], those of the token after each. Of a str, whose tokens
      are t_1 ... t_T, [1, T + 1, V]: those of t_1 first, which follows the end
      of a document, and last those of the token after it.

    Raises:
      ValueError: for inputs of another shape, or a str that is longer than the
        rows that were trained on.
    """
    shape = self._shapes[self._entry]
    if isinstance(inputs, str):
      inputs = self._tokens(inputs)
    inputs = np.asarray(inputs)
    if self._entry != 'tokens' and inputs.shape[1:] != shape.shape:
      raise ValueError(
        f'inputs have the shape {list(inputs.shape)}: give '
        f'[B, {", ".join(map(str, shape.shape))}]'
      )
    if (inputs.dtype == np.uint8) != (shape.dtype == np.uint8):
      raise ValueError(
        f'inputs are {inputs.dtype}, and the network was trained on '
        f'{shape.dtype}: give those'
      )
    variables = {'params': self.params, **self.model_state}
    return self._apply(variables, inputs)

  def export(self, path: str | os.PathLike[str]) -> None:
    """Writes parameters and statistics as safetensors.

    Names are those of the layers, joined by dots; the metadata hold what the
    network is fed, as `inputs.json` of the run.

    Raises:
      NotInstalled: if safetensors is not installed.
    """
    with needing():
      from safetensors.numpy import save
    leaves = jax.tree_util.tree_leaves_with_path(
      {'params': self.params, **self.model_state}
    )
    arrays = {
      jax.tree_util.keystr(path, simple=True, separator='.'): np.asarray(leaf)
      for path, leaf in leaves
    }
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not their `save_file`, whose files nobody else may read.
    path.write_bytes(save(arrays, {'inputs': json.dumps(self._about)}))

  def _tokens(self, text: str) -> np.ndarray:
    """A document's beginning as a row; what comes before it is the end of one.

    Raises:
      ValueError: if there is no tokenizer, or it is too long.
    """
    if self.tokenizer is None:
      raise ValueError('the run has no tokenizer: give its inputs as an array')
    tokens = self.tokenizer.encode(text)
    longest = self._shapes['tokens'].shape[0] - 2
    if len(tokens) > longest:
      raise ValueError(
        f'the text has {len(tokens)} tokens, and the network was trained on '
        f'the end of a document and {longest} more: give at most those'
      )
    return np.array([[self.tokenizer.end_of_document, *tokens]], np.int32)

  def _outputs(self, variables: Any, inputs: jax.Array) -> jax.Array:
    if self.mean is not None and self.std is not None:
      inputs = data.to_float(inputs, self.mean, self.std)
    return self.model.apply(variables, inputs, train=False)


def read_checkpoint(files: Workdir, parts: Parts, which: str | int) -> Saved:
  """One checkpoint of a run; nothing is changed on disk.

  Args:
    files: of the run.
    parts: made of its config.
    which: 'last', 'best', or the updates of one that was kept.

  Raises:
    ConfigError: for another `which`, or where none is there.
    CheckpointError: if it cannot be read.
  """
  if which not in ('last', 'best') and not isinstance(which, int):
    raise ConfigError(
      f"which={which!r}: give 'last', 'best', or the updates of a checkpoint"
    )
  if not files.has_checkpoints():
    raise ConfigError(
      f'{files.path} holds no checkpoints: give the workdir of a run'
    )

  def state(host: dict[str, Any]) -> Any:
    return template(parts.recipe, host['replicas']['replicas'])

  with contextlib.ExitStack() as stack:

    def checkpoints(name: str) -> Checkpoints:
      there = Checkpoints(files.path / name, keep=None)
      return stack.enter_context(contextlib.closing(there))

    if which != 'best':
      update = which if isinstance(which, int) else None
      return checkpoints('checkpoints').read(update, state)
    newest, kept = checkpoints('checkpoints'), checkpoints('best')
    if kept.updates()[-1:] > newest.updates()[-1:]:
      # Of a run that diverged since the newest checkpoint.
      return kept.read(None, state)
    last = newest.read(None, None)
    best = Progress(**last.host['progress']).best_update
    if best is None:
      raise ConfigError(
        f'{files.path} has no best checkpoint, because no evaluation gave a '
        "number: give which='last'"
      )
    if best == last.update:
      return newest.read(best, state)
    # One of before `checkpoint.best` was turned off is not the best any more.
    if not any(update >= best for update in kept.updates()):
      raise ConfigError(
        f'{files.path} keeps no checkpoint of its best evaluation, that of '
        f"update {best}: give which='last', or train with checkpoint.best=True"
      )
    return kept.read(None, state)


def load(workdir: str | os.PathLike[str], which: str | int = 'last') -> Loaded:
  """The network that a run has trained; its data need not be there.

  A network of one's own must be registered: call the `get_config` that does.

  Args:
    workdir: of the run; it is only read.
    which: 'last', the newest checkpoint, 'best', of the best evaluation so far
      by the target's metric (kept unless `checkpoint.best` is False), or the
      updates of one that was kept.

  Raises:
    ConfigError: for a directory without a run, or a checkpoint that is not
      there.
    CheckpointError: if it cannot be read.
  """
  files = Workdir(workdir)
  about = files.read_inputs()
  if about is None or not files.has_checkpoints():
    raise ConfigError(
      f'{files.path} holds no checkpoints with inputs.json: give the workdir '
      'of a run'
    )
  config = files.read_config()
  for table, names in registered().items():
    if config[table].name not in {*names, 'synchronous'}:
      raise ConfigError(
        f'{files.path} was trained with {table}.name={config[table].name!r}, '
        'which is not of this package: call the get_config() that registers it'
      )
  devices = make_devices(jax.local_devices()[:1])
  inputs = _described(about)._replace(tokenizer=_tokenizer(files, about))
  parts = assemble(config, devices, inputs)
  saved = read_checkpoint(files, parts, which)
  return Loaded(config, saved.update, saved.state, parts)


class Described(NamedTuple):
  """A split of which only the description is there."""

  num_examples: int
  num_classes: int
  shapes: dict[str, Shape]
  fingerprint: str
  about: dict[str, Any]


def describe(inputs: Inputs) -> dict[str, Any]:
  """What `load` needs to know of a run's data, as JSON has it."""

  train, statistics = inputs.train, inputs.statistics
  return {
    'num_classes': train.num_classes,
    'classes': list(getattr(train, 'classes', None) or ()),
    'statistics': statistics and [values.tolist() for values in statistics],
    'shapes': {
      name: [list(shape.shape), str(np.dtype(shape.dtype))]
      for name, shape in train.shapes.items()
    },
    'splits': [
      [split.num_examples, split.fingerprint]
      for split in (train, inputs.evaluation)
    ],
    'end_of_document': inputs.end_of_document,
    'tokenizer': None if inputs.tokenizer is None else inputs.tokenizer.name,
  }


def _tokenizer(files: Workdir, about: dict[str, Any]) -> Tokenizer | None:
  # A run of an earlier version does not say.
  name, path = about.get('tokenizer'), files.tokenizer_path()
  if name == 'bytes':
    return ByteTokenizer()
  return None if name is None else load_sentencepiece(path)


def _described(about: dict[str, Any]) -> Inputs:
  shapes = {
    name: Shape(tuple(shape), np.dtype(dtype))
    for name, (shape, dtype) in about['shapes'].items()
  }
  splits = [
    Described(count, about['num_classes'], shapes, fingerprint, about)
    for count, fingerprint in about['splits']
  ]
  statistics, load = None, gather
  if about['statistics'] is not None:
    mean, std = (np.array(v, np.float32) for v in about['statistics'])
    statistics, load = (mean, std), make_load((mean, std))
  tokens = shapes.get('tokens')
  tokens_per_example = None if tokens is None else tokens.shape[0] - 1
  return Inputs(
    *splits,
    streaming=False,
    workers=0,
    load_train=lambda seed: load,
    load=load,
    tokens_per_example=tokens_per_example,
    end_of_document=about['end_of_document'],
    statistics=statistics,
  )
