"""The train step of Flax's ImageNet example, in its public form, written anew.

ResNet-50 v1.5 in bfloat16; `nn.BatchNorm` over the images of a device, whose
running statistics devices agree on before an evaluation alone; cross-entropy of
one-hot labels; an L2 penalty on kernels in the loss; means of the gradients and
the metrics; SGD with Nesterov momentum. Images come as the reader left them,
normalised and in bfloat16.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = 'batch'
WEIGHT_DECAY = 1e-4


class Bottleneck(nn.Module):
  """Of v1.5: the stride is that of the 3x3 convolution."""

  features: int
  strides: int
  conv: Any
  norm: Any

  @nn.compact
  def __call__(self, x):
    y = nn.relu(self.norm()(self.conv(self.features, (1, 1))(x)))
    strides = (self.strides, self.strides)
    y = nn.relu(self.norm()(self.conv(self.features, (3, 3), strides)(y)))
    y = self.conv(4 * self.features, (1, 1))(y)
    y = self.norm(scale_init=nn.initializers.zeros_init())(y)
    if x.shape != y.shape:
      x = self.norm()(self.conv(4 * self.features, (1, 1), strides)(x))
    return nn.relu(x + y)


class ResNet(nn.Module):
  """ResNet-50 where `stages` is (3, 4, 6, 3)."""

  stages: tuple[int, ...] = (3, 4, 6, 3)
  features: int = 64
  num_classes: int = 1000
  dtype: Any = jnp.bfloat16

  @nn.compact
  def __call__(self, x, train: bool = True):
    conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
    norm = partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=0.9,
      epsilon=1e-5,
      dtype=self.dtype,
    )
    x = conv(self.features, (7, 7), (2, 2), padding=[(3, 3), (3, 3)])(x)
    x = nn.max_pool(nn.relu(norm()(x)), (3, 3), (2, 2), padding='SAME')
    for i, blocks in enumerate(self.stages):
      for j in range(blocks):
        strides = 2 if i and not j else 1
        x = Bottleneck(self.features * 2**i, strides, conv, norm)(x)
    x = nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))
    return x.astype(self.dtype)


def _loss(model, params, statistics, images, labels):
  logits, new = model.apply(
    {'params': params, 'batch_stats': statistics},
    images,
    mutable=['batch_stats'],
  )
  one_hot = jax.nn.one_hot(labels, model.num_classes)
  loss = optax.softmax_cross_entropy(logits.astype(jnp.float32), one_hot).mean()
  kernels = [p for p in jax.tree.leaves(params) if p.ndim > 1]
  penalty = sum(jnp.sum(jnp.square(p)) for p in kernels)
  return loss + 0.5 * WEIGHT_DECAY * penalty, (loss, logits, new['batch_stats'])


def train_step(model: ResNet, tx: optax.GradientTransformation):
  """(params, momenta, statistics, images, labels) -> the first three, metrics.

  On each device of AXIS; the statistics [1, ...] are its own.
  """

  def step(params, momenta, statistics, images, labels):
    own = jax.tree.map(lambda x: x[0], statistics)
    (_, (loss, logits, own)), gradients = jax.value_and_grad(
      partial(_loss, model), has_aux=True
    )(params, own, images, labels)
    correct = jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))
    gradients, metrics = jax.lax.pmean((gradients, (loss, correct)), AXIS)
    updates, momenta = tx.update(gradients, momenta, params)
    params = optax.apply_updates(params, updates)
    return params, momenta, jax.tree.map(lambda x: x[None], own), metrics

  return step


def lower(
  devices: Any,
  images: int,
  *,
  model: ResNet | None = None,
  side: int = 224,
) -> Any:
  """The step to compile.

  Args:
    devices: that share the batch.
    images: on each of them.
    model: ResNet-50, if it is left out.
    side: of an image.
  """
  model = ResNet() if model is None else model
  mesh = Mesh(np.array(devices).reshape(-1), (AXIS,))
  tx = optax.sgd(0.1, momentum=0.9, nesterov=True)
  number = mesh.devices.size
  batch = (number * images, side, side, 3)
  pictures = jax.ShapeDtypeStruct(batch, model.dtype)
  labels = jax.ShapeDtypeStruct(batch[:1], jnp.int32)

  def create():
    variables = model.init(jax.random.key(0), jnp.zeros((1, *batch[1:])))
    params, own = variables['params'], variables['batch_stats']
    everywhere = jax.tree.map(lambda x: jnp.stack([x] * number), own)
    return params, tx.init(params), everywhere

  specs = P(), P(), P(AXIS), P(AXIS), P(AXIS)
  arguments = [
    jax.tree.map(partial(_placed, NamedSharding(mesh, spec)), shapes)
    for spec, shapes in zip(
      specs, (*jax.eval_shape(create), pictures, labels), strict=True
    )
  ]
  # Gradients of what is the same everywhere are summed by hand, as in the
  # example.
  mapped = jax.shard_map(
    train_step(model, tx),
    mesh=mesh,
    in_specs=specs,
    out_specs=(*specs[:3], P()),
    check_vma=False,
  )
  return jax.jit(mapped, donate_argnums=(0, 1, 2)).lower(*arguments)


def _placed(sharding, shape):
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
