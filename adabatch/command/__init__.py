"""The command line: the jobs, and words on what there is."""

import sys

try:
  import absl  # noqa: F401
  import ml_collections  # noqa: F401
except ModuleNotFoundError as error:
  sys.exit(
    f"error: {error.name} is not installed: pip install 'adabatch[train]'"
  )
