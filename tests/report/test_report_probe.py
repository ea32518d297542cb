"""The page of a probe, and its summary in words."""

import itertools
import json
import math
import os
import re

import numpy as np
import pytest

from adabatch.config.files import finite
from adabatch.report import write_report
from adabatch.report.charts import keys_of
from adabatch.report.pictures import COLOR
from adabatch.report.probe_figures import (
  agreement_figure,
  cost_figure,
  cost_range,
  growth_figure,
  rows_of,
  size_range,
)
from adabatch.report.probe_points import estimates, ramp_lines
from adabatch.report.summary import describe
from tests import commands
from tests.report.made_up_probe import (
  EPSILON,
  FACTORS,
  made_up_point,
  made_up_probe,
  three,
  write_probe,
)
from tests.report.test_report import Page
from tests.report.test_report_study import check, page_of, titles, words


def page_words(path, found):
  """The page's titles and all its words, in one line."""
  _, page = page_of(write_probe(path, found))
  return titles(page), re.sub(r'\s+', ' ', words(page))


def lines_of(axes, color, **look):
  """What is drawn in a colour as a page's, with such getters."""
  return [
    line
    for line in axes.get_lines()
    if line.get_color() == COLOR[color]
    and len(line.get_xdata())
    and all(getattr(line, f'get_{k}')() == v for k, v in look.items())
  ]


def marks(axes, color, marker):
  """(x, y) of all marks of a kind."""
  return [
    (float(x), float(y))
    for line in lines_of(axes, color, marker=marker)
    for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
  ]


def test_page_of_one_checkpoint(tmp_path):
  point = made_up_point(8_000, diverged=(16,))
  found = made_up_probe([point])
  names, said = page_words(tmp_path / 'p', found)
  assert names == ['What a batch size costs']
  assert said.index(point['verdict'][1:]) < said.index('unpaired error')
  row = point['table'][5]
  critical_size = point['critical']
  for expected in (
    'completed',
    'probe · validation · intervals of 95 %',
    'After 8,000 examples (update 500, epoch 8)',
    f'{critical_size["low"]:.0f} to {critical_size["high"]:.0f}',
    'Diverged: batch size 256.',
    f'128 {row["difference"]:+.4f} ± {row["half_width"]:.4f} yes',
    '16 compared with – ',
    '256 diverged yes – – 16 4 3',
    'Cost: 14 branches of 600 examples, 8,400 examples in all, 1.1 times',
    '5,600 examples evaluated; 7.5 s.',
    '16, then 32 from 8,000 examples on',
    "--config.controller.step_table.table='0:16 8000:32'",
    'epsilon',
  ):
    assert expected in said, expected
  assert 'OLMo' not in said
  assert 'None' not in said


def test_page_of_several_checkpoints(tmp_path):
  found = three()
  names, said = page_words(tmp_path / 'p', found)
  assert names == [
    'Critical size along the run',
    'Beside the cheap estimates',
    *['What a batch size costs'] * 3,
  ]
  grown = found['growth']
  for expected in (
    f'to the power {grown["power"]:.2f} ({grown["power_low"]:.2f} to',
    'from 2 checkpoints. Left out: 1 checkpoint where',
    'none up to 256 after 40,000 examples',
    'noise scale, Adam',
    '200 (67 to 600)',
    'Diverged: batch size 256.',
    *(one['verdict'][1:] for one in found['points']),
  ):
    assert expected in said, expected


def test_ramp_to_copy():
  lines = dict(ramp_lines(three()))
  table = '0:16 2000:32 8000:64 40000:128'
  assert list(lines.values()) == [
    '--config.controller.name=step_table '
    f"--config.controller.step_table.table='{table}' "
    '--config.learning_rate.scaling=linear '
    '--config.learning_rate.reference_batch_size=16',
    "--step-batch-size-schedule '0:16 256000:32 1024000:64 5120000:128'",
    'BatchSizeSchedulerCallback(batch_sizes=[2048, 4096, 8192, 16384], '
    'schedule=[Duration.tokens(0), Duration.tokens(256000), '
    'Duration.tokens(1024000), Duration.tokens(5120000)])',
    '[{"examples": 0, "batch_size": 16}, {"examples": 2000, "batch_size": 32}, '
    '{"examples": 8000, "batch_size": 64}, '
    '{"examples": 40000, "batch_size": 128}]',
  ]


