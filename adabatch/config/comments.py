"""What each key means: the comments of the files of keys."""

import ast
import functools
import io
import pathlib
import re
import tokenize
from collections.abc import Iterator


@functools.cache
def comments() -> dict[str, str]:
  """Of every key, and of every table that has one, by its name with dots.

  >>> comments()['controller.every']
  'updates between two decisions'
  """
  found = {}
  for path in sorted(pathlib.Path(__file__).parent.glob('*keys.py')):
    found |= _read(path.read_text())
  return found


def _read(source: str) -> dict[str, str]:
  """Of each `c.TABLE.KEY = default`: the comment above, and that beside it."""
  comment: dict[int, tuple[bool, str]] = {}
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      alone = not token.line[: token.start[1]].strip()
      comment[token.start[0]] = alone, token.string.lstrip('# ')

  def above(line: int) -> Iterator[str]:
    if line in comment and comment[line][0]:
      yield from above(line - 1)
      yield comment[line][1]

  found = {}
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Assign):
      continue
    key = ast.unparse(node.targets[0])
    if key.startswith('c.'):
      last = node.end_lineno or node.lineno
      beside = [
        comment[line][1]
        for line in range(node.lineno, last + 1)
        if line in comment
      ]
      words = ' '.join([*above(node.lineno - 1), *beside])
      found[key.removeprefix('c.')] = re.sub(r'\s+', ' ', words)
  return found
