"""Executables in a directory: found where they fit, and nowhere else."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch.config import ConfigError
from adabatch.config.files import WriteError, write_signed
from adabatch.devices import stored_programs
from adabatch.devices.mesh import BY_DEVICE, make_devices
from adabatch.devices.stored_programs import (
  ProgramWriter,
  StoredPrograms,
  circumstances,
  difference,
  digest,
)

X = np.arange(12.0, dtype=np.float32).reshape(4, 3)


def devices(number=2):
  return make_devices(jax.devices()[:number])


def lower(factor=2.0, at=None):
  """A sum over two devices, times a factor."""
  at = at or devices()
  program = at.spmd(
    lambda x: factor * jax.lax.psum(x, 'data'), arguments=(BY_DEVICE,)
  )
  return program.lower(at.place(X[: at.size], BY_DEVICE))


def none(text):
  raise AssertionError(text)


@pytest.fixture
def directory(tmp_path):
  """That holds one program."""
  path, lowered = tmp_path / 'a' / 'programs', lower()
  writer = ProgramWriter(str(path), devices(), none)
  size = writer.write(lowered, 'a sum')
  assert size == writer.there(lowered)
  return path


def load(path, lowered=None, at=None):
  """What is found, and what is said meanwhile."""
  said, warned = [], []
  stored = StoredPrograms(
    str(path), at or devices(), say=said.append, warn=warned.append
  )
  return stored(lowered or lower()), said, warned


def program(path):
  (found,) = path.glob('*.program')
  return found


def test_it_is_found_and_does_the_same(directory):
  found, said, warned = load(directory)
  assert said == warned == []
  x = devices().place(X[:2], BY_DEVICE)
  np.testing.assert_array_equal(found(x), lower().compile()(x))
  np.testing.assert_array_equal(found(x), 2 * X[:2].sum(0))
  assert sorted(p.name for p in directory.iterdir()) == sorted(
    [program(directory).name, 'index.json']
  )


def test_a_program_for_some_of_the_devices(tmp_path):
  all_, some = devices(4), devices(4).first(2)
  ProgramWriter(str(tmp_path), all_, none).write(lower(at=some), 'a sum')
  found, said, warned = load(tmp_path, lower(at=some), all_)
  assert said == warned == []
  x = some.place(X[:2], BY_DEVICE)
  np.testing.assert_array_equal(found(x), 2 * X[:2].sum(0))


def test_another_program_is_not_there_which_is_said_once(directory):
  said = []
  stored = StoredPrograms(str(directory), devices(), say=said.append, warn=none)
  assert stored(lower(3.0)) is None
  assert stored(lower(4.0)) is None
  assert stored(lower()) is not None
  (line,) = said
  assert line == (
    f'compilation.programs={str(directory)!r} lacks a program of this run, '
    'those there are of another network or config: it is compiled here'
  )


def name(function, *args, **how):
  return digest(jax.jit(function, **how).lower(*args), {})


def test_a_name_tells_all_programs_apart():
  x = jnp.ones((4, 4))
  large = np.arange(200_000, dtype=np.float32)
  other = large.copy()
  other[123_456] += 1
  names = [
    name(lambda a, b: a + b, x, x),
    name(lambda a, b: a - b, x, x),
    name(lambda a, b: a + b, x[:2], x[:2]),
    name(lambda a, b: a + b, x, x, donate_argnums=0),
    name(lambda a: jnp.asarray(large)[a], 3),
    name(lambda a: jnp.asarray(other)[a], 3),
    # Of the same text: what is not used is left out of it.
    name(lambda a, b: 2 * a, x, x),
    name(lambda a, b: 2 * b, x, x),
  ]
  texts = [
    jax.jit(function).lower(x, x).as_text()
    for function in (lambda a, b: 2 * a, lambda a, b: 2 * b)
  ]
  assert texts[0] == texts[1]
  assert len(set(names)) == len(names)
  assert names[0] == name(lambda a, b: a + b, x, x)


def test_circumstances_that_change_no_program(monkeypatch):
  before = circumstances(devices())
  assert json.loads(json.dumps(before)) == before
  more = '--xla_dump_to=x', '--xla_force_host_platform_device_count=9'
  flags = *more, *before['flags']
  monkeypatch.setenv('XLA_FLAGS', ' '.join(flags))
  monkeypatch.setenv('LIBTPU_INIT_ARGS', '--xla_of_tpus=1')
  assert circumstances(devices()) == before


def test_flags_count_in_their_order_and_from_a_file(monkeypatch, tmp_path):
  at = devices()  # XLA, once it has started, no longer looks at them

  def flags(text):
    monkeypatch.setenv('XLA_FLAGS', text)
    return circumstances(at)['flags']

  assert flags('--a=1 --a=2') == ['--a=1', '--a=2'] != flags('--a=2 --a=1')
  (file := tmp_path / 'flags').write_text('--a=1\n')
  before = flags(str(file))
  file.write_text('--a=2\n')
  assert flags(str(file)) != before
  assert flags('none') == ['none']


def of(monkeypatch, what):
  """Sets a circumstance; returns the devices."""
  at = devices()
  if what == 'version':
    monkeypatch.setattr(jax, '__version__', '0.9.1')
  elif what == 'number':
    at = devices(4)
  elif what == 'order':
    at = make_devices(jax.devices()[1::-1])
  elif what == 'options':
    at = at._replace(options={'xla_cpu_enable_fast_math': True})
  elif what == 'flags':
    monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=true')
  elif what == 'threads':
    monkeypatch.setenv('NPROC', '99')
  elif what == 'processor':
    host = stored_programs._host
    monkeypatch.setattr(
      stored_programs, '_host', lambda: [*host()[:-1], 'sse2']
    )
  return at


WHY = {
  'version': f'made with jax {jax.__version__}, here 0.9.1',
  'number': 'for 2 x cpu, here 4 x cpu',
  'order': 'for other devices or processes',
  'options': "with other the compiler's options: {}, here {'xla_cpu_enable_",
  'flags': 'with other XLA_FLAGS: [',
  'threads': 'for another processor, or another number of its threads',
  'processor': 'for another processor, or another number of its threads',
}


@pytest.mark.parametrize('what', WHY)
def test_other_circumstances_are_said_and_nothing_is_found(
  what, directory, monkeypatch
):
  # The same program: it must not be its text that tells them apart.
  at, lowered = of(monkeypatch, what), lower()
  found, said, warned = load(directory, lowered, at)
  assert found is None
  assert warned == []
  (line,) = said
  assert f'those there are {WHY[what]}' in line
  assert '\n' not in line


def test_settings_of_jax_count(directory):
  before = jax.config.jax_optimization_level
  lowered = lower()
  jax.config.update('jax_optimization_level', 'O1')
  try:
    found, (line,), _ = load(directory, lowered)
  finally:
    jax.config.update('jax_optimization_level', before)
  assert found is None
  assert "JAX's settings" in line


def test_the_nearest_are_named():
  here = circumstances(devices())
  assert difference(here, here) == ''
  other = here | {'platform': 'tpu', 'kind': 'TPU v4', 'flags': ['x']}
  assert difference(other, here) == 'for 2 x TPU v4, here 2 x cpu'
  later = here | {'jaxlib': '1.0', 'compiler': 'xla 7'}
  assert difference(later, here) == (
    f'made with jaxlib 1.0, here {here["jaxlib"]} and made with xla 7, '
    f'here {here["compiler"]}'
  )


def test_programs_of_several_machines_lie_side_by_side(directory):
  writer = ProgramWriter(str(directory), devices(4), none)
  lowered = lower(at=devices(4))
  assert writer.there(lowered) is None
  writer.write(lowered, 'a sum of four')
  for at in (devices(), devices(4)):
    found, said, warned = load(directory, lower(at=at), at)
    assert found is not None
    assert said == warned == []


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize(
  ('damage', 'why'),
  [
    (truncate, 'it is damaged'),
    (flip, 'it is damaged'),
    (lambda path: path.unlink(), 'No such file or directory'),
  ],
)
def test_a_damaged_file_is_said_and_never_unpickled(
  damage, why, directory, monkeypatch
):
  damage(program_path := program(directory))
  reader = 'deserialize_and_load'
  monkeypatch.setattr(stored_programs.serialize_executable, reader, none)
  found, said, warned = load(directory)
  assert found is None
  assert said == []
  assert warned == [
    f'{program_path} cannot be loaded ({why}): it is compiled here'
  ]
  writer = ProgramWriter(str(directory), devices(), none)
  assert writer.there(lower()) is None


def test_what_the_runtime_refuses_is_said(directory):
  """Whole, but none of its executables."""
  content, path = b'cnothing\nat_all\n.', program(directory)
  path.write_bytes(content)
  index = json.loads((directory / 'index.json').read_text())
  index.pop('checksum')
  (entry,) = index['programs'].values()
  entry |= {'bytes': len(content), 'checksum': stored_programs._sum(content)}
  write_signed(directory / 'index.json', index)
  found, said, (line,) = load(directory)
  assert found is None
  assert said == []
  assert line.startswith(f'{path} cannot be loaded (')
  assert '\n' not in line


@pytest.mark.parametrize('what', ['no directory', 'no index', 'damaged index'])
def test_a_directory_without_programs_is_refused(what, directory):
  index = directory / 'index.json'
  if what == 'no directory':
    directory = directory / 'none'
  elif what == 'no index':
    index.unlink()
  else:
    flip(index)
  with pytest.raises(ConfigError, match='has no readable index.json') as error:
    load(directory)
  assert '\n' not in str(error.value)
  assert '--config.plan.save=DIR' in str(error.value)


def test_a_damaged_index_is_made_anew(directory):
  flip(directory / 'index.json')
  said = []
  writer = ProgramWriter(str(directory), devices(), said.append)
  assert said == [f'{directory / "index.json"} is damaged: it is made anew']
  lowered = lower()
  assert writer.there(lowered) is None
  writer.write(lowered, 'a sum')
  assert load(directory)[0] is not None


def test_where_nothing_can_be_written(tmp_path):
  (tmp_path / 'file').touch()
  for path in (tmp_path / 'file', tmp_path / 'file' / 'programs'):
    with pytest.raises(WriteError, match='cannot write'):
      ProgramWriter(str(path), devices(), none)


def test_programs_that_call_back_are_not_kept(tmp_path):
  """Python's part of them is not in the executable."""

  def body(x):
    jax.debug.callback(functools.partial(print, 'x'), x)
    return x

  lowered = jax.jit(body).lower(1.0)
  writer = ProgramWriter(str(tmp_path), devices(1), none)
  with pytest.raises(ConfigError, match='calls back into Python'):
    writer.write(lowered, 'a print')
  assert list(tmp_path.iterdir()) == []
