"""Services of others that show a run's numbers: Weights & Biases, MLflow.

Each is given the numbers of every record. What a run goes on from are its own
files, so what a tracker lost or shows twice changes nothing.
"""

import importlib.util
import json
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from adabatch.config import Config, ConfigError, choose, flatten
from adabatch.config.extras import NotInstalled, needing, say_how
from adabatch.config.files import write_whole

# In the directory of a run: how the trackers call it.
NAMES = 'trackers.json'
# Of log.writers, beside the trackers.
FILES = ('jsonl', 'tensorboard')


class Tracker(NamedTuple):
  """A run, as a tracker has it.

  Attributes:
    write: update, and numbers by their tags.
    close: with whether the run came to its end.
  """

  write: Callable[[int, Mapping[str, float]], None]
  close: Callable[[bool], None]


def wandb(config: Config, workdir: pathlib.Path) -> Tracker:
  """Weights & Biases, as its environment says (WANDB_MODE, WANDB_PROJECT)."""
  with needing():
    import wandb as library

  run = library.init(
    project=os.environ.get('WANDB_PROJECT', 'adabatch'),
    dir=str(workdir),
    id=_name(workdir, 'wandb', lambda: secrets.token_hex(4)),
    name=workdir.name,
    resume='allow',
    config=flatten(config),
  )
  # By a number of its own, because a run may go back to a checkpoint, and
  # steps of theirs never do.
  run.define_metric('*', step_metric='update')
  return Tracker(
    lambda update, numbers: run.log({'update': update, **numbers}),
    lambda ended: run.finish(0 if ended else 1),
  )


def mlflow(config: Config, workdir: pathlib.Path) -> Tracker:
  """MLflow, at MLFLOW_TRACKING_URI; else in the directory of the run."""
  with needing():
    from mlflow import MlflowClient, entities

  there = os.environ.get('MLFLOW_TRACKING_URI')
  here = f'sqlite:///{(workdir / "mlflow.db").resolve()}'
  client = MlflowClient(there or here)

  def make() -> str:
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', 'adabatch')
    known = client.get_experiment_by_name(name)
    if known is None:
      place = None if there else (workdir / 'mlruns').resolve().as_uri()
      experiment = client.create_experiment(name, artifact_location=place)
    else:
      experiment = known.experiment_id
    run = client.create_run(experiment, run_name=workdir.name).info.run_id
    for key, value in flatten(config).items():
      client.log_param(run, key, value)
    return run

  run = _name(workdir, 'mlflow', make)

  def write(update: int, numbers: Mapping[str, float]) -> None:
    now = round(time.time() * 1000)
    client.log_batch(
      run,
      metrics=[
        entities.Metric(tag, value, now, update)
        for tag, value in numbers.items()
      ],
    )

  return Tracker(
    write,
    lambda ended: client.set_terminated(run, 'FINISHED' if ended else 'KILLED'),
  )


TRACKERS: dict[str, Callable[[Config, pathlib.Path], Tracker]] = {
  'wandb': wandb,
  'mlflow': mlflow,
}


def check_writers(config: Config) -> None:
  """Refuses names of nothing, and a run without the file that it goes on from.

  Raises:
    ConfigError: in one line.
  """
  writers = config.log.writers
  for name in writers:
    choose(dict.fromkeys((*FILES, *TRACKERS)), name, 'log.writers')
    if name in TRACKERS and importlib.util.find_spec(name) is None:
      raise NotInstalled(say_how(name))
  if 'jsonl' not in writers:
    raise ConfigError(
      f'log.writers={tuple(writers)} lacks jsonl: metrics.jsonl is what a run '
      'goes on with'
    )


def _name(workdir: pathlib.Path, tracker: str, make: Callable[[], str]) -> str:
  """How a tracker calls the run, today as when it began."""
  path = workdir / NAMES
  names = json.loads(path.read_text()) if path.exists() else {}
  if tracker not in names:
    names[tracker] = make()
    write_whole(path, json.dumps(names, indent=2).encode())
  return names[tracker]
