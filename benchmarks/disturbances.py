"""How a run is disturbed, and when; see `benchmarks.torture`."""

import contextlib
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from benchmarks.torture_jobs import (
  ROOT,
  Setting,
  commands,
  environment,
)

KINDS = {
  'kill': 'SIGKILL of a process',
  'kill_group': 'SIGKILL of all processes with their groups',
  'term': 'SIGTERM of a process',
  'stop': 'SIGSTOP of a process for some seconds, then SIGCONT',
  'disk': 'the disk is full until the run has ended',
  'read': 'killed; then a file of the newest checkpoint is away for a second '
  'while it is read',
  'flip': 'killed; then a bit of the newest checkpoint is another',
  'lost': 'SIGKILL of one process of two',
}

PATIENCE = 400.0  # seconds for a disturbed or started run to end
STOPPED = 3.0  # seconds
AWAY = 1.0  # seconds
COMPILING = 2.0  # seconds after which a moment of that kind comes, at most
DISK = '96m'
POLL = 0.002  # seconds


class Moment(NamedTuple):
  """When a run is disturbed.

  Attributes:
    where: 'anywhere' in the seconds of the undisturbed run; 'compile', soon
      after it was accepted; before a line of its log: a 'step', an
      'evaluation', a 'decision' for another batch size; at a 'save'.
    share: in [0, 1): of all such.
    delay: seconds after that.
  """

  where: str
  share: float
  delay: float


class Undisturbed(NamedTuple):
  """What a run came to, and how: seconds, lines of its log, its saves."""

  results: dict[str, Any]
  seconds: float
  lines: list[dict[str, Any]]
  saves: int


class Commands:
  """The processes of one job. None is left behind when the block ends."""

  def __init__(self, setting: Setting, place: pathlib.Path, data: pathlib.Path):
    """`place` is for all that they write, `data` is read."""
    self._setting, self._place, self._data = setting, place, data
    self.processes: list[subprocess.Popen[bytes]] = []

  def __enter__(self) -> 'Commands':
    setting, place = self._setting, self._place
    self.begin = time.monotonic()
    self._texts = [tempfile.TemporaryFile() for _ in range(8)]  # noqa: SIM115
    try:
      lines = commands(setting, place / 'run' / 'w', self._data)
      for line, text in zip(lines, self._texts, strict=False):
        self.processes.append(
          subprocess.Popen(
            line,
            cwd=ROOT,
            env=environment(setting, place / 'cache'),
            stdin=subprocess.DEVNULL,
            stdout=text,
            stderr=text,
            start_new_session=True,
          )
        )
    except BaseException:
      self.__exit__()
      raise
    return self

  def __exit__(self, *_) -> None:
    self.end()
    for text in self._texts:
      text.close()

  def end(self) -> None:
    """Kills what is left of all groups."""
    for process in self.processes:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()

  def running(self) -> bool:
    return any(process.poll() is None for process in self.processes)

  def wait(self, seconds: float, meanwhile: Callable[[], Any]) -> bool:
    """Whether all ended in time; those that did not are killed."""
    deadline = time.monotonic() + seconds
    while self.running() and time.monotonic() < deadline:
      meanwhile()
      time.sleep(POLL)
    hung = self.running()
    if hung:
      self.end()
    return not hung

  def status(self) -> list[int | None]:
    return [process.returncode for process in self.processes]

  def check(self) -> None:
    """Ends it all if one has failed before anything was done to it."""
    if any(self.status()):
      sys.exit(
        f'{self._setting} fails by itself (status {self.status()}):\n'
        f'{self.text()[-4000:]}'
      )

  def text(self) -> str:
    """What they wrote so far."""
    # Not `read`: they write where this file is at.
    texts = (os.pread(t.fileno(), 2**24, 0) for t in self._texts)
    return ''.join(text.decode(errors='replace') for text in texts)


# When.


def places(done: Undisturbed, where: str) -> list[int]:
  """The numbers of lines of the log before which something happens."""
  numbers, before = [], None
  for i, line in enumerate(done.lines):
    size = line.get('batch_size', before)
    wanted = {
      'step': line['kind'] == 'train',
      'evaluation': line['kind'] == 'eval',
      'decision': size != before,
    }
    before = size
    if i and wanted[where]:
      numbers.append(i)
  return numbers


def wheres(done: Undisturbed) -> list[str]:
  """The kinds of moments that a run has."""
  found = ['anywhere']
  if done.saves:
    found += ['compile', 'save']
    found += [w for w in ('step', 'evaluation', 'decision') if places(done, w)]
  return found


def lines_of(workdir: pathlib.Path) -> int:
  try:
    return (workdir / 'metrics.jsonl').read_bytes().count(b'\n')
  except FileNotFoundError:
    return 0


