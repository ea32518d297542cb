"""TensorBoard events, written without a thread: what cannot be is told at once.

An events file is a row of records: length (8 bytes), its checksum (4), an
`Event` protocol buffer, its checksum (4). Beside the numbers there is each line
of `metrics.jsonl` as a log message, which TensorBoard shows nowhere and from
which lost lines can be had again.
"""

import pathlib
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from adabatch.config.files import GrowingFile, writing

_pb: Any = event_pb2  # its classes are made when it is imported
Event = _pb.Event


class EventsWriter:
  """One events file more in a directory, which is made if need be."""

  def __init__(self, directory: pathlib.Path, first: int):
    """TensorBoard drops what older files hold of steps from `first` on."""
    now = time.time()
    with writing(directory):
      directory.mkdir(parents=True, exist_ok=True)
    # With its microseconds, so that none goes on in another's file.
    name = f'events.out.tfevents.{now:.6f}.{socket.gethostname()}'
    self._file = GrowingFile(directory / name)
    self._append(Event(wall_time=now, file_version='brain.Event:2'))
    start = {'status': 'START'}
    self._append(Event(wall_time=now, step=first, session_log=start))

  def write(self, step: int, scalars: Mapping[str, float], line: str) -> None:
    """The numbers of a record by their tags, and the record's line."""
    now = time.time()
    values = [scalar(tag, value).value[0] for tag, value in scalars.items()]
    self._append(
      Event(wall_time=now, step=step, summary={'value': values}),
      Event(wall_time=now, step=step, log_message={'message': line}),
    )

  def _append(self, *events: Any) -> None:
    self._file.append(b''.join(map(_framed, events)))

  def sync(self) -> None:
    self._file.sync()

  def close(self) -> None:
    self._file.close()


def _framed(event: Any) -> bytes:
  content = event.SerializeToString()
  length = struct.pack('<Q', len(content))
  return b''.join((length, _checksum(length), content, _checksum(content)))


def _checksum(content: bytes) -> bytes:
  return struct.pack('<I', masked_crc32c(content))


def read_lines(directory: pathlib.Path) -> list[tuple[int, bytes]]:
  """The lines of `metrics.jsonl` that a run's events hold, by their updates.

  What is damaged is left out.
  """
  lines: list[tuple[int, bytes]] = []
  for path in sorted(directory.glob('events.out.tfevents.*')):
    for event in _read(path.read_bytes()):
      if event.HasField('session_log'):
        lines = [line for line in lines if line[0] < event.step]
      elif event.HasField('log_message'):
        lines.append((event.step, event.log_message.message.encode()))
  return lines


def _read(content: bytes) -> Iterator[Any]:
  """The whole records of a file.

  After one whose length is damaged no other is found.
  """
  at = 0
  while len(length := content[at : at + 8]) == 8:
    end = at + 12 + struct.unpack('<Q', length)[0]
    record = content[at + 12 : end]
    if content[end : end + 4] == _checksum(record):
      yield Event.FromString(record)
    at = end + 4
