"""In which numbers devices multiply, and add up gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch.config import ConfigError
from adabatch.controllers.buckets import Plan, bucket_for
from adabatch.devices.messages import Call
from adabatch.devices.population import Member, Population
from adabatch.devices.state import to_evaluate
from adabatch.devices.step import Variant, _rounded
from adabatch.devices.trainer import Trainer
from adabatch.train.build import build, check
from tests.experiments import digits

pytestmark = pytest.mark.usefixtures('compile_quickly')
BFLOAT16 = {'parallel.gradient_dtype': 'bfloat16'}


def parts_of(devices, **overrides):
  return build(digits(**overrides), jax.devices()[:devices])


def plan_of(parts, size=64):
  return Plan(float(size), size, 1.0, bucket_for(size, parts.ladder))


def lowered(devices=1, **overrides):
  """Of an update, and of a piece of an evaluation."""
  parts = parts_of(devices, **overrides)
  trainer = Trainer(parts.recipe._replace(needs=frozenset()))
  variant = Variant(plan_of(parts).bucket)
  evaluation = trainer.evaluator.lower(to_evaluate(trainer.state))
  return trainer.lower(variant).as_text(), evaluation.as_text()


def updated(devices, **overrides):
  """Parameters after an update, and its report."""
  parts = parts_of(devices, **overrides)
  trainer = Trainer(parts.recipe._replace(needs=frozenset()))
  call = Call(0, 0, 1, plan_of(parts))
  trainer.compile(call)
  report = np.asarray(trainer.dispatch(call, stop=False))
  return jax.tree.map(np.asarray, trainer.state.params), report.ravel()


@pytest.mark.parametrize('precision', ['high', 'highest'])
def test_all_products_have_the_precision(precision):
  for plain, precise in zip(
    lowered(), lowered(**{'model.precision': precision}), strict=True
  ):
    products = re.findall(r'stablehlo\.dot_general.*', precise)
    assert len(products) >= 2
    assert all(f'[{precision.upper()}, ' in line for line in products)
    # Another program, so none that is stored is taken for it.
    assert plain != precise
    assert f'[{precision.upper()}, ' not in plain


def test_members_of_a_population_have_the_precision():
  parts = parts_of(1, **{'model.precision': 'highest'})
  recipe, plan = parts.recipe, plan_of(parts)
  population = Population(recipe, lambda values: recipe.tx, plan)
  group = population.start([Member(1, (0.0,))])
  batch = population.batches(group, Call(0, 0, 1, plan), 1)
  arguments = group.seeds, group.values, group.state, population.arrays[0]
  program = population._spmd(
    population._train,
    ('by replica', 'by replica', 'by replica', 'whole', 'by replica', 'whole'),
  )
  text = program.lower(*arguments, *batch).as_text()
  products = re.findall(r'stablehlo\.dot_general.*', text)
  assert len(products) >= 4
  assert all('[HIGHEST, HIGHEST]' in line for line in products)


def test_gradients_travel_in_their_dtype():
  """Nothing else does in bfloat16."""

  def kinds(text):
    found = re.findall(
      r'"stablehlo\.all_reduce"\(.*?\}\) : \((.*?)\) ->', text, re.DOTALL
    )
    return {
      kind for line in found for kind in re.findall(r'tensor<(\w+)>', line)
    }

  plain, low = lowered(4)[0], lowered(4, **BFLOAT16)[0]
  shapes = {'64x32x', '32x', '32x10x', '10x'}
  assert {f'{s}f32' for s in shapes} <= kinds(plain)
  assert {f'{s}bf16' for s in shapes} <= kinds(low)
  assert not {f'{s}f32' for s in shapes} & kinds(low)
  assert 'bf16' not in kinds(low)
  assert 'f32' in kinds(low)


@pytest.mark.parametrize('devices', [1, 4])
def test_gradients_of_8_bits_train_alike(devices):
  params, report = updated(devices)
  rounded, low = updated(devices, **BFLOAT16)
  # Loss, learning rate and weight of the update are what they were.
  np.testing.assert_array_equal(report[[0, 2, -1]], low[[0, 2, -1]])
  assert report[1] != low[1]
  np.testing.assert_allclose(low[1], report[1], rtol=2**-7)
  for a, b in zip(*map(jax.tree.leaves, (params, rounded)), strict=True):
    assert (a != b).any()
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-2 * np.abs(a).max())


def test_64_bits_stay_64_unless_few_are_wanted():
  with jax.enable_x64():
    x = jnp.array([1 + 2.0**-40])
    assert _rounded([x], jnp.float32)[0].dtype == jnp.float64
    assert _rounded([x], jnp.float32)[0] == x
    assert _rounded([x], jnp.bfloat16)[0].dtype == jnp.bfloat16


def test_what_is_rounded():
  x = jnp.array([1 + 2**-9, 1 + 3 * 2**-8], jnp.float32)
  tree = {'a': x, 'b': x.astype(jnp.float16), 'c': x + 0j}
  same = jax.jit(lambda t: _rounded(t, jnp.float32))(tree)
  assert jax.tree.map(lambda x: x.dtype, same) == jax.tree.map(
    lambda x: x.dtype, tree
  )
  low = jax.jit(lambda t: _rounded(t, jnp.bfloat16)['a'].astype(x.dtype))(tree)
  np.testing.assert_array_equal(low, [1, 1 + 2**-6])
  kinds = jax.tree.map(lambda x: x.dtype.name, _rounded(tree, jnp.bfloat16))
  assert kinds == {'a': 'bfloat16', 'b': 'bfloat16', 'c': 'complex64'}


@pytest.mark.parametrize('key', ['model.precision', 'parallel.gradient_dtype'])
def test_other_names_are_refused(key):
  with pytest.raises(ConfigError, match=f"{key}.*'float8'"):
    check(digits(**{key: 'float8'}), 1)