def watch(
  moment: Moment, done: Undisturbed, workdir: pathlib.Path, begin: float
) -> Callable[[], bool]:
  """Tells whether the moment has come."""
  if moment.where == 'anywhere':
    return lambda: time.monotonic() - begin >= moment.share * done.seconds
  if moment.where == 'compile':
    since: list[float] = []

    def compiling() -> bool:
      if not since and (workdir / 'config.json').exists():
        since.append(time.monotonic())
      return bool(since) and (
        time.monotonic() - since[0] >= moment.share * COMPILING
      )

    return compiling
  if moment.where == 'save':
    saves, seen = int(moment.share * done.saves), set()

    def saved() -> bool:
      with contextlib.suppress(FileNotFoundError):
        # What is being written has the same number and a suffix.
        for name in os.listdir(workdir / 'checkpoints'):
          seen.add(name.partition('.')[0])
      return len(seen) > saves

    return saved
  numbers = places(done, moment.where)
  number = numbers[int(moment.share * len(numbers))]
  return lambda: lines_of(workdir) >= number


# What.


@contextlib.contextmanager
def small_disk(path: pathlib.Path) -> Iterator[str]:
  """A file system of its own at `path`, if that may be mounted."""
  path.mkdir(parents=True)
  mount = ['mount', '-t', 'tmpfs', '-o', f'size={DISK}', 'torture', str(path)]
  mounted = (
    os.geteuid() == 0
    and subprocess.run(mount, capture_output=True).returncode == 0
  )
  try:
    yield 'tmpfs' if mounted else 'RLIMIT_FSIZE'
  finally:
    if mounted:
      subprocess.run(['umount', '-l', str(path)], check=True)


def fill(path: pathlib.Path) -> None:
  """Takes what room there is."""
  with contextlib.suppress(OSError), path.open('ab', buffering=0) as file:
    for size in (2**20, 2**12, 1):
      with contextlib.suppress(OSError):
        while file.write(bytes(size)) == size:
          pass


def processes_of(kind: str, rng: random.Random, running: Commands) -> list[Any]:
  everybody = running.processes
  whole = kind in ('kill_group', 'read', 'flip', 'disk')
  return everybody if whole else [rng.choice(everybody)]


def is_stopped(pid: int) -> bool:
  """Whether it stands still."""
  stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  return stat.rpartition(')')[2].split()[0] == 'T'


def disturb(
  kind: str, running: Commands, rng: random.Random, disk: str, run: pathlib.Path
) -> tuple[bool, bool]:
  """Does it, and waits until the run has ended.

  Returns:
    Whether a running process was met, and whether the run ended by itself.
  """
  chosen = processes_of(kind, rng, running)
  if any(process.poll() is not None for process in chosen):
    return False, True
  if kind == 'stop':
    (process,) = chosen
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.1)
    met = process.poll() is None and is_stopped(process.pid)
    time.sleep(STOPPED)
    os.kill(process.pid, signal.SIGCONT)
    return met, running.wait(PATIENCE, lambda: None)
  if kind == 'disk' and disk == 'tmpfs':
    filler = run / 'filler'
    # Old checkpoints are removed and make room.
    ended = running.wait(PATIENCE, lambda: fill(filler))
    filler.unlink(missing_ok=True)
    return any(running.status()) or not ended, ended
  for process in chosen:
    if kind == 'disk':
      resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))
    elif kind == 'term':
      os.kill(process.pid, signal.SIGTERM)
    elif kind in ('kill', 'lost'):
      os.kill(process.pid, signal.SIGKILL)
    else:
      os.killpg(process.pid, signal.SIGKILL)
  ended = running.wait(PATIENCE, lambda: None)
  met = {
    'disk': any(running.status()) or not ended,
    'term': all(p.returncode in (143, -15) for p in chosen),
  }
  return met.get(kind, all(p.returncode == -9 for p in chosen)), ended


def flip(files: Iterable[pathlib.Path], rng: random.Random) -> str:
  """Makes one bit of the files another, each as likely; says which."""
  sizes = {p: p.stat().st_size for p in sorted(files) if p.is_file()}
  (path,) = rng.choices(list(sizes), list(sizes.values()))
  place, bit = rng.randrange(sizes[path]), rng.randrange(8)
  with path.open('r+b') as file:
    file.seek(place)
    (byte,) = file.read(1)
    file.seek(place)
    file.write(bytes([byte ^ (1 << bit)]))
  return f'bit {bit} of byte {place} of {path}'


class Away:
  """A file that is away until a second after its directory was looked into."""

  def __init__(self, record: pathlib.Path, aside: pathlib.Path, rng):
    files = [p for p in record.rglob('*') if p.is_file() and p.stat().st_size]
    self.path, self._aside = rng.choice(sorted(files)), aside
    self._looked: float | None = None
    # Reading a directory changes this time only if it is older than another.
    self._above = record.parent
    os.rename(self.path, self._aside)
    os.utime(self._above, (0, self._above.stat().st_mtime))

  def look(self) -> None:
    now = time.monotonic()
    if self._looked is None and self._above.stat().st_atime > 0:
      self._looked = now
    if self._looked is not None and now - self._looked > AWAY:
      self.back()

  def back(self) -> None:
    """Where its directory has been moved it stays away."""
    if self._aside.exists() and self.path.parent.is_dir():
      os.rename(self._aside, self.path)
