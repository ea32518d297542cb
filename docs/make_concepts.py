"""Makes the pictures of the four ideas, of what the package's functions return.

    python docs/make_concepts.py [--output docs/concepts]

The first three are one made-up run: a loss that falls as 1 / (1 + e / 3000)
after e examples, seen through batches, a rule that follows it, the ladder and
the transforms. The fourth is four replicas on a noisy quadratic. Each picture
holds the numbers that it was drawn from, so that tests can tell an old one.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure

from adabatch import optim
from adabatch.controllers import BatchSize, adadamp, buckets, every
from adabatch.optim import sync
from adabatch.report.scales import tick_labels
from adabatch.report.style import LIGHT

INK, SOFT, GRID = LIGHT['ink'], LIGHT['soft'], LIGHT['grid']
BLUE, ORANGE, GREEN, VIOLET = (LIGHT[f's{i}'] for i in range(1, 5))

# The run.
SMALLEST, LARGEST, END = 16, 128, 60_000
LADDER = buckets.ladder(SMALLEST, LARGEST, devices=4, max_per_device=16)
RATE, WARMUP = 0.1, 6_000
# The replicas.
REPLICAS, PERIOD, UPDATES = 4, 8, 40

Numbers = dict[str, list[float]]


def true_loss(examples: float) -> float:
  return 2.3 / (1 + examples / 3000)


def followed() -> Numbers:
  """A rule over a run: what it is told, and what it asks for."""
  rng = np.random.default_rng(0)
  rule = adadamp(initial_batch_size=SMALLEST, initial_updates=20)
  batch_size = BatchSize(every(rule, updates=20), LADDER)
  rows = []
  while batch_size.examples < END:
    noise = rng.normal() / batch_size.size**0.5
    loss = true_loss(batch_size.examples) * (1 + 1.2 * noise)
    plan = batch_size.plan
    rows.append(
      (
        batch_size.examples,
        loss,
        plan.nominal,
        plan.batch_size,
        plan.damping,
      )
    )
    batch_size.observe(loss=loss)
  names = ('examples', 'loss', 'nominal', 'batch_size', 'damping')
  return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def rates(run: Numbers) -> Numbers:
  """The learning rates of its updates, without and with the damping."""
  learning_rate = optim.scale_by_batch_learning_rate(
    RATE,
    decay=optim.cosine(END, final=0.3),
    warmup=optim.gradual_warmup(WARMUP, start=0.0),
  )
  tx = optax.chain(learning_rate, optim.scale_by_damping())
  ones = jnp.ones(1)
  state = tx.init(ones)

  @jax.jit
  def rate(examples, batch_size, damping):
    updates, after = tx.update(
      ones,
      state,
      examples=examples,
      batch_size=batch_size,
      damping=damping,
    )
    (update,) = jnp.asarray(updates)
    return optax.tree_utils.tree_get(after, 'learning_rate'), -update

  columns = (
    np.asarray(run[k], np.float32)
    for k in ('examples', 'batch_size', 'damping')
  )
  undamped, damped = jax.vmap(rate)(*columns)
  return {
    'examples': run['examples'],
    'damping': run['damping'],
    'undamped': undamped.tolist(),
    'rate': damped.tolist(),
  }


def replicas(rule: sync.SyncRule, start: float = 4.0) -> Numbers:
  """Replicas x_k on a noisy quadratic, and their anchor z, as in `sync`."""
  noise = np.random.default_rng(4).normal(size=(UPDATES, REPLICAS))
  x, z = np.full(REPLICAS, start), jnp.float32(start)
  outer = rule.outer.init(z)
  xs, zs = [x], [float(z)]
  for update in range(UPDATES):
    before, x = x, x - 0.05 * (x + 5 * noise[update])
    if (update + 1) % rule.period(0, 64, 1.0) == 0:
      y = before if rule.observe == 'before' else x
      change, outer = rule.outer.update(-jnp.mean(y - z), outer, z)
      new = z + change
      x = x - rule.pull * (y - float(z if rule.reference == 'old' else new))
      z = new
    xs.append(x)
    zs.append(float(z))
  columns = {f'replica {k}': [float(x[k]) for x in xs] for k in range(REPLICAS)}
  return {'update': list(range(UPDATES + 1)), **columns, 'anchor': zs}


def numbers() -> dict[str, Numbers]:
  """Of each picture, to four digits; of the run, every third update."""
  run = {name: column[::3] for name, column in followed().items()}
  drawn = {
    'rule': {k: run[k] for k in ('examples', 'loss', 'nominal')},
    'bucket': {k: run[k] for k in ('examples', 'nominal', 'batch_size')},
    'transform': rates(run),
    'sync': {
      f'{name}, {key}': column
      for name, rule in (
        ('local_sgd', sync.local_sgd(PERIOD)),
        ('easgd', sync.easgd(PERIOD, 1.2, replicas=REPLICAS)),
      )
      for key, column in replicas(rule).items()
    },
  }
  return {
    name: {k: [float(f'{v:.4g}') for v in vs] for k, vs in columns.items()}
    for name, columns in drawn.items()
  }


def draw_rule(of: Numbers) -> Figure:
  figure, (above, below) = panels(2)
  x = of['examples']
  above.plot(x, of['loss'], color=BLUE, linewidth=0.7, alpha=0.5)
  above.plot(x, [true_loss(e) for e in x], color=BLUE, linewidth=2)
  above.set_ylim(0, 2.9)
  below.step(x, of['nominal'], where='post', color=ORANGE, linewidth=2)
  below.set_ylim(0, None)
  say(above, 0.97, 0.86, 'signal: the loss of each batch', BLUE, right=True)
  say(below, 0.03, 0.86, 'rule: batch size that AdaDamp asks for', ORANGE)
  below.text(
    0.97,
    0.12,
    r'$B_k = B_0\;\frac{F(x_0) - F^*}{F(x_k) - F^*}$',
    transform=below.transAxes,
    ha='right',
    color=INK,
    fontsize=14,
  )
  in_examples(below)
  return figure


def draw_bucket(of: Numbers) -> Figure:
  figure, (axes,) = panels(1, right=0.70)
  x, nominal, runs = (np.array(of[k]) for k in of)
  axes.step(x, runs, where='post', color=BLUE, linewidth=2.2)
  axes.step(x, nominal, where='post', color=ORANGE, linewidth=1.6)
  sizes = LADDER.batch_sizes
  axes.set_yscale('log', base=2)
  axes.set_yticks([*sizes, 256], [str(s) for s in (*sizes, 256)])
  axes.set_ylim(13, 500)
  say(axes, 0.04, 0.91, 'asked for', ORANGE)
  say(axes, 0.24, 0.7, 'runs', BLUE)
  for size in sizes:
    at_once, steps, devices = buckets.bucket_for(size, LADDER)
    axes.annotate(
      f'{devices} devices × {at_once}' + (f' × {steps}' if steps > 1 else ''),
      (1.02, size),
      xycoords=('axes fraction', 'data'),
      va='center',
      color=BLUE,
      fontsize=10.5,
      annotation_clip=False,
    )
  axes.annotate(
    'the buckets:',
    (1.02, 256),
    xycoords=('axes fraction', 'data'),
    va='center',
    color=INK,
    fontsize=11,
    annotation_clip=False,
  )
  in_examples(axes)
  return figure


def draw_transform(of: Numbers) -> Figure:
  figure, (axes,) = panels(1)
  x, undamped, rate = of['examples'], of['undamped'], of['rate']
  axes.fill_between(x, undamped, rate, color=ORANGE, alpha=0.16, linewidth=0)
  axes.plot(x, undamped, color=SOFT, linewidth=1.6, linestyle=(0, (4, 2)))
  axes.plot(x, rate, color=BLUE, linewidth=2.2)
  axes.set_ylim(0, 0.118)
  capped = np.array(of['damping']) < 1
  axes.axvline(x[capped.argmax()], color=ORANGE, linewidth=1.2)
  say(axes, 0.97, 0.92, 'schedule: warmup, then a cosine', SOFT, right=True)
  axes.text(
    x[capped.argmax()] - 800,
    0.004,
    'from here on the rule\nasks for more than 128',
    ha='right',
    color=ORANGE,
    fontsize=11,
  )
  axes.text(
    0.15,
    0.42,
    'learning rate:\nschedule ×\ndamping',
    transform=axes.transAxes,
    color=BLUE,
    fontsize=11,
  )
  axes.set_ylabel('learning rate', color=INK, fontsize=11)
  in_examples(axes)
  return figure


def draw_sync(of: Numbers) -> Figure:
  figure, both = panels(2)
  titles = {
    'local_sgd': 'local SGD: all go on from the mean',
    'easgd': 'EASGD: drawn to an anchor',
  }
  for axes, (name, title) in zip(both, titles.items(), strict=True):
    x = of[f'{name}, update']
    for sync_at in range(PERIOD, UPDATES + 1, PERIOD):
      axes.axvline(sync_at, color=GRID, linewidth=1.2)
    for k in range(REPLICAS):
      color = (BLUE, ORANGE, GREEN, VIOLET)[k]
      axes.plot(x, of[f'{name}, replica {k}'], color=color, linewidth=1.2)
    anchor = of[f'{name}, anchor']
    axes.step(x, anchor, where='post', color=INK, linewidth=2)
    axes.plot(
      x[::PERIOD],
      anchor[::PERIOD],
      'o',
      color=INK,
      markersize=5,
      clip_on=False,
      zorder=4,
    )
    say(axes, 0.97, 0.84, title, INK, right=True)
    axes.set_yticks([0, 2, 4], ['0', '2', '4'])
    axes.set_ylim(-0.4, 4.7)
    axes.set_xlim(0, UPDATES)
    axes.grid(axis='x', visible=False)
  ticks = range(0, UPDATES + 1, PERIOD)
  both[1].set_xticks(ticks, [str(t) for t in ticks])
  both[1].set_xlabel('updates of a replica', color=INK, fontsize=11)
  return figure


PICTURES: dict[str, Callable[[Numbers], Figure]] = {
  'rule': draw_rule,
  'bucket': draw_bucket,
  'transform': draw_transform,
  'sync': draw_sync,
}


def panels(count: int, right: float = 0.955) -> tuple[Figure, Sequence]:
  """One above the other, of the width of a phone: 390 points."""
  height = 2.9 if count == 1 else 3.6
  figure = Figure(figsize=(5.2, height), facecolor='white')
  axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
  figure.subplots_adjust(
    0.135, 0.50 / height, right, 1 - 0.12 / height, hspace=0.16
  )
  for panel in axes:
    panel.minorticks_off()
    panel.tick_params(length=0, colors=SOFT, labelsize=10.5)
    panel.grid(color=GRID, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[['top', 'right', 'left']].set_visible(False)
    panel.spines['bottom'].set_color(GRID)
  return figure, list(axes)


def say(axes, x: float, y: float, words: str, color: str, right=False) -> None:
  """In place of a legend."""
  axes.text(
    x,
    y,
    words,
    transform=axes.transAxes,
    ha='right' if right else 'left',
    va='center',
    color=color,
    fontsize=11.5,
    bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 1.5},
  )


def in_examples(axes) -> None:
  ticks = [0, 20_000, 40_000, 60_000]
  axes.set_xlim(0, END)
  axes.set_xticks(ticks, tick_labels(ticks))
  axes.set_xlabel('examples seen', color=INK, fontsize=11)


def save(figure: Figure, of: Numbers, path: pathlib.Path) -> None:
  """The same bytes each time, with the numbers in it."""
  style: Any = {'svg.hashsalt': 'adabatch', 'path.simplify': True}
  with matplotlib.rc_context(style):
    figure.savefig(
      path,
      format='svg',
      metadata={'Date': None, 'Creator': None, 'Description': json.dumps(of)},
    )
  text = path.read_text()
  path.write_text(re.sub(r' +$', '', text, flags=re.MULTILINE))


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
  parser.add_argument(
    '--output', type=pathlib.Path, default=pathlib.Path('docs/concepts')
  )
  output = parser.parse_args(argv).output
  output.mkdir(parents=True, exist_ok=True)
  with matplotlib.rc_context({'font.family': 'sans-serif'}):
    for name, of in numbers().items():
      path = output / f'{name}.svg'
      save(PICTURES[name](of), of, path)
      print(path)
  return 0


if __name__ == '__main__':
  sys.exit(main())
