"""The jobs on a config: flags in, an exit status out.

Both `launch.py` and `adabatch JOB CONFIG` end here.
"""

import pathlib
import pkgutil
import signal
import sys
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from adabatch.config import ConfigError, command_line
from adabatch.config.extras import NotInstalled, needing

# Each is imported where it is asked for: a training needs no search.
JOBS = {
  'train': 'adabatch.train:train',
  'search': 'adabatch.search.job:search',
  'study': 'adabatch.search.study_job:study',
  'evaluate': 'adabatch.train.evaluate_job:evaluate',
  'plan': 'adabatch.plan.job:plan',
  'probe': 'adabatch.train.probe_job:probe',
}

CONFIG = config_flags.DEFINE_config_file(
  'config', None, f'The experiment. Default: {command_line.DEFAULT_CONFIG}.'
)
WORKDIR = flags.DEFINE_string('workdir', None, 'Default: runs/NAME.')
JOB = flags.DEFINE_enum('job', 'train', list(JOBS), 'What to do.')
DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'Join other processes.')
COORDINATOR = flags.DEFINE_string(
  'coordinator_address', None, 'HOST:PORT of process 0, where not found.'
)
PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many there are.')
PROCESS = flags.DEFINE_integer('process_id', None, 'Which one this is.')
FLAGS = (
  'config',
  'workdir',
  'job',
  'distributed',
  'coordinator_address',
  'num_processes',
  'process_id',
)


def run() -> None:
  """Does the job that `sys.argv` asks for, and ends the process."""
  for flag in FLAGS:  # which the help names, like those of a main module
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag])
  app.run(_main, flags_parser=command_line.parse)


def _main(argv: list[str]) -> None:
  del argv  # `parse` refuses what is no flag
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # libraries report every step
  with command_line.refusing(ConfigError), needing():
    status = _do(JOB.value, CONFIG.value)
  sys.exit(status)


def _do(job: str, config: Any) -> int:
  from adabatch.config.files import WriteError
  from adabatch.data import DatasetError
  from adabatch.devices import processes
  from adabatch.devices.agreed import Differ
  from adabatch.devices.mesh import is_first_process
  from adabatch.devices.rendezvous import MissingProcess
  from adabatch.report.summary import describe
  from adabatch.train import elastic
  from adabatch.train.checkpoints import CheckpointError
  from adabatch.train.stop import Stop

  file = config_flags.get_config_filename(flags.FLAGS['config'])
  workdir = WORKDIR.value or f'runs/{command_line.run_name(file)}'
  do = pkgutil.resolve_name(JOBS[job])
  # All is imported. From here on Ctrl-C is an exception, which `refusing` tells
  # in a line; within an import it might be lost, or end in a crash.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  stop = Stop()
  with (
    command_line.refusing(
      ValueError,
      status=command_line.USAGE,
      prefix='cannot join the other processes: ',
    ),
    command_line.refusing(MissingProcess, status=processes.RETRY),
  ):
    patience = elastic.patience(
      config,
      pathlib.Path(workdir),
      PROCESSES.value,
      PROCESS.value,
      distributed=DISTRIBUTED.value,
    )
    processes.join(
      DISTRIBUTED.value,
      COORDINATOR.value,
      PROCESSES.value,
      PROCESS.value,
      patience,
    )
  config = elastic.with_those_left(config, PROCESSES.value)
  errors = ConfigError, DatasetError, CheckpointError, WriteError, Differ
  with processes.telling(), command_line.refusing(*errors):
    summary = do(config, workdir, stop=stop)
  if is_first_process():
    print(describe(summary))
    # What a probe finds lies beside the run, which is only read.
    place = summary['directory'] if job == 'probe' else workdir
    _report(job, place)
  return command_line.exit_code(summary['status'], stop.signal)


def _report(job: str, place: str) -> None:
  """Draws the page, where there is what draws."""
  from adabatch import report

  try:
    with needing():
      write = report.write_plan if job == 'plan' else report.write_report
  except NotInstalled as error:
    print(f'no report: {error}')
    return
  with command_line.refusing(OSError):
    print(f'report: {write(place)}')
