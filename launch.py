"""Runs one experiment: python launch.py --config=configs/NAME.py."""

import pathlib
import sys

import jax
from absl import app, flags
from ml_collections import config_flags

from adabatch.checkpoint import CheckpointError
from adabatch.config import ConfigError
from adabatch.data import DatasetError
from adabatch.report import write_report
from adabatch.train import train

CONFIG = config_flags.DEFINE_config_file(
  'config', 'configs/digits_mlp.py', 'The experiment.', lock_config=True
)
WORKDIR = flags.DEFINE_string('workdir', None, 'Default: runs/NAME.')
flags.DEFINE_enum('job', 'train', ['train'], 'What to do.')


def main(argv):
  del argv
  name = pathlib.Path(flags.FLAGS['config'].config_filename).stem
  workdir = WORKDIR.value or f'runs/{name}'
  try:
    summary = train(CONFIG.value, workdir)
  except (ConfigError, DatasetError, CheckpointError) as error:
    sys.exit(f'error: {error}')
  write_report(workdir)
  print(summary)


if __name__ == '__main__':
  app.run(main)
