"""The image networks: published sizes, golden logits, rows and precision."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from adabatch.models import (
  MODELS,
  VGG,
  CifarResNet,
  DenseNet,
  LeNet,
  PooledCNN,
  ResNet,
  Rows,
  SimpleCNN,
  StridedCNN,
  WideResNet,
)
from adabatch.models.dropout import Dropout
from adabatch.models.resnet import RESNETS, BasicBlock, BottleneckBlock
from adabatch.train.networks import LANGUAGE_MODELS

MNIST, CIFAR, IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)


def close(a, b, rel=1e-6):
  """Equal pytrees, relative to the largest entry of each array."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    x, y = np.asarray(x), np.asarray(y)
    np.testing.assert_allclose(x, y, rtol=0, atol=rel * np.abs(y).max())


def draw(shape, seed=0):
  rng = np.random.Generator(np.random.Philox(seed))
  return rng.standard_normal(shape, np.float32)


# Sizes.


@functools.cache
def shapes(model, image, batch=1):
  """Shapes of the variables and of the outputs of every layer."""
  logits, variables = jax.eval_shape(
    lambda: model.init_with_output(
      {'params': jax.random.key(0)},
      jnp.zeros((batch, *image)),
      train=False,
      capture_intermediates=True,
      mutable=True,
    )
  )
  return logits, variables


def parameters(model, image):
  _, variables = shapes(model, image)
  return sum(v.size for v in jax.tree.leaves(variables['params']))


def multiply_adds(model, image):
  """Of the convolutions and dense layers, for one image."""
  _, variables = shapes(model, image)

  def count(params, outputs):
    if 'kernel' in params:
      [output] = outputs['__call__']
      return math.prod(output.shape) * math.prod(params['kernel'].shape[:-1])
    return sum(
      count(params[name], outputs[name])
      for name in params
      if isinstance(params[name], dict) and name in outputs
    )

  return count(variables['params'], variables['intermediates'])


@pytest.mark.parametrize(
  ('model', 'image', 'expected'),
  [
    (PooledCNN(10), MNIST, 111_050),
    (SimpleCNN(10), MNIST, 3_274_634),
    (LeNet(10), MNIST, 61_706),
    (LeNet(10), (32, 32, 1), 61_706),
    (CifarResNet(10, 20), CIFAR, 269_722),
    (CifarResNet(10, 32), CIFAR, 464_154),
    (CifarResNet(10, 44), CIFAR, 658_586),
    (CifarResNet(10, 56), CIFAR, 853_018),
    (ResNet(1000, 18), IMAGENET, 11_689_512),
    (ResNet(1000, 34), IMAGENET, 21_797_672),
    (ResNet(1000, 50), IMAGENET, 25_557_032),
    (ResNet(1000, 101), IMAGENET, 44_549_160),
    (ResNet(10, 18, stem='cifar'), CIFAR, 11_173_962),
    (WideResNet(10, 16, 4), CIFAR, 2_748_890),
    (WideResNet(10, 28, 10), CIFAR, 36_479_194),
    (WideResNet(100, 28, 10), CIFAR, 36_536_884),
    (DenseNet(10, 40, 12), CIFAR, 1_019_722),
    (DenseNet(100, 40, 12), CIFAR, 1_060_132),
    (VGG(1000, 11), IMAGENET, 132_863_336),
    (VGG(1000, 16), IMAGENET, 138_357_544),
  ],
)
def test_published_parameters(model, image, expected):
  assert parameters(model, image) == expected


# Billions for one image, as torchvision states them and papers on pruning do
# (WRN-28-10, ResNet-56). Parameters do not see strides, padding and pooling;
# these numbers do: ResNet-50 with the stride in the first 1x1 convolution of a
# block would have 3.86.
@pytest.mark.parametrize(
  ('model', 'image', 'billions'),
  [
    (ResNet(1000, 18), IMAGENET, 1.814),
    (ResNet(1000, 34), IMAGENET, 3.664),
    (ResNet(1000, 50), IMAGENET, 4.089),
    (ResNet(1000, 101), IMAGENET, 7.801),
    (VGG(1000, 11), IMAGENET, 7.609),
    (VGG(1000, 16), IMAGENET, 15.47),
    (WideResNet(10, 28, 10), CIFAR, 5.245),
    (CifarResNet(10, 56), CIFAR, 0.1255),
  ],
)
def test_published_multiply_adds(model, image, billions):
  assert multiply_adds(model, image) == pytest.approx(1e9 * billions, rel=1e-3)


