"""What devices and host do in some updates: a trace of them.

It lies in the form that TensorBoard's profiler reads, and beside it in that of
Perfetto (https://ui.perfetto.dev, `*.trace.json.gz`).
"""

import math
import pathlib

import jax

from adabatch.config import Config, ConfigError


def check_profile(config: Config) -> None:
  """Refuses what is no span of updates.

  Raises:
    ConfigError: in one line.
  """
  window = config.log.profile
  if window is not None and (len(window) != 2 or window[0] > window[1]):
    raise ConfigError(
      f'log.profile={tuple(window)} must be (first, last), the updates that '
      'are traced'
    )


class Profile:
  """Traces the calls that have an update of a window."""

  def __init__(self, config: Config, workdir: pathlib.Path):
    """`workdir` is the run's."""
    window = config.log.profile
    self._directory = str(workdir / 'profile')
    nowhere = math.inf, math.inf
    self._first, self._last = nowhere if window is None else window
    self._on = False

  def due(self, update: int, count: int) -> bool:
    """Whether it begins or ends before a call of `count` updates.

    Args:
      update: done so far.
      count: of the call.
    """
    if self._on:
      return update >= self._last
    return update < self._last and update + count >= self._first

  def turn(self) -> None:
    """Begins, or ends; nothing is under way."""
    if self._on:
      self.close()
    else:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # which would slow down what it shows
      jax.profiler.start_trace(self._directory, profiler_options=options)
      self._on = True

  def close(self) -> None:
    """Ends the trace where it is."""
    if self._on:
      jax.profiler.stop_trace()
    self._on, self._first = False, math.inf
