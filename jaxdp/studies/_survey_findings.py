"""What the runs of a survey say: everything a page and its files show.

A survey has one table of runs a *set*, such as images and texts, that are
looked at apart. ``find`` makes all statistics of one of them.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxdp.studies import analysis
from jaxdp.studies._laws import Choice, Factor, Sample
from jaxdp.studies._summary import Interval

Laws = Sequence[Factor | Choice | Sample]

RANKS = {  # name: column, and whether in the lowest quarter of rates only
  "rate": ("rate", False),
  "q": ("q", False),
  "epochs": ("epochs", False),
  "q, rate small": ("q", True),
  "epochs, rate small": ("epochs", True),
}
_EXPLAINED = (
  ("rate",),
  ("lr", "C"),
  ("rate", "q", "epochs"),
  ("lr", "C", "q", "epochs"),
)
_LEAST = 50  # runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
  """Statistics of one set of runs.

  Attributes:
    runs: all of them, of which is ``noise``.
    points: the first run of each point, of which is all else; with ``scaled``,
      the accuracy scaled to [0, 1] in each cell, and ``rate`` if there is one.
    laws: of the factors.
    context: the columns whose combinations are cells.
    constant: further columns of the context that take one value here.
    num_diverged: runs, which count with the least accuracy of their cell.
    surrogate: shares of the surrogate's variance, the published protocol.
    response: shares of the response's.
    verdicts: by ``response``; without rows if ``note`` says why.
    note: why there are none.
    ridge: the slope of log lr on log C among the best runs.
    ranks: rank correlations with the accuracy, by the names of ``RANKS``.
    explained: the cross-validated R2 of the context and some columns.
    noise: from repeated seeds; None without.
    model: of tables to the scaled accuracy.
  """

  runs: pd.DataFrame
  points: pd.DataFrame
  laws: Laws
  context: Sequence[str]
  constant: Sequence[str]
  num_diverged: int
  surrogate: analysis.Fanova
  response: analysis.Fanova
  verdicts: pd.DataFrame
  note: str
  ridge: Interval | None
  ranks: dict[str, Interval]
  explained: dict[str, float]
  noise: analysis.NoiseFloor | None
  model: Callable[[pd.DataFrame], np.ndarray]

  @property
  def numbers(self) -> list[str]:
    """The factors that are numbers."""
    return [law.name for law in self.laws if not isinstance(law, Choice)]

  def is_log(self, name: str) -> bool:
    """Whether a column's law is uniform on a log scale."""
    return any(
      law.name == name and isinstance(law, Factor) and law.scale == "log"
      for law in self.laws
    )

  @property
  def rate(self) -> str:
    """What the rate is: lr·C, or lr."""
    return analysis.rate_name(self.points).replace(" ", "·")

  def number(self, name: str) -> Interval | None:
    """One that a verdict was made of, by its name; None without."""
    if "number" not in self.verdicts:
      return None
    rows = self.verdicts[self.verdicts.number == name]
    for value, low, high in rows[["value", "low", "high"]].to_numpy():
      return Interval(value, low, high, len(self.points))
    return None

  def partner(self, name: str) -> str:
    """The factor that interacts most with this one."""
    shares = self.surrogate.matrix().loc[name].drop(name)
    return str(shares[[n for n in shares.index if n in self.numbers]].idxmax())


