"""Words and pictures of the model of scaling."""

import re
import xml.etree.ElementTree as ET

import pytest

from adabatch.report.plan_scaling import scaling_lines, scaling_tables
from adabatch.report.plan_scaling_figures import scaling_section


def run(seconds, chips, share, outside=''):
  return {
    'seconds': seconds,
    'chip_hours': seconds * chips / 3600,
    'efficiency': 1.0 / chips,
    'of_smallest': share,
    'outside': outside,
  }


def row(chips, shares=(1.0, 0.5, 0.8), outside='', **changed):
  smallest, largest, schedule = (
    run(7200 * s / chips, chips, s, outside) for s in shares
  )
  return {
    'chips': chips,
    'shape': [1, chips],
    'slices': 1,
    'smallest': smallest,
    'largest': largest,
    'schedule': schedule,
    **changed,
  }


def plan(*rows, **changed):
  return {
    'scaling': {
      'compiled_chips': 1,
      'smallest': 32,
      'largest': 1024,
      'microbatch_sizes': [4, 8],
      'falls_at': [],
      'fixed_seconds': 0.5,
      'left_out': [],
      'schedule': 'known',
      'wins_from': 2,
      'strong': rows,
      'weak': rows,
      **changed,
    }
  }


def test_a_table_says_what_is_not_exact():
  unknown = dict.fromkeys(('smallest', 'largest', 'schedule', 'shape'))
  found = plan(
    row(1, outside='more'),
    row(2, smallest=None),
    row(4, outside='fewer', shape=[2, 2], slices=3),
    row(8, **unknown, slices=None),
  )
  (title, columns, rows), _ = scaling_tables(found)
  assert 'model' in title
  assert columns[2] == 'the schedule'
  assert [r[0] for r in rows] == ['1', '2', '4', '8']
  assert [r[1] for r in rows] == ['1x1', '1x2', '3 * 2x2', '–']
  assert [r[2] for r in rows] == [
    '~ 1 h 36 min',
    '48 min 00 s',
    '≤ 24 min 00 s',
    'beyond one slice',
  ]
  assert rows[0][3:5] == ['~ 1.6', '100%']
  assert rows[1][5] == 'cannot be shared'
  assert [r[-1] for r in rows] == ['0.80', '0.80', '0.80', '–']
  lines = '\n'.join(scaling_lines(found))
  assert '≤: a chip has fewer examples than the 4' in lines
  assert '~: a chip has more examples at once than the 8' in lines


def test_a_sentence_says_where_the_schedule_wins():
  def first(*args, **changed):
    return next(scaling_lines(plan(*args, **changed)))

  line = first(row(1), row(4), row(8, outside='fewer'))
  assert 'not by a measurement: from 2 chips on' in line
  assert '(0.80 of it on 4); batches of 1,024 throughout take less' in line
  assert 'take no less (0.90)' in first(row(1, (1.0, 0.9, 0.8)))
  assert 'at no number of chips' in first(row(1), wins_from=None)
  assert 'at no number of chips' in first(row(1, largest=None))
  assert 'not known before' in first(row(1), schedule='unknown')
  assert 'does not fit' in first(row(1), schedule='too large')
  assert 'never grows' in first(row(1), largest=32)
  left = [{'batch_size': 2048, 'why': 'too large'}]
  assert first(row(1), left_out=left).endswith('of 2,048: too large')
  lines = list(scaling_lines(plan(row(1), fixed_seconds=None, falls_at=[8])))
  assert 'faster than one of fewer examples at 8' in lines[1]
  assert 'k times as long' in lines[2]


def test_without_a_machine_there_is_nothing():
  assert list(scaling_lines({})) == list(scaling_section({})) == []
  assert list(scaling_tables({})) == []
  none = {'scaling': {'why_not': 'replicas agree', 'left_out': []}}
  assert list(scaling_tables(none)) == []
  assert list(scaling_lines(none)) == [
    'scaling is not predicted: replicas agree'
  ]
  assert '<svg' not in ''.join(scaling_section(none))


@pytest.mark.parametrize('schedule', ['known', 'unknown'])
def test_pictures_have_a_line_for_each_run(schedule):
  rows = [row(2**i) for i in range(5)]
  html = ''.join(scaling_section(plan(*rows, schedule=schedule)))
  pictures = re.findall(r'<svg.*?</svg>', html)
  assert len(pictures) == 2
  for picture in pictures:
    ET.fromstring(picture)
    lines = len(re.findall(r'stroke: var\(--s[123]\)', picture))
    assert lines == (3 if schedule == 'known' else 2)
    assert picture.count('stroke: var(--soft)') == 1
  assert html.count('ideal: time on one chip / chips') == 2
  assert 'nothing was measured' in html
