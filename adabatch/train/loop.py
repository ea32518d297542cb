"""The training loop, and what it keeps from one update to the next.

    evaluate -> checkpoint -> take batch -> step -> log and decide

in this order, so that a checkpoint holds whole updates and a resumed run goes
on exactly where it was. The loop waits for the device only where a decision
needs a number: what an update reports is fetched after the next one was
dispatched.
"""

import dataclasses
import math
import os
import threading
from collections.abc import Sequence
from typing import Any

import jax

from adabatch import data
from adabatch.config import Config, ConfigError
from adabatch.config.smoke import shrink
from adabatch.controllers import buckets
from adabatch.controllers.buckets import Plan
from adabatch.devices import parallel
from adabatch.devices.step_cache import use_persistent_cache
from adabatch.train.agreement import Agreement
from adabatch.train.assembly import (
  make_agreement,
  make_evaluators,
  make_updates,
)
from adabatch.train.checkpoint import Checkpoints, Record
from adabatch.train.clock import Clock
from adabatch.train.console import Console
from adabatch.train.decisions import Decisions
from adabatch.train.experiment import Experiment, build, check, remarks
from adabatch.train.in_flight import Dispatched, InFlight, Update
from adabatch.train.inputs import TextCache
from adabatch.train.metrics import MetricsWriter, train_record
from adabatch.train.programs import Programs
from adabatch.train.skipped import Skipped, limits
from adabatch.train.stop import stop_on_signals
from adabatch.train.workdir import Workdir


class Diverged(Exception):
  """An update whose loss, gradient or result is not finite."""

  def __init__(self, update: int, what: str):
    super().__init__(f'the {what} of update {update} is not finite')
    self.update = update


@dataclasses.dataclass
class Progress:
  """Where a run is; with the decisions, the host's side of a checkpoint.

  Attributes:
    next_evaluation: examples after which the next evaluation is due.
    update, examples: dispatched so far.
    seconds: training clock.
    evaluated: update of the last evaluation.
    final, best: metrics of the last evaluation and the best ones, by split.
    reached: where the target was reached, once it was.
    skipped_records: trained on with weight 0, because they could not be read.
    skipped_evaluation_records: left out of the last evaluation.
    distances: of the replicas at the last sync, by name.
  """

  next_evaluation: int
  update: int = 0
  examples: int = 0
  seconds: float = 0.0
  evaluated: int = 0
  final: dict = dataclasses.field(default_factory=dict)
  best: dict = dataclasses.field(default_factory=dict)
  reached: dict | None = None
  skipped_records: int = 0
  skipped_evaluation_records: int = 0
  distances: dict = dataclasses.field(default_factory=dict)


def next_multiple(examples: int, span: float) -> int:
  """Examples after which the next whole multiple of a span is reached.

  >>> next_multiple(176, 35.2), next_multiple(12, 0.4 * 60)
  (212, 24)
  """
  # The factors, because in binary 176 // 35.2 is 4 and a product of the kind
  # of 0.4 * 60 may come out above 24.
  spans = math.floor(examples / span * (1 + 1e-12))
  return math.ceil((spans + 1) * span * (1 - 1e-12))


def next_evaluation(examples: int, span: float, growth: float) -> int:
  """Examples after which the next evaluation is due.

  >>> next_evaluation(176, 35.2, 1.0), next_evaluation(1000, 35.2, 1.05)
  (212, 1050)
  """
  grown = math.ceil(examples * growth * (1 - 1e-12))
  return max(next_multiple(examples, span), grown)


def better(a: float, b: float, *, higher: bool) -> float:
  """The better one of two values of a metric; a number is better than NaN.

  >>> better(0.5, math.nan, higher=True), better(0.5, 0.25, higher=True)
  (0.5, 0.5)
  """
  if math.isnan(a) or math.isnan(b):
    return b if math.isnan(a) else a
  return max(a, b) if higher else min(a, b)


