"""Where a run is, and what it does next.

Everything here is pure: what is due is a function of the config and of the
progress, so that a run goes on where it was. The loop and populations ask here.
"""

import dataclasses
import math
from typing import Any, NamedTuple

from adabatch.config import Config
from adabatch.controllers import GradientNoise
from adabatch.controllers.buckets import Plan
from adabatch.devices.messages import Report
from adabatch.train.run_end import MOST_EXAMPLES, RunEnd


def next_multiple(examples: int, span: float) -> int:
  """Examples after which the next whole multiple of a span is reached.

  >>> next_multiple(176, 35.2), next_multiple(12, 0.4 * 60)
  (212, 24)
  """
  # The factors, because in binary 176 // 35.2 is 4 and a product of the kind
  # of 0.4 * 60 may come out above 24.
  spans = math.floor(examples / span * (1 + 1e-12))
  return max(examples + 1, math.ceil((spans + 1) * span * (1 - 1e-12)))


def better(a: float, b: float, *, higher: bool) -> float:
  """The better one of two values of a metric; a number is better than NaN.

  >>> better(0.5, math.nan, higher=True), better(0.5, 0.25, higher=True)
  (0.5, 0.5)
  """
  if math.isnan(a) or math.isnan(b):
    return b if math.isnan(a) else a
  return max(a, b) if higher else min(a, b)


class Due(NamedTuple):
  """When what is due, beside decisions.

  Attributes:
    evaluation_span: examples between two evaluations, at least.
    evaluation_growth: ratio of the examples at two evaluations, at least.
    checkpoint: updates between two checkpoints.
    log: updates between two train records.
  """

  evaluation_span: float
  evaluation_growth: float
  checkpoint: int
  log: int

  def saves(self, update: int) -> bool:
    """Whether a checkpoint is due after so many updates."""
    return update % self.checkpoint == 0

  def next_evaluation(self, examples: int) -> int:
    """Examples after which the next evaluation is due.

    >>> Due(35.2, 1.0, 1, 1).next_evaluation(176)
    212
    >>> Due(35.2, 1.05, 1, 1).next_evaluation(1000)
    1050
    """
    most = min(examples * self.evaluation_growth, MOST_EXAMPLES)
    grown = math.ceil(most * (1 - 1e-12))
    return max(next_multiple(examples, self.evaluation_span), grown)


def make_due(config: Config, num_examples: int) -> Due:
  """As a config says, where the training split has `num_examples`."""
  span = config.eval.every_epochs * num_examples
  return Due(
    min(max(span, 1.0), MOST_EXAMPLES),
    config.eval.growth,
    config.checkpoint.every_updates,
    config.log.every_updates,
  )


class Update(NamedTuple):
  """One update that is done.

  Attributes:
    update, examples: done with it.
    seconds: what the training clock showed then.
    plan: what it ran.
    decides: whether a decision is due after it.
    report: what it reported, all replicas together.
    noise: its estimates of the gradient noise, if it has any.
    clipped: share of the replicas whose gradient was clipped, 0 or 1 of one
      model; None where none is ever.
    usual_seconds: what an update like it takes, the same on all processes; NaN
      where that is not known or nobody asks.
  """

  update: int
  examples: int
  seconds: float
  plan: Plan
  decides: bool
  report: Report
  noise: GradientNoise | None
  clipped: float | None = None
  usual_seconds: float = math.nan


