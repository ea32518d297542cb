"""Networks: every one is called as `model(x, train=..., weights=None)`.

`weights` [B] tells which rows are real examples (1) and which are empty slots
(0); only layers that mix examples, such as BatchNorm, look at it.
"""

from adabatch.models.mlp import MLP
from adabatch.models.normalization import GhostBatchNorm
from adabatch.models.small_cnn import PooledCNN, StridedCNN

MODELS = {'mlp': MLP, 'pooled_cnn': PooledCNN, 'strided_cnn': StridedCNN}

__all__ = ['MODELS', 'MLP', 'GhostBatchNorm', 'PooledCNN', 'StridedCNN']
