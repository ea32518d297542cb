"""A SLURM that starts what it is asked for on this machine."""

import os
import pathlib
import re
import shlex
import socket
import subprocess
import time

from tests import commands

ROOT = pathlib.Path(__file__).parent.parent
SBATCH = (ROOT / 'launch' / 'slurm.sbatch').read_text()


class Slurm:
  """`srun` leaves what it was given, and ends with the status it is told."""

  def __init__(self, directory):
    self.directory = directory
    self.workdir = directory / 'run'
    self.calls = directory / 'calls'
    self._put('scontrol', 'echo "$@" >> "$CALLS"')
    self._put('squeue', 'echo "$REASON"')
    self._put(
      'srun',
      'env -0 > environment\n'
      'for argument; do printf "%s\\0" "$argument"; done > making\n'
      'mv making arguments\n'
      'until [ -s status ]; do sleep 0.02; done\n'
      'exit "$(cat status)"',
    )

  def _put(self, name, text):
    path = self.directory / 'bin' / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/bash\ncd "{self.directory}"\n{text}\n')
    path.chmod(0o755)

  def start(self, restarts=0, reason='None', job=1, **edited):
    """As a node does; `edited` is what a user changes at the script's top."""
    values = {
      'activate': '/dev/null',
      'config': 'configs/digits_mlp.py',
      'workdir': shlex.quote(str(self.workdir)),
      'flags': '()',
    }
    script = SBATCH
    for name, value in (values | edited).items():
      (line,) = re.findall(rf'^{name}=.*\n', script, re.M)
      script = script.replace(line, f'{name}={value}\n')
    path = self.directory / 'slurm_script'
    path.write_text(script)
    for name in ('arguments', 'status'):
      (self.directory / name).unlink(missing_ok=True)
    environment = os.environ | {
      'PATH': f'{self.directory / "bin"}:{os.environ["PATH"]}',
      'CALLS': str(self.calls),
      'REASON': reason,
      'SLURM_SUBMIT_DIR': str(ROOT),
      'SLURM_JOB_NAME': 'adabatch',
      'SLURM_JOB_ID': str(job),
      'SLURM_CPUS_PER_TASK': '1',
      **({'SLURM_RESTART_COUNT': str(restarts)} if restarts else {}),
    }
    self.batch = subprocess.Popen(
      ['bash', path], env=environment, stderr=subprocess.PIPE, text=True
    )

  def step(self):
    """The command of each task, and its environment."""
    wait_until(lambda: (self.directory / 'arguments').exists())
    *arguments, _ = (self.directory / 'arguments').read_text().split('\0')
    *pairs, _ = (self.directory / 'environment').read_text().split('\0')
    at = arguments.index('python')
    assert set(arguments[:at]) == {
      '--wait=0',
      '--kill-on-bad-exit=0',
      '--cpus-per-task=1',
    }
    environment = dict(pair.split('=', 1) for pair in pairs)
    return arguments[at + 1 :], environment

  def end(self, status):
    """The step ends with it: the job's status, and whether it is requeued."""
    self.step()
    said = self.directory / 'said'
    said.write_text(str(status))
    said.rename(self.directory / 'status')
    _, self.said = self.batch.communicate(timeout=60)
    calls = self.calls.read_text() if self.calls.exists() else ''
    self.calls.unlink(missing_ok=True)
    return self.batch.returncode, calls


def wait_until(met, seconds=120):
  deadline = time.monotonic() + seconds
  while not met():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def tasks(slurm, number=2):
  """What srun starts on one node, as JAX's SlurmCluster reads it."""
  (program, *arguments), environment = slurm.step()
  assert program == 'launch.py'
  environment |= {
    'XLA_FLAGS': '--xla_force_host_platform_device_count=1 ' + commands.QUICKLY,
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_STEP_NUM_NODES': '1',
    'SLURM_NTASKS': str(number),
  }
  return [
    commands.Process(
      [program, *arguments],
      environment | {'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)},
    )
    for i in range(number)
  ]


def finish(processes):
  """The status that srun has, and what the processes said."""
  try:
    said = [p.communicate(timeout=240) for p in processes]
  finally:
    for p in processes:
      p.kill()
  codes = [p.returncode for p in processes]
  return max(code if code >= 0 else 128 - code for code in codes), said


def free_job():
  """A job from whose number JAX makes a port that is free."""
  for job in range(os.getpid(), os.getpid() + 100):
    with socket.socket() as s:
      if s.connect_ex(('localhost', 2**16 - 2**12 + job % 2**12)):
        return job
  raise AssertionError('no port is free')
