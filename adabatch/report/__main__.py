"""Writes the report of a run: `python -m adabatch.report WORKDIR`."""

import argparse
import sys
from collections.abc import Sequence

from adabatch.report import write_report


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser('python -m adabatch.report')
  parser.add_argument('workdir', help='directory with a metrics.jsonl')
  try:
    print(write_report(parser.parse_args(argv).workdir))
  except OSError as error:
    print(f'adabatch.report: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