def test_costs_are_drawn_where_they_are():
  point = made_up_point(8_000)
  upper, lower = cost_figure(point, EPSILON, COLOR).axes
  rows = rows_of(point)
  inside = [(r.batch_size, r.difference) for r in rows]
  np.testing.assert_allclose(marks(upper, 's1', 'o'), inside)
  bars = [line for line in lines_of(upper, 's1') if len(line.get_xdata()) == 2]
  expected = [
    [row.difference - row.half, row.difference + row.half]
    for row in rows
    if row.half
  ]
  np.testing.assert_allclose([bar.get_ydata() for bar in bars], expected)
  dashes = lines_of(upper, 'ink', marker='None')
  assert [set(line.get_ydata()) for line in dashes] == [{EPSILON}]
  at = point['critical']
  for axes in (upper, lower):
    (line,) = lines_of(axes, 's2', marker='None')[:1]
    (band,) = axes.patches
    if axes is upper:
      assert set(line.get_xdata()) == {at['batch_size']}
    ends = band.get_x(), band.get_x() + band.get_width()
    np.testing.assert_allclose(ends, (at['low'], at['high']))
  assert upper.get_xlim() == lower.get_xlim()
  noise = {'s3': 200.0, 's4': 90.0, 's5': 800.0}
  for color, value in noise.items():
    assert [x for x, _ in marks(lower, color, 'o')] == [value]
  ends = [x for x, _ in marks(lower, 's4', '|')]
  np.testing.assert_allclose(ends, [90 / 1.6, 90 * 1.6])


def test_what_leaves_the_picture_of_costs_is_an_arrow():
  noise = (('simple', 5e6, 2.0), ('adam', 0.5, 1.1))
  point = made_up_point(8_000, limit=30.0, noise=noise, diverged=(8,))
  figure = cost_figure(point, EPSILON, COLOR)
  upper, lower = figure.axes
  top = upper.get_ylim()[1]
  assert marks(upper, 's1', '^') == [(256.0, top)]
  assert marks(upper, 'bad', 'x') == [(128.0, top)]
  low, high = lower.get_xlim()
  assert [x for x, _ in marks(lower, 's3', '>')] == [high]
  assert [x for x, _ in marks(lower, 's4', '<')] == [low]
  assert not marks(lower, 's3', 'o') + marks(lower, 's4', 'o')
  keys = {key.name: key.look for key in keys_of(figure)}
  assert keys['beyond the picture'] == 'arrow'
  assert keys['diverged'] == 'cross'


def test_an_open_interval_is_an_arrow():
  noise = (('simple', 200.0, math.inf),)
  point = made_up_point(8_000, limit=1e6, noise=noise)
  upper, lower = cost_figure(point, EPSILON, COLOR).axes
  high = lower.get_xlim()[1]
  for color in ('s2', 's3', 's5'):
    assert [x for x, _ in marks(lower, color, '>')] == [high]
  (band,) = upper.patches
  assert band.get_x() == point['critical']['low']
  assert band.get_x() + band.get_width() == pytest.approx(high)
  texts = {e.name: e.text for e in estimates(point)}
  assert texts['critical size'].startswith('none up to 256')
  assert texts['noise scale'] == '200 (67 or more)'


@pytest.mark.parametrize(
  ('said', 'text'),
  [
    ({'value': 0.0, 'low': 0.0, 'high': 0.0}, '0: no noise'),
    ({'value': None, 'low': 12.0, 'high': None}, 'at least 12'),
    ({'value': None, 'low': None, 'high': None}, 'not known'),
    ({'value': 50.0, 'low': None, 'high': None}, '50'),
    ({'value': 50.0, 'low': 40.0, 'high': 70.0}, '50 (40 to 70)'),
  ],
)
def test_words_of_an_estimate(said, text):
  point = made_up_point(8_000, noise=())
  point['noise'] = {'simple': said | {'trace_covariance': 1.0}}
  assert estimates(point)[1].text == text
  cost_figure(point, EPSILON, COLOR).draw_without_rendering()


