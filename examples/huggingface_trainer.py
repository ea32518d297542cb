"""Hugging Face's Trainer with a batch that grows as the loss falls (AdaDamp).

pip install torch transformers accelerate scikit-learn, then:
python examples/huggingface_trainer.py
"""

import sys
import tempfile

import sklearn.datasets
import torch
import transformers

from adabatch import BatchSize
from adabatch.controllers import BatchSampler, adadamp, buckets, every
from adabatch.controllers.pytorch import hugging_face_callback

torch.manual_seed(0)
x, y = sklearn.datasets.load_digits(return_X_y=True)
x = torch.tensor(x / 16, dtype=torch.float32)
data = [{'x': a, 'labels': int(b)} for a, b in zip(x, y, strict=True)]

# The rule, and the sizes that it may choose: 16, 32, 64, 128.
rule = every(adadamp(initial_batch_size=16, initial_updates=10), updates=10)
ladder = buckets.ladder(16, 128, devices=1)
batch_size = BatchSize(rule, ladder, num_examples=len(data))


class Network(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.hidden, self.out = torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)

  def forward(self, x, labels):
    logits = self.out(torch.relu(self.hidden(x)))
    loss = torch.nn.functional.cross_entropy(logits, labels)
    if self.training:
      sizes.append(len(labels))
      losses.append(loss.item())
    return {'loss': loss, 'logits': logits}


class Trainer(transformers.Trainer):
  def get_train_dataloader(self):
    return torch.utils.data.DataLoader(
      self.train_dataset,
      batch_sampler=BatchSampler(batch_size, seed=0),
      collate_fn=self.data_collator,
    )


total = 10 * len(data)
sizes, losses = [], []
model = Network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
# A schedule by examples, for nobody knows the number of updates in advance.
schedule = torch.optim.lr_scheduler.LambdaLR(
  optimizer, lambda _: max(1 - batch_size.examples / total, 0.0)
)
arguments = transformers.TrainingArguments(
  output_dir=sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp(),
  max_steps=2_000,  # more than there will be: `examples` ends the run
  ignore_data_skip=True,  # for a resumed run: the sampler knows where it was
  logging_steps=20,
  report_to='none',
)
trainer = Trainer(
  model,
  arguments,
  train_dataset=data,
  optimizers=(optimizer, schedule),
  callbacks=[hugging_face_callback(batch_size, examples=total)],
)
trainer.train()  # checkpoints keep the state of the batch size
print(f'{batch_size.updates} updates, batch size {batch_size.size}')
