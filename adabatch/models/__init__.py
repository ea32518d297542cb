"""Networks: every one is called as `model(x, train=..., rows=None)`.

`rows` (a `Rows`) tells which rows of the batch are real examples and where they
stand in it; only layers that mix or perturb examples, such as BatchNorm and
dropout, look at it.
"""

from collections.abc import Callable
from typing import Any

from adabatch.models.densenet import DenseNet
from adabatch.models.lenet import LeNet
from adabatch.models.lstm import LSTM
from adabatch.models.mlp import MLP
from adabatch.models.normalization import GhostBatchNorm
from adabatch.models.resnet import CifarResNet, ResNet
from adabatch.models.rows import ROWS_STREAM, Rows
from adabatch.models.small_cnn import PooledCNN, SimpleCNN, StridedCNN
from adabatch.models.transformer import Transformer
from adabatch.models.vgg import VGG
from adabatch.models.wide_resnet import WideResNet

# A new one also needs a table in `config/model_keys.py`, ranges, a small value
# in `config/smoke.py`, and a line in `tests/models/test_networks.py`.
MODELS: dict[str, Callable[..., Any]] = {
  'mlp': MLP,
  'strided_cnn': StridedCNN,
  'pooled_cnn': PooledCNN,
  'simple_cnn': SimpleCNN,
  'lenet': LeNet,
  'cifar_resnet': CifarResNet,
  'resnet': ResNet,
  'wide_resnet': WideResNet,
  'densenet': DenseNet,
  'vgg': VGG,
  'transformer': Transformer,
  'lstm': LSTM,
}

__all__ = [
  'MODELS',
  'ROWS_STREAM',
  'LSTM',
  'MLP',
  'VGG',
  'CifarResNet',
  'DenseNet',
  'GhostBatchNorm',
  'LeNet',
  'PooledCNN',
  'ResNet',
  'Rows',
  'SimpleCNN',
  'StridedCNN',
  'Transformer',
  'WideResNet',
]
