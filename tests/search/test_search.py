"""Searches and studies: real trainings, a real storage, real processes."""

import collections
import json
import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import jax
import optuna
import pytest

from adabatch.config import ConfigError
from adabatch.config.files import read_signed
from adabatch.controllers import buckets
from adabatch.search import modes, population
from adabatch.search.bench import Bench, Task
from adabatch.search.job import allowed, search
from adabatch.search.storage import Entry, Ledger, Worker, open_storage
from adabatch.search.study_job import study
from adabatch.search.survey import survey
from adabatch.search.workload import (
  at_batch_size,
  identity,
  make_goal,
  search_space,
)
from adabatch.study import archive, summarize
from adabatch.study.space import Parameter, points
from adabatch.study.trials import COMPLETE, ERROR, INFEASIBLE, Goal
from adabatch.train import train
from configs import transformer_shakespeare
from tests import commands
from tests.experiments import digits, records
from tests.tfds_sets import PREPARED, needs

pytestmark = pytest.mark.usefixtures('compile_quickly')


def workload(**overrides):
  """Short trials, of which some diverge and some reach the goal."""
  c = digits(
    **{
      'controller.name': 'constant',
      'controller.initial_batch_size': 32,
      'controller.max_batch_size': 32,
      'optimizer.name': 'nesterov',
      'optimizer.weight_decay': 0.05,  # large rates times this diverge
      'epochs': 3.0,
      'eval.every_epochs': 0.1,
      'target.value': 0.9,
      'search.trials': 6,
      'search.members': 4,
      'search.updates_per_call': 8,
      'compilation_cache': False,
    }
  )
  c.search.space = (
    ('learning_rate.base', 'log', 1e-3, 1e4),
    ('optimizer.momentum', 'reverse_log', 0.5, 0.99),
  )
  c.study.batch_sizes = (32, 64)
  with c.ignore_type():
    c.update_from_flattened_dict(overrides)
  return c


def one_device():
  return jax.devices()[:1]


def table(workdir):
  """What a search found, without the clock."""
  rows = []
  for found in archive.read_tree(workdir / 'trials'):
    for trial in found.trials:
      columns = {
        k: v.tolist() for k, v in trial.measurements.items() if k != 'seconds'
      }
      rows.append(
        (
          found.optimizer,
          found.batch_size,
          trial.number,
          trial.status,
          trial.steps,
          trial.parameters,
          columns,
        )
      )
  return sorted(rows, key=lambda row: row[:3])


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  """A search by one worker that nobody disturbed."""
  workdir = tmp_path_factory.mktemp('search')
  summary = search(workload(), workdir, devices=one_device())
  return workdir, summary


def test_the_budget_is_of_trials_that_do_not_diverge(found):
  workdir, summary = found
  assert summary['status'] == 'completed'
  rows = table(workdir)
  status = collections.Counter(row[3] for row in rows)
  assert status[COMPLETE] == 6
  assert status[INFEASIBLE] > 0
  assert summary['trials'] == {
    'complete': 6,
    'infeasible': status[INFEASIBLE],
    'unmeasured': 0,
  }
  # Not one more than it takes, and none left out.
  assert [row[2] for row in rows] == list(range(1, len(rows) + 1))
  assert rows[-1][3] == COMPLETE


def test_trials_are_the_points_written_down_in_advance(found):
  workdir, _ = found
  c = workload()
  rows = table(workdir)
  expected = points(search_space(c), 'halton', c.seed, len(rows))
  assert [row[5] for row in rows] == expected


def test_no_trial_runs_past_an_earlier_one_that_reached_the_goal(found):
  rows = table(found[0])
  least, cut = 10**9, 0
  for *_, status, steps, _, columns in rows:
    assert steps <= least
    cut += steps == least
    goal = [
      s for s, e in zip(columns['step'], columns[ERROR], strict=True) if e < 0.1
    ]
    if status == COMPLETE and goal:
      assert steps == goal[0]
      least = min(least, steps)
  assert least < 10**9
  assert cut


