"""`--job=plan`: what a run will be, on paper; nothing is trained."""

import contextlib
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from adabatch import config as config_lib
from adabatch import data
from adabatch.config import Config, ConfigError, command_line
from adabatch.config.files import cache_directory
from adabatch.config.smoke import shrink
from adabatch.controllers.buckets import Bucket
from adabatch.devices.mesh import is_first_process
from adabatch.plan import network, scaling
from adabatch.plan.compiler import Compiler
from adabatch.plan.figures import (
  at_most,
  devices_in_use,
  evaluation,
  evaluation_figures,
  figures,
  programs,
)
from adabatch.plan.outline import outline
from adabatch.plan.rungs import Spent, rungs, spent
from adabatch.plan.saved import save
from adabatch.plan.schedule import (
  Losses,
  Stretch,
  constantly,
  follows_losses,
  is_exact,
  learning_rates,
  read_losses,
  walk,
)
from adabatch.plan.topology import Topology, find
from adabatch.train import agreement
from adabatch.train.build import Parts, build, check_values
from adabatch.train.open_splits import TextCache
from adabatch.train.remarks import remarks
from adabatch.train.rules import finds_limit
from adabatch.train.tasks import make_task
from adabatch.train.workdir import Workdir

POINTS = 1000  # of a schedule that are written down, about
BYTES_OF_A_LINE = 400  # of metrics.jsonl, about
OUTLINED = (
  'the programs are for data of which their number is known alone: a run takes '
  'them if its examples are as many and their mean and std are in the config'
)

FOUND_LATER = (
  "buckets.max_per_device='auto': how many examples a device takes at once is "
  'found when it runs; here it takes all'
)


def plan(
  config: Config,
  workdir: str | os.PathLike[str],
  *,
  devices: Sequence[Any] | None = None,
  splits: tuple[data.Split, data.Split] | None = None,
  stop: threading.Event | None = None,
) -> dict[str, Any]:
  """Says what a run will be, and writes `plan.json`; nothing else is changed.

  But with `plan.save` the run's programs are put in a directory.

  Args:
    config: of the run.
    workdir: of the run, which need not be there.
    devices: devices to plan for; None for all of all processes.
    splits: arrays of the caller's own.
    stop: not looked at.

  Returns:
    What `plan.json` holds.

  Raises:
    ConfigError: for a config that cannot be run.
    data.DatasetError: for a data set that is not there, and of which nothing
      is known.
    WriteError: if the file, or a program (`plan.save`), cannot be written.
  """
  del stop
  check_values(config)
  files, config = Workdir(workdir), config.copy_and_resolve_references()
  agreement.same_start(config, files.path)
  losses = None if config.plan.loss is None else read_losses(config.plan.loss)
  changed = _changed(config)
  machine = None
  scaling.check(config)
  _check_backend(config)
  _check_save(config)
  if config.plan.topology is not None:
    if devices is not None:
      raise ConfigError(
        f'plan.topology={config.plan.topology!r} has devices of its own: leave '
        'it out, or `devices`'
      )
    machine = find(config.plan.topology)
    devices = machine.devices
  if config.smoke:
    config = shrink(config)
  with contextlib.ExitStack() as stack:
    stack.callback(files.unlock)  # which a text set has locked
    parts, there = _build(config, devices, splits, files)
  compiler = None
  if machine is not None:
    keep = cache_directory('plans') if config.compilation_cache else None
    compiler = Compiler(machine, keep)
    if finds_limit(config):
      parts = at_most(parts, machine, compiler, _say())
  found = describe(parts, losses) | {
    'data_there': there,
    'changed': changed,
    'config': json.loads(json.dumps(config_lib.flatten(config), default=list)),
  }
  if machine is not None and compiler is not None:
    _add_machine(parts, machine, compiler, found)
  elif finds_limit(config):
    found['remarks'].append(FOUND_LATER)
  if config.plan.save is not None:
    if not there:
      found['remarks'].append(OUTLINED)
    found['programs'] = save(parts, config.plan.save, _say())
  if is_first_process():
    files.write_plan(found)
  return found


def _say() -> Callable[[str], None]:
  """Lines of progress, once of all processes."""
  return command_line.say if is_first_process() else lambda line: None


