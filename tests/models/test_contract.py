"""What a model and a task must keep to is refused in one line where not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from adabatch import optim
from adabatch.controllers import buckets
from adabatch.data import Split
from adabatch.data.source import Inputs
from adabatch.devices import state as state_lib
from adabatch.devices.evaluation import Evaluator
from adabatch.devices.mesh import make_devices
from adabatch.devices.messages import Call
from adabatch.devices.pieces import resident_pieces
from adabatch.devices.recipe import Recipe
from adabatch.devices.trainer import Trainer
from adabatch.models import GhostBatchNorm, tasks

SPLIT = Split(
  {'x': np.ones((8, 4), np.float32), 'label': np.arange(8, dtype=np.int32)}, 8
)
TASK = tasks.classification()._replace(inputs=lambda batch: batch['x'])


def load(arrays, indices, positions):
  return {name: array[indices] for name, array in arrays.items()}


def make_recipe(model, task, devices=1, seed=0):
  return Recipe(
    model=model,
    task=task,
    tx=optim.make_optimizer('sgd', lambda examples, batch_size: 1.0),
    inputs=Inputs(SPLIT, SPLIT, False, 0, lambda seed: load, load),
    network_input=jax.ShapeDtypeStruct((1, 4), np.float32),
    devices=make_devices(
      jax.devices()[:devices], options={'xla_backend_optimization_level': 0}
    ),
    seed=seed,
  )


def updated(model, task=TASK, *, devices=1, max_per_device=None, seed=0):
  """The parameters after an update with all examples."""
  trainer = Trainer(make_recipe(model, task, devices, seed))
  ladder = buckets.ladder(8, 8, devices=devices, max_per_device=max_per_device)
  call = Call(0, 0, 1, buckets.plan(8, ladder))
  try:
    trainer.compile(call)
    trainer.dispatch(call, stop=False)
  finally:
    trainer.close()
  return jax.device_get(trainer.state.params)


class Dropped(nn.Module):
  """Its gradient is twice the mean over examples of their masks."""

  @nn.compact
  def __call__(self, x, *, train, rows=None):
    w = self.param('w', nn.initializers.zeros, x.shape[1:])
    return nn.Dropout(0.5, deterministic=not train)(w + 0 * x)


@pytest.mark.parametrize(('devices', 'room'), [(8, None), (1, 1)])
def test_plain_dropout_draws_anew_in_each_microbatch(devices, room):
  task = TASK._replace(loss=lambda outputs, batch: outputs.sum(1))
  w = updated(Dropped(), task, devices=devices, max_per_device=room)['w']
  kept = -w * 8 / 2
  np.testing.assert_allclose(kept, np.round(kept), atol=1e-5)
  # Of a single mask either all examples keep an entry or none does.
  assert ((kept > 0.5) & (kept < 7.5)).any()


class Wide(nn.Module):
  @nn.compact
  def __call__(self, x, *, train, rows=None):
    return nn.Dense(8)(x)


def test_parameters_and_dropout_see_all_bits_of_the_seed():
  task = TASK._replace(loss=lambda outputs, batch: outputs.sum(1))
  found = []
  for seed in (5, 2**40 + 5):
    fresh = Trainer(make_recipe(Wide(), TASK, seed=seed)).state.params
    found.append(
      (fresh['Dense_0']['kernel'], updated(Dropped(), task, seed=seed)['w'])
    )
  for one, other in zip(*found, strict=True):
    assert (np.asarray(one) != np.asarray(other)).any()


def test_complex_parameters_go_downhill():
  class Complex(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, rows=None):
      w = self.param('w', lambda key: jnp.zeros((), jnp.complex64))
      return jnp.broadcast_to(w, len(x))

  def loss(outputs, batch):
    return 0.5 * jnp.abs(outputs - (1 + 2j)) ** 2

  w = updated(Complex(), TASK._replace(loss=loss))['w']
  assert w == pytest.approx(1 + 2j, rel=1e-5)


class Normalised(nn.Module):
  """A network with a BatchNorm."""

  norm: str

  @nn.compact
  def __call__(self, x, *, train, rows=None):
    x = nn.Dense(8)(x)
    if self.norm == 'ghost':
      return GhostBatchNorm(4)(x, train=train, rows=rows)
    if self.norm == 'call':
      return nn.BatchNorm()(x, use_running_average=not train)
    if self.norm == 'position':
      return nn.BatchNorm()(x, not train)
    frozen = self.norm == 'frozen' or not train
    return nn.BatchNorm(use_running_average=frozen)(x)


class Wrapped(nnx.Module):
  """The same, of the other kind of modules."""

  def __init__(self, norm, rngs):
    self.dense = nnx.Linear(4, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs) if norm else None

  def __call__(self, x, *, train, rows=None):
    x = self.dense(x)
    return x if self.norm is None else self.norm(x, not train)


@pytest.mark.parametrize('norm', ['call', 'position', 'attribute'])
def test_plain_batch_norm_is_refused(norm):
  with pytest.raises(TypeError, match='GhostBatchNorm') as error:
    updated(Normalised(norm))
  assert "'BatchNorm_0' is a flax.linen.BatchNorm" in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('norm', ['ghost', 'frozen'])
def test_others_are_not(norm):
  updated(Normalised(norm))


def test_modules_of_nnx_are_wrapped():
  updated(nnx.bridge.to_linen(Wrapped, False))
  with pytest.raises(TypeError, match=r"'norm' is a flax\.nnx\.BatchNorm"):
    updated(nnx.bridge.to_linen(Wrapped, True))
  with pytest.raises(TypeError, match=r'nnx\.bridge\.to_linen') as error:
    updated(Wrapped(False, nnx.Rngs(0)))
  assert '\n' not in str(error.value)


def test_a_loss_is_that_of_each_example():
  def mean(outputs, batch):
    return TASK.loss(outputs, batch).mean()

  model = Normalised('ghost')
  with pytest.raises(ValueError, match=r'task\.loss .*\(\), not \(8,\)'):
    updated(model, TASK._replace(loss=mean))
  with pytest.raises(ValueError, match=r'\(8, 1\), not \(8,\)'):
    updated(model, TASK._replace(loss=lambda *args: TASK.loss(*args)[:, None]))


def test_a_metric_is_that_of_each_example():
  model = Normalised('frozen')
  state = state_lib.create(
    model, SPLIT.arrays['x'], optax.sgd(1.0), jax.random.key(0)
  )

  def metrics(outputs, batch):
    values = TASK.metrics(outputs, batch)
    return values | {'accuracy': values['accuracy'].mean()}

  def evaluator(metrics):
    recipe = make_recipe(model, TASK._replace(metrics=metrics))
    arrays = recipe.devices.place(SPLIT.arrays)
    return Evaluator(recipe, resident_pieces(arrays, 8, recipe.devices, 8))

  with pytest.raises(ValueError, match=r'accuracy has the shape \(\)'):
    evaluator(metrics).metrics(state)
  with pytest.raises(ValueError, match=r'loss has the shape \(\)'):
    evaluator(lambda *a: {'loss': jnp.zeros(())}).gradient_norm_squared(state)
