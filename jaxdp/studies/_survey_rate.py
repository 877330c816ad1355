"""Whether the clip norm matters but through the rate: section and figure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxdp.report import Section
from jaxdp.studies import _survey_words as words
from jaxdp.studies import analysis
from jaxdp.studies._laws import Factor
from jaxdp.studies._survey_findings import Findings
from jaxdp.studies._survey_style import COLORS, grid, label, styled

Sets = Mapping[str, Findings]
_BINS = 8


def section(sets: Sets) -> Section:
  """What C adds at a given rate, as numbers and to look at."""
  first = next(iter(sets.values()))
  rows = [["", *words.names(sets)]]
  for name in first.explained:
    values = (found.explained.get(name, np.nan) for found in sets.values())
    rows.append([f"R² of {name}", *(f"{value:.2f}" for value in values)])
  for name, text in (
    ("C beyond the rate", "C adds, at a given rate"),
    ("C beyond the rate, C small", "C adds, of the lower half of C"),
  ):
    numbers = [found.number(name) for found in sets.values()]
    rows.append([text, *(words.interval(number, 3) for number in numbers)])
  shares = (
    "Here lr is the rate, so that the shares of C and of its interactions say "
    "the same under the law of the factors."
    if first.rate == "lr"
    else "There are no functional ANOVA shares of rate and C: under the law of "
    "the runs the two are not independent, and under a law that makes them so "
    "there are points where no run can be."
  )
  return Section(
    title="Does the clip norm matter but through the rate?",
    texts=[
      f"The rate is {first.rate}: the learning rate in units of the noise. If "
      "gradients are longer than C, updates depend on C through the rate "
      "alone; where C is longer, they need not (how many gradients were "
      "clipped is not on record). R² is of smooth regressions "
      "(Gaussian processes), on runs held out, and what C adds at a given rate "
      "is the gain in R² when it joins rate, q and epochs. Below 0, it says "
      "less than it costs to learn; for the verdict, what it costs could hide "
      f"as much. {shares}"
    ],
    table=words.minus(rows),
    figure=figure(sets),
    caption="Left: accuracy over the rate; colour: rank of C, dark the "
    "smallest. Middle: what a regression on rate, q and epochs leaves over on "
    "runs held out, against C, with means of eight parts and their 95 % "
    "intervals; flat at 0 if C adds nothing. Right: accumulated local effect "
    "of C in forests that know it beside lr, or beside the rate, with 95 % "
    "intervals; as forests smooth, some of what the rate does is left to C.",
  )


@styled
def figure(sets: Sets) -> Figure:
  """Accuracy over rate, what is left over C, and C's local effect."""
  drawing, axes = grid(len(sets), 3, 2.3)
  for row, (title, found), color in zip(
    axes, sets.items(), COLORS * 4, strict=False
  ):
    _over_rate(row[0], found)
    _left_over(row[1], found, color)
    _effects(row[2], found, color)
    name = f"{title}\n" if len(sets) > 1 else ""
    row[0].set_ylabel(f"{name}scaled accuracy")
    for one in row:
      one.grid()
  return drawing


def _over_rate(one: Any, found: Findings) -> None:
  points = found.points
  one.scatter(
    points.rate,
    points.scaled,
    s=6,
    lw=0,
    c=points.C.rank(pct=True),
    cmap="viridis",
    rasterized=True,
  )
  one.set(xscale="log", xlabel=f"rate {found.rate}")


def _left_over(one: Any, found: Findings, color: str) -> None:
  points = found.points
  given = [n for n in ("rate", "q", "epochs") if n in points]
  left = analysis.residuals(points, given, context=found.context)
  one.scatter(points.C, left, s=4, lw=0, color="0.75", rasterized=True)
  parts = pd.qcut(points.C, _BINS, labels=False, duplicates="drop")
  groups = pd.DataFrame({"part": parts, "C": points.C, "left": left})
  means = groups.groupby("part").agg(
    C=("C", "median"), mean=("left", "mean"), error=("left", "sem")
  )
  one.errorbar(
    means.C,
    means["mean"],
    yerr=1.96 * means.error,
    fmt="o",
    ms=3.5,
    lw=1.2,
    capsize=2,
    color=color,
  )
  reach = max(np.quantile(np.abs(left), 0.98), 0.05)
  one.axhline(0, color="0.5", lw=0.8)
  one.set(ylim=(-reach, reach), ylabel="left over", xlabel=label("C"))
  if found.is_log("C"):
    one.set_xscale("log")


def _effects(one: Any, found: Findings, color: str) -> None:
  points = found.points
  ends = points.rate.min(), points.rate.max() * (1 + 1e-9)
  rate = Factor("rate", *ends, scale="log")
  others = [law for law in found.laws if law.name != "lr"]
  models = {"at a given rate": (color, "-")}
  if found.rate != "lr":
    models = {"at a given lr": ("0.45", "--"), **models}
  for name, (ink, style) in models.items():
    model = found.model
    if name == "at a given rate":
      model = analysis.surrogate(
        points, [rate, *others], context=found.context, num_trees=128
      )
    table = analysis.ale(model, points, "C", num_bins=20)
    one.plot(table.value, table.effect, style, color=ink, lw=1.4, label=name)
    one.fill_between(
      table.value, table.low, table.high, color=ink, alpha=0.18, lw=0
    )
  one.axhline(0, color="0.5", lw=0.8)
  one.set(xlabel=label("C"), ylabel="effect of C")
  if found.is_log("C"):
    one.set_xscale("log")
  one.legend(loc="best")
