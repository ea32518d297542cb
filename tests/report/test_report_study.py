"""The pages of searches and studies."""

import itertools
import json
import math
import os
import re

import numpy as np
import pytest

from adabatch.report import write_report, write_study_report
from adabatch.report.__main__ import main
from adabatch.report.charts import keys_of, size_label
from adabatch.report.pictures import COLOR, CSS_COLORS
from adabatch.report.points import (
  Task,
  axes_of,
  points,
  ranked,
  readable,
)
from adabatch.report.study_figures import (
  budget_figure,
  budgets,
  examples_figure,
  rate_figure,
  regime_strip,
  seconds_figure,
  steps_figure,
)
from adabatch.report.study_page import judged
from adabatch.report.style import LIGHT, SERIES
from adabatch.report.trial_figures import (
  curves_figure,
  parameter_ticks,
  plane_figure,
  slice_figure,
  strip_figure,
)
from adabatch.study.archive_writer import write_search, write_tar
from adabatch.study.space import Parameter
from adabatch.study.trials import (
  COMPLETE,
  ERROR,
  INCOMPLETE,
  INFEASIBLE,
  Search,
  Trial,
)
from tests.report.test_report import Page

TASK = Task(ERROR, 0.1)
RATE = Parameter('log', (3e-3, 10.0))
SPACE = {
  'learning_rate.base': RATE,
  'optimizer.momentum': Parameter('reverse_log', (0.0, 0.999)),
  'learning_rate.decay.final': Parameter('discrete', (0.01, 0.1)),
}
SIZES = (16, 64, 256, 1024)
CONFIG = {'data': {'name': 'mnist'}, 'search': {'trials': 5}}
SUMMARY = {
  'job': 'study',
  'status': 'completed',
  'metric': ERROR,
  'goal': 0.1,
  'higher_is_better': False,
  'seconds': 754.0,
}


def steps_at(batch_size, min_steps=100, critical=256):
  return round(min_steps * (1 + critical / batch_size))


