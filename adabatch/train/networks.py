"""The network that a config names, made and tried on shapes."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adabatch.config import Config, ConfigError, choose, refusing
from adabatch.models import MODELS, contract, own

LANGUAGE_MODELS = ('transformer', 'lstm')
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def make_model(
  config: Config, num_classes: int, end_of_document: int | None = None
) -> nn.Module:
  """The network with its own table of parameters.

  Raises:
    ConfigError: if it lacks what every network has; see `adabatch.models`.
  """
  name, dtype = config.model.name, config.model.dtype
  make = choose(MODELS, name, 'model.name')
  if name not in config.model:
    raise ConfigError(
      f'model.name={name!r} has no table of parameters in this config: give it '
      f'one, c.model.{name} = ConfigDict()'
    )
  signature = own.signature_of(make)
  takes = signature.parameters
  if dtype != 'float32' and 'dtype' not in takes:
    raise ConfigError(
      f'model.dtype={dtype!r} has no effect on model.name={name!r}, whose '
      f'constructor ({make.__name__}) takes no dtype: leave it out'
    )
  given = {
    'num_classes': num_classes,
    'dtype': choose(DTYPES, dtype, 'model.dtype'),
    'end_of_document': end_of_document,
  }
  parameters = {k: v for k, v in given.items() if k in takes}
  parameters |= config.model[name]
  with refusing(
    f'model.{name} ({make.__name__}) takes {", ".join(parameters)}'
  ):
    random = [key for key in ('rngs', 'key') if key in takes]
    signature.bind(**parameters, **dict.fromkeys(random))
  with refusing(f'model.{name}', Exception):
    return own.call(make, parameters)


def check_model(
  config: Config, model: nn.Module, example: jax.ShapeDtypeStruct
) -> Any:
  """Shapes of the network's variables.

  Raises:
    ConfigError: if it cannot be made or trained, or not on such inputs.
  """
  with refusing(f'model.{config.model.name}', Exception):
    return jax.eval_shape(
      lambda x: contract.init_in_training(model, x), example
    )
