"""An extension of griffe: code and formulas of docstrings are shown as such."""

import re
import textwrap
from typing import Any

import griffe

# From the first `>>>` to an empty line, at its indentation.
DOCTEST = re.compile(
  r'^(?P<indent>[ \t]*)>>> .*(?:\n(?P=indent)\S?.*\S.*)*', re.MULTILINE
)
OPTIONS = re.compile(r' *# doctest: .*')
# Sections of arguments and the like; formulas come before them.
SECTION = re.compile(
  r'^(?:Args|Attributes|Raises|Returns|Yields):$', re.MULTILINE
)
# After an empty line, indented.
FORMULA = re.compile(r'(?<=\n\n)(?: {2,}\S.*\n?)+')
# What is not code: there an asterisk is one.
CODE = re.compile(r'(^ *```.*?^ *```|`[^`]*`)', re.MULTILINE | re.DOTALL)

# But not of the names of arguments, `*args:`.
ASTERISK = re.compile(r'(?<!^  )(?<!^  \*)\*', re.MULTILINE)


def fenced(text: str) -> str:
  """The same, with doctests in fences, without their options."""

  def fence(match: re.Match[str]) -> str:
    indent = match['indent']
    code = OPTIONS.sub('', match[0])
    return f'{indent}```pycon\n{code}\n{indent}```'

  return DOCTEST.sub(fence, text)


def set_off(text: str) -> str:
  """The same, with what is indented before the first section in fences.

  >>> print(set_off('Damps.\\n\\n  B_k = F*'))
  Damps.
  <BLANKLINE>
  ```output
  B_k = F*
  ```
  """
  section = SECTION.search(text)
  end = section.start() if section else len(text)

  def fence(match: re.Match[str]) -> str:
    return f'```output\n{textwrap.dedent(match[0]).rstrip()}\n```\n'

  return (
    FORMULA.sub(fence, text[:end]).rstrip('\n')
    + '\n' * (2 * bool(section))
    + text[end:]
  )


def plain(text: str) -> str:
  r"""The same, with asterisks that mean themselves.

  >>> print(plain('above F*, `full_*`'))
  above F\*, `full_*`
  """
  parts = CODE.split(text)
  parts[::2] = [ASTERISK.sub(r'\\*', part) for part in parts[::2]]
  return ''.join(parts)


class Doctests(griffe.Extension):
  """Of every docstring."""

  def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
    if obj.docstring:
      obj.docstring.value = plain(set_off(fenced(obj.docstring.value)))
