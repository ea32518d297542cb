"""Writes a report: `python -m adabatch.report WORKDIR`, or of an archive.

Of several runs, one page that compares them: `... RUN RUN ...`.
"""

import argparse
import sys
from collections.abc import Sequence

from adabatch.report import (
  COMPARISON,
  write_comparison,
  write_report,
  write_study_report,
)


def make_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser('python -m adabatch.report')
  parser.add_argument(
    'paths',
    nargs='+',
    metavar='path',
    help='directory of a run, a search, a study or a probe; directories of '
    'several runs, to compare them; with --metric, a directory or a tar '
    'archive of trials in the published form',
  )
  parser.add_argument('--metric', help='column of the measurements')
  parser.add_argument(
    '--goal', type=float, help='that the metric is to be strictly better than'
  )
  parser.add_argument('--higher_is_better', action='store_true')
  parser.add_argument(
    '--pattern', default='*', help="such as 'batch_science/mnist/*'"
  )
  parser.add_argument(
    '--output',
    help=f'the page (default: report.html there; of several runs '
    f'{COMPARISON} here)',
  )
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  parser = make_parser()
  arguments = vars(parser.parse_args(argv))
  paths, output = arguments.pop('paths'), arguments['output']
  if arguments['metric'] is not None and len(paths) > 1:
    parser.error(f'--metric is for one archive, and there are {len(paths)}')
  try:
    if len(paths) > 1:
      print(write_comparison(paths, output or COMPARISON).resolve())
    elif arguments['metric'] is None:
      print(write_report(paths[0], output))
    else:
      print(write_study_report(paths[0], **arguments))
  except (OSError, ValueError) as error:
    print(f'adabatch.report: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
