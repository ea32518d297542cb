"""Flax linen with a TrainState, and a batch that grows as the loss falls.

pip install adabatch flax scikit-learn, then:
python examples/linen_train_state.py
"""

import jax
import optax
import sklearn.datasets
from flax import linen as nn
from flax.training.train_state import TrainState

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
model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)])
params = model.init(jax.random.key(0), x[:1])
state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)


@jax.jit
def step(state, x, y, damping):
  def loss_of(params):
    logits = state.apply_fn(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  loss, grads = jax.value_and_grad(loss_of)(state.params)
  # What `apply_gradients` does, which has no argument for the damping.
  updates, opt_state = state.tx.update(
    grads, state.opt_state, state.params, damping=damping
  )
  params = optax.apply_updates(state.params, updates)
  step = state.step + 1
  return state.replace(step=step, params=params, opt_state=opt_state), loss


# A schedule by examples, for nobody knows the number of updates in advance.
total = 10 * len(x)
schedule = optax.linear_schedule(1.0, 0.0, total)

sizes, losses = [], []
while batch_size.examples < total:
  for rows in sampler:
    factor = schedule(batch_size.examples) * batch_size.damping
    state, loss = step(state, x[rows], y[rows], factor)
    batch_size.observe(loss=loss)
    sizes.append(len(rows))
    losses.append(float(loss))
  print(
    f'epoch {batch_size.epoch:.1f}: batch size {batch_size.size}, '
    f'loss {losses[-1]:.4f}'
  )

# All that has to be saved for a restart, in the middle of an epoch as well.
checkpoint = {'state': state, 'batch_size': batch_size.state_dict()}
