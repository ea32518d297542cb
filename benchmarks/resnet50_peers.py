"""ResNet-50 v1.5 by hand in JAX and in PyTorch, for benchmarks/gpu.py.

Each gives images a second of training steps on made-up images that lie on the
device, in bfloat16, SGD with momentum. Neither needs adabatch.
"""

import time
from collections.abc import Callable
from typing import Any

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))


def stretches(
  step: Callable[[], Any], wait: Callable[[Any], Any], size: dict[str, int]
) -> list[float]:
  """Images a second of each stretch of steps, the first one left out.

  Args:
    step: begins one.
    wait: for what `step` gave.
    size: `batch`, `pixels`, `steps` of a stretch, and `stretches`.
  """
  found = []
  for _ in range(size['stretches'] + 1):
    begin, last = time.perf_counter(), None
    for _ in range(size['steps']):
      last = step()
    wait(last)
    seconds = time.perf_counter() - begin
    found.append(size['batch'] * size['steps'] / seconds)
  return found[1:]


def with_jax(size: dict[str, int]) -> list[float]:
  """flax and optax alone, BatchNorm over the whole batch."""
  import jax
  import jax.numpy as jnp
  import optax
  from flax import linen as nn

  bf16 = jnp.bfloat16

  class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
      def conv(x, features, kernel=1, stride=1):
        kernel = (kernel, kernel)
        return nn.Conv(features, kernel, stride, use_bias=False, dtype=bf16)(x)

      def norm(x):
        return nn.BatchNorm(
          use_running_average=False, momentum=0.9, dtype=bf16
        )(x)

      x = nn.relu(norm(conv(x, 64, 7, 2)))
      around: Any = ((1, 1), (1, 1))
      x = nn.max_pool(x, (3, 3), (2, 2), padding=around)
      for stage, (width, blocks) in enumerate(STAGES):
        for block in range(blocks):
          stride = 2 if stage and not block else 1
          y = nn.relu(norm(conv(x, width)))
          y = nn.relu(norm(conv(y, width, 3, stride)))
          y = norm(conv(y, 4 * width))
          if x.shape != y.shape:
            x = norm(conv(x, 4 * width, 1, stride))
          x = nn.relu(x + y)
      return nn.Dense(1000, dtype=bf16)(x.mean((1, 2))).astype(jnp.float32)

  network, tx = Network(), optax.sgd(0.001, momentum=0.9)
  shape = size['batch'], size['pixels'], size['pixels'], 3
  images = jax.random.randint(jax.random.key(0), shape, 0, 256, jnp.uint8)
  labels = jnp.arange(size['batch']) % 1000

  def loss(params, rest):
    x = (images.astype(bf16) / 255 - 0.5) / 0.25
    logits, rest = network.apply(
      {'params': params, **rest}, x, mutable=['batch_stats']
    )
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, labels
    ).mean(), rest

  def update(state):
    params, rest, opt_state = state
    (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params, rest)
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), rest, opt_state), value

  def start():
    x = jnp.zeros((1, *shape[1:]), bf16)
    variables = network.init(jax.random.key(0), x)
    params = variables.pop('params')
    return params, variables, tx.init(params)

  state, jitted = jax.jit(start)(), jax.jit(update, donate_argnums=0)

  def step():
    nonlocal state
    state, value = jitted(state)
    return value

  return stretches(step, jax.block_until_ready, size)


def with_torch(size: dict[str, int]) -> list[float]:
  """`torch.compile`, channels last, autocast."""
  import torch  # pyright: ignore[reportMissingImports]

  nn = torch.nn

  def conv_norm(ins, outs, kernel=1, stride=1):
    conv = nn.Conv2d(ins, outs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outs))

  class Block(nn.Module):
    def __init__(self, ins, width, stride):
      super().__init__()
      self.main = nn.Sequential(
        conv_norm(ins, width),
        nn.ReLU(True),
        conv_norm(width, width, 3, stride),
        nn.ReLU(True),
        conv_norm(width, 4 * width),
      )
      same = ins == 4 * width and stride == 1
      self.short = (
        nn.Identity() if same else conv_norm(ins, 4 * width, 1, stride)
      )

    def forward(self, x):
      return torch.relu(self.main(x) + self.short(x))

  layers = [conv_norm(3, 64, 7, 2), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)]
  ins = 64
  for stage, (width, blocks) in enumerate(STAGES):
    for block in range(blocks):
      layers.append(Block(ins, width, 2 if stage and not block else 1))
      ins = 4 * width
  layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ins, 1000)]
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  network = nn.Sequential(*layers).to(device, memory_format=torch.channels_last)
  optimizer = torch.optim.SGD(network.parameters(), 0.001, momentum=0.9)
  shape = size['batch'], 3, size['pixels'], size['pixels']
  images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
  images = images.contiguous(memory_format=torch.channels_last)
  labels = torch.arange(size['batch'], device=device) % 1000

  def loss(images):
    with torch.autocast(device, torch.bfloat16):
      logits = network((images.float() / 255 - 0.5) / 0.25)
      return nn.functional.cross_entropy(logits, labels)

  compiled = torch.compile(loss) if device == 'cuda' else loss

  def step():
    optimizer.zero_grad(set_to_none=True)
    value = compiled(images)
    value.backward()
    optimizer.step()
    return value

  return stretches(step, lambda value: value.item(), size)
