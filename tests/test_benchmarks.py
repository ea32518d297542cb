"""The benchmarks take turns, go on after a failure, and say what is not."""

import itertools
import json
import subprocess

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import by_hand, gpu, gpu_parts, measure, page, steady_state


def test_ways_take_turns_and_the_first_round_does_not_count():
  count, asked = itertools.count(), []

  def way(name):
    asked.append(name)
    return next(count)

  found = measure.side_by_side(
    {'a': lambda: way('a'), 'b': lambda: way('b')}, 2
  )
  assert ''.join(asked) == 'baabba'
  assert found == {'a': [2, 5], 'b': [3, 4]}
  assert measure.spread([1.0, 4.0, 2.0], 1) == '2.0 (1.0–4.0)'
  assert measure.ratios([1.0, 6.0], [2.0, 3.0]) == [0.5, 2.0]
  with pytest.raises(ValueError):
    measure.ratios([1.0], [1.0, 2.0])


def test_a_record_says_where_and_with_what():
  log = measure.record(rows=[])
  assert 'cores' in log['hardware']
  assert set(log['versions']) >= {'python', 'jax', 'optax'}
  assert log['load'] >= 0


def test_versions_are_of_distributions_whatever_they_install():
  found = measure.versions('opencv-python-headless', 'no-such-package')
  assert set(found) == {'python', 'opencv-python-headless'}


def test_inputs_are_held_against_the_faster_of_the_others():
  rates = {
    'adabatch x 2': [1300.0, 1500.0],
    'tf.data x 1': [9000.0, 9000.0],
    'tf.data x 2': [1000.0, 1000.0],
    'tf.data, fastest decoding x 2': [900.0, 800.0],
  }
  log = {
    'measurements': {
      kind: {'images_per_core_second': values} for kind, values in rates.items()
    },
    'seconds_to_first_examples_of_an_evaluation': {
      'first': [3.0, 2.0],
      'next': [0.01, 0.02],
    },
  }
  core, first, later = page.input_rows(log)
  assert core.found.startswith('1.40 (1.30–1.50)')
  assert (first.goal, first.met) == ('', '')
  assert (later.goal, later.met) == ('< 0.5 s', 'yes')
  log['seconds_to_first_examples_of_an_evaluation']['next'] = [0.6, 0.6]
  assert list(page.input_rows(log))[-1].met == 'no'


def test_the_loop_by_hand_takes_every_example_once_an_epoch():
  taken = list(by_hand.batches(12, [(4, 3), (6, 2)]))
  assert [len(rows) for rows in taken] == [4, 4, 4, 6, 6]
  for epoch in (taken[:3], taken[3:]):
    assert sorted(np.concatenate(epoch)) == list(range(12))


def test_batch_sizes_of_a_run_are_followed():
  lines = [
    {'update': 20, 'batch_size': 16},
    {'update': 50, 'batch_size': 32},
  ]
  assert steady_state.visited(lines) == [(16, 20), (32, 30)]


def test_a_pair_is_measured_at_the_sizes_of_the_rule():
  case = steady_state.CASES['mlp_padadamp']
  row = steady_state.measure_case(case, 1, updates=60)
  assert row['batch_sizes'] == [64, 128]
  rates = row['examples_per_second']
  ours, theirs = rates['adabatch'][0], rates['by_hand'][0]
  assert min(ours, theirs) > 0
  assert row['ratios'] == [ours / theirs]
  (line,) = page.steady_rows({'rows': {'mlp_padadamp': row}})
  assert line.figure == 'digits MLP at 64 to 128, padadamp'
  assert line.goal == '≥ 1.23'  # 0.95 of 1.3, 1.235


def test_defaults_are_what_is_measured():
  from adabatch import config as config_lib

  config = steady_state.make_config(steady_state.CASES['mlp16'], 10, None)
  default = config_lib.default()
  assert config.updates_per_call == default.updates_per_call
  assert config.log.every_updates == default.log.every_updates
  assert config.buckets.rounding == default.buckets.rounding


def test_a_part_for_a_gpu_runs_in_a_smoke():
  figures = gpu.of_part('adaptive', smoke=True)
  assert [figure.split(', ')[-1] for figure, _, _ in figures] == [
    'adadamp',
    'constant',
  ]
  assert all('8 updates' in found for _, found, _ in figures)
  assert sum(part.seconds for part in gpu.PARTS.values()) <= 8 * 60


def test_what_a_gpu_benchmark_learns_from_can_be_learned():
  split = gpu_parts.learnable(200, 0)
  image = split.arrays['image'].astype(np.float32)
  label = split.arrays['label']
  means = np.stack([image[label == k].mean(0) for k in range(10)])
  apart = np.square(image[:, None] - means[None]).sum((2, 3, 4))
  assert (apart.argmin(1) == label).mean() > 0.9


