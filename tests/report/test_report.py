import html.parser
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from adabatch import report
from adabatch.report import lines, read_metrics, records, scales, write_report
from adabatch.report.__main__ import main
from adabatch.report.panels import train_panels
from adabatch.report.pictures import CSS_COLORS
from adabatch.report.records import AXES

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CONFIG = {
  'seed': 0,
  'controller': {'name': 'adadamp', 'max_batch_size': 4096},
  'data': {'name': 'mnist'},
  'empty': {},
}


def train_record(update, examples, batch_size, loss, **more):
  return {
    'kind': 'train',
    'update': update,
    'examples': examples,
    'epoch': examples / 60_000,
    'seconds': 0.01 * update,
    'loss': loss,
    'batch_size': batch_size,
    'nominal_batch_size': batch_size * 0.97,
    'damping': 1.0,
    'learning_rate': 0.1,
    'examples_per_second': 100.0 * batch_size,
  } | more


def eval_record(update, examples, split='test', **metrics):
  return {
    'kind': 'eval',
    'update': update,
    'examples': examples,
    'epoch': examples / 60_000,
    'seconds': 0.01 * update,
    'split': split,
    **metrics,
  }


def growing_run(updates, evals=10, **more):
  """A run whose batch size grows 64-fold while its loss falls."""
  rng = np.random.default_rng(0)
  examples, records = 0, []
  for update in range(1, updates + 1):
    done = update / updates
    batch_size = int(64 * 64**done)
    examples += batch_size
    loss = 2.3 * math.exp(-3 * done) * (1 + rng.normal() / batch_size**0.5)
    records.append(train_record(update, examples, batch_size, loss, **more))
    if update % max(updates // evals, 1) == 0:
      for split in ('train', 'test'):
        metrics = {'loss': loss, 'accuracy': 0.9 * done}
        records.append(eval_record(update, examples, split, **metrics))
  return records


def write_run(path, records, summary=None, config=CONFIG, tail=''):
  path.mkdir(exist_ok=True)
  text = ''.join(json.dumps(record) + '\n' for record in records)
  (path / 'metrics.jsonl').write_text(text + tail)
  if summary is not None:
    (path / 'summary.json').write_text(json.dumps(summary))
  if config is not None:
    (path / 'config.json').write_text(json.dumps(config))
  return path


SUMMARY = {
  'status': 'target_reached',
  'updates': 300,
  'examples': 291_000,
  'epochs': 4.85,
  'seconds': 754.0,
  'compilations': 7,
  'compile_seconds': 12.5,
  'stall_seconds': 0.5,
  'final': {'test': {'loss': 0.4, 'accuracy': 0.8881}},
  'best': {'test': {'loss': 0.3, 'accuracy': 0.8912}},
  'target': {
    'metric': 'accuracy',
    'value': 0.88,
    'reached': True,
    'updates': 280,
    'examples': 250_000,
    'tokens': 32_000_000,
    'seconds': 700.0,
  },
}


class Page(html.parser.HTMLParser):
  """What the tests ask of a page; also checks that its tags are balanced."""

  VOID = {'meta', 'input'}

  def __init__(self, text):
    super().__init__()
    self.ids, self.tags, self.open, self.text = [], [], [], []
    self.groups = {}
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attributes):
    self.handle_startendtag(tag, attributes)
    if tag not in self.VOID:
      self.open.append((tag, dict(attributes).get('class') or ''))

  def handle_startendtag(self, tag, attributes):
    attributes = dict(attributes)
    self.tags.append((tag, attributes))
    if 'id' in attributes:
      self.ids.append(attributes['id'])
    if tag == 'svg':
      groups = (c for _, c in self.open if c.startswith('axis'))
      group = next(groups, 'axis by-all')
      label = attributes['aria-label']
      self.groups.setdefault(group[len('axis by-') :], []).append(label)

  def handle_endtag(self, tag):
    assert self.open.pop()[0] == tag

  def handle_data(self, data):
    self.text.append(data)


def page_of(workdir):
  path = write_report(workdir)
  assert path == workdir / 'report.html'
  text = path.read_text(encoding='utf-8')
  return text, Page(text)


def titles(page, axis):
  return [label.split(' against ')[0] for label in page.groups.get(axis, [])]


BASIC = [
  'Batch size',
  'Effective learning rate',
  'Training loss',
]
EVALS = ['Evaluation loss', 'Evaluation accuracy']


