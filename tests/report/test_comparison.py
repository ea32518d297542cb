"""The page that compares runs."""

import json
import math
import re

import pytest

from adabatch.report import write_comparison
from adabatch.report.__main__ import main
from adabatch.report.compared import differing, groups_of, labels_of, read_runs
from adabatch.report.equal_metric import milestone
from adabatch.report.pictures import CSS_COLORS
from adabatch.report.records import AXES
from tests.report.test_report import (
  Page,
  eval_record,
  train_record,
  write_run,
)


def config(rule='adadamp', seed=0, **more):
  return {
    'seed': seed,
    'task': {'name': 'classification'},
    'data': {'name': 'mnist', 'eval_split': 'test', 'data_dir': None},
    'controller': {'name': rule, 'max_batch_size': 1024},
    'model': {'mlp': {'hidden_sizes': [128, 128]}},
  } | more


def run(path, losses, batch_size=10, settings=None, status='completed', **more):
  """A run that is evaluated after each update; a second an update."""
  records = []
  for update, loss in enumerate(losses, start=1):
    examples = batch_size * update
    place = {'seconds': 1.0 * update}
    records.append(train_record(update, examples, batch_size, 2.0, **place))
    scores = {'loss': loss, 'accuracy': None if loss is None else 1 - loss / 4}
    records.append(eval_record(update, examples, **scores, **place))
  summary = None
  if status is not None:
    summary = {'status': status, 'updates': len(losses)}
  path.parent.mkdir(parents=True, exist_ok=True)
  settings = config() if settings is None else settings
  return write_run(path, records, summary, settings, **more)


def page_of(paths, tmp_path):
  path = write_comparison(paths, tmp_path / 'page.html')
  text = path.read_text(encoding='utf-8')
  return text, Page(text)


def lead(text):
  return re.search(r'<p class="lead">(.*?)</p>', text)[1]


def rows(text, title):
  """The texts of a table, row by row."""
  table = text.split(title)[1].split('</table>')[0]
  cells = [
    re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row)
    for row in re.findall(r'<tr>(.*?)</tr>', table, re.DOTALL)
  ]
  return [[re.sub('<.*?>', '', cell) for cell in row] for row in cells]


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)


@pytest.fixture
def pair(tmp_path):
  """One that grows far in few updates, one that is better in the end."""
  return [
    run(tmp_path / 'few', [1.0, 0.5, 0.25], 100),
    run(
      tmp_path / 'many',
      [1.0, 0.8, 0.6, 0.5, 0.3, 0.2, 0.1],
      settings=config('constant'),
    ),
  ]


def test_the_first_sentence_says_what_was_bought(pair, tmp_path):
  text, _ = page_of(pair, tmp_path)
  assert lead(text) == (
    'These runs differ in controller.name (adadamp, constant): to a test loss '
    'of 0.25, the best that both reached, few took the fewest updates (3; many '
    '2 times as many), many took the fewest examples (60; few 5 times as many) '
    'and few took the least time (3 s; many 2 times as long).'
  )
  assert 'Best test loss: few 0.25, many 0.1.' in text
  assert 'Best test accuracy: few 0.9375, many 0.975.' in text


def test_what_each_took_to_the_common_value(pair):
  runs = read_runs(pair)
  by_loss = milestone(runs, 'test', 'loss')
  assert by_loss.value == 0.25
  assert by_loss.best == [0.25, 0.1]
  assert by_loss.costs == [
    {'updates': 3, 'examples': 300, 'seconds': 3},
    {'updates': 6, 'examples': 60, 'seconds': 6},
  ]
  # Of an accuracy the lower best is the worse one.
  assert milestone(runs, 'test', 'accuracy').value == 1 - 0.25 / 4


def test_tables(pair, tmp_path):
  text, _ = page_of(pair, tmp_path)
  assert rows(text, 'At equal metric') == [
    ['run']
    + [f'{axis} to loss 0.25' for axis in AXES]
    + [f'{axis} to accuracy 0.9375' for axis in AXES],
    ['few', '3', '300', '3 s', '3', '300', '3 s'],
    ['many', '6', '60', '6 s', '6', '60', '6 s'],
  ]
  assert rows(text, 'How they ended')[1:] == [
    ['few', 'completed', '3', '300', '3 s', '0.25', '0.25', '0.9375', '0.9375'],
    ['many', 'completed', '7', '70', '7 s', '0.1', '0.1', '0.975', '0.975'],
  ]
  assert rows(text, 'Keys of the config that differ') == [
    ['run', 'controller.name'],
    ['few', 'adadamp'],
    ['many', 'constant'],
  ]


