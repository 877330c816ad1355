r"""The ridge of learning rate and clip norm, and rank correlations.

If a clip norm clips every unit, an update depends on lr C alone, and the best
runs lie on a line log lr = a - log C: slope -1 (METHODS: "theory"). The slope
is that of orthogonal regression, since neither of the two is the cause of the
other: a regression of log lr on log C would be flatter for no reason but the
width of the ridge. But where lr is the rate (``clipping.normalized``) the best
lr should not move with C at all; then least squares is the right thing, since
the axis of a round cloud may point anywhere.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from jaxdp.studies._summary import Interval

TOP = 0.1  # the share of runs that make the ridge
_LOWEST = 0.25


def ridge(
  runs: pd.DataFrame,
  response: str = "accuracy",
  *,
  context: Sequence[str] = (),
  top: float = TOP,
  orthogonal: bool = True,
  num_bootstrap: int = 1000,
  seed: int = 0,
) -> Interval:
  """The slope of log lr on log C among each cell's best runs.

  Args:
    runs: with ``lr`` and ``C``.
    response: by which runs are best.
    context: columns whose combinations are cells.
    top: the share of a cell's runs that counts as best.
    orthogonal: the slope of the first principal axis; else of least squares.
    num_bootstrap: resamplings of the runs within cells.
    seed: of these.

  Returns:
    The median over cells of the slope, with the bootstrap's 95 %
    interval, and the number of best runs.
  """
  parts = [
    np.log(part[["C", "lr"]].to_numpy(float))
    for part in (best(cell, response, top) for cell in cells(runs, context))
  ]
  if min(map(len, parts)) < 3:
    raise ValueError(
      f"A cell has {min(map(len, parts))} runs in its best {top:.0%}, and a "
      "slope needs three. Raise top, or give fewer columns of context."
    )
  tables = [
    cell[["C", "lr", response]].to_numpy(float) for cell in cells(runs, context)
  ]

  slope_of = _slope if orthogonal else _least_squares

  def again(rng: np.random.Generator) -> float:
    slopes = []
    for table in tables:
      drawn = table[rng.integers(len(table), size=len(table))]
      keep = drawn[:, 2] >= np.quantile(drawn[:, 2], 1 - top)
      slopes.append(slope_of(np.log(drawn[keep, :2])))
    return float(np.median(slopes))

  low, high = _quantiles(again, num_bootstrap, seed)
  slope = float(np.median([slope_of(part) for part in parts]))
  return Interval(slope, low, high, sum(map(len, parts)))


def best(cell: pd.DataFrame, response: str, top: float = TOP) -> pd.DataFrame:
  """The runs of a cell from its quantile 1 - top upwards."""
  return cell[cell[response] >= cell[response].quantile(1 - top)]


def rank_correlation(
  runs: pd.DataFrame,
  column: str,
  response: str = "accuracy",
  *,
  context: Sequence[str] = (),
  lowest_rate: bool = False,
  num_bootstrap: int = 1000,
  seed: int = 0,
) -> Interval:
  """Spearman's correlation with the response, the median over cells.

  Args:
    runs: one row a run.
    column: such as "epochs"; "rate" is lr C, see ``with_rate``.
    response: the other variable.
    context: columns whose combinations are cells.
    lowest_rate: among the runs in the lowest quarter of rates of their cell
      only, where training does not diverge.
    num_bootstrap: resamplings of the runs within cells.
    seed: of these.

  Returns:
    The median, its bootstrap's 95 % interval, and the number of runs.
  """
  tables = []
  for cell in cells(with_rate(runs), context):
    if lowest_rate:
      cell = cell[cell["rate"].rank(pct=True) <= _LOWEST]
    tables.append(cell[[column, response]].to_numpy(float))

  def again(rng: np.random.Generator) -> float:
    return float(
      np.median(
        [_spearman(t[rng.integers(len(t), size=len(t))]) for t in tables]
      )
    )

  value = float(np.median([_spearman(table) for table in tables]))
  low, high = _quantiles(again, num_bootstrap, seed)
  return Interval(value, low, high, sum(map(len, tables)))


def with_rate(runs: pd.DataFrame) -> pd.DataFrame:
  """Runs with their ``rate``: lr C, unless they state it.

  Under ``clipping.normalized`` they do, since lr itself is the rate there.
  """
  return runs if "rate" in runs else runs.assign(rate=runs["lr"] * runs["C"])


def cells(runs: pd.DataFrame, context: Sequence[str]) -> list[pd.DataFrame]:
  """The runs by cell."""
  if not context:
    return [runs]
  return [cell for _, cell in runs.groupby(list(context))]


def _slope(points: np.ndarray) -> float:
  """Of the first principal axis of [points, 2]."""
  _, vectors = np.linalg.eigh(np.cov(points.T))
  x, y = vectors[:, 1]
  return float(y / x) if x else np.inf


def _least_squares(points: np.ndarray) -> float:
  x, y = points.T
  return float(np.cov(x, y)[0, 1] / max(np.var(x, ddof=1), 1e-300))


def _spearman(table: np.ndarray) -> float:
  x, y = (rank(column) for column in table.T)
  return float(np.corrcoef(x, y)[0, 1])


def rank(values: np.ndarray) -> np.ndarray:
  """Ranks, ties at their mean."""
  _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[index]


def _quantiles(
  again: Callable[[np.random.Generator], float], num: int, seed: int
) -> tuple[float, float]:
  rng = np.random.default_rng(seed)
  low, high = np.quantile([again(rng) for _ in range(num)], [0.025, 0.975])
  return float(low), float(high)
