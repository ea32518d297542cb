"""A train step of ResNet-50 as flax's ImageNet example does it, by hand.

The example's public form, written anew: ResNet-50 v1.5 of flax's own layers in
bfloat16, BatchNorm over the examples of a device (momentum 0.9, epsilon 1e-5),
label cross-entropy from one-hot labels, an L2 penalty of 1e-4 / 2 on kernels in
the loss, Nesterov momentum 0.9, gradients averaged over devices, BatchNorm's
running statistics left apart until an evaluation.

Source: https://github.com/google/flax/tree/main/examples/imagenet
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

SIDE, CLASSES = 224, 1000


class Bottleneck(nn.Module):
  """1x1, 3x3 with the stride, 1x1."""

  features: int
  strides: int
  conv: Any
  norm: Any

  @nn.compact
  def __call__(self, x):
    shortcut = x
    y = nn.relu(self.norm()(self.conv(self.features, (1, 1))(x)))
    strides = (self.strides, self.strides)
    y = nn.relu(self.norm()(self.conv(self.features, (3, 3), strides)(y)))
    y = self.conv(4 * self.features, (1, 1))(y)
    y = self.norm(scale_init=nn.initializers.zeros)(y)
    if shortcut.shape != y.shape:
      shortcut = self.conv(4 * self.features, (1, 1), strides)(shortcut)
      shortcut = self.norm()(shortcut)
    return nn.relu(shortcut + y)


class ResNet50(nn.Module):
  @nn.compact
  def __call__(self, x, train: bool = True):
    conv = partial(nn.Conv, use_bias=False, dtype=jnp.bfloat16)
    norm = partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=0.9,
      epsilon=1e-5,
      dtype=jnp.bfloat16,
    )
    x = conv(64, (7, 7), (2, 2), padding=[(3, 3), (3, 3)])(x)
    x = nn.max_pool(nn.relu(norm()(x)), (3, 3), (2, 2), padding='SAME')
    for stage, blocks in enumerate((3, 4, 6, 3)):
      for block in range(blocks):
        strides = 2 if stage and not block else 1
        x = Bottleneck(64 * 2**stage, strides, conv, norm)(x)
    x = nn.Dense(CLASSES, dtype=jnp.bfloat16)(jnp.mean(x, (1, 2)))
    return x.astype(jnp.float32)


def lowered(devices: Sequence[Any], images: int) -> Any:
  """The step of `images` on each device, lowered for devices not there."""
  mesh = Mesh(np.array(devices), ('batch',), axis_types=(AxisType.Auto,))
  model, tx = ResNet50(), optax.sgd(0.1, momentum=0.9, nesterov=True)

  def create(rng):
    example = jnp.zeros((1, SIDE, SIDE, 3), jnp.bfloat16)
    variables = model.init(rng, example)
    return variables, tx.init(variables['params'])

  def step(variables, opt_state, image, label):
    def loss(params):
      logits, new = model.apply(
        {'params': params, 'batch_stats': variables['batch_stats']},
        image,
        mutable=['batch_stats'],
      )
      targets = jax.nn.one_hot(label, CLASSES)
      value = jnp.mean(optax.softmax_cross_entropy(logits, targets))
      kernels = [p for p in jax.tree.leaves(params) if p.ndim > 1]
      decay = 0.5 * 1e-4 * sum(jnp.sum(jnp.square(p)) for p in kernels)
      return value + decay, (new['batch_stats'], logits)

    params = jax.lax.pcast(variables['params'], 'batch', to='varying')
    gradient, (stats, logits) = jax.grad(loss, has_aux=True)(params)
    right = jnp.mean(jnp.argmax(logits, -1) == label)
    gradient, right = jax.lax.pmean((gradient, right), 'batch')
    updates, opt_state = tx.update(gradient, opt_state, variables['params'])
    params = optax.apply_updates(variables['params'], updates)
    return {'params': params, 'batch_stats': stats}, opt_state, right

  whole, split = P(), P('batch')
  states = ({'params': whole, 'batch_stats': split}, whole)

  def apart(shapes):
    # A device's own statistics, which differ.
    return jax.tree.map(
      lambda s: jax.ShapeDtypeStruct((len(devices) * s.shape[0],), s.dtype),
      shapes,
    )

  variables, opt_state = jax.eval_shape(create, jax.random.key(0))
  variables['batch_stats'] = apart(variables['batch_stats'])
  count = len(devices) * images
  image = jax.ShapeDtypeStruct((count, SIDE, SIDE, 3), jnp.bfloat16)
  label = jax.ShapeDtypeStruct((count,), jnp.int32)

  def placed(spec, tree):
    if isinstance(spec, dict):
      return {k: placed(spec[k], tree[k]) for k in spec}
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
      lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), tree
    )

  program = jax.jit(
    jax.shard_map(
      step,
      mesh=mesh,
      in_specs=(*states, split, split),
      out_specs=(*states, whole),
    ),
    donate_argnums=(0, 1),
  )
  return program.lower(
    placed(states[0], variables),
    placed(whole, opt_state),
    placed(split, image),
    placed(split, label),
  )
