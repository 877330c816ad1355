r"""The ridge of learning rate and clip norm, and rank correlations.

If a clip norm clips every unit, an update depends on lr C alone, and the best
runs lie on a line log lr = a - log C: slope -1 (METHODS: "theory"). The slope
is that of orthogonal regression, since neither of the two is the cause of the
other: a regression of log lr on log C would be flatter for no reason but the
width of the ridge.
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
  num_bootstrap: int = 1000,
  seed: int = 0,
) -> Interval:
  """The slope of log lr on log C among each cell's best runs.

  Args:
    runs: with ``lr`` and ``C``.
    response: by which runs are best.
    context: columns whose combinations are cells.
    top: the share of a cell's runs that counts as best.
    num_bootstrap: resamplings of the runs within cells.
    seed: of these.

  Returns:
    The median over cells of the orthogonal slope, with the bootstrap's 95 %
    interval, and the number of best runs.
  """
  parts = [
    np.log(part[["C", "lr"]].to_numpy(float))
    for part in (best(cell, response, top) for cell in _cells(runs, context))
  ]
  if min(map(len, parts)) < 3:
    raise ValueError(
      f"A cell has {min(map(len, parts))} runs in its best {top:.0%}, and a "
      "slope needs three. Raise top, or give fewer columns of context."
    )
  tables = [
    cell[["C", "lr", response]].to_numpy(float)
    for cell in _cells(runs, context)
  ]

  def again(rng: np.random.Generator) -> float:
    slopes = []
    for table in tables:
      drawn = table[rng.integers(len(table), size=len(table))]
      keep = drawn[:, 2] >= np.quantile(drawn[:, 2], 1 - top)
      slopes.append(_slope(np.log(drawn[keep, :2])))
    return float(np.median(slopes))

  low, high = _quantiles(again, num_bootstrap, seed)
  slope = float(np.median([_slope(part) for part in parts]))
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
    column: such as "epochs"; "lr*C" is the product.
    response: the other variable.
    context: columns whose combinations are cells.
    lowest_rate: among the runs in the lowest quarter of lr C of their cell
      only, where training does not diverge.
    num_bootstrap: resamplings of the runs within cells.
    seed: of these.

  Returns:
    The median, its bootstrap's 95 % interval, and the number of runs.
  """
  tables = []
  for cell in _cells(runs.assign(**{"lr*C": runs["lr"] * runs["C"]}), context):
    if lowest_rate:
      cell = cell[cell["lr*C"].rank(pct=True) <= _LOWEST]
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


def explained(
  runs: pd.DataFrame,
  columns: Sequence[str],
  response: str = "accuracy",
  *,
  context: Sequence[str] = (),
  num_trees: int = 128,
  seed: int = 0,
) -> float:
  """The cross-validated R2 of the context and some columns.

  Columns are of the runs, or "lr*C", the product. If what matters of lr and C
  is their product, it explains as much as the two.

  Args:
    runs: one row a run.
    columns: what the surrogate sees, on a log scale where all are positive.
    response: scaled to [0, 1] in each cell.
    context: columns whose combinations are cells.
    num_trees: of the surrogate.
    seed: of folds and trees.
  """
  from jaxdp.studies.analysis import _surrogate

  runs = runs.assign(**{"lr*C": runs["lr"] * runs["C"]})
  axes = _surrogate.space(runs, (), context)
  numbers = runs[list(columns)].to_numpy(float)
  numbers = np.where(
    (numbers > 0).all(axis=0), np.log(np.abs(numbers)), numbers
  )
  x = np.concatenate([numbers, *(axis.encode(runs) for axis in axes)], axis=1)
  y = _surrogate.scaled(runs, response, context)
  rng = np.random.default_rng(seed)
  error = np.zeros(len(y))
  for part in _surrogate.folds(runs, 5, rng):
    forest = _surrogate.fit_forest(
      np.delete(x, part, 0), np.delete(y, part), num_trees, x.shape[1], rng
    )
    error[part] = y[part] - forest.predict(x[part])
  return float(1 - np.mean(error**2) / y.var())


def _cells(runs: pd.DataFrame, context: Sequence[str]) -> list[pd.DataFrame]:
  if not context:
    return [runs]
  return [cell for _, cell in runs.groupby(list(context))]


def _slope(points: np.ndarray) -> float:
  """Of the first principal axis of [points, 2]."""
  _, vectors = np.linalg.eigh(np.cov(points.T))
  x, y = vectors[:, 1]
  return float(y / x) if x else np.inf


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