def _check_save(config: Config) -> None:
  """Refuses to keep what nobody knows yet."""
  here = config.plan.save is not None and config.plan.topology is None
  if here and finds_limit(config):
    raise ConfigError(
      f'plan.save={config.plan.save!r} keeps programs of a number of examples '
      "at once, which buckets.max_per_device='auto' finds when it runs: give "
      'the number'
    )


def _check_backend(config: Config) -> None:
  """Refuses what `pmap` cannot do."""
  if config.parallel.backend != 'pmap':
    return
  if config.plan.topology is not None:
    raise ConfigError(
      f'plan.topology={config.plan.topology!r} compiles for what is not there, '
      "which parallel.backend='pmap' does not: choose 'shard_map'"
    )
  if config.plan.save is not None:
    raise ConfigError(
      f"plan.save={config.plan.save!r}: programs of parallel.backend='pmap' "
      "cannot be kept: choose 'shard_map', or leave it out"
    )


def _add_machine(
  parts: Parts, machine: Topology, compiler: Compiler, found: dict[str, Any]
) -> None:
  """What the compiler says of each rung, and what the run takes by that."""
  flops = found['model']['flops_per_example']
  made = programs(parts, machine, compiler, _say())
  for rung in found['ladder']:
    rung |= figures(parts, machine, made, rung['batch_size'], flops)
  _say()('evaluation')
  evaluated = evaluation_figures(parts, machine, evaluation(parts, compiler))
  found['topology'] = {
    'name': machine.name,
    'chips': machine.chips,
    'hosts': machine.hosts,
    'evaluation': evaluated,
    'compiler': ', '.join(' '.join(v) for v in compiler.versions.items()),
  }
  runs: list[tuple[dict[str, Any], list[tuple[Any, Any]]]] = [
    (totals, [(rung, totals)])
    for size, totals in found.get('range', {}).items()
    for rung in found['ladder']
    if str(rung['batch_size']) == size
  ]
  if 'schedule' in found:
    spent_on = [(r, r) for r in found['ladder'] if r.get('updates')]
    runs.append((found['schedule'], spent_on))
  for totals, rungs_ in runs:
    seconds = [_seconds(rung, spent) for rung, spent in rungs_]
    if None in seconds:
      continue
    totals['seconds'] = sum(s for s in seconds if s is not None)
    totals['chip_hours'] = totals['seconds'] * machine.chips / 3600
    totals['device_seconds'] = sum(
      s * _devices(parts, rung)
      for s, (rung, _) in zip(seconds, rungs_, strict=True)
      if s is not None
    )
    whole = totals['seconds'] * parts.recipe.devices.size
    totals['in_use'] = totals['device_seconds'] / whole
    if evaluated.get('seconds') is not None:
      each = evaluated['seconds']
      totals['evaluation_seconds'] = totals['evaluations'] * each
  found['scaling'] = scaling.describe(parts, machine, found, compiler, _say())


def _devices(parts: Parts, rung: dict[str, Any]) -> int:
  """In use."""
  return devices_in_use(parts, Bucket(*(rung[k] for k in Bucket._fields)))


def _seconds(rung: dict[str, Any], spent: dict[str, Any]) -> float | None:
  """Of all updates and syncs of a rung; None where nobody says."""
  together = rung.get('seconds')
  if together is None or not rung['fits']:
    return None
  apart = rung.get('without_sync', rung)['seconds']
  syncs = spent['syncs']
  return syncs * together + (spent['updates'] - syncs) * apart


def _build(
  config: Config,
  devices: Sequence[Any] | None,
  splits: tuple[data.Split, data.Split] | None,
  files: Workdir,
) -> tuple[Parts, bool]:
  """The parts, and whether their data are there."""
  cache = TextCache(files.text_directory, is_first_process())
  try:
    return build(config, devices, splits, cache), True
  except data.NotPrepared:
    splits = outline(config, make_task(config).labels)
    if splits is None:
      raise
    return build(config, devices, splits, cache), False


