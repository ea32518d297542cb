"""Runs one after the other in one process of several, as a command.

    tests/in_turn.py ADDRESS NUMBER_OF_PROCESSES THIS_ONE JOBS

JOBS is a JSON list of [workdir, overrides of the digits' config]. Among them
may be a `directory`, where the process then works, and a `last_update`. What
processes do not agree on is printed.
"""

import json
import os
import sys

from adabatch.devices import processes
from adabatch.devices.agreed import Differ
from adabatch.train import train
from configs import digits_mlp


def config(overrides):
  """60 updates of the digits in several batch sizes."""
  c = digits_mlp.get_config()
  c.max_updates = 60
  c.controller.max_batch_size = 64
  c.log.every_updates = 1
  c.checkpoint.every_updates = 40
  c.update_from_flattened_dict(overrides)
  return c


def main(address, number, process, jobs):
  processes.join(True, address, int(number), int(process))
  for workdir, overrides in json.loads(jobs):
    os.chdir(overrides.pop('directory', '.'))
    last = overrides.pop('last_update', None)
    try:
      train(config(overrides), workdir, last_update=last)
    except Differ as error:
      print(error)


if __name__ == '__main__':
  main(*sys.argv[1:])
