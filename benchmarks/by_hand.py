"""A training loop in JAX as one writes it by hand, for one network and no more.

Data on the device, a permutation of each epoch from the host, one jitted step
an update whose state is donated, no synchronisation but every 50th update. The
networks are those of adabatch, the rest is not.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

SYNCHRONISE = 50  # updates between two losses that are read


def make_tx(optimizer: Any, rate: float) -> optax.GradientTransformation:
  """What `config.optimizer` names, with a constant learning rate.

  Raises:
    ValueError: for one that is not written here.
  """
  if optimizer.name in ('momentum', 'nesterov'):
    nesterov = optimizer.name == 'nesterov'
    return optax.sgd(rate, momentum=optimizer.momentum, nesterov=nesterov)
  if optimizer.name == 'adamw':
    beta1, beta2 = optimizer.beta1, optimizer.beta2
    decay = optimizer.weight_decay
    return optax.adamw(rate, beta1, beta2, weight_decay=decay)
  raise ValueError(f'{optimizer.name}: momentum, nesterov and adamw are known')


def image_loss(model: Any, flip: bool) -> Callable[..., jax.Array]:
  """(params, arrays, rows, update) -> mean cross-entropy of a batch."""

  def loss(params, arrays, rows, update):
    x = arrays['image'][rows].astype(jnp.float32)
    x = (x / 255 - 0.3) / 0.3
    if flip:
      key = jax.random.fold_in(jax.random.key(1), update)
      mirrored = jax.random.bernoulli(key, 0.5, (len(rows), 1, 1, 1))
      x = jnp.where(mirrored, x[:, :, ::-1], x)
    logits = model.apply({'params': params}, x, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, arrays['label'][rows]
    ).mean()

  return loss


def text_loss(model: Any) -> Callable[..., jax.Array]:
  """The same, of the next token."""

  def loss(params, arrays, rows, update):
    del update
    tokens = arrays['tokens'][rows].astype(jnp.int32)
    logits = model.apply({'params': params}, tokens[:, :-1], train=True)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, tokens[:, 1:]
    ).mean()

  return loss


def batches(
  examples: int, sizes: Sequence[tuple[int, int]]
) -> Iterator[np.ndarray]:
  """Rows of each update, whole batches of one permutation after the other.

  >>> [len(rows) for rows in batches(5, [(2, 3), (4, 1)])]
  [2, 2, 2, 4]
  """
  rng = np.random.default_rng(0)
  order, begin = rng.permutation(examples).astype(np.int32), 0
  for size, updates in sizes:
    for _ in range(updates):
      if begin + size > examples:
        order, begin = rng.permutation(examples).astype(np.int32), 0
      yield order[begin : begin + size]
      begin += size


class Loop:
  """Compiled once, run as often as wanted.

  Args:
    model: a flax module.
    arrays: of the training split.
    loss: see `image_loss`.
    tx: the optimizer.
  """

  def __init__(self, model: Any, arrays: dict, loss: Any, tx: Any):
    self.model, self.tx = model, tx
    wanted = [k for k in ('image', 'label', 'tokens') if k in arrays]
    self.arrays = {k: jax.device_put(np.asarray(arrays[k])) for k in wanted}
    self.examples = len(self.arrays[wanted[0]])

    def step(params, opt_state, arrays, rows, update):
      value, grads = jax.value_and_grad(loss)(params, arrays, rows, update)
      updates, opt_state = tx.update(grads, opt_state, params)
      return optax.apply_updates(params, updates), opt_state, value

    self.step = jax.jit(step, donate_argnums=(0, 1))

  def start(self) -> tuple[Any, Any]:
    first = next(iter(self.arrays.values()))[:1]
    text = 'tokens' in self.arrays
    x = first[:, :-1].astype(jnp.int32) if text else first / 255.0
    params = self.model.init(jax.random.key(0), x, train=False)['params']
    return params, self.tx.init(params)

  def seconds(self, sizes: Sequence[tuple[int, int]]) -> float:
    """Of training, without compiling.

    Args:
      sizes: (batch size, updates) one after the other.
    """
    for size in {size for size, _ in sizes}:
      params, opt_state = self.start()
      rows = next(batches(self.examples, [(size, 1)]))
      jax.block_until_ready(self.step(params, opt_state, self.arrays, rows, 0))
    params, opt_state = jax.block_until_ready(self.start())
    begin = time.perf_counter()
    for update, rows in enumerate(batches(self.examples, sizes), 1):
      params, opt_state, loss = self.step(
        params, opt_state, self.arrays, rows, update
      )
      if update % SYNCHRONISE == 0:
        float(loss)
    jax.block_until_ready(params)
    return time.perf_counter() - begin