@dataclasses.dataclass
class Progress:
  """Where a run is; with the decisions, the host's side of a checkpoint.

  Attributes:
    next_evaluation: examples after which the next evaluation is due.
    update, examples: dispatched so far.
    seconds: training clock.
    device_seconds: its integral over the devices in use; None in checkpoints of
      before it was counted, when all were.
    evaluated: update of the last evaluation.
    final, best: metrics of the last evaluation and the best ones, by split.
    best_update: of the best evaluation by the target's metric, or by the loss;
      None if it never was a number.
    reached: where the target was reached, once it was.
    skipped_records: trained on with weight 0, because they could not be read.
    skipped_evaluation_records: left out of the last evaluation.
    distances: of the replicas at the last sync, by name.
    skipped_updates: that were not finite, of a replica or of the one model.
    skipped_in_a_row: how many of them were the last updates.
    rollbacks: how often the run went back to a checkpoint.
    rate: the factor on the learning rate that came of it.
    left_out: places of the data order that were jumped over.
    asked: the most devices that the run has asked for, see `grow`.
    probes: what `run_probe` has measured, the records.
    probe_examples, probe_evaluated_examples, probe_seconds: what that cost.
  """

  next_evaluation: int
  update: int = 0
  examples: int = 0
  seconds: float = 0.0
  evaluated: int = 0
  final: dict = dataclasses.field(default_factory=dict)
  best: dict = dataclasses.field(default_factory=dict)
  best_update: int | None = None
  reached: dict | None = None
  skipped_records: int = 0
  skipped_evaluation_records: int = 0
  distances: dict = dataclasses.field(default_factory=dict)
  skipped_updates: int = 0
  skipped_in_a_row: int = 0
  rollbacks: int = 0
  rate: float = 1.0
  left_out: int = 0
  device_seconds: float | None = None
  asked: int = 0
  probes: list = dataclasses.field(default_factory=list)
  probe_examples: int = 0
  probe_evaluated_examples: int = 0
  probe_seconds: float = 0.0

  def over(self, end: RunEnd, cut: float = math.inf) -> bool:
    """Whether the run is at its own end, or where it is cut short."""
    return (
      end.over(self.update, self.examples)
      or self.reached is not None
      or self.update >= cut
    )

  def evaluates(self, end: RunEnd) -> bool:
    """Whether an evaluation is due here; where a run is cut short, none is that
    it would not have had."""
    due = self.over(end) or self.examples >= self.next_evaluation
    return due and self.update > self.evaluated

  def evaluated_with(
    self,
    split: str,
    metrics: dict[str, float],
    higher_is_better: dict[str, bool],
    due: Due,
    target: Config,
  ) -> None:
    """After an evaluation.

    Args:
      split: of which.
      metrics: of it.
      higher_is_better: by name of the metric.
      due: when the next one is.
      target: `config.target`.
    """
    self.evaluated = self.update
    self.next_evaluation = due.next_evaluation(self.examples)
    self.final[split] = metrics
    key = target.metric if target.metric in metrics else 'loss'
    before = self.best.get(split, {}).get(key)
    best = self.best.setdefault(split, dict(metrics))
    for name, higher in higher_is_better.items():
      best[name] = better(best[name], metrics[name], higher=higher)
    if best[key] != before and not math.isnan(best[key]):
      self.best_update = self.update
    if target.value is None or self.reached is not None:
      return
    value, higher = metrics[target.metric], higher_is_better[target.metric]
    if value > target.value if higher else value < target.value:
      self.reached = {
        'updates': self.update,
        'examples': self.examples,
        'seconds': self.seconds,
      }

  def host(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def updates_until(
  at: Progress,
  batch_size: int,
  end: RunEnd,
  due: Due,
  *,
  most: float = math.inf,
  cut: float = math.inf,
) -> int:
  """How many updates alike there are until anything but a decision is due.

  That is an evaluation, a checkpoint, the end, or a batch that the end cuts,
  which is of another size than those before it.

  Args:
    at: where the run is.
    batch_size: of all of them.
    end: of the run.
    due: evaluations and checkpoints.
    most: that are asked for.
    cut: update at which the run is cut short.

  >>> where = Progress(next_evaluation=100, update=7, examples=40)
  >>> updates_until(where, 16, RunEnd(1000), Due(100, 1.0, 50, 1), most=20)
  4
  """
  least = min(
    most,
    end.left(at.update, at.examples, batch_size),
    -(-(at.next_evaluation - at.examples) // batch_size),
    due.checkpoint - at.update % due.checkpoint,
    cut - at.update,
  )
  return int(min(least, max(end.whole(at.examples, batch_size), 1)))
