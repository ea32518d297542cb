"""Which parameters weight decay, trust ratios and measures apply to."""

import re
from typing import Any

import jax

_NORM_MODULE = re.compile(r'(batch|layer|group|instance|rms)_?norm', re.I)
# Also by the names that networks give such layers: attention_norm_0, bn1, ln_f.
_ANY_NORM = re.compile(
  r'norm(?!al)|normali[sz]|^(bn|ln)(\d|_|$)|_(bn|ln)(\d|_|$)', re.I
)
_NORM_PARAMETERS = frozenset(['scale', 'bias', 'weight', 'gamma', 'beta'])


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
    names = _names(path)
    return (
      leaf.ndim >= 2
      and names[-1:] not in (['bias'], ['scale'])
      and not any(_NORM_MODULE.search(name) for name in names)
    )

  return jax.tree_util.tree_map_with_path(keep, params)


def norms_alone(params: Any) -> Any:
  """Marks the scales and biases of normalisation layers.

      mask = name in (scale, bias, weight, gamma, beta)
             and  the layer that it is of has norm, or the word bn or ln, in its
             name

  By names alone: a bias of a dense layer has the shape of a normalisation's.

  Args:
    params: pytree of arrays, or of gradients, with Flax's or Equinox's names.

  Returns:
    A pytree of booleans of the same structure.

  >>> norms_alone({'attention_norm_0': {'scale': 1.0, 'bias': 0.0},
  ...              'Dense_0': {'kernel': 1.0, 'bias': 0.0}})
  {'Dense_0': {'bias': False, 'kernel': False}, \
'attention_norm_0': {'bias': True, 'scale': True}}
  """

  def is_norm(path, leaf):
    del leaf
    # Of layers in a list the list has the name.
    names = [name for name in _names(path) if not name.isdigit()]
    return (
      len(names) > 1
      and names[-1] in _NORM_PARAMETERS
      and _ANY_NORM.search(names[-2]) is not None
    )

  return jax.tree_util.tree_map_with_path(is_norm, params)


def _names(path: Any) -> list[str]:
  names = [jax.tree_util.keystr((key,), simple=True) for key in path]
  # Boxed parameters (flax's metadata) end in an attribute `value`.
  while names and names[-1] == 'value':
    names.pop()
  return names
