"""Transformer and LSTM against slow twins that see one document at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from adabatch.models import LSTM, MODELS, Rows, Transformer
from adabatch.models.documents import places_in_documents
from adabatch.models.dropout import Dropout
from adabatch.models.embedding import Embedding
from adabatch.models.transformer import sinusoids

VOCABULARY = 11
END = 10

MAKE = {
  'transformer': functools.partial(
    Transformer,
    num_classes=VOCABULARY,
    num_layers=2,
    model_dim=8,
    num_heads=2,
    hidden_dim=12,
    end_of_document=END,
  ),
  'lstm': functools.partial(
    LSTM,
    num_classes=VOCABULARY,
    num_layers=2,
    hidden_size=6,
    embedding_size=5,
    end_of_document=END,
  ),
}
VARIANTS = {
  'transformer': {},
  'transformer_untied': {'tied_embeddings': False},
  'lstm': {},
  'lstm_projected': {'projection_size': 4},
  'lstm_tied': {'projection_size': 5, 'tied_embeddings': True},
}
# Each with logit 3 after the seventh token of row 1, for key 0. They change
# when the architecture or the initialisation does.
GOLDEN = {
  'transformer': -0.2311980128,
  'transformer_untied': -0.9060277938,
  'lstm': -0.05475494638,
  'lstm_projected': -0.0115279322,
  'lstm_tied': -0.018623484,
}

# Rows that begin with the end of a document and in the middle of one, with an
# empty document, and with the ends that fill up a row.
TOKENS = np.array(
  [
    [END, 1, 2, 3, END, END, 4, 5, 1],
    [3, 1, 4, END, 1, 5, END, 9, 2],
    [0, END, 6, 7, 8, 9, END, END, END],
  ]
)


def make(name, **changes):
  model = MAKE[name.split('_')[0]]
  return model(**{**VARIANTS.get(name, {}), **changes})


@functools.partial(jax.jit, static_argnums=0)
def initial(model):
  return model.init(jax.random.key(0), TOKENS[:1], train=False)


@functools.cache
def variables(name):
  """Parameters of which none is at its initial value, for twins to differ."""
  given = initial(make(name))
  rng = np.random.Generator(np.random.Philox(1))
  return jax.tree.map(
    lambda v: np.asarray(
      v + 0.3 * rng.standard_normal(v.shape), dtype=np.float32
    ),
    given,
  )


@functools.partial(jax.jit, static_argnums=0)
def evaluate(model, given, tokens):
  return model.apply(given, tokens, train=False)


def logits(name, tokens, **changes):
  return np.asarray(evaluate(make(name, **changes), variables(name), tokens))


def parameters(model):
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), TOKENS[:1], train=False)
  )
  return sum(v.size for v in jax.tree.leaves(shapes['params']))


def documents(row):
  """(start, stop) of the documents of a row."""
  edges = sorted({0, *np.flatnonzero(row == END), len(row)})
  return list(zip(edges[:-1], edges[1:], strict=True))


# --- twins, in float64 ---


def layer_norm(x, p):
  centred = x - x.mean(-1, keepdims=True)
  deviation = np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6)
  return centred / deviation * p['scale'] + p['bias']


def transformer_twin(model, params, document):
  """Logits [T, V] of a document by itself, token by token, head by head."""
  dim, heads = model.model_dim, model.num_heads
  size = dim // heads
  rates = 10_000 ** -np.linspace(0, 1, dim // 2)
  embedding = params['embedding']['vectors']
  x = []
  for position, token in enumerate(document):
    angles = position * rates
    wave = np.concatenate([np.sin(angles), np.cos(angles)])
    x.append(np.sqrt(dim) * embedding[token] + wave)
  x = np.array(x)
  for i in range(model.num_layers):
    y = layer_norm(x, params[f'attention_norm_{i}'])
    q, k, v = np.split(y @ params[f'attention_in_{i}']['kernel'], 3, -1)
    attended = np.zeros_like(x)
    for t in range(len(document)):
      for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        scores = k[: t + 1, own] @ q[t, own] / np.sqrt(size)
        weights = np.exp(scores - scores.max())
        attended[t, own] = weights / weights.sum() @ v[: t + 1, own]
    x = x + attended @ params[f'attention_out_{i}']['kernel']
    y = layer_norm(x, params[f'hidden_norm_{i}'])
    inner, outer = params[f'hidden_in_{i}'], params[f'hidden_out_{i}']
    hidden = np.maximum(y @ inner['kernel'] + inner['bias'], 0)
    x = x + hidden @ outer['kernel'] + outer['bias']
  out = embedding if model.tied_embeddings else params['logits']['vectors']
  return layer_norm(x, params['norm']) @ out.T


def lstm_twin(model, params, document):
  """Logits [T, V] of a document by itself, token by token."""

  def logistic(x):
    return 1 / (1 + np.exp(-x))

  embedding = params['embedding']['vectors']
  states = [np.sqrt(model.embedding_size) * embedding[t] for t in document]
  for i in range(model.num_layers):
    p = params[f'layer_{i}']
    state = np.zeros(model.projection_size or model.hidden_size)
    cell = np.zeros(model.hidden_size)
    outputs = []
    for x in states:
      gates = x @ p['input']['kernel'] + p['input']['bias']
      gates = gates + state @ p['recurrent']
      write, forget, new, read = np.split(gates, 4)
      cell = logistic(forget + 1) * cell + logistic(write) * np.tanh(new)
      state = logistic(read) * np.tanh(cell)
      if model.projection_size:
        state = state @ p['projection']
      outputs.append(state)
    states = outputs
  out = embedding if model.tied_embeddings else params['logits']['vectors']
  return np.array(states) @ out.T


@pytest.mark.parametrize('name', VARIANTS)
def test_each_document_as_if_alone(name):
  """Causal, without a leak, positions and states from where it begins."""
  model = make(name)
  twin = transformer_twin if name.startswith('transformer') else lstm_twin
  params = jax.tree.map(np.float64, variables(name)['params'])
  got = logits(name, TOKENS)
  for row, values in zip(TOKENS, got, strict=True):
    for start, stop in documents(row):
      expected = twin(model, params, row[start:stop])
      np.testing.assert_allclose(
        values[start:stop], expected, rtol=0, atol=2e-5 * np.abs(expected).max()
      )


@pytest.mark.parametrize('name', MAKE)
def test_without_ends_a_row_is_one_document(name):
  got = logits(name, TOKENS, end_of_document=None)
  assert not np.allclose(got[0, 5:], logits(name, TOKENS)[0, 5:], rtol=1e-2)
  # As if the ends were any other token.
  no_end = np.where(TOKENS == END, 0, TOKENS)
  np.testing.assert_allclose(
    logits(name, no_end), logits(name, no_end, end_of_document=None), rtol=1e-5
  )


@pytest.mark.parametrize('name', MAKE)
def test_a_later_token_changes_nothing_before_it(name):
  tokens = np.array([[1, 2, 3, 4, 5, 6, 7, 8, 9]])
  before = logits(name, tokens)
  for place in range(tokens.shape[1]):
    changed = tokens.copy()
    changed[0, place] = 0
    after = logits(name, changed)
    np.testing.assert_array_equal(after[0, :place], before[0, :place])
    # But everything from there on.
    assert np.all(np.abs(after[0, place:] - before[0, place:]).max(-1) > 1e-4)


@pytest.mark.parametrize('name', MAKE)
def test_another_document_changes_nothing(name):
  tokens = np.array([[1, 2, 3, END, 4, 5, 6, END, 7]])
  before = logits(name, tokens)
  after = logits(name, np.array([[9, 8, 3, END, 4, 5, 6, END, 0]]))
  np.testing.assert_array_equal(after[0, 3:8], before[0, 3:8])
  assert np.all(after[0, :3] != before[0, :3])


@pytest.mark.parametrize('name', ['transformer_untied', 'lstm'])
def test_gradients_do_not_leak(name):
  """From a document's loss to the vectors of another's tokens."""

  @jax.jit
  @jax.grad
  def gradient(params):
    values = make(name).apply({'params': params}, TOKENS[:1], train=False)
    return jnp.sum(jnp.square(values[0, 5:]))

  got = gradient(variables(name)['params'])['embedding']['vectors']
  assert not np.any(got[np.array([2, 3])])
  assert np.all(np.abs(got[np.array([END, 4, 5, 1])]).max(-1) > 0)


def test_places():
  document, position = places_in_documents(jnp.asarray(TOKENS), END)
  np.testing.assert_array_equal(
    document,
    [
      [1, 1, 1, 1, 2, 3, 3, 3, 3],
      [0, 0, 0, 1, 1, 1, 2, 2, 2],
      [0, 1, 1, 1, 1, 1, 2, 3, 4],
    ],
  )
  np.testing.assert_array_equal(
    position,
    [
      [0, 1, 2, 3, 0, 0, 1, 2, 3],
      [0, 1, 2, 0, 1, 2, 0, 1, 2],
      [0, 0, 1, 2, 3, 4, 0, 0, 0],
    ],
  )
  document, position = places_in_documents(jnp.asarray(TOKENS), None)
  assert not np.any(document)
  np.testing.assert_array_equal(position, np.tile(np.arange(9), (3, 1)))


def test_wavelengths():
  waves = sinusoids(jnp.arange(3), 6)
  # The longest is 10,000 times the shortest, 2 pi.
  expected = np.sin(2 * np.array([1, 0.01, 0.0001]))
  np.testing.assert_allclose(waves[2, :3], expected, rtol=1e-5)
  np.testing.assert_allclose(waves[:, 3], np.cos(np.arange(3)), rtol=1e-5)
  assert np.isfinite(sinusoids(jnp.arange(3), 2)).all()


# --- sizes ---


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('size', [(1, 8, 2, 12), (3, 12, 3, 20)])
def test_transformer_parameters(size, tied):
  layers, dim, heads, hidden = size
  model = Transformer(
    VOCABULARY,
    num_layers=layers,
    model_dim=dim,
    num_heads=heads,
    hidden_dim=hidden,
    tied_embeddings=tied,
  )
  norm = 2 * dim
  attention = 4 * dim**2
  feed_forward = 2 * dim * hidden + hidden + dim
  expected = layers * (attention + feed_forward + 2 * norm) + norm
  expected += VOCABULARY * dim * (1 if tied else 2)
  assert parameters(model) == expected


def test_transformer_base_is_that_of_the_paper():
  """Layers of 512 with 8 heads and 2,048 hidden units.

  Of the decoder layers of the paper what has no encoder to look at: 4 d^2 for
  attention, 2 d f + f + d for the feed-forward sublayer, 2 LayerNorms.
  """
  base, shallow = Transformer(1), Transformer(1, num_layers=2)
  layer = 4 * 512**2 + 2 * 512 * 2048 + 2048 + 512 + 4 * 512
  assert layer == 3_150_336
  assert parameters(base) == 6 * layer + 1024 + 512
  assert parameters(shallow) == 2 * layer + 1024 + 512


@pytest.mark.parametrize('projection', [0, 4])
@pytest.mark.parametrize('layers', [1, 3])
def test_lstm_parameters(layers, projection):
  model = make('lstm', num_layers=layers, projection_size=projection)
  hidden, inputs, state = 6, 5, projection or 6
  expected = VOCABULARY * (5 + state)
  for _ in range(layers):
    expected += 4 * hidden * (inputs + state + 1) + hidden * projection
    inputs = state
  assert parameters(model) == expected


@pytest.mark.parametrize('name', VARIANTS)
def test_logits_of_each_token(name):
  got = logits(name, TOKENS)
  assert got.shape == (3, 9, VOCABULARY)
  assert got.dtype == np.float32
  run = functools.partial(make(name).apply, variables(name), train=False)
  for shape in ((1, 9), (3, 1)):
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    assert jax.eval_shape(run, tokens).shape == (*shape, VOCABULARY)
  # Whatever the other rows are.
  order = [2, 0, 1]
  np.testing.assert_allclose(
    logits(name, TOKENS[order]), got[order], rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize('name', VARIANTS)
def test_golden_logit(name):
  model = make(name)
  given = initial(model)
  got = evaluate(model, given, TOKENS)[1, 6, 3]
  assert float(got) == pytest.approx(GOLDEN[name], rel=1e-4)


@pytest.mark.parametrize('name', MAKE)
def test_the_first_logits_have_the_size_of_one(name):
  """At real widths, so that the first loss is near the log of the size."""
  size = {'model_dim': 64, 'hidden_dim': 128}
  if name == 'lstm':
    size = {'hidden_size': 64, 'embedding_size': 64}
  model = make(name, num_classes=300, **size)
  tokens = np.random.default_rng(0).integers(0, 300, (2, 16))
  values = np.asarray(evaluate(model, initial(model), tokens))
  assert 0.02 < values.std() < 1.6


@pytest.mark.parametrize(
  ('name', 'changes', 'part'),
  [
    ('transformer', {'num_heads': 3}, 'model_dim must be a multiple'),
    ('transformer', {'model_dim': 6}, 'model_dim must be a multiple'),
    ('lstm', {'tied_embeddings': True}, 'set projection_size'),
  ],
)
def test_sizes_that_cannot_be(name, changes, part):
  with pytest.raises(ValueError, match=part):
    parameters(make(name, **changes))


def test_both_are_in_the_table():
  assert MODELS['transformer'] is Transformer
  assert MODELS['lstm'] is LSTM


# --- precision ---


@pytest.mark.parametrize('name', MAKE)
def test_bfloat16_is_only_in_between(name):
  model = make(name, dtype=jnp.bfloat16)
  given = initial(model)
  assert {v.dtype for v in jax.tree.leaves(given)} == {np.dtype(np.float32)}
  exact, rounded = logits(name, TOKENS), logits(name, TOKENS, dtype='bfloat16')
  assert rounded.dtype == np.float32
  scale = np.abs(exact).max()
  assert 1e-5 * scale < np.abs(rounded - exact).max() < 0.1 * scale
  # Sums over features are not rounded to bfloat16.
  assert np.any(np.asarray(rounded, jnp.bfloat16).astype(np.float32) != rounded)


def test_products_of_vectors_are_float32():
  model = Embedding(3, 64, dtype=jnp.bfloat16)
  x = jnp.ones((2, 64))
  given = model.init(jax.random.key(0), jnp.zeros(1, int))
  assert model.apply(given, jnp.zeros(1, int)).dtype == jnp.bfloat16  # pyright: ignore
  got = model.apply(given, x, method='attend')
  vectors = np.asarray(given['params']['vectors'].astype(jnp.bfloat16))
  expected = np.asarray(x, np.float64) @ vectors.astype(np.float64).T
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


# --- training ---


@functools.partial(jax.jit, static_argnums=0)
def run_training(model, given, tokens, rows):
  return model.apply(
    given, tokens, train=True, rows=rows, rngs={'dropout': jax.random.key(3)}
  )


def train(name, tokens, places, rate=0.5):
  rows = Rows(jnp.ones(len(places)), jnp.asarray(places, jnp.int32))
  model = make(name, dropout_rate=rate)
  return np.asarray(run_training(model, variables(name), tokens, rows))


@pytest.mark.parametrize('name', MAKE)
def test_dropout_follows_the_places_of_rows(name):
  whole = train(name, TOKENS, [0, 1, 2])
  order = [2, 0, 1]
  moved = train(name, TOKENS[order], order)
  np.testing.assert_allclose(moved, whole[order], rtol=1e-4, atol=1e-5)
  other = train(name, TOKENS, [3, 4, 5])
  assert np.all(np.abs(other - whole).max((1, 2)) > 1e-2)


@pytest.mark.parametrize('name', MAKE)
def test_dropout_is_only_for_training(name):
  expected = logits(name, TOKENS)
  np.testing.assert_array_equal(
    logits(name, TOKENS, dropout_rate=0.9), expected
  )
  changed = train(name, TOKENS, [0, 1, 2])
  assert np.all(np.abs(changed - expected).max((1, 2)) > 1e-2)


@pytest.mark.parametrize(('name', 'places'), [('transformer', 5), ('lstm', 3)])
def test_dropout_is_on_the_embeddings_and_every_layer(name, places):
  """With nearly everything dropped, all that is left are biases."""
  model, given = make(name, dropout_rate=1 - 1e-6), variables(name)

  def apply():
    return model.apply(
      given,
      TOKENS,
      train=True,
      rngs={'dropout': jax.random.key(3)},
      capture_intermediates=lambda module, _: isinstance(module, Dropout),
    )

  values, kept = jax.jit(apply)()
  dropped = jax.tree.leaves(kept)
  assert len(dropped) == places
  assert not any(np.any(v) for v in dropped)
  np.testing.assert_array_equal(values, np.tile(values[:1, :1], (3, 9, 1)))


@pytest.mark.parametrize('name', MAKE)
def test_gradients_are_the_same_on_several_devices(name):
  tokens = np.concatenate([TOKENS, TOKENS[:1, ::-1]])
  model = make(name)
  params = variables(name)['params']

  def gradient(params, tokens):
    def loss(params):
      values = model.apply({'params': params}, tokens, train=False)
      return jnp.sum(jax.nn.logsumexp(values, -1))

    return jax.grad(loss)(params)

  mesh = Mesh(np.array(jax.devices()[:2]), ('data',))

  def body(params, tokens):
    varying = jax.tree.map(
      lambda x: jax.lax.pcast(x, 'data', to='varying'), params
    )
    return jax.lax.psum(gradient(varying, tokens), 'data')

  got = jax.jit(
    jax.shard_map(
      body,
      mesh=mesh,
      in_specs=(PartitionSpec(), PartitionSpec('data')),
      out_specs=PartitionSpec(),
    )
  )(params, tokens)
  expected = jax.jit(gradient)(params, tokens)
  for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
