"""Lines that a picture can show: smoothed and thinned."""

import math

import numpy as np

MAX_POINTS = 2000  # of one line in one picture


def smooth(values: np.ndarray, window: float, points: int = 1000) -> np.ndarray:
  """Mean of the finite values around each record, about `window` of them.

  Centred, so that the line does not lag behind a falling loss. Near the first
  record, where a loss falls steeply, the window shrinks on both sides; at the
  last it is cut on one side, to end in a mean and not in one noisy value.

  Evaluated at about `points` records, evenly spaced; NaN elsewhere, and where
  the value itself is not finite.

  >>> smooth(np.array([9.0, 6.0, 0.0, np.nan, 3.0, 5.0]), window=3)
  array([ 9.,  5.,  3., nan,  4.,  4.])
  """
  smoothed = np.full(len(values), np.nan)
  finite = np.isfinite(values)
  every = range(len(values))
  for k in {*every[:: math.ceil(len(values) / points) or 1], *every[-1:]}:
    if finite[k]:
      half = min(int(window / 2), k)
      around = slice(k - half, k + half + 1)
      smoothed[k] = values[around][finite[around]].mean()
  return smoothed


def thin(
  x: np.ndarray, y: np.ndarray, points: int = MAX_POINTS
) -> tuple[np.ndarray, np.ndarray]:
  """Drops points that a picture cannot show, spikes are kept.

  Points that are not finite go first. Of the rest, if they are too many, each
  of points/4 equal intervals of x, which must not decrease, keeps its first,
  lowest, highest and last point: at one interval a pixel that is the same
  picture (the M4 aggregation, Jugel et al., VLDB 2014). Intervals of x, not of
  the index: when the batch size grows, a few late records cover most examples.

  >>> y = np.zeros(10_000)
  >>> y[4321] = 7
  >>> thin_x, thin_y = thin(np.arange(10_000.0), y)
  >>> len(thin_x) <= 2000, thin_y.max(), thin_x[-1]
  (True, np.float64(7.0), np.float64(9999.0))
  """
  finite = np.isfinite(x) & np.isfinite(y)
  x, y = x[finite], y[finite]
  if len(x) <= points:
    return x, y
  bins = points // 4
  width = (x[-1] - x[0]) / bins or 1.0
  interval = np.minimum((x - x[0]) / width, bins - 1).astype(int)
  keep = set()
  for part in np.split(
    np.arange(len(x)), np.flatnonzero(np.diff(interval)) + 1
  ):
    lowest, highest = y[part].argmin(), y[part].argmax()
    keep.update(part[[0, lowest, highest, -1]].tolist())
  index = sorted(keep)
  return x[index], y[index]


def since_start(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Leads a line that goes in steps in from x = 0.

  A record tells what held *up to* it, so the first one holds from the start.

  >>> since_start(np.array([3.0, 5.0]), np.array([16.0, 32.0]))
  (array([0., 3., 5.]), array([16., 16., 32.]))
  """
  start = np.zeros(len(x[:1]))  # none, if there is no record
  return np.concatenate([start, x]), np.concatenate([y[:1], y])
