"""The site: it builds offline without a warning, and nothing in it is dead."""

import html
import html.parser
import os
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest

from adabatch import config
from tests.test_docs import load

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  directory = tmp_path_factory.mktemp('site')
  arguments = ['build', '--strict', f'--site-dir={directory}']
  done = subprocess.run(
    [sys.executable, '-m', 'mkdocs', *arguments],
    cwd=ROOT,
    # No address that is asked for answers.
    env=os.environ
    | {
      'NO_MKDOCS_2_WARNING': '1',
      'http_proxy': 'http://127.0.0.1:9',
      'https_proxy': 'http://127.0.0.1:9',
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return directory


class Page(html.parser.HTMLParser):
  """What a page links to, and what in it can be linked to."""

  def __init__(self, text):
    super().__init__()
    self.links, self.fetched, self.names = [], [], set()
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attributes = dict(attrs)
    self.names |= {attributes[k] for k in ('id', 'name') if attributes.get(k)}
    if tag == 'a' and attributes.get('href'):
      self.links.append(attributes['href'])
    for key in ('src', 'href'):
      if tag in ('img', 'script', 'link') and attributes.get(key):
        self.fetched.append(attributes[key])


def test_no_link_is_dead(site):
  pages = {
    path: Page(path.read_text())
    for path in site.rglob('*.html')
    if path.name not in ('404.html', 'fashion_mnist_fc.html')
  }
  assert len(pages) > 30
  dead = []
  for path, page in pages.items():
    for link in {*page.links, *page.fetched}:
      url = urllib.parse.urlsplit(link)
      if url.scheme in ('http', 'https', 'mailto'):
        continue
      target = path if not url.path else (path.parent / url.path).resolve()
      target = target / 'index.html' if target.is_dir() else target
      anchor = urllib.parse.unquote(url.fragment)
      if not target.is_file() or (
        anchor and target in pages and anchor not in pages[target].names
      ):
        dead.append(f'{path.relative_to(site)}: {link}')
  assert dead == []


def test_nothing_is_fetched_from_elsewhere(site):
  for path in site.rglob('*.html'):
    away = [a for a in Page(path.read_text()).fetched if '//' in a]
    assert [a for a in away if 'canonical' not in a] == [], path


def test_the_reference_is_made_from_the_sources():
  """Every key, and every public symbol, in pages that are of today."""
  make = load('make_reference')
  written = {
    path.name: path.read_text()
    for path in (ROOT / 'docs' / 'reference').glob('*.md')
  }
  assert written == make.pages(), 'run python docs/make_reference.py'
  for key in config.flatten(config.default()):
    assert f'| `{key}` |' in written['keys.md'], key


def test_every_public_symbol_says_what_it_is(site):
  """The page of a module has an entry for each, with words under it."""
  make = load('make_reference')
  for name in make.MODULES:
    page = site / 'reference' / name / 'index.html'
    names = Page(page.read_text()).names
    public = make.public_of(name)
    assert public
    assert [s for s in public if f'{name}.{s}' not in names] == [], name


def test_formulas_are_shown_as_code(site):
  page = (
    site / 'reference' / 'adabatch.controllers' / 'index.html'
  ).read_text()
  text = html.unescape(re.sub('<[^>]+>', '', page))
  assert 'B_k = ceil(B_0 ((F(x_0) - F*) / (F(x_k) - F*))^e)\n' in text
  assert '# doctest' not in text
  assert '<em>' not in page


def test_doctests_are_shown_as_code(site):
  fenced = load('site_docstrings').fenced
  assert fenced('Words.\n\n  >>> 1 + 1\n  2\n\nMore.') == (
    'Words.\n\n  ```pycon\n  >>> 1 + 1\n  2\n  ```\n\nMore.'
  )
  page = site / 'reference' / 'adabatch.controllers' / 'index.html'
  text = re.sub('<[^>]*>', '', page.read_text())
  assert '&gt;&gt;&gt; controller = ' in text


def test_code_and_plots_fit_a_narrow_screen(site):
  fitting = load('site_code').fitting
  assert fitting('<code>a --set b-c</code> --set') == (
    '<code>a <span class="dashes">--s</span>et b-c</code> --set'
  )
  assert fitting('<td>a.b <code>a.b_c 0.5</code></td><code>a.b</code>') == (
    '<td>a.b <code>a.<wbr>b_<wbr>c 0.<wbr>5</code></td><code>a.b</code>'
  )
  page = (site / 'index.html').read_text()
  assert re.search(r'<a href="run.png"><img [^>]*></a>', page)
  assert (site / 'site.css').exists()


def test_a_word_that_says_nothing_without_its_link_becomes_a_path(site):
  page = (site / 'results' / 'index.html').read_text()
  assert '<code>benchmarks/adadamp_vs_constant.py</code>' in page


def test_every_page_is_in_the_menu():
  menu = (ROOT / 'mkdocs.yml').read_text()
  pages = {
    str(path.relative_to(ROOT / 'docs'))
    for path in (ROOT / 'docs').rglob('*.md')
    if path.name != 'fashion_mnist_fc_words.md'
  }
  assert [page for page in sorted(pages) if f': {page}\n' not in menu] == []
