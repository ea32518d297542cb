"""npz, CSV and parquet files."""

import functools
import zipfile

import jax
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from adabatch import data
from adabatch import train as training
from adabatch.config import ConfigError
from adabatch.data import npz
from tests.experiments import digits, records

train = functools.partial(training.train, devices=jax.devices()[:2])

CUT = ('train[:80%]', 'train[80%:]')


def numbers(rows=200, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal([3, 0, -1], [2, 1, 0.1], (rows, 3))
  return x, (x @ [1, -2, 5] > 0).astype(int) + (x[:, 1] > 1)


def table_of(rows=200, seed=0, names=('ant', 'bee', 'cat')):
  x, y = numbers(rows, seed)
  columns = {'a': x[:, 0], 'b': x[:, 1], 'c': x[:, 2].astype(np.float32)}
  return pa.table(columns | {'label': [names[i] for i in y]})


def write(path, table):
  (csv.write_csv if path.suffix == '.csv' else parquet.write_table)(table, path)
  return f'{path.suffix[1:]}:{path}'


@pytest.mark.parametrize('kind', ['csv', 'parquet', 'npz'])
def test_the_rows_in_a_fixed_random_order(kind, tmp_path):
  x, y = numbers()
  if kind == 'npz':
    np.savez(tmp_path / 'mine.npz', x=x, y=y)
    name = f'npz:{tmp_path}/mine.npz'
  else:
    name = write(tmp_path / f'mine.{kind}', table_of())
  whole, first, rest = data.load_tables(name, ('train', *CUT))
  assert whole.num_classes == 3
  assert whole.arrays['features'].dtype == np.float32
  order = data.take(data.Order(200, 0), 0, 200)
  np.testing.assert_allclose(whole.arrays['features'], x[order], rtol=1e-6)
  np.testing.assert_array_equal(whole.arrays['label'], y[order])
  for key, values in whole.arrays.items():
    both = first.arrays[key], rest.arrays[key]
    np.testing.assert_array_equal(np.concatenate(both), values)
  assert first.fingerprint != rest.fingerprint


def test_of_an_npz_file_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
  x, y = np.arange(24.0).reshape(8, 3), np.arange(8) % 2
  for kind, save in (('mapped', np.savez), ('packed', np.savez_compressed)):
    save(tmp_path / f'{kind}.npz', x=x, y=y, z=np.asfortranarray(x))
    found = npz.Npz(tmp_path / f'{kind}.npz')
    assert list(found) == ['x', 'y', 'z']
    for key, values in (('x', x), ('y', y), ('z', x)):
      np.testing.assert_array_equal(found[key], values)
      assert isinstance(found[key], np.memmap) == (kind == 'mapped')
  # A machine whose memory holds half of it.
  memory = {'SC_PAGE_SIZE': 1, 'SC_PHYS_PAGES': x.nbytes // 2}
  monkeypatch.setattr(npz.os, 'sysconf', memory.__getitem__)
  whole, half = ('train', 'train[:50%]')
  (some,) = data.load_tables(f'npz:{tmp_path}/mapped.npz', [half])
  assert some.num_examples == 4
  for kind, split in (('mapped', whole), ('packed', half)):
    with pytest.raises(
      data.DatasetError, match=r'GB of free memory: take part'
    ):
      data.load_tables(f'npz:{tmp_path}/{kind}.npz', [split])
  monkeypatch.undo()
  file = tmp_path / 'mapped.npz'
  names = np.full(2, object())
  np.savez(tmp_path / 'objects.npz', x=names)
  with pytest.raises(data.DatasetError, match='cannot be read: Object arrays'):
    npz.Npz(tmp_path / 'objects.npz')['x']
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(data.DatasetError, match='mapped.npz cannot be read'):
    npz.Npz(file)


def config(name, **overrides):
  keys = {
    'data.name': name,
    'data.train_split': CUT[0],
    'data.eval_split': CUT[1],
    'epochs': 5.0,
    'controller.initial_batch_size': 8,
    'controller.max_batch_size': 32,
    'controller.every': 5,
  }
  return digits(**keys | overrides)


def test_a_small_npz_file_that_would_be_large_is_refused(tmp_path, monkeypatch):
  """Before it is decompressed; nor is a header believed that asks for more."""
  file = tmp_path / 'bomb.npz'
  np.savez_compressed(file, x=np.zeros(2**20), y=np.zeros(2))
  (tmp_path / 'meminfo').write_text('MemAvailable: 4000 kB\nSwapFree: 4000 kB')
  monkeypatch.setattr(npz, '_MEMORY', tmp_path / 'meminfo')
  found = npz.Npz(file)
  monkeypatch.setattr(np, 'load', None)
  with pytest.raises(
    data.DatasetError, match=r"'x' takes 0.00839 GB, .* 0.00819 GB of free"
  ):
    found['x']
  monkeypatch.undo()
  header = {'descr': '<f8', 'fortran_order': False, 'shape': (2**50,)}
  with (
    zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as zipped,
    zipped.open('x.npy', 'w') as member,
  ):
    np.lib.format.write_array_header_1_0(member, header)
  with pytest.raises(data.DatasetError, match='bomb.npz cannot be read: Un'):
    npz.Npz(file)['x']


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_a_flipped_bit_of_an_npz_file_is_one_line(save, tmp_path):
  """Or goes unnoticed where nothing is compressed, and the set is another."""
  file, noise = tmp_path / 'set.npz', np.random.default_rng(0)
  save(file, x=np.arange(300) % 7, y=np.arange(20) % 3)
  content, refused = file.read_bytes(), []
  for bit in noise.integers(0, 8 * len(content), 300):
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    file.write_bytes(damaged)
    try:
      found = npz.Npz(file)
      [found[name] for name in found]
    except data.DatasetError as error:
      refused.append(str(error))
  assert len(refused) > 10
  assert not any('\n' in message for message in refused)


def test_from_memory_and_from_a_stream_alike(tmp_path):
  name, found = write(tmp_path / 'mine.csv', table_of()), {}
  for placement in ('resident', 'streaming'):
    c = config(name, **{'data.placement': placement})
    summary = train(c, tmp_path / placement)
    assert summary['final']['train[80%:]']['accuracy'] > 0.6
    found[placement] = records(tmp_path / placement)
  one, other = found.values()
  assert [r['batch_size'] for r in one] == [r['batch_size'] for r in other]
  assert len({r['batch_size'] for r in one}) > 1
  np.testing.assert_allclose(
    [r['loss'] for r in one], [r['loss'] for r in other], rtol=1e-5
  )


def test_a_run_goes_on_exactly(tmp_path):
  c = config(write(tmp_path / 'mine.parquet', table_of()))
  train(c, tmp_path / 'whole')
  train(c, tmp_path / 'cut', last_update=7)
  train(c, tmp_path / 'cut')
  for kind in ('train', 'eval'):
    whole, cut = (
      [r['loss'] for r in records(tmp_path / part, kind)]
      for part in ('whole', 'cut')
    )
    assert whole == cut


def test_a_file_for_each_split(tmp_path):
  for i in range(2):
    write(tmp_path / f'train-{i}.csv', table_of(50, seed=i))
  write(tmp_path / 'val.csv', table_of(30, seed=2))
  first, second = data.load_tables(f'csv:{tmp_path}', ('train', 'val'))
  assert (first.num_examples, second.num_examples) == (100, 30)
  assert data.load_tables('csv:.', ('val',), tmp_path)[0].num_examples == 30
  np.savez(
    tmp_path / 'keras.npz',
    **{
      f'{key}_{part}': array
      for part, rows in (('train', 9), ('test', 4))
      for key, array in (
        ('x', np.zeros((rows, 8, 8), np.uint8)),
        ('y', np.arange(rows) % 3),
      )
    },
  )
  name = f'npz:{tmp_path}/keras.npz'
  first, second = data.load_tables(name, ('train', 'test'))
  assert first.arrays['image'].shape == (9, 8, 8, 1)
  assert second.num_examples == 4


def test_columns_that_are_named(tmp_path):
  name = write(tmp_path / 'mine.csv', table_of())
  (split,) = data.load_tables(name, ('train',), input_key='c, a')
  assert split.arrays['features'].shape == (200, 2)
  (split,) = data.load_tables(
    name, ('train',), input_key='c', label_key='a,b', labels='numbers'
  )
  assert split.arrays['label'].shape == (200, 2)
  assert split.num_classes == 2
  lists = pa.table({'x': [[1.0, 2.0], [3.0, 4.0]], 'y': [0, 1]})
  (split,) = data.load_tables(write(tmp_path / 'l.parquet', lists), ('train',))
  assert sorted(split.arrays['features'].tolist()) == [[1, 2], [3, 4]]


def broken(tmp_path, case):
  """A set with a mistake: its name."""
  path = tmp_path / 'mine.csv'
  table = table_of()
  if case == 'not there':
    return f'csv:{tmp_path}/none.csv'
  if case == 'no files':
    return f'npz:{tmp_path}'
  if case == 'no table':
    (tmp_path / 'x.parquet').write_bytes(b'PAR1')
    return f'parquet:{tmp_path}/x.parquet'
  if case == 'pickled':
    np.savez(tmp_path / 'x.npz', x=np.array([{}]), y=np.zeros(1))
    return f'npz:{tmp_path}/x.npz'
  if case == 'text':
    table = table.append_column('city', [['Bern'] * 200])
  if case == 'gap':
    table = table.append_column('gap', [[1.0] * 3 + [None] + [1.0] * 196])
  if case == 'no label':
    table = table.drop_columns(['label'])
  if case == 'one class':
    table = table_of(names=['ant'] * 3)
  if case == 'fractions':
    table = table.drop_columns(['label']).append_column(
      'y', [np.arange(200) / 3]
    )
  if case == 'not finite':
    table = table.append_column('d', [[np.inf] * 200])
  if case == 'other classes':
    write(tmp_path / 'train.csv', table)
    write(tmp_path / 'val.csv', table_of(names=('ant', 'bee', 'dog')))
    return f'csv:{tmp_path}'
  return write(path, table)


MISTAKES = {
  'not there': 'is not there: give csv:PATH',
  'no files': 'holds no .npz files',
  'no table': 'cannot be read',
  'pickled': 'cannot be read',
  'text': "'city' holds text: turn it into numbers",
  'gap': "'gap', row 3 is empty",
  'no label': 'which of a, b, c is the label',
  'one class': 'one class, ant: there is nothing to tell apart',
  'fractions': "set task.name='regression'",
  'not finite': 'give finite numbers',
  'other classes': 'it lacks cat, adds dog',
}


@pytest.mark.parametrize('case', sorted(MISTAKES))
def test_mistakes_get_one_line(case, tmp_path):
  splits = ('train', 'val') if case == 'other classes' else CUT
  c = config(broken(tmp_path, case))
  c.data.train_split, c.data.eval_split = splits
  with pytest.raises(data.DatasetError, match=MISTAKES[case]) as error:
    train(c, tmp_path / 'run')
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'data.label_key': 'lable'}, "there is no 'lable', but a, b, c, label"),
    ({'data.eval_split': 'test'}, r"no split 'test': .*'train\[90%:\]'"),
    ({'data.crop_padding': 1}, 'data.crop_padding and data.flip are for'),
    ({'data.name': 'digits', 'data.input_key': 'x'}, 'has none: leave it out'),
  ],
)
def test_keys_that_do_not_fit(overrides, message, tmp_path):
  name = write(tmp_path / 'mine.csv', table_of())
  with pytest.raises((ConfigError, data.DatasetError), match=message):
    train(config(name, **overrides), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def with_numbers(path, flags=False):
  x, y = numbers(400)
  table = {'a': x[:, 0], 'b': x[:, 1], 'c': x[:, 2]}
  if flags:
    table |= {'red': (y > 0).astype(int), 'big': (x[:, 0] > 3).astype(int)}
  else:
    table |= {'y': x @ [0.5, -1, 2]}
  return write(path, pa.table(table))


@pytest.mark.parametrize(
  ('task', 'metric', 'reached'),
  [
    ('regression', 'mean_squared_error', lambda value: value < 0.1),
    ('multi_label', 'ranking_average_precision', lambda value: value > 0.9),
  ],
)
def test_other_tasks_learn_from_a_table(task, metric, reached, tmp_path):
  flags = task == 'multi_label'
  name = with_numbers(tmp_path / 'mine.csv', flags)
  found = []
  for placement in ('resident', 'streaming')[: 2 - flags]:
    overrides = {'task.name': task, 'data.placement': placement}
    if flags:
      overrides |= {'data.input_key': 'a,b,c', 'data.label_key': 'red,big'}
    c = config(name, **overrides)
    final = train(c, tmp_path / placement)['final']['train[80%:]']
    assert reached(final[metric])
    found.append(final)
  assert found[0] == pytest.approx(found[-1], rel=1e-5)


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({}, "set task.name='regression'"),
    ({'task.label_smoothing': 0.1}, 'label_smoothing=0.1 has no effect on'),
    ({'target.value': 0.9}, "unknown target.metric 'accuracy'"),
    ({'task.regression.loss': 'cubed'}, 'squared or absolute'),
    ({'data.label_key': 'a,b', 'task.name': 'multi_label'}, 'more than 0 and'),
  ],
)
def test_tasks_that_do_not_fit(overrides, message, tmp_path):
  name = with_numbers(tmp_path / 'mine.csv')
  c = config(name, **{'task.name': 'regression'} | overrides)
  if not overrides:
    c.task.name = 'classification'
  with pytest.raises((ConfigError, data.DatasetError), match=message):
    train(c, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
