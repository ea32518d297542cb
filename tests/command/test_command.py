"""`adabatch COMMAND`: the jobs by short names, and words on what there is."""

import importlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import tomllib

import pytest
from PIL import Image

from adabatch import config as config_lib
from adabatch.command import configs, explain, jobs, listing
from adabatch.command import main as main_lib
from adabatch.config.extras import EXTRAS
from tests import commands

ROOT = pathlib.Path(__file__).parents[2]


def said(capsys, *arguments):
  """What a command that trains nothing says; its exit status is 0."""
  assert main_lib.main(arguments) == 0
  return capsys.readouterr().out


def refused(capsys, *arguments, status=2):
  with pytest.raises(SystemExit) as ended:
    main_lib.main(arguments)
  assert ended.value.code == status
  return capsys.readouterr().err


def adabatch(*arguments):
  """A job, as the installed command runs it."""
  environment = os.environ | {'XLA_FLAGS': commands.QUICKLY}
  script = str(ROOT / 'adabatch' / '__main__.py')
  return commands.run([script, *arguments], environment)


@pytest.mark.quick
def test_words_need_no_jax():
  """And come in a second, where a training would still be importing."""
  code = """
import sys
from adabatch.command.main import main
for line in ('list', 'list rules', 'explain controller.every', 'explain data'):
  assert main(line.split()) == 0
loaded = [name for name in ('jax', 'flax', 'optax') if name in sys.modules]
assert not loaded, loaded
"""
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert 'updates between two decisions' in done.stdout


def test_lists_name_what_a_config_may_name(capsys):
  """The very tables, whose rows are read here without importing them."""
  for what, module, table in (
    ('rules', 'adabatch.controllers', 'CONTROLLERS'),
    ('models', 'adabatch.models', 'MODELS'),
    ('optimizers', 'adabatch.optim.optimizers', 'OPTIMIZERS'),
    ('tasks', 'adabatch.models.tasks', 'TASKS'),
    ('sync', 'adabatch.optim.sync', 'SYNC_RULES'),
  ):
    rows = listing.LISTS[what]()
    there = getattr(importlib.import_module(module), table)
    assert list(rows) == ['synchronous'] * (what == 'sync') + list(there)
    for name, words in rows.items():
      assert len(words) > 10, name
      if what not in ('optimizers', 'sync'):
        text = ' '.join((there[name].__doc__ or '').split())
        assert text.startswith(words), name
  assert set(listing.LISTS['configs']()) == {
    path.stem for path in (ROOT / 'configs').glob('*.py')
  }
  out = said(capsys, 'list')
  assert all(f'{what} (' in out for what in listing.LISTS)
  assert max(map(len, out.splitlines())) <= 120


def test_every_key_is_explained():
  """With what it means, and a place that reads it."""
  flat = config_lib.flatten(config_lib.default())
  sources = explain._sources()
  for key in flat:
    readers = explain._readers(key, sources)
    assert readers, key
    assert all((ROOT / reader).is_file() for reader in readers), key
  found = explain.explain('learning_rate.decay.factor')
  assert found.read == ['adabatch/train/optimizer.py']
  assert found.kind == 'a finite number'
  assert found.range == 'above 0'
  found = explain.explain('controller.adadamp.exponent')
  assert found.read == ['adabatch/controllers/damping.py']
  assert ('digits_mlp', "'full'") in explain.explain(
    'controller.adadamp.loss_source'
  ).set


def test_explain(capsys):
  out = said(capsys, 'explain', 'buckets.rounding')
  assert "default   'up'" in out
  assert '--set buckets.rounding=' in out
  out = said(capsys, 'explain', 'learning_rate.warmup')  # a table
  assert 'learning_rate.warmup.kind' in out
  assert 'learning_rate.base' not in out
  err = refused(capsys, 'explain', 'controler.every', status=1)
  assert err == (
    "error: no key 'controler.every' (did you mean 'controller.every'?)\n"
  )


@pytest.mark.parametrize('name', [*main_lib.JOBS, 'report', 'list', 'explain'])
def test_help_is_short_and_has_examples(name, capsys):
  with pytest.raises(SystemExit) as ended:
    main_lib.main([name, '--help'])
  assert ended.value.code == 0
  out = capsys.readouterr().out
  examples = re.findall(rf'^  adabatch {name}.*', out, re.MULTILINE)
  assert len(examples) == 3
  assert len(out.splitlines()) <= 32


def test_every_job_of_launch_has_words():
  assert set(main_lib.JOBS) == set(jobs.JOBS)


@pytest.mark.parametrize('name', main_lib.JOBS)
def test_examples_of_the_help_name_keys_and_configs_that_exist(name):
  flat = config_lib.flatten(config_lib.default())
  for example in main_lib.JOBS[name].examples:
    words = example.replace('%%', '%').partition('#')[0]
    if not words.startswith('runs/'):
      configs.find(words.split()[0])
    for key in re.findall(r'--set ([\w.]+)=', words):
      assert key in flat


@pytest.mark.parametrize(
  ('arguments', 'line'),
  [
    (['train', 'digits'], "no config 'digits': did you mean digits_mlp?"),
    (['train', 'zzz'], "no config 'zzz': `adabatch list` shows them"),
    (['train', 'mine.py'], 'there is no file mine.py'),
    (['train', 'digits_mlp', '--set', 'epochs'], '--set epochs has no value'),
    (['probe', 'tests'], 'tests is not the directory of a run'),
    (['list', '--fast'], "unexpected argument '--fast'"),
  ],
)
def test_what_does_not_exist_is_a_line(arguments, line, capsys):
  assert line in refused(capsys, *arguments)


