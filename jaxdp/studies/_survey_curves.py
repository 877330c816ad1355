"""Figures of a survey: how the accuracy moves with its factors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from jaxdp.studies import analysis
from jaxdp.studies._survey_findings import Findings
from jaxdp.studies._survey_style import (
  COLORS,
  WIDTH,
  grid,
  label,
  log_scale,
  name_sets,
  panels,
  styled,
)

Sets = Mapping[str, Findings]
_CURVES = 150  # of each panel of ``ice``
_UNIT = Normalize(0, 1)
_BLANK = "#eceff3"  # cells without runs


@styled
def ice(sets: Sets) -> Figure:
  """Centred ICE, coloured by the partner: a row a factor, a column a set."""
  names = next(iter(sets.values())).numbers
  figure, axes = panels(len(names), len(sets), 1.75, sharey="row")
  name_sets(axes, sets)
  for row, name in zip(axes, names, strict=True):
    for one, found in zip(row, sets.values(), strict=True):
      _ice(one, found, name)
    if len(sets) > 1 or name == names[0]:
      row[0].set_ylabel("change in accuracy")
    if len(sets) == 1:  # narrow panels
      row[0].set_xlabel(row[0].get_xlabel().replace(" (", "\n("))
  bar = figure.colorbar(
    ScalarMappable(_UNIT, "viridis"),
    ax=axes,
    location="bottom",
    shrink=0.4,
    aspect=40,
    ticks=[0, 0.5, 1],
  )
  bar.ax.set_xticklabels(["lowest", "median", "highest"])
  bar.set_label("rank of the colouring factor in the run")
  bar.outline.set_visible(False)
  return figure


def _ice(one: Any, found: Findings, name: str) -> None:
  grid, values, runs = analysis.ice(
    found.model,
    found.points,
    name,
    kind="centred",
    num_points=40,
    num_curves=_CURVES,
  )
  partner = found.partner(name)
  lines = [np.stack([grid, value], axis=1) for value in values]
  curves = LineCollection(
    lines, array=runs[partner].rank(pct=True), cmap="viridis", norm=_UNIT
  )
  curves.set(lw=0.5, alpha=0.55, rasterized=True)
  one.add_collection(curves)
  one.plot(grid, values.mean(axis=0), color="white", lw=3)
  one.plot(grid, values.mean(axis=0), color="#171b21", lw=1.5)
  one.autoscale_view()
  if found.is_log(name):
    log_scale(one.xaxis, grid)
  one.set_xlabel(f"{label(name)} (colour: {partner})")
  one.grid()


@styled
def ale(sets: Sets) -> Figure:
  """First-order accumulated local effects, all sets in one panel a factor."""
  names = next(iter(sets.values())).numbers
  figure, axes = grid(1, len(names), 2.4, sharey=True)
  for one, name in zip(axes[0], names, strict=True):
    for (title, found), color in zip(sets.items(), COLORS * 4, strict=False):
      table = analysis.ale(found.model, found.points, name, num_bins=30)
      one.plot(table.value, table.effect, color=color, lw=1.4, label=title)
      one.fill_between(
        table.value, table.low, table.high, color=color, alpha=0.18, lw=0
      )
      if found.is_log(name):
        log_scale(one.xaxis, table.value)
    one.axhline(0, color="0.5", lw=0.8)
    one.set_xlabel(label(name))
    one.grid()
  axes[0, 0].set_ylabel("effect on scaled accuracy")
  if len(sets) > 1:
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(sets))
  return figure


@styled
def ale_interactions(sets: Sets) -> Figure:
  """Second-order accumulated local effects; cells without runs stay blank."""
  numbers = next(iter(sets.values())).numbers
  pairs = [("C", "lr"), ("epochs", "lr"), ("epochs", "C")]
  pairs = [pair for pair in pairs if set(pair) <= set(numbers)]
  figure, axes = panels(len(pairs), len(sets), 2.2)
  name_sets(axes, sets)
  for row, pair in zip(axes, pairs, strict=True):
    cells = [_second_order(found, pair) for found in sets.values()]
    top = max(np.nanmax(np.abs(effect)) for _, _, effect in cells)
    for one, found, (x, y, effect) in zip(
      row, sets.values(), cells, strict=True
    ):
      one.set_facecolor(_BLANK)
      image = one.pcolormesh(
        x, y, effect.T, cmap="RdBu", vmin=-top, vmax=top, rasterized=True
      )
      _scales(one, found, pair)
      one.set_xlabel(label(pair[0]))
    row[0].set_ylabel(label(pair[1]))
    bar = figure.colorbar(image, ax=row, aspect=18, pad=0.01)
    bar.set_label("scaled accuracy")
    bar.outline.set_visible(False)
  return figure


def _second_order(
  found: Findings, pair: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Edges of both, and the mean of its corners in each cell that has runs."""
  table = analysis.ale_interaction(
    found.model, found.points, pair, num_bins=10, num_bootstrap=2
  )
  corners = table.pivot(index=pair[0], columns=pair[1], values="effect")
  x, y = corners.index.to_numpy(), corners.columns.to_numpy()
  z = corners.to_numpy()
  effect = (z[1:, 1:] + z[1:, :-1] + z[:-1, 1:] + z[:-1, :-1]) / 4
  counts, _, _ = np.histogram2d(
    found.points[pair[0]], found.points[pair[1]], bins=(x, y)
  )
  return x, y, np.where(counts > 0, effect, np.nan)


