"""Writes the pages of directories: reads what is there, and never half."""

import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from adabatch.config.files import write_whole
from adabatch.report.compared import read_runs
from adabatch.report.comparison_page import build_comparison_page
from adabatch.report.page import build_page
from adabatch.report.plan_page import build_plan_page
from adabatch.report.points import Task, guess_metric
from adabatch.report.probe_page import build_probe_page
from adabatch.report.records import (
  lower_is_better,
  number,
  read_columns,
  read_json,
)
from adabatch.report.search_page import build_search_page
from adabatch.report.study_page import build_study_page
from adabatch.study.archive import read_tree
from adabatch.study.trials import ERROR, Search, published_goal

PAGE = 'report.html'
PROBE = 'probe.json'
COMPARISON = 'comparison.html'


def write_report(
  workdir: str | os.PathLike[str],
  output: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
  """Writes `WORKDIR/report.html` from what is there so far; its path.

  With `metrics.jsonl` it is the page of a run, with `trials/` that of a search
  or a study, with `probe.json` that of a probe; uses `summary.json` and
  `config.json` if they are there. A reader sees the old page or the new one,
  never a half of it.

  Args:
    workdir: of the run, the search, the study or the probe.
    output: the page, if it is to lie elsewhere.

  Raises:
    FileNotFoundError: if the directory holds none of the three.
    ValueError: if its `probe.json` cannot be read.
  """
  workdir = pathlib.Path(workdir)
  name = workdir.resolve().name
  summary = read_json(workdir / 'summary.json')
  config = read_json(workdir / 'config.json')
  trials = workdir / 'trials'
  if (workdir / PROBE).exists():
    found = read_json(workdir / PROBE)
    if not found:
      raise ValueError(
        f'{workdir / PROBE} is not what a probe writes: run --job=probe again'
      )
    page = build_probe_page(name, found)
  elif trials.is_dir() and not (workdir / 'metrics.jsonl').exists():
    page = _page_of_trials(name, trials, summary, config)
  else:
    page = build_page(
      name, *read_columns(workdir), summary=summary, config=config
    )
  return _write(pathlib.Path(output or workdir / PAGE), page)


def write_plan(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes `WORKDIR/plan.html` from its `plan.json`; the page's path.

  Raises:
    FileNotFoundError: if there is none.
  """
  workdir = pathlib.Path(workdir)
  plan = read_json(workdir / 'plan.json')
  if not plan:
    raise FileNotFoundError(f'{workdir} holds no plan.json')
  page = build_plan_page(workdir.resolve().name, plan)
  return _write(workdir / 'plan.html', page)


def write_comparison(
  workdirs: Sequence[str | os.PathLike[str]],
  output: str | os.PathLike[str] = COMPARISON,
) -> pathlib.Path:
  """Writes a page that compares runs from what is there so far; its path.

  Args:
    workdirs: of two runs or more, of one task on one data set.
    output: the page.

  Raises:
    FileNotFoundError: naming a directory that holds no run.
    ValueError: if one is given twice, or they cannot be compared.
  """
  page = build_comparison_page(read_runs(workdirs))
  return _write(pathlib.Path(output), page)


def write_study_report(
  path: str | os.PathLike[str],
  metric: str,
  goal: float | None,
  *,
  higher_is_better: bool = False,
  pattern: str = '*',
  output: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
  """Writes the page of a study of anybody's trials; its path.

  Args:
    path: a directory or a tar archive in the published form.
    metric: column of the measurements.
    goal: to be strictly better than; None if there is none.
    higher_is_better: of the metric.
    pattern: of the directories of the searches to be read.
    output: the page; None: `report.html` in the directory or next to the
      archive.

  Raises:
    ValueError: for a damaged archive, one without searches, or one with two of
      a workload at one batch size.
  """
  path = pathlib.Path(path)
  searches = read_tree(path, pattern)
  task = Task(metric, goal, higher_is_better)
  name = path.resolve().name
  page = build_study_page(name, searches, task, {'status': 'archive'}, {})
  output = output or (path if path.is_dir() else path.parent) / PAGE
  return _write(pathlib.Path(output), page)


def _page_of_trials(
  name: str,
  trials: pathlib.Path,
  summary: dict[str, Any],
  config: dict[str, Any],
) -> str:
  searches: Sequence[Search] = ()
  remark = ''
  if any(trials.iterdir()):
    try:
      searches = read_tree(trials)
    # A search that has just begun has no trial that is whole.
    except ValueError as error:
      remark = f'The trials could not be read: {error}'
  task = _task(summary, config, searches)
  job = summary.get('job') or ('study' if len(searches) > 1 else 'search')
  if job == 'search' and len(searches) == 1:
    return build_search_page(name, searches[0], task, summary, config)
  return build_study_page(name, searches, task, summary, config, remark)


def _task(
  summary: dict[str, Any], config: dict[str, Any], searches: Sequence[Search]
) -> Task:
  """What a job says it is for; before its first summary its config tells."""
  metric = summary.get('metric')
  if not metric:
    try:
      name, value = (config['target'][key] for key in ('metric', 'value'))
      better = {'loss': False, name: not lower_is_better(name)}
      if guess_metric(searches) == ERROR:
        better['accuracy'] = True
      goal = published_goal(name, value, better)
    except (ValueError, KeyError, TypeError):
      return Task(guess_metric(searches), None)
    trials = [trial for search in searches for trial in search.trials]
    if trials and not any(goal.metric in t.measurements for t in trials):
      return Task(guess_metric(searches), None)
    return Task(*goal)
  goal = number(summary.get('goal'))
  goal = None if math.isnan(goal) else goal
  return Task(str(metric), goal, bool(summary.get('higher_is_better')))


def _write(path: pathlib.Path, page: str) -> pathlib.Path:
  if not path.parent.is_dir():
    raise FileNotFoundError(f'{path}: there is no directory {path.parent}')
  # A torn record may have left half a surrogate pair: never fail on it.
  content = page.encode('utf-8', 'replace')
  # A directory that can only be read may hold the very page.
  if not path.is_file() or path.read_bytes() != content:
    write_whole(path, content)
  return path
