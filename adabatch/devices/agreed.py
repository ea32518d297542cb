"""What all processes agree on, through JAX's coordination service.

That is a small store of keys which process 0 holds. No device is touched, so
that it works while the devices wait for somebody who is gone.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
from jax._src import distributed  # the store has no public name
from jax.errors import JaxRuntimeError

PREFIX = 'adabatch'  # of all keys


class Differ(RuntimeError):
  """Processes of one run that are not at the same thing."""


def store() -> Any:
  """The service's client, with one namespace of keys for all processes."""
  return distributed.global_state.client


def read(key: str) -> str | None:
  """What stands under a key; None if nothing does."""
  try:
    return store().key_value_try_get(key)
  except JaxRuntimeError as error:
    if 'NOT_FOUND' in str(error):
      return None
    raise


_rounds: dict[str, int] = {}


def digest(value: Any) -> str:
  """Of plain data, the same on every process and in every version of Python.

  >>> digest({'a': 1, 'b': (2.5, None)}) == digest({'b': [2.5, None], 'a': 1})
  True
  """
  text = json.dumps(value, sort_keys=True, default=str)
  return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def agree(what: str, values: Mapping[str, Any], seconds: float = 600.0) -> None:
  """Refuses to go on where a process has other values than the first.

  The same call has to be made on every process. A process that differs says in
  what; where none does, no process reads more than process 0's values.

  Args:
    what: is compared, for the message.
    values: by name, plain data.
    seconds: to wait for a process that is at something else.

  Raises:
    Differ: on every process, naming the values and the processes.
  """
  if jax.process_count() == 1:
    return
  client, here = store(), jax.process_index()
  _rounds[what] = _rounds.get(what, -1) + 1
  place = f'{PREFIX}/agree/{what}/{_rounds[what]}'
  wait = int(1000 * seconds)
  own = {name: _shown(value) for name, value in values.items()}
  if here == 0:
    client.key_value_set(f'{place}/first', json.dumps(own))
    first = own
  else:
    first = json.loads(client.blocking_key_value_get(f'{place}/first', wait))
  names = sorted(
    k for k in own.keys() | first.keys() if own.get(k) != first.get(k)
  )
  if names:
    found = {k: (first.get(k), own.get(k)) for k in names}
    client.key_value_set(f'{place}/differ/{here}', json.dumps(found))
  client.wait_at_barrier(f'{place}/all', wait)
  differ = {
    int(key.rpartition('/')[2]): json.loads(text)
    for key, text in client.key_value_dir_get(f'{place}/differ/')
  }
  if differ:
    # None may end, and with it the store, before all have read.
    client.wait_at_barrier(f'{place}/read', wait)
    raise Differ(_difference(what, differ))
  if here == 0:
    client.key_value_delete(f'{place}/')


def decide(value: Any) -> Any:
  """What the first process has, plain data, on every process; no device waits.

  The same call has to be made on every process.
  """
  if jax.process_count() == 1:
    return value
  _rounds['decide'] = round_ = _rounds.get('decide', -1) + 1
  place = f'{PREFIX}/decide/{round_}'
  if jax.process_index() == 0:
    store().key_value_set(place, json.dumps(value))
    return value
  return json.loads(store().blocking_key_value_get(place, 600_000))


def _shown(value: Any) -> str:
  """A value, or what stands for it where that is long."""
  text = json.dumps(value, sort_keys=True, default=str)
  return text if len(text) <= 60 else digest(value)


def _difference(what: str, differ: dict[int, dict[str, list]]) -> str:
  """One line.

  >>> _difference('config', {2: {'seed': ['0', '1']}})
  'the processes differ in their config: seed is 0 on process 0, 1 on process 2'
  """
  parts = []
  for name in sorted({name for found in differ.values() for name in found}):
    others = [
      f'{found[name][1]} on process {process}'
      for process, found in sorted(differ.items())
      if name in found
    ]
    first = next(f[name][0] for f in differ.values() if name in f)
    shown = others[:3] + ['...'] * (len(others) > 3)
    parts.append(f'{name} is {first} on process 0, {", ".join(shown)}')
  more = f'; and {len(parts) - 5} more' if len(parts) > 5 else ''
  return f'the processes differ in their {what}: ' + '; '.join(parts[:5]) + more