def conv(before, after, bias, window=3):
  return window * window * before * after + (after if bias else 0)


@pytest.mark.parametrize('hidden', [(), (128,), (64, 32, 16)])
@pytest.mark.parametrize('image', [(64,), (8, 8, 3)])
def test_mlp_parameters(hidden, image):
  sizes = [math.prod(image), *hidden, 7]
  expected = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
  assert parameters(MODELS['mlp'](7, hidden_sizes=hidden), image) == expected


@pytest.mark.parametrize('group', [0, 8])
@pytest.mark.parametrize('image', [MNIST, CIFAR, (9, 5, 1)])
def test_strided_cnn_parameters(group, image):
  height, width, depth = image
  expected = 0
  for channels in (4, 6):
    expected += conv(depth, channels, True) + (2 * channels if group else 0)
    height, width, depth = -(-height // 2), -(-width // 2), channels
  expected += (height * width * depth + 1) * 20 + (20 + 1) * 10
  model = StridedCNN(10, (4, 6), hidden_size=20, batch_norm_group=group)
  assert parameters(model, image) == expected


@pytest.mark.parametrize(
  ('channels', 'hidden'), [((16, 32), 512), ((32, 64), 1024), ((64, 128), 2048)]
)
@pytest.mark.parametrize('image', [MNIST, CIFAR])
def test_simple_cnn_parameters(channels, hidden, image):
  first, second = channels
  pixels = (image[0] // 4) * (image[1] // 4)
  expected = conv(image[2], first, True, 5) + conv(first, second, True, 5)
  expected += (pixels * second + 1) * hidden + (hidden + 1) * 10
  assert parameters(SimpleCNN(10, channels, hidden), image) == expected


@pytest.mark.parametrize('group', [0, 32])
@pytest.mark.parametrize('width', [4, 16])
def test_cifar_resnet_parameters(group, width):
  bias = not group
  w = (width, 2 * width, 4 * width)
  expected = conv(3, w[0], bias)
  for before, after in ((w[0], w[0]), (w[0], w[1]), (w[1], w[2])):
    expected += conv(before, after, bias) + conv(after, after, bias)
  expected += (w[2] + 1) * 10
  if group:
    expected += 2 * (w[0] + 2 * sum(w))
  model = CifarResNet(10, 8, width, batch_norm_group=group)
  assert parameters(model, CIFAR) == expected


@pytest.mark.parametrize('group', [0, 32])
@pytest.mark.parametrize(('growth', 'layers'), [(12, 12), (24, 5)])
def test_densenet_parameters(group, growth, layers):
  """A layer that sees c channels has 2 c + 9 c k parameters."""
  block = layers * growth
  starts = (16, 16 + block, 16 + 2 * block)
  seen = [s + i * growth for s in starts for i in range(layers)]
  between, last = starts[1:], 16 + 3 * block
  expected = 9 * 3 * 16 + sum(9 * c * growth for c in seen)
  expected += sum(c * c for c in between) + (last + 1) * 10
  if group:
    expected += 2 * (sum(seen) + sum(between) + last)
  else:
    expected += 16 + len(seen) * growth + sum(between)
  model = DenseNet(10, 4 + 3 * layers, growth, batch_norm_group=group)
  assert parameters(model, CIFAR) == expected


def test_vgg_parameters_with_batch_norm():
  """Instead of a bias each channel has a scale and a bias."""
  channels = 64 + 128 + 2 * 256 + 4 * 512
  model = VGG(1000, 11, batch_norm_group=32)
  assert parameters(model, IMAGENET) == 132_863_336 + channels


@pytest.mark.parametrize('size', [32, 63, 64])
def test_vgg_flattens_what_is_left(size):
  left = (size // 32) ** 2
  difference = parameters(VGG(10, width=4, dense_size=8), (size, size, 3))
  difference -= parameters(VGG(10, width=4, dense_size=8), CIFAR)
  assert difference == (left - 1) * 32 * 8


# Behaviour.

# Each with its image and logit 5 of 10 for a ramp from -1 to 1 as image and key
# 0. The logits change when the architecture or the initialisation does.
SMALL = (8, 8, 3)
NETWORKS = {
  'mlp': (MODELS['mlp'](10), MNIST, 0.38981456),
  'strided_cnn': (StridedCNN(10), MNIST, 0.04971111),
  'strided_cnn_bn': (StridedCNN(10, batch_norm_group=8), MNIST, 0.04971061),
  'pooled_cnn': (PooledCNN(10), MNIST, 0.20895264),
  'simple_cnn': (SimpleCNN(10), MNIST, -0.05126845),
  'lenet': (LeNet(10), MNIST, 0.05883076),
  'resnet_8': (CifarResNet(10, 8, batch_norm_group=0), SMALL, -0.14272447),
  'resnet_14': (CifarResNet(10, 14, batch_norm_group=8), SMALL, 0.08811873),
  'resnet_18': (
    ResNet(10, 18, stem='cifar', batch_norm_group=8),
    SMALL,
    -0.01115161,
  ),
  'resnet_50': (ResNet(10, batch_norm_group=8), CIFAR, 0.01356917),
  'wide_resnet': (
    WideResNet(10, dropout_rate=0.3, batch_norm_group=8),
    SMALL,
    -0.24409038,
  ),
  'densenet': (
    DenseNet(10, 10, dropout_rate=0.2, batch_norm_group=8),
    SMALL,
    -0.60898864,
  ),
  'vgg': (VGG(10, dense_size=256), CIFAR, 0.39492619),
  'vgg_bn': (
    VGG(10, width=16, dense_size=64, batch_norm_group=8),
    CIFAR,
    -0.17067111,
  ),
}
# resnet_50 has the layers of the others, and is compiled for long.
NORMED = [
  'strided_cnn_bn',
  'resnet_14',
  'resnet_18',
  'wide_resnet',
  'densenet',
  'vgg_bn',
]
# The other networks are trained by the smoke runs of the configs.
TRAINED = ['wide_resnet', 'densenet', 'vgg_bn']
DROPPED = ['wide_resnet', 'densenet', 'vgg', 'vgg_bn']
BATCH = 8
OPTIONS = {
  # Drawing kernels takes ten times longer to compile with optimisation.
  'xla_backend_optimization_level': 0,
  # The default fusions give NaN in some bfloat16 products on a CPU, for VGG
  # with JAX 0.12 and with 0.10 too for other shapes.
  'xla_cpu_experimental_ynn_fusion_type': '',
}


@functools.cache
def initial(name):
  model, image, _ = NETWORKS[name]
  init = functools.partial(model.init, train=False)
  jitted = jax.jit(init, compiler_options=OPTIONS)
  return jitted(jax.random.key(0), jnp.zeros((1, *image)))


@functools.cache
def perturbed(name):
  """No scale and no bias is at its initial value, 0 in some."""
  rng = np.random.Generator(np.random.Philox(1))

  def move(v):
    return v if v.ndim > 1 else v + rng.uniform(0.1, 0.5, v.shape)

  variables = initial(name)
  return {**variables, 'params': jax.tree.map(move, variables['params'])}


@functools.partial(jax.jit, static_argnums=(0, 3), compiler_options=OPTIONS)
def apply(model, variables, x, training, weights, places):
  return model.apply(
    variables,
    x,
    train=training,
    rows=Rows(weights, places),
    rngs={'dropout': jax.random.key(7)},
    mutable=['batch_stats'],
  )


def run(name, variables, x, training, weights=None, places=None, model=None):
  """Logits and new statistics; one executable for each mode of a network."""
  weights = np.ones(len(x)) if weights is None else weights
  places = np.arange(len(x)) if places is None else places
  return apply(
    model or NETWORKS[name][0],
    variables,
    x,
    training,
    np.asarray(weights, np.float32),
    np.asarray(places, np.int32),
  )


def images(name):
  """The first of them is the ramp of the golden logits."""
  shape = NETWORKS[name][1]
  x = draw((BATCH, *shape))
  x[0] = np.linspace(-1.0, 1.0, math.prod(shape)).reshape(shape)
  return x


def test_every_model_is_in_the_table_and_tested():
  tested = {type(model) for model, *_ in NETWORKS.values()}
  # Those of language are in test_language_models.
  assert tested == {
    MODELS[name] for name in MODELS if name not in LANGUAGE_MODELS
  }


@pytest.mark.parametrize('name', NETWORKS)
def test_golden_logit(name):
  logits, _ = run(name, initial(name), images(name), False)
  assert logits.shape == (BATCH, 10)
  assert logits.dtype == jnp.float32
  assert float(logits[0, 5]) == pytest.approx(NETWORKS[name][2], rel=1e-4)


@pytest.mark.parametrize('name', NETWORKS)
def test_logits_of_a_row_depend_on_that_row_only(name):
  x = images(name)
  variables = perturbed(name)
  logits, _ = run(name, variables, x, False)
  others = np.arange(BATCH) != 3
  moved = np.where(others[:, None, None, None], x, 30 * x + 5)
  changed, _ = run(name, variables, moved, False)
  close(changed[others], logits[others])
  assert np.all(changed[3] != logits[3])


@pytest.mark.parametrize('name', NETWORKS)
def test_bfloat16_is_near_float32(name):
  model, image, _ = NETWORKS[name]
  half = model.clone(dtype=jnp.bfloat16)
  logits, variables = shapes(half, image)
  params = jax.tree.leaves(variables['params'])
  statistics = jax.tree.leaves(variables.get('batch_stats', {}))
  assert {v.dtype for v in [*params, *statistics]} == {jnp.dtype('float32')}
  assert logits.dtype == jnp.float32
  # Every layer computes in bfloat16, the norms and the shortcuts included.
  outputs = jax.tree.leaves(variables['intermediates'])
  assert [v.dtype for v in outputs].count(jnp.float32) == 1
  if name == 'resnet_50':
    return  # compiled for long, and its layers are those of the others
  x = images(name)
  expected, _ = run(name, perturbed(name), x, False)
  got, _ = run(name, perturbed(name), x, False, model=half)
  assert got.dtype == jnp.float32
  assert not np.array_equal(got, expected)
  close(got, expected, 0.05)


@pytest.mark.parametrize('name', NORMED)
def test_only_training_touches_the_statistics(name):
  variables = perturbed(name)
  old = variables['batch_stats']
  _, evaluated = run(name, variables, images(name), False)
  close(evaluated['batch_stats'], old, 0)
  _, trained = run(name, variables, images(name), True)
  for before, after in zip(
    jax.tree.leaves(old), jax.tree.leaves(trained), strict=True
  ):
    assert np.mean(before != after) > 0.9


@pytest.mark.parametrize('name', TRAINED)
def test_every_parameter_has_a_gradient(name):
  """A finite one, in training."""
  variables = perturbed(name)

  @functools.partial(jax.jit, compiler_options=OPTIONS)
  def gradient(params):
    def loss(params):
      logits, _ = NETWORKS[name][0].apply(
        {**variables, 'params': params},
        images(name),
        train=True,
        rows=Rows(np.ones(BATCH, np.float32), np.arange(BATCH, dtype=np.int32)),
        rngs={'dropout': jax.random.key(7)},
        mutable=['batch_stats'],
      )
      return optax.losses.softmax_cross_entropy_with_integer_labels(
        logits, np.arange(BATCH)
      ).mean()

    return jax.grad(loss)(params)

  for path, g in jax.tree.leaves_with_path(gradient(variables['params'])):
    assert np.isfinite(g).all(), path
    assert np.abs(g).max() > 0, path


@pytest.mark.parametrize('name', NORMED)
def test_empty_rows_do_not_change_the_others_in_training(name):
  """Nor the statistics, whatever lies in them; as real rows they would."""
  x = images(name)
  weights = np.arange(BATCH) < 4
  variables = perturbed(name)
  logits, statistics = run(name, variables, x, True, weights)
  # Never in place: on a CPU, JAX may still be reading the array.
  moved = np.where(weights[:, None, None, None], x, 30 * x + 5)
  changed, same = run(name, variables, moved, True, weights)
  close(changed[:4], logits[:4])
  close(same, statistics)
  real, other = run(name, variables, moved, True)
  assert not np.allclose(real[:4], logits[:4], rtol=1e-2)
  first, second = jax.tree.leaves(other), jax.tree.leaves(statistics)
  assert not any(map(np.allclose, first, second))


@pytest.mark.parametrize('name', DROPPED)
def test_dropout_follows_the_place_of_a_row(name):
  """In another order of rows each has the logits it had."""
  x = images(name)
  order = np.array([2, 0, 1, 5, 3, 4, 7, 6])
  variables = perturbed(name)
  logits, _ = run(name, variables, x, True)
  moved, _ = run(name, variables, x[order], True, places=order)
  close(moved, logits[order], 1e-4)
  elsewhere, _ = run(name, variables, x, True, places=order)
  assert np.all(elsewhere != logits)


@pytest.mark.parametrize('name', NORMED)
def test_without_batch_norm(name):
  """There are no statistics, and every convolution has a bias."""
  model, image, _ = NETWORKS[name]
  _, variables = shapes(model, image)
  assert 'batch_stats' in variables
  _, variables = shapes(model.clone(batch_norm_group=0), image)
  assert 'batch_stats' not in variables

  def check(params):
    assert 'scale' not in params
    assert ('kernel' in params) == ('bias' in params)
    for value in params.values():
      if isinstance(value, dict):
        check(value)

  check(variables['params'])


@pytest.mark.parametrize(
  ('block', 'channels'), [(BasicBlock(8), 8), (BottleneckBlock(8), 32)]
)
def test_blocks_start_as_their_shortcuts(block, channels):
  x = np.abs(draw((2, 4, 4, channels)))
  y, _ = block.init_with_output(jax.random.key(0), x, train=False)
  np.testing.assert_array_equal(y, x)
  one = block.clone(zero_scale=False)
  y, _ = one.init_with_output(jax.random.key(0), x, train=False)
  assert not np.allclose(y, x, rtol=0.1)


@pytest.mark.parametrize('depth', RESNETS)
@pytest.mark.parametrize('zero', [True, False])
def test_every_block_is_told_its_last_scale(depth, zero, monkeypatch):
  told = []

  def last_scale(zero):
    told.append(zero)
    return nn.initializers.ones

  monkeypatch.setattr('adabatch.models.resnet.last_scale', last_scale)
  shapes.__wrapped__(ResNet(10, depth, 8, zero_scale=zero), CIFAR)
  assert told == [zero] * sum(RESNETS[depth][0])


@pytest.mark.parametrize(
  ('projection', 'new'), [(False, 'zeros'), (True, 'convolution')]
)
def test_shortcut_whose_shape_changes(projection, new):
  """Option A subsamples and appends channels of zeros."""
  block = BasicBlock(6, strides=2, projection=projection)
  x = np.abs(draw((2, 5, 5, 4)))
  y, _ = block.init_with_output(jax.random.key(0), x, train=False)
  expected = np.concatenate([x[:, ::2, ::2], np.zeros((2, 3, 3, 2))], axis=-1)
  assert np.array_equal(y, expected) == (new == 'zeros')


def test_lenet_surrounds_small_images_with_zeros():
  variables = initial('lenet')
  x = images('lenet')
  logits = LeNet(10).apply(variables, x, train=False)
  larger = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
  close(LeNet(10).apply(variables, larger, train=False), logits)


@pytest.mark.parametrize(
  ('model', 'image', 'message'),
  [
    (PooledCNN(10), (27, 28, 1), 'at least 28x28, got 27x28.*strided_cnn'),
    (PooledCNN(10), (28, 27, 1), 'at least 28x28.*strided_cnn or mlp'),
    (SimpleCNN(10), (4, 3, 1), 'at least 4x4, got 4x3.*mlp'),
    (VGG(10), (31, 32, 3), 'at least 32x32, got 31x32.*strided_cnn or mlp'),
    (VGG(10, 12), CIFAR, r'no depth 12: choose one of \[11, 16\]'),
    (DenseNet(10, 13), (3, 8, 3), 'at least 4x4, got 3x8.*mlp'),
    (DenseNet(10, 41), CIFAR, r'3 n \+ 4, got 41: choose 40'),
    (DenseNet(10, 4), CIFAR, r'3 n \+ 4, got 4: choose 40'),
    (CifarResNet(10, 18), CIFAR, r'6 n \+ 2, got 18: choose 8, 20'),
    (CifarResNet(10, 2), CIFAR, r'6 n \+ 2, got 2: choose 8, 20'),
    (WideResNet(10, 18), CIFAR, r'6 n \+ 4, got 18: choose 16'),
    (WideResNet(10, 4), CIFAR, r'6 n \+ 4, got 4: choose 16'),
    (
      ResNet(10, 20),
      CIFAR,
      r'no depth 20: choose one of \[10, 18, 34, 50, 101\]',
    ),
    (ResNet(10, stem='tiny'), CIFAR, "no stem 'tiny': choose 'imagenet'"),
  ],
)
def test_what_cannot_be_built_is_refused(model, image, message):
  with pytest.raises(ValueError, match=message) as error:
    shapes(model, image)
  assert '\n' not in str(error.value)


# Dropout.


class TwoDropouts(nn.Module):
  rate: float

  @nn.compact
  def __call__(self, x, *, train, rows=None):
    return tuple(Dropout(self.rate)(x, train=train, rows=rows) for _ in 'ab')


def drop(x, rate=0.3, train=True, places=None, key=0):
  rows = None
  if places is not None:
    rows = Rows(jnp.ones(len(x)), jnp.asarray(places))
  rngs = {'dropout': jax.random.key(key)}
  return TwoDropouts(rate).apply({}, x, train=train, rows=rows, rngs=rngs)


def test_dropout_masks_belong_to_places():
  """Microbatches, here of 3 and 5 rows, have the masks of the whole batch."""
  x = np.ones((8, 4, 5), np.float32)
  whole, second = drop(x)
  parts = [drop(x[:3], places=range(3))[0], drop(x[3:], places=range(3, 8))[0]]
  np.testing.assert_array_equal(np.concatenate(parts), whole)
  assert len(np.unique(whole.reshape(8, -1), axis=0)) == 8
  # Another layer and another key have other masks.
  assert not np.array_equal(whole, second)
  assert not np.array_equal(whole, drop(x, key=1)[0])


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_dropout_rate(rate):
  x = 1 + np.abs(draw((100, 100)))
  y, _ = drop(x, rate)
  kept = np.asarray(y) != 0
  # Five standard deviations, of the whole and of each row.
  deviation = 5 * math.sqrt(rate * (1 - rate))
  assert abs(kept.mean() - (1 - rate)) < deviation / 100
  assert np.all(abs(kept.mean(1) - (1 - rate)) < deviation / 10)
  np.testing.assert_allclose(y[kept], x[kept] / (1 - rate), rtol=1e-6)


def test_dropout_is_the_identity_unless_training():
  x = draw((4, 5))
  np.testing.assert_array_equal(
    TwoDropouts(0.5).apply({}, x, train=False)[0], x
  )
  np.testing.assert_array_equal(TwoDropouts(0.0).apply({}, x, train=True)[0], x)
  assert not np.array_equal(drop(x, 0.5)[0], x)
