"""Two processes with two devices each run the main job like one process."""

import json
import os
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


def launch_two(workdir, **overrides):
  def command(address, process):
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

  return start_two(command)


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


# In streaming each process reads every second example.
JOBS = {
  'streaming': {},
  'resident': {'parallel.backend': 'pmap'},
  'streaming sma': replicas('sma', 4, 3),
}
# Of the run that is stopped below.
LONG = CONSTANT | {'max_updates': 120, 'epochs': 1000.0}


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """A directory with what two processes made of the jobs, one after the other,
  so that they start only once."""
  directory = tmp_path_factory.mktemp('two')
  placed = {
    name: job | {'data.placement': name.split()[0], 'data.workers': 0}
    for name, job in JOBS.items()
  }
  jobs = [
    (str(directory / name), job)
    for name, job in (placed | {'long': LONG}).items()
  ]
  (_, err_0), (out_1, err_1) = finish(
    start_two(
      lambda address, process: [
        'tests/in_turn.py',
        address,
        '2',
        str(process),
        json.dumps(jobs),
      ]
    )
  )
  assert 'epoch' in err_0
  for text in (out_1, err_1):
    assert 'epoch' not in text, 'only the first process reports'
  return directory


@pytest.mark.quick
def test_same_as_one_process(two, tmp_path):
  for name, job in JOBS.items():
    train(config(job), tmp_path / name, devices=jax.devices()[:1])
    a, b = records(tmp_path / name), records(two / name)
    assert [x['update'] for x in b] == list(range(1, 61))
    for key in ('batch_size', 'nominal_batch_size'):
      assert [x[key] for x in a] == [x[key] for x in b], name
    assert (
      len({x['batch_size'] for x in a}) >= 2 or CONSTANT.items() <= job.items()
    )
    losses = np.array([[x['loss'] for x in r] for r in (a, b)])
    np.testing.assert_allclose(*losses[:, :1], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(*losses, rtol=1e-4, err_msg=name)


def test_one_process_is_told_to_stop_and_all_do(two, tmp_path):
  """A signal that reaches one process stops both at the same update."""
  keys = {'log.every_updates': 1, 'checkpoint.every_updates': 40, **LONG}
  processes = launch_two(tmp_path, **keys)
  deadline = time.monotonic() + 120
  metrics = tmp_path / 'metrics.jsonl'
  while not metrics.exists() or metrics.read_bytes().count(b'\n') < 20:
    assert time.monotonic() < deadline
    assert all(p.poll() is None for p in processes)
    time.sleep(0.01)
  processes[1].send_signal(signal.SIGTERM)
  (out_0, _), (out_1, _) = finish(processes, status=143)
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