def done(figures):
  return subprocess.CompletedProcess([], 0, f'words\n{json.dumps(figures)}', '')


def test_a_part_that_fails_or_runs_over_leaves_the_others(
  tmp_path, monkeypatch, capsys
):
  answers = {
    'switching': subprocess.CompletedProcess(
      [], 1, '', 'Trace\nValueError: no'
    ),
    'populations': subprocess.TimeoutExpired([], 40),
    'adaptive': done([['small CNN', '1.0 s', [1.0]]]),
  }

  def run(asked, **options):
    if asked[1] == '-c':
      return subprocess.CompletedProcess([], 0, 'gpu\n', '')
    answer = answers[asked[3].partition('=')[2]]
    if isinstance(answer, Exception):
      raise answer
    return answer

  monkeypatch.setattr(gpu.subprocess, 'run', run)
  log = tmp_path / 'gpu.json'
  arguments = [f'--log={log}', f'--only={",".join(answers)}']
  assert gpu.main(arguments) == 1
  parts = json.loads(log.read_text())['parts']
  assert parts['switching']['status'] == 'failed: ValueError: no'
  assert 'ran over its 40 seconds' in parts['populations']['status']
  assert parts['adaptive']['figures'] == [['small CNN', '1.0 s', [1.0]]]
  assert '| small CNN | 1.0 s |' in capsys.readouterr().out
  assert gpu.main([f'--log={log}', '--only=adaptive']) == 0


def test_without_a_gpu_it_is_refused_in_one_line(monkeypatch):
  monkeypatch.setattr(gpu, 'default_backend', lambda: 'cpu')
  with pytest.raises(SystemExit) as refused:
    gpu.main([])
  assert 'needs a GPU' in str(refused.value)
  assert '\n' not in str(refused.value)


def test_a_package_that_is_missing_leaves_its_part_blank(monkeypatch):
  missing = gpu_parts.PARTS['resnet50_torch']._replace(needs='no_such_package')
  monkeypatch.setitem(gpu.PARTS, 'resnet50_torch', missing)
  found = gpu.in_process('resnet50_torch', smoke=True)
  assert found == {'status': 'no_such_package is not installed'}


def test_one_command_goes_on_after_a_failure(tmp_path, monkeypatch, capsys):
  def run(asked, **options):
    if asked[2] == 'benchmarks.switching':
      return subprocess.CompletedProcess([], 1, None, 'Trace\nOSError: full')
    path = asked[-1].removeprefix('--log=')
    measure.write(path, {'microseconds': {'16 x 1': [250.0]}})
    return subprocess.CompletedProcess([], 0, None, '')

  monkeypatch.setattr(command.subprocess, 'run', run)
  some = '--only=switching,updates_per_call,peer_adadamp'
  assert command.main([some, f'--docs={tmp_path}']) == 1
  text = (tmp_path / 'performance.md').read_text()
  assert 'blank: failed: OSError: full' in text
  assert '| an update at 16, 1 a call | 250 (250–250) µs |' in text
  assert 'blank: needs --python (with PyTorch) and --adadamp' in text
  # What was found stays when others are run.
  assert command.main(['--only=peer_adadamp', f'--docs={tmp_path}']) == 0
  assert '250 (250–250) µs' in (tmp_path / 'performance.md').read_text()
  with pytest.raises(SystemExit):
    command.main(['--only=pear'])
  assert 'pear: choose among' in capsys.readouterr().err


def test_a_goal_that_is_missed_is_said_so():
  row = page.at_least('a figure', [1.4, 1.6, 1.7], 1.5)
  assert row.met == 'yes'
  assert page.at_least('a figure', [1.4, 1.45, 1.7], 1.5).met == 'no'
  rows = [{'name': 'ResNet-20', 'milliseconds': 2.5, 'before': 7.6}]
  (estimate,) = page.plain_rows(page.ESTIMATE, {'rows': rows})
  assert estimate.kind == "the compiler's estimate"
  assert 'milliseconds 2.5' in estimate.found


def test_every_section_has_a_benchmark_and_every_blank_a_reason():
  assert {one.name for one in page.SECTIONS} == set(command.ENTRIES)
  lines = page.page({}).splitlines()
  rows = [line for line in lines if line.startswith('| ')]
  found = [row for row in rows if 'not run' in row]
  published = [row for row in rows if '2,791' in row]
  assert len(published) == 1
  assert 'published' in published[0]
  heads = [row for row in rows if row.startswith('| figure')]
  assert len(rows) == len(found) + len(published) + len(heads)


def test_the_page_is_what_its_json_says():
  entries = json.loads((measure.DOCS / 'performance.json').read_text())
  text = (measure.DOCS / 'performance.md').read_text()
  assert page.page(entries['figures']) == text
  assert 'quick' not in text
