"""Two processes with two devices each run the main job like one process."""

import json
import os
import resource
import signal
import socket
import time

import jax
import numpy as np
import pytest

from adabatch.train import train
from tests import commands
from tests.experiments import records
from tests.in_turn import config

CONSTANT = {'controller.name': 'constant'}


def environment(devices):
  return os.environ | {
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} '
    + commands.QUICKLY
  }


def free_port():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def start_two(command):
  """Two processes; `command` maps an address and a process to arguments."""
  address = f'localhost:{free_port()}'
  return [
    commands.Process(command(address, i), environment(2)) for i in range(2)
  ]


def launch_command(address, process, workdir, overrides):
  return [
    'launch.py',
    '--config=configs/digits_mlp.py',
    f'--workdir={workdir}',
    '--distributed',
    f'--coordinator_address={address}',
    '--num_processes=2',
    f'--process_id={process}',
    *(f'--config.{key}={value}' for key, value in overrides.items()),
  ]


def launch_two(workdir, **overrides):
  return start_two(
    lambda address, process: launch_command(
      address, process, workdir, overrides
    )
  )


def take_turns(jobs):
  """Two processes that do one after the other; see `tests/in_turn.py`."""
  return start_two(
    lambda address, process: [
      'tests/in_turn.py',
      address,
      '2',
      str(process),
      json.dumps(jobs(process)),
    ]
  )


def make_sets(directory):
  """Two sets of the same name, which differ in one pixel."""
  x = np.zeros((64, 8, 8, 1), np.uint8)
  y = np.arange(64) % 4
  for name in ('0', '1'):
    (directory / name).mkdir()
    x[3, 0, 0] += 1
    np.savez(directory / name / 'set.npz', x=x, y=y)


def finish(processes, status=0):
  try:
    outputs = [p.communicate(timeout=240) for p in processes]
  finally:
    for p in processes:
      p.kill()
  for p, (_, err) in zip(processes, outputs, strict=True):
    assert p.returncode == status, err
  return outputs


def replicas(method, number, local_steps):
  """Constant, because each batch size costs two programs."""
  return CONSTANT | {
    'sync.name': method,
    'sync.replicas': number,
    'sync.local_steps': local_steps,
  }


# Two sizes, for each of which there is a program.
GROWS = {'controller.max_batch_size': 32, 'max_updates': 40}
# In streaming each process reads every second example.
JOBS = {
  'streaming': GROWS,
  'resident': GROWS | {'parallel.backend': 'pmap'},
  'streaming sma': replicas('sma', 4, 3),
  'streaming probe': {
    'controller.name': 'probe',
    'controller.probe.repeats': 2,
    'controller.probe.updates': 2,
    'controller.probe.epsilon': 0.5,
    'controller.probe.cost': 5.0,
  },
}
# In what two processes may differ, and what they then say.
DIFFER = {
  'keys': (
    [{'learning_rate.base': 0.02, 'seed': 3}, {'learning_rate.base': 0.05}],
    'in their start: learning_rate.base is 0.02 on process 0, 0.05 on process '
    '1; seed is 3 on process 0, 0 on process 1',
  ),
  'data': (
    [
      {
        'data.name': 'npz:set.npz',
        'data.train_split': 'train[:75%]',
        'data.eval_split': 'train[75%:]',
        'directory': str(i),
      }
      for i in range(2)
    ],
    'in their data: training is ',
  ),
}
# The second process has no memory for 8 at once on a device, and later for 4.
GROWING = GROWS | {
  'controller.name': 'padadamp',
  'controller.initial_batch_size': 8,
  'controller.padadamp.rate': 0.2,
  'controller.every': 5,
}
ROOM = {
  'given': GROWING | {'buckets.max_per_device': 2},
  'found': GROWING
  | {'buckets.max_per_device': 'auto', 'room': [[0, 4], [3, 2]]},
}
# Each process has a clock of its own; the checkpoints compare the tables.
GOODPUT = {
  'controller.name': 'goodput',
  'controller.every': 4,
  'controller.max_batch_size': 64,
  'controller.goodput.windows': 1,
  'checkpoint.every_updates': 15,
  'max_updates': 30,
}
# Of the run that is stopped below.
LONG = CONSTANT | {
  'max_updates': 120,
  'epochs': 1000.0,
  'model.mlp.hidden_sizes': (32,),
}


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """A directory with what two processes made of the jobs, one after the other,
  so that they start only once."""
  directory = tmp_path_factory.mktemp('two')
  placed = {
    name: job | {'data.placement': name.split()[0], 'data.workers': 0}
    for name, job in JOBS.items()
  }
  train(
    config(LONG),
    directory / 'one then two',
    devices=jax.devices()[:1],
    last_update=50,
  )
  moved = {'one then two': LONG, 'two then one': LONG | {'last_update': 50}}
  jobs = [
    (str(directory / name), job)
    for name, job in (
      placed | {'long': LONG, 'goodput': GOODPUT} | moved | ROOM
    ).items()
  ]
  make_sets(directory)

  def differing(process):
    for name, (overrides, _) in DIFFER.items():
      here = dict(overrides[process])
      if 'directory' in here:
        here['directory'] = str(directory / here['directory'])
      yield str(directory / 'differ' / name), here

  (out_0, err_0), (out_1, err_1) = finish(
    take_turns(lambda process: [*jobs, *differing(process)])
  )
  assert 'epoch' in err_0
  for text in (out_1, err_1):
    assert 'epoch' not in text, 'only the first process reports'
  (directory / 'differ.txt').write_text(out_0 + out_1)
  (directory / 'said.txt').write_text(err_0)
  return directory


