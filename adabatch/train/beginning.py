"""What a person is told before the first update."""

from collections.abc import Callable

from adabatch.train.console import Console


class Beginning:
  """Passes on what a run does, and says it until the first update.

  A run is silent for as long as it reads and compiles, which may be minutes.
  """

  def __init__(self, console: Console, doing: Callable[[str, str], None]):
    """`doing` is told everything; see `loop`."""
    self._console, self._doing = console, doing
    self._said = ''

  def __call__(self, doing: str, done: str = 'nothing') -> None:
    """The run is about to do something, after something else."""
    self._doing(doing, done)
    if self._said == 'training':
      return
    if doing != self._said and (doing == 'compiling' or self._said):
      self._console.stage(doing)
      self._said = doing
