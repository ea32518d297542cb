"""Flax NNX with its Optimizer, whose batch grows as the loss falls (AdaDamp).

pip install adabatch flax scikit-learn, then: python examples/nnx_loop.py
"""

import optax
import sklearn.datasets
from flax import nnx

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


class Network(nnx.Module):
  def __init__(self, rngs):
    self.hidden = nnx.Linear(64, 64, rngs=rngs)
    self.out = nnx.Linear(64, 10, rngs=rngs)

  def __call__(self, x):
    return self.out(nnx.relu(self.hidden(x)))


model = Network(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, x, y, damping):
  def loss_of(model):
    logits = model(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  loss, gradient = nnx.value_and_grad(loss_of)(model)
  optimizer.update(model, gradient, damping=damping)
  return loss


# A schedule by examples, for nobody knows the number of updates in advance.
total = 10 * len(x)
schedule = optax.linear_schedule(1.0, 0.0, total)

sizes, losses = [], []
while batch_size.examples < total:
  for rows in sampler:
    factor = schedule(batch_size.examples) * batch_size.damping
    loss = step(model, optimizer, x[rows], y[rows], factor)
    batch_size.observe(loss=loss)
    sizes.append(len(rows))
    losses.append(float(loss))
  print(
    f'epoch {batch_size.epoch:.1f}: batch size {batch_size.size}, '
    f'loss {losses[-1]:.4f}'
  )

# All that has to be saved for a restart, in the middle of an epoch as well.
checkpoint = {
  'model': nnx.state(model),
  'optimizer': nnx.state(optimizer),
  'batch_size': batch_size.state_dict(),
}