def test_pictures_against_each_axis(pair, tmp_path):
  text, page = page_of(pair, tmp_path)
  labels = page.groups['all']
  against = {'updates': 'updates', 'examples': 'examples seen'}
  against['seconds'] = 'training time (s)'
  assert labels == [
    f'{title} against {against[axis]}'
    for title in ('test loss', 'test accuracy', 'training loss')
    for axis in AXES
  ] + [
    'batch size against examples seen',
    'effective learning rate against examples seen',
  ]
  # One legend for all, and nothing from elsewhere.
  legend = re.search(r'class="keys legend">(.*?)</div>', text)[1]
  assert re.sub('<.*?>', ' ', legend).split() == ['few', 'many']
  assert len(page.ids) == len(set(page.ids))
  rest = re.sub(r'xmlns(:\w+)?="[^"]*"', '', text)
  assert 'http:' not in rest
  assert 'https:' not in rest
  pictures = ''.join(re.findall(r'<svg.*?</svg>', text, re.DOTALL))
  assert set(re.findall(r'(?:stroke|fill): ([^;"]*)', pictures)) <= {
    'none',
    *CSS_COLORS.values(),
  }


def test_same_runs_same_bytes(pair, tmp_path):
  assert page_of(pair, tmp_path)[0] == page_of(pair, tmp_path)[0]


def test_seeds_share_a_colour_and_count_by_their_median(tmp_path):
  paths = [
    run(
      tmp_path / rule / str(seed),
      [1.0] * (late + seed) + [0.5],
      settings=config(rule, seed),
    )
    for rule, late in (('adadamp', 1), ('constant', 11))
    for seed in range(3)
  ]
  text, _ = page_of(paths, tmp_path)
  # After 2, 3, 4 and after 12, 13, 14.
  assert 'adadamp took the fewest updates (3; constant 4.3 times as m' in text
  legend = re.search(r'class="keys legend">(.*?)</div>', text)[1]
  assert re.findall(r'--(s\d)\)"><span>(.*?)<', legend) == [
    ('s1', 'adadamp (3 seeds)'),
    ('s2', 'constant (3 seeds)'),
  ]
  table = text.split('How they ended')[1]
  assert re.findall(r'key thin" style="color: var\(--(s\d)', table)[:6] == [
    *['s1'] * 3,
    *['s2'] * 3,
  ]
  assert 'the median counts' in text


def test_runs_that_differ_in_their_seed_alone(tmp_path):
  paths = [
    run(tmp_path / str(seed), [1.0] * seed + [0.5], settings=config(seed=seed))
    for seed in range(2)
  ]
  text, _ = page_of(paths, tmp_path)
  assert lead(text) == (
    'These runs differ in their seed alone: to a test loss of 0.5, the best '
    'that both reached, they took 1 to 2 updates, 10 to 20 examples and 1 s to '
    '2 s.'
  )


def test_ten_runs_of_ten_rules_look_different(tmp_path):
  paths = [
    run(tmp_path / f'r{i}', [1.0, 0.5 + i / 10], settings=config(f'rule{i}'))
    for i in range(10)
  ]
  text, _ = page_of(paths, tmp_path)
  legend = re.search(r'class="keys legend">(.*?)</div>', text)[1]
  looks = re.findall(r'class="key (\w*)" style="color: var\(--(s\d)', legend)
  assert len(set(looks)) == 10
  assert 'Best test loss: from r0 0.5 to r9 1.' in text
  assert 'all took 1 update, all took 10 examples and all' in lead(text)
  assert len(rows(text, 'How they ended')) == 11