def test_growth_is_drawn_where_it_is():
  found = three()
  figure = growth_figure(found, COLOR)
  (axes,) = figure.axes
  sizes = [p['critical']['batch_size'] for p in found['points'][:2]]
  points = list(zip((2_000.0, 8_000.0), sizes, strict=True))
  np.testing.assert_allclose(marks(axes, 's2', 'o'), points)
  # Where no size was too large: from the least it can be, open above.
  assert marks(axes, 's2', '_') == [(40_000.0, 256.0)]
  assert marks(axes, 's2', '^') == [(40_000.0, axes.get_ylim()[1])]
  (law,) = (
    line for line in lines_of(axes, 's2') if len(line.get_xdata()) == 60
  )
  grown, x = found['growth'], law.get_xdata()
  np.testing.assert_allclose(
    law.get_ydata(), grown['scale'] * x ** grown['power']
  )
  (band,) = axes.collections
  ends = band.get_paths()[0].vertices[:, 1]
  assert ends.min() < law.get_ydata().min()
  assert ends.max() > law.get_ydata().max()
  (steps,) = lines_of(axes, 's1')
  assert steps.get_drawstyle() == 'steps-post'
  assert list(steps.get_xdata()[1:4]) == [2_000, 8_000, 40_000]
  assert list(steps.get_ydata()) == [16, 32, 64, 128, 128]
  keys = {key.name: key.look for key in keys_of(figure)}
  assert keys['open above'] == 'arrow'
  assert keys['power law'] == 'dashed'


def test_estimates_side_by_side():
  found = three()
  (axes,) = agreement_figure(found, COLOR).axes
  for color, value in {'s3': 200.0, 's4': 90.0, 's5': 800.0}.items():
    drawn = marks(axes, color, 'o')
    assert [y for _, y in drawn] == [value] * 3
    at = [x for x, _ in drawn]
    np.testing.assert_allclose(at, (2_000, 8_000, 40_000), rtol=0.2)
  for point in found['points']:
    point |= {'noise': {}, 'norm_test': None}
  assert agreement_figure(found, COLOR) is None


def test_text_in_pictures_does_not_overlap():
  noise = (('simple', 5e5, 2.0), ('adam', 9e4, 1.1))
  figures = [
    cost_figure(made_up_point(8_000, **more), EPSILON, COLOR)
    for more in ({}, {'noise': noise}, {'factors': (1,)})
  ]
  figures += [growth_figure(three(), COLOR), agreement_figure(three(), COLOR)]
  for figure in figures:
    figure.draw_without_rendering()
    texts = [text for axes in figure.axes for text in axes.texts]
    for axes in figure.axes:
      texts += [axes.xaxis.label, axes.yaxis.label]
      texts += axes.get_xticklabels() + axes.get_yticklabels()
    texts = [t for t in texts if t.get_text() and t.get_visible()]
    assert all(text.get_fontsize() >= 8 for text in texts)
    boxes = [text.get_window_extent() for text in texts]
    for (a, one), (b, other) in itertools.combinations(
      zip(boxes, texts, strict=True), 2
    ):
      assert not a.overlaps(b), (one, other)
    for box, text in zip(boxes, texts, strict=True):
      assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
      assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text


def without_reference(point):
  """Every branch diverged, that of factor 1 among them."""
  gone = dict.fromkeys(('loss', 'difference', 'degrees', 'unpaired_error'))
  table = [row | gone | {'half_width': 0.0} for row in point['table']]
  unknown = {'batch_size': None, 'low': None, 'high': None}
  return point | {'table': table, 'critical': point['critical'] | unknown}


NOTHING = (('simple', None, 1.0), ('adam', None, 1.0))
OTHERS = (0.25, 0.5, 2, 4, 8, 16)
ODD = {
  'one factor': made_up_point(8_000, factors=(1,)),
  'one repeat': made_up_point(8_000, repeats=1),
  'one of each': made_up_point(0, factors=(1,), repeats=1, noise=NOTHING),
  'all others diverged': made_up_point(8_000, diverged=OTHERS),
  'all diverged': without_reference(made_up_point(8_000)),
  'no noise scale': made_up_point(8_000, noise=NOTHING),
  'no noise': made_up_point(8_000, noise=(('simple', 1e-9, 1.0),)),
  'open noise': made_up_point(8_000, noise=(('simple', 50.0, math.inf),)),
  'no spread': made_up_point(8_000, spread=0.0),
  'at the start': made_up_point(0),
  'a batch of one': made_up_point(8_000, 1, 3.0, factors=(1, 2, 4)),
  'large': made_up_point(10**12, 2**22, 1e7),
}


