"""Runs an experiment: python launch.py --config=configs/NAME.py.

Any key of the config can be overridden (--config.optimizer.name=adam);
--config.smoke=True is a short try. Started again in its own workdir it goes on
where it was; a search or a study started twice has two workers.

Exit status: 0 done, 1 what was asked for cannot be done, 2 wrong flags, 3
diverged, 75 a process was lost (the same command, started again, goes on), 76
more devices are wanted (summary.json says how many), 143 or 130 stopped by
SIGTERM or Ctrl-C (with a checkpoint).
"""

import pathlib
import sys

try:
  from absl import app, flags, logging
  from ml_collections import config_flags

  from adabatch import report
  from adabatch.config import ConfigError, command_line
  from adabatch.config.files import WriteError
  from adabatch.data import DatasetError
  from adabatch.devices import processes
  from adabatch.devices.agreed import Differ
  from adabatch.devices.mesh import is_first_process
  from adabatch.devices.rendezvous import MissingProcess
  from adabatch.plan.job import plan
  from adabatch.report.summary import describe
  from adabatch.search.job import search
  from adabatch.search.study_job import study
  from adabatch.train import elastic, train
  from adabatch.train.checkpoints import CheckpointError
  from adabatch.train.evaluate_job import evaluate
  from adabatch.train.probe_job import probe
  from adabatch.train.stop import Stop
except ModuleNotFoundError as error:
  package = (error.name or '').partition('.')[0]
  if package in ('', 'adabatch'):
    raise  # a fault of another kind
  sys.exit(
    f'error: {package} is not installed, which comes with adabatch[train]: '
    "pip install '.[train]'"
  )

JOBS = {
  'train': train,
  'search': search,
  'study': study,
  'evaluate': evaluate,
  'plan': plan,
  'probe': probe,
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


def main(argv: list[str]) -> None:
  del argv  # `parse` refuses what is no flag
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # libraries report every step
  file = config_flags.get_config_filename(flags.FLAGS['config'])
  workdir = WORKDIR.value or f'runs/{command_line.run_name(file)}'
  others = COORDINATOR.value, PROCESSES.value, PROCESS.value
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
      CONFIG.value,
      pathlib.Path(workdir),
      PROCESSES.value,
      PROCESS.value,
      distributed=DISTRIBUTED.value,
    )
    processes.join(DISTRIBUTED.value, *others, patience)
  config = elastic.with_those_left(CONFIG.value, PROCESSES.value)
  errors = ConfigError, DatasetError, CheckpointError, WriteError, Differ
  with processes.telling(), command_line.refusing(*errors):
    summary = JOBS[JOB.value](config, workdir, stop=stop)
  if is_first_process():
    print(describe(summary))
    with command_line.refusing(OSError):
      write = report.write_plan if JOB.value == 'plan' else report.write_report
      # What a probe finds lies beside the run, which is only read.
      place = summary['directory'] if JOB.value == 'probe' else workdir
      print(f'report: {write(place)}')
  sys.exit(command_line.exit_code(summary['status'], stop.signal))


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse)