@pytest.mark.parametrize(
  'changes',
  [
    {'search.members': 1},
    {'search.members': 16, 'search.updates_per_call': 1},
    {'search.storage': 'journal'},
  ],
)
def test_neither_modes_nor_storage_change_the_table(found, tmp_path, changes):
  """What is counted is not decided by what ran side by side."""
  c = workload(**changes)
  if c.search.storage:
    c.search.storage = f'journal:{tmp_path}/trials.journal'
  search(c, tmp_path / 'w', devices=one_device())
  ours, theirs = table(tmp_path / 'w'), table(found[0])
  same(ours, theirs)
  assert counted(tmp_path / 'w') == counted(found[0])


def same(ours, theirs):
  assert [row[:6] for row in ours] == [row[:6] for row in theirs]
  for column in ('step', ERROR):
    assert [r[6][column] for r in ours] == [r[6][column] for r in theirs]


def counted(workdir):
  """The row of the table, without the clock."""
  (work,) = summarize(archive.read_tree(workdir / 'trials'), ERROR, 0.1)
  assert work.rows[0].reached > 0
  return work.rows[0]._replace(seconds=None)


@pytest.mark.parametrize('members', [1, 4])
def test_an_earlier_trial_goes_on_when_a_later_one_is_done(tmp_path, members):
  """Side by side too: what it would have done alone."""
  c = workload(**{'optimizer.weight_decay': 0.0, 'search.members': members})
  c.search.trials = 3
  search(c, tmp_path, devices=one_device())
  first, second, third = (row[4] for row in table(tmp_path))
  assert first == 135  # all of its three epochs
  assert second < 60
  assert third == second


def test_trials_that_are_runs_of_their_own(found, tmp_path, monkeypatch):
  """What no population can do is done by `train`, with the same result."""
  monkeypatch.setattr(population, 'why_not', lambda *_: 'so that it runs')
  search(workload(**{'search.trials': 3}), tmp_path, devices=one_device())
  ours = table(tmp_path)
  same(ours, table(found[0])[: len(ours)])
  runs = sorted((tmp_path / 'runs/digits/mlp/nesterov/32').iterdir())
  assert len(runs) == len(ours)
  assert all((run / 'summary.json').exists() for run in runs)
  assert not any((run / 'checkpoints').exists() for run in runs)
  assert collections.Counter(r[3] for r in ours)[COMPLETE] == 3


def test_a_finished_search_has_nothing_to_do(found):
  workdir, _ = found
  before = table(workdir)
  trials = optuna_trials(workdir)
  search(workload(), workdir, devices=one_device())
  assert table(workdir) == before
  assert optuna_trials(workdir) == trials


def test_a_larger_budget_goes_on(found, tmp_path):
  c = workload(**{'search.trials': 3})
  search(c, tmp_path, devices=one_device())
  assert len(table(tmp_path)) < len(table(found[0]))
  search(workload(), tmp_path, devices=one_device())
  ours, theirs = table(tmp_path), table(found[0])
  assert [row[:6] for row in ours] == [row[:6] for row in theirs]


def test_another_config_is_refused(found):
  before = (found[0] / 'config.json').read_text()
  with pytest.raises(ConfigError, match=r'epochs \(3.0 there, 2.0 here\)'):
    search(workload(epochs=2.0), found[0], devices=one_device())
  assert (found[0] / 'config.json').read_text() == before


def test_another_job_is_refused(found):
  with pytest.raises(ConfigError, match='holds a search'):
    study(workload(), found[0], devices=one_device())


def optuna_trials(workdir):
  storage = open_storage(None, workdir)
  return sorted(
    (t.number, t.state.name)
    for s in optuna.get_all_study_summaries(storage)
    for t in optuna.load_study(
      study_name=s.study_name, storage=storage
    ).get_trials()
  )


