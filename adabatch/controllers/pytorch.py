"""A batch size that moves, in loops of torch, Hugging Face and Lightning.

None of them is imported before it is asked for. Batches come from
`torch.utils.data.DataLoader(data, batch_sampler=BatchSampler(batch_size))`.
"""

from collections.abc import Callable
from typing import Any

from adabatch.controllers.batch_size import BatchSize

# The signals that are asked for, and the model -> their values by name.
Measure = Callable[[frozenset[str], Any], dict[str, Any]]


def damp(optimizer: Any, batch_size: BatchSize) -> Callable[[], None]:
  """Multiplies the learning rates by `batch_size.damping` during each step.

  Those of all groups of parameters; after the step they are what they were, so
  that no schedule of learning rates sees the damping.

  Args:
    optimizer: a `torch.optim.Optimizer`, or Accelerate's around one.
    batch_size: whose damping it is; of SGD, see `buckets.ladder` for others.

  Returns:
    A function that ends this.

  Raises:
    ValueError: it is no optimizer of torch.
  """
  while hasattr(optimizer, 'optimizer'):  # whose steps are those of the inner
    optimizer = optimizer.optimizer
  if not hasattr(optimizer, 'register_step_pre_hook'):
    raise ValueError(
      f'{type(optimizer).__name__} was given; damp() takes a '
      'torch.optim.Optimizer of torch 2.0 or newer'
    )
  undamped: list[tuple[dict[str, Any], Any]] = []

  def restore(*step: Any) -> None:
    del step
    while undamped:
      group, rate = undamped.pop()
      group['lr'] = rate

  def multiply(*step: Any) -> None:
    restore(*step)  # a step that raised an error has not been undone
    for group in optimizer.param_groups:
      undamped.append((group, group['lr']))
      group['lr'] = group['lr'] * batch_size.damping

  hooks = [
    optimizer.register_step_pre_hook(multiply),
    optimizer.register_step_post_hook(restore),
  ]

  def end() -> None:
    for hook in hooks:
      hook.remove()

  return end


class _Following:
  """What the callbacks have in common."""

  def __init__(
    self, batch_size: BatchSize, examples: int | None, measure: Measure | None
  ):
    self.batch_size, self._examples = batch_size, examples
    self._measure = measure
    self._ends: list[Callable[[], None]] = []

  def begin(self, model: Any, optimizers: list[Any]) -> None:
    self.end()
    if not self.batch_size.started:
      self.batch_size.start(**self._measured(model, {}))
    for optimizer in optimizers:
      self._ends.append(damp(optimizer, self.batch_size))

  def end(self) -> None:
    while self._ends:
      self._ends.pop()()

  def until_end(self, end: Callable[[], None]) -> None:
    self._ends.append(end)

  def observe(self, model: Any, known: dict[str, Any]) -> bool:
    """Counts an update; whether it was the last."""
    self.batch_size.observe(**self._measured(model, known))
    done = self.batch_size.examples
    return self._examples is not None and done >= self._examples

  def _measured(self, model: Any, known: dict[str, Any]) -> dict[str, Any]:
    wanted = self.batch_size.needs - known.keys()
    if wanted and self._measure is not None:
      return known | self._measure(wanted, model)
    return known


def _check(setting: str, value: int) -> None:
  if value != 1:
    raise ValueError(
      f'{setting} is {value}, but one process has to take each batch at once; '
      'set it to 1, and the largest batch to what fits'
    )


def hugging_face_callback(
  batch_size: BatchSize,
  *,
  examples: int | None = None,
  measure: Measure | None = None,
) -> Any:
  """A `transformers.TrainerCallback` that lets the batch size move.

  It damps the optimizer, reads the training loss of what the model returns, and
  keeps its state in the Trainer's checkpoints. The Trainer's own loader has one
  size; give another in `get_train_dataloader`. It has no length, therefore the
  arguments need `max_steps` as an upper limit, and `ignore_data_skip=True` when
  a run is resumed: the sampler goes on where it was.

  Args:
    batch_size: that the sampler of the loader has as well.
    examples: after which training stops; None for `max_steps` alone.
    measure: of signals that a rule needs beside `loss`: their names and the
      model -> their values by name.

  Raises:
    ModuleNotFoundError: transformers is not installed.
    ValueError: at the start of a run, for gradient accumulation, for several
      processes, or for batches that would be skipped.
  """
  try:
    import transformers  # pyright: ignore
    from transformers import trainer_callback  # pyright: ignore
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f'{error}; for this callback: pip install transformers accelerate'
    ) from error
  follow = _Following(batch_size, examples, measure)

  class AdaptiveBatchSize(
    transformers.TrainerCallback, trainer_callback.ExportableState
  ):
    loss = None

    def on_train_begin(self, args, state, control, *, model, optimizer, **_):
      _check('gradient_accumulation_steps', args.gradient_accumulation_steps)
      _check('the number of processes', args.world_size)
      if state.global_step:
        if not args.ignore_data_skip:
          raise ValueError(
            'ignore_data_skip=False was given, but the sampler skips what was '
            'trained on itself; resume with ignore_data_skip=True'
          )
        saved = state.stateful_callbacks[type(self).__name__]
        batch_size.load_state_dict(saved['attributes'])
      follow.begin(model, [optimizer])
      follow.until_end(model.register_forward_hook(self.read).remove)

    def read(self, model, inputs, output):
      if model.training:
        self.loss = output.get('loss') if isinstance(output, dict) else None

    def on_step_end(self, args, state, control, *, model, **_):
      known = {} if self.loss is None else {'loss': self.loss.detach()}
      if follow.observe(model, known):
        control.should_training_stop = True

    def on_train_end(self, args, state, control, **_):
      follow.end()

    def state(self):
      return {'args': {}, 'attributes': batch_size.state_dict()}

  return AdaptiveBatchSize()


def lightning_callback(
  batch_size: BatchSize,
  *,
  examples: int | None = None,
  measure: Measure | None = None,
) -> Any:
  """A `lightning.pytorch.Callback` that lets the batch size move.

  It damps all optimizers, reads the loss that `training_step` returns, and
  keeps its state in Lightning's checkpoints. The loader of the training set is
  one with a `BatchSampler`.

  Args:
    batch_size: that the sampler of the loader has as well.
    examples: after which training stops; None for the Trainer's own limits.
    measure: of signals that a rule needs beside `loss`: their names and the
      module -> their values by name.

  Raises:
    ModuleNotFoundError: lightning is not installed.
    ValueError: at the start of a run, for gradient accumulation or for several
      processes.
  """
  try:
    import lightning.pytorch  # pyright: ignore
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f'{error}; for this callback: pip install lightning'
    ) from error
  follow = _Following(batch_size, examples, measure)

  class AdaptiveBatchSize(lightning.pytorch.Callback):
    def on_train_start(self, trainer, pl_module):
      _check('accumulate_grad_batches', trainer.accumulate_grad_batches)
      _check('the number of processes', trainer.world_size)
      follow.begin(pl_module, trainer.optimizers)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
      known = {'loss': outputs['loss']} if outputs else {}
      if follow.observe(pl_module, known):
        trainer.should_stop = True

    def on_train_end(self, trainer, pl_module):
      follow.end()

    def on_exception(self, trainer, pl_module, exception):
      follow.end()

    def state_dict(self):
      return batch_size.state_dict()

    def load_state_dict(self, state_dict):
      batch_size.load_state_dict(state_dict)

  return AdaptiveBatchSize()
