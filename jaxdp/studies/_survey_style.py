"""How figures of a survey look: one style, one colour a set."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

WIDTH = 8.4  # inches: 1 pt is 1.35 pixels on the page
COLORS = ("#2359c4", "#c2571a", "#2a8a5f", "#7a3fb8", "#8a6d00", "#59626f")
LABELS = {
  "lr": "learning rate",
  "C": "clip norm C",
  "batch_size": "nominal batch size",
  "q": "sampling probability q",
  "rate": "rate",
}
_STYLE: dict[Any, Any] = {
  "font.size": 8.5,
  "axes.titlesize": 9,
  "axes.labelsize": 8.5,
  "axes.labelcolor": "#30363f",
  "axes.edgecolor": "#8a93a0",
  "axes.linewidth": 0.7,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.axisbelow": True,
  "xtick.labelsize": 7.5,
  "ytick.labelsize": 7.5,
  "xtick.color": "#59626f",
  "ytick.color": "#59626f",
  "xtick.major.width": 0.7,
  "ytick.major.width": 0.7,
  "xtick.minor.width": 0.4,
  "ytick.minor.width": 0.4,
  "grid.color": "#e3e7ec",
  "grid.linewidth": 0.7,
  "legend.fontsize": 8,
  "legend.frameon": False,
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
  """A function that draws in this style."""

  @functools.wraps(draw)
  def wrapped(*args: P.args, **kwargs: P.kwargs) -> Figure:
    with mpl.rc_context(_STYLE):
      return draw(*args, **kwargs)

  return wrapped


def grid(
  rows: int, columns: int, height: float, **settings: Any
) -> tuple[Figure, Any]:
  """A figure of the page's width and its axes, [rows, columns]."""
  figure = Figure(
    figsize=(WIDTH, height * rows + 0.3), layout="constrained", dpi=150
  )
  return figure, figure.subplots(rows, columns, squeeze=False, **settings)


def panels(
  rows: int, sets: int, height: float, **settings: Any
) -> tuple[Figure, Any]:
  """As ``grid``; the rows of a single set lie beside each other."""
  if sets > 1:
    return grid(rows, sets, height, **settings)
  figure, axes = grid(1, rows, 2.4, **settings)
  return figure, axes.T


def name_sets(axes: Any, sets: Iterable[str]) -> None:
  """Titles of the columns; a single set needs none."""
  names = list(sets)
  for one, title in zip(axes[0], names, strict=False):
    one.set_title(title if len(names) > 1 else "")


def log_scale(axis: Any, values: Any) -> None:
  """A log scale; over little more than a decade 2 and 5 are named too."""
  getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
  if np.max(values) < 30 * np.min(values):
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())


def label(name: str) -> str:
  """A column in words."""
  return LABELS.get(name, name.replace("_", " "))


def symbol(factors: str) -> str:
  """A component as it is written in text: lr × C."""
  return factors.replace("*", " × ").replace("_", " ")
