"""Runs an experiment: python launch.py --config=configs/NAME.py.

Any key of the config can be overridden (--config.optimizer.name=adam);
--config.smoke=True is a short try. Started again in its own workdir it goes on
where it was; a search or a study started twice has two workers. Installed, the
same is `adabatch train NAME`.

Exit status: 0 done, 1 what was asked for cannot be done, 2 wrong flags, 3
diverged, 75 a process was lost (the same command, started again, goes on), 76
more devices are wanted (summary.json says how many), 143 or 130 stopped by
SIGTERM or Ctrl-C (with a checkpoint).
"""

import signal

if __name__ == '__main__':
  # Ctrl-C while packages are imported ends the process, without a traceback.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  from adabatch.command import jobs

  jobs.run()
