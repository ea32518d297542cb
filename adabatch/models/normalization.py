"""BatchNorm whose statistics do not depend on batch size, devices or steps."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from adabatch.models.rows import Rows


class GhostBatchNorm(nn.Module):
  """BatchNorm over groups of a fixed number of examples, with weights.

  Each group of `group_size` consecutive places of the batch is normalised by
  its own mean and variance, so growing the batch size or accumulating gradients
  leaves the noise of BatchNorm as it was. Where a device holds less than a
  group, the devices that share one add up their sums, so the statistics are the
  same on any number of devices. (Processes that stream every H-th example form
  groups of their own examples, so those depend on H.) Examples of weight 0
  (empty slots) are left out of the statistics. A last group of a single example
  has no variance; in a layer without spatial dimensions it is normalised to the
  bias. The running statistics average those of the groups, each weighted by its
  examples.

  Statistics are computed in float32.

  Attributes:
    group_size: examples in a group; a batch with fewer examples is one group.
    momentum: weight of the old running statistics.
    epsilon: added to the variance.
    dtype: of the result.
    scale_init: initialiser of the scale.

  Reference: Hoffer et al., Train longer, generalize better, 2017
  (arXiv:1705.08741); Goyal et al. 2017 use groups of 32.
  """

  group_size: int = 32
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = jnp.float32
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, rows: Rows | None = None
  ) -> jax.Array:
    """Normalises x [B, ..., C].

    Raises:
      ValueError: if groups neither lie within a device nor consist of whole
        devices; `buckets.ladder(group_size=)` avoids such microbatches.
    """
    features = x.shape[-1]
    scale = self.param('scale', self.scale_init, (features,))
    bias = self.param('bias', nn.initializers.zeros, (features,))
    mean = self.variable('batch_stats', 'mean', jnp.zeros, (features,))
    var = self.variable('batch_stats', 'var', jnp.ones, (features,))
    if not train:
      factor = jax.lax.rsqrt(var.value + self.epsilon) * scale
      shift = bias - mean.value * factor
      return (x * factor + shift).astype(self.dtype)

    if not jnp.issubdtype(x.dtype, jnp.floating):  # integers have no gradient
      x = x.astype(jnp.float32)
    batch = x.shape[0]
    together = 1 if rows is None else self._devices_together(batch, rows)
    size = batch if together > 1 else min(self.group_size, batch)
    weights = jnp.ones(batch) if rows is None else rows.weights
    count = -(-batch // size)  # of groups
    if padding := count * size - batch:
      x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
      weights = jnp.pad(weights, (0, padding))
    mask = weights.reshape(count, size, 1, 1)
    gather: Alone | Gatherer = Alone()
    if rows is not None and together > 1:
      gather = _gatherer(together, rows)
    normalised, group_mean, group_var = _normalise(
      x.reshape(count, size, -1, features),
      mask,
      (scale, bias),
      mean.value,
      Kind(self.epsilon, gather),
    )
    if not self.is_initializing():
      examples = jnp.sum(mask, 1, keepdims=True)
      share = examples / jnp.maximum(jnp.sum(examples), 1.0)
      for running, value in ((mean, group_mean), (var, group_var)):
        of_groups = jax.lax.stop_gradient(value)
        step = (1 - self.momentum) * (of_groups - running.value)
        running.value = jnp.sum(share * (running.value + step), (0, 1, 2))
    return normalised.reshape(x.shape)[:batch].astype(self.dtype)

  def _devices_together(self, batch: int, rows: Rows) -> int:
    """How many neighbouring devices make up a group; 1: groups are local."""
    if rows.devices == 1 or batch % self.group_size == 0:
      return 1
    if self.group_size % batch and batch * rows.devices > self.group_size:
      raise ValueError(
        f'groups of {self.group_size} examples do not fit {batch} examples on '
        f'each of {rows.devices} devices: choose a multiple or a divisor'
      )
    return min(self.group_size // batch, rows.devices)


class Alone(NamedTuple):
  """Of a group that lies on one device."""

  def total(self, value: jax.Array) -> jax.Array:
    """The sum over the devices that share a group."""
    return value


class Gatherer(NamedTuple):
  """Of each device that shares a group its value, on all of them.

  Attributes:
    together: devices that share a group.
    devices: of the batch.
    axis: along which they lie.
  """

  together: int
  devices: int
  axis: str

  def total(self, value: jax.Array) -> jax.Array:
    """The sum over the devices that share a group."""
    return jnp.sum(self.each(value), 0)

  def each(self, value: jax.Array) -> jax.Array:
    """[...] -> [together, ...]."""
    together, devices = self.together, self.devices
    if devices % together == 0:
      groups = np.arange(devices).reshape(-1, together).tolist()
      return jax.lax.all_gather(value, self.axis, axis_index_groups=groups)
    # The last group has fewer, and groups of several lengths are not to be had:
    # every device fills in its own place of all.
    index = jax.lax.axis_index(self.axis)
    own = jnp.arange(-(-devices // together) * together) == index
    spread = jnp.where(own.reshape(-1, *[1] * value.ndim), value[None], 0.0)
    everywhere = jax.lax.psum(spread, self.axis)
    everywhere = everywhere.reshape(-1, together, *value.shape)
    return everywhere[index // together]


def _gatherer(together: int, rows: Rows) -> Gatherer:
  assert rows.axis is not None, 'several devices share an axis'
  return Gatherer(together, rows.devices, rows.axis)


class Kind(NamedTuple):
  """What of a layer is known when it is compiled.

  Attributes:
    epsilon: added to the variance.
    gather: values of the devices that share a group.
  """

  epsilon: float
  gather: Alone | Gatherer


# Squares that are added up lose (mean - shift)^2 / variance roundings of
# float32; with more the sums are made anew around the mean.
FAR = 16.0
UNSEEN = 2.0**-22  # of (mean - shift)^2, a variance that such sums do not show


def _means(values: Sequence[jax.Array], share: jax.Array) -> jax.Array:
  """Of each over places and real examples: [values, groups, 1, 1, C].

  Places come first: so nothing of the size of the values is masked, and a TPU
  adds them up beside the convolution that they come from.
  """
  of_examples = [jnp.sum(v, 2, keepdims=True) for v in values]
  return jnp.stack([jnp.sum(e * share, 1, keepdims=True) for e in of_examples])


def _around(x: jax.Array, share: jax.Array, shift: jax.Array):
  """Mean and mean square of the distance to a shift, of each group."""
  distance = x.astype(jnp.float32) - shift
  return _means([distance, jnp.square(distance)], share)


def _two_passes(x, share, running):
  """Mean and variance of each group: first the one, then around it the other.

  Args:
    x: [groups, size, places, C].
    share: of each example's places in the mean, [groups, size, 1, 1].
    running: any guess of the mean, [C].
  """
  mean = running + _around(x, share, running)[0]
  return mean, _around(x, share, mean)[1]


def _one_pass(x, share, running, epsilon=1e-5):
  """The same from sums that a TPU makes beside the convolution before.

  They are around the running mean; where that is still far from the mean, as in
  the first updates, once more around the mean. Not of bfloat16: a branch costs
  even where it is not taken, because what it might read has to lie in the large
  memory of the chip. What the sums lose is less than what rounding to bfloat16
  changed; of values that were never rounded, such as a constant with a few
  exceptions, the variance is at least what cannot be told from none.
  """

  def around(guess):
    step, square = _around(x, share, guess)
    return step, guess + step, square - jnp.square(step)

  step, mean, variance = around(running)
  if x.dtype == jnp.bfloat16:
    return mean, jnp.maximum(variance, UNSEEN * jnp.square(step))
  # Of a channel that is constant the variance may be as wrong as the epsilon
  # that is added to it allows.
  far = jnp.any(jnp.square(step) > FAR * (variance + epsilon))
  return jax.lax.cond(far, lambda: around(mean)[1:], lambda: (mean, variance))


def _statistics(x, mask, running, kind: Kind):
  """Mean, variance and number of entries of each group, on all its devices."""
  entries = x.shape[2] * jnp.sum(mask, 1, keepdims=True)
  count = jnp.maximum(entries, 1.0)
  share = mask / count
  mean, variance = jax.lax.platform_dependent(
    x,
    share,
    running,
    tpu=partial(_one_pass, epsilon=kind.epsilon),
    default=_two_passes,
  )
  if isinstance(kind.gather, Alone):
    return mean, variance, count
  each = jnp.stack([jnp.broadcast_to(entries, mean.shape), mean, variance])
  counts, means, variances = jnp.moveaxis(kind.gather.each(each), 1, 0)
  count = jnp.maximum(jnp.sum(counts[..., :1], 0), 1.0)
  weights = counts / count
  mean = jnp.sum(weights * means, 0)
  variance = jnp.sum(weights * (variances + jnp.square(means - mean)), 0)
  return mean, variance, count


def _plainly(
  x, mask, scale_and_bias, running, kind: Kind
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(x - mean) / sqrt(variance + epsilon) * scale + bias, by groups.

  Its gradient takes one more pass over x and the gradient of the result; it has
  none in forward mode (`jax.jvp`).

  Args:
    x: [groups, size, places, C].
    mask: of real examples, [groups, size, 1, 1].
    scale_and_bias: [C] each.
    running: mean, [C].
    kind: of the layer.

  Returns:
    The result, of the shape of x; mean and variance of each group, [groups, 1,
    1, C], which have no gradient. All float32.
  """
  return _normalise_forward(x, mask, scale_and_bias, running, kind)[0]


