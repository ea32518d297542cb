"""The training loop: what a run does, as a generator of records.

    evaluate -> checkpoint -> dispatch -> observe and decide

in this order, so that a checkpoint holds whole updates and a resumed run goes
on exactly where it was. The loop waits for the device only where a decision
needs a number: what an update reports is fetched after the next one was
dispatched. Every process takes the same decisions, because what they read comes
from sums over all devices.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Generator, Iterator

from jax.errors import JaxRuntimeError

from adabatch.devices.messages import Call
from adabatch.devices.programs import Stored
from adabatch.devices.step import Variant
from adabatch.devices.trainer import Restored, Trainer
from adabatch.train import at_once, grow
from adabatch.train.best import Best, Save
from adabatch.train.build import Parts, make_decisions, make_replicas
from adabatch.train.calls import Progress, next_multiple
from adabatch.train.checkpoints import Saved
from adabatch.train.decisions import Measure
from adabatch.train.evaluate import check, evaluate
from adabatch.train.next_call import likely_next, next_call
from adabatch.train.not_finite import Diverged, go_back
from adabatch.train.per_call import Pace, is_automatic
from adabatch.train.profile import Profile
from adabatch.train.records import Record, note, summary
from adabatch.train.regroup import changed, regroup
from adabatch.train.remarks import network, remarks
from adabatch.train.replicas import Change
from adabatch.train.reports import Clock, Reports
from adabatch.train.run_probe import SIGNAL, RunProbe
from adabatch.train.skipped import teller


def loop(
  parts: Parts,
  saved: Saved | None = None,
  save: Save = lambda update, state, host: None,
  *,
  save_best: Save | None = None,
  stop: threading.Event | None = None,
  cut: float = math.inf,
  warn: Callable[[str], None] = print,
  doing: Callable[[str, str], None] = lambda next, done: None,
  restore: Callable[[], Saved | None] = lambda: None,
  stored: Stored | None = None,
  profile: Profile | None = None,
) -> Generator[Record, None, None]:
  """Trains to the end; yields what happens as (kind, record), see `records`.

  The first is `start`, before which everything that can be refused was, and
  the last `summary`. Closing the generator ends the run where it is.

  Args:
    parts: of the run.
    saved: a checkpoint to go on from; None: from the start.
    save: keeps a checkpoint.
    save_best: keeps that of the best evaluation, where it is not the newest;
      None: nobody does.
    stop: set it to stop the run cleanly, with a checkpoint.
    cut: update at which the run is cut short, without an evaluation or a sync
      that it would not have had.
    warn: is told of records that cannot be read, on whichever process.
    doing: is told what is next, and how far the run is.
    restore: the newest checkpoint, for a run that goes back where it diverged
      (`on_nonfinite`); None: to the start.
    stored: where programs may be that were compiled before.
    profile: traces some updates; None: none.
  """
  stop = stop or threading.Event()
  best = None if save_best is None else Best(save_best, saved)
  run = Run(parts, saved, save, best, stop, cut, warn, doing, stored)
  run.profile = profile
  try:
    try:
      yield from run.start(saved)
    except JaxRuntimeError as error:
      raise at_once.in_words(run, error) from error
    on = True
    while on:
      try:
        on = yield from run.train()
      except Diverged as error:
        on = yield from go_back(run, error, restore)
      except JaxRuntimeError as error:
        yield from at_once.recover(run, error, restore)
  finally:
    run.trainer.close()


# (where the run goes on, where it was)
Keep = Callable[[Progress, Progress], None]


class Run:
  """What a run is made of, and the phases of the loop."""

  profile: Profile | None = None

  def __init__(self, parts, saved, save, best, stop, cut, warn, doing, stored):
    self.parts, self.save, self.best = parts, save, best
    self.stop, self.cut, self.doing = stop, cut, doing
    self.rolled_back: list[Record] = []
    restored = self.place(saved)
    self.clock = self.clock_of(self.at)
    self.pace = Pace(is_automatic(parts.config))
    self.larger = grow.larger(parts)
    self.fitting: set[Variant] = set()  # programs for which there is room
    self.trainer = Trainer(
      parts.recipe,
      restored,
      replicas=self.replicas.counts.replicas,
      skipped=teller(warn),
      compiling=lambda: self.paused('compiling'),
      stored=stored,
    )
    self.probe: RunProbe | None = None
    if SIGNAL in parts.recipe.needs:
      self.probe = RunProbe(
        lambda: self.parts,
        self.trainer,
        lambda: self.at,
        lambda: self.clock,
        lambda: self.paused('compiling'),
        doing,
        # What it reads of an update beside the probe would be lost.
        lambda: not self.decisions.follows and stop.is_set(),
        lambda: self.pace.most,
      )

  def place(self, saved: Saved | None) -> Restored | None:
    """The host's side is where a checkpoint was; returns the devices'."""
    parts, host = self.parts, {} if saved is None else saved.host
    first = {'next_evaluation': next_multiple(0, parts.due.evaluation_span)}
    self.at = Progress(**host.get('progress', first))
    self.resumed_at = self.at.update
    self.replicas = make_replicas(parts, host.get('replicas'))
    self.replicas.rate = self.at.rate
    self.change: Change | None = None  # since the checkpoint
    # What comes next, and how many of its updates were not dispatched yet.
    self.stretch: Call | None = None
    self.left = 0
    self.last: Call | None = None  # that was dispatched
    if saved is None:
      return None
    before = host['replicas']['replicas']
    if not self.finished():
      self.change = self.replicas.adapt(before)
    return Restored(saved.state, before)

  def decide(self, saved: Saved | None) -> None:
    """Measures what the rule needs at x_0, or goes on."""
    host = ({} if saved is None else saved.host).get('decisions')
    measure = Measure(self.measure)
    if self.probe is not None:
      measure = Measure(self.probe.measure, self.probe.due)
    self.decisions = make_decisions(self.parts, measure, host)
    if self.probe is not None:
      self.probe.follow(self.decisions)
    if saved is None:
      self.decisions.decide(0, 0)

  def measure(self, update: int, examples: int) -> tuple[dict[str, float], int]:
    """The signals that cost a pass over data, as they are now."""
    del update, examples
    return self.clock.on_all(self.trainer.measure)

  def clock_of(self, at: Progress) -> Clock:
    """Goes on where it was, on all devices."""
    devices, before = self.parts.recipe.devices.size, at.device_seconds
    if before is None:
      before = at.seconds * devices
    return Clock(at.seconds, device_seconds=before, devices=devices)

  def start(self, saved: Saved | None) -> Iterator[Record]:
    """Decides, or goes on; then all is accepted."""
    found = at_once.begin(self, saved)
    self.decide(saved)
    at, over = self.at, self.finished()
    yield (
      'start',
      {
        'update': at.update,
        'examples': at.examples,
        'over': over,
        'network': network(self.parts, self.trainer.state.params),
      },
    )
    self.clock.restart()
    yield from self.listen()
    for line in (*found, *remarks(self.parts)):
      yield note(at, line)

  def again(
    self, restore: Callable[[], Saved | None], keep: Keep
  ) -> Iterator[Record]:
    """From the newest checkpoint, or the start.

    Args:
      restore: the checkpoint; None: there is none.
      keep: where the run goes on is told of where it was.
    """
    with self.clock.paused():
      self.trainer.release()
      saved, before = restore(), self.at
      self.trainer.go_on(self.place(saved), self.replicas.counts.replicas)
      keep(self.at, before)
      self.at.seconds, self.replicas.rate = self.clock.seconds, self.at.rate
      self.decide(saved)
      if self.best is not None:
        self.best = self.best.after(saved)
    update = self.at.update
    yield 'cut', {'update': update}
    # Earlier ones are cut with the rest where the checkpoint is the same.
    yield from (r for r in self.rolled_back if r[1]['update'] > update)
    yield from self.listen()

  def listen(self) -> Iterator[Record]:
    """Nothing is under way; reports are to come, and examples are read."""
    if self.change is not None:
      yield from changed(self.at, self.change)
    at, trainer = self.at, self.trainer
    gather = trainer.devices.gatherer() if trainer.apart else None
    self.reports = Reports(
      self.parts,
      at,
      self.decisions,
      self.clock,
      gather,
      trainer.calls_in_flight,
      self.pace,
      None if self.probe is None else self.probe.records,
    )
    trainer.feed.start(at.examples + at.left_out)

  def train(self) -> Iterator[Record]:
    while True:
      if self.decisions.pending and not (
        self.reports.stopping or self.finished()
      ):
        yield from self.reports.decide()
      if not self.left or self.reports.stopping:
        status = yield from self.between()
        if status is not None:
          yield 'summary', summary(status, self)
          return
        yield from self.plan()
      yield from self.dispatch()

  def between(self) -> Generator[Record, None, str | None]:
    """Evaluates and keeps what is due; the status, if the run ends here."""
    at, over = self.at, self.finished()
    self.end_stretch()
    if at.evaluates(self.parts.end):
      yield from self.reports.observe()
      if over:
        yield from self.reports.log_last()
      with self.paused('evaluating'):
        self.at.seconds = self.clock.seconds
        yield evaluate(self.trainer, self.parts, at)
        if self.best is not None and at.best_update == at.update:
          self.checkpoint(self.best.hold)
      over = self.finished()
    due = self.parts.due.saves(at.update) and at.update != self.resumed_at
    wanted = grow.wanted(self) if self.larger and not over else 0
    if over or self.reports.stopping or wanted or due:
      yield from self.reports.observe()
      wanted = 0 if self.reports.stopping else wanted
      at.asked = max(at.asked, wanted)
      with self.paused('saving'):
        if self.best is not None:
          self.best.write(at.update)
        self.checkpoint(self.save)
    if over:
      return 'completed' if at.reached is None else 'target_reached'
    if self.reports.stopping:
      return 'preempted'
    return 'grow' if wanted else None

  def end_stretch(self) -> None:
    """Counts what was dispatched of it."""
    if self.stretch is not None:
      done = self.stretch._replace(count=self.stretch.count - self.left)
      self.replicas.dispatched(done, self.trainer.sync_bytes)
      self.stretch = None

  def plan(self) -> Iterator[Record]:
    """As many updates alike as there are until anything else is due."""
    at, trainer = self.at, self.trainer
    yield from regroup(self)
    # While their number is looked for a window may end after every call.
    most = math.inf
    if not self.replicas.settled:
      most = min(trainer.updates_per_call, self.parts.config.sync.tune.window)
    while True:
      rules = self.parts, self.decisions, self.replicas
      self.stretch = stretch = next_call(at, *rules, most=most, cut=self.cut)
      self.left, bucket = stretch.count, stretch.plan.bucket
      self.pace.begin(bucket, trainer.room(bucket))
      if trainer.ready(stretch):
        return
      # Nothing is under way while it compiles.
      yield from self.reports.observe()
      with self.paused('compiling'):
        ahead = likely_next(stretch, *rules, trainer)
        line = at_once.compiled(self, stretch, ahead)
        self.clock.devices = self.trainer.in_use
      if line is None:
        return
      yield note(at, line)

  def dispatch(self) -> Iterator[Record]:
    """The next call; decides at once if that needs no report."""
    at, decisions, stretch = self.at, self.decisions, self.stretch
    assert stretch is not None, 'plan() makes it'
    count = min(self.left, self.pace.most)
    self.left -= count
    decides = stretch.decides and not self.left
    profile = self.profile
    if profile is not None and profile.due(at.update, count):
      self.trace(profile)
    call = stretch._replace(
      update=at.update, examples=at.examples, count=count, decides=decides
    )
    if self.parts.recipe.inputs.streaming:
      self.doing('reading', f'update {at.update}')
    self.last = call
    reports = self.trainer.dispatch(call, stop=self.stop.is_set())
    self.doing('training', f'update {call.update}')
    at.update, at.examples = call.after(count)
    if decides and not decisions.waits(at.update, at.examples):
      decisions.decide(at.update, at.examples)
    yield from self.reports.follow(call, reports)

  def trace(self, profile: Profile) -> None:
    self.trainer.wait()
    with self.paused('tracing'):
      profile.turn()

  def checkpoint(self, save: Save) -> None:
    check(self.trainer, self.at)
    self.at.seconds = self.clock.seconds
    self.at.device_seconds = self.clock.device_seconds
    host = {
      'progress': self.at.host(),
      'decisions': self.decisions.host(),
      'replicas': self.replicas.host(),
      'data': self.parts.fingerprints,
      'at_once': at_once.kept(self.parts, self.trainer),
    }
    save(self.at.update, self.trainer.to_save(), host)

  @contextlib.contextmanager
  def paused(self, doing: str) -> Iterator[None]:
    """What is not training, and does not count as its time."""
    self.doing(doing, f'update {self.at.update}')
    with self.clock.paused():
      yield
    self.doing('training', f'update {self.at.update}')

  def finished(self) -> bool:
    return self.at.over(self.parts.end, self.cut)
