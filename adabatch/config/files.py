"""Files written whole or not at all; of JSON, what is not finite is null.

And where those lie that outlive a run.
"""

import json
import math
import os
import pathlib
from typing import Any


def cache_directory(name: str) -> pathlib.Path:
  """Where a user's things of a kind are kept between runs; not made here.

  Below XDG_CACHE_HOME, else ~/.cache.
  """
  root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(root) / 'adabatch' / name


def finite(value: Any) -> Any:
  """NaN and infinities as None: JSON has no word for them.

  >>> finite({'loss': float('nan'), 'sizes': (1, 2.5)})
  {'loss': None, 'sizes': [1, 2.5]}
  """
  if isinstance(value, dict):
    return {key: finite(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [finite(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def read_json(path: pathlib.Path) -> Any:
  """What is in a JSON file; None if there is none, or not a whole one."""
  try:
    return json.loads(path.read_text(encoding='utf-8', errors='replace'))
  except (FileNotFoundError, NotADirectoryError, ValueError):
    # A killed run, or a full disk.
    return None


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file whole or not at all."""
  write_whole(path, (json.dumps(finite(value), indent=2) + '\n').encode())


def write_whole(path: pathlib.Path, content: bytes) -> None:
  """Writes a file whole or not at all, also beside others who write it."""
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    with temporary.open('wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
