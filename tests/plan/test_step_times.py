"""Times of microbatches that were not compiled."""

import itertools

import pytest

from adabatch.plan.step_times import Point, StepTimes


def of_compiler(size, steps):
  """Seconds: 2 once an update, 1 a microbatch, 0.5 an example."""
  return 2 + steps * (1 + 0.5 * size)


def test_lines_between_what_is_known():
  times = StepTimes(
    Point(m, k, of_compiler(m, k))
    for m, k in [(2, 1), (8, 1), (32, 1), (32, 2), (32, 5)]
  )
  assert times.fixed == 2
  for m, k in itertools.product((2, 4, 8, 11, 32, 50), (1, 2, 3, 5, 9)):
    assert times(m, k) == pytest.approx(of_compiler(m, k))
  # Below, nothing is known but that it is no slower.
  assert times(1, 1) == times(2, 1)
  assert times.falls == []


def test_one_size_is_in_proportion():
  times = StepTimes([Point(8, 1, 4.0)])
  assert times.fixed is None
  assert [times(m, 1) for m in (1, 8, 12, 80)] == [4, 4, 6, 40]
  assert times(8, 3) == 12
  with pytest.raises(ValueError, match='no time of a step is known'):
    StepTimes([])


def test_what_is_once_an_update_is_counted_once():
  times = StepTimes([Point(4, 1, 5.0), Point(8, 2, 12.0), Point(8, 4, 22.0)])
  assert times.fixed == 2
  assert times(4, 3) == 2 + 3 * (5 - 2)
  assert times(8, 1) == 7
  # One microbatch alone has no loop: the others say what is once.
  times = StepTimes([Point(8, 1, 6.0), Point(8, 2, 12.0), Point(8, 4, 22.0)])
  assert times.fixed == 2


@pytest.mark.parametrize(
  'points',
  [
    # The loop's program costs more than its slope says: less than nothing once.
    [(4, 1, 3.0), (4, 2, 8.0), (4, 4, 20.0)],
    [(1, 1, 2.0), (4, 1, 2.0), (16, 1, 9.0), (16, 8, 10.0)],
    [(8, 5, 3.0)],
    [(8, 4, 3.0), (8, 8, 7.0), (2, 1, 0.5)],
  ],
)
def test_more_is_never_faster(points):
  times = StepTimes(Point(*point) for point in points)
  for m, k, seconds in points:
    assert times(m, k) == seconds
  sizes, steps = range(1, 40), range(1, 12)
  for m, k in itertools.product(sizes, steps):
    assert 0 < times(m, k) <= times(m + 1, k) + 1e-12
    assert times(m, k) <= times(m, k + 1) + 1e-12


def test_where_a_compiler_says_that_more_is_faster():
  times = StepTimes([Point(2, 1, 5.0), Point(4, 1, 4.0), Point(8, 1, 3.0)])
  assert times.falls == [4, 8]
  assert times(100, 1) == 3  # not less and less
