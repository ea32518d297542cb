"""Small real runs that several test files share."""

import json
import pathlib

from adabatch import config


def digits(**overrides):
  """A small MLP on the digits whose batch size visits several buckets."""
  c = config.default()
  c.epochs = 3.0
  # How many updates a call does by itself depends on what they take.
  c.updates_per_call = 1
  c.model.mlp.hidden_sizes = (32,)
  c.learning_rate.base = 0.02
  c.controller.initial_batch_size = 16
  c.controller.max_batch_size = 128
  c.controller.adadamp.loss_source = 'full'
  c.log.every_updates = 1
  c.checkpoint.best = False  # written more often than most tests need
  c.update_from_flattened_dict(overrides)
  return c


def records(workdir: pathlib.Path, kind: str = 'train') -> list[dict]:
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [r for r in map(json.loads, lines) if r['kind'] == kind]


def column(workdir: pathlib.Path, name: str) -> list:
  return [record[name] for record in records(workdir)]