def made_up_trial(number, steps, rate, momentum=None, values=None, **columns):
  """Reaches 0.1 at exactly so many steps, but for an evaluation before."""
  at = np.array([steps // 2, steps])
  values = np.array([0.5, 0.05]) if values is None else np.array(values, float)
  parameters = {'learning_rate.base': rate, 'learning_rate.decay.final': 0.1}
  if momentum is not None:
    parameters['optimizer.momentum'] = momentum
  measured = {'step': at, ERROR: values, 'val/cross_entropy_error': 2 * values}
  return Trial(number, parameters, COMPLETE, steps, measured | columns)


def made_up(batch_size, optimizer='nesterov', steps=None, reach=True):
  """Five trials, whose third is the best; one diverged, one is not finished."""
  steps = steps or steps_at(batch_size)
  momentum = None if optimizer == 'sgd' else 0.9
  rate = 0.001 * batch_size**0.5
  space = {k: v for k, v in SPACE.items() if momentum or 'momentum' not in k}
  slow = [0.9, 0.2 + 0.1 * (momentum is None)]
  seconds = np.array([0.5, 1.0]) * steps * batch_size / 1e4
  trials = [
    made_up_trial(1, 2 * steps, rate / 4, momentum),
    made_up_trial(2, 2 * steps, rate / 8, momentum, slow),
    made_up_trial(3, steps, rate, momentum, seconds=seconds),
    made_up_trial(4, steps, 80 * rate, momentum, [0.8, math.nan]),
    made_up_trial(5, steps, 2 * rate, momentum, [0.8, 0.7]),
  ]
  trials[3] = trials[3]._replace(status=INFEASIBLE)
  trials[4] = trials[4]._replace(status=INCOMPLETE)
  if not reach:
    trials = [trials[1]._replace(number=n) for n in (1, 2)]
  return Search(
    'mnist', 'cnn', optimizer, batch_size, space, 4 * steps, False, trials
  )


def made_up_study():
  """Two optimizers; the largest size of one is censored."""
  searches = [made_up(size) for size in SIZES]
  searches += [
    made_up(size, 'sgd', steps_at(size, 300, 32), reach=size < SIZES[-1])
    for size in SIZES
  ]
  return searches


def write_job(path, searches, summary=SUMMARY, config=CONFIG):
  path.mkdir(exist_ok=True)
  (path / 'trials').mkdir()
  for search in searches:
    write_search(path / 'trials', search)
  if summary is not None:
    (path / 'summary.json').write_text(json.dumps(summary))
  if config is not None:
    (path / 'config.json').write_text(json.dumps(config))
  return path


def page_of(workdir):
  path = write_report(workdir)
  assert path == workdir / 'report.html'
  text = path.read_text(encoding='utf-8')
  page = Page(text)
  check(text, page)
  return text, page


def check(text, page):
  """What holds for every page: it is whole, and needs nothing from outside."""
  assert len(page.ids) == len(set(page.ids))
  references = re.findall(r'(?:href="|src="|url\()([^")]*)', text)
  assert {r.removeprefix('#') for r in references} <= set(page.ids)
  assert all(r.startswith('#') for r in references)
  names = {tag for tag, _ in page.tags}
  assert not names & {'script', 'link', 'img', 'image', 'iframe', 'i', 'b'}
  pictures = ''.join(re.findall(r'<svg.*?</svg>', text, re.DOTALL))
  assert set(re.findall(r'(?:stroke|fill): ([^;"]*)', pictures)) <= {
    'none',
    *CSS_COLORS.values(),
  }
  assert not re.search(r'\bnan\b|\binf\b', pictures, re.IGNORECASE)


def titles(page):
  return page.groups.get('all', [])


def words(page):
  return ' '.join(page.text)


CURVES = [
  'Steps to the goal',
  'Examples to the goal',
  'Best learning rate',
  'Best effective learning rate',
  'Time to the goal',
]


def test_page_of_a_study(tmp_path):
  text, page = page_of(write_job(tmp_path / 's', made_up_study()))
  assert titles(page) == [
    *CURVES,
    'Trials of nesterov',
    'Learning rates of sgd',
    'Within so many steps, nesterov',
    'Within so many examples, nesterov',
    'Within so many steps, sgd',
    'Within so many examples, sgd',
  ]
  for expected in (
    'completed',
    'mnist · cnn',
    f'{ERROR} < 0.1',
    '12 min 34 s',
    '16 to 1,024',
    'nesterov, sgd',
    '23 complete, 7 diverged, 7 not finished',
    'S_min = 100 (95 %: 100 to 100) and B_crit = 256',
    'Perfect scaling up to B = 64.',
    'not reached by then',
    'with half the trials',
    'largest residual 0 % (B = ',
    'spread over trials about ',
    '20 % more examples than at the smallest size at B = 70.4.',
    'finds fewer steps in one case of two',
    'Each batch size has points of its own, drawn with a seed made of',
    'censored',
    '> 618',
    '2 / 3 / 1',
    'near its low end: widen the space',
    'data.name',
  ):
    assert expected in words(page), expected
  assert len(text) < 500_000


def test_page_says_where_the_fit_and_the_points_cannot_be_trusted(tmp_path):
  searches = [
    made_up(size, steps=steps)
    for size, steps in zip(SIZES, (1000, 950, 900, 90), strict=True)
  ]
  # The third, which is the best, comes first, so that half the trials find it.
  searches = [
    s._replace(
      early_stopping=True,
      trials=[
        t._replace(
          number=(t.number + 2) % 5,
          parameters={'learning_rate.base': 0.1 * t.number},
        )
        for t in s.trials
      ],
    )
    for s in searches
  ]
  _, page = page_of(write_job(tmp_path / 's', searches))
  assert 'Lack of fit: the curve misses the steps at batch size' in words(page)
  assert 'these share their luck' in words(page)
  assert 'has points of its own' not in words(page)
  assert 'Reached: in no more steps than all trials before' in words(page)


def test_a_goal_that_half_the_trials_did_not_reach_is_an_arrow():
  searches = [made_up(size) for size in SIZES]
  searches[1].trials[0] = searches[1].trials[1]._replace(number=1)
  figure = steps_figure(judged(searches, TASK), COLOR)
  keys = {key.name: key.look for key in keys_of(figure)}
  assert keys['not reached with half the trials'] == 'arrow'
  assert keys['with half the trials'] == ''
  ends = [
    line.get_ydata()[-1]
    for line in figure.axes[0].get_lines()
    if line.get_marker() == '_' and len(line.get_xdata())
  ]
  assert ends == [2 * steps_at(size) for size in SIZES if size != SIZES[1]]


def test_page_of_a_search(tmp_path):
  summary = SUMMARY | {'job': 'search', 'status': 'unfinished'}
  job = write_job(tmp_path / 's', [made_up(64)], summary)
  _, page = page_of(job)
  assert titles(page)[:2] == [f'{ERROR} of all trials', 'All trials']
  assert set(titles(page)[2:]) == set(SPACE)
  for expected in (
    'unfinished',
    'mnist · cnn · nesterov',
    '3 complete, 1 diverged, 1 not finished',
    '500',
    'time to the goal 3.2 s',
    'best trial 3',
  ):
    assert expected in re.sub(r'\s+', ' ', words(page)), expected


def test_best_trial_near_an_edge_is_said(tmp_path):
  search = made_up(64)._replace(
    space=SPACE | {'learning_rate.base': Parameter('log', (0.0075, 10.0))}
  )
  summary = SUMMARY | {'job': 'search'}
  _, page = page_of(write_job(tmp_path / 's', [search], summary))
  warning = 'Best trial: learning_rate.base near its low end: widen the space.'
  assert warning in words(page)


def lines_of(figure, label):
  return [
    line
    for line in figure.axes[0].get_lines()
    if line.get_label() == label and len(line.get_xdata())
  ]


def test_steps_are_drawn_where_they_are():
  workloads = judged(made_up_study(), TASK)
  figure = steps_figure(workloads, LIGHT)
  (points_,) = lines_of(figure, 'nesterov')
  # Points of two optimizers stand a twentieth of an octave to either side.
  np.testing.assert_allclose(
    points_.get_xdata(), np.array(SIZES) * 2**-0.05, rtol=1e-12
  )
  assert list(points_.get_ydata()) == [steps_at(size) for size in SIZES]
  assert points_.get_color() == LIGHT['s1']
  drawn = figure.axes[0].get_lines()
  (triangle,) = (
    line
    for line in drawn
    if line.get_marker() == '^'
    and line.get_fillstyle() == 'none'
    and len(line.get_xdata())
  )
  assert list(triangle.get_ydata()) == [2 * steps_at(SIZES[-1], 300, 32)]
  # The smooth lines are the fitted curve and perfect scaling.
  curve, perfect = (
    line
    for line in drawn
    if len(line.get_xdata()) == 100 and line.get_color() == LIGHT['s1']
  )
  x = curve.get_xdata()
  np.testing.assert_allclose(curve.get_ydata(), 100 * (1 + 256 / x), rtol=1e-3)
  np.testing.assert_allclose(perfect.get_ydata(), 1700 * 16 / x, rtol=1e-12)
  low, high = figure.axes[0].get_ylim()
  assert low < min(points_.get_ydata())
  assert high > max(points_.get_ydata())


def test_examples_and_epochs():
  workloads = judged([made_up(size) for size in SIZES], TASK)
  for epoch in (1.0, 60_000.0):
    (line,) = lines_of(examples_figure(workloads, LIGHT, epoch), 'nesterov')
    expected = [steps_at(size) * size / epoch for size in SIZES]
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-12)
    np.testing.assert_allclose(line.get_xdata(), SIZES)


def test_seconds_and_rates():
  workloads = judged([made_up(size) for size in SIZES], TASK)
  (line,) = lines_of(seconds_figure(workloads, LIGHT), 'nesterov')
  expected = [steps_at(size) * size / 1e4 for size in SIZES]
  np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-12)
  for effective, factor in ((False, 1), (True, 10)):
    figure = rate_figure(workloads, LIGHT, effective)
    (line,) = lines_of(figure, 'nesterov')
    rates = 0.001 * factor * np.sqrt(SIZES)
    np.testing.assert_allclose(line.get_ydata(), rates, rtol=1e-9)
    linear, root = (
      line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2
    )
    for guide, power in ((linear, 1), (root, 0.5)):
      x, y = guide.get_xdata(), guide.get_ydata()
      np.testing.assert_allclose(y, rates[0] * (x / 16) ** power, rtol=1e-9)


