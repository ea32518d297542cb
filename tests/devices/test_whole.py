"""Metrics of a whole split, gathered from the devices, against scikit-learn."""

import contextlib
import math
from collections.abc import Callable

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from sklearn.metrics import average_precision_score

from adabatch import data
from adabatch.controllers import buckets
from adabatch.data.source import Chunk, Inputs
from adabatch.devices import evaluation
from adabatch.devices import state as state_lib
from adabatch.devices.evaluation import summary
from adabatch.devices.gathered import Gathered
from adabatch.devices.measurements import Measurements
from adabatch.devices.mesh import make_devices
from adabatch.devices.pieces import resident_pieces, streamed_pieces
from adabatch.devices.population import Member, Population
from adabatch.devices.recipe import Recipe
from adabatch.models.tasks import Whole, multi_label

EXAMPLES, LABELS = 37, 4
BAD = (0, 7, 36)  # records that cannot be read
NAME = 'mean_average_precision'


class Scores(nn.Module):
  """The inputs, each times a number."""

  scale: Callable = nn.initializers.ones

  @nn.compact
  def __call__(self, x, *, train, rows=None):
    return x * self.param('scale', self.scale, x.shape[-1:])


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
  return resident_pieces(arrays, limit, recipe.devices, 5)


def streamed(recipe):
  skipped = []
  return streamed_pieces(
    Damaged(recipe.inputs.evaluation),
    recipe.devices,
    5,
    workers=0,
    skipped=lambda *record: skipped.append(record),
  )


class Kept:
  """A reader whose processes stay, as `data.read_chunks` gives one."""

  def __init__(self, split, opened, again):
    self.split, self.at, self.closed = split, 0, False
    opened.append(self)
    assert again

  def __next__(self):
    assert not self.closed
    indices = np.arange(self.at, min(self.at + 8, EXAMPLES))
    self.at = 0 if indices[-1] + 1 == EXAMPLES else self.at + 8
    return self.split.read(indices)

  def close(self):
    self.closed = True


def test_readers_stay_between_passes(split, monkeypatch):
  opened = []
  monkeypatch.setattr(
    evaluation.data,
    'read_chunks',
    lambda split, *_, again, **__: Kept(split, opened, again),
  )
  recipe = make_recipe(split)
  pieces = streamed_pieces(
    Damaged(split), recipe.devices, 5, workers=2, skipped=lambda *_: None
  )

  def labels():
    found = [np.asarray(arrays['label'][0]) for arrays, _ in pieces.open()]
    return np.concatenate(found)[:EXAMPLES]

  for _ in range(3):
    np.testing.assert_array_equal(labels(), split.arrays['label'])
  assert len(opened) == 1
  assert not opened[0].closed
  midway = pieces.open()
  next(midway)
  midway.close()  # as where an evaluation fails
  assert opened[0].closed
  np.testing.assert_array_equal(labels(), split.arrays['label'])
  assert len(opened) == 2
  assert not opened[1].closed
  evaluation.Evaluator(recipe, pieces).close()
  assert opened[1].closed


def expected(split, rows):
  """The slow way: all that count, and of these the classes with a label."""
  scores, labels = (split.arrays[k][rows] for k in ('features', 'label'))
  some = labels.any(0)
  return average_precision_score(labels[:, some], scores[:, some]), some


@pytest.mark.parametrize(
  ('devices', 'backend', 'make'),
  [
    (1, 'shard_map', streamed),
    (2, 'shard_map', streamed),
    (2, 'pmap', resident),
    (8, 'shard_map', resident),
  ],
)
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


def test_equals_scikit_learn_in_a_population(split):
  """A negative number turns the order of its class round."""
  recipe = make_recipe(split, 2)._replace(
    model=Scores(nn.initializers.normal())
  )
  plan = buckets.plan(4, buckets.ladder(4, 4, devices=1))
  programs = Population(recipe, lambda values: recipe.tx, plan)
  group = programs.start([Member(seed, ()) for seed in (1, 2, 3)])
  scales = np.asarray(group.state.params['scale'])
  found, _ = programs.evaluate(group)
  assert len(found) == 4, 'the last place is idle'
  for scale, metrics in zip(scales[:3], found, strict=False):
    scores = split.arrays['features'] * scale
    value = average_precision_score(split.arrays['label'], scores)
    assert metrics[NAME] == pytest.approx(value, rel=1e-12)
  assert len({metrics[NAME] for metrics in found[:3]}) == 3


def test_what_rules_read_gathers_nothing(split):
  whole = Whole(gather=lambda *_: pytest.fail('asked'), metrics=lambda _: {})
  recipe = make_recipe(split, task=multi_label()._replace(whole=whole))
  recipe = recipe._replace(needs=frozenset(['full_loss']))
  measurements = Measurements(
    recipe,
    recipe.devices.place(split.arrays),
    lambda split: lambda record, reason: None,
    contextlib.nullcontext,
    has_statistics=False,
  )
  values, cost = measurements.take(make_state(recipe))
  assert values.keys() == {'full_loss'}
  assert cost == EXAMPLES


def test_gathered_must_be_of_each_example(split):
  whole = Whole(lambda outputs, batch: {'mean': outputs.mean(0)}, lambda _: {})
  recipe = make_recipe(split, task=multi_label()._replace(whole=whole))
  evaluator = evaluation.Evaluator(recipe, resident(recipe))
  with pytest.raises(ValueError, match=r'shape \(4,\), not \(5, \.\.\.\)'):
    evaluator.metrics(make_state(recipe))


# On the host alone.


def test_pieces_are_put_together_without_what_does_not_count():
  gathered = Gathered(6)
  for start in range(0, 9, 3):
    rows = np.arange(start, start + 3)
    values = {'a': rows[:, None].astype(np.float32), 'b': rows > 3}
    gathered.add(values, np.float32(rows % 2) / 2)
  found = gathered.all()
  assert found['a'].tolist() == [[1.0], [3.0], [5.0], [7.0]]
  assert found['b'].tolist() == [False, False, True, True]
  assert (found['a'].dtype, found['b'].dtype) == (np.float32, np.bool_)


def report(whole, loss=1.0):
  task = multi_label()._replace(whole=whole)
  gathered = Gathered(1)
  gathered.add(np.zeros(1), np.ones(1))
  sums = {'ranking_average_precision': 1.0, 'loss': loss}
  return summary(task, sums, np.float32(2), gathered)


def test_nothing_is_made_of_the_scores_of_a_model_that_diverged():
  whole = Whole(lambda *_: None, lambda _: pytest.fail('asked'))
  found = report(whole, math.inf)
  assert list(found) == ['loss', 'ranking_average_precision', NAME]
  assert math.isnan(found[NAME])


@pytest.mark.parametrize('made', [{}, {'auc': 1.0}, {NAME: 1.0, 'auc': 1.0}])
def test_what_is_made_must_be_what_was_announced(made):
  with pytest.raises(ValueError, match=f'higher_is_better has {NAME}'):
    report(Whole(lambda *_: None, lambda _: made))
  found = report(Whole(lambda *_: None, lambda _: {NAME: np.float64(0.25)}))
  assert found == {'loss': 0.5, 'ranking_average_precision': 0.5, NAME: 0.25}
  assert type(found[NAME]) is float