def test_runs_of_every_fate(tmp_path):
  paths = [
    run(tmp_path / 'done', [1.0, 0.4]),
    run(
      tmp_path / 'going',
      [1.0, 0.5],
      settings=config('cabs'),
      status=None,
      tail='{"kind": "train", "upd',
    ),
    run(
      tmp_path / 'broken',
      [1.5, None, math.nan],
      settings=config('geodamp'),
      status='diverged',
    ),
    write_run(
      tmp_path / 'blind',
      [train_record(1, 10, 10, 2.0)],
      {'status': 'preempted', 'updates': 1},
      config('padadamp'),
    ),
    write_run(tmp_path / 'empty', [], None, None),
  ]
  text, page = page_of(paths, tmp_path)
  assert (
    'to a test loss of 0.5, the best so far that all but broken (diverged), '
    'blind (has no evaluation) and empty (has no evaluation) reached, done and '
    'going took' in lead(text).replace('both took', 'done and going took')
  )
  states = [row[1] for row in rows(text, 'How they ended')[1:]]
  assert states == [
    'completed',
    'unfinished',
    'diverged',
    'preempted',
    'unfinished',
  ]
  words = ' '.join(page.text)
  assert 'broken – diverged' in words
  assert 'going – unfinished' in words
  pictures = ''.join(re.findall(r'<svg.*?</svg>', text, re.DOTALL))
  assert not re.search(r'\bnan\b|\binf\b', pictures, re.IGNORECASE)


@pytest.mark.parametrize('losses', [[1.0, 0.5], None])
def test_nothing_to_compare_at_equal_loss(tmp_path, losses):
  first = run(tmp_path / 'a', losses or [])
  second = write_run(tmp_path / 'b', [], None, config('cabs'))
  text, _ = page_of([first, second], tmp_path)
  assert 'nothing can be said at an equal loss' in lead(text)
  assert 'At equal metric' not in text


def test_different_splits_are_not_compared(tmp_path):
  a = run(tmp_path / 'a', [1.0])
  settings = config(data={'name': 'mnist', 'eval_split': 'train[90%:]'})
  records = [eval_record(1, 10, 'train[90%:]', loss=1.0)]
  b = write_run(tmp_path / 'b', records, None, settings)
  text, page = page_of([a, b], tmp_path)
  assert 'nothing can be said at an equal loss' in lead(text)
  assert any('train[90%:] loss' in label for label in page.groups['all'])


def test_short_and_long_runs_share_a_logarithmic_axis(tmp_path):
  short = run(tmp_path / 'a', [1.0, 0.5], 1000)
  long = run(tmp_path / 'b', [1.0] * 99 + [0.5], settings=config('constant'))
  text, _ = page_of([short, long], tmp_path)
  (first,) = re.findall(r'loss against updates".*?</svg>', text, re.DOTALL)[:1]
  assert re.findall('text-anchor: middle[^>]*>([^<]*)<', first) == [
    '1',
    '3',
    '10',
    '30',
    '100',
    'updates',
  ]


def test_where_runs_part_is_seen(tmp_path):
  """An accuracy of 0.1 at first would make 0.96 and 0.97 one line."""
  paths = [
    run(tmp_path / name, [4.0, 0.2, end], settings=config(name))
    for name, end in (('a', 0.16), ('b', 0.12))
  ]
  text, _ = page_of(paths, tmp_path)
  assert 'without what is below 0.9<' in text
  (first,) = re.findall(r'accuracy against up.*?</svg>', text, re.DOTALL)[:1]
  labels = re.findall(r'>(0\.\d+)<', first)
  assert labels[0] == '0.95'
  assert labels[-1] == '0.97'


def test_the_target_of_each(tmp_path, pair):
  target = {'metric': 'accuracy', 'value': 0.9, 'reached': True}
  target |= {'updates': 3, 'examples': 300, 'seconds': 3.0}
  summary = {'status': 'target_reached', 'updates': 3, 'target': target}
  (pair[0] / 'summary.json').write_text(json.dumps(summary))
  text, _ = page_of(pair, tmp_path)
  column = [row[-1] for row in rows(text, 'How they ended')]
  reached = 'accuracy 0.9: 3 updates, 300 examples, 3 s'
  assert column == ['target', reached, '–']


@pytest.mark.parametrize(
  ('names', 'expected'),
  [
    (('/runs/a', '/runs/b'), ['a', 'b']),
    (('/x/a/run', '/x/b/run'), ['a', 'b']),
    (('/x/a/0', '/x/b/0', '/x/b/1'), ['a/0', 'b/0', 'b/1']),
    (('/x/run', '/x/a/run'), ['x', 'a']),
  ],
)
def test_labels(tmp_path, names, expected):
  assert labels_of([type(tmp_path)(name) for name in names]) == expected


