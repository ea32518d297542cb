"""The config that a run was made with, from its own directory.

For `--config=config_of_run.py:WORKDIR`.
"""

import json
import pathlib

from adabatch import config


def get_config(workdir: str) -> config.Config:
  """Its `config.json`; keys of today have their defaults."""
  path = pathlib.Path(workdir) / 'config.json'
  return config.of_json(json.loads(path.read_text()))
