"""What the devices are given to do, in one record."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from adabatch.controllers.buckets import Bucket
from adabatch.data.source import Inputs
from adabatch.devices.mesh import Devices
from adabatch.models.tasks import Task
from adabatch.optim.noise_norms import NoiseNorm, euclidean
from adabatch.optim.sync import SyncRule

EUCLIDEAN = euclidean()


class Sync(NamedTuple):
  """What replicas need to agree.

  Attributes:
    rule: number of replicas -> how they agree.
    average_momentum: whether their optimizers' states are averaged as well.
  """

  rule: Callable[[int], SyncRule]
  average_momentum: bool


class Recipe(NamedTuple):
  """What is trained on what, how, and what is measured of it.

  Attributes:
    model: called as `model.apply(variables, inputs, train=, rows=)`.
    task: inputs, losses and metrics of examples.
    tx: optimizer; its update takes `batch_size`, `damping`, `examples` and
      `gradient_noise`, and its state holds `learning_rate`.
    inputs: both splits.
    network_input: shape and dtype of a batch of one of the network's inputs.
    devices: all of them, along one axis.
    seed: of parameters, dropout, augmentation and the order of the data.
    needs: the signals that the batch-size rule reads.
    estimate_noise: whether anything reads the gradient noise.
    noise_norm: in which norm that is measured.
    keep_gradient: whether to carry the previous gradient, for the noise of
      batches of one example.
    sync: how replicas agree; None where one model is trained.
    replicas: how many there are at first; 1 of one model.
    skip: whether an update whose loss or gradient is not finite leaves the
      state as it was; of replicas, that of each alone.
    initial: parameters and statistics to start from, in place of fresh ones of
      the same names and shapes; None: all are fresh.
    updates_per_call: most updates that one call of a program does.
    indices_per_call: most indices of examples that a call of several is given;
      None: any number. See `room`.
    evaluated_at_once: most examples that a device evaluates at once.
    subset_size: examples of the measurements that go over a part.
    group_size: examples of a BatchNorm group; None where there are none.
    gradient_dtype: in which the devices add up their gradients.
    split_names: of training and evaluation, for messages.
  """

  model: nn.Module
  task: Task
  tx: optax.GradientTransformationExtraArgs
  inputs: Inputs
  network_input: jax.ShapeDtypeStruct
  devices: Devices
  seed: Any = 0
  needs: frozenset[str] = frozenset()
  estimate_noise: bool = False
  noise_norm: NoiseNorm = EUCLIDEAN
  keep_gradient: bool = False
  sync: Sync | None = None
  replicas: int = 1
  skip: bool = False
  initial: Any = None
  updates_per_call: int = 1
  indices_per_call: int | None = None
  evaluated_at_once: int = 1024
  subset_size: int = 1024
  group_size: int | None = None
  gradient_dtype: Any = jnp.float32
  split_names: tuple[str, str] = ('training', 'evaluation')

  def room(self, bucket: Bucket) -> int:
    """Most updates of a call in a bucket."""
    if self.indices_per_call is None:
      return self.updates_per_call
    fit = self.indices_per_call // (bucket.slots * self.replicas)
    return max(1, min(self.updates_per_call, fit))
