"""Commands that run for real, without the seconds that their imports take.

A server imports what they need and then becomes each of them, by a fork: the
process has its own arguments, environment, files and exit status, and JAX has
not started in it.
"""

import atexit
import functools
import gc
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import time
from importlib import metadata

ROOT = pathlib.Path(__file__).parent.parent
try:
  OLDER = tuple(map(int, metadata.version('jaxlib').split('.')[:2])) < (0, 12)
except metadata.PackageNotFoundError:
  OLDER = False  # the loops of other frameworks are tested without JAX
# Compiling is most of a small run. Without optimisation, all in one module; and
# each kernel straight to LLVM, for which no MLIR context is made (half the
# time), where XLA still knows that flag: it ends at one that it does not know.
QUICKLY = ' '.join(
  [
    '--xla_backend_optimization_level=0',
    '--xla_cpu_parallel_codegen_split_count=1',
    *(['--xla_cpu_use_fusion_emitters=false'] if OLDER else []),
  ]
)


class Process:
  """As much of `subprocess.Popen` as the tests need."""

  def __init__(self, arguments, environment, cwd=ROOT):
    self._files = [tempfile.TemporaryFile('w+') for _ in range(2)]  # noqa: SIM115
    paths = [f'/proc/{os.getpid()}/fd/{file.fileno()}' for file in self._files]
    request = list(map(str, arguments)), dict(environment), paths, str(cwd)
    self.pid = _ask('start', *request)
    self.returncode = self._outputs = None

  def poll(self):
    if self.returncode is None:
      self.returncode = _ask('poll', self.pid)
    return self.returncode

  def send_signal(self, number):
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self):
    self.send_signal(9)

  def communicate(self, timeout=300):
    """What it wrote; raises `subprocess.TimeoutExpired` if it goes on."""
    deadline = time.monotonic() + timeout
    while self.poll() is None:
      if time.monotonic() > deadline:
        raise subprocess.TimeoutExpired(str(self.pid), timeout)
      time.sleep(0.01)
    if self._outputs is None:
      self._outputs = tuple(map(_read, self._files))
    return self._outputs


def _read(file):
  with file:
    file.seek(0)
    return file.read()


def run(arguments, environment, timeout=300, cwd=ROOT):
  """Like `subprocess.run`; a process that takes longer is killed."""
  process = Process(arguments, environment, cwd)
  try:
    outputs = process.communicate(timeout)
  finally:
    process.kill()
  return subprocess.CompletedProcess(arguments, process.returncode, *outputs)


@functools.cache
def _server():
  server = subprocess.Popen(
    [sys.executable, '-m', 'tests.commands'],
    cwd=ROOT,
    env=os.environ | {'XLA_FLAGS': ''},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  atexit.register(server.communicate)
  return server


def _ask(*request):
  server = _server()
  print(json.dumps(request), file=server.stdin, flush=True)
  return json.loads(server.stdout.readline())


def _become(arguments, environment, paths, cwd):
  """Goes on as that command; returns its process id in the server."""
  if pid := os.fork():
    return pid
  os.setsid()  # a group of its own, which a signal can be sent to
  for number, path in ((0, os.devnull), *enumerate(paths, 1)):
    file = os.open(path, os.O_RDWR)
    os.dup2(file, number)
    os.close(file)
  os.chdir(cwd)
  os.environ.clear()
  os.environ.update(environment)
  sys.argv = arguments
  sys.orig_argv = [sys.executable, *arguments]
  sys.path[0] = str(ROOT)
  runpy.run_path(arguments[0], run_name='__main__')
  sys.exit()


def _poll(pid):
  done, status = os.waitpid(pid, os.WNOHANG)
  return os.waitstatus_to_exitcode(status) if done else None


def _serve():
  import absl.app  # noqa: F401
  import alembic.config  # noqa: F401
  import jax.experimental.topologies  # noqa: F401
  import matplotlib.backends.backend_svg  # noqa: F401
  import ml_collections.config_flags  # noqa: F401
  import sklearn.datasets  # noqa: F401

  import adabatch.plan.job
  import adabatch.report.pages
  import adabatch.report.summary
  import adabatch.search.job
  import adabatch.search.study_job
  import adabatch.train.elastic
  import adabatch.train.evaluate_job
  import adabatch.train.probe_job  # noqa: F401
  import tests.tfds_sets  # noqa: F401

  gc.freeze()  # no collection of a process goes through what was imported
  for line in sys.stdin:
    name, *rest = json.loads(line)
    reply = {'start': _become, 'poll': _poll}[name](*rest)
    print(json.dumps(reply), flush=True)


if __name__ == '__main__':
  _serve()
