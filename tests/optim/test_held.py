"""Optimizers held at one batch size, for branches of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch import optim

PARAMS = {'kernel': jnp.ones((3, 4)), 'bias': jnp.zeros(4)}
REFERENCE = 8


def gradients(count, seed=0):
  keys = jax.random.split(jax.random.key(seed), count)
  return [
    jax.tree.map(lambda p, k=k: jax.random.normal(k, p.shape), PARAMS)
    for k in keys
  ]


def rates(tx, sizes, **more):
  """The learning rate of each update."""
  state, found, examples = tx.init(PARAMS), [], 0
  for size in sizes:
    extra = {'batch_size': size, 'examples': examples} | more
    _, state = tx.update(PARAMS, state, **extra)
    found.append(float(state.learning_rate))
    examples += size
  return found


SCALINGS = {
  'none': optim.no_scaling,
  'linear': lambda: optim.linear_scaling(16),
  'sqrt': lambda: optim.sqrt_scaling(16),
}


@pytest.mark.parametrize('name', SCALINGS)
def test_the_rate_is_that_of_one_size(name):
  """Also through a warmup whose length and goal follow the batch size."""

  def make():
    return optim.scale_by_batch_learning_rate(
      0.5,
      decay=optim.linear(200, 0.1),
      scaling=SCALINGS[name](),
      warmup=optim.gradual_warmup(
        optim.affine_length(1.0, 0.5, num_examples=10), 0.1
      ),
    )

  held = optim.at_batch_size(make(), REFERENCE)
  sizes = [8, 64, 8, 2, 30]
  # What the schedules count is what is trained on.
  places = np.cumsum([0, *sizes[:-1]])
  expected = []
  for place in places:
    tx = make()
    _, state = tx.update(
      PARAMS, tx.init(PARAMS), batch_size=REFERENCE, examples=int(place)
    )
    expected.append(float(state.learning_rate))
  np.testing.assert_allclose(rates(held, sizes), expected, 1e-6)
  assert len(set(expected)) > 3


def test_adascale_keeps_the_gain_that_it_has():
  tx = optim.scale_by_batch_learning_rate(1.0, scaling=optim.adascale(2))
  _, state = tx.update(
    PARAMS,
    tx.init(PARAMS),
    batch_size=REFERENCE,
    examples=0,
    gradient_noise=(6.0, 3.0),
  )
  gain = float(state.learning_rate)
  assert 1 < gain < 4
  held = optim.at_batch_size(tx, REFERENCE)
  for size in (1, 8, 100):
    _, new = held.update(
      PARAMS, state, batch_size=size, examples=9, gradient_noise=(99.0, 1.0)
    )
    assert float(new.learning_rate) == pytest.approx(gain)
    same = jax.tree.map(np.array_equal, new.scaling_state, state.scaling_state)
    assert all(jax.tree.leaves(same))


CHAINS = {
  'adam': {},
  'adamw': {'weight_decay': 0.1},
  'lamb': {},
  'muon': {'momentum': 0.9},
}


@pytest.mark.parametrize('averaged', [False, True])
@pytest.mark.parametrize('name', CHAINS)
def test_a_memory_of_examples_goes_on_where_that_of_updates_was(name, averaged):
  """At B_ref both are the same; the state has the other's structure."""

  def make(**how):
    tx = optim.make_optimizer(name, 0.1, **CHAINS[name], **how)
    return optim.with_average(tx, 50.0) if averaged else tx

  first, second = make(), make(beta2_reference_batch_size=REFERENCE)
  extra = {'batch_size': REFERENCE, 'damping': 1.0, 'examples': 0}
  some = gradients(8)
  state, params = first.init(PARAMS), PARAMS
  for g in some[:4]:
    updates, state = first.update(g, state, params, **extra)
    params = optax.apply_updates(params, updates)
  ours = optim.remembering_examples(state, 0.999)
  assert jax.tree.structure(ours) == jax.tree.structure(second.init(PARAMS))
  for g in some[4:]:
    one, state = first.update(g, state, params, **extra)
    other, ours = second.update(g, ours, params, **extra)
    for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True):
      np.testing.assert_allclose(x, y, 3e-5, 1e-7)


def test_nothing_else_is_changed():
  tx = optim.make_optimizer('momentum', 0.1)
  state = tx.init(PARAMS)
  same = optim.remembering_examples(state, 0.9)
  assert jax.tree.structure(same) == jax.tree.structure(state)
  in_examples = optim.scale_by_adam_in_examples(reference_batch_size=4)
  state = in_examples.init(PARAMS)
  assert optim.remembering_examples(state, 0.5) is not None
  assert float(optim.remembering_examples(state, 0.5).nu_weight) == 0.0