def describe(parts: Parts, losses: Losses | None = None) -> dict[str, Any]:
  """Everything about a run that can be known before it, as plain numbers."""
  inputs, config = parts.recipe.inputs, parts.config
  if losses is not None and not follows_losses(parts):
    why = 'needs none' if is_exact(parts) else 'reads more than losses'
    raise ConfigError(
      f'plan.loss={config.plan.loss!r} has no effect on controller.name='
      f'{config.controller.name!r}, which {why}: leave it out'
    )
  found: dict[str, Any] = {
    'job': 'plan',
    'status': 'completed',
    'devices': {
      'number': parts.recipe.devices.size,
      'kind': parts.recipe.devices.mesh.devices.flat[0].device_kind,
    },
    'data': {
      'name': config.data.name,
      'examples': inputs.train.num_examples,
      'evaluation_examples': inputs.evaluation.num_examples,
      'streaming': inputs.streaming,
      'tokens_per_example': inputs.tokens_per_example,
    },
    'model': network.describe(parts),
    'remarks': list(remarks(parts)),
  }
  ladder = rungs(parts)
  exact = is_exact(parts)
  if exact or losses is not None:
    found['schedule'] = _schedule(parts, walk(parts, losses), ladder)
  if losses is not None:
    found['schedule']['assumed_loss'] = config.plan.loss
  if not exact or len(ladder) > 1:  # at equal examples
    found['range'] = {
      str(size): spent(parts, walk(constantly(parts, size))).totals()
      for size in (ladder[0]['batch_size'], ladder[-1]['batch_size'])
    }
  found['exact'] = exact
  found['ladder'] = ladder
  found['disk'] = _disk(parts, found)
  return found


def _schedule(
  parts: Parts, stretches: Iterable[Stretch], ladder: list[dict[str, Any]]
) -> dict[str, Any]:
  """Totals, what each rung gets, and points for pictures."""
  counted, rows = Spent(parts), []
  total = parts.length.examples
  with tqdm(
    total=total,
    desc='plan',
    unit=' examples',
    unit_scale=True,
    leave=False,
    delay=1.0,
    disable=not sys.stderr.isatty(),
  ) as bar:
    for stretch in stretches:
      counted.add(stretch)
      call = stretch.call
      size = call.plan.batch_size
      rows.append(
        (call.update, call.examples, call.count, size, call.plan.nominal)
        + (call.plan.damping * call.rate,)
      )
      bar.update(call.count * size)
  for rung in ladder:
    rung |= counted.of(rung)
  return counted.totals() | {'points': _points(parts, np.array(rows))}


def _points(parts: Parts, rows: np.ndarray) -> dict[str, list[Any]]:
  """Some updates of a schedule, the first and the last among them.

  Args:
    parts: of the run.
    rows: of stretches: updates and examples before, count, batch size, nominal,
      damping.
  """
  total = rows[:, 2].sum()
  evenly = np.linspace(0, total - 1, POINTS // 2)
  wanted = np.unique(np.concatenate([evenly, rows[:, 0]]).astype(np.int64))
  if len(wanted) > 2 * POINTS:
    wanted = wanted[np.linspace(0, len(wanted) - 1, 2 * POINTS).astype(int)]
  which = np.searchsorted(rows[:, 0], wanted, side='right') - 1
  update, examples, _, size, nominal, damping = rows[which].T
  before = examples + (wanted - update) * size
  rates = learning_rates(parts, size, damping, before)
  after = before + size
  return {
    'update': (wanted + 1).tolist(),
    'examples': after.astype(np.int64).tolist(),
    'batch_size': size.astype(np.int64).tolist(),
    'nominal_batch_size': nominal.tolist(),
    'damping': damping.tolist(),
    'learning_rate': (
      [None] * len(wanted) if rates is None else rates.tolist()
    ),
  }


def _disk(parts: Parts, found: dict[str, Any]) -> dict[str, Any]:
  """What the directory of the run takes at most."""
  checkpoint, log = parts.config.checkpoint, parts.due.log
  updates = (
    found['schedule']['updates']
    if found['exact']
    else max(r['updates'] for r in found['range'].values())
  )
  size = found['model']['state_bytes']
  # While one is written, those before it are there still.
  kept = checkpoint.keep + 1 + bool(checkpoint.best)
  lines = math.ceil(updates / log)
  return {
    'checkpoint_bytes': size,
    'checkpoints_at_once': kept,
    'lines': lines,
    'bytes': kept * size + lines * BYTES_OF_A_LINE,
  }


def _changed(config: Config) -> dict[str, list[Any]]:
  """Key -> its default and its value, where they differ."""
  old = config_lib.flatten(config_lib.default())
  new = json.loads(json.dumps(config_lib.flatten(config), default=list))
  old = json.loads(json.dumps(old, default=list))
  return {
    key: [old.get(key), value]
    for key, value in new.items()
    if old.get(key) != value
  }
