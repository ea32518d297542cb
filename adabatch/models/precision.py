"""Average precision over a whole split, on NumPy: it needs everybody's rank."""

import numpy as np


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
  """Area under the steps of precision against recall.

  sum over distinct scores s, falling, of (R(s) - R(before s)) P(s): recall and
  precision of saying yes wherever the score is at least s. So of equal scores
  none comes first, and the order of the examples does not matter.

  Args:
    scores: [N]; higher is more certain.
    labels: 0 or 1, or a bool, [N].

  Returns:
    In (0, 1]; NaN where no label is true.

  Source: scikit-learn, `average_precision_score`.

  >>> average_precision(np.array([3.0, 2.0, 2.0, 1.0]), np.array([1, 0, 1, 0]))
  0.8333333333333333
  """
  order = np.argsort(-scores, kind='stable')
  falling = scores[order]
  true = np.cumsum(labels[order] != 0)
  if not true.size or not true[-1]:
    return float('nan')
  # The last place of each score.
  ends = np.append(np.flatnonzero(falling[1:] != falling[:-1]), true.size - 1)
  found = true[ends]
  gained = np.diff(found, prepend=0) / true[-1]
  return float(np.sum(gained * (found / (ends + 1.0))))


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
  """Mean of the average precisions of the classes that have a true label.

  Args:
    scores: [N, C].
    labels: 0 or 1, or bools, [N, C].

  Returns:
    NaN where no class has one.

  >>> scores = np.array([[2.0, 5.0], [1.0, 6.0]])
  >>> mean_average_precision(scores, np.array([[0, 0], [1, 0]]))
  0.5
  """
  # Class by class: the order of all at once would be as large as the scores.
  found = [
    average_precision(np.ascontiguousarray(s), np.ascontiguousarray(y))
    for s, y in zip(scores.T, labels.T, strict=True)
    if y.any()
  ]
  return float(np.mean(found)) if found else float('nan')
