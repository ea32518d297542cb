"""Lightning's Trainer with a batch that grows as the loss falls (AdaDamp).

pip install torch lightning scikit-learn, then:
python examples/lightning_trainer.py
"""

import lightning.pytorch as lightning
import sklearn.datasets
import torch

from adabatch import BatchSize
from adabatch.controllers import BatchSampler, adadamp, buckets, every
from adabatch.controllers.pytorch import lightning_callback

torch.manual_seed(0)
x, y = sklearn.datasets.load_digits(return_X_y=True)
data = torch.utils.data.TensorDataset(
  torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
)

# The rule, and the sizes that it may choose: 16, 32, 64, 128.
rule = every(adadamp(initial_batch_size=16, initial_updates=10), updates=10)
ladder = buckets.ladder(16, 128, devices=1)
batch_size = BatchSize(rule, ladder, num_examples=len(data))
loader = torch.utils.data.DataLoader(
  data, batch_sampler=BatchSampler(batch_size, seed=0)
)

total = 10 * len(data)
sizes, losses = [], []


class Network(lightning.LightningModule):
  def __init__(self):
    super().__init__()
    self.hidden, self.out = torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)

  def training_step(self, batch, index):
    inputs, labels = batch
    logits = self.out(torch.relu(self.hidden(inputs)))
    loss = torch.nn.functional.cross_entropy(logits, labels)
    sizes.append(len(labels))
    losses.append(loss.item())
    return loss

  def configure_optimizers(self):
    optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
    # A schedule by examples: nobody knows the number of updates in advance.
    schedule = torch.optim.lr_scheduler.LambdaLR(
      optimizer, lambda _: max(1 - batch_size.examples / total, 0.0)
    )
    return [optimizer], [{'scheduler': schedule, 'interval': 'step'}]


trainer = lightning.Trainer(
  max_epochs=-1,  # `examples` ends the run
  callbacks=[lightning_callback(batch_size, examples=total)],
  accelerator='cpu',
  logger=False,
  enable_checkpointing=False,  # checkpoints keep the state of the batch size
  enable_progress_bar=False,
)
trainer.fit(Network(), loader)
print(f'{batch_size.updates} updates, batch size {batch_size.size}')
