"""A loop in torch whose batch grows as the loss falls (AdaDamp).

pip install torch scikit-learn, then: python examples/torch_loop.py
"""

import sklearn.datasets
import torch

from adabatch import BatchSize
from adabatch.controllers import BatchSampler, adadamp, buckets, every
from adabatch.controllers.pytorch import damp

torch.manual_seed(0)
x, y = sklearn.datasets.load_digits(return_X_y=True)
data = torch.utils.data.TensorDataset(
  torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
)

# The rule, and the sizes that it may choose: 16, 32, 64, 128.
rule = every(adadamp(initial_batch_size=16, initial_updates=10), updates=10)
ladder = buckets.ladder(16, 128, devices=1)
batch_size = BatchSize(rule, ladder, num_examples=len(data))

# num_workers=2 would do as well: batches that are made ready before the size
# changes keep theirs, and count with what is in them.
loader = torch.utils.data.DataLoader(
  data, batch_sampler=BatchSampler(batch_size, seed=0)
)

model = torch.nn.Sequential(
  torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
damp(optimizer, batch_size)  # for the part of a batch beyond 128

# A schedule by examples, for nobody knows the number of updates in advance.
total = 10 * len(data)
schedule = torch.optim.lr_scheduler.LambdaLR(
  optimizer, lambda _: max(1 - batch_size.examples / total, 0.0)
)

sizes, losses = [], []
while batch_size.examples < total:
  for inputs, labels in loader:
    loss = torch.nn.functional.cross_entropy(model(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    batch_size.observe(loss=loss)
    schedule.step()
    sizes.append(len(labels))
    losses.append(loss.item())
  print(
    f'epoch {batch_size.epoch:.1f}: batch size {batch_size.size}, '
    f'loss {losses[-1]:.4f}'
  )

# All that has to be saved for a restart, in the middle of an epoch as well.
checkpoint = {
  'model': model.state_dict(),
  'optimizer': optimizer.state_dict(),
  'schedule': schedule.state_dict(),
  'batch_size': batch_size.state_dict(),
}
