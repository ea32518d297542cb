"""The report's pages in a real browser, offline, from the disk.

Needs Chromium and its driver on PATH, and selenium; without them it is skipped.
"""

import base64
import shutil

import pytest

from adabatch.report import write_comparison, write_report
from adabatch.report.records import AXES
from adabatch.report.style import DARK, LIGHT
from tests.report.made_up_probe import three, write_probe
from tests.report.test_report import SUMMARY as RUN_SUMMARY
from tests.report.test_report import growing_run, write_run
from tests.report.test_report_study import (
  SUMMARY,
  made_up,
  made_up_study,
  write_job,
)

CHROMIUM = next(
  filter(
    None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))
  ),
  None,
)
DRIVER = shutil.which('chromedriver')
OWN = ('run', 'search', 'study', 'probe')  # of one directory
PAGES = (*OWN, 'comparison')

if not CHROMIUM or not DRIVER:
  pytest.skip(
    'needs chromium and chromedriver on PATH', allow_module_level=True
  )
selenium = pytest.importorskip(
  'selenium', reason='needs selenium: pip install selenium'
)


@pytest.fixture(scope='module')
def driver():
  """One browser for all tests; the paths are given, so nothing is fetched."""
  from selenium import webdriver
  from selenium.webdriver.chrome.service import Service

  options = webdriver.ChromeOptions()
  options.binary_location = CHROMIUM
  for flag in (
    '--headless=new',
    '--no-sandbox',
    '--disable-dev-shm-usage',
    # Nothing outside this machine can be reached, whatever a page asks for.
    '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost',
  ):
    options.add_argument(flag)
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
  service = Service(DRIVER)
  browser = webdriver.Chrome(options=options, service=service)
  browser.set_page_load_timeout(30)
  yield browser
  browser.quit()


@pytest.fixture(scope='module')
def addresses(tmp_path_factory):
  """Where the page of each kind is."""
  root = tmp_path_factory.mktemp('pages')
  records = growing_run(300, gradient_noise_scale=100.0)
  write_run(root / 'run', records, RUN_SUMMARY)
  search = SUMMARY | {'job': 'search'}
  write_job(root / 'search', [made_up(64)], search)
  write_job(root / 'study', made_up_study())
  write_probe(root / 'probe', three())
  write_run(root / 'other', growing_run(100))
  runs = root / 'run', root / 'other'
  comparison = write_comparison(runs, root / 'comparison.html')
  return {name: write_report(root / name).as_uri() for name in OWN} | {
    'comparison': comparison.as_uri()
  }


def resize(driver, width):
  """A window can not be made as narrow as a phone; what it shows can."""
  driver.execute_cdp_cmd(
    'Emulation.setDeviceMetricsOverride',
    {'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': False},
  )


def boxes(driver):
  """(width, height, texts) of every picture that is shown."""
  return driver.execute_script(
    """
    return [...document.querySelectorAll('svg')]
      .filter(svg => svg.checkVisibility())
      .map(svg => [svg.getBoundingClientRect().width,
                   svg.getBoundingClientRect().height,
                   svg.querySelectorAll('text').length,
                   svg.getBBox().width]);
    """
  )


def assert_drawn(found):
  for width, height, texts, drawn in found:
    assert width > 200
    assert height > 100
    assert texts > 2
    assert drawn > 0


@pytest.mark.parametrize('page', PAGES)
def test_nothing_is_complained_of(driver, addresses, page):
  driver.get_log('browser')
  driver.get(addresses[page])
  assert driver.execute_script('return document.readyState') == 'complete'
  assert driver.get_log('browser') == []
  # The log is heard: what the page forbids is said there.
  driver.execute_script(
    "const i = new Image(); i.src = 'https://example.com/x.png'; "
    'document.body.append(i)'
  )
  (entry,) = driver.get_log('browser')
  assert 'Content Security Policy' in entry['message']


@pytest.mark.parametrize('page', ['search', 'study', 'probe', 'comparison'])
def test_every_picture_is_shown(driver, addresses, page):
  resize(driver, 1200)
  driver.get(addresses[page])
  found = boxes(driver)
  total = driver.execute_script(
    "return document.querySelectorAll('svg').length"
  )
  assert len(found) == total >= 5
  assert_drawn(found)


def test_the_switch_of_a_run_shows_one_axis(driver, addresses):
  resize(driver, 1200)
  driver.get(addresses['run'])
  shown = {}
  for axis in AXES:
    driver.find_element('css selector', f'label[for=x-{axis}]').click()
    found = boxes(driver)
    assert len(found) == 6
    assert_drawn(found)
    shown[axis] = driver.execute_script(
      """
      return [...document.querySelectorAll('svg')]
        .filter(svg => svg.checkVisibility())
        .map(svg => svg.ariaLabel);
      """
    )
  assert len({tuple(labels) for labels in shown.values()}) == len(AXES)


@pytest.mark.parametrize('page', PAGES)
def test_no_horizontal_scrolling_on_a_phone(driver, addresses, page):
  resize(driver, 360)
  driver.get(addresses[page])
  # What is folded away must fit as well.
  driver.execute_script(
    "document.querySelectorAll('details').forEach(d => { d.open = true })"
  )
  scroll, client, inner = driver.execute_script(
    'const e = document.scrollingElement;'
    'return [e.scrollWidth, e.clientWidth, window.innerWidth]'
  )
  assert inner == 360
  assert scroll <= client


@pytest.mark.parametrize('page', PAGES)
def test_it_prints(driver, addresses, page):
  resize(driver, 1200)
  driver.get(addresses[page])
  pdf = base64.b64decode(driver.print_page())
  assert pdf.startswith(b'%PDF')
  assert len(pdf) > 20_000


@pytest.mark.parametrize('page', PAGES)
def test_it_follows_the_colour_scheme(driver, addresses, page):
  driver.get(addresses[page])
  for scheme, colors in (('light', LIGHT), ('dark', DARK), ('light', LIGHT)):
    feature = {'name': 'prefers-color-scheme', 'value': scheme}
    driver.execute_cdp_cmd(
      'Emulation.setEmulatedMedia', {'features': [feature]}
    )
    ground, text = driver.execute_script(
      """
      const word = [...document.querySelectorAll('svg text')]
        .find(text => text.checkVisibility());
      return [getComputedStyle(document.body).backgroundColor,
              getComputedStyle(word).fill];
      """
    )
    assert ground == rgb(colors['paper'])
    assert text == rgb(colors['ink'])


def rgb(color):
  """As a browser says it.

  >>> rgb('#ff0010')
  'rgb(255, 0, 16)'
  """
  return 'rgb({}, {}, {})'.format(*bytes.fromhex(color.removeprefix('#')))
