"""Every config is run for real, small: three updates in two batch sizes."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest

from adabatch import config as config_lib
from adabatch import data, report
from adabatch.config import ConfigError, smoke
from adabatch.config.files import read_signed
from adabatch.models import MODELS
from adabatch.search.study_job import study
from adabatch.search.workload import (
  at_batch_size,
  check_search,
  search_space,
  trial_config,
)
from adabatch.study.archive import read_tree
from adabatch.study.trials import INFEASIBLE
from adabatch.train import train
from adabatch.train.build import check
from adabatch.train.optimizer import in_examples, make_learning_rate
from adabatch.train.run_end import Extent
from tests.experiments import digits, records
from tests.models.test_networks import NETWORKS, TRAINED
from tests.tfds_sets import PREPARED

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
STUDIES = [name for name in CONFIGS if name.startswith('study_')]
RUNS = [name for name in CONFIGS if name not in STUDIES]
# Another config trains such a network; tests/models/test_networks.py the rest.
SAME_NETWORK = (
  'resnet20_cifar10',
  'resnet20_cifar10_post_local',
  'resnet32_cifar10_sma',
  'resnet34_cifar10',
  'resnet50_imagenet_adadamp',
  'wrn16_4_cifar10',
)
# Compiled for long: tests/models/test_networks.py has their gradients.
OTHER_TESTS = 'densenet40_cifar100', 'vgg11_imagenet', 'wrn28_10_cifar100'
# Another config trains two layers.
ONE_LAYER = (
  'nanogpt_shakespeare',
  'study_transformer_lm1b',
  'transformer_lm1b',
  'transformer_shakespeare_diloco',
)
# Of classes, replicas, a stream and tokens; other pages are like them.
PAGES = (
  'digits_local_sgd',
  'digits_mlp',
  'resnet50_imagenet',
  'transformer_shakespeare',
)
VARIANTS = {
  'resnet50_imagenet': ('256', '8k', '8k_constant', '8k_none', '8k_lars'),
  'transformer_lm1b': ('base', 'shallow', 'narrow', 'wide'),
  'nanogpt_shakespeare': ('constant', 'growing'),
  'cnn_mnist': ('base', 'narrow', 'wide'),
  'cnn_fashion_mnist': ('base', 'narrow', 'wide'),
}


def get_config(name, *arguments):
  path = ROOT / 'configs' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*arguments)


def marked(names):
  """Those whose sets are there are marked as tests that read them."""
  there = [(PREPARED / get_config(name).data.name).is_dir() for name in names]
  return [
    pytest.param(name, marks=[pytest.mark.prepared] * found)
    for name, found in zip(names, there, strict=True)
  ]


def check_run(config, workdir, *, page=True):
  """Trains, checkpoints and evaluates, and writes all its files."""
  config.smoke = True
  config.compilation_cache = False
  devices = jax.devices()[:2]
  summary = train(config, workdir, devices=devices)
  assert summary['status'] == 'completed'
  assert summary['updates'] == 3
  assert summary['buckets_visited'] >= 2
  assert [path.name for path in (workdir / 'checkpoints').iterdir()] == ['3']
  *_, evaluated = records(workdir, 'eval')
  trained = records(workdir)
  for record in (evaluated, *trained):
    assert np.isfinite(record['loss'])
  if page:
    assert report.write_report(workdir).exists()
  for name in ('config.json', 'metrics.jsonl', 'summary.json', 'checkpoints',
               'tensorboard', *['report.html'] * page):  # fmt: skip
    assert (workdir / name).exists(), name
  return trained, evaluated


@pytest.mark.parametrize('name', marked(RUNS))
def test_config(name, tmp_path):
  """On the sets that are there, else on made-up data."""
  config = get_config(name)
  config.data.data_dir = str(PREPARED)
  config.data.workers = 0  # test_launch.py and test_inputs.py have processes
  if name in (*SAME_NETWORK, *OTHER_TESTS):
    config.model.name = 'strided_cnn'
  if name in ONE_LAYER:
    config.model.transformer.num_layers = 1
  trained, evaluated = check_run(config, tmp_path, page=name in PAGES)
  if config.task.name == 'language_modelling':
    assert evaluated['perplexity'] == pytest.approx(np.exp(evaluated['loss']))
    for record in trained:
      assert record['tokens'] == 16 * record['examples']
      assert record['tokens_per_second'] > 0
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert summary['tokens'] == 16 * summary['examples']
    assert summary['target']['tokens'] is None


@pytest.mark.parametrize('name', marked(STUDIES))
def test_study(name, tmp_path):
  """On ImageNet trials are runs of their own, with or without the set."""
  config = get_config(name)
  config.data.data_dir = str(PREPARED)
  config.smoke = True
  config.compilation_cache = False
  config.study.optimizers = config.study.optimizers[-1:]
  config.study.batch_sizes = config.study.batch_sizes[:1]
  if name in ONE_LAYER:
    config.model.transformer.num_layers = 1
  own_runs = name == 'study_resnet50_imagenet'
  if own_runs:  # with the true pipeline; the network is test_config's business
    config.search.trials, config.data.workers = 1, 0
    config.model.name = 'mlp'
  summary = study(config, tmp_path, devices=jax.devices()[:2])
  assert summary['status'] == 'completed'
  (workload,) = summary['workloads']
  assert [row['batch_size'] for row in workload['rows']] == [4]
  wanted = 1 if own_runs else 2
  # One that diverges is recorded beside them.
  assert summary['trials']['complete'] == wanted
  assert summary['trials']['unmeasured'] == 0
  for found in read_tree(tmp_path / 'trials'):
    assert set(found.space) <= {row[0] for row in config.search.space}
    for trial in found.trials:
      if trial.status == INFEASIBLE:
        continue
      assert trial.steps == 3
      assert np.isfinite(trial.measurements['val/cross_entropy_error']).all()
  assert (tmp_path / 'runs').exists() == own_runs
  page = report.write_report(tmp_path).read_text()
  assert '<svg' in page


@pytest.mark.parametrize('name', STUDIES)
def test_every_search_of_a_study_is_valid(name):
  """At full size: both ends of its space, at each batch size."""
  config = get_config(name)
  check_search(config)
  for optimizer in config.study.optimizers:
    for batch_size in config.study.batch_sizes:
      one = at_batch_size(config, optimizer, batch_size)
      for end in (0.0, 1.0):
        ends = {k: p.at(end) for k, p in search_space(one).items()}
        check(trial_config(one, 1, ends), devices=8)


def test_config_without_its_data(tmp_path, capfd):
  config = get_config('cnn_mnist')
  config.data.data_dir = str(tmp_path / 'nothing')
  check_run(config, tmp_path / 'run')
  # The same command again finds the checkpoint, and nothing left to do.
  summary = read_signed(tmp_path / 'run' / 'summary.json')
  again = train(config, tmp_path / 'run', devices=jax.devices()[:2])
  assert again == summary
  assert 'is not prepared, so data of its shape is made up' in (
    capfd.readouterr().err
  )


def test_every_network_is_trained():
  replaced = (*SAME_NETWORK, *OTHER_TESTS)
  trained = {get_config(n).model.name for n in RUNS if n not in replaced}
  assert {get_config(name).model.name for name in SAME_NETWORK} <= {
    *trained,
    *(get_config(name).model.name for name in OTHER_TESTS),
  }
  networks = {MODELS[get_config(name).model.name] for name in OTHER_TESTS}
  assert networks == {type(NETWORKS[name][0]) for name in TRAINED}


def test_each_paper_has_its_config():
  papers = (
    'resnet50_imagenet resnet50_imagenet_adadamp vgg11_imagenet '
    'resnet8_cifar10 resnet20_cifar10 resnet34_cifar10 wrn16_4_cifar10 '
    'wrn28_10_cifar100 densenet40_cifar100 cnn_mnist fc_mnist '
    'cnn_fashion_mnist transformer_lm1b lstm_lm1b transformer_shakespeare '
    'study_digits_mlp study_fashion_mnist_fc study_cnn_mnist '
    'study_resnet8_cifar10 study_resnet50_imagenet study_transformer_lm1b'
  )
  assert set(papers.split()) <= set(CONFIGS)


@pytest.mark.parametrize('name', CONFIGS)
def test_the_whole_config_is_valid(name):
  """At full size too: everything that can be refused without the data."""
  for arguments in [(), *((v,) for v in VARIANTS.get(name, ()))]:
    check(get_config(name, *arguments), devices=8)


@pytest.mark.parametrize('name', VARIANTS)
def test_variants_differ_and_no_other_exists(name):
  made = [
    json.dumps(config_lib.flatten(get_config(name, v)), sort_keys=True)
    for v in VARIANTS[name]
  ]
  assert len(set(made)) == len(made)
  with pytest.raises(ConfigError, match='choose one of'):
    get_config(name, 'another')


# What shrinking does.


def test_shrinking_keeps_what_is_small_and_what_it_does_not_know():
  config = digits(max_updates=2)
  config.model.mlp.hidden_sizes = (8, 300)
  config.learning_rate.base = 0.123
  small = smoke.shrink(config)
  assert small.max_updates == 2
  assert small.model.mlp.hidden_sizes == (8, 16)
  assert small.learning_rate.base == 0.123
  assert config.model.mlp.hidden_sizes == (8, 300)


def test_shrinking_twice_changes_nothing_more():
  for name in CONFIGS:
    once = smoke.shrink(get_config(name))
    assert config_lib.flatten(smoke.shrink(once)) == config_lib.flatten(once)


@pytest.mark.parametrize(
  ('split', 'examples', 'expected'),
  [
    ('train', 65, 'train[0:64]'),
    ('train', 64, 'train'),
    ('train[:45000]', 45_000, 'train[0:64]'),
    ('train[45000:]', 5000, 'train[45000:45064]'),
    ('train[:90%]', 45_000, 'train[:90%]'),
    ('train+test', 60_000, 'train+test'),
  ],
)
def test_shorter_splits(split, examples, expected):
  assert smoke.shorten(split, examples) == expected


def test_a_rule_that_is_refused_is_refused_in_smoke_runs_too(tmp_path):
  config = digits(**{'controller.adadamp.decay': 2.0}, smoke=True)
  with pytest.raises(ConfigError, match='controller.adadamp'):
    train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_damaged_set_is_not_replaced(tmp_path):
  broken = tmp_path / 'cifar10' / '3.0.2'
  broken.mkdir(parents=True)
  (broken / 'dataset_info.json').write_text('no JSON')
  (broken / 'features.json').write_text('{}')
  config = digits(smoke=True)
  config.data.name, config.data.data_dir = 'cifar10', str(tmp_path)
  with pytest.raises(data.DatasetError, match='cannot be read'):
    train(config, tmp_path / 'run')


@pytest.mark.parametrize('name', CONFIGS)
def test_a_warmup_warms_up(name):
  """From a lower rate to a higher one, at the first batch size."""
  for arguments in [(), *((v,) for v in VARIANTS.get(name, ()))]:
    config = get_config(name, *arguments)
    if config.learning_rate.warmup.kind != 'gradual':
      continue
    examples = 100_000
    extent = Extent(
      examples,
      config.epochs * examples,
      config.controller.max_batch_size,
    )
    tx = make_learning_rate(config, extent)
    size = config.controller.initial_batch_size

    def rate(seen, tx=tx, size=size):
      one = {'w': np.ones(1, np.float32)}
      updates, _ = tx.update(
        one, tx.init(one), one, examples=np.float32(seen), batch_size=size
      )
      return abs(float(updates['w'][0]))

    warmup = config.learning_rate.warmup
    end = warmup.epochs * examples
    if warmup.length is not None:
      end = in_examples(config, extent, warmup.length, warmup.unit)
    assert rate(0) < 0.7 * rate(end)