def test_a_job_and_its_run_again(tmp_path):
  """Trained by name, told apart by keys, then by its directory alone."""
  run = tmp_path / 'run'
  few = ['--set', 'max_updates=30', '--config.epochs=5']
  done = adabatch('train', 'digits_mlp', *few, f'--workdir={run}')
  assert done.returncode == 0, done.stderr
  assert f'report: {run}/report.html' in done.stdout
  written = json.loads((run / 'config.json').read_text())
  assert (written['max_updates'], written['epochs']) == (30, 5.0)
  again = adabatch('train', str(run))
  assert again.returncode == 0, again.stderr
  assert json.loads((run / 'config.json').read_text()) == written
  done = adabatch('evaluate', str(run), '--set', 'data.eval_split=train[:10%]')
  assert done.returncode == 0, done.stderr
  (line,) = (run / 'evaluations.jsonl').read_text().splitlines()
  assert json.loads(line)['split'] == 'train[:10%]'
  wrong = adabatch('train', 'digits_mlp', '--set', 'epoch=3')
  assert wrong.returncode == 2
  assert wrong.stderr == (
    "error: unknown config key 'epoch' (did you mean 'epochs'?)\n"
  )


def test_digits_need_the_small_extra_alone(tmp_path):
  """In an interpreter where no package of another extra can be imported."""
  others = [package for package, extra in EXTRAS.items() if extra != 'train']
  code = f"""
import sys
sys.modules.update(dict.fromkeys({others}))
from adabatch.command.main import main
main(['train', 'digits_mlp', '--set', 'max_updates=2', '--workdir', 'run'])
"""
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': commands.QUICKLY},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  how = "no report: matplotlib is not installed: pip install 'adabatch[report]'"
  assert lines[-1] == how
  assert (tmp_path / 'run' / 'summary.json').exists()


# Of two images, which are trained on two at once.
FOLDER = [
  '--config.data.name=folder:pictures',
  '--config.data.eval_split=val',
  '--config.controller.initial_batch_size=2',
  '--config.controller.max_batch_size=2',
]


@pytest.mark.parametrize(
  ('arguments', 'package'),
  [
    (['search', 'digits_mlp'], 'optuna'),
    (['train', 'cnn_mnist', '--set', 'data.name=csv:x.csv'], 'pyarrow'),
    (['train', 'cnn_mnist'], 'tensorflow_datasets'),
    (['train', 'digits_mlp', *FOLDER], 'PIL'),
  ],
)
def test_what_is_not_installed_is_named(arguments, package, tmp_path):
  for name in ('train', 'val'):
    for kind in ('cats', 'dogs'):
      place = tmp_path / 'pictures' / name / kind
      place.mkdir(parents=True)
      Image.new('RGB', (40, 30)).save(place / '1.png')
  (tmp_path / 'x.csv').write_text('x,label\n1,0\n')
  code = f"""
import sys
sys.modules[{package!r}] = None
from adabatch.command.main import main
main({[*arguments, '--workdir', 'run']})
"""
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': str(ROOT), 'TFDS_DATA_DIR': 'nowhere'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1, done.stderr
  extra = EXTRAS[package]
  assert done.stderr == (
    f"error: {package} is not installed: pip install 'adabatch[{extra}]'\n"
  )


@pytest.mark.parametrize('seconds', [0.0, 0.4])
def test_ctrl_c_while_packages_are_imported(tmp_path, seconds):
  """Sent once the command has said what becomes of it."""
  code = """
import signal, sys
from adabatch.__main__ import main
real = signal.signal
def told(*arguments):
  before = real(*arguments)
  print('told', flush=True)
  return before
signal.signal = told
sys.argv = ['adabatch', 'train', 'digits_mlp']
main()
"""
  process = subprocess.Popen(
    [sys.executable, '-c', code],
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'told\n'
  time.sleep(seconds)
  process.send_signal(signal.SIGINT)
  _, error = process.communicate(timeout=60)
  assert (process.returncode, error) in (
    (-signal.SIGINT, ''),
    (130, 'error: interrupted before a checkpoint was written\n'),
  )


def test_pages(tmp_path, capsys):
  assert main_lib.main(['report', str(tmp_path)]) == 1
  assert 'adabatch.report: ' in capsys.readouterr().err


def test_extras_bring_what_is_said_to_bring_it():
  """The table of packages, against what pyproject.toml installs."""
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  extras = project['optional-dependencies']
  names = {
    'PIL': 'pillow',
    'array_record': 'array-record',
    'cv2': 'opencv-python-headless',
    'google': 'tensorboardX',  # protobuf, which that needs
    'mlflow': 'mlflow-skinny',
    'orbax': 'orbax-checkpoint',
    'absl': 'absl-py',
    'sklearn': 'scikit-learn',
    'tensorflow_datasets': 'tensorflow-datasets',
  }
  for package, extra in EXTRAS.items():
    wanted = names.get(package, package).lower()
    brought = [re.split(r'[>=\[]', one)[0].lower() for one in extras[extra]]
    assert wanted in brought, (package, extra)
  whole = set(re.findall(r'[a-z]+', extras['all'][0].partition('[')[2]))
  # Trackers are somebody's choice.
  assert whole == {*EXTRAS.values(), 'text'} - {'wandb', 'mlflow'}


def test_the_folders_of_the_house_are_packed():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
  packed = set(project['tool']['setuptools']['packages'])
  folders = {
    f'adabatch.{path.parent.name}'
    for path in (ROOT / 'adabatch').glob('*/__init__.py')
  }
  assert packed == folders | {'adabatch', 'adabatch.configs'}
