"""What Orbax says when a record cannot be written or read: one line, not pages.

It writes in threads of its own, logs there what goes wrong, and raises it at
the next call.
"""

import contextlib
import errno
import inspect
import logging
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from adabatch.config.files import WriteError


def _is_not_orbax(record: logging.LogRecord) -> bool:
  """Its errors are raised too; asyncio logs those of writes it abandoned."""
  return record.levelno < logging.ERROR or not (
    'orbax' in record.pathname or 'orbax' in record.getMessage()
  )


def leave_out_abandoned_writes() -> None:
  """When one write fails the others find their event loop closed, each aloud.

  Whenever that may be, so it is left out until the process ends.
  """
  hook = sys.unraisablehook
  if getattr(hook, 'of_writes', False):
    return

  def say_the_rest(unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      hook(unraisable)

  say_the_rest.of_writes = True
  sys.unraisablehook = say_the_rest


@contextlib.contextmanager
def writing_records(directory: pathlib.Path) -> Iterator[None]:
  """Raises what the system refused to Orbax as a WriteError.

  Args:
    directory: of the records.
  """
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(_is_not_orbax)  # once, however often
  try:
    yield
  except WriteError:
    raise
  # Below Orbax, TensorStore has the system's reason in a text alone.
  except Exception as error:
    number = _reason(error)
    if number is None:
      raise
    raise WriteError(number, os.strerror(number), str(directory)) from error


class _NotOfOrbax(logging.Filter):
  """Leaves out what Orbax says, or what is said of its reads."""

  def filter(self, record: logging.LogRecord) -> bool:
    by_orbax = 'orbax' in record.pathname
    return not by_orbax and 'tensorstore' not in record.getMessage()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
  """Leaves it at one line about a record that cannot be read.

  Orbax logs pages about it. And when one of its reads fails it abandons the
  others, and each of those prints a page: when it ends (its event loop is
  closed) or is collected, so that this goes on once a read has failed.
  """
  loggers = [logging.getLogger(name) for name in ('absl', 'asyncio')]
  hook, only = sys.unraisablehook, _NotOfOrbax()

  def say_the_rest(unraisable):
    read = unraisable.object
    of_orbax = inspect.iscoroutine(read) and 'orbax' in read.cr_code.co_filename
    closed = str(unraisable.exc_value) == 'Event loop is closed'
    if not (of_orbax or closed):
      hook(unraisable)

  sys.unraisablehook = say_the_rest
  for logger in loggers:
    logger.addFilter(only)
  yield
  sys.unraisablehook = hook
  for logger in loggers:
    logger.removeFilter(only)


class Overheard:
  """Handlers of Orbax whose errors are known as soon as they happen.

  Orbax raises them at the next call, and before that, where there are several
  processes, waits for the others, which wait for it: for ten minutes.

  Attributes:
    errors: of what was written in the background.
  """

  def __init__(self) -> None:
    self.errors: list[BaseException] = []

  def __call__(self, handler: Any) -> Any:
    """The same handler, listened to."""
    save = handler.async_save

    async def async_save(*args: Any, **kwargs: Any) -> Any:
      futures = await save(*args, **kwargs)
      return [_Overheard(future, self.errors) for future in futures or []]

    handler.async_save = async_save
    return handler


class _Overheard:
  """A future whose error is added to a list."""

  def __init__(self, future: Any, errors: list[BaseException]):
    self._future, self._errors = future, errors

  def result(self, timeout: float | None = None) -> Any:
    try:
      return self._future.result(timeout)
    except BaseException as error:
      self._errors.append(error)
      raise


def _reason(error: Exception) -> int | None:
  """The number of the system's error that it tells of; None: of none.

  >>> _reason(ValueError('Failed to write: No space left on device [..]')) == 28
  True
  """
  if isinstance(error, OSError) and error.errno is not None:
    return error.errno
  text = str(error)
  told = [n for n in errno.errorcode if os.strerror(n) in text]
  return max(told, key=lambda n: len(os.strerror(n)), default=None)