def test_every_picture_for_every_axis(tmp_path):
  records = growing_run(300, gradient_noise_scale=100.0)
  text, page = page_of(write_run(tmp_path / 'r', records, SUMMARY))
  for axis in AXES:
    assert titles(page, axis) == [*BASIC, 'Gradient noise scale', *EVALS]
  checked = [a['id'] for _, a in page.tags if 'checked' in a]
  assert checked == ['x-examples']
  words = ' '.join(page.text)
  for expected in (
    'target reached',
    '0.8912',
    'final 0.8881',
    '291,000',
    '12 min 34 s',
    'B_max = 4,096',
    'reached after 280 updates, 250,000 examples, 32,000,000 tokens',
    'controller.max_batch_size',
  ):
    assert expected in words


def test_what_is_set_for_an_update_is_drawn_in_steps():
  """A line from one value to the next would show rates that never were."""
  panels = train_panels(growing_run(5), 512.0)
  stepped = {panel.title: all(x.steps for x in panel.lines) for panel in panels}
  assert stepped == {
    'Batch size': True,
    'Effective learning rate': True,
    'Training loss': False,
  }


def test_a_cut_last_batch_is_not_drawn_back_over_those_before_it():
  records = [
    train_record(10, 640, 64, 1.0),
    train_record(20, 1804, 12, 0.9, learning_rate=0.01),
  ]
  sizes, rates, _ = train_panels(records, 512.0)
  np.testing.assert_array_equal(sizes.lines[1].y, [64, 128])
  np.testing.assert_array_equal(rates.lines[0].y, [0.1, np.nan])


def test_no_target_is_not_a_missed_one(tmp_path):
  summary = SUMMARY | {'target': {'metric': 'accuracy', 'value': None}}
  _, page = page_of(write_run(tmp_path / 'r', growing_run(9), summary))
  assert 'Target' not in ' '.join(page.text)


def test_no_noise_panel_without_a_noise_controller(tmp_path):
  _, page = page_of(write_run(tmp_path / 'r', growing_run(30)))
  assert titles(page, 'updates') == [*BASIC, *EVALS]


def test_page_loads_nothing(tmp_path):
  text, page = page_of(write_run(tmp_path / 'r', growing_run(300), SUMMARY))
  rest = re.sub(r'xmlns(:\w+)?="[^"]*"', '', text)
  assert 'http:' not in rest
  assert 'https:' not in rest
  names = {tag for tag, _ in page.tags}
  assert not names & {'script', 'link', 'img', 'image', 'iframe', 'metadata'}
  references = re.findall(r'(?:href="|src="|url\()([^")]*)', text)
  assert references
  assert all(r.startswith('#') for r in references)
  assert '@import' not in text


def test_ids_are_unique_and_references_resolve(tmp_path):
  text, page = page_of(write_run(tmp_path / 'r', growing_run(300), SUMMARY))
  assert len(page.ids) == len(set(page.ids))
  references = set(re.findall(r'(?:href="#|url\(#)([^")]*)', text))
  assert references <= set(page.ids)


def test_colors_are_the_pages_own(tmp_path):
  text, _ = page_of(write_run(tmp_path / 'r', growing_run(300), SUMMARY))
  pictures = ''.join(re.findall(r'<svg.*?</svg>', text, re.DOTALL))
  assert set(re.findall(r'(?:stroke|fill): ([^;"]*)', pictures)) <= {
    'none',
    *CSS_COLORS.values(),
  }


def test_same_run_same_bytes(tmp_path):
  run = write_run(tmp_path / 'r', growing_run(100), SUMMARY)
  assert page_of(run)[0] == page_of(run)[0]


def test_values_are_escaped(tmp_path):
  evil = '<script>alert("$x_1$")</script>&'
  records = growing_run(5)
  records.append(
    eval_record(5, 999, evil, **{'loss': 1.0, evil: 2.0, 'remark': evil})
  )
  summary = {
    'status': evil,
    'best': {evil: {evil: evil}},
    'target': {'metric': evil, 'value': evil},
  }
  config = {evil: evil, 'data': {'name': evil}}
  text, page = page_of(write_run(tmp_path / 'a&b<i>', records, summary, config))
  assert not {'script', 'i'} & {tag for tag, _ in page.tags}
  assert evil in ' '.join(page.text)


def test_torn_last_line(tmp_path):
  records = growing_run(20, evals=2)
  run = write_run(tmp_path / 'r', records, tail='{"kind": "train", "upd')
  train, evals = read_metrics(run)
  assert (len(train), len(evals)) == (20, 4)
  text, page = page_of(run)
  assert titles(page, 'seconds') == [*BASIC, *EVALS]
  assert 'unfinished' in ' '.join(page.text)