def test_what_all_diverges_comes_to_an_end(tmp_path):
  c = workload(**{'search.trials': 2, 'search.max_trials': 3})
  c.search.space = (('learning_rate.base', 'log', 1e7, 1e9),)
  summary = search(c, tmp_path, devices=one_device())
  assert summary['trials'] == {'complete': 0, 'infeasible': 3, 'unmeasured': 0}
  assert summary['best'] is None


def test_tpe_learns_from_what_has_ended(tmp_path):
  c = workload(**{'search.sampler': 'tpe', 'search.trials': 14})
  c.search.early_stopping = False
  c.epochs = 0.3
  c.target.value = None
  search(c, tmp_path, devices=one_device())
  rates = [row[5]['learning_rate.base'] for row in table(tmp_path)]
  assert len(set(rates)) == len(rates)
  # After ten at random, it stays away from the rates that diverge.
  late = rates[10:]
  assert sorted(late)[len(late) // 2] < 10


def test_a_space_whose_edge_is_best_is_widened(tmp_path):
  c = workload(**{'search.widen': 1, 'search.trials': 16, 'epochs': 0.5})
  c.target.metric, c.target.value = 'loss', None
  c.search.space = (('learning_rate.base', 'log', 1e-3, 1e-2),)
  search(c, tmp_path, devices=one_device())
  (found,) = archive.read_tree(tmp_path / 'trials')
  low, high = found.space['learning_rate.base'].values
  assert (low, high) == pytest.approx((1e-3, 1e-2 * 10**0.5), rel=1e-6)
  assert [t.number for t in found.trials] == list(range(1, 33))
  beyond = [t.parameters['learning_rate.base'] > 1e-2 for t in found.trials]
  assert not any(beyond[:16])
  assert any(beyond[16:])


def test_study(tmp_path):
  c = workload(**{'search.trials': 2, 'search.members': 1, 'epochs': 1.0})
  summary = study(c, tmp_path, devices=one_device())
  sizes = {
    w['optimizer']: [row['batch_size'] for row in w['rows']]
    for w in summary['workloads']
  }
  assert sizes == {'nesterov': [32, 64], 'sgd': [32, 64]}
  for found in archive.read_tree(tmp_path / 'trials'):
    assert sum(t.status == COMPLETE for t in found.trials) == 2
    momentum = 'optimizer.momentum' in found.space
    assert momentum == (found.optimizer == 'nesterov')
  assert read_signed(tmp_path / 'summary.json') == summary


@pytest.mark.parametrize(
  ('changes', 'reason'),
  [
    ({'target.value': None}, 'target.value'),
    ({'target.metric': 'perplexity'}, 'target.metric'),
    ({'study.batch_sizes': ()}, 'study.batch_sizes'),
    ({'study.batch_sizes': (8, 8)}, 'study.batch_sizes'),
    ({'study.batch_sizes': (8, 2048)}, '2048 is above the 1438 examples'),
    ({'study.optimizers': ('adagrad',)}, 'unknown optimizer.name'),
    ({'learning_rate.scaling': 'linear'}, 'learning_rate.scaling'),
    ({'search.sampler': 'grid'}, 'unknown search.sampler'),
    ({'search.space': ()}, 'search.space is empty'),
    ({'search.space': (('seed', 'integer', 0, 9),)}, 'cannot hold seed'),
    (
      {'search.space': (('optimizer.momentum', 'linear', 0.5, 0.9),)},
      "nothing that optimizer.name='sgd' reads",
    ),
    ({'search.storage': 'somewhere'}, 'search.storage'),
    ({'search.storage': 'sqlite:////no/such/dir/x.db'}, 'search.storage'),
    (
      {
        'study.optimizers': ('nesterov',),
        'search.space': (('optimizer.momentum', 'linear', 0.5, 1.5),),
      },
      'optimizer.momentum must be',
    ),
  ],
)
def test_bad_studies_are_refused(tmp_path, changes, reason):
  with pytest.raises(ConfigError, match=reason) as error:
    study(workload(**changes), tmp_path / 'w', devices=one_device())
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'w').exists()


