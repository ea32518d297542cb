"""What devices and host do in some updates: a trace of them.

It lies in the form that TensorBoard's profiler reads, and beside it in that of
Perfetto (https://ui.perfetto.dev, `*.trace.json.gz`).
"""

import math
import pathlib
import re
from collections.abc import Callable

import jax

from adabatch.config import Config, ConfigError


def check_profile(config: Config) -> tuple[float, float]:
  """The first and the last update that are traced; infinite: none.

  Raises:
    ConfigError: in one line, for what is no span of updates.
  """
  given = config.log.profile
  if given is None:
    return math.inf, math.inf
  match = re.fullmatch(r'(\d{1,18}):(\d{1,18})', given)
  if not match or not (int(match[1]) and int(match[2])):
    raise ConfigError(
      f'log.profile={given!r} must be START:COUNT, the first update that is '
      "traced and how many are, such as '100:20'"
    )
  first, count = map(int, match.groups())
  return first, first + count - 1


class Profile:
  """Traces the calls that have an update of a window."""

  def __init__(
    self,
    config: Config,
    workdir: pathlib.Path,
    say: Callable[[str], None] = lambda line: None,
  ):
    """`workdir` is the run's; `say` is told if nothing could be traced."""
    self._given, self._say = config.log.profile, say
    self._directory = str(workdir / 'profile')
    self._first, self._last = check_profile(config)
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
    elif self._first < math.inf:
      self._say(
        f'log.profile={self._given}: no such update was done since the start, '
        'so nothing was traced'
      )
    self._on, self._first = False, math.inf
