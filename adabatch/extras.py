"""What to say where a package is missing. Imports nothing but Python's own."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def needed(extra: str) -> Iterator[None]:
  """Imports of a program; ends it in one line if a package is not installed.

  A module of adabatch itself that is not there is a fault of another kind, and
  raises as ever.

  Args:
    extra: of adabatch, which brings the packages along.

  Raises:
    SystemExit: with the line.
  """
  try:
    yield
  except ModuleNotFoundError as error:
    package = (error.name or '').partition('.')[0]
    if package in ('', 'adabatch'):
      raise
    sys.exit(
      f'error: {package} is not installed, which comes with '
      f"adabatch[{extra}]: pip install '.[{extra}]'"
    )