def test_line_torn_within_a_character(tmp_path):
  run = write_run(tmp_path / 'r', growing_run(3))
  with open(run / 'metrics.jsonl', 'ab') as file:
    file.write('{"split": "ü'.encode()[:-1])
  assert len(read_metrics(run)[0]) == 3


def test_unreadable_line_elsewhere_warns(tmp_path):
  run = write_run(tmp_path / 'r', growing_run(3))
  path = run / 'metrics.jsonl'
  path.write_text('{"kind": "tr\n' + path.read_text())
  with pytest.warns(UserWarning, match=r'metrics\.jsonl:1 is not'):
    assert len(read_metrics(run)[0]) == 3


@pytest.mark.parametrize('tail', ['', '{"kind"'])
def test_empty_run(tmp_path, tail):
  run = write_run(tmp_path / 'r', [], config=None, tail=tail)
  assert read_metrics(run) == ([], [])
  _, page = page_of(run)
  assert page.groups == {}
  words = ' '.join(page.text)
  assert 'nothing to draw yet' in words
  assert 'unfinished' in words


@pytest.mark.parametrize('value', [0.0, 1.5, -2.0, None, math.nan, 1e300])
def test_one_train_line(tmp_path, value):
  record = train_record(1, 64, 64, value)
  _, page = page_of(write_run(tmp_path / 'r', [record]))
  drawn = BASIC if value is not None and abs(value) < 1e30 else BASIC[:2]
  assert titles(page, 'examples') == drawn


def test_line_with_only_its_kind(tmp_path):
  page_of(write_run(tmp_path / 'r', [{'kind': 'train'}, {'kind': 'eval'}]))


def test_update_zero_only(tmp_path):
  records = [eval_record(0, 0, loss=2.3, accuracy=0.1)]
  _, page = page_of(write_run(tmp_path / 'r', records))
  assert titles(page, 'updates') == EVALS


@pytest.mark.parametrize('bad', [None, math.nan, math.inf, 1e200, 'NaN'])
def test_diverged_run(tmp_path, bad):
  records = growing_run(100)
  for record in records[-20:]:
    record['loss'] = bad
    if record['kind'] == 'train':
      record['nominal_batch_size'] = bad
  summary = {
    'status': 'diverged',
    'best': {'test': {'loss': 0.5, 'accuracy': None}},
    'final': {'test': {'loss': bad, 'accuracy': math.nan}},
    'seconds': bad,
    'updates': 100,
    'target': None,
  }
  text, page = page_of(write_run(tmp_path / 'r', records, summary))
  assert titles(page, 'examples') == [*BASIC, *EVALS]
  words = ' '.join(page.text)
  assert 'values not finite, not drawn' in words
  assert 'first loss that is not finite' in words
  pictures = ''.join(re.findall(r'<svg.*?</svg>', text, re.DOTALL))
  assert not re.search(r'\bnan\b|\binf\b', pictures, re.IGNORECASE)


def test_pictures_share_their_x_axis(tmp_path):
  records = growing_run(100)
  for record in records[-60:]:
    record['loss'] = None
  text, _ = page_of(write_run(tmp_path / 'r', records))
  for axis in AXES:
    part = text.split(f'by-{axis}">')[1].split('</section>')[0]
    pictures = re.findall(r'<svg.*?</svg>', part, re.DOTALL)[:5]
    ticks = {
      tuple(re.findall('text-anchor: middle[^>]*>([^<]*)<', picture))
      for picture in pictures
    }
    assert len(pictures) == 5
    assert len(ticks) == 1


def test_damaged_summary_and_config(tmp_path):
  run = write_run(tmp_path / 'r', growing_run(5), config=None)
  (run / 'summary.json').write_text('{"status": "comp')
  (run / 'config.json').write_text('[1, 2]')
  assert 'unfinished' in page_of(run)[0]


def test_resumed_run_does_not_show_its_old_summary(tmp_path):
  summary = {'status': 'preempted', 'updates': 50, 'best': {'test': {'x': 7}}}
  _, page = page_of(write_run(tmp_path / 'r', growing_run(100), summary))
  words = ' '.join(page.text)
  assert 'resumed after preempted' in words
  assert 'best test accuracy' in words
  assert 'best test x' not in words


