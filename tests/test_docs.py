"""Pages in docs/ are what their data say."""

import importlib.util
import pathlib
import re

from adabatch import study
from adabatch.study import archive
from adabatch.study.trials import COMPLETE, ERROR

DOCS = pathlib.Path(__file__).parent.parent / 'docs'


def test_the_study_is_made_from_its_trials():
  path = DOCS / 'make_fashion_mnist_fc.py'
  spec = importlib.util.spec_from_file_location(path.stem, path)
  make = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(make)
  searches = archive.read_tree(DOCS / 'fashion_mnist_fc.tar.xz')
  words = (DOCS / 'fashion_mnist_fc_words.md').read_text()
  page = (DOCS / 'fashion_mnist_fc.md').read_text()
  assert make.page(searches, words) == page
  assert len(searches) == 20
  for search in searches:
    assert sum(t.status == COMPLETE for t in search.trials) == 30
  for workload in study.summarize(searches, ERROR, make.GOAL):
    sizes = [row.batch_size for row in workload.rows]
    assert sizes == [16 * 2**i for i in range(10)]
    fit = workload.fit
    for number in (fit.min_steps, *fit.critical_batch_size_interval):
      assert f'{number:,.0f}' in page


def test_promises_are_held_by_tests_that_exist():
  page = (DOCS / 'reliability.md').read_text()
  tests = DOCS.parent / 'tests'
  sources = '\n'.join(path.read_text() for path in tests.rglob('test_*.py'))
  names = set(re.findall('`(test_[a-z0-9_]+)`', page))
  assert len(names) > 30
  assert [n for n in sorted(names) if f'def {n}(' not in sources] == []
  files = re.findall(r'`(tests/[a-z0-9_/]+\.py)`', page)
  assert [f for f in files if not (DOCS.parent / f).exists()] == []
