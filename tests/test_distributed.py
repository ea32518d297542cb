"""Two processes with two devices each run the main job like one process."""

import functools
import json
import os
import signal
import socket
import time

import numpy as np
import pytest

from tests import commands

CONSTANT = '--config.controller.name=constant'
PMAP = '--config.parallel.backend=pmap'


def command(workdir, *flags):
  return [
    'launch.py',
    '--config=configs/digits_mlp.py',
    '--config.max_updates=60',
    '--config.log.every_updates=1',
    '--config.checkpoint.every_updates=40',
    f'--workdir={workdir}',
    *flags,
  ]


def environment(devices):
  return os.environ | {
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} '
    + commands.QUICKLY
  }


def free_port():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def start_two(workdir, *flags):
  port = free_port()
  return [
    commands.Process(
      command(
        workdir,
        '--distributed',
        f'--coordinator_address=localhost:{port}',
        '--num_processes=2',
        f'--process_id={i}',
        *flags,
      ),
      environment(2),
    )
    for i in range(2)
  ]


def finish(processes, status=0):
  try:
    outputs = [p.communicate(timeout=240) for p in processes]
  finally:
    for p in processes:
      p.kill()
  for p, (_, err) in zip(processes, outputs, strict=True):
    assert p.returncode == status, err
  return outputs


def records(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [r for r in map(json.loads, lines) if r['kind'] == 'train']


def replicas(method, number, local_steps):
  """Flags; constant, because each batch size costs two programs."""
  return (
    CONSTANT,
    f'--config.sync.name={method}',
    f'--config.sync.replicas={number}',
    f'--config.sync.local_steps={local_steps}',
  )


@pytest.fixture(scope='module')
def one_process(tmp_path_factory):
  """What one process with these flags records; of each it runs one."""

  @functools.cache
  def run(flags):
    workdir = tmp_path_factory.mktemp('one')
    result = commands.run(command(workdir, *flags), environment(1))
    assert result.returncode == 0, result.stderr
    return records(workdir)

  return run


@pytest.mark.parametrize(
  ('placement', 'flags'),
  [
    pytest.param('streaming', (), marks=pytest.mark.quick),
    pytest.param('resident', (PMAP,), marks=pytest.mark.quick),
    ('streaming', replicas('sma', 2, 2)),
    ('streaming', replicas('local_sgd', 8, 3)),
  ],
)
def test_same_as_one_process(one_process, placement, flags, tmp_path):
  """In streaming each process reads every second example."""
  two = tmp_path / 'two'
  how = f'--config.data.placement={placement}', '--config.data.workers=0'
  (out_0, _), (out_1, err_1) = finish(start_two(two, *flags, *how))
  assert 'completed' in out_0
  for text in (out_1, err_1):
    assert 'completed' not in text, 'only the first process reports'
    assert 'epoch' not in text, 'only the first process reports'
  a, b = one_process(flags), records(two)
  assert [x['update'] for x in b] == list(range(1, 61))
  for key in ('batch_size', 'nominal_batch_size'):
    assert [x[key] for x in a] == [x[key] for x in b]
  assert len({x['batch_size'] for x in a}) >= 3 or CONSTANT in flags
  losses = np.array([[x['loss'] for x in r] for r in (a, b)])
  np.testing.assert_allclose(*losses[:, :1], rtol=1e-5)
  np.testing.assert_allclose(*losses, rtol=1e-4)


def test_one_process_is_told_to_stop_and_all_do(tmp_path):
  """A signal that reaches one process stops both at the same update."""
  flags = (
    '--config.max_updates=200',
    '--config.epochs=1000.0',
    CONSTANT,
  )
  whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
  finish(start_two(whole, *flags))
  processes = start_two(stopped, *flags)
  deadline = time.monotonic() + 120
  metrics = stopped / 'metrics.jsonl'
  while not metrics.exists() or metrics.read_bytes().count(b'\n') < 60:
    assert time.monotonic() < deadline
    assert all(p.poll() is None for p in processes)
    time.sleep(0.01)
  processes[1].send_signal(signal.SIGTERM)
  (out, _), _ = finish(processes, status=143)
  assert 'preempted' in out
  updates = json.loads((stopped / 'summary.json').read_text())['updates']
  assert updates < 200
  (_, err), _ = finish(start_two(stopped, *flags))
  assert f'resumed at update {updates}' in err
  a, b = records(whole), records(stopped)
  timing = {'seconds', 'examples_per_second'}
  for x, y in zip(a, b, strict=True):
    assert all(x[k] == y[k] for k in x.keys() - timing), (x, y)