def test_a_directory_with_a_run_is_refused(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{}\n')
  with pytest.raises(ConfigError, match='holds a training run'):
    search(workload(), tmp_path, devices=one_device())


# What is to be done, as a plain function of what is there.


def entry(point, status=None, steps=10, errors=(0.5,)):
  if status is None:
    return Entry(point, {}, None)
  columns = {'step': [*range(10, 10 * len(errors) + 1, 10)], ERROR: [*errors]}
  result = {'status': status, 'steps': steps, 'columns': columns}
  return Entry(point, {}, result)


def test_survey_takes_no_more_than_can_be_needed():
  def free(*entries, wanted=3, most=9):
    state = survey({e.point: e for e in entries}, None, wanted, most)
    return state.free, state.running, len(state.counted)

  assert free() == ([0, 1, 2], 0, 0)
  assert free(entry(0), entry(1)) == ([2], 2, 0)
  assert free(entry(0), entry(1, INFEASIBLE)) == ([2, 3], 1, 1)
  # The gap that a dead worker left comes first.
  assert free(entry(1, COMPLETE), entry(2)) == ([0], 1, 1)
  # What somebody did beyond the budget does not count.
  done = [entry(i, COMPLETE) for i in range(4)]
  assert free(*done) == ([], 0, 3)
  assert free(entry(0, INFEASIBLE), most=1) == ([], 0, 1)


def test_survey_counts_what_an_earlier_trial_made_feasible():
  goal = Goal(ERROR, 0.3)
  entries = {
    0: entry(0, COMPLETE, 20, (0.5, 0.2)),
    1: entry(1, INFEASIBLE, 25, (0.5, 0.5)),
    2: entry(2, INFEASIBLE, 15, (0.5,)),
  }
  state = survey(entries, goal, 3, 9)
  assert [t.status for t in state.counted] == [
    COMPLETE,
    COMPLETE,
    INFEASIBLE,
  ]
  assert state.free == [3]


# Workers.


@pytest.fixture(params=['sqlite', 'journal'])
def storage(request, tmp_path):
  url = None if request.param == 'sqlite' else f'journal:{tmp_path}/journal'
  return lambda: open_storage(url, tmp_path)


def test_a_path_may_hold_what_means_something_in_a_url(tmp_path):
  directory = tmp_path / 'a?b=c#d%20{e}'
  directory.mkdir()
  open_storage(None, directory)
  assert [p.name for p in directory.iterdir()] == ['trials.db']
  assert list(tmp_path.iterdir()) == [directory]


def test_a_storage_whose_sizes_shared_their_points_is_refused(tmp_path):
  """Older versions drew them all with the seed of the study."""
  one = at_batch_size(workload(), 'sgd', 32)
  task = Task('a', one, search_space(one))
  old = one.copy_and_resolve_references()
  old.seed = workload().seed
  ledger = Ledger(
    open_storage(None, tmp_path), 'a', task.space, Worker(tmp_path, 60.0)
  )
  ledger.study.set_user_attr('config', identity(old))
  bench = Bench(
    one, tmp_path, devices=None, splits=None, stop=threading.Event()
  )
  with pytest.raises(ConfigError, match=r'another config: seed \(0 there'):
    bench.open([task])


def test_of_two_that_take_a_point_one_gets_it(storage, tmp_path):
  space = search_space(workload())
  ledgers = [
    Ledger(storage(), 'a', space, Worker(tmp_path / f'{i}', 60.0))
    for i in range(4)
  ]
  values = points(space, 'halton', 0, 20)
  got = collections.defaultdict(list)
  barrier = threading.Barrier(4)

  def work(i):
    barrier.wait()
    for point in range(20):
      if ledgers[i].take(point, values[point]) is not None:
        got[point].append(i)

  threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(got) == list(range(20))
  assert all(len(winners) == 1 for winners in got.values())
  entries = ledgers[0].entries()
  assert [e.parameters for e in entries.values()] == values


def test_a_dead_workers_points_are_free_again(storage, tmp_path):
  space = search_space(workload())
  here, elsewhere = tmp_path / 'here', tmp_path / 'elsewhere'
  me = Ledger(storage(), 'a', space, Worker(here, 0.5))
  near, far = Worker(here, 0.5), Worker(elsewhere, 0.5)
  value = points(space, 'halton', 0, 1)[0]
  by_near = Ledger(storage(), 'a', space, near)
  by_far = Ledger(storage(), 'a', space, far)
  with by_near.working(), by_far.working():
    claims = by_near.take(0, value), by_far.take(1, value)
    time.sleep(1.0)
    me.bury()
    assert sorted(me.entries()) == [0, 1]
  os.close(near._file)  # as the system does when a process is killed
  me.bury()
  assert sorted(me.entries()) == [1]
  time.sleep(0.7)
  me.bury()
  assert sorted(me.entries()) == []
  # One that was only slow finds that its trial is no longer its own.
  again = me.take(0, value)
  result = {'status': COMPLETE, 'steps': 1, 'columns': {}}
  assert not by_near.finish(claims[0], result, 1.0, {})
  assert me.finish(again, result, 1.0, {})
  assert me.entries()[0].result == result


SCRIPT = """
import os, pathlib, sys, time
from adabatch.train import build
from adabatch.study import summarize
from adabatch.search.study_job import study
from tests.search.test_search import workload
build.compiler_options = lambda config, platform: {}  # as the flags say
c = workload(**{'search.members': 1, 'search.updates_per_call': 4})
if len(sys.argv) > 2:
  c.search.storage = sys.argv[2]
if len(sys.argv) > 3:  # neither begins before the other is there
  barrier = pathlib.Path(sys.argv[3])
  (barrier / str(os.getpid())).touch()
  while len(list(barrier.iterdir())) < 2:
    time.sleep(0.01)
c.search.grace = 5.0
c.study.batch_sizes, c.study.optimizers = (32,), ('nesterov',)
study(c, sys.argv[1])
"""


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """Starts a worker in that directory."""
  script = tmp_path_factory.mktemp('script') / 'script.py'
  script.write_text(SCRIPT)
  environment = os.environ | {'XLA_FLAGS': commands.QUICKLY}
  return lambda *arguments: commands.Process([script, *arguments], environment)


def finish(worker):
  _, errors = worker.communicate(timeout=300)
  assert worker.returncode == 0, errors


@pytest.fixture(scope='module')
def undisturbed(start, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('undisturbed') / 'w'
  finish(start(workdir))
  return table(workdir)


@pytest.mark.parametrize('kind', ['sqlite', 'journal'])
def test_two_workers_split_the_trials(start, undisturbed, tmp_path, kind):
  """Each in a directory of its own, as on two machines."""
  url = (
    f'sqlite:///{tmp_path}/all.db'
    if kind == 'sqlite'
    else f'journal:{tmp_path}/all.journal'
  )
  (barrier := tmp_path / 'barrier').mkdir()
  more = url, str(barrier)
  for worker in [start(tmp_path / name, *more) for name in ('a', 'b')]:
    finish(worker)
  same(table(tmp_path / 'a'), undisturbed)
  same(table(tmp_path / 'b'), undisturbed)
  storage = open_storage(url, tmp_path)
  owners, seen = collections.Counter(), set()
  for summary in optuna.get_all_study_summaries(storage):
    loaded = optuna.load_study(study_name=summary.study_name, storage=storage)
    for trial in loaded.get_trials():
      if trial.state.name in ('COMPLETE', 'PRUNED'):
        key = summary.study_name, trial.user_attrs['point']
        assert key not in seen
        seen.add(key)
        owners[trial.user_attrs['worker']] += 1
  # Both did some; how many is a matter of luck.
  assert len(owners) == 2


def test_killed_and_started_again_gives_the_same_table(
  start, undisturbed, tmp_path
):
  """kill -9, twice, then to the end."""
  for wait in (2, 5):
    worker = start(tmp_path)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
      done = sum(state != 'RUNNING' for _, state in safe_trials(tmp_path))
      if done >= wait or worker.poll() is not None:
        break
      time.sleep(0.05)
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
  finish(start(tmp_path))
  same(table(tmp_path), undisturbed)


def safe_trials(workdir):
  return optuna_trials(workdir) if (workdir / 'trials.db').exists() else []


def test_asked_to_stop_it_gives_its_trials_back(start, undisturbed, tmp_path):
  worker = start(tmp_path)
  # At the first trial: the whole search takes hardly more than a second.
  deadline = time.monotonic() + 120
  while time.monotonic() < deadline and not safe_trials(tmp_path):
    time.sleep(0.01)
  worker.send_signal(signal.SIGTERM)
  finish(worker)
  summary = json.loads((tmp_path / 'summary.json').read_text())
  assert summary['status'] == 'preempted'
  assert all(state != 'RUNNING' for _, state in optuna_trials(tmp_path))
  finish(start(tmp_path))
  same(table(tmp_path), undisturbed)


def test_tasks_of_a_bench_share_the_data(tmp_path):
  c = workload()
  bench = Bench(
    c, tmp_path, devices=one_device(), splits=None, stop=threading.Event()
  )
  tasks = []
  for size in (32, 64):
    one = at_batch_size(c, 'sgd', size)
    tasks.append(Task(str(size), one, search_space(one)))
  bench.open(tasks)
  first, second = (bench.population(task) for task in tasks)
  assert first.arrays is second.arrays
  assert make_goal(c).metric == ERROR
  bench.close()


def test_no_call_of_a_mode_has_room_for_more_than_a_trial():
  plan = buckets.plan(32, buckets.ladder(32, 32, devices=1))
  some: Any = SimpleNamespace(
    plan=plan, devices=1, room=lambda members: members
  )
  fixed = modes.candidates(some, 100, 16, (1, 2**31))
  assert fixed == [modes.Mode(1, 100)]
  (long,) = modes.candidates(some, 2**40, 16, (1, 2**40))
  assert long.updates_per_call * 32 * 4 <= modes.MAX_INDEX_BYTES


def test_a_search_goes_on_in_the_mode_in_which_it_began(tmp_path, monkeypatch):
  """Whatever another worker, or this one later, would find faster."""
  one = at_batch_size(
    workload(**{'search.members': None, 'search.updates_per_call': None}),
    'sgd',
    32,
  )
  task = Task('a', one, search_space(one))
  taken = []
  for fastest in (1, -1):
    monkeypatch.setattr(
      modes,
      'seconds_per_update',
      lambda programs, members, found, fastest=fastest: {
        mode: fastest * mode.members * mode.updates_per_call for mode in found
      },
    )
    monkeypatch.setattr(modes, 'choose', lambda m: min(m, key=m.get))
    bench = Bench(
      one, tmp_path, devices=None, splits=None, stop=threading.Event()
    )
    bench.open([task])
    programs = bench.population(task)
    taken.append(bench.mode(task, programs))
    if fastest < 0:  # what is asked for is done
      asked = at_batch_size(one, 'sgd', 32)
      asked.search.members = 4
      other = Task(task.name, asked, task.space)
      assert bench.mode(other, programs).members == 4
    bench.close()
  assert taken[0] == taken[1] == (1, 1)


# Runs that are cut short.


def test_cut_short_a_run_has_the_evaluations_that_it_would_have_had(tmp_path):
  """With a batch size of its own, so that s is on nobody's grid."""
  c = digits(**{'eval.every_epochs': 0.13, 'compilation_cache': False})
  train(c, tmp_path / 'whole', devices=one_device())
  whole = records(tmp_path / 'whole', 'eval')
  for cut in (7, whole[1]['update'], whole[3]['update'] + 1):
    workdir = tmp_path / str(cut)
    summary = train(c, workdir, devices=one_device(), last_update=cut)
    assert (summary['status'], summary['updates']) == ('completed', cut)
    some = [r['loss'] for r in whole if r['update'] <= cut]
    assert [r['loss'] for r in records(workdir, 'eval')] == some


def test_stopped_beyond_where_it_is_to_be_cut_a_run_is_complete(tmp_path):
  stop = threading.Event()
  stop.set()
  c = digits(compilation_cache=False)
  summary = train(c, tmp_path, devices=one_device(), stop=stop)
  assert summary['status'] == 'preempted'
  assert summary['updates'] >= 1
  again = train(c, tmp_path, devices=one_device(), last_update=1)
  assert again['status'] == 'completed'
  assert again['updates'] == summary['updates']


@needs('tiny_shakespeare')
def test_trials_that_stream_a_text_do_not_wait_for_each_other(tmp_path):
  c = transformer_shakespeare.get_config()
  c.data.data_dir, c.data.placement = str(PREPARED), 'streaming'
  c.data.workers = 0
  c.smoke, c.compilation_cache = True, False
  c.model.transformer.num_layers = 1
  c.learning_rate.scaling, c.learning_rate.warmup.kind = 'none', 'none'
  c.search.space = (('learning_rate.base', 'log', 1e-4, 1e-3),)
  summary = search(c, tmp_path, devices=one_device())
  assert summary['trials'] == {'complete': 2, 'infeasible': 0, 'unmeasured': 0}
  assert len(list((tmp_path / 'runs').rglob('summary.json'))) == 2
  assert not list((tmp_path / 'runs').rglob('text'))


def test_a_range_is_not_widened_beyond_what_the_key_may_be():
  c = workload()
  momentum, base = Parameter('linear', (0.5, 0.9)), Parameter('log', (1, 10.0))
  key = 'optimizer.momentum'
  assert allowed(c, key, momentum.widened('high'), momentum) == momentum
  lower = momentum.widened('low')
  assert allowed(c, key, lower, momentum) == lower
  wider = base.widened('high')
  assert allowed(c, 'learning_rate.base', wider, base) == wider
  reverse = Parameter('reverse_log', (0.5, 0.999)).widened('low')
  assert reverse.values[0] == 0.0


# The command.


def launch(*arguments):
  environment = os.environ | {'XLA_FLAGS': commands.QUICKLY}
  return commands.run(['launch.py', *arguments], environment)


def test_the_command_leaves_its_files(tmp_path):
  workdir = tmp_path / 'w'
  result = launch(
    '--config=configs/study_digits_mlp.py',
    '--job=study',
    '--config.smoke=True',
    f'--workdir={workdir}',
  )
  assert result.returncode == 0, result.stderr
  assert 'completed: 8 trials and 0 that diverged' in result.stdout
  assert {path.name for path in workdir.iterdir()} == {
    'config.json',
    'report.html',
    'summary.json',
    'trials',
    'trials.db',
    'workers',
  }
  page = (workdir / 'report.html').read_text()
  assert '<svg' in page


def test_a_refused_command_is_one_line_and_leaves_nothing(tmp_path):
  workdir = tmp_path / 'w'
  result = launch(
    '--config=configs/study_digits_mlp.py',
    '--job=study',
    f'--workdir={workdir}',
    '--config.data.name=no_such_set',
  )
  assert result.returncode != 0
  (line,) = (x for x in result.stderr.splitlines() if x.strip())
  assert line.startswith('error: ')
  assert 'no_such_set' in line
  assert not workdir.exists()
