"""A directory in one page: `report.html`, of a run, a search, a study, a probe.

The page is one self-contained file: pictures are inline SVG, there are no
scripts, fonts or images to fetch, so it opens offline, on a phone and years
later. It may be written at any time, of a finished run, of one that was killed
in the middle of a line, or of one that diverged; of a search or a study while
its trials go on.

    python -m adabatch.report WORKDIR

Several runs in one page, `comparison.html` in the working directory:

    python -m adabatch.report RUN RUN ...

Of trials in the published form, which need not be ours (`study.archive`):

    python -m adabatch.report study.tar.xz --metric=val/classification_error \\
      --goal=0.01
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from adabatch.report.pages import (
    write_comparison,
    write_plan,
    write_report,
    write_study_report,
  )
  from adabatch.report.records import read_metrics

# Fetched when they are asked for: pages need matplotlib, lines of text do not.
_WHERE = {
  'read_metrics': 'adabatch.report.records',
  'write_comparison': 'adabatch.report.pages',
  'write_plan': 'adabatch.report.pages',
  'write_report': 'adabatch.report.pages',
  'write_study_report': 'adabatch.report.pages',
}

__all__ = [
  'read_metrics',
  'write_comparison',
  'write_plan',
  'write_report',
  'write_study_report',
]


def __getattr__(name: str) -> Any:
  if name not in _WHERE:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  import importlib

  return getattr(importlib.import_module(_WHERE[name]), name)
