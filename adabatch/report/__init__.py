"""A run's directory in one page: `WORKDIR/report.html`.

The page is one self-contained file: pictures are inline SVG, there are no
scripts, fonts or images to fetch, so it opens offline, on a phone and years
later. It may be written at any time, of a finished run, of one that was killed
in the middle of a line, or of one that diverged.

    python -m adabatch.report WORKDIR
"""

import os
import pathlib

from adabatch.report.page import build_page
from adabatch.report.records import read_json, read_metrics

__all__ = ['read_metrics', 'write_report']


def write_report(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes `WORKDIR/report.html` from what the run has left; its path.

  Needs `metrics.jsonl`; uses `summary.json` and `config.json` if they are
  there. A reader sees the old page or the new one, never a half of it.

  Raises:
    FileNotFoundError: if the directory holds no `metrics.jsonl`.
  """
  workdir = pathlib.Path(workdir)
  page = build_page(
    workdir.resolve().name,
    *read_metrics(workdir),
    summary=read_json(workdir / 'summary.json'),
    config=read_json(workdir / 'config.json'),
  )
  path = workdir / 'report.html'
  temporary = workdir / f'.report.html.{os.getpid()}'
  try:
    # A torn record may have left half a surrogate pair: never fail on it.
    temporary.write_text(page, encoding='utf-8', errors='replace')
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  return path
