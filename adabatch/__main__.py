"""`python -m adabatch` is the command `adabatch`."""

import signal
import sys


def main() -> int:
  """The exit status; see `adabatch.command.main`."""
  # Ctrl-C while packages are imported ends the process, without a traceback.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  from adabatch.command.main import main

  return main()


if __name__ == '__main__':
  sys.exit(main())
