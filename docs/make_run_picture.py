"""Makes the README's picture: how runs with and without a moving batch size go.

    python docs/make_run_picture.py RUN_DIR [RUN_DIR ...] --output docs/run.png

Batch size (above) and training loss (below), against updates (left) and
against examples (right): the moving batch size needs fewer updates for the
same number of examples.
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from adabatch.report import lines, read_metrics, records, scales

INK, SOFT, GRID = '#23272f', '#5d6673', '#e3e7ec'
COLORS = ('#1f65c8', '#d35312', '#1b8a5a', '#8b46b5', '#927000', '#b81b5c')
X_AXES = (('update', 'updates'), ('examples', 'examples seen'))


class Run(NamedTuple):
  """What the picture needs of one run."""

  label: str
  columns: dict[str, np.ndarray]


def labels_of(run_dirs: Sequence[pathlib.Path]) -> list[str]:
  """The name of each run's controller, with its directory if that is needed."""
  names = []
  for run_dir in run_dirs:
    try:
      config = json.loads((run_dir / 'config.json').read_text())
      names.append(str(config['controller']['name']))
    except (OSError, ValueError, KeyError, TypeError):
      names.append(run_dir.resolve().name)
  count = Counter(names)
  return [
    name if count[name] == 1 else f'{name} ({run_dir.resolve().name})'
    for name, run_dir in zip(names, run_dirs, strict=True)
  ]


def read_run(run_dir: pathlib.Path, label: str) -> Run:
  train_records, _ = read_metrics(run_dir)
  keys = ('update', 'examples', 'batch_size', 'loss')
  return Run(label, {key: records.column(train_records, key) for key in keys})


def draw(runs: Sequence[Run]) -> Figure:
  """The 2 x 2 panels; each row shares its y axis, each column its x axis."""
  figure = Figure(figsize=(9, 5.6), dpi=150, facecolor='white')
  axes = figure.subplots(2, 2, sharex='col', sharey='row')
  figure.subplots_adjust(0.08, 0.09, 0.985, 0.905, wspace=0.07, hspace=0.12)
  handles = []
  for row, key in enumerate(('batch_size', 'loss')):
    drawn = []
    for column, (x_key, _) in enumerate(X_AXES):
      for i, run in enumerate(runs):
        color = COLORS[i % len(COLORS)]
        x, y = run.columns[x_key], run.columns[key]
        if key == 'loss':
          # The raw loss stays visible: how noisy it is belongs to the story.
          axes[row, column].plot(
            *lines.thin(x, y), color=color, linewidth=0.5, alpha=0.2, zorder=1
          )
          y = lines.smooth(y, len(y) / 50)
        x, y = lines.thin(x, y)
        if key == 'batch_size':
          x, y = lines.since_start(x, y)
        (handle,) = axes[row, column].plot(
          x,
          y,
          color=color,
          linewidth=2,
          drawstyle='steps-pre' if key == 'batch_size' else 'default',
          solid_joinstyle='round',
        )
        drawn.append(y[np.isfinite(y)])
        if row == column == 0:
          handles.append(handle)
    values = np.concatenate(drawn)
    if values.size:
      scale_y(axes[row, 0], values, key)
  for column, (x_key, label) in enumerate(X_AXES):
    style_x(axes[1, column], [run.columns[x_key] for run in runs], label)
  for panel in axes.flat:
    style(panel)
  for row, title in enumerate(('batch size (examples)', 'training loss')):
    axes[row, 0].set_ylabel(title, color=INK, fontsize=11)
  figure.align_ylabels(axes[:, 0])
  legend = figure.legend(
    handles,
    [run.label for run in runs],
    loc='upper left',
    ncols=3,
    bbox_to_anchor=(0.07, 0.985),
    frameon=False,
    fontsize=12,
    labelcolor=INK,
    handlelength=1.6,
    columnspacing=2,
    borderaxespad=0,
  )
  for text in legend.get_texts():
    text.set_parse_math(False)
  return figure


def scale_y(axes, values: np.ndarray, key: str) -> None:
  rule = scales.BATCH_SIZE if key == 'batch_size' else scales.LOSS
  scale = scales.choose_scale(values, rule)
  if scale.log:
    axes.set_yscale('log', nonpositive='mask')
  axes.set_ylim(scale.low, scale.high)
  axes.set_yticks(scale.ticks, scale.labels)


def style_x(axes, columns: Sequence[np.ndarray], label: str) -> None:
  values = np.concatenate(columns)
  values = values[np.isfinite(values)]
  end = 1.02 * (float(values.max()) if values.size else 1.0) or 1.0
  ticks = scales.linear_ticks(0, end)
  axes.set_xlim(0, end)
  axes.set_xticks(ticks, scales.tick_labels(ticks))
  axes.set_xlabel(label, color=INK, fontsize=11)


def style(axes) -> None:
  axes.minorticks_off()
  axes.tick_params(length=0, colors=SOFT, labelsize=10)
  axes.grid(color=GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right', 'left']].set_visible(False)
  axes.spines['bottom'].set_color(GRID)


def save(figure: Figure, output: pathlib.Path) -> None:
  """A palette of 128 colours is all that a few lines need: a third the size."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=150)
  image = Image.open(buffer).convert('RGB')
  output.parent.mkdir(parents=True, exist_ok=True)
  image.quantize(128, dither=Image.Dither.NONE).save(output, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
  parser.add_argument('run_dirs', nargs='+', type=pathlib.Path, metavar='RUN')
  parser.add_argument(
    '--output', type=pathlib.Path, default=pathlib.Path('docs/run.png')
  )
  arguments = parser.parse_args(argv)
  labels = labels_of(arguments.run_dirs)
  try:
    runs = [
      read_run(run_dir, label)
      for run_dir, label in zip(arguments.run_dirs, labels, strict=True)
    ]
    with matplotlib.rc_context({'font.family': 'sans-serif'}):
      save(draw(runs), arguments.output)
  except OSError as error:
    print(f'make_run_picture: {error}', file=sys.stderr)
    return 2
  print(arguments.output)
  return 0


if __name__ == '__main__':
  sys.exit(main())
