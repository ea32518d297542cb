"""A hook of the site's build: links to files that the site does not hold.

Pages link to sources as they lie beside `docs/`. With a `repo_url` they become
links into it; without one, the text alone, or the path where the text is a
word such as `script` that says nothing without its link.
"""

import posixpath
import re
from typing import Any

LINK = re.compile(r'(?<!!)\[([^\]]*)\]\((?!https?:)([^)#\s]+)(#[^)\s]*)?\)')
BARE = ('Config', 'configs', 'example', 'script', 'tests')


def on_page_markdown(
  markdown: str, *, page: Any, config: Any, files: Any
) -> str:
  """The page with such links replaced."""
  del files
  here = posixpath.dirname(page.file.src_uri)

  def replace(link: re.Match[str]) -> str:
    path = posixpath.normpath(posixpath.join('docs', here, link[2]))
    if path.startswith('docs/') and not path.endswith('.py'):
      return link[0]
    if config.repo_url:
      return f'[{link[1]}]({config.repo_url.rstrip("/")}/blob/main/{path})'
    return f'`{path}`' if link[1] in BARE else link[1]

  return LINK.sub(replace, markdown)
