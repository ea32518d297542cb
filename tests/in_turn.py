"""Runs one after the other in one process of several, as a command.

    tests/in_turn.py ADDRESS NUMBER_OF_PROCESSES THIS_ONE JOBS

JOBS is a JSON list of [workdir, overrides of the digits' config]. Among them
may be a `directory`, where the process then works, a `last_update`, and `room`:
[update, examples] from which update on the last process has memory for so many
examples at once. What processes do not agree on is printed.
"""

import contextlib
import json
import os
import sys

from adabatch.devices import processes
from adabatch.devices.agreed import Differ
from adabatch.devices.trainer import Trainer
from adabatch.train import train
from configs import digits_mlp


def config(overrides):
  """60 updates of the digits in several batch sizes."""
  c = digits_mlp.get_config()
  c.max_updates = 60
  c.model.mlp.hidden_sizes = (32,)
  c.controller.max_batch_size = 64
  c.log.every_updates = 1
  c.checkpoint.every_updates = 40
  c.checkpoint.best = False  # with what is written all processes wait
  c.update_from_flattened_dict(overrides)
  return c


@contextlib.contextmanager
def memory(room):
  """See `room` above."""
  needed, dispatch, done = Trainer.memory, Trainer.dispatch, [0]

  def counted(self, call, **how):
    done[0] = call.update
    return dispatch(self, call, **how)

  def told(self, variant):
    bytes_ = needed(self, variant)
    fits = [most for update, most in room if update <= done[0]]
    too_many = fits and variant.bucket.microbatch_size > fits[-1]
    return 2**60 if too_many else bytes_

  Trainer.memory, Trainer.dispatch = told, counted
  yield
  Trainer.memory, Trainer.dispatch = needed, dispatch


def main(address, number, process, jobs):
  processes.join(True, address, int(number), int(process))
  for workdir, overrides in json.loads(jobs):
    os.chdir(overrides.pop('directory', '.'))
    last = overrides.pop('last_update', None)
    room = overrides.pop('room', [])
    with memory(room if int(process) == int(number) - 1 else []):
      try:
        train(config(overrides), workdir, last_update=last)
      except Differ as error:
        print(error)


if __name__ == '__main__':
  main(*sys.argv[1:])
