"""Which parameters weight decay and trust ratios apply to."""

import re
from typing import Any

import jax

_NORM_MODULE = re.compile(r'(batch|layer|group|instance|rms)_?norm', re.I)


def no_norms_and_biases(params: Any) -> Any:
  """Marks the leaves that weight decay and trust ratios apply to.

      mask = rank >= 2  and  name not in (bias, scale)  and  not in a norm

  Rank alone misses parameters stacked over layers or replicas, names alone
  miss other libraries' parameters; a leaf is left out by either.

  Args:
    params: pytree of arrays, or of gradients, with Flax's names.

  Returns:
    A pytree of booleans of the same structure, False for biases, for scales
    and for everything inside BatchNorm, LayerNorm, GroupNorm, InstanceNorm
    and RMSNorm modules.

  Reference: Goyal et al., Accurate, Large Minibatch SGD, 2017
  (arXiv 1706.02677), section 5.1.

  >>> import numpy as np
  >>> no_norms_and_biases({'Dense_0': {
  ...     'kernel': np.ones((2, 2)), 'bias': np.ones(2)}})
  {'Dense_0': {'bias': False, 'kernel': True}}
  """

  def keep(path, leaf):
    names = [jax.tree_util.keystr((key,), simple=True) for key in path]
    # Boxed parameters (flax's metadata) end in an attribute `value`.
    last = next((name for name in reversed(names) if name != 'value'), '')
    return (
      leaf.ndim >= 2
      and last not in ('bias', 'scale')
      and not any(_NORM_MODULE.search(name) for name in names)
    )

  return jax.tree_util.tree_map_with_path(keep, params)
