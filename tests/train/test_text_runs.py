"""A run on text: all of one's own, and its tokenizer taken home."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import adabatch
from adabatch.config import ConfigError
from adabatch.models import MODELS
from adabatch.models.tasks import TASKS, language_modelling
from adabatch.report.compared import read_runs, subject
from adabatch.train import tasks, train
from tests.experiments import digits, records
from tests.tfds_sets import SENTENCES, write_set

pytestmark = pytest.mark.usefixtures('compile_quickly')


def z_loss(weight: float = 0.1):
  """Cross-entropy, and the squared logarithm of what it is normalised by."""
  task = language_modelling()

  def squared(logits):
    return jnp.mean(jax.nn.logsumexp(logits, -1) ** 2, -1)

  def metrics(logits, batch):
    return task.metrics(logits, batch) | {'z': squared(logits)}

  return task._replace(
    loss=lambda logits, batch: (
      task.loss(logits, batch) + weight * squared(logits)
    ),
    metrics=metrics,
    metric_names=('loss', 'accuracy', 'z'),
    higher_is_better=task.higher_is_better | {'z': False},
  )


class Bigram(nn.Module):
  """Logits of the next token, from the last one alone."""

  num_classes: int

  @nn.compact
  def __call__(self, tokens):
    return nn.Embed(self.num_classes, self.num_classes)(tokens)


def own(tmp_path, **overrides):
  settings = {
    'max_updates': 3,
    'controller.name': 'constant',
    'data.name': 'tiny',
    'data.data_dir': str(tmp_path),
    'data.eval_split': 'train',
    'data.sequence_length': 10,
  }
  c = digits(**settings | overrides)
  adabatch.register(c, 'task', 'z_loss', z_loss, weight=0.5)
  adabatch.register(c, 'model', 'bigram', Bigram)
  return c


@pytest.fixture(scope='module', autouse=True)
def forgotten():
  yield
  TASKS.pop('z_loss', None)
  MODELS.pop('bigram', None)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Its directory, moved away from its data, and its summary."""
  root = tmp_path_factory.mktemp('text')
  write_set(root, SENTENCES)
  pieces = {'data.tokenizer': 'sentencepiece', 'data.vocab_size': 290}
  # Tokens as the unit of a schedule are for every task that predicts them.
  decay = {
    'learning_rate.decay.name': 'cosine',
    'learning_rate.decay.unit': 'tokens',
    'learning_rate.decay.length': 1e6,
  }
  c = own(root, **pieces, **decay)
  summary = train(c, root / 'run', devices=jax.devices()[:1])
  (root / 'run' / 'text').rename(root / 'gone')
  (root / 'tiny').rename(root / 'away')
  (root / 'run').rename(root / 'home')
  return root / 'home', summary


def test_a_task_of_ones_own_predicts_tokens(run):
  workdir, summary = run
  (last,) = records(workdir)[-1:]
  assert last['tokens'] == last['examples'] * 10
  final = summary['final']['train']
  assert final['perplexity'] == pytest.approx(np.exp(final['loss']))
  # Its loss is trained on, and its metric is told.
  assert last['loss'] > final['loss'] + 0.4 * final['z']
  assert 'data.tokenizer' in subject(read_runs([workdir])[0])


def test_the_tokenizer_is_taken_home(run):
  loaded = adabatch.load(run[0])
  text = SENTENCES[0].decode()
  tokens = loaded.tokenizer.encode('the fox')
  assert loaded.tokenizer.decode(tokens) == 'the fox'
  assert 1 < len(tokens) < 7  # pieces, and not bytes
  logits = loaded('the fox')
  assert logits.shape == (1, len(tokens) + 1, 290)
  row = [[loaded.tokenizer.end_of_document, *tokens]]
  np.testing.assert_array_equal(logits, loaded(np.array(row, np.uint16)))
  with pytest.raises(ValueError, match='tokens, and the network was trained'):
    loaded(text * 3)


def test_packed_text_goes_on_anywhere(tmp_path):
  """On one device from memory, on four from a stream, on two from memory."""
  write_set(tmp_path, SENTENCES)

  def run(name, placement, devices, last_update=None):
    keys = {
      'max_updates': 9,
      'controller.name': 'adadamp',
      'controller.every': 2,
      'controller.initial_batch_size': 4,
      'controller.max_batch_size': 8,
      'data.placement': placement,
    }
    train(
      own(tmp_path, **keys),
      tmp_path / name,
      devices=jax.devices()[:devices],
      last_update=last_update,
    )
    return records(tmp_path / name)

  run('moved', 'resident', 1, last_update=3)
  run('moved', 'streaming', 4, last_update=6)
  moved, whole = run('moved', 'resident', 2), run('whole', 'resident', 1)
  assert len(whole) == 9
  assert [x['batch_size'] for x in moved] == [x['batch_size'] for x in whole]
  losses = [[x['loss'] for x in lines] for lines in (moved, whole)]
  np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_slip_in_what_a_task_predicts_is_refused(tmp_path, monkeypatch):
  def slip(weight):
    del weight
    return language_modelling()._replace(labels='token')

  c = own(tmp_path)
  monkeypatch.setitem(TASKS, 'z_loss', slip)
  with pytest.raises(ConfigError, match="labels 'token': choose one of"):
    tasks.make_task(c)
