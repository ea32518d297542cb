"""The network of a run: its parameters, and the work that an example is."""

from typing import Any

import jax

from adabatch.controllers.buckets import Bucket
from adabatch.devices.mesh import make_devices
from adabatch.devices.step import Variant
from adabatch.devices.trainer import Trainer, template
from adabatch.train.build import Parts
from adabatch.train.memory import size_of


def describe(parts: Parts) -> dict[str, Any]:
  """Plain numbers: parameters by group, bytes, FLOPs of an example.

  FLOPs are those of the lowered program as XLA counts them, of a forward and a
  backward pass, as the difference of two batch sizes: what an update costs
  whatever its size, such as the optimizer's part, is not in it.
  """
  recipe = parts.recipe
  state = template(recipe, recipe.replicas)
  params = state.params
  groups = {
    str(name): sum(x.size for x in jax.tree.leaves(tree))
    for name, tree in (
      params.items() if isinstance(params, dict) else [('all', params)]
    )
  }
  return {
    'name': parts.config.model.name,
    'parameters': sum(groups.values()),
    'groups': groups,
    'parameter_bytes': size_of(params),
    'state_bytes': size_of(state),
    'flops_per_example': flops_per_example(parts),
  }


def flops_per_example(parts: Parts) -> float | None:
  """Of training on one more example; None where XLA does not say."""
  recipe, group = parts.recipe, parts.ladder.group_size or 1
  # Of here: not every compiler counts before it compiles.
  one = make_devices(jax.local_devices()[:1])
  recipe = recipe._replace(
    devices=one._replace(abstract=True),
    needs=frozenset(),
    sync=None,
    replicas=1,
    updates_per_call=1,
  )
  trainer = Trainer(recipe)
  try:
    few, many = (
      (trainer.lower(Variant(Bucket(size, 1, 1))).cost_analysis() or {}).get(
        'flops'
      )
      for size in (group, 2 * group)
    )
  finally:
    trainer.close()
  return None if few is None or many is None else (many - few) / group
