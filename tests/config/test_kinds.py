"""Values of another kind are refused before anything else."""

import math

import jax
import pytest

from adabatch import config as config_lib
from adabatch.config import ConfigError, kinds
from adabatch.search.study_job import study
from adabatch.train.build import check_values
from adabatch.train.evaluate_job import evaluate
from adabatch.train.job import train


def changed(**values):
  config = config_lib.default()
  with config.unlocked(), config.ignore_type():
    config.update_from_flattened_dict(values)
  return config


# Of each kind values that are not of it.
OTHERS = {
  bool: (0, 1.0, 'True', None, (True,)),
  int: (True, 2.0, '2', None, (2,), 2**63, math.nan),
  float: (True, '0.5', None, (0.5,), math.nan, math.inf, 10**400),
  str: (1, 0.5, None, ('x',), b'x', True, 'a\nb', '\0'),
  tuple: (1, 0.5, None, 'x', (None,), ((),), (1,) * 1001),
}


@pytest.mark.parametrize('key', kinds.ALL)
def test_of_every_key(key):
  default = config_lib.flatten(config_lib.default())[key]
  kind = kinds.ALL[key]
  assert kind.holds(default)
  if default is None or key in config_lib.COUNTED:
    others = (b'x', {1}, (b'x',), math.nan)
  else:
    others = OTHERS[int if key in config_lib.AUTOMATIC else type(default)]
  for value in others:
    if (key, value) == ('search.space', ((),)):
      continue  # a row, which the space itself refuses
    if (key, value) == ('seed', 2**63):
      continue
    if key in kinds.TABLES and isinstance(value, str):
      continue
    assert not kind.holds(value), value


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'optimizer.name': 3}, 'optimizer.name must be a text in one line, got 3'),
    (
      {'study.optimizers': (-1,)},
      r'study.optimizers must be a tuple .*, each a text in .*, got \(-1,\)',
    ),
    ({'data.mean': 0.5}, 'data.mean must be a tuple .* or None, got 0.5'),
    ({'max_updates': 2.5}, 'max_updates must be a whole number .* got 2.5'),
    ({'epochs': '3'}, "epochs must be a finite number, got '3'"),
    ({'max_tokens': (1,)}, r"or a text such as '2.5B', or None, got \(1,\)"),
    ({'optimizer.args.x': (1, b'x')}, 'args.x must be a finite number, a text'),
    (
      {'optimizer.args.x': math.inf},
      'args.x must be a finite number, .* got inf',
    ),
    ({'model.mlp.hidden_sizes': (8, 0)}, r'hidden_sizes must be from 1 to'),
    ({'model.resnet.depth': 10**6}, 'must be from 1 to 2,000, got 1000000'),
  ],
)
def test_in_one_line(values, message):
  with pytest.raises(ConfigError, match=message) as error:
    check_values(changed(**values))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('job', [train, study, evaluate])
def test_before_anything_else(job, tmp_path):
  config = changed(**{'study.optimizers': (-1,), 'search.space': 5})
  with pytest.raises(ConfigError, match='must be a tuple of at most'):
    job(config, tmp_path / 'run', devices=jax.devices()[:1])
  assert not (tmp_path / 'run').exists()
