"""Figures of a study, by matplotlib; each function takes plain numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxdp.studies._summary import Interval

_MARKERS = "os^Dv<>P*X"


def by_arm(arms: Mapping[str, Interval], label: str) -> Figure:
  """A mean with its interval for every arm, in percent."""
  figure = Figure(
    figsize=(8, 0.9 + 0.3 * len(arms)), layout="constrained", dpi=100
  )
  axes = figure.subplots()
  y = np.arange(len(arms))[::-1]
  mean = np.array([100 * arm.mean for arm in arms.values()])
  spread = [
    [100 * (arm.mean - arm.low), 100 * (arm.high - arm.mean)]
    for arm in arms.values()
  ]
  spread = np.nan_to_num(np.array(spread).T, posinf=0.0)
  axes.errorbar(mean, y, xerr=spread, fmt="o", ms=5, capsize=3, color="#2359c4")
  axes.set_yticks(y, list(arms))
  _tidy(axes, label)
  return figure


def lines(
  panels: Mapping[str, Mapping[str, Sequence[tuple[float, Interval]]]],
  x_label: str,
  y_label: str,
  reference: Mapping[str, tuple[str, Interval]] | None = None,
) -> Figure:
  """Means with intervals over a logarithmic axis, a line an arm.

  Args:
    panels: by title and arm, points ``(x, interval)``.
    x_label: of the shared axis.
    y_label: of the accuracy, shown in percent.
    reference: by title, a name and an interval to draw as a band.
  """
  figure = Figure(
    figsize=(4.6 * max(len(panels), 2), 3.8), layout="constrained", dpi=100
  )
  axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
  for one, (title, arms) in zip(axes, panels.items(), strict=True):
    for i, (arm, points) in enumerate(arms.items()):
      x, values = zip(*sorted(points, key=lambda p: p[0]), strict=True)
      mean = 100 * np.array([v.mean for v in values])
      half = 100 * np.array([v.high - v.mean for v in values])
      one.errorbar(
        x,
        mean,
        yerr=np.where(np.isfinite(half), half, 0),
        marker=_MARKERS[i % len(_MARKERS)],
        ms=4,
        lw=1.4,
        capsize=2,
        label=arm,
      )
    if reference is not None:
      name, band = reference[title]
      one.axhline(100 * band.mean, color="0.4", lw=1, ls="--", label=name)
      one.axhspan(100 * band.low, 100 * band.high, color="0.5", alpha=0.15)
    one.set_xscale("log")
    ticks = sorted({x for points in arms.values() for x, _ in points})
    one.set_xticks(ticks, [f"{x:g}" for x in ticks])
    one.set_xticks([], minor=True)
    one.set_title(title, fontsize=10)
    _tidy(one, x_label)
  axes[0].set_ylabel(y_label)
  axes[-1].legend(
    fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1)
  )
  return figure


def _tidy(axes: Any, x_label: str) -> None:
  axes.set_xlabel(x_label)
  axes.grid(alpha=0.3)
  axes.spines[["top", "right"]].set_visible(False)
