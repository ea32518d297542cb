"""Settings that must be made before JAX starts."""

import os

import pytest

# Eight virtual devices, so that every test can choose how many it uses.
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
# JAX sizes its thread pool by the cores; with fewer threads than devices, a
# collective could wait for a participant that never gets a thread.
os.environ.setdefault('NPROC', '16')
# Tests compile what they test, whatever an earlier run left on disk.
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'


@pytest.fixture(scope='module')
def compile_quickly():
  """For small runs, whose time goes into compiling: the results are the same.

  Not for all: some programs take minutes to compile this way.
  """
  from adabatch import experiment

  options = {'xla_backend_optimization_level': 0}
  with pytest.MonkeyPatch.context() as m:
    m.setattr(experiment, 'compiler_options', lambda config, mesh: options)
    yield
