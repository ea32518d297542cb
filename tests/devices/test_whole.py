"""Metrics of a whole split, gathered from the devices, against scikit-learn."""

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from sklearn.metrics import average_precision_score

from adabatch import data
from adabatch.data.source import Chunk, Inputs
from adabatch.devices import evaluation
from adabatch.devices import state as state_lib
from adabatch.devices.mesh import make_devices
from adabatch.devices.recipe import Recipe
from adabatch.models.tasks import multi_label

EXAMPLES, LABELS = 37, 4
BAD = (0, 7, 36)  # records that cannot be read
NAME = 'mean_average_precision'


class Scores(nn.Module):
  """Whole numbers, of which many are equal."""

  @nn.compact
  def __call__(self, x, *, train, rows=None):
    return x + self.param('bias', nn.initializers.zeros, x.shape[-1:])


class Damaged:
  """Examples, some of which cannot be read."""

  def __init__(self, split):
    self.arrays, self.shapes = split.arrays, split.shapes
    self.num_examples = split.num_examples

  def read(self, indices, positions=None):
    good = ~np.isin(indices, BAD)
    arrays = {k: v[indices] for k, v in self.arrays.items()}
    # What lies in an empty slot must not count, whatever it is.
    arrays['features'] = np.where(good[:, None], arrays['features'], 9)
    arrays['weight'] = good.astype(np.float32)
    bad = tuple((int(i), 'damaged') for i in indices[~good])
    return Chunk(arrays, bad)


def load(arrays, indices, positions):
  return {name: array[indices] for name, array in arrays.items()}


@pytest.fixture(scope='module')
def split():
  rng = np.random.default_rng(5)
  labels = rng.random((EXAMPLES, LABELS)) < 0.4
  labels[:, 2] = np.arange(EXAMPLES) == 7  # true of a damaged record alone
  noise = rng.normal(size=labels.shape)
  arrays = {
    'features': np.round(labels + noise).astype(np.float32),
    'label': labels.astype(np.int32),
    'weight': np.ones(EXAMPLES, np.float32),
  }
  return data.Split(arrays, LABELS)


def make_recipe(split, devices=1, backend='shard_map', task=None):
  return Recipe(
    model=Scores(),
    task=multi_label() if task is None else task,
    tx=optax.sgd(0.1),
    inputs=Inputs(
      train=split,
      evaluation=split,
      streaming=False,
      workers=0,
      load_train=lambda seed: load,
      load=load,
    ),
    network_input=jax.ShapeDtypeStruct((1, LABELS), np.float32),
    devices=make_devices(jax.devices()[:devices], backend=backend),
    evaluated_at_once=5,
  )


def make_state(recipe):
  example = np.zeros((1, LABELS), np.float32)
  rng = jax.random.key(0)
  return recipe.devices.jit(
    lambda: state_lib.create(recipe.model, example, recipe.tx, rng),
    out_shardings=recipe.devices.shardings('whole'),
  )()


def resident(recipe, limit=EXAMPLES):
  arrays = recipe.devices.place(recipe.inputs.evaluation.arrays)
  return evaluation.resident_pieces(arrays, limit, recipe.devices, 5)


def streamed(recipe):
  skipped = []
  return evaluation.streamed_pieces(
    Damaged(recipe.inputs.evaluation),
    recipe.devices,
    5,
    workers=0,
    skipped=lambda *record: skipped.append(record),
  )


def expected(split, rows):
  """The slow way: all that count, and of these the classes with a label."""
  scores, labels = (split.arrays[k][rows] for k in ('features', 'label'))
  some = labels.any(0)
  return average_precision_score(labels[:, some], scores[:, some]), some


@pytest.mark.parametrize(
  ('devices', 'backend'), [(1, 'shard_map'), (2, 'pmap'), (8, 'shard_map')]
)
@pytest.mark.parametrize('make', [resident, streamed])
def test_equals_scikit_learn_on_any_devices(split, devices, backend, make):
  rows = np.arange(EXAMPLES)
  if make is streamed:
    rows = np.setdiff1d(rows, BAD)
  value, some = expected(split, rows)
  assert some.all() == (make is resident)
  assert 0.3 < value < 0.95
  recipe = make_recipe(split, devices, backend)
  evaluator = evaluation.Evaluator(recipe, make(recipe))
  state = make_state(recipe)
  for _ in range(2):  # nothing stays
    got = evaluator.metrics(state)
    assert list(got) == ['loss', 'ranking_average_precision', NAME]
    assert got[NAME] == pytest.approx(value, rel=1e-12)
  assert evaluator.skipped == EXAMPLES - len(rows)
