"""Runs one after the other in one process of several, as a command.

    tests/in_turn.py ADDRESS NUMBER_OF_PROCESSES THIS_ONE JOBS

JOBS is a JSON list of [workdir, overrides of the digits' config].
"""

import json
import sys

from adabatch.devices import mesh
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


def main(address, processes, process, jobs):
  mesh.initialize(True, address, int(processes), int(process))
  for workdir, overrides in json.loads(jobs):
    train(config(overrides), workdir)


if __name__ == '__main__':
  main(*sys.argv[1:])
