"""Verdicts on what is said about DP-SGD's hyperparameters, by stated rules.

A conjecture is a statement on a number, and the number has a 95 % interval:
"supported" if the whole interval agrees, "not supported" if none of it does,
else "undecided". Confidence is "high", less one level for each of: the
surrogate's hold-out error is above its limit (where shares decide), fewer than
300 runs. What is undecided has low confidence.

A share matters from 0.02, and so does a gain in R2; a rank correlation from 0.1
on; lr C is constant on a ridge whose slope is nearer to -1 than to -1/2 or -2,
on a log scale.

The rate is lr C, the learning rate in units of the noise. If gradients are
longer than C, an update depends on C through the rate alone (METHODS:
"theory"): at a given rate, C must not help to predict, nor cost more to learn
than would matter, as that could hide its help. Runs of
``clipping.normalized`` state their ``rate``, which is lr itself; then the best
lr does not move with C, and the ridge has slope 0.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxdp.studies._summary import Interval
from jaxdp.studies.analysis._fanova import Fanova
from jaxdp.studies.analysis._ridge import (
  cells,
  rank_correlation,
  ridge,
)
from jaxdp.studies.analysis._smooth import Gain, gain

MATTERS = 0.02  # a share of the variance
CORRELATES = 0.1  # Spearman
INVERSE = (-(2**0.5), -(0.5**0.5))  # slopes
LEVEL = (-0.5, 0.5)
FEW = 300  # runs

_LEVELS = ("high", "medium", "low")


class Claim(NamedTuple):
  """A number that a conjecture says lies in a range."""

  conjecture: str
  evidence: str
  low: float  # the interval of the number
  high: float
  least: float  # the range
  most: float
  by_shares: bool
  number: str = ""  # its name
  value: Sequence[float] = (np.nan,) * 3  # with its interval

  @property
  def verdict(self) -> str:
    if self.low >= self.least and self.high <= self.most:
      return "supported"
    if self.high < self.least or self.low > self.most:
      return "not supported"
    return "undecided"


def verdicts(
  runs: pd.DataFrame,
  shares: Fanova,
  response: str = "accuracy",
  *,
  context: Sequence[str] = (),
  num_bootstrap: int = 1000,
  seed: int = 0,
) -> pd.DataFrame:
  """The conjectures that arXiv:2411.02051 tested, and our own, on these runs.

  Args:
    runs: with ``lr``, ``C``, ``epochs``, ``q``, ``batch_size`` and
      ``num_examples``; ``rate`` unless it is lr C.
    shares: of these runs, with main effects of ``lr``, ``C``, ``epochs`` and of
      ``q`` or ``batch_size``, and the interactions of two.
    response: by which runs are better.
    context: columns whose combinations are cells.
    num_bootstrap: resamplings, for the intervals of slopes and correlations.
    seed: of these.

  Returns:
    Rows of ``conjecture``, ``verdict``, ``evidence``, ``confidence``; and, if
    the evidence is a number that is no share, ``number`` (its name), ``value``,
    ``low`` and ``high``.
  """
  table = shares.table.set_index("factors")
  batch = "q" if "q" in table.index else "batch_size"
  needed = ["lr", "C", "epochs", batch]
  if absent := [name for name in needed if name not in table.index]:
    raise ValueError(
      f"shares have no main effect of {absent}; there are {list(table.index)}."
    )

  def rho(column: str, lowest_rate: bool = False) -> Interval:
    return rank_correlation(
      runs,
      column,
      response,
      context=context,
      lowest_rate=lowest_rate,
      num_bootstrap=num_bootstrap,
      seed=seed,
    )

  rate = rate_name(runs)
  slope = ridge(
    runs,
    response,
    context=context,
    orthogonal=rate == "lr C",
    num_bootstrap=num_bootstrap,
    seed=seed,
  )
  mains = table.loc[needed]
  claims = [
    _most(mains, [batch], "Batch size matters most."),
    _correlates("Larger batches are better.", "q", rho("q"), rho("q", True)),
    _interacts(table, batch, "epochs"),
    _correlates(
      "More epochs help.", "epochs", rho("epochs"), rho("epochs", True)
    ),
    _ridge(slope, rate),
    _correlates(
      f"Accuracy falls with {rate}.", "the rate", rho("rate"), sign=-1
    ),
    _most(mains, ["lr", "C"], "Learning rate and clip norm matter most."),
    _interacts(table, "lr", "C"),
    *(
      _collapses(
        through_rate(
          runs,
          response,
          small=small,
          context=context,
          num_bootstrap=num_bootstrap,
          seed=seed,
        ),
        small,
      )
      for small in (False, True)
    ),
  ]
  rows = [_row(claim, shares, len(runs)) for claim in claims]
  if {"batch_size", "num_examples"} <= set(runs.columns):
    rows.append([*confounding(runs), "", np.nan, np.nan, np.nan])
  columns = ["conjecture", "verdict", "evidence", "confidence"]
  columns += ["number", "value", "low", "high"]
  return pd.DataFrame(rows, columns=columns)


def rate_name(runs: pd.DataFrame) -> str:
  """What the rate is in these runs: "lr C" or "lr"."""
  itself = "rate" in runs and np.allclose(runs["rate"], runs["lr"])
  return "lr" if itself else "lr C"


def through_rate(
  runs: pd.DataFrame,
  response: str = "accuracy",
  *,
  small: bool = False,
  context: Sequence[str] = (),
  num_bootstrap: int = 1000,
  seed: int = 0,
) -> Gain:
  """What C adds to a prediction from the rate, q and epochs.

  The law is that of the runs. A product law of rate and C has points where no
  run can be, and there is no functional ANOVA under it, unless lr is the rate.

  Args:
    runs: with ``lr``, ``C``, ``q`` and ``epochs``; ``rate`` unless it is lr C.
    response: what is predicted.
    small: among the runs with C below the median of their cell only, where
      more gradients are clipped.
    context: columns whose combinations are cells.
    num_bootstrap: resamplings, for the interval.
    seed: of these.
  """
  if small:
    parts = cells(runs, context)
    runs = pd.concat([t[t["C"] <= t["C"].median()] for t in parts])
  given = [n for n in ("rate", "q", "epochs") if n == "rate" or _moves(runs, n)]
  return gain(
    runs,
    ["C"],
    given,
    response,
    context=context,
    num_bootstrap=num_bootstrap,
    seed=seed,
  )


def _moves(runs: pd.DataFrame, name: str) -> bool:
  return name in runs and runs[name].nunique() > 1


def confounding(runs: pd.DataFrame) -> list[str]:
  """Whether the batch size that is stated is the one that trained.

  Supported if q N is within 5 % of the batch size in 95 % of runs, and not
  supported if in less: this is a count, without an interval.
  """
  true = runs["q"] * runs["num_examples"] / runs["batch_size"]
  near = float((abs(true - 1) <= 0.05).mean())
  counts = [float(np.isclose(1 / runs["q"], k).mean()) for k in (2, 3, 4)]
  evidence = (
    f"q N is within 5 % of the batch size in {near:.0%} of runs; "
    f"{counts[0]:.0%} of runs trained at q = 1/2, {counts[1]:.0%} at 1/3, "
    f"{counts[2]:.0%} at 1/4; the ratio is between {true.min():.2f} and "
    f"{true.max():.2f}."
  )
  return [
    "The nominal batch size is the one that trained.",
    "supported" if near >= 0.95 else "not supported",
    evidence,
    "high",
  ]


def _row(claim: Claim, shares: Fanova, num_runs: int) -> list[Any]:
  doubts = int(num_runs < FEW)
  doubts += claim.by_shares and shares.warning is not None
  if claim.verdict == "undecided":
    doubts = 2
  return [
    claim.conjecture,
    claim.verdict,
    claim.evidence,
    _LEVELS[min(doubts, 2)],
    claim.number,
    *claim.value,
  ]


def _text(value: Sequence[float], digits: int = 2) -> str:
  # Without a minus sign at 0.
  mid, low, high = (round(float(x), digits) + 0.0 for x in value)
  return f"{mid:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _most(mains: pd.DataFrame, names: list[str], conjecture: str) -> Claim:
  """By how much the least of some shares exceeds the largest of the others."""
  mine, others = mains.loc[names], mains.drop(names)
  low = mine.low.min() - others.high.max()
  # Turned around, the claim fails as soon as one of them is below another.
  high = mine.high.min() - others.low.max()
  parts = [
    f"{n} {_text(mains.loc[n, ['share', 'low', 'high']])}" for n in mains.index
  ]
  return Claim(
    conjecture,
    f"main effects: {', '.join(parts)}",
    low,
    high,
    0.0,
    np.inf,
    by_shares=True,
  )


def _interacts(table: pd.DataFrame, first: str, second: str) -> Claim:
  name = next(
    (n for n in (f"{first}*{second}", f"{second}*{first}") if n in table.index),
    None,
  )
  if name is None:
    raise ValueError(f"shares have no interaction of {first} and {second}.")
  row = table.loc[name, ["share", "low", "high"]].astype(float)
  what = {"lr": "Learning rate", "C": "clip norm"}
  return Claim(
    f"{what.get(first, 'Batch size')} and {what.get(second, second)} interact.",
    f"share of {name}: {_text(row)}, {row.share:.1%} of the variance",
    row.low,
    row.high,
    MATTERS,
    np.inf,
    by_shares=True,
  )


def _correlates(
  conjecture: str,
  name: str,
  value: Interval,
  lowest: Interval | None = None,
  sign: int = 1,
) -> Claim:
  evidence = f"rank correlation with {name}: {_text(value[:3])}"
  if lowest is not None:
    evidence += f"; in the lowest quarter of rates {_text(lowest[:3])}"
  least, most = (CORRELATES, np.inf) if sign > 0 else (-np.inf, -CORRELATES)
  return Claim(
    conjecture,
    evidence,
    value.low,
    value.high,
    least,
    most,
    by_shares=False,
    number=f"rank correlation with {name}",
    value=value[:3],
  )


def _ridge(slope: Interval, rate: str) -> Claim:
  conjecture, (least, most) = {
    "lr C": (
      "Learning rate and clip norm are inversely related, lr C constant.",
      INVERSE,
    ),
    "lr": ("The best learning rate does not move with the clip norm.", LEVEL),
  }[rate]
  return Claim(
    conjecture,
    f"slope of log lr on log C among the best: {_text(slope[:3])} "
    f"({slope.num_seeds} runs)",
    slope.low,
    slope.high,
    least,
    most,
    by_shares=False,
    number="slope of the ridge" if rate == "lr C" else "slope of lr on C",
    value=slope[:3],
  )


def _collapses(found: Gain, small: bool) -> Claim:
  where = "Where it is small, the" if small else "The"
  return Claim(
    f"{where} clip norm matters only through the rate.",
    f"at a given rate C adds {_text(found[:3], 3)} to an R² of "
    f"{found.r2 - found.mean:.2f} ({found.num_runs} runs)",
    found.low,
    # Below 0 is what C costs to learn, and as much may be hidden by that.
    max(found.high, -found.low),
    -np.inf,
    MATTERS,
    by_shares=False,
    number="C beyond the rate" + ", C small" * small,
    value=found[:3],
  )
