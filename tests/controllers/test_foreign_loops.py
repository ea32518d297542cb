"""The state of each foreign loop survives a restart exactly."""

import json

import numpy as np
import pytest

import adabatch
from adabatch.controllers import BatchSampler, adadamp, buckets, every, pytorch

UPDATES, CUT = 40, 17
X = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
Y = X @ np.arange(1, 5, dtype=np.float32)


def make():
  rule = every(adadamp(initial_batch_size=4, decay=0.5), updates=3)
  ladder = buckets.ladder(4, 32, devices=1)
  batch_size = adabatch.BatchSize(rule, ladder, num_examples=len(X))
  return batch_size, BatchSampler(batch_size, seed=1)


def until(batch_size, loader, updates):
  while True:
    for batch in loader:
      yield batch
      if batch_size.updates == updates:
        return


def check(run):
  """`run(updates, saved)` gives sizes, losses and what to save."""
  whole = run(UPDATES, None)
  first = run(CUT, None)
  second = run(UPDATES, first[2])
  assert len(whole[0]) == UPDATES
  assert whole[0][0] == 4
  assert whole[0][-1] == 32
  for i in range(2):
    assert first[i] + second[i] == whole[i]


def test_optax():
  jax = pytest.importorskip('jax')
  optax = pytest.importorskip('optax')
  from adabatch import optim

  tx = optax.chain(optax.sgd(0.02, momentum=0.9), optim.scale_by_damping())

  @jax.jit
  def step(params, opt_state, x, y, damping):
    loss, gradient = jax.value_and_grad(
      lambda params: ((x @ params - y) ** 2).mean()
    )(params)
    updates, opt_state = tx.update(gradient, opt_state, damping=damping)
    return optax.apply_updates(params, updates), opt_state, loss

  def run(updates, saved):
    batch_size, sampler = make()
    params = np.zeros(4, np.float32)
    opt_state = tx.init(params)
    if saved is not None:
      batch_size.load_state_dict(json.loads(saved[0]))
      params, opt_state = saved[1:]
    sizes, losses = [], []
    for rows in until(batch_size, sampler, updates):
      params, opt_state, loss = step(
        params, opt_state, X[rows], Y[rows], batch_size.damping
      )
      batch_size.observe(loss=loss)
      sizes.append(len(rows))
      losses.append(float(loss))
    state = json.dumps(batch_size.state_dict())
    return sizes, losses, (state, params, opt_state)

  check(run)


@pytest.fixture
def torch():
  return pytest.importorskip('torch', reason='torch is not installed')


def model_of(torch):
  torch.manual_seed(0)
  model = torch.nn.Linear(4, 1)
  return model, torch.optim.SGD(
    [{'params': [model.weight]}, {'params': [model.bias], 'lr': 0.01}],
    lr=0.02,
    momentum=0.9,
  )


def loader_of(torch, sampler, workers=0):
  data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
  return torch.utils.data.DataLoader(
    data, batch_sampler=sampler, num_workers=workers
  )


@pytest.mark.parametrize('workers', [0, 2])
def test_torch(torch, workers, tmp_path):
  def run(updates, saved):
    batch_size, sampler = make()
    model, optimizer = model_of(torch)
    pytorch.damp(optimizer, batch_size)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    parts = {'m': model, 'o': optimizer, 's': schedule, 'b': batch_size}
    if saved is not None:
      for name, state in torch.load(saved).items():
        parts[name].load_state_dict(state)
    sizes, losses = [], []
    loader = loader_of(torch, sampler, workers)
    for x, y in until(batch_size, loader, updates):
      loss = ((model(x)[:, 0] - y) ** 2).mean()
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
      schedule.step()
      batch_size.observe(loss=loss)
      sizes.append(len(y))
      losses.append(loss.item())
    assert batch_size.damping < 1 or updates == CUT
    rates = [group['lr'] for group in optimizer.param_groups]
    expected = np.array([0.02, 0.01]) * 0.99**updates
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    path = tmp_path / f'{updates}.pt'
    torch.save({k: part.state_dict() for k, part in parts.items()}, path)
    return sizes, losses, path

  check(run)


@pytest.mark.filterwarnings('ignore')
def test_hugging_face(torch, tmp_path):
  transformers = pytest.importorskip('transformers')
  pytest.importorskip('accelerate')
  data = [{'x': x, 'labels': y} for x, y in zip(X, Y, strict=True)]

  class Network(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.inner, self.seen = model_of(torch)[0], ([], [])

    def forward(self, x, labels):
      loss = ((self.inner(x)[:, 0] - labels) ** 2).mean()
      self.seen[0].append(len(x))
      self.seen[1].append(loss.item())
      return {'loss': loss}

  def run(updates, saved, **others):
    batch_size, sampler = make()

    class Trainer(transformers.Trainer):
      def get_train_dataloader(self):
        return torch.utils.data.DataLoader(
          data, batch_sampler=sampler, collate_fn=self.data_collator
        )

    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    arguments = {
      'output_dir': str(tmp_path / 'out'),
      'max_steps': updates,
      'lr_scheduler_type': 'constant',
      'ignore_data_skip': True,
      'save_steps': CUT,
      'report_to': 'none',
      'disable_tqdm': True,
      'use_cpu': True,
    }
    trainer = Trainer(
      model,
      transformers.TrainingArguments(**arguments | others),
      train_dataset=data,
      optimizers=(optimizer, None),
      callbacks=[pytorch.hugging_face_callback(batch_size)],
    )
    trainer.train(resume_from_checkpoint=saved)
    path = tmp_path / 'out' / f'checkpoint-{CUT}'
    return *model.seen, str(path)

  check(run)
  saved = str(tmp_path / 'out' / f'checkpoint-{CUT}')
  with pytest.raises(ValueError, match='resume with ignore_data_skip=True'):
    run(UPDATES, saved, ignore_data_skip=False)
  with pytest.raises(ValueError, match='gradient_accumulation_steps is 2'):
    run(UPDATES, None, gradient_accumulation_steps=2)


@pytest.mark.filterwarnings('ignore')
def test_lightning(torch, tmp_path):
  pytest.importorskip('lightning')
  import lightning.pytorch as lightning

  class Network(lightning.LightningModule):
    def __init__(self):
      super().__init__()
      self.inner, self.seen = model_of(torch)[0], ([], [])

    def training_step(self, batch, index):
      x, y = batch
      loss = ((self.inner(x)[:, 0] - y) ** 2).mean()
      self.seen[0].append(len(x))
      self.seen[1].append(loss.item())
      return loss

    def configure_optimizers(self):
      return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)

  def run(updates, saved, **others):
    batch_size, sampler = make()
    model = Network()
    trainer = lightning.Trainer(
      max_steps=updates,
      max_epochs=-1,
      callbacks=[pytorch.lightning_callback(batch_size)],
      accelerator='cpu',
      logger=False,
      enable_checkpointing=False,
      enable_progress_bar=False,
      enable_model_summary=False,
      **others,
    )
    trainer.fit(model, loader_of(torch, sampler), ckpt_path=saved)
    path = tmp_path / f'{updates}.ckpt'
    trainer.save_checkpoint(path)
    return *model.seen, path

  check(run)
  with pytest.raises(ValueError, match='accumulate_grad_batches is 2'):
    run(UPDATES, None, accumulate_grad_batches=2)
