"""Each example runs; its batch grows and its loss falls."""

import importlib.util
import pathlib
import runpy
import sys

import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / 'examples'

# Loops of one's own, and what has to be installed for them.
LOOPS = {
  'optax_loop': ('optax', 'sklearn'),
  'linen_train_state': ('flax', 'optax', 'sklearn'),
  'nnx_loop': ('flax', 'optax', 'sklearn'),
  'equinox_loop': ('equinox', 'optax', 'sklearn'),
  'torch_loop': ('torch', 'sklearn'),
  'huggingface_trainer': ('torch', 'transformers', 'accelerate', 'sklearn'),
  'lightning_trainer': ('torch', 'lightning', 'sklearn'),
}


@pytest.mark.filterwarnings('ignore:::(transformers|accelerate|lightning)')
@pytest.mark.parametrize('name', LOOPS)
def test_the_batch_grows_and_the_loss_falls(name, monkeypatch, tmp_path):
  for package in LOOPS[name]:
    if importlib.util.find_spec(package) is None:
      pytest.skip(f'{package} is not installed')
  monkeypatch.setattr(sys, 'argv', [name, str(tmp_path)])
  names = runpy.run_path(str(EXAMPLES / f'{name}.py'), run_name='__main__')
  batch_size, sizes, losses = (
    names[key] for key in ('batch_size', 'sizes', 'losses')
  )
  assert sizes[0] == 16
  assert sizes[-1] == 128
  assert np.mean(losses[-10:]) < 0.2 * losses[0]
  assert batch_size.updates == len(sizes)
  assert batch_size.examples == sum(sizes)
  # The learning rate was damped, at some update.
  assert batch_size.nominal > 128
  if name == 'equinox_loop':  # each size is compiled once
    assert names['traces'] == sorted(set(sizes))
