"""A run that starts from the parameters of another."""

from collections.abc import Callable

import jax
import numpy as np

from adabatch.config import ConfigError
from adabatch.train.build import Parts
from adabatch.train.load import load


def start_from(parts: Parts, workdir: str, say: Callable[[str], None]) -> Parts:
  """Parts that begin with what another run has learnt.

  Args:
    parts: of the new run.
    workdir: of the other one.
    say: is told how much fits, and what does not.

  Raises:
    ConfigError: if there is no such run, or nothing fits.
  """
  try:
    other, recipe = load(workdir), parts.recipe
  except ConfigError as error:
    raise ConfigError(f'init_from={workdir!r}: {error}') from None
  initial = jax.tree.map(
    np.asarray, {'params': other.params, **other.model_state}
  )
  given = dict(jax.tree_util.tree_leaves_with_path(initial))

  def variables(rng, x):
    return dict(recipe.model.init(rng, x, train=False))

  fresh = jax.tree_util.tree_leaves_with_path(
    jax.eval_shape(variables, jax.random.key(0), recipe.network_input)
  )
  anew = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, leaf in fresh
    if path not in given or given[path].shape != leaf.shape
  ]
  if len(anew) == len(fresh):
    raise ConfigError(
      f'init_from={workdir!r}: none of its arrays has the name and shape of '
      'one here: give a run of the same network'
    )
  some = f'; anew: {", ".join(anew)}' if anew else ''
  say(
    f'starts from update {other.update} of {workdir}: {len(fresh) - len(anew)} '
    f'of {len(fresh)} arrays{some}'
  )
  here = recipe.inputs.statistics
  if here is not None and other.mean is not None:
    there = np.array([other.mean, other.std])
    if there.shape != np.shape(here) or not np.allclose(there, here, rtol=0.01):
      say(
        'inputs were standardised otherwise there: to keep that, set data.mean '
        f'to {tuple(there[0].tolist())} and data.std to '
        f'{tuple(there[1].tolist())}'
      )
  return parts._replace(recipe=recipe._replace(initial=initial))