def test_processes_that_were_started_differently_do_not_train(two):
  """Both say in what, and nothing is written."""
  text = (two / 'differ.txt').read_text()
  for _, line in DIFFER.values():
    assert text.count(f'the processes differ {line}') == 2, text
  assert not (two / 'differ').exists()


@pytest.mark.quick
def test_same_as_one_process(two, tmp_path):
  for name, job in JOBS.items():
    one = 'streaming' if name == 'resident' else name  # which changes nothing
    if one == name:
      train(config(job), tmp_path / name, devices=jax.devices()[:1])
    a, b = records(tmp_path / one), records(two / name)
    updates = config(job).max_updates
    assert [x['update'] for x in b] == list(range(1, updates + 1))
    for key in ('batch_size', 'nominal_batch_size'):
      assert [x[key] for x in a] == [x[key] for x in b], name
    assert (
      len({x['batch_size'] for x in a}) >= 2 or CONSTANT.items() <= job.items()
    )
    losses = np.array([[x['loss'] for x in r] for r in (a, b)])
    np.testing.assert_allclose(*losses[:, :1], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(*losses, rtol=1e-4, err_msg=name)


def test_processes_take_fewer_examples_at_once_together(two):
  """At the start, and at a larger batch size later; nothing is lost."""
  text = (two / 'said.txt').read_text()
  assert "auto': 4 examples at once on each device (the fastest of 4)" in text
  assert 'no memory for 4 examples at once on each device, 2 from now' in text
  given, found = (
    [[r[k] for k in ('update', 'batch_size', 'loss')] for r in records(two / n)]
    for n in ROOM
  )
  assert {batch_size for _, batch_size, _ in given} == {8, 16}
  assert found == given


def test_processes_follow_one_clock(two):
  sizes = [x['batch_size'] for x in records(two / 'goodput')]
  assert len(sizes) > 20
  assert sizes[4:8] == [32] * 4


def test_one_and_two_processes_go_on_with_each_other(two):
  train(config(LONG), two / 'two then one', devices=jax.devices()[:4])
  long = [x['loss'] for x in records(two / 'long')]
  assert len(long) == 120
  for name in ('one then two', 'two then one'):
    losses = [x['loss'] for x in records(two / name)]
    np.testing.assert_allclose(losses, long, rtol=1e-5, err_msg=name)


def wait_for_update(update, workdir, processes):
  deadline = time.monotonic() + 120
  metrics = workdir / 'metrics.jsonl'
  while not metrics.exists() or metrics.read_bytes().count(b'\n') < update:
    assert time.monotonic() < deadline
    assert all(p.poll() is None for p in processes)
    time.sleep(0.01)


def test_one_process_is_lost_or_told_to_stop(two, tmp_path):
  """One that is killed ends the other, in one line and soon, and so does one
  that can write no more; a signal that reaches one stops both at the same
  update. They go on to the same end."""
  keys = {
    'log.every_updates': 1,
    'checkpoint.every_updates': 20,
    'processes.lost_seconds': 1.5,
    **LONG,
  }
  processes = launch_two(tmp_path, **keys)
  wait_for_update(25, tmp_path, processes)
  processes[1].kill()
  since = time.monotonic()
  (_, err), _ = [p.communicate(timeout=60) for p in processes]
  assert processes[0].returncode == 75, err
  assert time.monotonic() - since < 15
  lines = [x for x in err.splitlines() if x.startswith('error')]
  assert len(lines) == 1, err
  # Its connection may be cut so that JAX aborts before anybody looks.
  lost = 'lost process 1 of 2: no sign of life for 1.5 s'
  assert lost in lines[0] or 'JAX aborted this process' in lines[0], err

  keys['processes.lost_seconds'] = 5.0
  processes = launch_two(tmp_path, **keys)
  wait_for_update(35, tmp_path, processes)
  full = 1, resource.RLIM_INFINITY
  resource.prlimit(processes[0].pid, resource.RLIMIT_FSIZE, full)
  since = time.monotonic()
  errors = [p.communicate(timeout=60)[1] for p in processes]
  assert time.monotonic() - since < 30, errors
  assert [p.returncode for p in processes] == [1, 1], errors
  # What is full holds the lines of process 0 as well; the other has its own.
  assert 'process 0: cannot write' in errors[1].splitlines()[-1], errors

  processes = launch_two(tmp_path, **keys)
  wait_for_update(45, tmp_path, processes)
  processes[1].send_signal(signal.SIGTERM)
  (out_0, err_0), (out_1, _) = finish(processes, status=143)
  assert 'resumed at update' in err_0
  assert 'preempted' in out_0
  assert 'preempted' not in out_1, 'only the first process reports'
  updates = json.loads((tmp_path / 'summary.json').read_text())['updates']
  assert updates < 120
  (out, err), _ = finish(launch_two(tmp_path, **keys))
  assert 'completed' in out
  assert f'resumed at update {updates}' in err
  a, b = records(two / 'long'), records(tmp_path)
  timing = {'seconds', 'examples_per_second'}
  for x, y in zip(a, b, strict=True):
    assert all(x[k] == y[k] for k in x.keys() - timing), (x, y)


def test_replicas_go_on_without_a_lost_process_until_it_is_back(tmp_path):
  """Commands start themselves again, with all that they import."""
  address = f'localhost:{free_port()}'
  workdir = tmp_path / 'run'
  keys = replicas('diloco', 2, 5) | {
    'sync.min_replicas': 1,
    'processes.restarts': 1,
    'processes.lost_seconds': 3,
    'processes.rejoin_seconds': 0.5,
    'epochs': 10000.0,
    'checkpoint.every_updates': 50,
    'checkpoint.best': False,
    'eval.every_epochs': 10000.0,
    'data.workers': 0,
  }

  def start(process):
    command = launch_command(address, process, workdir, keys)
    return commands.Process(command, environment(1))

  def wait_for(replicas, processes):
    """Until the number of replicas was changed to this."""
    deadline = time.monotonic() + 120
    while True:
      found = records(workdir, 'replicas') if workdir.exists() else []
      if [r['replicas'] for r in found] == replicas:
        return
      assert time.monotonic() < deadline
      assert all(p.poll() is None for p in processes)
      time.sleep(0.05)

  both = [start(0), start(1)]
  try:
    while not (workdir / 'checkpoints' / '50').exists():
      assert all(p.poll() is None for p in both)
      time.sleep(0.05)
    both[1].kill()
    both[1].communicate()
    wait_for([1], both[:1])
    both[1] = start(1)
    wait_for([1, 2], both)
    for p in both:
      p.send_signal(signal.SIGTERM)
    (_, err), _ = finish(both, status=143)
  finally:
    for p in both:
      p.kill()
  assert 'lost process 1 of 2' in err
  assert '1 of 2 processes go on' in err
  assert 'a process waits to join: starts again' in err
