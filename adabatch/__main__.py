"""`python -m adabatch` is the command `adabatch`."""

import sys

from adabatch.command.main import main

if __name__ == '__main__':
  sys.exit(main())