def test_long_run_stays_small(tmp_path):
  updates = 60_000
  rng = np.random.default_rng(0)
  noise = rng.normal(size=updates).tolist()
  examples, tail = 0, ''
  for update in range(1, updates + 1):
    batch_size = 64 + update // 100
    examples += batch_size
    wobble = noise[update - 1]
    record = train_record(
      update,
      examples,
      batch_size + update % 7,
      2 + 0.1 * wobble,
      nominal_batch_size=batch_size * (1.5 + 0.1 * wobble),
      learning_rate=0.1 * math.cos(update / 45_000),
      gradient_noise_scale=batch_size * (2 + wobble),
    )
    tail += json.dumps(record) + '\n'
  run = write_run(tmp_path / 'r', [], SUMMARY, tail=tail)
  text, page = page_of(run)
  assert len(titles(page, 'updates')) == 4
  assert len(text.encode()) < 2e6
  longest = max(len(re.findall('L', d)) for d in re.findall(' d="(.*?)"', text))
  # A line of steps has two points for each of its own.
  assert longest <= 2 * lines.MAX_POINTS


def test_normal_run_is_fast(tmp_path):
  run = write_run(tmp_path / 'r', growing_run(1000), SUMMARY)
  start = time.process_time()
  write_report(run)
  assert time.process_time() - start < 3


def test_old_page_survives_a_failure(tmp_path, monkeypatch):
  run = write_run(tmp_path / 'r', growing_run(5))
  before = page_of(run)[0]
  write_run(run, growing_run(9))

  def fail(*_):
    raise OSError('disk full')

  monkeypatch.setattr(os, 'replace', fail)
  with pytest.raises(OSError, match='disk full'):
    write_report(run)
  assert (run / 'report.html').read_text(encoding='utf-8') == before
  assert sorted(p.name for p in run.iterdir()) == [
    'config.json',
    'metrics.jsonl',
    'report.html',
  ]


def test_leaves_matplotlib_as_it_was(tmp_path):
  import matplotlib

  before = dict(matplotlib.rcParams)
  page_of(write_run(tmp_path / 'r', growing_run(5)))
  assert dict(matplotlib.rcParams) == before


def slow_thin(x, y, points):
  """M4, one interval of x after the other."""
  bins = points // 4
  edges = np.linspace(x[0], x[-1], bins + 1)
  keep = []
  for i in range(bins):
    inside = (edges[i] <= x) & ((x < edges[i + 1]) | (i == bins - 1))
    index = np.flatnonzero(inside)
    if len(index):
      values = y[index]
      lowest, highest = index[values.argmin()], index[values.argmax()]
      keep += sorted({int(i) for i in (index[0], lowest, highest, index[-1])})
  return x[keep], y[keep]


def test_thin_is_m4():
  rng = np.random.default_rng(0)
  x = np.cumsum(rng.uniform(1, 100, size=5000))
  y = rng.normal(size=5000)
  thin_x, thin_y = lines.thin(x, y, points=400)
  slow_x, slow_y = slow_thin(x, y, points=400)
  np.testing.assert_array_equal(thin_x, slow_x)
  np.testing.assert_array_equal(thin_y, slow_y)
  assert len(thin_x) <= 400


def test_thin_with_one_x_for_all():
  x, y = lines.thin(np.ones(9000), np.arange(9000.0))
  assert y.tolist() == [0, 8999]


def test_smooth_is_evaluated_at_few_records():
  values = np.random.default_rng(0).normal(size=5001)
  values[3000] = np.nan
  smoothed = lines.smooth(values, window=100, points=50)
  index = np.flatnonzero(np.isfinite(smoothed))
  assert len(index) <= 51
  assert index[0] == 0
  assert index[-1] == 5000
  for k in index.tolist():
    half = min(50, k)
    expected = np.nanmean(values[k - half : k + half + 1])
    assert smoothed[k] == pytest.approx(expected, rel=1e-12)


def test_smooth_does_not_lag():
  line = np.linspace(10, 0, 1000)
  inner = slice(0, 950)
  np.testing.assert_allclose(
    lines.smooth(line, window=100)[inner], line[inner], rtol=1e-12
  )


