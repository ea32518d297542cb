"""The same arithmetic on the devices and on the host."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# A float32 scalar: of JAX, or of NumPy where nothing it depends on was of JAX.
Scalar = jax.Array | np.float32


def namespace(*values: Any) -> Any:
  """jax.numpy if any of the values is an array of JAX or traced, else numpy.

  A batch-size rule reads schedules between updates, with numbers of the host:
  there a few operations on a device would wait for what it is busy with.

  Args:
    values: whatever a formula depends on.

  >>> namespace(1, 2.0).__name__, namespace(1, jnp.float32(2)).__name__
  ('numpy', 'jax.numpy')
  """
  return jnp if any(isinstance(v, jax.Array) for v in values) else np


def float32(value: Any) -> Any:
  """The value in float32, where it is: scalars of NumPy stay scalars."""
  if isinstance(value, jax.Array):
    return jnp.asarray(value, jnp.float32)
  return np.asarray(value, np.float32)[()]
