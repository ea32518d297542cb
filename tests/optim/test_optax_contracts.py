"""What optax asks of its own transforms, asked of those of adabatch.optim.

The cases are those of its common tests for contributed optimizers and of its
sharding tests; only the required extra arguments are supplied here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch import optim

EXTRA = {
  'batch_size': 64,
  'damping': 1.0,
  'examples': 0,
  'gradient_noise': (10.0, 1.0),
}


class _Case(NamedTuple):
  factory: Any
  hyperparameters: dict[str, Any]
  # What makes a descent of a transform that is only a part of one.
  rest: Any = None

  def make(self):
    return self.factory(**self.hyperparameters)

  def descent(self):
    return optax.chain(self.make(), self.rest or optax.identity())


def _optimizer(name, rate, **options):
  how = {'name': name, 'learning_rate': rate, **options}
  return _Case(optim.make_optimizer, how)


# All of one type: inject_hyperparams leaves no other.
OPTIMIZERS = {
  'sgd': _optimizer('sgd', 1e-3),
  'momentum': _optimizer('momentum', 1e-3),
  'nesterov': _optimizer('nesterov', 1e-3),
  'adam': _optimizer('adam', 1e-2),
  'adamw': _optimizer('adamw', 1e-2, weight_decay=1e-4),
  'adamw in examples': _optimizer(
    'adamw', 1e-2, weight_decay=1e-4, beta2_reference_batch_size=32
  ),
  'lars': _optimizer('lars', 1e-3, weight_decay=1e-4, trust_coefficient=1.0),
  'lamb': _optimizer('lamb', 1e-3, weight_decay=1e-4),
  'muon': _optimizer('muon', 1e-2, weight_decay=1e-4),
}
TRANSFORMS = {
  'damping': _Case(optim.scale_by_damping, {}, optax.sgd(1e-3)),
  'learning rate': _Case(optim.scale_by_batch_learning_rate, {'base': 1e-3}),
  'adascale': _Case(
    lambda base: optim.scale_by_batch_learning_rate(
      base, scaling=optim.adascale(32), warmup=optim.gradual_warmup(10)
    ),
    {'base': 1e-3},
  ),
  'adam in examples': _Case(
    optim.scale_by_adam_in_examples,
    {'reference_batch_size': 32.0},
    optax.scale(-1e-2),
  ),
  'lars without rate': _Case(
    optim.scale_by_lars,
    # Of each leaf, rank 1 included, with steps in proportion to its size.
    {'weight_decay': 1e-4, 'trust_coefficient': 1e-2},
    optax.scale(-1.0),
  ),
  'in float32': _Case(
    lambda decay: optim.in_float32(optax.trace(decay)),
    {'decay': 0.9},
    optax.scale(-1e-3),
  ),
}
ALL = {**OPTIMIZERS, **TRANSFORMS}
each = pytest.mark.parametrize('case', ALL.values(), ids=ALL)


def test_every_optimizer_is_here():
  named = {case.hyperparameters['name'] for case in OPTIMIZERS.values()}
  assert named == set(optim.OPTIMIZERS)


def equal(a, b, rtol=0.0, atol=0.0):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b
  )


def square(x):
  return (x * x.conj()).real if jnp.iscomplexobj(x) else x * x


# Each leaf has an objective of its own: two parabolas of vectors, two of
# matrices and Rosenbrock's function.
START = {
  'vector': jnp.array([-1.0, 10.0, 1.0]),
  'second vector': jnp.zeros(3),
  'matrix': jnp.zeros((2, 2)),
  'second matrix': jnp.zeros((2, 2)),
  'rosenbrock': jnp.zeros(2),
}
END = {
  'vector': jnp.array([1.0, -1.0, 1.0]),
  'second vector': jnp.array([1.0, -1.0, 2.0]),
  'matrix': jnp.array([[3.0, -2.0], [1.0, 4.0]]),
  'second matrix': jnp.array([[1.0, 0.0], [-1.0, 1.0]]),
  'rosenbrock': jnp.ones(2),
}


def objective(params):
  a, b = params['rosenbrock']
  parabolas = jax.tree.map(lambda p, e: square(p - e).sum(), params, END)
  parabolas.pop('rosenbrock')
  return sum(parabolas.values()) + square(1 - a) + 100 * square(b - a**2)


@each
def test_converges(case):
  tx = case.descent()
  params = START
  if case.factory is optim.scale_by_lars:
    # Where only the direction counts, the valley is never walked to its end.
    params = {**START, 'rosenbrock': END['rosenbrock']}
  # A change that is none: the state can be mapped like the parameters.
  state = optax.tree.map_params(tx, lambda v: v, tx.init(params))

  def step(carry, _):
    params, state = carry
    gradient = jax.grad(objective)(params)
    updates, state = tx.update(gradient, state, params, **EXTRA)
    return (optax.apply_updates(params, updates), state), None

  run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=30_000)[0])
  params, _ = run((params, state))
  equal(params, END, rtol=3e-2, atol=3e-2)


@each
def test_unexpected_arguments_are_accepted_without_compiling_twice(case):
  tx, traces = case.make(), []

  @jax.jit
  def step(params, state):
    traces.append(None)
    gradient = jax.grad(objective)(params)
    updates, state = tx.update(
      gradient, state, params, **EXTRA, an_argument_nobody_expects=1
    )
    return optax.apply_updates(params, updates), state

  params, state = START, tx.init(START)
  for _ in range(3):
    params, state = step(params, state)
  assert len(traces) == 1


@each
def test_hyperparameters_can_be_injected(case):
  """With nothing said about which of them are functions: none are."""
  injected = optax.inject_hyperparams(case.factory)(**case.hyperparameters)
  tx = case.make()
  params = [jnp.full((2, 3), -3.0), jnp.full((2, 5, 2), 3.0)]
  gradient = [jnp.ones((2, 3)), -jnp.ones((2, 5, 2))]
  update, injected_update = jax.jit(tx.update), jax.jit(injected.update)
  state, theirs = tx.init(params), injected.init(params)
  for _ in range(2):
    updates, state = update(gradient, state, params, **EXTRA)
    others, theirs = injected_update(gradient, theirs, params, **EXTRA)
    equal(others, updates, rtol=1e-5)
    equal(theirs.inner_state, state, rtol=1e-5, atol=1e-5)


@each
def test_gradients_can_be_accumulated(case):
  tx = optax.MultiSteps(case.make(), every_k_schedule=2)
  params = jnp.array([[1.0, 2.0]], jnp.bfloat16)
  state, update = tx.init(params), jax.jit(tx.update)
  for applied in (False, True):
    updates, state = update(2 * params, state, params, **EXTRA)
    assert updates.dtype == params.dtype
    assert bool((updates != 0).all()) == applied


@each
@pytest.mark.parametrize('dtype', ['float16', 'float64', 'complex64'])
def test_the_state_keeps_shapes_and_dtypes(case, dtype):
  """`lax.cond` refuses two branches that differ in anything."""
  with jax.enable_x64(dtype == 'float64'):
    tx = case.make()
    params = START['vector'].astype(dtype)
    # Of another dtype than the parameters, to confuse.
    confusing = jnp.float16 if dtype != 'float16' else jnp.bfloat16
    extra = {**EXTRA, 'damping': jnp.ones([], confusing)}

    @jax.jit
    def step(params, state, coin):
      updates, state = jax.lax.cond(
        coin,
        lambda: tx.update(params, state, params, **extra),
        lambda: (params, state),
      )
      return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for coin in (True, False):
      params, state = step(params, state, coin)
    assert params.dtype == dtype


@pytest.mark.parametrize('case', OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_schedule_is_taken_as_learning_rate(case):
  rate = case.hyperparameters['learning_rate']
  schedule = optax.constant_schedule(rate)
  scheduled = case.factory(
    **{**case.hyperparameters, 'learning_rate': schedule}
  )
  results = []
  for tx in (case.make(), scheduled):
    params, state = START['matrix'] + 1, tx.init(START['matrix'])
    for _ in range(3):
      updates, state = tx.update(params, state, params, **EXTRA)
      params = optax.apply_updates(params, updates)
    results.append(params)
  equal(*results, rtol=1e-6)


@each
def test_wrappers_pass_the_extra_arguments_on(case):
  """Of a chain, of a mask and of a choice by label."""
  params = {'a': jnp.ones((2, 2)), 'b': jnp.full((2, 2), 2.0)}
  tx = case.make()
  alone, _ = tx.update(params, tx.init(params), params, **EXTRA)
  labels = {'a': 'ours', 'b': 'none'}
  for wrapped in (
    optax.chain(optax.identity(), case.make()),
    optax.masked(case.make(), {'a': True, 'b': False}),
    optax.partition({'ours': case.make(), 'none': optax.identity()}, labels),
  ):
    updates, _ = wrapped.update(params, wrapped.init(params), params, **EXTRA)
    equal(updates['a'], alone['a'], rtol=1e-6)


@each
def test_init_takes_shapes_for_parameters(case):
  tx = case.make()
  for dtype in (jnp.float32, jnp.bfloat16):
    shape = jax.ShapeDtypeStruct((2, 4, 8), dtype)
    state = tx.init({'kernel': shape})
    expected = tx.init({'kernel': jnp.zeros(shape.shape, dtype)})
    kind = lambda x: (x.shape, x.dtype)  # noqa: E731
    assert jax.tree.map(kind, state) == jax.tree.map(kind, expected)


@each
def test_the_state_keeps_its_sharding(case):
  """From init to update, with and without jit, where shardings are types."""
  mesh = jax.make_mesh(
    (2,),
    ('x',),
    axis_types=(jax.sharding.AxisType.Explicit,),
    devices=jax.devices()[:2],
  )
  sharding = jax.sharding.NamedSharding(mesh, jax.P(None, 'x'))
  tx = case.make()

  def types(tree):
    return jax.tree.map(jax.typeof, tree)

  with jax.set_mesh(mesh):
    params = jnp.zeros((2, 8, 4), jnp.float16, out_sharding=sharding)
    state = tx.init(params)
    assert types(state) == types(jax.jit(tx.init)(params))
    updates, after = tx.update(params, state, params, **EXTRA)
    assert types(after) == types(state)
    assert types(updates) == types(params)
    compiled = jax.jit(tx.update)(params, state, params, **EXTRA)
    assert types(compiled) == types((updates, after))
