"""Machines that are not there: their names, and their programs."""

import importlib.util

import jax
import pytest

from adabatch.config import ConfigError
from adabatch.plan import figures
from adabatch.plan.hlo import Collective
from adabatch.plan.job import plan
from adabatch.plan.topology import Topology, parse
from tests.experiments import digits

HERE = importlib.util.find_spec('libtpu') is not None


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('v5e:4x8', ('v5e', (4, 8), 1)),
    ('v5litepod-8', ('v5e', (2, 4), 1)),
    ('v6e-256', ('v6e', (16, 16), 1)),
    ('v5p-8', ('v5p', (1, 2, 2), 1)),
    ('v4-4096', ('v4', (8, 16, 16), 1)),
    ('3*v5p:2x2x4', ('v5p', (2, 2, 4), 3)),
    ('tpu7x:2x2x1', ('tpu7x', (2, 2, 1), 1)),
    ('tpu7x-16', ('tpu7x', (2, 2, 2), 1)),
    ('cuda:h100:8', ('h100', (8,), 1)),
  ],
)
def test_names(name, expected):
  assert parse(name) == expected


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v5x:4x4', 'unknown plan.topology'),
    ('v5e', 'unknown plan.topology'),
    ('', 'unknown plan.topology'),
    ('v5e:4', 'has 2 sides'),
    ('v5p:4x4', 'has 3 sides'),
    ('v5e:0x4', 'has 2 sides'),
    ('v5litepod-12', 'has 2 sides'),
    ('0*v5e:2x2', 'has 2 sides'),
    ('v5e:2xx2', 'has 2 sides'),
    ('h100:8', 'unknown plan.topology'),
    ('cuda:h100', 'give one of a100, h100'),
    ('cuda:h100:16', '1 to 8'),
    ('cuda:rtx:1', 'give one of a100, h100'),
  ],
)
def test_names_of_nothing(name, message):
  with pytest.raises(ConfigError, match=message) as error:
    parse(name)
  assert '\n' not in str(error.value)


def test_an_all_reduce_by_its_model():
  """100 MB over 16 x 16 chips, four links each of 50 GB/s."""
  machine = Topology('v5e:16x16', 'v5e', (16, 16), 1, [None] * 256)
  whole = Collective('all-reduce', 1, 100e6, False, 256)
  seconds = figures.all_reduce_seconds((whole,), machine)
  assert seconds == pytest.approx(2 * 255 / 256 * 100e6 / 200e9)
  part = whole._replace(kind='all-gather', times=3, devices=4)
  seconds = figures.all_reduce_seconds((part,), machine)
  assert seconds == pytest.approx(3 * 3 / 4 * 100e6 / 200e9)


def test_an_all_reduce_between_slices():
  """Each of 16 chips takes a 16th part of it to the other slice."""
  machine = Topology('2*v5e:4x4', 'v5e', (4, 4), 2, [None] * 32)
  whole = Collective('all-reduce', 1, 100e6, False, 32)
  within = 2 * 15 / 16 * 100e6 / 200e9
  between = 2 * 1 / 2 * 100e6 / 16 / (25e9 / 8)
  seconds = figures.all_reduce_seconds((whole,), machine)
  assert seconds == pytest.approx(within + between)
  # What stays within a slice is not slower for the other.
  part = whole._replace(devices=16)
  seconds = figures.all_reduce_seconds((part,), machine)
  assert seconds == pytest.approx(within)
  old = Topology('2*v4:2x2x4', 'v4', (2, 2, 4), 2, [None] * 32)
  assert figures.all_reduce_seconds((whole,), old) is None
  assert figures.all_reduce_seconds((part,), old) is not None


def test_two_devices_of_a_chip_share_its_links():
  machine = Topology('tpu7x:2x2x1', 'tpu7x', (2, 2, 1), 1, [None] * 8)
  assert machine.chips == 4
  whole = Collective('all-reduce', 1, 100e6, False, 8)
  seconds = figures.all_reduce_seconds((whole,), machine)
  assert seconds == pytest.approx(2 * 3 / 4 * 100e6 / 200e9)


def test_gpus_share_a_switch():
  machine = Topology('cuda:h100:8', 'h100', (8,), 1, [None] * 8)
  whole = Collective('all-reduce', 1, 100e6, False, 8)
  seconds = figures.all_reduce_seconds((whole,), machine)
  assert seconds == pytest.approx(2 * 7 / 8 * 100e6 / 450e9)


def test_devices_of_ones_own_do_not_go_with_a_topology(tmp_path):
  config = digits(**{'plan.topology': 'v5e:2x2'})
  with pytest.raises(ConfigError, match='has devices of its own'):
    plan(config, tmp_path, devices=jax.devices()[:1])


@pytest.mark.skipif(HERE, reason='the compiler of TPUs is installed')
def test_without_the_compiler_it_is_said(tmp_path):
  config = digits(**{'plan.topology': 'v5e:2x2'})
  with pytest.raises(ConfigError, match=r"pip install 'adabatch\[tpu\]'"):
    plan(config, tmp_path)
