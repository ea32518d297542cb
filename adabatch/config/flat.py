"""A config as one table, its keys with dots."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def flatten(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
  """Dotted keys and plain values.

  >>> flatten(ConfigDict({'optimizer': {'name': 'adam'}}))
  {'optimizer.name': 'adam'}
  """
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping | ConfigDict):
      flat.update({f'{key}.{k}': v for k, v in flatten(value).items()})
    else:
      flat[key] = value
  return flat
