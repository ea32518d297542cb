"""Optimizers by name, with the learning rate of a moving batch size."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import optax

from adabatch.optim.adam import scale_by_adam_in_examples
from adabatch.optim.damping import scale_by_damping
from adabatch.optim.learning_rate import (
  LearningRateRule,
  scale_by_batch_learning_rate,
)
from adabatch.optim.masks import no_norms_and_biases
from adabatch.optim.muon import scale_by_muon_or_adam
from adabatch.optim.precision import in_float32
from adabatch.optim.scaling import Scaling
from adabatch.optim.trust import Mask, scale_by_lars
from adabatch.optim.weight_decay import decaying


class Hyperparameters(NamedTuple):
  """What the rows of OPTIMIZERS read.

      row(learning_rate, hyperparameters) -> transforms, in order

  Attributes:
    momentum: m, for momentum, nesterov, lars and muon.
    beta1: decay of Adam's first moment, for adam, adamw, lamb and muon.
    beta2: decay of Adam's second moment, likewise.
    epsilon: Adam's, in units of the gradient.
    weight_decay: wd: as L2 in the gradient for sgd, momentum, nesterov, adam
      and lars, decoupled for adamw, lamb and muon.
    decay_mask: where weight decay applies: a pytree of booleans or a function
      params -> such a tree; True is everywhere, None `no_norms_and_biases`.
    trust_coefficient: lars' trust; lamb has none.
    trust_mask: where lars and lamb scale by the trust ratio, likewise; t = 1
      elsewhere.
    beta2_reference_batch_size: if given, the batch size in examples at which
      beta2 holds; its half-life is then fixed in examples.
    beta2_min: beta2 of a large batch is then not lowered below this, nor below
      beta1^2; see `scale_by_adam_in_examples`.
    weight_decay_scaling: if given, batch size -> factor on weight_decay; see
      `decaying`.
    outputs_first: whether the first axis of a kernel is of its outputs, as in
      Equinox, for muon.
  """

  momentum: jax.typing.ArrayLike
  beta1: jax.typing.ArrayLike
  beta2: jax.typing.ArrayLike
  epsilon: jax.typing.ArrayLike
  weight_decay: jax.typing.ArrayLike
  decay_mask: Mask | None
  trust_coefficient: jax.typing.ArrayLike
  trust_mask: Mask | None
  beta2_reference_batch_size: jax.typing.ArrayLike | None
  beta2_min: jax.typing.ArrayLike
  weight_decay_scaling: Scaling | None
  outputs_first: bool


def _mask(mask: Mask | None) -> Mask:
  # The default is not this function, which inject_hyperparams would call.
  return no_norms_and_biases if mask is None else mask


def _decay(h: Hyperparameters) -> optax.GradientTransformation:
  return decaying(
    lambda decay: optax.add_decayed_weights(decay, _mask(h.decay_mask)),  # pyright: ignore
    h.weight_decay,
    h.weight_decay_scaling,
  )


def _trace(h: Hyperparameters, nesterov: bool) -> optax.GradientTransformation:
  return optax.trace(h.momentum, nesterov)


def _adam(h: Hyperparameters) -> optax.GradientTransformation:
  if h.beta2_reference_batch_size is None:
    return optax.scale_by_adam(h.beta1, h.beta2, h.epsilon)
  return scale_by_adam_in_examples(
    h.beta1,
    h.beta2,
    h.epsilon,
    reference_batch_size=h.beta2_reference_batch_size,
    b2_min=h.beta2_min,
  )


def _lars(h: Hyperparameters) -> optax.GradientTransformation:
  return decaying(
    lambda decay: scale_by_lars(
      decay,
      h.trust_coefficient,
      decay_mask=_mask(h.decay_mask),
      trust_mask=_mask(h.trust_mask),
    ),
    h.weight_decay,
    h.weight_decay_scaling,
  )


def _muon(h: Hyperparameters) -> optax.GradientTransformation:
  return scale_by_muon_or_adam(
    h.momentum, _adam(h), outputs_first=h.outputs_first
  )


def _trust(h: Hyperparameters) -> optax.GradientTransformation:
  return optax.masked(optax.scale_by_trust_ratio(), _mask(h.trust_mask))


# (learning rate, hyperparameters) -> transforms, in order.
Row = Callable[
  [optax.GradientTransformation, Hyperparameters],
  tuple[optax.GradientTransformation, ...],
]

# Each row reads as the optimizer's definition, left to right. The learning
# rate comes after the velocity, so Goyal's momentum correction is not needed;
# LARS alone applies it before, as published. make_optimizer adds the damping.
OPTIMIZERS: dict[str, Row] = {
  # stochastic gradient descent
  'sgd': lambda lr, h: (_decay(h), lr),
  # with a velocity: v = momentum v + g
  'momentum': lambda lr, h: (_decay(h), _trace(h, nesterov=False), lr),
  # with Nesterov's momentum
  'nesterov': lambda lr, h: (_decay(h), _trace(h, nesterov=True), lr),
  # Adam, weight decay as L2 in the gradient
  'adam': lambda lr, h: (_decay(h), _adam(h), lr),
  # Adam with decoupled weight decay
  'adamw': lambda lr, h: (_adam(h), _decay(h), lr),
  # momentum whose steps are in proportion to each layer's norm
  'lars': lambda lr, h: (_lars(h), lr, _trace(h, nesterov=False)),
  # Adam whose steps are in proportion to each layer's norm
  'lamb': lambda lr, h: (_adam(h), _decay(h), _trust(h), lr),
  # orthogonalised momentum for matrices, AdamW for the rest
  'muon': lambda lr, h: (_muon(h), _decay(h), lr),
}


LearningRate = (
  jax.typing.ArrayLike
  | LearningRateRule
  | optax.Schedule
  | optax.GradientTransformation
)


def make_optimizer(
  name: str,
  learning_rate: LearningRate,
  *,
  momentum: jax.typing.ArrayLike = 0.9,
  beta1: jax.typing.ArrayLike = 0.9,
  beta2: jax.typing.ArrayLike = 0.999,
  epsilon: jax.typing.ArrayLike = 1e-8,
  weight_decay: jax.typing.ArrayLike = 0.0,
  decay_mask: Mask | None = None,
  trust_coefficient: jax.typing.ArrayLike = 0.001,
  trust_mask: Mask | None = None,
  beta2_reference_batch_size: jax.typing.ArrayLike | None = None,
  beta2_min: jax.typing.ArrayLike = 0.95,
  weight_decay_scaling: Scaling | None = None,
  outputs_first: bool = False,
  clip_norm: jax.typing.ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
  """An optimizer by name, for a batch size that moves.

      sgd       u = -lr g                      g here with L2: g + wd p
      momentum  v <- m v + g,  u = -lr v
      nesterov  v <- m v + g,  u = -lr (g + m v)
      adam      u = -lr Adam(g)
      adamw     u = -lr (Adam(g) + wd p)       g here without L2
      lars      v <- m v - lr t g,  u = v      by leaf, g' being without L2:
                                               t = trust |p| / (|g'| + wd |p|)
      lamb      u = -lr t (Adam(g) + wd p)     t = |p| / |Adam(g) + wd p|
      muon      u = -lr (Muon(g) + wd p)       Adam(g) where p is no matrix
      all       g <- min(1, clip / |g|) g      first, |g| of all leaves together
                u <- damping u                 last, so that it acts at once

  Computed in at least float32, cast to the gradients' dtype at the end; an
  optimizer ignores the hyperparameters that it has not.

  Args:
    name: a key of OPTIMIZERS.
    learning_rate: a base as `scale_by_batch_learning_rate` takes it, or a
      transform that multiplies by minus the learning rate, such as that one.
    clip_norm: clip, the largest norm of a gradient; None for any.

  The others are `Hyperparameters`.

  Returns:
    A transform whose `update` needs params and the scalars `batch_size`,
    `damping` and `examples`, takes `gradient_noise` and ignores any other.

  Raises:
    ValueError: name is not in OPTIMIZERS, or learning_rate is a function whose
      parameters do not tell what it takes.

  Reference: Goyal et al. 2017 (arXiv 1706.02677) for the SGD family, Kingma
  and Ba 2014 (arXiv 1412.6980), Loshchilov and Hutter 2017 (arXiv 1711.05101),
  You et al. 2017 (arXiv 1708.03888) and 2019 (arXiv 1904.00962).

  >>> import jax.numpy as jnp
  >>> tx = make_optimizer('nesterov', 0.1)
  >>> params = {'kernel': jnp.ones((1, 1))}
  >>> updates, _ = tx.update(params, tx.init(params), params,
  ...                        batch_size=64, damping=0.5, examples=0)
  >>> print(updates['kernel'])  # -0.1 * (1 + 0.9) * 0.5
  [[-0.095]]
  """
  if not isinstance(learning_rate, optax.GradientTransformation):
    learning_rate = scale_by_batch_learning_rate(learning_rate)
  hyperparameters = Hyperparameters(
    momentum=momentum,
    beta1=beta1,
    beta2=beta2,
    epsilon=epsilon,
    weight_decay=weight_decay,
    decay_mask=decay_mask,
    trust_coefficient=trust_coefficient,
    trust_mask=trust_mask,
    beta2_reference_batch_size=beta2_reference_batch_size,
    beta2_min=beta2_min,
    weight_decay_scaling=weight_decay_scaling,
    outputs_first=outputs_first,
  )
  return framed(_row(name)(learning_rate, hyperparameters), clip_norm)


def _row(name: str) -> Row:
  if name not in OPTIMIZERS:
    raise ValueError(
      f'unknown optimizer {name!r}; choose one of {", ".join(OPTIMIZERS)}'
    )
  return OPTIMIZERS[name]


def framed(
  transforms: Iterable[optax.GradientTransformation],
  clip_norm: jax.typing.ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
  """What every optimizer has around it: clipping first, damping last.

      clip, transforms, damping; in at least float32

  Args:
    transforms: of the optimizer, in order.
    clip_norm: largest norm of a gradient, of all leaves together; None for any.

  Returns:
    A transform whose `update` needs the keyword argument `damping`.

  Reference: Pascanu et al., On the difficulty of training Recurrent Neural
  Networks, 2012 (arXiv 1211.5063), for the clipping.

  >>> import jax.numpy as jnp
  >>> tx = framed([optax.sgd(1.0)], clip_norm=1.0)
  >>> g = jnp.array([3.0, 4.0])
  >>> print(tx.update(g, tx.init(g), damping=0.5)[0])
  [-0.3 -0.4]
  """
  clip = () if clip_norm is None else (optax.clip_by_global_norm(clip_norm),)
  return in_float32(optax.chain(*clip, *transforms, scale_by_damping()))
