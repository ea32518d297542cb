"""Writes a report: `python -m adabatch.report WORKDIR`, or of an archive."""

import argparse
import sys
from collections.abc import Sequence

from adabatch.report import write_report, write_study_report


def make_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser('python -m adabatch.report')
  parser.add_argument(
    'path',
    help='directory of a run, a search or a study; with --metric, a directory '
    'or a tar archive of trials in the published form',
  )
  parser.add_argument('--metric', help='column of the measurements')
  parser.add_argument(
    '--goal', type=float, help='that the metric is to be strictly better than'
  )
  parser.add_argument('--higher_is_better', action='store_true')
  parser.add_argument(
    '--pattern', default='*', help="such as 'batch_science/mnist/*'"
  )
  parser.add_argument('--output', help='the page (default: report.html there)')
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  arguments = vars(make_parser().parse_args(argv))
  try:
    if arguments['metric'] is None:
      print(write_report(arguments['path']))
    else:
      print(write_study_report(**arguments))
  except (OSError, ValueError) as error:
    print(f'adabatch.report: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