@styled
def heat(sets: Sets, bins: int = 10) -> Figure:
  """Mean accuracy over (lr, C), with the best runs and their ridge."""
  columns = min(len(sets), 3)
  rows = -(-len(sets) // columns)
  figure, axes = grid(
    rows, columns, 1.05 * WIDTH / max(columns, 2), sharex=True, sharey=True
  )
  every = pd.concat([found.points for found in sets.values()])
  edges = [_log_edges(every[name], bins) for name in ("C", "lr")]
  for one in axes.ravel()[len(sets) :]:
    one.set_axis_off()
  for one, (title, found) in zip(axes.ravel(), sets.items(), strict=False):
    runs = found.points
    total, *_ = np.histogram2d(runs.C, runs.lr, edges, weights=runs.scaled)
    count, *_ = np.histogram2d(runs.C, runs.lr, edges)
    mean = np.divide(total, count, np.full_like(total, np.nan), where=count > 0)
    one.set_facecolor(_BLANK)
    image = one.pcolormesh(
      *edges, mean.T, cmap="viridis", vmin=0, vmax=1, rasterized=True
    )
    _draw_ridge(one, found, edges)
    one.set(xscale="log", yscale="log", xlabel=label("C"))
    one.set_title(title if len(sets) > 1 else "")
    one.set(xlim=edges[0][[0, -1]], ylim=edges[1][[0, -1]], box_aspect=1)
    for axis in (one.xaxis, one.yaxis):
      axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      axis.set_major_formatter(lambda value, _: f"{value:g}")
      axis.set_minor_locator(NullLocator())
  for one in axes[:, 0]:
    one.set_ylabel(label("lr"))
  bar = figure.colorbar(image, ax=axes, aspect=25, shrink=0.8, pad=0.01)
  bar.set_label("mean scaled accuracy")
  bar.outline.set_visible(False)
  handles, labels = axes[0, 0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
  return figure


def _log_edges(values: pd.Series, bins: int) -> np.ndarray:
  """Equal on a log scale; of a uniform law the lowest percents are one cell."""
  x = values.to_numpy(float)
  low, high = np.quantile(x, 0.02), x.max() * (1 + 1e-9)
  return np.geomspace(low, high, bins + 1)


def _draw_ridge(one: Any, found: Findings, edges: list[np.ndarray]) -> None:
  cells = [found.points]
  if found.context:
    cells = [cell for _, cell in found.points.groupby(list(found.context))]
  top = pd.concat([analysis.best(cell, "accuracy") for cell in cells])
  one.scatter(
    top.C, top.lr, s=7, color="white", ec="black", lw=0.7, label="best tenth"
  )
  at = np.log(top[["C", "lr"]]).median()
  x = np.log(edges[0])
  by_itself = found.rate == "lr"
  for slope, style, text in (
    (found.ridge.mean if found.ridge else None, "-", "ridge of the best"),
    (0.0 if by_itself else -1.0, ":", f"{found.rate} constant"),
  ):
    if slope is not None:
      y = at["lr"] + slope * (x - at["C"])
      one.plot(np.exp(x), np.exp(y), style, color="#d7263d", lw=1.6, label=text)


def _scales(one: Any, found: Findings, pair: tuple[str, str]) -> None:
  for axis, name in zip((one.xaxis, one.yaxis), pair, strict=True):
    if found.is_log(name):
      log_scale(axis, found.points[name])