def test_regimes_fill_the_strip():
  (workload,) = judged([made_up(size) for size in SIZES], TASK)
  strip = regime_strip(workload, 8, 2048)
  assert [label for *_, label in strip] == list(
    dict.fromkeys(workload.regimes.labels)
  )
  assert (strip[0][0], strip[-1][1]) == (8, 2048)
  assert all(a[1] == b[0] for a, b in itertools.pairwise(strip))


def test_keys_are_of_the_style_sheet():
  figure = steps_figure(judged(made_up_study(), TASK), COLOR)
  keys = {key.name: key for key in keys_of(figure)}
  assert keys['nesterov'].color == SERIES[0]
  assert keys['sgd'].color == SERIES[1]
  assert keys['slope of perfect scaling'].look == 'dashed'
  assert keys['goal not reached by then'].look == 'triangle'
  assert keys['with half the trials'].look == ''
  assert keys['diminishing returns'] == (
    'diminishing returns', 'ink', 'band', 0.5
  )  # fmt: skip


def figures():
  """One of each kind, with as many batch sizes as a study has."""
  sizes = [2**k for k in range(4, 13)]
  searches = [readable(made_up(size), TASK) for size in sizes]
  workloads = judged(searches, TASK)
  panels = [(s.batch_size, points(s, TASK)) for s in searches]
  color = LIGHT['s1']
  found = panels[2][1]
  yield steps_figure(workloads, LIGHT)
  yield examples_figure(workloads, LIGHT)
  yield seconds_figure(workloads, LIGHT)
  yield rate_figure(workloads, LIGHT)
  yield budget_figure(searches, ERROR, LIGHT, per_step=True)
  yield plane_figure(panels, LIGHT, color)
  yield plane_figure(panels[:1], LIGHT, color)
  yield strip_figure(panels, LIGHT, color)
  yield curves_figure(found, ERROR, 0.1, LIGHT, color)
  for key, parameter in SPACE.items():
    yield slice_figure(key, parameter, found, 0.1, LIGHT, color)


