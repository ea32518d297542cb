"""A hook of the site's build: what makes code and pictures fit a narrow screen.

On a narrow screen `--set` breaks after its dashes, and a key in a table in the
middle of a word. Dashes are kept with the letter behind them, and in cells a
key may break after a dot, an underscore or a slash. What is copied stays. A
plot is a link to itself, so that it opens in its own size.
"""

import re
from typing import Any

CODE = re.compile(r'(<code\b[^>]*>)(.*?)(</code>)', re.DOTALL)
CELL = re.compile(r'<t[dh]\b.*?</t[dh]>', re.DOTALL)
TEXT = re.compile(r'(?<=>)[^<]+')
DASHES = re.compile(r'(?<![\w-])(--?[A-Za-z])')
PLOT = re.compile(r'<img\b[^>]*\bsrc="([^"]+\.png)"[^>]*>')
JOINT = re.compile(r'(?<=\w)([._/])(?=\w)')


def in_code(html: str, pattern: re.Pattern[str], with_: str) -> str:
  """The same, with a pattern replaced in the words of code alone."""

  def words(text: re.Match[str]) -> str:
    return pattern.sub(with_, text[0])

  def code(match: re.Match[str]) -> str:
    return match[1] + TEXT.sub(words, f'>{match[2]}')[1:] + match[3]

  return CODE.sub(code, html)


def fitting(html: str) -> str:
  """The page with places where code may break, or not; plots that open."""
  html = CELL.sub(lambda cell: in_code(cell[0], JOINT, r'\1<wbr>'), html)
  html = PLOT.sub(r'<a href="\1">\g<0></a>', html)
  return in_code(html, DASHES, r'<span class="dashes">\1</span>')


def on_page_content(html: str, **_: Any) -> str:
  """Of every page."""
  return fitting(html)
