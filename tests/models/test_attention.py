"""Attention by blocks of queries against that of all at once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch.models.attention import attention, blocks, by_blocks


@pytest.mark.parametrize('length', [256, 384, 512, 640, 1024, 4096, 4224])
def test_blocks_cover_the_row(length):
  found = blocks(length)
  assert 2 <= len(found) <= 4
  assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
  assert found[-1][1] == length
  assert all(start % 128 == 0 for start, _ in found)


@pytest.mark.parametrize('length', [1, 64, 128, 200, 257])
def test_other_rows_are_whole(length):
  assert blocks(length) == [(0, length)]


def test_blocks_are_the_whole():
  """Numbers and gradients, also where a document begins within a block."""
  rng = np.random.Generator(np.random.Philox(0))
  values = rng.standard_normal((4, 2, 384, 2, 4)).astype(np.float32)
  document = np.cumsum(rng.random((2, 384)) < 0.01, -1)
  assert document.max() > 2

  def run(function):
    def total(q, k, v):
      attended = function(q, k, v, document)
      return jnp.sum(attended * values[3]), attended

    return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(
      *values[:3]
    )

  for got, right in zip(
    *map(jax.tree.leaves, (run(by_blocks), run(attention))), strict=True
  ):
    np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-5)


def test_only_a_tpu_takes_blocks():
  heads = jax.ShapeDtypeStruct((1, 256, 2, 4), jnp.float32)
  documents = jax.ShapeDtypeStruct((1, 256), jnp.int32)

  def gradient(*arguments):
    return jax.grad(lambda *a: attention(*a).sum())(*arguments)

  traced = jax.jit(gradient).trace(heads, heads, heads, documents)
  for platform, by_block in (('tpu', True), ('cpu', False), ('cuda', False)):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    # Queries by keys of the products, forward and backward: batch, heads,
    # queries, 1, keys.
    shapes = set(re.findall(r'-> tensor<1x2x(\d+)x1x(\d+)xf32>', text))
    shapes = {shape for shape in shapes if '4' not in shape}
    parts = {('128', '128'), ('128', '256')}
    assert shapes == (parts if by_block else {('256', '256')})
