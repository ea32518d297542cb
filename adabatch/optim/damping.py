"""Damping: the part of a batch size that the hardware cannot give."""

import jax
import optax

from adabatch.optim.precision import scale_in_float32

# p: the learning rate is scaled as B^p. AdaScale's gain lies between 1 and
# B / B_ref and is B / B_ref where noise dominates, which is where a batch that
# is missing has to be stood for; elsewhere nothing has.
SCALING_EXPONENTS = {'none': 0.0, 'sqrt': 0.5, 'linear': 1.0, 'adascale': 1.0}
# r: with a rate that grows as B^r the noise in the parameters stays the same.
# Of an average of B gradients it falls as 1 / B; optimizers that divide by the
# size of the gradient, itself noise that falls as B^(-1/2), keep half of that.
NOISE_EXPONENTS = {
  'sgd': 1.0,
  'momentum': 1.0,
  'nesterov': 1.0,
  'adam': 0.5,
  'adamw': 0.5,
  'lars': 0.5,
  'lamb': 0.5,
  'muon': 0.5,
}


def damping_exponent(optimizer: str, scaling: str) -> float:
  """How strongly a missing part of the batch damps the learning rate.

      damping = (B_max / B_nominal)^(r - p)

  so that a run capped at B_max has the noise of the run without the cap: its
  learning rate would have been B_nominal^p, its noise-equivalent learning rate
  grows as B^r. AdaDamp's own factor, for SGD at a constant rate, has the
  exponent 1. With linear scaling SGD needs no damping (0), and Adam, whose rate
  at the cap is then lower than it should be, the opposite of it (-1/2).

  Args:
    optimizer: a key of OPTIMIZERS. r = 1 for sgd, momentum, nesterov and 1/2
      for adam, adamw, lamb, lars, muon.
    scaling: 'none' (p = 0), 'sqrt' (1/2), 'linear' (1) or 'adascale' (1, its
      gain where noise dominates).

  Returns:
    r - p, without units.

  Raises:
    ValueError: an unknown optimizer or scaling.

  Reference: Sievert and Charles, Improving the convergence of SGD through
  adaptive batch sizes, 2019 (arXiv 1910.08222), Algorithm 1, for exponent 1;
  Malladi et al., On the SDEs and Scaling Rules for Adaptive Gradient
  Algorithms, 2022 (arXiv 2205.10287), for the square root of Adam.

  >>> damping_exponent('sgd', 'none'), damping_exponent('adam', 'sqrt')
  (1.0, 0.0)
  """
  for table, kind, name in (
    (NOISE_EXPONENTS, 'optimizer', optimizer),
    (SCALING_EXPONENTS, 'scaling', scaling),
  ):
    if name not in table:
      raise ValueError(
        f'damping_exponent: unknown {kind} {name!r}; choose one of '
        f'{", ".join(table)}'
      )
  return NOISE_EXPONENTS[optimizer] - SCALING_EXPONENTS[scaling]


def scale_by_damping() -> optax.GradientTransformationExtraArgs:
  """Multiplies the updates by `damping`; belongs last in a chain.

      u <- damping * u,    damping = min(1, B_max / B_nominal)^(r - p)

  When a controller asks for B_nominal > B_max, AdaDamp trains with B_max and
  a learning rate that stands in for the rest of the batch; the exponent is 1
  for SGD at a constant rate, see `damping_exponent`. Last in the chain, the
  factor acts at once and in full, also where momentum comes after the learning
  rate (LARS). It has no state, so when the nominal batch size falls back the
  learning rate is back as well.

  Returns:
    A transform whose `update` needs the keyword argument `damping`, a scalar
    (without units, positive; above 1 only where r < p; computed by the caller).
    Without it `update` raises TypeError: a forgotten damping would otherwise go
    unnoticed. Dtypes and shardings of the updates are kept.

  Reference: Sievert and Charles, Improving the convergence of SGD through
  adaptive batch sizes, 2019 (arXiv 1910.08222), Algorithm 1.

  >>> import jax.numpy as jnp
  >>> tx = scale_by_damping()
  >>> state = tx.init(jnp.ones(2))
  >>> updates, state = tx.update(jnp.ones(2), state, damping=0.25)
  >>> updates
  Array([0.25, 0.25], dtype=float32)
  """

  def init(params):
    del params
    return optax.EmptyState()

  def update(
    updates, state, params=None, *, damping: jax.typing.ArrayLike, **extra
  ):
    del params, extra
    return scale_in_float32(updates, damping), state

  # optax's type for update knows no required extra arguments.
  return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore
