"""Long vocabularies and rows by the compiler of TPUs, which needs none.

    pip install -e '.[tpu]'
    python -m benchmarks.tpu_text

Estimates for one chip of a v5e, forward and backward in bfloat16 with the sizes
of `configs/transformer_lm1b.py`: the loss of a vocabulary of 32,000 from whole
logits and from chunks of about 256 MB, the attention of 16,384 tokens in rows
of several lengths as a whole and by blocks, and the whole train step of 64 rows
each way.
XLA's own cost model gives the cycles of each instruction, loops as often as
they go round; nothing of it was measured on a TPU. Writes a log (`--log`) and
prints a table; `--only` takes the rows whose names contain it.
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adabatch.config.files import cache_directory
from adabatch.models import attention, scores, tasks
from adabatch.plan.compiler import Compiled, Compiler
from adabatch.plan.figures import programs
from adabatch.plan.outline import outline
from adabatch.plan.topology import find
from adabatch.train.build import build
from benchmarks import measure
from configs import transformer_lm1b

LOG = flags.DEFINE_string(
  'log', str(measure.DOCS / 'tpu_text.json'), 'Where the log is written.'
)
ONLY = flags.DEFINE_string('only', '', 'A part of the names of rows.')

CHIP = 'v5e:1x1'
VOCABULARY, FEATURES, HEADS = 32_000, 512, 8
TOKENS = (2048, 4096, 8192, 16_384, 32_768)
LENGTHS = (256, 512, 1024, 4096)
# Of rows of every length as many tokens as LM1B's 64 rows of 256.
ATTENDED = 64 * 256


def compiled(function: Callable[..., Any], *shapes: Any) -> Compiled:
  """A function of arrays of such shapes, for the chip."""
  machine = find(CHIP)
  mesh = Mesh(np.array(machine.devices), ('data',))
  lies = NamedSharding(mesh, PartitionSpec())
  arrays = [jax.ShapeDtypeStruct(*x, sharding=lies) for x in shapes]
  lowered = jax.jit(function).trace(*arrays).lower()
  made = Compiler(machine, cache_directory('plans'))(lowered)
  assert isinstance(made, Compiled), made.why
  return made


@contextlib.contextmanager
def whole() -> Iterator[None]:
  """Logits and attention as if nothing were long."""
  with (
    mock.patch.object(scores, 'WHOLE', 2**60),
    mock.patch.object(attention, 'blocks', lambda length: [(0, length)]),
  ):
    yield


def loss(tokens: int) -> Compiled:
  """And its gradient, of whole logits or of chunks as `scores.WHOLE` says."""
  task = tasks.language_modelling()

  def total(features, vectors, labels, weight):
    found = scores.Scores(features, vectors, jnp.bfloat16)
    batch = {'tokens': labels, 'weight': weight}
    return jnp.sum(tasks.training_loss(task, found, batch))

  return compiled(
    jax.value_and_grad(total, (0, 1)),
    ((tokens // 256, 256, FEATURES), jnp.bfloat16),
    ((VOCABULARY, FEATURES), jnp.float32),
    ((tokens // 256, 257), jnp.int32),
    ((tokens // 256,), jnp.float32),
  )


def attended(length: int) -> Compiled:
  """Attention of `ATTENDED` tokens in rows of a length, and its gradient."""

  def total(query, key, value, document, slope):
    found = attention.attention(query, key, value, document)
    return jnp.sum((found * slope).astype(jnp.float32))

  rows = ATTENDED // length
  heads = ((rows, length, HEADS, FEATURES // HEADS), jnp.bfloat16)
  documents = ((rows, length), jnp.int32)
  return compiled(
    jax.value_and_grad(total, (0, 1, 2)), heads, heads, heads, documents, heads
  )


def step(rows: int) -> Compiled:
  """The train step of LM1B with so many rows on the chip."""
  machine = find(CHIP)
  config = transformer_lm1b.get_config()
  config.update_from_flattened_dict(
    {
      'model.dtype': 'bfloat16',
      'controller.name': 'constant',
      'controller.initial_batch_size': rows,
      'controller.max_batch_size': rows,
    }
  )
  parts = build(config, machine.devices, outline(config, 'tokens'))
  compiler = Compiler(machine, cache_directory('plans'))
  made = programs(parts, machine, compiler).rungs[rows]
  assert isinstance(made, Compiled), made.why
  return made


def rows() -> Iterator[tuple[str, Callable[[], Compiled]]]:
  """(name, what compiles it): each as a whole, and then not."""
  for tokens in TOKENS:
    size = 4 * tokens * VOCABULARY / 1e9
    name = f'loss of {tokens:,} tokens ({size:.2f} GB of logits)'
    yield f'{name}, whole', lambda n=tokens: loss(n)
    yield f'{name}, chunks', lambda n=tokens: loss(n)
  for length in LENGTHS:
    name = f'attention in rows of {length:,}'
    yield f'{name}, whole', lambda n=length: attended(n)
    yield f'{name}, blocks', lambda n=length: attended(n)
  yield 'LM1B step of 64 rows, whole', lambda: step(64)
  yield 'LM1B step of 64 rows, chunks and blocks', lambda: step(64)


def row(name: str, compile_it: Callable[[], Compiled]) -> dict[str, Any]:
  """What the compiler says of it."""
  chosen = mock.patch.object(scores, 'WHOLE', scores.CHUNK)
  with whole() if name.endswith('whole') else chosen:
    made = compile_it()
  clock = find(CHIP).chip.clock
  assert clock is not None, CHIP
  return {
    'milliseconds': 1e3 * made.cost.cycles / clock,
    'traffic_gigabytes': made.cost.traffic / 1e9,
    'temporary_gigabytes': made.memory['temp'] / 1e9,
    'without_estimate': made.cost.unknown,
  }


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.ERROR)
  path = pathlib.Path(LOG.value)
  found = json.loads(path.read_text())['rows'] if path.exists() else {}
  for name, compile_it in rows():
    if ONLY.value in name:
      found[name] = row(name, compile_it)
      about = {
        'hardware': 'no TPU, by its compiler',
        'versions': measure.versions('jax', 'jaxlib', 'libtpu', 'flax'),
      }
      measure.write(path, about | {'rows': found})
  columns = ['', 'ms', 'GB read and written', 'GB of temporary arrays']
  figures = ('milliseconds', 'traffic_gigabytes', 'temporary_gigabytes')
  print(
    measure.table(
      columns,
      ([name, *(f'{v[k]:.2f}' for k in figures)] for name, v in found.items()),
    )
  )


if __name__ == '__main__':
  app.run(main)
