"""Executables in a directory: compiled once, taken from there by other runs.

A file is named by a digest of all that an executable depends on,

    name = H(StableHLO, kept arguments, circumstances),

so that what does not fit has another name and is never found. The StableHLO
holds shapes, shardings, donation and constants; the circumstances are in
`circumstances`. `index.json` has a checksum of each file, which is compared
before a file is read: JAX unpickles it, and so a directory of programs has to
be trusted like code.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import pickle
import platform
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.errors import JaxRuntimeError
from jax.experimental import serialize_executable

from adabatch.config import ConfigError
from adabatch.config.files import (
  read_signed,
  write_signed,
  write_whole,
  writing,
)
from adabatch.devices.mesh import Devices, is_first_process
from adabatch.devices.programs import no_persistent_cache

INDEX = 'index.json'
# Of JAX, which it makes the compiler's options of.
SETTINGS = (
  'jax_compiler_enable_remat_pass',
  'jax_disable_most_optimizations',
  'jax_exec_time_optimization_effort',
  'jax_memory_fitting_effort',
  'jax_memory_fitting_level',
  'jax_optimization_level',
  'jax_use_shardy_partitioner',
  'jax_xla_profile_version',
)
# Flags that change no program; the number of devices is known by itself.
WITHOUT_EFFECT = ('--xla_dump_', '--xla_force_host_platform_device_count')
# What reading an executable back may raise, beside what the disk does.
UNREADABLE = (
  AttributeError,
  EOFError,
  ImportError,
  JaxRuntimeError,
  LookupError,
  NotImplementedError,
  TypeError,
  ValueError,
  pickle.UnpicklingError,
)


def circumstances(devices: Devices) -> dict[str, Any]:
  """What an executable depends on beside its program, as JSON has it.

  Entries: `jax`, `jaxlib` and `compiler` (versions), `platform`, `kind` and
  `devices` (how many), `places` (id and process of each, in the mesh's order),
  `options` and `settings` of the compiler, `flags` of the environment, and for
  CPUs `host`, because their programs may be of instructions that another
  processor lacks.
  """
  flat = list(devices.mesh.devices.flat)
  return {
    'jax': jax.__version__,
    'jaxlib': importlib.metadata.version('jaxlib'),
    'compiler': _compiler(flat[0]),
    'platform': devices.platform,
    'kind': flat[0].device_kind,
    'devices': devices.size,
    'places': ' '.join(f'{d.id}/{d.process_index}' for d in flat),
    'options': {k: str(v) for k, v in (devices.options or {}).items()},
    **settings(devices.platform),
    'host': _host() if devices.platform == 'cpu' else None,
  }


def settings(platform_name: str) -> dict[str, Any]:
  """`settings` of JAX and `flags` of the environment that compilers heed."""
  values = jax.config.values
  return {
    'settings': {k: str(values[k]) for k in SETTINGS if k in values},
    'flags': _flags(platform_name),
  }


def _compiler(device: Any) -> str:
  if device.platform == 'tpu':
    # By its package: of a TPU that is not there the client is another one.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      return f'libtpu {importlib.metadata.version("libtpu")}'
  return device.client.platform_version


def _flags(platform_name: str) -> list[str]:
  """In their order, for of two alike the last one counts."""
  texts = [os.environ.get('XLA_FLAGS', '').strip()]
  if texts[0] and not texts[0].startswith('-'):
    # XLA takes it for the name of a file of flags, or ignores it.
    with contextlib.suppress(OSError):
      texts[0] += ' ' + pathlib.Path(texts[0]).read_text()
  if platform_name == 'tpu':
    texts.append(os.environ.get('LIBTPU_INIT_ARGS', ''))
  flags = ' '.join(texts).split()
  return [flag for flag in flags if not flag.startswith(WITHOUT_EFFECT)]


def _host() -> list[str]:
  """This processor, as far as it is told, and how many threads XLA has."""
  threads = os.environ.get('NPROC') or str(os.cpu_count())
  if hasattr(os, 'sched_getaffinity'):
    threads += f' of {len(os.sched_getaffinity(0))}'
  found = [platform.machine(), threads]
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().split('\n\n')[0]
  except OSError:
    # Not Linux: nothing is said of features, so it counts as the only one.
    return [*found, platform.processor(), platform.node()]
  names = 'vendor_id', 'cpu family', 'model', 'flags', 'Features', 'CPU part'
  for line in lines.splitlines():
    name, _, value = line.partition(':')
    if name.strip() in names:
      found.append(' '.join(sorted(value.split())))
  return found


def _arguments(lowered: Any) -> list[str]:
  """Names of the arguments that the program has; those unused it lacks."""
  for function in lowered.compiler_ir('stablehlo').body.operations:
    if str(function.attributes['sym_name']) == '"main"':
      return [str(argument.location) for argument in function.arguments]
  raise AssertionError('a program of JAX has a main function')


def _number(lowered: Any) -> int:
  """Devices of a program, which are the first ones."""
  operation = lowered.compiler_ir('stablehlo').operation
  return int(operation.attributes['mhlo.num_partitions'])


def _key(made: Mapping[str, Any]) -> str:
  return _sum(json.dumps(made, sort_keys=True).encode())


def digest(lowered: Any, made: Mapping[str, Any]) -> str:
  """The name of an executable.

  Args:
    lowered: what is compiled, a `jax.stages.Lowered`.
    made: its circumstances.

  >>> made = {'jax': '0.10.2'}
  >>> names = [digest(jax.jit(lambda x, y: x + k).lower(1.0, 2.0), made)
  ...          for k in (1, 1, 2)]
  >>> len(names[0]), names[0] == names[1], names[0] == names[2]
  (64, True, False)
  """
  parts = lowered.as_text(), *_arguments(lowered), _key(made)
  found = hashlib.blake2b(digest_size=32)
  for part in parts:
    encoded = part.encode()
    found.update(len(encoded).to_bytes(8, 'big') + encoded)
  return found.hexdigest()


def difference(made: Mapping[str, Any], here: Mapping[str, Any]) -> str:
  """In what circumstances differ; '' where they do not.

  >>> tpu = {'platform': 'tpu', 'kind': 'TPU v5 lite', 'devices': 256}
  >>> cpu = {'platform': 'cpu', 'kind': 'cpu', 'devices': 1, 'jax': '0.9.1'}
  >>> difference(tpu, cpu)
  'for 256 x TPU v5 lite, here 1 x cpu'
  >>> difference(cpu, cpu | {'jax': '0.10.2'})
  'made with jax 0.9.1, here 0.10.2'
  """

  def differs(*names: str) -> bool:
    return any(made.get(name) != here.get(name) for name in names)

  words = []
  if differs('platform', 'kind', 'devices'):
    theirs, ours = (f'{m["devices"]} x {m["kind"]}' for m in (made, here))
    words.append(f'for {theirs}, here {ours}')
  if differs('platform'):
    return words[0]  # all else is another matter there
  for name in ('jax', 'jaxlib'):
    if differs(name):
      words.append(f'made with {name} {made[name]}, here {here[name]}')
  if differs('compiler'):
    words.append(f'made with {made["compiler"]}, here {here["compiler"]}')
  if not words and differs('places'):
    words.append('for other devices or processes of the same kind and number')
  if differs('host'):
    words.append('for another processor, or another number of its threads')
  for name, text in (
    ('flags', 'XLA_FLAGS'),
    ('options', "the compiler's options"),
    ('settings', "JAX's settings"),
  ):
    if differs(name):
      words.append(f'with other {text}: {made[name]}, here {here[name]}')
  return ' and '.join(words)


class Found(NamedTuple):
  """What an index says.

  Attributes:
    made: circumstances, by a checksum.
    programs: by their names: `made`, `bytes`, `checksum`, and `what` they are.
  """

  made: dict[str, Any]
  programs: dict[str, Any]


def _read_index(directory: pathlib.Path) -> Found | None:
  found = read_signed(directory / INDEX)
  return None if found is None else Found(found['made'], found['programs'])


def _path(directory: pathlib.Path, name: str) -> pathlib.Path:
  return directory / f'{name}.program'


def _sum(content: bytes) -> str:
  return hashlib.blake2b(content, digest_size=16).hexdigest()


def _read(directory: pathlib.Path, name: str, entry: Any) -> bytes | str:
  """What is in a file; a text says why it is not what was written."""
  try:
    content = _path(directory, name).read_bytes()
  except OSError as error:
    return error.strerror or str(error)
  if len(content) != entry['bytes'] or _sum(content) != entry['checksum']:
    return 'it is damaged'
  return content


class ProgramWriter:
  """Compiles what is not in a directory yet, and puts it there."""

  def __init__(
    self, directory: str, devices: Devices, say: Callable[[str], None]
  ):
    """Makes the directory.

    Raises:
      WriteError: if it cannot be made.
    """
    self._directory = pathlib.Path(directory)
    with writing(self._directory):
      self._directory.mkdir(parents=True, exist_ok=True)
    self._made = circumstances(devices)
    index = self._directory / INDEX
    if index.exists() and read_signed(index) is None:
      say(f'{index} is damaged: it is made anew')

  def there(self, lowered: Any) -> int | None:
    """Bytes of an executable that is there and whole; else None."""
    name, found = digest(lowered, self._made), _read_index(self._directory)
    if found is None or name not in found.programs:
      return None
    content = _read(self._directory, name, found.programs[name])
    return None if isinstance(content, str) else len(content)

  def write(self, lowered: Any, what: str) -> int:
    """Compiles it on all processes, and keeps what the first one has.

    Args:
      lowered: what is compiled.
      what: it is, for a reader of the index.

    Returns:
      Its bytes; 0 on the other processes.

    Raises:
      ConfigError: if it is not a program alone.
      JaxRuntimeError: if it cannot be compiled.
      WriteError: if the disk is full or fails.
    """
    if re.search(r'custom_call @\w*callback', lowered.as_text()):
      raise ConfigError(
        'plan.save cannot keep a program that calls back into Python, as a '
        'network, task or optimizer of this config does: leave plan.save out'
      )
    with no_persistent_cache():
      compiled = lowered.compile()
    if not is_first_process():
      return 0
    content, _, _ = serialize_executable.serialize(compiled)
    name, made = digest(lowered, self._made), _key(self._made)
    write_whole(_path(self._directory, name), content)
    # Anew, for others may have written meanwhile.
    found = _read_index(self._directory) or Found({}, {})
    found.made[made] = self._made
    found.programs[name] = {
      'what': what,
      'made': made,
      'bytes': len(content),
      'checksum': _sum(content),
    }
    write_signed(self._directory / INDEX, found._asdict())
    return len(content)


class StoredPrograms:
  """Lowered -> its executable, where a directory has one that fits; or None."""

  def __init__(
    self,
    directory: str,
    devices: Devices,
    *,
    say: Callable[[str], None] = print,
    warn: Callable[[str], None] = print,
  ):
    """Reads the index.

    Args:
      directory: that `ProgramWriter` wrote.
      devices: that the programs are for.
      say: is told, once, that something is not there, and why.
      warn: is told of files that cannot be read, on whichever process.

    Raises:
      ConfigError: if it holds no programs.
    """
    self._directory, self._devices = pathlib.Path(directory), devices
    self._say, self._warn = say, warn
    found = _read_index(self._directory)
    if found is None:
      raise ConfigError(
        f'compilation.programs={directory!r} has no readable {INDEX}: give a '
        'directory that --job=plan --config.plan.save=DIR has written'
      )
    self._found, self._here = found, circumstances(devices)
    self._said = False
    self._lock = threading.Lock()  # programs are asked for in several threads

  def __call__(self, lowered: Any) -> Any:
    name = digest(lowered, self._here)
    entry = self._found.programs.get(name)
    if entry is None:
      self._say_once(self._why())
      return None
    content = _read(self._directory, name, entry)
    if isinstance(content, str):
      self._compiles(name, content)
      return None
    flat = list(self._devices.mesh.devices.flat)[: _number(lowered)]
    try:
      return serialize_executable.deserialize_and_load(
        content,
        lowered.in_tree,
        lowered.out_tree,
        backend=flat[0].client,
        execution_devices=flat,
      )
    except UNREADABLE as error:
      why = ' '.join(f'{type(error).__name__}: {error}'.split())
      self._compiles(name, why[:200])
      return None

  def _compiles(self, name: str, why: str) -> None:
    path = _path(self._directory, name)
    self._warn(f'{path} cannot be loaded ({why}): it is compiled here')

  def _say_once(self, why: str) -> None:
    with self._lock:
      said, self._said = self._said, True
    if not said:
      self._say(
        f'compilation.programs={str(self._directory)!r} lacks a program of '
        f'this run, those there are {why}: it is compiled here'
      )

  def _why(self) -> str:
    """What tells those that are nearest from what is wanted."""
    here = self._here

    def differing(made: Any) -> int:
      return sum(made.get(key) != value for key, value in here.items())

    nearest = min(self._found.made.values(), key=differing, default=here)
    return difference(nearest, here) or 'of another network or config'