def test_text_in_figures_is_legible():
  for figure in figures():
    figure.draw_without_rendering()
    texts = list(figure.texts)
    for axes in figure.axes:
      texts += [axes.title, axes.xaxis.label, axes.yaxis.label]
      texts += axes.get_xticklabels() + axes.get_yticklabels()
    texts = [t for t in texts if t.get_text() and t.get_visible()]
    assert len(texts) > 4
    assert figure.get_figwidth() == 4.5
    assert all(text.get_fontsize() >= 8 for text in texts)
    boxes = [text.get_window_extent() for text in texts]
    for (a, one), (b, other) in itertools.combinations(
      zip(boxes, texts, strict=True), 2
    ):
      assert not a.overlaps(b), (one, other)
    for box in boxes:
      assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
      assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1


def test_points():
  search = readable(made_up(64), TASK)
  found = points(search, TASK)
  kinds = ['reached', 'feasible', 'best', 'infeasible', 'incomplete']
  assert [point.kind for point in found] == kinds
  assert [p.trial.number for p in ranked(found, TASK)] == [3, 1, 2]
  assert [p.steps for p in found[:3]] == [1000, math.inf, 500]
  assert math.isnan(found[3].value)


def test_higher_is_better():
  search = made_up(64)
  trials = [
    t._replace(measurements=t.measurements | {'acc': 1 - t.measurements[ERROR]})
    for t in search.trials
  ]
  task = Task('acc', 0.9, True)
  found = points(readable(search._replace(trials=trials), task), task)
  assert [p.kind for p in found[:3]] == ['reached', 'feasible', 'best']
  assert task.text() == 'acc > 0.9'


def test_points_are_judged_as_in_the_table():
  search = made_up(64)._replace(early_stopping=True)
  search = search._replace(
    trials=[search.trials[2]._replace(number=1), search.trials[0]]
  )
  search.trials[1] = search.trials[1]._replace(number=2)
  found = points(readable(search, TASK), TASK)
  assert [point.kind for point in found] == ['best', 'feasible']
  ((row,),) = (w.rows for w in judged([search], TASK))
  assert (row.trial, row.reached) == (1, 1)


def test_budgets():
  searches = [readable(made_up(size), TASK) for size in SIZES]
  for per_step in (True, False):
    found = budgets(searches, per_step)
    assert len(found) == 5
    cost = [1 if per_step else size for size in SIZES]
    pairs = list(zip(searches, cost, strict=True))
    firsts = [s.trials[2].measurements['step'][0] * c for s, c in pairs]
    lasts = [s.trials[0].measurements['step'][-1] * c for s, c in pairs]
    assert max(firsts) <= found[0] < 1.1 * max(firsts)
    assert max(lasts) <= found[-1] < 1.1 * max(lasts)
  assert budgets([], True) == []


def test_axes_of_what_the_space_does_not_name():
  search = made_up(64)
  values = itertools.count(1)
  trials = [
    t._replace(parameters={'odd': 10.0 ** next(values), 'same': 1.0})
    for t in search.trials
  ]
  found = axes_of(search._replace(space={}, trials=trials))
  assert found == {'odd': Parameter('log', (10.0, 1e5))}


