"""An extension of griffe: doctests of docstrings are shown as code."""

import re
from typing import Any

import griffe

# From the first `>>>` to an empty line, at its indentation.
DOCTEST = re.compile(
  r'^(?P<indent>[ \t]*)>>> .*(?:\n(?P=indent)\S?.*\S.*)*', re.MULTILINE
)


def fenced(text: str) -> str:
  """The same, with doctests in fences."""

  def fence(match: re.Match[str]) -> str:
    indent = match['indent']
    return f'{indent}```pycon\n{match[0]}\n{indent}```'

  return DOCTEST.sub(fence, text)


class Doctests(griffe.Extension):
  """Puts fences around the doctests of every docstring."""

  def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
    if obj.docstring:
      obj.docstring.value = fenced(obj.docstring.value)