@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize('name', ODD)
def test_odd_checkpoints(tmp_path, name, count):
  points = [ODD[name], made_up_point(80_000, seed=5)][:count]
  found = json.loads(json.dumps(finite(made_up_probe(points, tokens=64))))
  names, said = page_words(tmp_path / 'p', found)
  assert names.count('What a batch size costs') == count
  assert not re.search(r'\b(nan|inf|None|null)\b', said.replace('None: ', ''))
  assert found['points'][0]['verdict'] in describe(found)


def test_where_even_the_reference_diverged_nothing_is_known():
  point = without_reference(made_up_point(8_000, noise=()))
  (unknown,) = estimates(point)
  assert unknown.text == 'not known'
  upper, lower = cost_figure(point, EPSILON, COLOR).axes
  assert not lines_of(lower, 's2')
  assert not list(upper.patches)
  assert len(marks(upper, 'bad', 'x')) == len(FACTORS)


@pytest.mark.parametrize(
  ('status', 'text'),
  [
    ('running', 'The probe was going on'),
    ('preempted', 'The probe was stopped before its end'),
  ],
)
@pytest.mark.parametrize('count', [0, 1])
def test_page_of_what_is_not_finished(tmp_path, status, text, count):
  points = [made_up_point(8_000)][:count]
  found = made_up_probe(points, status)
  _, said = page_words(tmp_path / 'p', found)
  assert status in said
  assert text in said
  assert ('no checkpoint is through yet' in said) == (count == 0)
  assert describe(found).startswith(f'{status}: ')


def test_rates_that_were_chosen_are_said(tmp_path):
  point = made_up_point(8_000)
  point['table'][3]['multiplier'] = 0.7071
  for way, there in (('tune', True), ('rule', False)):
    found = made_up_probe([point], learning_rate=way)
    _, said = page_words(tmp_path / way, found)
    assert ('tuned factor' in said) == there
    assert ('0.7071' in said) == there


def test_summary_in_words():
  found = three()
  first, *points, ramp_line = describe(found).splitlines()
  assert first == (
    'completed: 3 checkpoints, 42 branches over 25,200 examples, 16,800 '
    'evaluated, 22.5 s; in /runs/x-probe'
  )
  verdicts = [point['verdict'] for point in found['points']]
  at = (125, 500, 2500)
  assert points == [
    f'update {update:,}, batch size 16: {said}'
    for update, said in zip(at, verdicts, strict=True)
  ]
  assert ramp_line.startswith('ramp: --config.controller.name=step_table ')
  flat = made_up_probe([made_up_point(8_000, limit=17.0)])
  assert 'ramp' not in describe(flat)


def test_a_ramp_that_begins_where_the_probe_ends_is_said():
  late = made_up_probe([made_up_point(40_000)])
  assert 'it grows from the last checkpoint on' in describe(late)
  assert 'from the last checkpoint on' not in describe(three())


def test_probe_that_cannot_be_read(tmp_path):
  (tmp_path / 'probe.json').write_text('{"points"')
  with pytest.raises(ValueError, match=r'probe\.json is not what a probe'):
    write_report(tmp_path)


def test_range_of_costs_without_errors():
  rows = rows_of(without_reference(made_up_point(8_000)))
  assert cost_range(rows, EPSILON) == (-EPSILON, 2 * EPSILON)
  point = made_up_point(8_000)
  assert size_range([point], []) == (4, 256)


def test_the_page_lies_beside_the_run(tmp_path):
  """The command says where it is, and leaves the run as it was."""
  run = tmp_path / 'run'
  config = ['--config=configs/digits_mlp.py', f'--workdir={run}']
  config += ['--config.max_updates=20']
  config += ['--config.controller.name=constant']
  environment = os.environ | {'XLA_FLAGS': commands.QUICKLY}
  result = commands.run(['launch.py', *config], environment)
  assert result.returncode == 0, result.stderr
  before = {p: p.stat().st_mtime_ns for p in run.rglob('*')}
  more = ['--job=probe', '--config.probe.factors=(1.0, 2.0)']
  more += ['--config.probe.repeats=1', '--config.probe.examples=64']
  result = commands.run(['launch.py', *config, *more], environment)
  assert result.returncode == 0, result.stderr
  page = tmp_path / 'run-probe' / 'report.html'
  assert result.stdout.splitlines()[-1] == f'report: {page}'
  assert result.stdout.startswith('completed: 1 checkpoint, 2 branches over')
  text = page.read_text()
  check(text, Page(text))
  assert {p: p.stat().st_mtime_ns for p in run.rglob('*')} == before
