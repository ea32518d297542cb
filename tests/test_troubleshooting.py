"""Pages of help quote what the code says, and keys and configs that exist."""

import ast
import contextlib
import functools
import importlib.util
import pathlib
import re
import shlex

import pytest

from adabatch import config
from adabatch.command import configs
from adabatch.command.main import JOBS, make_parser
from adabatch.train.build import check_values

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / 'docs'
HELP = ('troubleshooting', 'recipes')
# What the command line puts before a line, whatever it is.
PREFIXES = ('error: ', 'no report: ')
VALUE = '\0'  # that is not in the source
PLACEHOLDER = r'\b(?:[A-Z][A-Z_]+|N)\b'


def page(name):
  return (DOCS / f'{name}.md').read_text()


def messages():
  """Those that the page quotes: its blocks of text."""
  blocks = re.findall(
    r'^```text\n(.*?)^```$', page('troubleshooting'), re.M | re.S
  )
  return [' '.join(block.split()) for block in blocks]


def spoken(node):
  """What a piece of source says, with VALUE for what is put in."""
  match node:
    case ast.Constant(value=str(text)):
      return text
    case ast.JoinedStr(values=values):
      return ''.join(map(spoken, values))
    case ast.BinOp(left=left, op=ast.Add(), right=right):
      return spoken(left) + spoken(right)
  return VALUE


@functools.cache
def said():
  """Everything that the sources can say, each whole, without docstrings."""
  found = set()
  for path in (*(ROOT / 'adabatch').rglob('*.py'), ROOT / 'launch.py'):
    tree = ast.parse(path.read_text())
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
      if (
        isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)
        and id(node) not in docs
      ):
        found.add(' '.join(spoken(node).split()))
  return found


def pattern(message):
  """Its constant parts, in order, with anything between them."""
  for prefix in PREFIXES:
    message = message.removeprefix(prefix)
  parts = [part.strip(' \'"') for part in re.split(PLACEHOLDER, message)]
  return '.*'.join(re.escape(part) for part in parts if part)


def test_quoted_messages_are_those_of_the_sources():
  quoted = messages()
  assert len(quoted) >= 40
  assert len(set(quoted)) == len(quoted)
  for message in quoted:
    assert len(re.findall('[a-z]+', pattern(message))) > 1, message
  assert [
    message
    for message in quoted
    if not any(re.search(pattern(message), text) for text in said())
  ] == []


def test_what_is_not_said_is_not_found():
  real = 'error: unknown config key KEY'
  assert any(re.search(pattern(real), text) for text in said())
  altered = pattern('error: unbeknown config key KEY')
  assert not any(re.search(altered, text) for text in said())


@pytest.mark.parametrize('name', HELP)
def test_keys_exist(name):
  known = config.flatten(config.default())
  text = ' '.join(page(name).split())
  given = re.findall(r'(?:--set[ =]|--config\.)([a-z][\w.]*)=', text)
  assert given
  inline = [
    key
    for key in re.findall(r'`([a-z_]+(?:\.\w+)+)(?:=[^`]*)?`', text)
    if key.split('.')[0] in config.default() and not key.endswith('.txt')
  ]
  tables = {'.'.join(key.split('.')[:i]) for key in known for i in range(1, 4)}
  assert [
    key
    for key in (*given, *inline)
    if key not in known | dict.fromkeys(tables)
    and not key.startswith('optimizer.args.')
  ] == []


def given_a_value(c, one):
  """Sets KEY=VALUE, as the command line does."""
  key, _, value = one.partition('=')
  with contextlib.suppress(ValueError, SyntaxError):
    value = ast.literal_eval(value)
  with c.ignore_type(), c.unlocked():
    c.update_from_flattened_dict({key: value})


@pytest.mark.parametrize('name', HELP)
def test_keys_may_have_these_values(name):
  found = re.findall(
    r'--set[ =]([a-z][\w.]*=(?:"[^"]*"|\'[^\']*\'|[^\s`]+))', page(name)
  )
  assert found
  for one in found:
    c = config.default()
    given_a_value(c, shlex.split(one)[0])
    check_values(c)


def commands():
  """The lines of shell of the recipes that are `adabatch JOB CONFIG ...`."""
  blocks = re.findall(r'^```sh\n(.*?)^```$', page('recipes'), re.M | re.S)
  lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
  jobs = '|'.join(JOBS)
  return [
    shlex.split(command)
    for line in lines
    for command in re.findall(rf'\badabatch (?:{jobs}) [^;&|#]+', line)
  ]


def named(word):
  """The config of a name, as `adabatch JOB` takes it."""
  path, _, variant = configs.find(word).rpartition('.py')
  spec = importlib.util.spec_from_file_location('named', f'{path}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*filter(None, [variant.lstrip(':')]))


def test_recipes_are_of_configs_that_exist_and_may_have_these_values():
  assert len(commands()) > 10
  for _, *words in commands():
    given, others = make_parser().parse_known_args(words)
    assert others == [], words
    # The directory of a run, or a file of the reader's own.
    own = given.config.startswith('runs/') or given.config == 'mine.py'
    c = config.default() if own else named(given.config)
    for one in given.set:
      given_a_value(c, one)
    check_values(c)


@pytest.mark.parametrize('name', HELP)
def test_configs_that_are_named_exist(name):
  for word in re.findall(r'configs/([a-z]\w*\.py(?::\w+)?)', page(name)):
    named(word.replace('.py', ''))


@pytest.mark.parametrize('name', [*HELP, 'compared'])
def test_pages_that_are_linked_to_exist(name):
  links = re.findall(r'\]\((?!http|#)([^)#]+)', page(name))
  assert [link for link in links if not (DOCS / link).exists()] == []


def test_recipes_are_short():
  recipes = page('recipes').split('\n## ')[1:]
  assert len(recipes) >= 7
  for recipe in recipes:
    lines = [line for line in recipe.splitlines()[1:] if line.strip()]
    assert len(lines) <= 15, recipe.splitlines()[0]
