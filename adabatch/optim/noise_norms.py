"""In which norm the noise of the gradient is measured.

The noise scale is a ratio, tr Sigma / |G|^2, and both depend on the norm. An
optimizer that does not step along the gradient sees the noise through its own:

    l2             tr Sigma and |G|^2 of all parameters: SGD
    normalisation  the same of scales and biases of normalisation layers alone,
                   whose ratio predicts that of all at almost no cost
    adam           the same of g / (sqrt(nu_hat) + epsilon)
    l1             (sum_i sqrt(Sigma_ii))^2 and (sum_i |G_i|)^2: sign descent,
                   whose steps are bounded in l-infinity, the dual norm

The first three need sums of squares, a number for each microbatch. `l1` needs
the squares of each coordinate: memory and exchange of one more gradient.

Reference: McCandlish et al. 2018 (arXiv:1812.06162); Gray et al. 2024
(arXiv:2411.00999), normalisation layers; Qiao et al., Pollux, 2021
(arXiv:2008.12260), whose code preconditions for Adam; Naganuma et al. 2026
(arXiv:2602.03001), dual norms.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import erf, gammaln

from adabatch.controllers import GradientNoise
from adabatch.optim import gradient_noise
from adabatch.optim.adam import ScaleByAdamInExamplesState
from adabatch.optim.gradient_noise import MicrobatchNorms, Previous
from adabatch.optim.masks import norms_alone

# State of the optimizer before the update -> what of a gradient is measured.
View = Callable[[optax.OptState], Callable[[optax.Updates], Any]]


class NoiseNorm(NamedTuple):
  """A norm, as functions of the gradients that an update has anyway.

  The state of the optimizer is that before the update: what its own gradient
  had changed would no longer be independent of it.

  Attributes:
    view: opt_state -> (gradient -> the pytree that is measured in its stead),
      linear in the gradient.
    coordinates: whether it is measured in l1, by the variance of each
      coordinate, and not in l2.
    is_whole: whether the view is the gradient itself.
  """

  view: View
  coordinates: bool = False
  is_whole: bool = False

  def of_microbatch(
    self, opt_state: Any, gradient_sum: optax.Updates, weight: jax.Array
  ) -> MicrobatchNorms:
    """As `gradient_noise.of_microbatch`; of l1 for each coordinate."""
    squares = _squares if self.coordinates else gradient_noise.squared_norm
    seen = self.view(opt_state)(gradient_sum)
    return gradient_noise.of_microbatch(seen, weight, squares)

  def from_microbatches(
    self,
    opt_state: Any,
    norms: MicrobatchNorms,
    gradient: optax.Updates,
    batch_size: jax.Array,
    squared_norm: jax.Array,
  ) -> GradientNoise:
    """Estimates from the microbatches of one update; NaN if only one is real.

    Args:
      opt_state: before the update.
      norms: summed over all microbatches on all devices.
      gradient: of the whole batch, the mean over its examples.
      batch_size: n, its examples.
      squared_norm: |g|^2 of all of it in l2, which is known already.
    """
    if self.is_whole:
      return gradient_noise.from_microbatches(norms, squared_norm, batch_size)
    seen = self.view(opt_state)(gradient)
    if not self.coordinates:
      squared = gradient_noise.squared_norm(seen)
      return gradient_noise.from_microbatches(norms, squared, batch_size)
    gap = jnp.where(norms.count > 1, norms.count - 1, jnp.nan)
    variances = jax.tree.map(
      lambda total, square: (total - batch_size * square) / gap,
      norms.squared_norm,
      _squares(seen),
    )
    return in_l1(seen, variances, batch_size, norms.count)

  def from_difference(
    self,
    opt_state: Any,
    gradient: optax.Updates,
    examples: jax.Array,
    previous: Previous,
  ) -> GradientNoise:
    """As `gradient_noise.from_difference`, biased as that is.

    Args:
      opt_state: before the update.
      gradient: g, the mean gradient of this update.
      examples: n, in it.
      previous: g' and n'.
    """
    look = self.view(opt_state)
    seen = look(gradient)
    previous = Previous(look(previous.gradient), previous.examples)
    if not self.coordinates:
      return gradient_noise.from_difference(seen, examples, previous)
    total = gradient_noise.of_both(examples, previous)
    pooled = gradient_noise.pooled(seen, examples, previous, total)
    distances = _squares(jax.tree.map(jnp.subtract, seen, previous.gradient))
    variances = jax.tree.map(
      lambda d: d * examples * previous.examples / total, distances
    )
    return in_l1(pooled, variances, total, jnp.float32(2))


def euclidean() -> NoiseNorm:
  """l2 of all parameters.

  >>> euclidean().view(None)({'w': 1.0})
  {'w': 1.0}
  """
  return NoiseNorm(lambda opt_state: lambda tree: tree, is_whole=True)


def of_normalisation() -> NoiseNorm:
  """l2 of the scales and biases of normalisation layers; see `norms_alone`.

  The scale and bias of a layer are a few thousandths of the parameters, and
  the noise scale of all follows theirs up to a factor, for which rules have
  their own (`c`, `eta`).

  Raises:
    ValueError: while it is traced, of parameters without any such layer.

  Reference: Gray et al., Normalization Layer Per-Example Gradients are
  Sufficient to Predict Gradient Noise Scale in Transformers, 2024
  (arXiv:2411.00999).

  >>> norm = of_normalisation()
  >>> norm.view(None)({'LayerNorm_0': {'scale': 3.0}, 'Dense_0': {'bias': 2.0}})
  [3.0]
  """

  def look(tree: optax.Updates) -> list[Any]:
    keep = jax.tree.leaves(norms_alone(tree))
    kept = [
      leaf
      for leaf, is_norm in zip(jax.tree.leaves(tree), keep, strict=True)
      if is_norm
    ]
    if not kept:
      raise ValueError('the network has no normalisation layer')
    return kept

  return NoiseNorm(lambda opt_state: look)


def of_adam(
  beta2: jax.typing.ArrayLike, epsilon: jax.typing.ArrayLike
) -> NoiseNorm:
  """l2 of the gradient as Adam scales it.

      g_i / (sqrt(nu_hat_i) + epsilon),  nu_hat = nu / (1 - beta2^k)

  nu is that of before the update, of k updates: before the first one there is
  none, and so no estimate (NaN).

  Args:
    beta2: decay of the second moment; of a state that counts in examples its
      own weight is taken.
    epsilon: of the optimizer, in units of the gradient.

  Raises:
    ValueError: while it is traced, of a state without second moments of all
      parameters.

  Reference: Qiao et al., Pollux, 2021 (arXiv:2008.12260); this is how its code
  (AdaptDL) measures noise under Adam.

  >>> params = {'w': jnp.array([1.0, -4.0])}
  >>> _, state = optax.scale_by_adam().update(
  ...   params, optax.scale_by_adam().init(params))
  >>> of_adam(0.999, 0.0).view(state)(params)['w'].round(3).tolist()
  [1.0, -1.0]
  """

  def view(opt_state: optax.OptState):
    nu, weight = _second_moments(opt_state, beta2)

    def scaled(g: jax.Array, nu: jax.Array) -> jax.Array:
      # Of no update the weight is 0, and what comes out NaN.
      return g / (jnp.sqrt(nu / weight) + epsilon)

    return lambda tree: jax.tree.map(scaled, tree, nu)

  return NoiseNorm(view)


def _second_moments(
  opt_state: optax.OptState, beta2: jax.typing.ArrayLike
) -> tuple[Any, jax.Array]:
  """nu of the one Adam in a state, and what to divide it by."""
  kinds = optax.ScaleByAdamState, ScaleByAdamInExamplesState

  def is_adam(node: Any) -> bool:
    return isinstance(node, kinds)

  leaves = jax.tree.leaves(opt_state, is_leaf=is_adam)
  found: list[Any] = [leaf for leaf in leaves if is_adam(leaf)]
  if len(found) != 1:
    raise ValueError(
      f'the optimizer has {len(found)} states with second moments, not one'
    )
  (state,) = found
  if isinstance(state, ScaleByAdamInExamplesState):
    return state.nu, state.nu_weight
  return state.nu, 1 - jnp.asarray(beta2, jnp.float32) ** state.count


def sign() -> NoiseNorm:
  """l1, for sign descent and what is like it (Signum, Lion); see `in_l1`.

  >>> sign().coordinates
  True
  """
  return NoiseNorm(lambda opt_state: _coordinates, coordinates=True)


def in_l1(
  gradient: Any, variances: Any, batch_size: jax.Array, parts: jax.Array
) -> GradientNoise:
  """Noise and length of a gradient in l1.

      trace_covariance  (sum_i s_i)^2 / c4(k)^2,  s_i = sqrt(Sigma_ii)
      squared_norm      (sum_i h_i)^2,  h_i = 2 |g_i| - f(|g_i|, s_i / sqrt(n))
      f(m, s)           mean of |N(m, s^2)|, which is above m

  E |g - G|_1 <= sum_i sqrt(Sigma_ii / n), so that their ratio is the batch size
  at which noise and gradient are equally long. c4(k) is the mean of the root of
  a variance that k normal samples tell, over the true one. No estimate of |G_i|
  is unbiased, for it has a kink at 0. |g_i| alone lies up to 0.80 standard
  errors too high, and the ratio would never exceed 1.6 n; h takes off the bias
  that a mean of |g_i| would have. What is left, for s known and in standard
  errors of g_i: +0.47 at G_i = 0, +0.09 at 0.5, -0.07 at 1 and at 2. So a noise
  scale far above the batch size is still underestimated, but grows with n, and
  the batch with it, and one below it is exact within a few percent. With few
  microbatches s is known badly, and less is taken off.

  Args:
    gradient: g, of n examples; a pytree of real arrays.
    variances: estimates of Sigma_ii, likewise; what lies below 0 by rounding
      counts as 0.
    batch_size: n.
    parts: k, on which the variances rest.

  Returns:
    NaN where n or k tells nothing. The second may be negative by chance, if it
    is so before it is squared.

  Reference: Naganuma et al., Adaptive Batch Sizes Using Non-Euclidean Gradient
  Noise Scales, 2026 (arXiv:2602.03001), for the scale; the correction is ours.

  >>> noise = in_l1(jnp.array([3.0, -1.0]), jnp.array([1e-8, 0.0]),
  ...               jnp.float32(4), jnp.float32(8))
  >>> round(float(noise.squared_norm), 4)
  16.0
  """
  deviations = jax.tree.map(lambda v: jnp.sqrt(jnp.maximum(v, 0)), variances)
  lengths = jax.tree.map(
    lambda g, s: _length(jnp.abs(g), s / jnp.sqrt(batch_size)),
    gradient,
    deviations,
  )
  noise, length = _total(deviations) / _c4(parts), _total(lengths)
  return GradientNoise(jnp.square(noise), length * jnp.abs(length))  # pyright: ignore


def _length(size: jax.Array, error: jax.Array) -> jax.Array:
  """h: the size of a number that is known with an error."""
  known = error > 0
  error = jnp.where(known, error, 1.0)
  far = size / error
  folded = math.sqrt(2 / math.pi) * error * jnp.exp(-jnp.square(far) / 2)
  folded += size * erf(far / math.sqrt(2))
  return jnp.where(known, 2 * size - folded, size)


def _c4(parts: jax.Array) -> jax.Array:
  """sqrt(2 / (k - 1)) Gamma(k / 2) / Gamma((k - 1) / 2); NaN below 2."""
  k = jnp.where(parts > 1, parts, jnp.nan)
  return jnp.sqrt(2 / (k - 1)) * jnp.exp(gammaln(k / 2) - gammaln((k - 1) / 2))


def _coordinates(tree: optax.Updates) -> Any:
  """Real float32 numbers; of a complex one both parts."""

  def one(x: jax.Array):
    if jnp.iscomplexobj(x):
      return (one(x.real), one(x.imag))
    return x.astype(jnp.float32)

  return jax.tree.map(one, tree)


def _squares(tree: Any) -> Any:
  return jax.tree.map(jnp.square, tree)


def _total(tree: Any) -> jax.Array:
  return sum(map(jnp.sum, jax.tree.leaves(tree)), start=jnp.float32(0))


# Name in a config -> norm, of beta2 and epsilon of the optimizer.
NOISE_NORMS: dict[str, Callable[[float, float], NoiseNorm]] = {
  'l2': lambda beta2, epsilon: euclidean(),
  'normalisation': lambda beta2, epsilon: of_normalisation(),
  'adam': of_adam,
  'l1': lambda beta2, epsilon: sign(),
}
