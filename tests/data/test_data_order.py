"""The one order: a permutation an epoch, the same at any batch size."""

import threading

import numpy as np
import pytest

from adabatch.data import order as order_lib
from adabatch.data.order import Order, indices, process_positions, take

# The same contract holds for both ways of making a permutation.
IN_MEMORY, SHUFFLED = order_lib.MAX_IN_MEMORY, 0
both = pytest.mark.parametrize('limit', [IN_MEMORY, SHUFFLED])


@both
@pytest.mark.parametrize('n', [1, 2, 10, 97, 128, 1000])
def test_every_epoch_is_a_permutation(limit, n):
  order = Order(n, seed=3, max_in_memory=limit)
  epochs = [take(order, e * n, (e + 1) * n) for e in range(4)]
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(n))
  if n >= 97:
    assert not any(np.array_equal(epochs[0], other) for other in epochs[1:])


@both
@pytest.mark.parametrize('sizes', [[1] * 60, [7, 13, 40], [25, 35], [60]])
def test_batches_of_any_size_concatenate_to_the_one_order(limit, sizes):
  # 10 examples an epoch: 13 straddles epochs, 25 and more exceed one.
  order = Order(10, seed=1, max_in_memory=limit)
  whole = [int(indices(order, np.array([p]))[0]) for p in range(60)]
  stops = np.cumsum(sizes)
  taken = [
    take(order, b - s, b) for s, b in zip(sizes, stops.tolist(), strict=True)
  ]
  assert np.concatenate(taken).tolist() == whole
  assert all(part.dtype == np.int64 for part in taken)


@both
def test_positions_in_any_sequence(limit):
  order = Order(10, seed=1, max_in_memory=limit)
  positions = np.random.default_rng(0).integers(0, 55, (8, 5))
  # The first and last epochs agree, those between do not.
  positions[0, 0] = positions[-1, -1] = 3
  expected = take(order, 0, 55)[positions]
  found = indices(order, positions)
  np.testing.assert_array_equal(found, expected)
  assert found.dtype == np.int64
  assert indices(order, np.zeros(0, np.int64)).shape == (0,)


def test_golden_values():
  """These never change: a resumed run must see the order it began with."""
  assert take(Order(10, 0), 0, 20).tolist() == GOLDEN_10
  assert take(Order(10, 0, max_in_memory=0), 0, 20).tolist() == GOLDEN_GRAIN
  big = Order(60_000, seed=2**64 - 1)
  assert take(big, 599_998, 600_003).tolist() == GOLDEN_60000


GOLDEN_10 = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7, 5, 3, 7, 8, 2, 4, 1, 0, 6, 9]
GOLDEN_GRAIN = [8, 1, 6, 7, 0, 4, 9, 5, 2, 3, 2, 5, 6, 1, 7, 8, 3, 0, 9, 4]
GOLDEN_60000 = [57153, 24707, 5146, 55845, 7332]


def test_equals_the_slow_twin():
  """Sorting examples by their Philox words, one key at a time."""
  order = Order(1000, seed=5)
  for epoch in (0, 1, 7):
    philox = np.random.Philox(key=np.array([5, epoch], np.uint64))
    words = philox.random_raw(1000).tolist()
    twin = sorted(range(1000), key=lambda i: (words[i] >> 10, i))
    assert take(order, epoch * 1000, (epoch + 1) * 1000).tolist() == twin


@both
def test_seed_and_epoch_are_not_interchangeable(limit):
  drawn = {
    tuple(
      take(Order(100, s, max_in_memory=limit), e * 100, (e + 1) * 100).tolist()
    )
    for s in range(4)
    for e in range(4)
  }
  assert len(drawn) == 16


def test_first_example_is_uniform():
  first = [int(take(Order(10, seed), 0, 1)[0]) for seed in range(2000)]
  counts = np.bincount(first, minlength=10)
  # Chi-squared with 9 degrees of freedom exceeds 33.7 once in 10,000.
  assert ((counts - 200) ** 2 / 200).sum() < 33.7


def test_kept_permutations_are_bounded_and_made_once(monkeypatch):
  made = []
  real = order_lib._permutation

  def counted(order, epoch):
    made.append(epoch)
    return real(order, epoch)

  monkeypatch.setattr(order_lib, '_permutation', counted)
  kept = order_lib._Permutations(max_entries=16, max_bytes=4 * 1000 * 3)
  order = Order(1000, seed=0)
  threads = [
    threading.Thread(target=lambda: [kept.get(order, e) for e in (0, 1, 2)])
    for _ in range(8)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(made) == [0, 1, 2]
  for epoch in range(3, 10):
    kept.get(order, epoch)
  assert len(kept._kept) == 3
  assert not kept.get(order, 9).flags.writeable


@pytest.mark.parametrize('most', [0, 100])
def test_all_bits_of_a_seed_count(most):
  orders = [
    take(Order(100, seed, max_in_memory=most), 0, 100).tolist()
    for seed in (5, 2**32 + 5, 2**63 + 5)
  ]
  assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize('processes', [1, 2, 3, 8])
@pytest.mark.parametrize('span', [(0, 16), (5, 12), (7, 7), (3, 4)])
def test_processes_partition_the_positions(processes, span):
  parts = [
    process_positions(*span, process=h, processes=processes)
    for h in range(processes)
  ]
  assert sorted(p for part in parts for p in part) == list(range(*span))
  for process, part in enumerate(parts):
    assert all(p % processes == process for p in part)


def test_a_process_stream_does_not_depend_on_batch_sizes():
  for cuts in ([0, 100], [0, 1, 2, 50, 100], [0, 33, 66, 100]):
    ranges = zip(cuts[:-1], cuts[1:], strict=True)
    stream = [process_positions(a, b, 1, 3) for a, b in ranges]
    assert [p for part in stream for p in part] == list(range(1, 100, 3))


@pytest.mark.parametrize(
  'call',
  [
    lambda: Order(0, 0),
    lambda: Order(2**32 + 1, 0),
    lambda: Order(10, -1),
    lambda: Order(10, 2**64),
    lambda: take(Order(10, 0), -1, 3),
    lambda: take(Order(10, 0), 3, 2),
    lambda: indices(Order(10, 0), np.array([-1])),
    lambda: indices(Order(10, 0), np.array([0.5])),
    lambda: process_positions(0, 4, 2, 2),
  ],
)
def test_errors_are_one_line(call):
  with pytest.raises(ValueError) as caught:
    call()
  assert 'give' in str(caught.value)
  assert '\n' not in str(caught.value)
