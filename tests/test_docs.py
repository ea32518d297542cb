"""Pages in docs/ are what their data say."""

import html
import importlib.util
import json
import pathlib
import re

import numpy as np

from adabatch import study
from adabatch.controllers import Signals
from adabatch.study import archive
from adabatch.study.trials import COMPLETE, ERROR

DOCS = pathlib.Path(__file__).parent.parent / 'docs'


def load(name):
  """A script of docs/."""
  spec = importlib.util.spec_from_file_location(name, DOCS / f'{name}.py')
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  return script


def test_the_study_is_made_from_its_trials():
  make = load('make_fashion_mnist_fc')
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


def test_what_probes_said_is_made_from_the_log():
  log = json.loads((DOCS / 'probe_claims.json').read_text())
  assert (
    load('make_probe_claims').page(log)
    == (DOCS / 'probe_claims.md').read_text()
  )
  assert all((DOCS / f'probe_{name}.png').exists() for name in log['rows'])


def test_promises_are_held_by_tests_that_exist():
  page = (DOCS / 'reliability.md').read_text()
  tests = DOCS.parent / 'tests'
  sources = '\n'.join(path.read_text() for path in tests.rglob('test_*.py'))
  names = set(re.findall('`(test_[a-z0-9_]+)`', page))
  assert len(names) > 30
  assert [n for n in sorted(names) if f'def {n}(' not in sources] == []
  files = re.findall(r'`(tests/[a-z0-9_/]+\.py)`', page)
  assert [f for f in files if not (DOCS.parent / f).exists()] == []


def test_pictures_of_ideas_are_what_the_package_computes():
  make = load('make_concepts')
  numbers = make.numbers()
  for name, computed in numbers.items():
    text = (DOCS / 'concepts' / f'{name}.svg').read_text()
    (held,) = re.findall('<dc:description>(.*?)</dc:description>', text)
    drawn = json.loads(html.unescape(held))
    assert drawn.keys() == computed.keys()
    for key, column in computed.items():
      np.testing.assert_allclose(
        drawn[key],
        column,
        rtol=1e-3,
        atol=1e-3,
        err_msg=f'{name}, {key}: run python docs/make_concepts.py',
      )
  # Which is what the page says of them.
  page = (DOCS / 'concepts.md').read_text()
  assert re.findall(r'\((concepts/.*?)\)', page) == [
    f'concepts/{name}.svg' for name in numbers
  ]
  run = make.followed()
  asked = np.array(run['nominal'])
  np.testing.assert_allclose(
    run['damping'], np.minimum(1, make.LARGEST / asked), rtol=1e-6
  )
  rates = numbers['transform']
  np.testing.assert_allclose(
    rates['rate'],
    np.multiply(rates['undamped'], rates['damping']),
    rtol=2e-3,
  )
  local = [numbers['sync'][f'local_sgd, replica {k}'] for k in range(4)]
  at = slice(make.PERIOD, None, make.PERIOD)
  for replica in local:
    assert replica[at] == numbers['sync']['local_sgd, anchor'][at]


def test_the_rule_of_ones_own_runs():
  """As `docs/own.md` has it: larger as the loss falls."""
  page = (DOCS / 'own.md').read_text()
  names = {}
  exec(page.split('```python\n')[1].split('```')[0], names)
  rule = names['by_loss'](initial_batch_size=8)
  size, state = rule.update(rule.init(), Signals())
  assert size == 8.0
  for update in range(1, 50):
    size, state = rule.update(state, Signals(update=update, loss=0.023))
  assert 8 < size <= 8 * 10