def _normalise_forward(x, mask, scale_and_bias, running, kind):
  scale, bias = scale_and_bias
  mean, variance, count = _statistics(x, mask, running, kind)
  factor = jax.lax.rsqrt(variance + kind.epsilon)
  # A group of empty slots alone has no variance: 300 times larger at each
  # layer, it would not stay finite.
  factor = jnp.where(jnp.any(mask > 0, 1, keepdims=True), factor, 0.0)
  result = (x.astype(jnp.float32) - mean) * (factor * scale) + bias
  kept = x, mask, count, scale, mean, factor
  return (result, mean, variance), kept


def _normalise_backward(kind, kept, cotangents):
  x, mask, count, scale, mean, factor = kept
  above = cotangents[0].astype(jnp.float32)
  distance = x.astype(jnp.float32) - mean
  # What is not real is normalised, too, but no part of mean and variance.
  here = _means([above, above * distance], jnp.ones_like(mask) / count)
  through_mean, through_variance = kind.gather.total(here)
  slope = factor * scale
  through_mean = slope * through_mean
  through_variance = slope * (factor * (factor * through_variance))
  below = slope * above - mask * (through_mean + distance * through_variance)
  to_bias = jnp.sum(count * here[0], (0, 1, 2))
  to_scale = jnp.sum(count * factor * here[1], (0, 1, 2))
  return (
    below.astype(x.dtype),
    None,
    (to_scale.astype(scale.dtype), to_bias.astype(scale.dtype)),
    None,
  )


_normalise = jax.custom_vjp(_plainly, nondiff_argnums=(4,))
_normalise.defvjp(_normalise_forward, _normalise_backward)
