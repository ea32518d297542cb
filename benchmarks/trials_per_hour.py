"""Trials an hour of a small network, by how they are run.

    python -m benchmarks.trials_per_hour

Sixteen trials of the digits MLP at one batch size, 1,000 updates each: as one
population (a vmap on each device), one after the other with many updates in a
call, one after the other with one update in a call; which of them the automatic
choice finds is said, too. The ways take turns, so that a disturbance of the
machine does not fall on one of them alone; compiling is left out. Writes
a log (`--log`) and prints a table: median (least–most).
"""

import statistics
import time

import jax
from absl import app, flags, logging

from adabatch.devices.population import Member, Population
from adabatch.search import modes
from adabatch.search import population as trials
from adabatch.search.population import Mode
from adabatch.search.workload import at_batch_size
from adabatch.train.build import Parts, build
from benchmarks import measure
from configs import study_digits_mlp

LOG = flags.DEFINE_string(
  'log', str(measure.DOCS / 'trials_per_hour.json'), 'Where the log is written.'
)
REPEATS = flags.DEFINE_integer('repeats', 5, 'Times that each way is run.')
BATCH_SIZES = flags.DEFINE_list('batch_sizes', ['16', '64', '256'], 'Which.')

TRIALS = 16
UPDATES = 1000


def make_population(
  batch_size: int, updates: int = UPDATES
) -> tuple[Population, Parts]:
  config = study_digits_mlp.get_config()
  config.max_updates = updates
  config.epochs = 1e6
  config.eval.growth = 2.0
  one = at_batch_size(config, 'nesterov', batch_size)
  parts = build(one)
  return trials.make_population(parts, ('learning_rate.base',)), parts


def run(
  population: Population,
  parts: Parts,
  mode: Mode,
  number: int = TRIALS,
  updates: int = UPDATES,
) -> float:
  """Seconds of all trials, without compiling."""
  members = [Member(i, (0.01,)) for i in range(number)]
  compiled, begin = population.compile_seconds, time.perf_counter()
  size = mode.members * population.devices
  for first in range(0, number, size):
    some = members[first : first + size]
    ended = list(
      trials.run(population, parts, some, mode, limit=lambda i, known: None)
    )
    assert len(ended) == len(some)
    assert all(o.updates == updates and not o.diverged for _, o in ended)
  compiling = population.compile_seconds - compiled
  return time.perf_counter() - begin - compiling


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  each = -(-TRIALS // jax.device_count())
  many = modes.UPDATES_PER_CALL
  ways = {
    'a population, one update a call': Mode(each, 1),
    'a population, many updates a call': Mode(each, many),
    'one after the other, many updates a call': Mode(1, many),
    'one after the other, one update a call': Mode(1, 1),
  }
  rows, log = [], {}
  for batch_size in map(int, BATCH_SIZES.value):
    population, parts = make_population(batch_size)
    found = modes.candidates(population, UPDATES, each, (None, None))
    members = [Member(0, (0.01,))]
    chosen = modes.choose(modes.seconds_per_update(population, members, found))
    seconds = {way: [] for way in ways}
    for repeat in range(1 + REPEATS.value):  # the first compiles
      for way, mode in ways.items():
        passed = run(population, parts, mode)
        if repeat:
          seconds[way].append(passed)
    hourly = {w: [3600 * TRIALS / s for s in t] for w, t in seconds.items()}
    medians = {way: statistics.median(rates) for way, rates in hourly.items()}
    automatic = next(way for way, mode in ways.items() if mode == chosen)
    share = medians[automatic] / max(medians.values())
    log[batch_size] = {
      'trials_per_hour': hourly,
      'chosen': automatic,
      'share_of_best': share,
    }
    rows.append(
      [str(batch_size)]
      + [measure.spread(r, 0) for r in hourly.values()]
      + [f'{automatic}: {share:.0%} of the best']
    )
  log = measure.record(trials=TRIALS, updates=UPDATES, batch_sizes=log)
  measure.write(LOG.value, log)
  columns = ['batch size', *ways, 'the automatic choice']
  print(measure.table(columns, rows))


if __name__ == '__main__':
  app.run(main)