class Run:
  """One run: its parts, its progress, and the phases of the loop.

  Only the first process writes logs; every process takes the same decisions,
  because what they read comes from sums over all devices.
  """

  def __init__(
    self,
    config: Config,
    experiment: Experiment,
    workdir: Workdir,
    stop: threading.Event,
    last_update: int | None = None,
  ):
    self.config, self.experiment, self.workdir = config, experiment, workdir
    self.stop = stop
    self.cut = math.inf if last_update is None else last_update
    self.stopping = False
    self.writes = jax.process_index() == 0
    self.console = Console(experiment.length.examples, enabled=self.writes)
    self.checkpoints: Checkpoints | None = None
    self.writer: MetricsWriter | None = None
    # Examples and seconds where a window of measured throughput began.
    self.window: tuple[int, float] | None = None
    self.resumed_at = 0
    self.last: Update | None = None  # that was fetched
    self.logged = (0, 0.0)  # examples and seconds of the last logged update
    self.clock = Clock()
    # A CPU runs its virtual devices on few threads: collectives of several
    # updates at once could wait for each other for ever.
    self.most_in_flight = 1 if jax.default_backend() == 'cpu' else 8
    inputs = experiment.inputs
    if inputs.streaming:
      # Each of them holds a batch in the devices' memory.
      self.most_in_flight = min(self.most_in_flight, 2)
    self.num_examples = inputs.train.num_examples
    self.fingerprints = {
      'training': inputs.train.fingerprint,
      'evaluation': inputs.evaluation.fingerprint,
    }
    self.skipped = Skipped(self.console, limits(config))
    self.updates = make_updates(config, experiment, self.skipped.in_split)
    self.agreement: Agreement = make_agreement(config, experiment)
    # Where replicas lie with several processes, their reports travel only when
    # somebody wants to read them, so that they need not wait for one another.
    self.apart = experiment.replicas > 1 and jax.process_count() > 1
    self.in_flight = self.new_queue()
    self.evaluator, measurements = make_evaluators(
      config,
      experiment,
      self.updates.feed.data,
      self.skipped.in_split,
      has_statistics=bool(jax.tree.leaves(self.updates.state.model_state)),
      compiling=lambda: self.clock.paused(),  # which `start` replaces
    )
    self.decisions = Decisions(
      experiment.controller,
      experiment.ladder,
      measurements,
      initial_batch_size=config.controller.initial_batch_size,
      num_examples=self.num_examples,
    )
    self.programs = Programs(
      self.updates,
      self.decisions,
      self.agreement,
      total_examples=experiment.length.examples,
    )
    span = config.eval.every_epochs * self.num_examples
    self.progress = Progress(next_evaluation=next_multiple(0, span))

  # What updates report.

  def new_queue(self) -> InFlight:
    gather = None
    if self.apart:
      gather = parallel.gatherer(self.updates.mesh)
    return InFlight(self.clock, gather)

  def drain(self, keep: int = 0) -> None:
    """Checks, feeds to the rule and logs all but the newest `keep` calls."""
    for done in self.in_flight.take(keep):
      report = done.report
      if not math.isfinite(report.loss + report.gradient_norm_squared):
        raise Diverged(done.update, 'loss or gradient')
      self.stopping |= report.stop > 0
      if self.decisions.measured:
        self.decide(done)
      self.last = done
      self.count_skipped(done)
      if math.isfinite(done.report.replica_squared_distance):
        names = 'replica_squared_distance', 'mean_squared_distance'
        self.progress.distances = {n: getattr(done.report, n) for n in names}
      every = self.config.log.every_updates
      if done.update % every == 0 or self.decisions.due(done.update):
        self.log(done)

  def decide(self, done: Update) -> None:
    """Feeds the rule; says so when it reads a loss that it cannot follow."""
    decisions = self.decisions
    before = decisions.losses_below_minimum
    decisions.decide(done.update, done.examples, self.updates.state, done)
    if decisions.losses_below_minimum > before == 0:
      name = self.config.controller.name
      self.console.say(
        f'update {done.update}: the loss is not above '
        f'controller.{name}.minimum_loss, so the batch size stays at '
        f'{decisions.nominal:.6g}; summary.json counts how often'
      )

  def count_skipped(self, done: Update) -> None:
    """Every process counts the same: the weights were summed over devices.

    Raises:
      data.DatasetError: if there are more than the config allows.
    """
    inputs = self.experiment.inputs
    if not inputs.streaming or inputs.tokens_per_example:
      return  # rows of text have weights of their own
    missing = done.plan.batch_size - round(done.report.weight)
    if missing == done.plan.batch_size:
      raise data.DatasetError(
        f'none of the {missing} records of update {done.update} can be read: '
        'is a file of the data set damaged?'
      )
    self.progress.skipped_records += missing
    self.skipped.check(
      self.progress.skipped_records,
      self.config.data.train_split,
      self.num_examples,
      done.examples,
    )

  def log(self, done: Update) -> None:
    if self.writer is None or done.examples <= self.logged[0]:
      return
    record = train_record(
      done,
      self.logged,
      self.num_examples,
      self.experiment.inputs.tokens_per_example,
      self.progress.distances,
    )
    self.logged = (done.examples, done.seconds)
    self.writer.write('train', record)
    self.console.progress(record)

  # The phases of the loop.

  def check(self) -> None:
    """Before the model is evaluated or kept: whether it is finite.

    Updates report the loss before them, so of the last nobody else would know.
    """
    if not self.updates.finite():
      raise Diverged(self.progress.update, 'result')

  def evaluate(self) -> None:
    progress, split = self.progress, self.config.data.eval_split
    self.check()
    metrics = self.evaluator.metrics(self.updates.state)
    if not math.isfinite(metrics['loss']):
      raise Diverged(progress.update, f'{split} loss')
    if not self.experiment.inputs.tokens_per_example:
      skipped = self.evaluator.skipped
      self.skipped.check(skipped, split, self.evaluator.examples)
      progress.skipped_evaluation_records = skipped
    progress.evaluated = progress.update
    span = self.config.eval.every_epochs * self.num_examples
    progress.next_evaluation = next_evaluation(
      progress.examples, span, self.config.eval.growth
    )
    progress.final[split] = metrics
    best = progress.best.setdefault(split, dict(metrics))
    for name, higher in self.experiment.task.higher_is_better.items():
      best[name] = better(best[name], metrics[name], higher=higher)
    record = {
      'update': progress.update,
      'examples': progress.examples,
      'epoch': progress.examples / self.num_examples,
      'seconds': self.clock.seconds,
      'split': split,
      **metrics,
    }
    if self.writer is not None:
      self.writer.write('eval', record)
    self.console.say(
      f'epoch {record["epoch"]:.2f}  update {progress.update}  {split}  '
      + '  '.join(f'{name} {value:.4f}' for name, value in metrics.items())
    )
    self.check_target(metrics)

  def check_target(self, metrics: dict[str, float]) -> None:
    target, progress = self.config.target, self.progress
    if target.value is None or progress.reached is not None:
      return
    value = metrics[target.metric]
    higher = self.experiment.task.higher_is_better[target.metric]
    if value > target.value if higher else value < target.value:
      progress.reached = {
        'updates': progress.update,
        'examples': progress.examples,
        'seconds': self.clock.seconds,
      }

  def checkpoint(self) -> None:
    self.check()
    self.progress.seconds = self.clock.seconds
    host = {
      'progress': dataclasses.asdict(self.progress),
      'decisions': self.decisions.to_json(),
      'agreement': self.agreement.to_json(),
      'configured_replicas': self.experiment.replicas,
      'data': self.fingerprints,
    }
    assert self.checkpoints is not None, 'start() opens them'
    self.checkpoints.save(self.progress.update, self.updates.to_save(), host)

  def count(self, batch_size: int) -> int:
    """How many updates may be dispatched at once: until anything else is due.

    That is a decision, an evaluation, a checkpoint or the end.
    """
    progress, every = self.progress, self.config.checkpoint.every_updates
    end, ahead = self.experiment.end, progress.next_evaluation
    most = min(
      self.updates.updates_per_call,
      end.left(progress.update, progress.examples, batch_size),
      -(-(ahead - progress.examples) // batch_size),
      every - progress.update % every,
      self.cut - progress.update,
    )
    # A batch that the end cuts is of another size than those before it.
    most = min(most, max(end.whole(progress.examples, batch_size), 1))
    for count in range(1, int(most)):
      if self.decisions.due(progress.update + count):
        return count
    return int(most)

  def plan(self) -> tuple[float, Plan]:
    """Nominal batch size and plan of the next update.

    Each replica takes the share that it has by the config, so with more of them
    than configured the batch is larger. Where the run's examples end it is cut,
    the slots beyond are empty and the learning rate is damped.
    """
    nominal, plan = self.decisions.nominal, self.decisions.plan()
    planned, now = self.experiment.replicas, self.updates.replicas
    if now != planned:
      nominal *= now / planned
      batch_size = plan.batch_size // planned * now
      plan = plan._replace(batch_size=batch_size)
    size = self.experiment.end.cut(self.progress.examples, plan.batch_size)
    return nominal, buckets.cut(plan, size, self.experiment.ladder)

  def step(self) -> None:
    """Dispatches the next updates; decides at once if that needs no report."""
    progress, decisions = self.progress, self.decisions
    agreement, programs = self.agreement, self.programs
    if agreement.tuned:
      self.tune()
    nominal, plan = self.plan()
    agreement.start(
      progress.update, progress.examples, plan.batch_size, plan.damping
    )
    if agreement.restart_due(progress.examples):
      self.drain()
      with self.clock.paused():
        self.updates.restart()
      self.console.say(f'update {progress.update}: replicas restart from z')
    agree, count = agreement.coming(
      progress.update,
      progress.examples,
      plan.batch_size,
      plan.damping,
      most=self.count(plan.batch_size),
      left=self.experiment.end.left(
        progress.update, progress.examples, plan.batch_size
      ),
    )
    program = programs.at_hand(plan, agree)
    if program is None:
      self.drain()
      with self.clock.paused():
        program = programs.get(plan, agree, progress.update, progress.examples)
    reports = self.updates.run(
      program, progress.examples, plan, count, stop=self.stop.is_set()
    )
    self.in_flight.add(
      Dispatched(
        progress.update, progress.examples, count, nominal, plan, reports
      )
    )
    read = False  # whether anybody wants to read the reports
    for _ in range(count):
      progress.update += 1
      progress.examples += plan.batch_size
      read |= progress.update % self.config.log.every_updates == 0
      if not decisions.measured:
        decisions.decide(progress.update, progress.examples, self.updates.state)
    agreement.done(
      progress.update,
      count=count,
      agreed=agree,
      bytes_each=self.updates.sync_bytes,
    )
    due = decisions.due(progress.update)
    if not self.apart:
      waits = decisions.measured and due
      self.drain(keep=0 if waits else self.most_in_flight)
    elif read or due:
      self.drain()
    else:
      self.in_flight.wait(self.most_in_flight)

  # The number of replicas.

  def tune(self) -> None:
    """Between two updates: finds how many replicas a device should train."""
    progress, agreement = self.progress, self.agreement
    if self.programs.changes_bucket(self.decisions.plan()):
      self.window = None
      self.set_replicas(agreement.tune_again(), 'another batch size')
    if not agreement.tuning:
      return
    if self.window is None:
      self.drain()
      self.window = progress.examples, self.clock.seconds
      return
    examples = progress.examples - self.window[0]
    if examples < self.config.sync.tune.window * self.plan()[1].batch_size:
      return
    self.drain()
    seconds = self.clock.seconds - self.window[1]
    # Every process must come to the same decision.
    throughput = parallel.of_first_process(examples / max(seconds, 1e-9))
    replicas = agreement.observe(throughput)
    self.set_replicas(replicas, f'{throughput:,.0f} examples/s')
    self.window = None
    if not agreement.tuning:
      self.console.say(
        f'update {progress.update}: settled at {self.updates.replicas} replicas'
      )

  def set_replicas(self, replicas: int, why: str) -> None:
    """Goes on with another number of replicas, if it is another."""
    before = self.updates.replicas
    if replicas != before:
      self.drain()
      with self.clock.paused():
        self.updates.resize(replicas)
      self.tell_replicas(before, why)

  def tell_replicas(self, before: int, why: str) -> None:
    """Logs a change before the update that is the first to see it.

    A checkpoint may have been written already, from which the change is made,
    and logged, anew: so the line has the number of the next update.
    """
    progress, now = self.progress, self.updates.replicas
    how = 'new ones start from z' if now > before else 'all start from the mean'
    self.console.say(
      f'update {progress.update}: {before} -> {now} replicas ({why}; {how})'
    )
    if self.writer is not None:
      record = {
        'update': progress.update + 1,
        'examples': progress.examples,
        'seconds': self.clock.seconds,
        'replicas': now,
        'before': before,
        'why': why,
      }
      self.writer.write('replicas', record)

  def finished(self) -> bool:
    return self.progress.update >= self.cut or self.ended()

  def ended(self) -> bool:
    """Whether the run is at its own end, and not cut short."""
    progress = self.progress
    over = self.experiment.end.over(progress.update, progress.examples)
    return over or progress.reached is not None

  def loop(self) -> str:
    """Trains to the end; returns the status."""
    progress = self.progress
    while True:
      finished = self.finished()
      # Where it is cut short there is no evaluation that it would not have had.
      if progress.update > progress.evaluated and (
        self.ended() or progress.examples >= progress.next_evaluation
      ):
        self.drain()
        if finished and self.last is not None:
          self.log(self.last)
        with self.clock.paused():
          self.evaluate()
        finished = self.finished()
      if finished or self.stopping or self.checkpoint_due():
        self.drain()
        with self.clock.paused():
          self.checkpoint()
      if finished:
        return 'completed' if progress.reached is None else 'target_reached'
      if self.stopping:
        return 'preempted'
      self.step()

  def checkpoint_due(self) -> bool:
    return (
      self.progress.update > self.resumed_at
      and self.progress.update % self.config.checkpoint.every_updates == 0
    )

  # Start and end.

  def start(self) -> None:
    """Resumes, or measures what the rule needs at x_0; then opens the files.

    Nothing is written before everything that can be refused was accepted.
    """
    if self.writes:
      self.workdir.lock()
    self.workdir.check(self.config)
    record = None
    if self.workdir.has_checkpoints():
      self.checkpoints = self.open_checkpoints()
      record = self.checkpoints.restore(
        lambda host: self.updates.template(host['agreement']['replicas']),
        warn=self.console.say,
      )
    if record is None:
      self.decisions.decide(0, 0, self.updates.state)
    else:
      self.resume(record)
    ended = self.finished()
    if self.writes:
      if not ended:
        self.workdir.open(self.config)
      self.writer = MetricsWriter(self.workdir.path, self.progress.update)
    if self.checkpoints is None:
      self.checkpoints = self.open_checkpoints()
    if record is not None:
      self.adapt_replicas(record, ended=ended)
    self.clock = Clock(self.progress.seconds)
    self.logged = (self.progress.examples, self.progress.seconds)
    self.in_flight = self.new_queue()
    self.updates.feed.start(self.progress.examples)
    inputs = self.experiment.inputs
    for document in (*inputs.skipped_train, *inputs.skipped_evaluation):
      self.console.say(f'skipped document {document}')
    for line in remarks(self.config, self.experiment):
      self.console.say(line)
    self.console.start(self.progress.examples)

  def open_checkpoints(self) -> Checkpoints:
    path = self.workdir.path / 'checkpoints'
    return Checkpoints(path, self.config.checkpoint.keep)

  def resume(self, record: Record) -> None:
    for which, here in self.fingerprints.items():
      if (there := record.host['data'][which]) != here:
        raise ConfigError(
          f'{self.workdir.path} belongs to a run on other {which} data '
          f'({there} there, {here} here); choose another workdir'
        )
    self.progress = Progress(**record.host['progress'])
    self.decisions.restore(record.host['decisions'])
    self.agreement.restore(record.host['agreement'])
    self.resumed_at = record.update
    self.console.say(
      f'resumed at update {record.update} from {self.workdir.path}'
    )

  def adapt_replicas(self, record: Record, *, ended: bool) -> None:
    """Takes the restored state, with as many replicas as the config wants."""
    if ended:
      self.updates.state = record.state
      return
    wanted, saved = self.experiment.replicas, record.host['agreement']
    if wanted != record.host['configured_replicas']:
      self.agreement.renumber(wanted)
    now, before = self.agreement.counts.replicas, saved['replicas']
    self.updates.restore(record.state, before, now)
    if now != before:
      self.tell_replicas(before, f'sync.replicas={wanted}')

  def summary(self, status: str) -> dict[str, Any]:
    progress, cache = self.progress, self.updates.cache
    inputs = self.experiment.inputs
    target = self.config.target
    reached = progress.reached or dict.fromkeys(
      ('updates', 'examples', 'seconds')
    )
    return {
      'status': status,
      'updates': progress.update,
      'examples': progress.examples,
      'epochs': progress.examples / self.num_examples,
      'seconds': self.clock.seconds,
      'device_seconds': self.clock.seconds * self.experiment.mesh.size,
      'compilations': cache.compilations,
      'buckets_visited': len({variant.bucket for variant in cache.used}),
      'compile_seconds': cache.compile_seconds,
      'first_compile_seconds': cache.first_seconds,
      'stall_seconds': cache.stall_seconds,
      'input_wait_seconds': self.updates.feed.wait_seconds,
      'replicas': self.updates.replicas,
      'sync_count': self.agreement.counts.syncs,
      'sync_bytes': self.agreement.counts.sync_bytes,
      'loss_evaluation_examples': self.decisions.evaluated_examples,
      'losses_below_minimum': self.decisions.losses_below_minimum,
      'skipped_records': progress.skipped_records + len(inputs.skipped_train),
      'skipped_evaluation_records': progress.skipped_evaluation_records
      + len(inputs.skipped_evaluation),
      'final': progress.final,
      'best': progress.best,
      'target': {
        'metric': target.metric,
        'value': target.value,
        'reached': progress.reached is not None,
        **reached,
      },
    }

  def close(self) -> None:
    """Waits for what is being written."""
    self.updates.close()
    if self.checkpoints is not None:
      self.checkpoints.close()
    if self.writer is not None:
      self.writer.close()
    self.workdir.unlock()
    self.console.close()


def train(
  config: Config,
  workdir: str | os.PathLike[str],
  *,
  devices: Sequence[Any] | None = None,
  splits: tuple[data.Split, data.Split] | None = None,
  stop: threading.Event | None = None,
  cache: TextCache | None = None,
  last_update: int | None = None,
) -> dict[str, Any]:
  """Trains to the end of the config, or resumes a run that was cut short.

  Args:
    config: see `adabatch.config.default`.
    workdir: directory of the run; made if it does not exist.
    devices: devices to use; None for all of all processes.
    splits: training and evaluation split of your own arrays, made with
      `data.from_arrays`; None to load what `config.data` names.
    stop: set it to stop the run cleanly, as SIGTERM does.
    cache: for the tokens of a text set; None: in `workdir`.
    last_update: cuts the run short there, without an evaluation that it would
      not have had; unlike `max_updates` it may be another one whenever the run
      is resumed.

  Returns:
    What `summary.json` holds.

  Raises:
    ConfigError: for a config or a directory that cannot be used.
    data.DatasetError: for a data set that is not there.
  """
  if config.compilation_cache:
    use_persistent_cache()
  stop = stop or threading.Event()
  check(config, len(jax.devices() if devices is None else devices))
  if config.smoke:
    config = shrink(config)
  files = Workdir(workdir)
  files.check(config)
  if cache is None:
    cache = TextCache(files.text_directory, parallel.is_first_process())
  try:
    experiment = build(config, devices, splits, cache)
    run = Run(config, experiment, files, stop, last_update)
  except BaseException:
    files.unlock()  # which a text set has locked
    raise
  try:
    with stop_on_signals(stop):
      run.start()
      old = files.read_summary()
      # A run that was cut short may have gone beyond where it is now to end.
      if old is not None and old['status'] == 'preempted':
        old = None
      if run.finished() and run.resumed_at and old is not None:
        run.console.say(f'{files.path} is complete: nothing to do')
        return old
      try:
        summary = run.summary(run.loop())
      except Diverged as error:
        summary = run.summary('diverged') | {
          'diverged_update': error.update,
          'message': str(error),
        }
    if run.writes:
      files.write_summary(summary)
    return summary
  finally:
    run.close()
