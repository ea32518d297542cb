"""What every transform of adabatch.optim must do; one line for each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from adabatch import optim


class _Case(NamedTuple):
  factory: Callable[..., optax.GradientTransformation]
  hyperparameters: dict[str, Any]  # numeric ones can be injected
  static: tuple[str, ...] = ()  # callables, which inject would call

  def make(self):
    return self.factory(**self.hyperparameters)


_RULES = ('decay', 'scaling', 'warmup')


def _optimizer(name, **options):
  rate = optim.scale_by_batch_learning_rate(
    0.1, decay=optim.cosine(1000), scaling=optim.linear_scaling(32)
  )
  return _Case(
    optim.make_optimizer,
    {'name': name, 'learning_rate': rate, 'weight_decay': 0.01, **options},
  )


TRANSFORMS = {
  'damping': _Case(optim.scale_by_damping, {}),
  'learning_rate': _Case(
    optim.scale_by_batch_learning_rate,
    {
      'base': 0.1,
      'decay': optim.piecewise([50]),
      'scaling': optim.linear_scaling(32),
      'warmup': optim.gradual_warmup(
        optim.affine_length(0.5, 0.01, num_examples=100)
      ),
    },
    _RULES,
  ),
  'learning_rate_alone': _Case(
    optim.scale_by_batch_learning_rate, {'base': 0.1}
  ),
  'adascale': _Case(
    optim.scale_by_batch_learning_rate,
    {
      'base': 0.1,
      'scaling': optim.adascale(32),
      'warmup': optim.constant_warmup(10),
    },
    _RULES,
  ),
  'adam_in_examples': _Case(
    optim.scale_by_adam_in_examples,
    {'b1': 0.9, 'b2': 0.99, 'eps': 1e-8, 'reference_batch_size': 32},
  ),
  'schedule': _Case(
    optim.scale_by_batch_learning_rate,
    {'base': optax.linear_schedule(0.1, 0.01, 10)},
    ('base',),
  ),
  'lars_ratio': _Case(
    optim.scale_by_lars, {'weight_decay': 0.01, 'trust_coefficient': 0.02}
  ),
  'in_float32': _Case(
    lambda decay: optim.in_float32(optax.trace(decay)), {'decay': 0.9}
  ),
  **{name: _optimizer(name) for name in optim.OPTIMIZERS},
  'average_params': _Case(optim.average_params, {'half_life': 100.0}),
  'decaying': _Case(
    lambda weight_decay, scaling: optim.decaying(
      optax.add_decayed_weights, weight_decay, scaling
    ),
    {'weight_decay': 0.01, 'scaling': optim.sqrt_scaling(32)},
    ('scaling',),
  ),
  'lion': _Case(
    lambda weight_decay: optim.of_optax(
      optax.lion,
      optim.scale_by_batch_learning_rate(0.1, scaling=optim.linear_scaling(32)),
      weight_decay=weight_decay,
      weight_decay_scaling=optim.linear_scaling(32),
      clip_norm=1.0,
    ),
    {'weight_decay': 0.01},
  ),
  'adamw_in_examples': _optimizer('adamw', beta2_reference_batch_size=32),
}
_each = pytest.mark.parametrize('case', TRANSFORMS.values(), ids=TRANSFORMS)


class _Noise(NamedTuple):
  trace_covariance: float
  squared_norm: float


def _extra(k):
  return {
    'batch_size': 16 * (k + 1),
    'damping': 1 / (k + 1),
    'examples': 100 * k,
    'gradient_noise': _Noise(10.0 + k, 1.0),
    'someone_elses': 1.0,
  }


def _params(dtype=jnp.float32):
  rows = 2 * jax.device_count()
  return {
    'Dense_0': {
      'kernel': jnp.linspace(0.1, 1, rows * 3).reshape(rows, 3).astype(dtype),
      'bias': jnp.linspace(0.1, 1, 3).astype(dtype),
    }
  }


@_each
def test_accepts_extra_arguments_and_ignores_unknown_ones(case):
  params, tx = _params(), case.make()
  assert isinstance(tx, optax.GradientTransformationExtraArgs)
  known = _extra(1)
  known.pop('someone_elses')
  updates, _ = tx.update(params, tx.init(params), params, **_extra(1))
  expected, _ = tx.update(params, tx.init(params), params, **known)
  jax.tree.map(np.testing.assert_array_equal, updates, expected)
  assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))
  known.pop('gradient_noise')
  tx.update(params, tx.init(params), params, **known)


@_each
def test_new_values_do_not_compile_again(case):
  params, tx, traces = _params(), case.make(), []

  @jax.jit
  def update(grads, state, extra):
    traces.append(None)
    return tx.update(grads, state, params, **extra)

  state, seen = tx.init(params), []
  for k in range(4):
    updates, state = update(params, state, _extra(k))
    seen.append(np.asarray(updates['Dense_0']['kernel']))
  assert len(traces) == 1
  # Otherwise compiling once would prove nothing.
  constants = 'learning_rate_alone', 'lars_ratio', 'average_params'
  if case not in map(TRANSFORMS.get, constants):
    assert all(not np.array_equal(seen[0], s) for s in seen[2:])


@_each
def test_works_in_a_chain(case):
  params, tx = _params(), case.make()
  chain = optax.chain(optax.scale(2.0), case.make())
  updates, state = chain.update(params, chain.init(params), params, **_extra(1))
  doubled = jax.tree.map(lambda p: 2 * p, params)
  expected, expected_state = tx.update(
    doubled, tx.init(params), params, **_extra(1)
  )
  jax.tree.map(np.testing.assert_array_equal, updates, expected)
  jax.tree.map(np.testing.assert_array_equal, state[1], expected_state)


@_each
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_works_with_injected_hyperparameters(case, dtype):
  params, tx = _params(dtype), case.make()
  injected = optax.inject_hyperparams(
    case.factory, case.static, hyperparam_dtype=jnp.float32
  )(**case.hyperparameters)
  state, expected_state = injected.init(params), tx.init(params)
  for k in range(3):
    updates, state = jax.jit(injected.update)(
      params, state, params, **_extra(k)
    )
    expected, expected_state = tx.update(
      params, expected_state, params, **_extra(k)
    )
    jax.tree.map(
      lambda u, e: np.testing.assert_allclose(
        u.astype(np.float32),
        e.astype(np.float32),
        rtol=1e-4 if dtype == jnp.float32 else 1e-2,
        # Muon has small differences of large numbers.
        atol=1e-4 * float(np.abs(e).max()),
      ),
      updates,
      expected,
    )
  numbers = {
    name
    for name, value in case.hyperparameters.items()
    if isinstance(value, float) and name not in case.static
  }
  assert numbers <= set(state.hyperparams)
  for name in numbers:
    assert state.hyperparams[name] == np.float32(case.hyperparameters[name])
  names = [
    path[-1] for path, _ in jax.tree_util.tree_leaves_with_path(expected_state)
  ]
  if any('learning_rate' in str(name) for name in names):
    assert optax.tree_utils.tree_get(state, 'learning_rate') > 0


@_each
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_updates_keep_dtype_and_sharding(case, dtype):
  mesh = jax.make_mesh(
    (2,),
    ('data',),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:2],
  )
  params = _params(dtype)
  specs = {
    'Dense_0': {'kernel': PartitionSpec('data'), 'bias': PartitionSpec()}
  }
  shardings = jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    specs,
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )
  params, tx = jax.device_put(params, shardings), case.make()
  for init, update in (
    (tx.init, tx.update),
    (jax.jit(tx.init), jax.jit(tx.update)),
  ):
    state = init(params)
    for k in range(2):
      updates, state = update(params, state, params, **_extra(k))
    for u, p in zip(
      jax.tree.leaves(updates), jax.tree.leaves(params), strict=True
    ):
      assert u.dtype == p.dtype
      assert u.shape == p.shape
      assert u.sharding.is_equivalent_to(p.sharding, u.ndim)


@_each
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_state_keeps_its_structure_in_a_scan(case, dtype):
  params, tx = _params(dtype), case.make()
  extras = jax.tree.map(lambda *xs: jnp.stack(xs), *map(_arrays, range(4)))

  def body(state, extra):
    updates, state = tx.update(params, state, params, **extra)
    return state, updates

  # lax.scan refuses a carry whose structure, dtypes or weak types change.
  scanned, _ = jax.lax.scan(body, tx.init(params), extras)
  state = tx.init(params)
  for k in range(4):
    _, state = tx.update(params, state, params, **_arrays(k))
  assert jax.tree.structure(scanned) == jax.tree.structure(state)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max(initial=0)
    ),
    scanned,
    state,
  )


def _arrays(k):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), _extra(k))


@_each
def test_state_can_be_donated(case):
  params, tx = _params(), case.make()
  update = jax.jit(tx.update, donate_argnums=1)
  _, state = update(params, tx.init(params), params, **_extra(0))
  update(params, state, params, **_extra(1))


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
@pytest.mark.parametrize('missing', ['damping', 'batch_size', 'examples'])
def test_a_forgotten_argument_is_an_error(name, missing):
  params, tx = _params(), TRANSFORMS[name].make()
  extra = _extra(0)
  extra.pop(missing)
  with pytest.raises(TypeError, match=missing):
    tx.update(params, tx.init(params), params, **extra)