@pytest.mark.parametrize(
  ('parameter', 'labels'),
  [
    (Parameter('log', (1e-3, 10.0)), ['0.001', '0.01', '0.1', '1', '10']),
    (Parameter('linear', (0.0, 1.0)), ['0', '0.2', '0.4', '0.6', '0.8', '1']),
    (Parameter('integer', (1, 3)), ['1', '2', '3']),
    (Parameter('reverse_log', (0.9, 0.99)), ['0.9', '0.95', '0.98', '0.99']),
  ],
)  # fmt: skip
def test_parameter_ticks(parameter, labels):
  places, found = parameter_ticks(parameter)
  assert found == labels
  assert places == sorted(places)


def changed(search, **changes):
  return search._replace(
    trials=[trial._replace(**changes) for trial in search.trials]
  )


def measured(search, change):
  """The search with another dictionary of measurements in each trial."""
  return search._replace(
    trials=[
      t._replace(measurements=change(dict(t.measurements)))
      for t in search.trials
    ]
  )


def without(*keys):
  return lambda columns: {k: v for k, v in columns.items() if k not in keys}


def filled(value):
  return lambda columns: columns | {ERROR: np.full(2, value)}


ODD = {
  'no trial': made_up(64)._replace(trials=[]),
  'one trial': made_up(64)._replace(trials=made_up(64).trials[2:3]),
  'all diverged': changed(made_up(64), status=INFEASIBLE),
  'all diverged at once': changed(
    made_up(64), status=INFEASIBLE, measurements={}
  ),
  'none finished': changed(made_up(64), status=INCOMPLETE),
  'censored': made_up(64, reach=False),
  'nan': measured(made_up(64), filled(math.nan)),
  'inf': measured(made_up(64), filled(math.inf)),
  '-inf': measured(made_up(64), filled(-math.inf)),
  'huge': measured(made_up(64), filled(1e300)),
  'large': measured(made_up(64), filled(1e29)),
  'zero': measured(made_up(64), filled(0.0)),
  'no seconds': measured(made_up(64), without('seconds')),
  'no metric': measured(made_up(64), without(ERROR)),
  'step 0': measured(made_up(64), lambda c: c | {'step': np.array([0, 9])}),
  'metric here and there': made_up(64)._replace(
    trials=[
      *made_up(64).trials[:3],
      *measured(made_up(64), without(ERROR)).trials[3:],
    ]
  ),
  'no parameters': changed(made_up(64), parameters={})._replace(space={}),
  'odd parameters': changed(
    made_up(64), parameters={'learning_rate.base': 0.0, 'x': -1.0, 'y': 1e300}
  ),
  'no momentum': made_up(64, 'sgd'),
}


@pytest.mark.parametrize('job', ['search', 'study'])
@pytest.mark.parametrize('name', ODD)
def test_odd_trials(tmp_path, name, job):
  summary = SUMMARY | {'job': job}
  page_of(write_job(tmp_path / 's', [ODD[name]], summary))


@pytest.mark.parametrize('goal', [None, 0.1, math.nan, 'x'])
@pytest.mark.parametrize('job', ['search', 'study'])
def test_goals(tmp_path, goal, job):
  summary = SUMMARY | {'job': job, 'goal': goal}
  _, page = page_of(write_job(tmp_path / 's', [made_up(64)], summary))
  if goal != 0.1:
    assert 'Steps to the goal' not in titles(page)
    assert '0.05' in words(page)


def test_only_diverged_and_censored_sizes(tmp_path):
  searches = [made_up(16, reach=False), ODD['all diverged']]
  _, page = page_of(write_job(tmp_path / 's', searches))
  assert 'Best learning rate' not in titles(page)
  assert 'nothing to draw yet' in words(page)
  assert 'goal not reached' in words(page)


@pytest.mark.parametrize('summary', [None, SUMMARY])
def test_job_that_has_just_begun(tmp_path, summary):
  _, page = page_of(write_job(tmp_path / 's', [], summary, None))
  assert 'no trials yet' in words(page)
  (tmp_path / 's' / 'trials' / 'mnist').mkdir()
  _, page = page_of(tmp_path / 's')
  assert 'no trials yet' in words(page)


