"""Figures of a survey: which runs there are, and which factors matter."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxdp.studies._survey_findings import RANKS, Findings
from jaxdp.studies._survey_style import (
  COLORS,
  grid,
  label,
  log_scale,
  name_sets,
  panels,
  styled,
  symbol,
)

Sets = Mapping[str, Findings]


@styled
def coverage(sets: Sets) -> Figure:
  """Histograms of the factors, and realised against nominal q: a row a set."""
  names = _columns(sets)
  nominal = "batch_size" in names
  figure, axes = grid(len(sets), len(names) + nominal, 1.55)
  for row, (title, found), color in zip(
    axes, sets.items(), _colors(), strict=False
  ):
    for one, name in zip(row, names, strict=False):
      _histogram(one, found, name, color)
    row[0].set_ylabel(f"{title}\npoints" if len(sets) > 1 else "points")
    if nominal:
      _realised(row[-1], found, color)
  for one in axes[:-1].ravel():
    one.set_xlabel("")
  return figure


def _columns(sets: Sets) -> list[str]:
  """The factors, and the batch size that was asked for if others trained."""
  names = [law.name for law in next(iter(sets.values())).laws]
  if "batch_size" not in names and np.ptp(ratios(sets)) > 0.05:
    names.append("batch_size")
  return names


def ratios(sets: Sets) -> np.ndarray:
  """Of the batch sizes that trained to those that were asked for, and 1."""
  parts = [
    found.points["q"] * found.points["num_examples"] / found.points.batch_size
    for found in sets.values()
    if {"q", "batch_size", "num_examples"} <= set(found.points.columns)
  ]
  return np.concatenate([[1.0], *parts])


def _histogram(one: Any, found: Findings, name: str, color: str) -> None:
  values = found.points[name]
  if name not in found.numbers and values.dtype.kind not in "fiu":
    counts = values.value_counts().sort_index()
    one.bar(counts.index.astype(str), counts, color=color, alpha=0.75)
  else:
    x = values.to_numpy(float)
    bins: Any = 20
    if found.is_log(name):
      bins = np.geomspace(x.min(), x.max(), 21)
      log_scale(one.xaxis, x)
    one.hist(x, bins, color=color, alpha=0.75)
    if x.max() >= 20_000:
      one.xaxis.set_major_formatter(
        lambda value, _: f"{value / 1000:g}k" if value else "0"
      )
  one.set_xlabel(label(name))
  one.grid(axis="y")


def _realised(one: Any, found: Findings, color: str) -> None:
  if not {"q", "batch_size", "num_examples"} <= set(found.points.columns):
    one.set_axis_off()
    return
  runs = found.points
  nominal = runs["batch_size"] / runs["num_examples"]
  one.plot([0, 1], [0, 1], color="0.6", lw=0.8, ls="--")
  one.scatter(nominal, runs["q"], s=4, lw=0, color=color, rasterized=True)
  one.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="nominal q = B/N")
  one.set_ylabel("q that trained")
  one.grid()


@styled
def importances(sets: Sets, most: int = 14) -> Figure:
  """Shares with intervals, of the surrogate and of the response."""
  names = _ordered(sets, most)
  figure, axes = grid(
    1, len(sets), 0.5 + 0.24 * len(names), sharey=True, sharex=True
  )
  y = np.arange(len(names))[::-1].astype(float)
  top = 0.0
  for one, (title, found), color in zip(
    axes[0], sets.items(), _colors(), strict=False
  ):
    for shares, shift, filled in (
      (found.surrogate, 0.17, True),
      (found.response, -0.17, False),
    ):
      table = 100 * shares.table.set_index("factors").reindex(names)
      spread = np.abs(table[["low", "high"]].T - table.share)
      if filled:
        one.barh(y + shift, table.share, 0.34, color=color, alpha=0.35)
        top = max(top, float(table.high.max()))
      one.errorbar(
        table.share,
        y + shift,
        xerr=spread,
        fmt="none" if filled else "o",
        ms=3.2,
        mfc="white",
        mew=1,
        lw=1.1,
        capsize=1.8,
        color=color,
        label=f"of the {shares.of}",
      )
    name = f"{title}\n" if len(sets) > 1 else ""
    one.set_title(
      f"{name}hold-out MAE {found.surrogate.mae:.3f}, "
      f"$R^2$ {found.surrogate.r2:.2f}"
    )
    one.set_yticks(y, [symbol(name) for name in names])
    one.set(xlabel="share of the variance, %", ylim=(-0.6, len(names) - 0.4))
    one.grid(axis="x")
    one.tick_params(axis="y", length=0)
  axes[0, 0].set_xlim(0, 1.04 * top)
  _key(axes[0, -1])
  return figure


def _key(one: Any) -> None:
  from matplotlib.lines import Line2D
  from matplotlib.patches import Patch

  one.legend(
    [
      Patch(color="0.4", alpha=0.35),
      Line2D([], [], marker="o", mfc="white", ms=4, color="0.4"),
    ],
    ["of the surrogate", "of the response"],
    loc="lower right",
  )


def _ordered(sets: Sets, most: int) -> list[str]:
  """Components by their largest share in any set, main effects first."""
  top: dict[str, float] = {}
  for found in sets.values():
    for shares in (found.surrogate, found.response):
      for name, share in shares.table[["factors", "share"]].to_numpy():
        top[name] = max(top.get(name, 0.0), share)
  mains = [name for name in top if "*" not in name]
  rest = [name for name in top if "*" in name]
  by_share = sorted(rest, key=lambda name: -top[name])
  return (sorted(mains, key=lambda n: -top[n]) + by_share)[:most]


@styled
def interactions(sets: Sets) -> Figure:
  """Shares of interactions of two, of the surrogate and of the response."""
  figure, axes = panels(2, len(sets), 2.5)
  name_sets(axes, sets)
  tables = {
    (title, of): 100 * getattr(found, of).matrix()
    for title, found in sets.items()
    for of in ("surrogate", "response")
  }
  for (title, of), table in tables.items():
    one = axes[("surrogate", "response").index(of), list(sets).index(title)]
    values = table.to_numpy()
    shown = np.ma.masked_where(~np.tri(len(table), k=-1, dtype=bool), values)
    shown = shown[1:, :-1]
    image = one.imshow(shown, cmap="Blues", vmin=0, vmax=12)
    for (i, j), value in np.ndenumerate(shown):
      if j <= i:
        ink = "white" if value > 7 else "#171b21"
        one.text(j, i, f"{value:.1f}", ha="center", va="center", color=ink)
    names = [symbol(str(name)) for name in table.index]
    one.set_xticks(range(len(names) - 1), names[:-1])
    one.set_yticks(range(len(names) - 1), names[1:])
    one.tick_params(length=0)
    one.spines[:].set_visible(False)
    if title == next(iter(sets)):
      one.set_ylabel(f"of the {of}", fontsize=9)
  bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=40, extend="max")
  bar.set_label("share of the variance, %")
  bar.outline.set_visible(False)
  return figure


@styled
def ranks(sets: Sets) -> Figure:
  """Rank correlations with the accuracy, all sets beside each other."""
  names = [n for n in RANKS if any(n in f.ranks for f in sets.values())]
  figure, axes = grid(1, 1, 0.6 + 0.42 * len(names))
  one = axes[0, 0]
  y = np.arange(len(names))[::-1]
  shifts = 0.2 * (np.arange(len(sets))[::-1] - (len(sets) - 1) / 2)
  for (title, found), color, shift in zip(
    sets.items(), _colors(), shifts, strict=False
  ):
    none = (np.nan,) * 3
    values = np.array([found.ranks.get(name, none)[:3] for name in names])
    one.errorbar(
      values[:, 0],
      y + shift,
      xerr=np.abs(values[:, 1:].T - values[:, 0]),
      fmt="o",
      ms=4,
      lw=1.3,
      capsize=2,
      color=color,
      label=title,
    )
  one.axvspan(-0.1, 0.1, color="#f1f3f6", lw=0)
  one.axvline(0, color="0.5", lw=0.8)
  one.set_yticks(y, names)
  one.tick_params(axis="y", length=0, labelsize=8.5)
  one.set(xlim=(-1, 1), xlabel="Spearman's correlation with the accuracy")
  one.grid(axis="x")
  if len(sets) > 1:
    one.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
  return figure


def _colors() -> Sequence[str]:
  return COLORS * 4
