"""Weight decay that follows the batch size."""

from collections.abc import Callable

import jax
import optax

from adabatch.optim.scaling import Scaling


def decaying(
  make: Callable[[jax.typing.ArrayLike], optax.GradientTransformation],
  weight_decay: jax.typing.ArrayLike,
  scaling: Scaling | None = None,
) -> optax.GradientTransformation:
  """What has a weight decay, with that of the batch size of each update.

      u, state <- make(weight_decay scaling(B)).update(g, state, params)

  Under Adam with decoupled decay the weights forget with a time scale of
  B / (lr wd) examples. To keep it as the batch grows, wd has to grow in
  proportion at a constant learning rate (`linear_scaling`), and with the square
  root where the learning rate does, too (`sqrt_scaling`).

  Args:
    make: weight decay -> transform, whose state does not depend on it.
    weight_decay: at the reference batch size of the scaling.
    scaling: batch size in examples -> factor; None is the same for all.

  Returns:
    A transform; with a scaling, its `update` needs the keyword argument
    `batch_size`.

  Reference: Bergsma et al., Power Lines: Scaling Laws for Weight Decay and
  Batch Size in LLM Pre-training, 2025 (arXiv 2505.13738), for the time scale
  and linear scaling.

  >>> import jax.numpy as jnp
  >>> from adabatch.optim import linear_scaling
  >>> tx = decaying(optax.add_decayed_weights, 0.1, linear_scaling(32))
  >>> ones = jnp.ones(1)
  >>> print(tx.update(0 * ones, tx.init(ones), ones, batch_size=64)[0])
  [0.2]
  """
  if scaling is None:
    return make(weight_decay)

  def update(
    updates,
    state,
    params=None,
    *,
    batch_size: jax.typing.ArrayLike,
    **extra,
  ):
    now = make(weight_decay * scaling(batch_size))
    inner = optax.with_extra_args_support(now)
    new, state = inner.update(
      updates, state, params, batch_size=batch_size, **extra
    )
    return jax.tree.map(lambda n, u: n.astype(u.dtype), new, updates), state

  # optax's type for update knows no required extra arguments.
  return optax.GradientTransformationExtraArgs(make(weight_decay).init, update)  # pyright: ignore
