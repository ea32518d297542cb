"""Runs an experiment: python launch.py --config=configs/NAME.py.

Any key of the config can be overridden (--config.optimizer.name=adam);
--config.smoke=True is a short try. Started again in its own workdir it goes on
where it was; a search or a study started twice has two workers.

Exit status: 0 done, 1 what was asked for cannot be done, 2 wrong flags, 3
diverged, 143 or 130 stopped by SIGTERM or Ctrl-C (with a checkpoint).
"""

import sys

from adabatch import extras

with extras.needed('train'):
  from absl import app, flags, logging
  from ml_collections import config_flags

  from adabatch import command_line, parallel, report
  from adabatch.search.job import search
  from adabatch.stop import Stop
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
  del argv  # `parse` refuses what is no flag
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # libraries report every step
  file = config_flags.get_config_filename(flags.FLAGS['config'])
  workdir = WORKDIR.value or f'runs/{command_line.run_name(file)}'
  others = COORDINATOR.value, PROCESSES.value, PROCESS.value
  stop = Stop()
  with command_line.refusing():
    command_line.join(DISTRIBUTED.value, *others)
    summary = JOBS[JOB.value](CONFIG.value, workdir, stop=stop)
  if parallel.is_first_process():
    print(command_line.describe(summary))
    print(f'report: {report.write_report(workdir)}')
  sys.exit(command_line.exit_code(summary['status'], stop.signal))


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse)
