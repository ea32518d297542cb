"""Settings that must be made before JAX starts."""

import gc
import os
import shutil
import tempfile

import pytest

from tests import commands

# Eight virtual devices, so that every test can choose how many it uses; and
# programs that are compiled quickly, for that is where the time goes.
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '')
  + ' --xla_force_host_platform_device_count=8 '
  + commands.QUICKLY
)
# JAX sizes its thread pool by the cores; with fewer threads than devices, a
# collective could wait for a participant that never gets a thread.
os.environ.setdefault('NPROC', '16')


def pytest_addoption(parser, pluginmanager):
  """Without pytest-xdist, or with `-p no:xdist`, one process does all."""
  if not pluginmanager.hasplugin('xdist'):
    parser.addoption('--numprocesses')
    parser.addoption('--dist')


def pytest_configure(config):
  """Tests compile what they test, whatever an earlier run left on disk.

  But a program only once: in a new directory, which both processes of pytest
  and those that the tests start have in common.
  """
  if hasattr(config, 'workerinput'):  # one of several: the first has made it
    return
  directory = tempfile.mkdtemp(prefix='programs-')
  config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))
  os.environ |= {
    'JAX_ENABLE_COMPILATION_CACHE': 'true',
    'JAX_COMPILATION_CACHE_DIR': directory,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    # On some processors XLA wrongly doubts each program that it reads back.
    'TF_CPP_MIN_LOG_LEVEL': '3',
  }


def pytest_collection_finish(session):
  """What was imported stays: the garbage collector need not look at it.

  And seldom at the rest, most of which is what JAX remembers of its traces.
  """
  del session
  gc.collect()
  gc.freeze()
  gc.set_threshold(20_000, 25, 25)


@pytest.fixture(scope='module')
def compile_quickly():
  """For small runs: the first flag of those, whatever a config asks for."""
  from adabatch.train import build

  options = {'xla_backend_optimization_level': 0}
  with pytest.MonkeyPatch.context() as m:
    m.setattr(build, 'compiler_options', lambda config, platform: options)
    yield
