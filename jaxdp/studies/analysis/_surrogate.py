"""What studies fit to their runs: extremely randomised trees on all factors.

The published protocol: the response scaled to [0, 1] within each cell of the
context, 512 trees, 4 columns a split, leaves of one run, no bootstrap.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxdp.studies._laws import Choice, Factor, Sample
from jaxdp.studies.analysis import _axes

NUM_TREES = 512
MAX_FEATURES = 4


def scaled(
  runs: pd.DataFrame, response: str, context: Sequence[str]
) -> np.ndarray:
  """(y - min) / (max - min) within each cell of the context.

  Raises:
    ValueError: a value is not finite, or all of a cell are equal.
  """
  y = runs[response].astype(float)
  if not np.isfinite(y).all():
    raise ValueError(
      f"{(~np.isfinite(y)).sum()} runs have no finite {response}. A run that "
      "diverged is an outcome: give it the accuracy of chance."
    )
  cells = y.groupby([runs[name] for name in context] or np.zeros(len(y)))
  low, high = cells.transform("min"), cells.transform("max")
  if (low == high).any():
    raise ValueError(f"In some cell of {list(context)} all {response} agree.")
  return ((y - low) / (high - low)).to_numpy()


def space(
  runs: pd.DataFrame,
  factors: Sequence[Factor | Choice | Sample],
  context: Sequence[str],
  num_cells: int = 32,
) -> list[_axes.Axis]:
  """An axis for each factor, and one for the context if it varies."""
  axes: list[_axes.Axis] = [
    _axes.Category.of(law.name, [law.name], runs, law)
    if isinstance(law, Choice)
    else _axes.Number(law, num_cells)
    for law in factors
  ]
  if context and len(runs[list(context)].drop_duplicates()) > 1:
    axes.append(_axes.Category.of("context", context, runs))
  return axes


def folds(
  runs: pd.DataFrame, num_folds: int, rng: np.random.Generator
) -> list[np.ndarray]:
  """Rows by fold; runs of one point in one."""
  points = runs["point"] if "point" in runs else np.arange(len(runs))
  codes, unique = pd.factorize(points)
  fold = rng.permutation(len(unique)) % num_folds
  return [np.flatnonzero(fold[codes] == k) for k in range(num_folds)]


def fit_forest(
  x: np.ndarray,
  y: np.ndarray,
  num_trees: int,
  max_features: int,
  rng: np.random.Generator,
) -> Any:
  """Extremely randomised trees on [rows, columns]."""
  from sklearn.ensemble import ExtraTreesRegressor  # not needed to import us

  return ExtraTreesRegressor(
    num_trees,
    max_features=min(max_features, x.shape[1]),
    random_state=int(rng.integers(2**31)),
    n_jobs=1,
  ).fit(x, y)


def surrogate(
  runs: pd.DataFrame,
  factors: Sequence[Factor | Choice | Sample],
  response: str = "accuracy",
  *,
  context: Sequence[str] = (),
  num_trees: int = NUM_TREES,
  max_features: int = MAX_FEATURES,
  seed: int = 0,
) -> Callable[[pd.DataFrame], np.ndarray]:
  """The response, scaled to [0, 1] in each cell, as a function of a table.

  Args:
    runs: one row a run.
    factors: on whose scales the trees split.
    response: the column that is predicted.
    context: columns whose combinations are cells; the forest knows them.
    num_trees: of the forest.
    max_features: columns that a split chooses from.
    seed: of the forest.

  Returns:
    For ``ice``, ``pdp`` and ``ale``: tables with the columns of the factors and
    of the context to predictions.
  """
  axes = space(runs, factors, context)

  def encode(table: pd.DataFrame) -> np.ndarray:
    return np.concatenate([axis.encode(table) for axis in axes], axis=1)

  rng = np.random.default_rng(seed)
  y = scaled(runs, response, context)
  forest = fit_forest(encode(runs), y, num_trees, max_features, rng)
  return lambda table: forest.predict(encode(table))
