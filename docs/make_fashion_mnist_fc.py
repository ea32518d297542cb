"""Makes the page of the Fashion-MNIST study from its trials.

    python docs/make_fashion_mnist_fc.py

Reads `docs/fashion_mnist_fc.tar.xz` (all trials, in the published form) and
writes `docs/fashion_mnist_fc.md` with its pictures, around the words of
`docs/fashion_mnist_fc_words.md`, and the report `docs/fashion_mnist_fc.html`.
With `--trials=WORKDIR/trials` the archive is first made anew from a finished
study.
"""

import argparse
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from adabatch import study
from adabatch.report import study_figures, style, write_study_report
from adabatch.report.charts import SIZE, blank, log_axis, name_x, size_axis
from adabatch.search import archive
from adabatch.search.trials import ERROR, Search

DOCS = pathlib.Path(__file__).parent
NAME = 'fashion_mnist_fc'
GOAL = 0.12
EPOCH = 50_000
# Steps of the simple CNN with Nesterov momentum to a validation error of 0.10:
# Shallue et al., 2018 (arXiv:1811.03600), figure 1, read off by eye, +-10 %.
PUBLISHED = {
  2: 20595,
  8: 5873,
  32: 1663,
  128: 491,
  512: 294,
  2048: 163,
  8192: 151,
  32768: 164,
  55000: 158,
}


def save(figure: Figure | None, name: str, ylabel: str) -> None:
  """A picture of its own: with a legend, and a name on the y axis."""
  assert figure is not None
  axes = figure.axes[0]
  if not axes.get_xlabel():
    name_x(axes, 'batch size', style.LIGHT)
  axes.set_ylabel(ylabel, fontsize=SIZE)
  handles, labels = axes.get_legend_handles_labels()
  axes.legend(handles, labels, fontsize=6.5, frameon=False)
  figure.savefig(
    DOCS / f'{NAME}_{name}.png',
    dpi=200,
    facecolor='white',
    bbox_inches='tight',
    metadata={'Software': None},
  )


def compared(ours: study.Workload) -> Figure:
  """Our curve and the published one, each with its fit."""
  figure, axes = blank(style.LIGHT, height=2.8)
  curves = {
    'fully connected, error 0.12 (this study)': {
      row.batch_size: row.steps for row in ours.rows if row.steps is not None
    },
    'simple CNN, error 0.10 (published)': PUBLISHED,
  }
  sizes = sorted({b for curve in curves.values() for b in curve})
  size_axis(axes, sizes, style.LIGHT)
  log_axis(axes, 'y', [s for curve in curves.values() for s in curve.values()])
  for color, (label, curve) in zip(('s1', 's3'), curves.items(), strict=True):
    fit = study.fit_critical_batch_size(list(curve), list(curve.values()))
    axes.plot(
      list(curve),
      list(curve.values()),
      'o',
      markersize=5,
      color=style.LIGHT[color],
      label=label,
    )
    some = np.geomspace(min(curve), max(curve), 100).tolist()
    axes.plot(
      some, [study.predict(fit, b) for b in some], color=style.LIGHT[color]
    )
  return figure


def fit_line(name: str, fit: study.CriticalBatchSize | None) -> str:
  assert fit is not None

  def text(value: float, interval: tuple[float, float]) -> str:
    low, high = (f'{x:,.3g}' if x < 1000 else f'{x:,.0f}' for x in interval)
    return f'{value:,.0f} ({low} to {high})'

  steps = text(fit.min_steps, fit.min_steps_interval)
  size = text(fit.critical_batch_size, fit.critical_batch_size_interval)
  return f'| {name} | {steps} | {size} | {fit.noise:.2f} |'


def rows(workload: study.Workload) -> list[str]:
  lines = []
  labels = workload.regimes.labels
  for row, label in zip(workload.rows, labels, strict=True):
    rate = row.parameters.get('learning_rate.base', math.nan)
    momentum = row.parameters.get('optimizer.momentum')
    low, high = row.interval
    steps = f'> {row.longest:,}' if row.steps is None else f'{row.steps:,}'
    upper = f'{high:,.0f}' if high < math.inf else 'open'
    cells = (
      f'{row.batch_size:,}',
      steps,
      '' if row.steps is None else f'{low:,.0f} to {upper}',
      '' if row.examples is None else f'{row.examples / EPOCH:.1f}',
      f'{row.feasible} / {row.infeasible} / {row.reached}',
      '' if row.steps is None else f'{rate:.3g}',
      '' if momentum is None else f'{momentum:.4g}',
      label,
      ', '.join(f'{key} ({side})' for key, side in row.edges),
    )
    lines.append('| ' + ' | '.join(cells) + ' |')
  return lines


HEADER = (
  '| batch size | updates | 95 % | epochs | feasible / diverged / reached '
  '| learning rate | momentum | regime | near an edge of the space |'
)


def page(searches: Sequence[Search], words: str) -> str:
  workloads = study.summarize(searches, ERROR, GOAL)
  fits = [fit_line(w.optimizer, w.fit) for w in workloads]
  published = study.fit_critical_batch_size(
    list(PUBLISHED), list(PUBLISHED.values())
  )
  fits.append(fit_line('published: simple CNN, nesterov', published))
  trials = [trial for search in searches for trial in search.trials]
  tables = []
  for workload in workloads:
    tables += [f'### {workload.optimizer}', '', HEADER, '|---' * 9 + '|']
    tables += [*rows(workload), '']
  return words.format(
    trials=len(trials),
    fits='\n'.join(
      ['| | S_min (95 %) | B_crit (95 %) | residual |', '|---' * 4 + '|', *fits]
    ),
    tables='\n'.join(tables),
  )


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--trials', help='of a finished study; makes the archive')
  path = DOCS / f'{NAME}.tar.xz'
  arguments = parser.parse_args()
  if arguments.trials:
    archive.write_tar(path, archive.read_tree(arguments.trials))
  searches = archive.read_tree(path)
  workloads = study.summarize(searches, ERROR, GOAL)
  (nesterov,) = (w for w in workloads if w.optimizer == 'nesterov')
  light = style.LIGHT
  save(study_figures.steps_figure(workloads, light), 'steps', 'updates')
  for effective in (False, True):
    figure = study_figures.rate_figure(workloads, light, effective=effective)
    name = 'effective_rates' if effective else 'rates'
    save(figure, name, name.replace('_rates', ' rate').replace('rates', 'rate'))
  save(compared(nesterov), 'published', 'updates')
  words = (DOCS / f'{NAME}_words.md').read_text()
  (DOCS / f'{NAME}.md').write_text(page(searches, words))
  write_study_report(path, ERROR, GOAL, output=DOCS / f'{NAME}.html')


if __name__ == '__main__':
  main()
