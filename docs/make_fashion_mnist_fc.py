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
from adabatch.study import archive
from adabatch.study.archive_writer import write_tar
from adabatch.study.table import half_text
from adabatch.study.trials import ERROR, Search

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
  axes.legend(handles, labels, fontsize=6.5, frameon=False, labelspacing=0.2)
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


def fit_line(
  name: str,
  fit: study.CriticalBatchSize | None,
  reference: float,
  spread: float | None = None,
) -> str:
  assert fit is not None

  def text(value: float, interval: tuple[float, float]) -> str:
    low, high = (f'{x:,.3g}' if x < 1000 else f'{x:,.0f}' for x in interval)
    return f'{value:,.0f} ({low} to {high})'

  steps = text(fit.min_steps, fit.min_steps_interval)
  size = text(fit.critical_batch_size, fit.critical_batch_size_interval)
  sizes = f'{study.overhead_batch_size(fit, reference=reference):,.0f}'
  luck = '' if spread is None else f'{100 * math.expm1(spread):.0f} %'
  missed = 100 * math.expm1(abs(fit.largest_residual))
  worst = f'{missed:.0f} % (B = {fit.largest_residual_at:,.0f})'
  flag = 'yes' if study.lack_of_fit(fit, spread) else 'no'
  cells = (name, steps, size, sizes, f'{fit.noise:.2f}', worst, luck, flag)
  return '| ' + ' | '.join(cells) + ' |'


def rows(workload: study.Workload) -> list[str]:
  lines = []
  labels = workload.regimes.labels
  for row, label in zip(workload.rows, labels, strict=True):
    rate = row.parameters.get('learning_rate.base', math.nan)
    momentum = row.parameters.get('optimizer.momentum')
    steps = f'> {row.longest:,}' if row.steps is None else f'{row.steps:,}'
    cells = (
      f'{row.batch_size:,}',
      steps,
      half_text(row),
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
  '| batch size | updates | with half the trials | epochs '
  '| feasible / diverged / reached | learning rate | momentum | regime '
  '| near an edge of the space |'
)


def page(searches: Sequence[Search], words: str) -> str:
  workloads = study.summarize(searches, ERROR, GOAL)
  fits = [
    fit_line(w.optimizer, w.fit, w.rows[0].batch_size, w.spread)
    for w in workloads
  ]
  published = study.fit_critical_batch_size(
    list(PUBLISHED), list(PUBLISHED.values())
  )
  name = 'published: simple CNN, nesterov'
  fits.append(fit_line(name, published, min(PUBLISHED)))
  trials = [trial for search in searches for trial in search.trials]
  tables = []
  for workload in workloads:
    tables += [f'### {workload.optimizer}', '', HEADER, '|---' * 9 + '|']
    tables += [*rows(workload), '']
  return words.format(
    trials=len(trials),
    fits='\n'.join(
      [
        '| | S_min (95 %) | B_crit (95 %) | 20 % overhead | residual | largest '
        'residual | spread over trials | lack of fit |',
        '|---' * 8 + '|',
        *fits,
      ]
    ),
    tables='\n'.join(tables),
  )


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--trials', help='of a finished study; makes the archive')
  path = DOCS / f'{NAME}.tar.xz'
  arguments = parser.parse_args()
  if arguments.trials:
    write_tar(path, archive.read_tree(arguments.trials))
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