@pytest.mark.parametrize(
  ('values', 'rule', 'log'),
  [
    ([64, 255], scales.ScaleRule(span=4), False),
    ([64, 257], scales.ScaleRule(span=4), True),
    ([-1, 1000], scales.ScaleRule(span=4), False),
    ([0, 0], scales.ScaleRule(span=4, from_zero=True), False),
    # One lucky batch in a thousand does not make a loss logarithmic.
    ([1e-9] + [1.0] * 999, scales.ScaleRule(20, quantile=0.01), False),
    ([1e29] + [1.0] * 999, scales.ScaleRule(20, quantile=0.01), True),
    ([1e-29, 1e29], scales.ScaleRule(4), True),
    ([1, 1 + 1e-10], scales.ScaleRule(4), False),
    ([1, 1 + 1e-8], scales.ScaleRule(4), False),
  ],
)
def test_choose_scale(values, rule, log):
  values = np.array(values, float)
  scale = scales.choose_scale(values, rule)
  assert scale.log == log
  assert scale.low < scale.high
  assert values.max() <= scale.high
  assert 2 <= len(scale.ticks) <= 12
  assert len(set(scale.labels)) == len(scale.ticks)
  assert all(scale.low <= tick <= scale.high for tick in scale.ticks)


def test_tick_labels_say_what_the_ticks_are():
  suffix = {'k': 1e3, 'M': 1e6, 'B': 1e9}
  rng = np.random.default_rng(0)
  for _ in range(300):
    start, width = rng.uniform(-1, 3), 10 ** rng.uniform(-8, 10)
    ticks = scales.linear_ticks(start * width, (start + 1) * width)
    for tick, label in zip(ticks, scales.tick_labels(ticks), strict=True):
      size = suffix.get(label[-1], 1)
      text = label[:-1] if size > 1 else label
      assert float(text) * size == pytest.approx(tick, abs=0.01 * width / 4)


def test_command_line(tmp_path, capsys):
  run = write_run(tmp_path / 'r', growing_run(5))
  assert main([str(run)]) == 0
  assert capsys.readouterr().out.strip() == str(run / 'report.html')
  assert main([str(tmp_path)]) == 1
  captured = capsys.readouterr()
  assert captured.out == ''
  assert captured.err.count('\n') == 1
  assert 'metrics.jsonl does not exist' in captured.err


def test_run_picture(tmp_path):
  from PIL import Image

  runs = [
    write_run(tmp_path / 'fast', growing_run(300), SUMMARY),
    write_run(tmp_path / 'same', growing_run(100), SUMMARY),
    write_run(tmp_path / 'empty', [], config=None),
  ]
  output = tmp_path / 'pictures' / 'run.png'
  script = ROOT / 'docs' / 'make_run_picture.py'
  command = [sys.executable, script, *runs, '--output', output]
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  subprocess.run(command, check=True, env=environment)
  with Image.open(output) as image:
    assert image.width >= 900
    # White paper, and both lines are there.
    assert image.convert('RGB').getpixel((0, 0)) == (255, 255, 255)
    assert len(image.convert('RGB').getcolors(1 << 20) or ()) > 10
  assert output.stat().st_size < 150_000

  command[2:5] = [tmp_path]
  failed = subprocess.run(command, capture_output=True, env=environment)
  assert failed.returncode == 2
  assert failed.stderr.decode().count('\n') == 1


# Long runs.


@pytest.mark.parametrize(('count', 'other'), [(20_000, 0), (4000, 2)])
def test_a_long_run_takes_little_memory(tmp_path, monkeypatch, count, other):
  """As a dict each record takes 1,600 bytes; pictures are not counted."""
  line = json.dumps(train_record(1, 64, 64, 0.5, gradient_noise_scale=3.0))
  run, drawn = write_run(tmp_path / 'long', []), []
  (run / 'metrics.jsonl').write_text(f'{line}\n' * count)
  for module in (report.page, report.comparison_page):
    draw = lambda panel, *_, **how: drawn.append(panel)  # noqa: E731
    monkeypatch.setattr(module, 'draw', draw)
    monkeypatch.setattr(module, 'figure', lambda *_: '')
  tracemalloc.start()
  if other:
    short = write_run(tmp_path / 'short', growing_run(other))
    report.write_comparison([run, short], tmp_path / 'page.html')
  else:
    write_report(run)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert max(len(x.y) for panel in drawn for x in panel.lines) == count
  assert peak / count < 250


def test_columns_are_what_the_records_say(tmp_path):
  more = train_record(21, 9, 9, None, gradient_noise_scale=7.0)
  run = write_run(tmp_path / 'r', [*growing_run(20), more])
  whole, evaluations = read_metrics(run)
  columns, same = records.read_columns(run)
  assert same == evaluations
  assert len(columns) == len(whole) == 21
  for key in records.Columns.KEYS:
    expected = records.column(whole, key)
    np.testing.assert_array_equal(records.column(columns, key), expected)
    assert records.has(columns, key) == records.has(whole, key)
  assert not records.has(columns, 'tokens')