def test_keys_that_differ_and_what_makes_a_group(tmp_path):
  free = config(seed=1, data={'name': 'mnist', 'data_dir': '/there'})
  other = config('cabs')
  paths = [
    run(tmp_path / name, [1.0], settings=settings)
    for name, settings in (('a', config()), ('b', free), ('c', other))
  ]
  runs = read_runs(paths)
  assert list(differing(runs).items()) == [
    ('controller.name', ['adadamp', 'adadamp', 'cabs']),
    ('data.eval_split', ['test', '–', 'test']),
    ('seed', ['0', '1', '0']),
    ('data.data_dir', ['null', '/there', 'null']),
  ]
  paths[1] = run(tmp_path / 'b', [1.0], settings=config(seed=1))
  assert [g.members for g in groups_of(read_runs(paths))] == [(0, 1), (2,)]


def test_words_are_escaped(tmp_path):
  evil = config('<script>alert(1)</script>&')
  paths = [
    run(tmp_path / 'a&b<i>', [1.0], settings=evil),
    run(tmp_path / 'b', [1.0]),
  ]
  _, page = page_of(paths, tmp_path)
  assert not {'script', 'i'} & {tag for tag, _ in page.tags}


def refused(capsys, *argv):
  assert main([str(argument) for argument in argv]) == 1
  captured = capsys.readouterr()
  assert captured.out == ''
  assert captured.err.count('\n') == 1
  return captured.err


@pytest.mark.parametrize(
  ('settings', 'said'),
  [
    (config(task={'name': 'regression'}), 'task.name=classification and b'),
    (config(data={'name': 'cifar10'}), 'data.name=mnist and b'),
    (
      config(data={'name': 'folder:/x/mnist'}),
      'data.name=folder:/x/mnist: only runs of one task on one data set',
    ),
  ],
)
def test_runs_of_different_tasks_are_refused(tmp_path, capsys, settings, said):
  paths = run(tmp_path / 'a', [1.0]), run(tmp_path / 'b', [1.0], 1, settings)
  assert said in refused(capsys, *paths)


def test_a_folder_may_lie_elsewhere(tmp_path):
  paths = [
    run(
      tmp_path / name,
      [1.0],
      settings=config(data={'name': f'folder:/{name}/x'}),
    )
    for name in 'ab'
  ]
  read_runs(paths)


def test_what_is_no_run_is_refused(tmp_path, capsys, pair):
  (tmp_path / 'none').mkdir()
  (tmp_path / 'study' / 'trials').mkdir(parents=True)
  (tmp_path / 'file').touch()
  for path, said in (
    (tmp_path / 'absent', 'it does not exist'),
    (tmp_path / 'file', 'it is no directory'),
    (tmp_path / 'none', 'there is no metrics.jsonl'),
    (tmp_path / 'study', 'a search or a study, whose own page'),
    (tmp_path, f'there are some in it, give those: {tmp_path}/*'),
  ):
    error = refused(capsys, pair[0], path)
    assert f'{path} holds no run: ' in error
    assert said in error
  assert 'is given twice' in refused(capsys, pair[0], pair[0])
  there = tmp_path / 'not' / 'there.html'
  assert 'there is no directory' in refused(capsys, *pair, '--output', there)
  assert main([*map(str, pair), '--metric', 'loss']) == 2
  assert 'is for one archive, and there are 2' in capsys.readouterr().err


@pytest.mark.usefixtures('pair')
def test_command_line(tmp_path, capsys):
  assert main(['few', 'many']) == 0
  assert capsys.readouterr().out == f'{tmp_path / "comparison.html"}\n'
  assert (tmp_path / 'comparison.html').exists()
  assert main(['few', 'many', '--output', 'few/other.html']) == 0
  assert (tmp_path / 'few' / 'other.html').exists()
  # Of one run its own page, wherever that is wanted.
  assert main(['few', '--output', 'one.html']) == 0
  assert (tmp_path / 'one.html').exists()
  assert not (tmp_path / 'few' / 'report.html').exists()
