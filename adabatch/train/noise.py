"""From a config to the norm in which the noise of the gradient is measured."""

from collections.abc import Iterator
from typing import Any

import jax

from adabatch.config import Config, ConfigError, choose
from adabatch.controllers import BatchSizeController
from adabatch.devices.recipe import Recipe
from adabatch.optim.masks import norms_alone
from adabatch.optim.noise_norms import NOISE_NORMS, NoiseNorm
from adabatch.train.networks import check_model

# Optimizers whose state has second moments of all parameters.
WITH_SECOND_MOMENTS = ('adam', 'adamw', 'lamb')


def is_read(config: Config, controller: BatchSizeController) -> bool:
  """Whether anything reads the noise of the gradient."""
  adascale = config.learning_rate.scaling == 'adascale'
  return adascale or 'gradient_noise' in controller.needs


def make_norm(
  config: Config, controller: BatchSizeController, params: Any = None
) -> NoiseNorm:
  """The norm that a config names.

  Args:
    config: the whole config.
    controller: the batch-size rule.
    params: of the network, or their shapes; None: they are not known yet.

  Raises:
    ConfigError: if there is none of that name; or, where the noise is read, if
      it is not for this optimizer, rule or network.
  """
  c, o = config.controller, config.optimizer
  make = choose(NOISE_NORMS, c.noise_norm, 'controller.noise_norm')
  if is_read(config, controller):
    _check(config, params)
  return make(o.beta2, o.epsilon)


def _check(config: Config, params: Any) -> None:
  c, name = config.controller, config.optimizer.name
  key = f'controller.noise_norm={c.noise_norm!r}'
  if c.noise_norm == 'adam' and name not in WITH_SECOND_MOMENTS:
    raise ConfigError(
      f'{key} needs second moments of all parameters, which optimizer.name='
      f"{name!r} has not: choose {', '.join(WITH_SECOND_MOMENTS)}, or 'l2'"
    )
  if c.noise_norm != 'l2' and c.name == 'cabs':
    raise ConfigError(
      f'{key} is for rules that read the ratio of noise to signal, and '
      'controller.name=cabs reads the noise itself: leave it at l2'
    )
  if c.noise_norm == 'l1' and config.learning_rate.scaling == 'adascale':
    raise ConfigError(
      f'{key} is for sign descent, and learning_rate.scaling=adascale is the '
      'gain of steps along the gradient: choose another of the two'
    )
  if c.noise_norm == 'normalisation' and params and not _in_norms(params):
    raise ConfigError(
      f'{key} finds no scale or bias of a normalisation layer in model.name='
      f"{config.model.name!r}: choose 'l2'"
    )


def _in_norms(params: Any) -> list[Any]:
  marked = zip(
    jax.tree.leaves(params), jax.tree.leaves(norms_alone(params)), strict=True
  )
  return [leaf for leaf, is_norm in marked if is_norm]


def remarks(config: Config, recipe: Recipe) -> Iterator[str]:
  """A line on what is measured, where that is not all of the gradient."""
  name = config.controller.noise_norm
  if name != 'l2' and not recipe.estimate_noise:
    yield (
      f'controller.noise_norm={name!r} has no effect: nothing reads the noise '
      'of the gradient'
    )
  elif name == 'normalisation':
    variables = check_model(config, recipe.model, recipe.network_input)
    params = variables.get('params', {})
    some, every = (
      sum(leaf.size for leaf in leaves)
      for leaves in (_in_norms(params), jax.tree.leaves(params))
    )
    yield (
      f'the noise of the gradient is that of {some} of {every} parameters, '
      'those of normalisation layers (controller.noise_norm)'
    )