def find(
  runs: pd.DataFrame,
  laws: Laws,
  context: Sequence[str],
  *,
  num_trees: int = 128,
  num_refits: int = 20,
  num_bootstrap: int = 1000,
  seed: int = 0,
) -> Findings:
  """All statistics of a table of runs.

  Args:
    runs: one row a run, with the columns of factors and context, ``accuracy``,
      and for the ridge ``lr`` and ``C``.
    laws: of the factors.
    context: columns whose combinations are cells; those with one value are
      left out.
    num_trees: of each forest.
    num_refits: for intervals of the surrogate's shares.
    num_bootstrap: resamplings, for all other intervals.
    seed: determines all.
  """
  if len(runs) < _LEAST:
    raise ValueError(
      f"{len(runs)} runs are too few for a report: it needs {_LEAST} a set."
    )
  constant = [name for name in context if runs[name].nunique() == 1]
  context = [name for name in context if name not in constant]
  runs, num_diverged = _with_outcomes(runs, context)
  noise_floor = None
  if "point" in runs and runs["point"].duplicated().any():
    noise_floor = analysis.noise_floor(runs, context=context, seed=seed)
  points = runs.drop_duplicates("point") if "point" in runs else runs
  points = points.reset_index(drop=True)
  points = points.assign(scaled=analysis.scaled(points, "accuracy", context))
  if {"lr", "C"} <= {*points}:
    points = analysis.with_rate(points)
  names = [law.name for law in laws] + ["context"] * bool(context)
  effects = names + [
    "*".join(pair) for pair in itertools.combinations(names, 2)
  ]
  if context and {"lr", "C"} <= set(names):
    effects.append("lr*C*context")

  def shares(of: str) -> analysis.Fanova:
    with warnings.catch_warnings():  # the page shows it
      warnings.filterwarnings("ignore", "The surrogate's hold-out error")
      return analysis.fanova(
        points,
        laws,
        context=context,
        effects=effects,
        of=of,
        num_trees=num_trees,
        num_refits=num_refits,
        num_bootstrap=num_bootstrap,
        seed=seed,
      )

  response = shares("response")
  note, ridge = "", None
  verdicts = pd.DataFrame()
  draws: dict[str, Any] = {
    "context": context,
    "num_bootstrap": num_bootstrap,
    "seed": seed,
  }
  ranks: dict[str, Interval] = {}
  explained: dict[str, float] = {}
  # A factor that is constant in a small cell has no rank correlation there.
  with np.errstate(invalid="ignore", divide="ignore"):
    ranks = {
      name: analysis.rank_correlation(points, column, lowest_rate=low, **draws)
      for name, (column, low) in RANKS.items()
      if {column, "rate"} <= {*points}
    }
    try:
      flat = analysis.rate_name(points) == "lr C"
      ridge = analysis.ridge(points, orthogonal=flat, **draws)
      explained = {
        ", ".join(["context"] * bool(context) + list(columns)): (
          analysis.explained(points, columns, context=context, seed=seed)
        )
        for columns in _EXPLAINED
        if {*columns} <= {*points}
      }
      verdicts = analysis.verdicts(points, response, **draws)
    except (KeyError, ValueError) as error:
      note = f"There are no verdicts: {error}"
  return Findings(
    runs=runs,
    points=points,
    laws=laws,
    context=context,
    constant=constant,
    num_diverged=num_diverged,
    surrogate=shares("surrogate"),
    response=response,
    verdicts=verdicts,
    note=note,
    ridge=ridge,
    ranks={k: v for k, v in ranks.items() if np.isfinite(v[:3]).all()},
    explained=explained,
    noise=noise_floor,
    model=analysis.surrogate(
      points, laws, context=context, num_trees=num_trees, seed=seed
    ),
  )


def _with_outcomes(
  runs: pd.DataFrame, context: Sequence[str]
) -> tuple[pd.DataFrame, int]:
  """Runs that diverged get the least accuracy of their cell."""
  bad = ~np.isfinite(runs["accuracy"].astype(float))
  if "diverged" in runs:
    bad |= runs["diverged"].astype(bool)
  if not bad.any():
    return runs.reset_index(drop=True), 0
  known = runs["accuracy"].astype(float).where(np.isfinite(runs["accuracy"]))
  cells = [runs[name] for name in context] or np.zeros(len(runs))
  least = known.groupby(cells).transform("min")
  filled = runs.assign(accuracy=known.where(~bad, least))
  return filled.reset_index(drop=True), int(bad.sum())