def test_job_half_written(tmp_path):
  job = write_job(tmp_path / 's', made_up_study(), None)
  _, page = page_of(job)
  # Nobody has said what the goal is.
  assert f'best {ERROR}' in words(page)
  assert 'unfinished' in words(page)
  trial = job / 'trials' / 'mnist' / 'cnn' / 'nesterov_momentum' / '16' / '1'
  assert (trial / 'metadata.json').exists()
  (trial / 'metadata.json').write_text('{"steps"')
  _, page = page_of(job)
  assert 'The trials could not be read' in words(page)


def test_goal_of_the_config_before_there_is_a_summary(tmp_path):
  config = CONFIG | {'target': {'metric': 'accuracy', 'value': 0.9}}
  job = write_job(tmp_path / 's', [made_up(64)], None, config)
  _, page = page_of(job)
  assert f'{ERROR} < 0.1' in words(page)
  # Nothing called so was measured.
  for broken in ({'metric': 'speed', 'value': 1}, {'metric': 'loss'}, 3):
    config = CONFIG | {'target': broken}
    (job / 'config.json').write_text(json.dumps(config))
    assert f'best {ERROR}' in words(page_of(job)[1])


def test_names_are_escaped(tmp_path):
  evil = '<b>&"$x_1$'
  search = made_up(64)._replace(dataset=evil, model=evil, optimizer=evil)
  search = search._replace(
    space={evil: RATE},
    trials=[t._replace(parameters={evil: 9.9}) for t in search.trials],
  )  # fmt: skip
  search = measured(search, lambda columns: columns | {evil: columns[ERROR]})
  summary = SUMMARY | {'metric': evil, 'status': evil, 'seconds': evil}
  for job in ('search', 'study'):
    path = tmp_path / f'{job}<i>&'
    write_job(path, [search], summary | {'job': job}, {evil: evil})
    _, page = page_of(path)
    assert f'{evil} near its high end' in words(page)


def test_same_study_same_bytes(tmp_path):
  job = write_job(tmp_path / 's', made_up_study())
  assert page_of(job)[0] == page_of(job)[0]


def test_old_page_survives_a_failure(tmp_path, monkeypatch):
  job = write_job(tmp_path / 's', [made_up(64)])
  before = 'an older page'
  (job / 'report.html').write_text(before)

  def fail(*_):
    raise OSError('disk full')

  monkeypatch.setattr(os, 'replace', fail)
  with pytest.raises(OSError, match='disk full'):
    write_report(job)
  assert (job / 'report.html').read_text(encoding='utf-8') == before
  assert not [path for path in job.iterdir() if path.name.startswith('.')]


def test_command_of_an_archive(tmp_path, capsys):
  archive = write_tar(tmp_path / 'study.tar.xz', made_up_study())
  output = tmp_path / 'page.html'
  flags = [f'--metric={ERROR}', '--goal=0.1']
  assert main([str(archive), *flags, f'--output={output}']) == 0
  assert capsys.readouterr().out.strip() == str(output)
  text = output.read_text(encoding='utf-8')
  page = Page(text)
  check(text, page)
  assert titles(page)[:5] == CURVES
  assert 'study.tar.xz' in words(page)
  assert main([str(archive), *flags]) == 0
  assert (tmp_path / 'report.html').read_text(encoding='utf-8') == text


def test_command_of_a_directory(tmp_path, capsys):
  job = write_job(tmp_path / 's', made_up_study())
  assert main([str(job)]) == 0
  flags = [f'--metric={ERROR}', '--goal=0.1', '--pattern=*/sgd/*']
  assert main([str(job / 'trials'), *flags]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[1] == str(job / 'trials' / 'report.html')
  text = (job / 'trials' / 'report.html').read_text(encoding='utf-8')
  assert 'Learning rates of sgd' in text
  assert 'nesterov' not in text


@pytest.mark.parametrize('flags', [[], [f'--metric={ERROR}']])
def test_command_without_trials(tmp_path, capsys, flags):
  assert main([str(tmp_path), *flags]) == 1
  captured = capsys.readouterr()
  assert captured.out == ''
  assert captured.err.count('\n') == 1


def test_archive_of_several_models(tmp_path):
  searches = made_up_study()
  searches += [s._replace(model='mlp') for s in searches]
  archive = write_tar(tmp_path / 'study.tar.xz', searches)
  path = write_study_report(archive, ERROR, 0.1)
  page = Page(path.read_text(encoding='utf-8'))
  check(path.read_text(encoding='utf-8'), page)
  assert titles(page).count('Steps to the goal') == 2


def test_size_label_of_an_odd_size():
  assert size_label(1000) == '1000'
