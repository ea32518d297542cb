"""A caller's own sequences."""

import types

import numpy as np
import pytest
from PIL import Image

from adabatch import data
from adabatch.train import inputs
from tests.data.test_tables import config, train
from tests.experiments import records


class Pictures:
  """As torchvision has them: pairs, pictures of PIL, the names of classes."""

  classes = ('ant', 'bee', 'cat')

  def __init__(self, count, seed=0):
    self._count, self._seed = count, seed

  def __len__(self):
    return self._count

  def __getitem__(self, index):
    rng = np.random.default_rng((self._seed, index))
    label = index % 3
    pixels = rng.integers(60 * label, 60 * label + 60, (8, 8), np.uint8)
    return Image.fromarray(pixels), label


class Rows(Pictures):
  """As Hugging Face's sets: mappings, and what their columns are."""

  features = types.MappingProxyType(
    {'label': types.SimpleNamespace(num_classes=3)}
  )
  classes = None

  def __getitem__(self, index):
    picture, label = super().__getitem__(index)
    vector = np.asarray(picture, np.float64).reshape(-1)[:5].tolist()
    return {'features': vector, 'label': label}


def splits(kind=Pictures, counts=(120, 30)):
  return tuple(
    data.from_sequence(kind(count, seed)) for seed, count in enumerate(counts)
  )


@pytest.mark.parametrize('kind', [Pictures, Rows])
def test_what_it_holds(kind):
  split, _ = splits(kind)
  assert (split.num_examples, split.num_classes) == (120, 3)
  chunk = split.read(np.array([5, 1]))
  name = 'image' if kind is Pictures else 'features'
  assert chunk.arrays[name].shape[1:] == split.shapes[name].shape
  assert chunk.arrays['label'].tolist() == [2, 1]
  resident = split.resident()
  for key in (name, 'label'):
    np.testing.assert_array_equal(
      resident.arrays[key][[5, 1]], chunk.arrays[key]
    )
  assert split.fingerprint == splits(kind)[0].fingerprint
  assert split.fingerprint != splits(kind, (121, 30))[0].fingerprint


def test_from_memory_and_from_a_stream_alike(tmp_path):
  found = []
  for placement in ('auto', 'streaming'):
    c = config('mine', **{'data.placement': placement}, epochs=4.0)
    train(c, tmp_path / placement, splits=splits())
    found.append(records(tmp_path / placement))
  for key, tolerance in (('batch_size', 0), ('loss', 1e-5)):
    np.testing.assert_allclose(
      *([r[key] for r in lines] for lines in found), rtol=tolerance
    )
  assert found[0][-1]['loss'] < found[0][0]['loss'] / 2


@pytest.mark.parametrize(('spare', 'streaming'), [(0, False), (-1, True)])
def test_what_does_not_fit_is_streamed(spare, streaming):
  c = config('mine', **{'data.max_resident_bytes': 150 * 68 + spare})
  opened = inputs.open_inputs(c, splits(), labels='classes')
  assert (opened.streaming, opened.workers) == (streaming, 0)


@pytest.mark.parametrize(
  ('sequence', 'how', 'message'),
  [
    ([], {}, 'is empty'),
    ([3], {}, 'item 0 is a int: give pairs'),
    ([('a', 1)], {}, 'item 0 is no picture or array of numbers'),
    ([{'pixels': 1, 'label': 0}], {}, 'items hold pixels, label: name one'),
    ([(np.ones(3), 0)], {}, 'num_classes is not given'),
    (
      [(np.ones(3), 0), (np.ones(4), 1)],
      {'num_classes': 2},
      r'item 1: features is float32 \[4\], that of item 0 float32 \[3\]',
    ),
  ],
)
def test_mistakes_get_one_line(sequence, how, message):
  with pytest.raises(data.DatasetError, match=message) as error:
    data.from_sequence(sequence, **how).resident()
  assert '\n' not in str(error.value)
