"""Equinox and optax, with a batch that grows as the loss falls (AdaDamp).

pip install adabatch equinox scikit-learn, then: python examples/equinox_loop.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import sklearn.datasets

from adabatch import BatchSize, optim
from adabatch.controllers import BatchSampler, adadamp, buckets, every

x, y = sklearn.datasets.load_digits(return_X_y=True)
x = x / 16

# The rule, and the sizes that it may choose; each is compiled once.
rule = every(adadamp(initial_batch_size=16, initial_updates=10), updates=10)
ladder = buckets.ladder(16, 128, devices=1)
batch_size = BatchSize(rule, ladder, num_examples=len(x))
sampler = BatchSampler(batch_size, seed=0)

# The damping stands for the part of a batch beyond 128; it comes last.
tx = optax.chain(optax.sgd(0.05, momentum=0.9), optim.scale_by_damping())
model = eqx.nn.MLP(64, 10, width_size=64, depth=1, key=jax.random.key(0))
opt_state = tx.init(eqx.filter(model, eqx.is_array))
traces = []


@eqx.filter_value_and_grad
def loss_and_gradient(model, x, y):
  logits = jax.vmap(model)(x)
  return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@eqx.filter_jit
def step(model, opt_state, x, y, damping):
  traces.append(len(x))  # happens where a size is compiled, and only there
  loss, gradient = loss_and_gradient(model, x, y)
  updates, opt_state = tx.update(gradient, opt_state, damping=damping)
  return eqx.apply_updates(model, updates), opt_state, loss


# A schedule by examples, for nobody knows the number of updates in advance.
total = 10 * len(x)
schedule = optax.linear_schedule(1.0, 0.0, total)

sizes, losses = [], []
while batch_size.examples < total:
  for rows in sampler:
    # An array: filter_jit would compile anew for each value of a Python float.
    factor = jnp.asarray(schedule(batch_size.examples) * batch_size.damping)
    batch = jnp.asarray(x[rows]), jnp.asarray(y[rows])
    model, opt_state, loss = step(model, opt_state, *batch, factor)
    batch_size.observe(loss=loss)
    sizes.append(len(rows))
    losses.append(float(loss))
  print(
    f'epoch {batch_size.epoch:.1f}: batch size {batch_size.size}, '
    f'loss {losses[-1]:.4f}'
  )
print(f'compiled for batch sizes {traces}')

# All that has to be saved for a restart, in the middle of an epoch as well.
checkpoint = {
  'model': model,
  'opt_state': opt_state,
  'batch_size': batch_size.state_dict(),
}
