"""Muon for the matrices, Adam for the rest."""

import re
from typing import Any

import jax
import optax

from adabatch.optim.masks import no_norms_and_biases

_EMBEDDING = re.compile('embed|vectors|logits|position', re.I)
# Root mean square of an update, of about what Adam's have.
_RMS = 0.2


def matrices(params: Any) -> Any:
  """Marks the leaves that Muon is for: all that map vectors to vectors.

      mask = no_norms_and_biases  and  rank 2, or 4 and more (convolutions)
             and  not in an embedding or its inverse

  Of rank 3 nobody knows which axes are of inputs, as in [in, heads, out] of
  attention.

  Args:
    params: pytree of arrays, or of gradients, with Flax's names.

  Returns:
    A pytree of booleans of the same structure, False also where a name holds
    `embed`, `vectors`, `logits` or `position`.

  Reference: Jordan et al., Muon: an optimizer for hidden layers in neural
  networks, 2024 (kellerjordan.github.io/posts/muon).

  >>> import jax.numpy as jnp
  >>> ones = jnp.ones((2, 2))
  >>> matrices({'Dense_0': {'kernel': ones}, 'Embed_0': {'embedding': ones}})
  {'Dense_0': {'kernel': True}, 'Embed_0': {'embedding': False}}
  """

  def hidden(path, kept, leaf):
    embedding = _EMBEDDING.search(jax.tree_util.keystr(path))
    return kept and leaf.ndim != 3 and embedding is None

  return jax.tree_util.tree_map_with_path(
    hidden, no_norms_and_biases(params), params
  )


def scale_by_muon_or_adam(
  momentum: jax.typing.ArrayLike = 0.95,
  adam: optax.GradientTransformation | None = None,
  *,
  outputs_first: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Muon for the matrices, Adam for the rest, at one learning rate.

      matrices  u = 0.2 sqrt(max(m, n)) O,  O about U V^T of U S V^T = M
      others    u = Adam(g)

  M [m, n] is Nesterov's momentum of the gradient, a kernel of a convolution
  being a matrix [height width inputs, outputs], or [outputs, inputs height
  width] with `outputs_first`. The factor gives O, whose
  entries have the root mean square 1 / sqrt(max(m, n)), the size of Adam's
  updates, so that learning rate and weight decay serve both.

  Args:
    momentum: of the matrices, as an average of gradients.
    adam: for the rest; None: `optax.scale_by_adam()`.
    outputs_first: whether the outputs of a kernel are its first axis, as in
      Equinox and torch, and not its last, as in Flax.

  Returns:
    A transform; `matrices` tells what is one.

  Reference: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); Liu et
  al., Muon is Scalable for LLM Training, 2025 (arXiv 2502.16982), for the
  factor.

  >>> import jax.numpy as jnp
  >>> tx = scale_by_muon_or_adam()
  >>> params = {'kernel': jnp.eye(2), 'bias': jnp.ones(2)}
  >>> updates, _ = tx.update(params, tx.init(params), params)
  >>> print(jnp.round(updates['bias'], 3))
  [1. 1.]
  """
  axis = 0 if outputs_first else -1
  muon = optax.contrib.scale_by_muon(
    beta=momentum,
    weight_dimension_numbers=lambda tree: _as_matrices(tree, axis),
  )
  return optax.with_extra_args_support(
    optax.partition(
      {
        'muon': optax.chain(
          muon, optax.stateless(lambda u, params: _like_adam(u, axis))
        ),
        'adam': optax.scale_by_adam() if adam is None else adam,
      },
      lambda params: jax.tree.map(
        lambda matrix: 'muon' if matrix else 'adam', matrices(params)
      ),
    )
  )


def _as_matrices(tree: Any, outputs: int) -> Any:
  """All axes but that of the outputs are of inputs."""

  def one(x):
    axes = list(range(x.ndim))
    axis = axes.pop(outputs)
    return optax.contrib.MuonDimensionNumbers(tuple(axes), axis)

  return jax.tree.map(one, tree)


def _like_adam(updates: Any, outputs: int) -> Any:
  def one(u):
    n = u.shape[outputs]
    return _RMS * max(u.size // n, n) ** 0.5 * u

  return jax.tree.map(one, updates)
