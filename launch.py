"""Runs an experiment: python launch.py --config=configs/NAME.py.

Any key of the config can be overridden (--config.optimizer.name=adam);
--config.smoke=True is a short try. Started again in its own workdir it goes on
where it was; a search or a study started twice has two workers.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from adabatch import command_line, parallel, report
from adabatch.checkpoint import CheckpointError
from adabatch.config import ConfigError
from adabatch.data import DatasetError
from adabatch.search.job import search
from adabatch.study.job import study
from adabatch.train import train

JOBS = {'train': train, 'search': search, 'study': study}

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
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # libraries report every step
  if len(argv) > 1:
    sys.exit(f'error: unexpected argument {argv[1]!r}: flags start with --')
  file = config_flags.get_config_filename(flags.FLAGS['config'])
  workdir = WORKDIR.value or f'runs/{command_line.run_name(file)}'
  others = COORDINATOR.value, PROCESSES.value, PROCESS.value
  try:
    parallel.initialize(DISTRIBUTED.value, *others)
  except ValueError as error:
    sys.exit(f'error: cannot join the other processes: {error}')
  try:
    summary = JOBS[JOB.value](CONFIG.value, workdir)
  except (ConfigError, DatasetError, CheckpointError) as error:
    sys.exit(f'error: {error}')
  if parallel.is_first_process():
    print(command_line.describe(summary))
    print(f'report: {report.write_report(workdir)}')
  sys.exit(command_line.EXIT_CODES[summary['status']])


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse)
