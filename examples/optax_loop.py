"""A loop in plain JAX and optax whose batch grows as the loss falls (AdaDamp).

pip install adabatch scikit-learn, then: python examples/optax_loop.py
"""

import jax
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


def loss_of(params, x, y):
  hidden = jax.nn.relu(x @ params['in'])
  logits = hidden @ params['out']
  return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
def step(params, opt_state, x, y, factor):
  loss, gradient = jax.value_and_grad(loss_of)(params, x, y)
  updates, opt_state = tx.update(gradient, opt_state, params, damping=factor)
  return optax.apply_updates(params, updates), opt_state, loss


first, second = jax.random.split(jax.random.key(0))
params = {
  'in': jax.random.normal(first, (64, 64)) / 8,
  'out': jax.random.normal(second, (64, 10)) / 8,
}
opt_state = tx.init(params)

# A schedule by examples, for nobody knows the number of updates in advance.
total = 10 * len(x)
schedule = optax.linear_schedule(1.0, 0.0, total)

sizes, losses = [], []
while batch_size.examples < total:
  for rows in sampler:
    factor = schedule(batch_size.examples) * batch_size.damping
    params, opt_state, loss = step(params, opt_state, x[rows], y[rows], factor)
    batch_size.observe(loss=loss)
    sizes.append(len(rows))
    losses.append(float(loss))
  print(
    f'epoch {batch_size.epoch:.1f}: batch size {batch_size.size}, '
    f'loss {losses[-1]:.4f}'
  )

# All that has to be saved for a restart, in the middle of an epoch as well.
checkpoint = {
  'params': params,
  'opt_state': opt_state,
  'batch_size': batch_size.state_dict(),  # plain values: JSON takes them
}
