"""Verdicts on what is said about DP-SGD's hyperparameters, by stated rules.

A conjecture is a statement on a number, and the number has a 95 % interval:
"supported" if the whole interval agrees, "not supported" if none of it does,
else "undecided". Confidence is "high", less one level for each of: the
surrogate's hold-out error is above its limit (where shares decide), fewer than
300 runs. What is undecided has low confidence.

A share matters from 0.02, a rank correlation from 0.1 on; lr C is constant on a
ridge whose slope is nearer to -1 than to -1/2 or -2, on a log scale.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxdp.studies._summary import Interval
from jaxdp.studies.analysis._fanova import Fanova
from jaxdp.studies.analysis._ridge import rank_correlation, ridge

MATTERS = 0.02  # a share of the variance
CORRELATES = 0.1  # Spearman
INVERSE = (-(2**0.5), -(0.5**0.5))  # slopes
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
  """The conjectures that arXiv:2411.02051 tested, on these runs.

  Args:
    runs: with ``lr``, ``C``, ``epochs``, ``q``, ``batch_size`` and
      ``num_examples``.
    shares: of these runs, with main effects of ``lr``, ``C``, ``epochs`` and of
      ``q`` or ``batch_size``, and the interactions of two.
    response: by which runs are better.
    context: columns whose combinations are cells.
    num_bootstrap: resamplings, for the intervals of slopes and correlations.
    seed: of these.

  Returns:
    Rows of ``conjecture``, ``verdict``, ``evidence``, ``confidence``.
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

  mains = table.loc[needed]
  claims = [
    _most(mains, [batch], "Batch size matters most."),
    _correlates("Larger batches are better.", "q", rho("q"), rho("q", True)),
    _interacts(table, batch, "epochs"),
    _correlates(
      "More epochs help.", "epochs", rho("epochs"), rho("epochs", True)
    ),
    _ridge(
      ridge(
        runs, response, context=context, num_bootstrap=num_bootstrap, seed=seed
      )
    ),
    _correlates("Accuracy falls with lr C.", "lr C", rho("lr*C"), sign=-1),
    _most(mains, ["lr", "C"], "Learning rate and clip norm matter most."),
    _interacts(table, "lr", "C"),
  ]
  rows = [_row(claim, shares, len(runs)) for claim in claims]
  if {"batch_size", "num_examples"} <= set(runs.columns):
    rows.append(confounding(runs))
  columns = ["conjecture", "verdict", "evidence", "confidence"]
  return pd.DataFrame(rows, columns=columns)


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


def _row(claim: Claim, shares: Fanova, num_runs: int) -> list[str]:
  doubts = int(num_runs < FEW)
  doubts += claim.by_shares and shares.warning is not None
  if claim.verdict == "undecided":
    doubts = 2
  return [
    claim.conjecture,
    claim.verdict,
    claim.evidence,
    _LEVELS[min(doubts, 2)],
  ]


def _text(value: Sequence[float]) -> str:
  mid, low, high = value
  return f"{mid:.2f} [{low:.2f}, {high:.2f}]"


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
    evidence += f"; in the lowest quarter of lr C {_text(lowest[:3])}"
  low, high = sorted((sign * value.low, sign * value.high))
  return Claim(
    conjecture, evidence, low, high, CORRELATES, np.inf, by_shares=False
  )


def _ridge(slope: Interval) -> Claim:
  return Claim(
    "Learning rate and clip norm are inversely related, lr C constant.",
    f"slope of log lr on log C among the best: {_text(slope[:3])} "
    f"({slope.num_seeds} runs)",
    slope.low,
    slope.high,
    *INVERSE,
    by_shares=False,
  )
