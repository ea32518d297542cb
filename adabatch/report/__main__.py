"""Writes a report: `python -m adabatch.report WORKDIR`, or of an archive.

Of several runs, one page that compares them: `... RUN RUN ...`.
"""

import argparse
import sys
from collections.abc import Sequence

from adabatch.config.extras import needing


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """What there is to say of a page."""
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
    help='the page (default: report.html there; of several runs '
    'comparison.html here)',
  )


def run(given: argparse.Namespace) -> int:
  """Draws the page that was asked for; the exit status."""
  paths, output = given.paths, given.output
  if given.metric is not None and len(paths) > 1:
    print(
      f'error: --metric is for one archive, and there are {len(paths)}',
      file=sys.stderr,
    )
    return 2
  try:
    with needing():
      from adabatch.report import pages
    if len(paths) > 1:
      page = pages.write_comparison(paths, output or pages.COMPARISON)
    elif given.metric is None:
      page = pages.write_report(paths[0], output)
    else:
      page = pages.write_study_report(
        paths[0],
        given.metric,
        given.goal,
        higher_is_better=given.higher_is_better,
        pattern=given.pattern,
        output=output,
      )
  except (OSError, ValueError) as error:
    print(f'adabatch.report: {error}', file=sys.stderr)
    return 1
  print(page.resolve())
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser('python -m adabatch.report')
  add_arguments(parser)
  return run(parser.parse_args(argv))


if __name__ == '__main__':
  sys.exit(main())
