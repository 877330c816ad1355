r"""What columns explain: R2 of smooth regressions on runs held out.

A forest is made for importances; where the response is smooth in the logarithms
of the factors, a Gaussian process predicts far better from a few hundred runs.
So this is what decides whether something is left to explain: ``gain`` is by
how much more columns raise R2,

.. math:: \psi = R^2(\text{given and columns}) - R^2(\text{given}).

With perfect regressions it is E Var(y | given) / Var(y) less the same with the
columns, under the law of the runs. No factors need be independent, so it can
ask whether C matters at a given lr C, where functional ANOVA cannot: of lr and
C on a square, no run has the largest C and the least lr C. With independent
factors it is the sum of the shares of all components that hold a column.

Each cell has a process of its own, with a Matern kernel (5/2), a length scale
for each column, and noise. The interval is a bootstrap of the runs, with the
predictions held.

References:
  Williamson et al. 2021, Biometrics 77(1), for the gain and its interval.
  Rasmussen and Williams 2006, chapters 4 and 5, for kernel and length scales.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxdp.studies.analysis._ridge import cells, with_rate
from jaxdp.studies.analysis._surrogate import folds, scaled

_FOLDS = 5
_LEAST = 15  # runs of a cell
_FEW = 300  # that length scales are fitted to
_MOST = 1500  # that one process is fitted to


class Gain(NamedTuple):
  """By how much columns raise the R2 of others."""

  mean: float
  low: float  # of the 95 % interval
  high: float
  r2: float  # with the columns
  num_runs: int


def residuals(
  runs: pd.DataFrame,
  columns: Sequence[str],
  response: str = "accuracy",
  *,
  context: Sequence[str] = (),
  seed: int = 0,
) -> np.ndarray:
  """The scaled response less its prediction, each run held out once.

  Args:
    runs: one row a run; those of one ``point`` are held out together.
    columns: numbers that the regression sees, on a log scale where all are
      positive; "rate" is lr C, see ``with_rate``.
    response: scaled to [0, 1] in each cell.
    context: columns whose combinations are cells.
    seed: of the folds.
  """
  y = scaled(runs, response, context)
  table = with_rate(runs) if "rate" in columns else runs
  x = table[list(columns)].to_numpy(float)
  positive = (x > 0).all(axis=0)
  x = np.where(positive, np.log(np.where(positive, x, 1.0)), x)
  rng = np.random.default_rng(seed)
  left = np.zeros(len(y))
  for cell in cells(runs.assign(row=np.arange(len(y))), context):
    mine = cell["row"].to_numpy()
    if len(mine) < _LEAST:
      raise ValueError(
        f"A cell has {len(mine)} runs, and a regression needs {_LEAST}. Give "
        "fewer columns of context."
      )
    left[mine] = _left_over(x[mine], y[mine], folds(cell, _FOLDS, rng), rng)
  return left


def _left_over(
  x: np.ndarray,
  y: np.ndarray,
  parts: Sequence[np.ndarray],
  rng: np.random.Generator,
) -> np.ndarray:
  """Of one cell. Length scales are fitted once, as they are few."""
  from sklearn.exceptions import ConvergenceWarning  # not needed to import us
  from sklearn.gaussian_process import GaussianProcessRegressor, kernels

  x = x / np.maximum(x.std(axis=0), 1e-12)
  kernel = kernels.ConstantKernel(1.0, (1e-2, 1e2)) * kernels.Matern(
    np.full(x.shape[1], 2.0), (0.1, 1e3), nu=2.5
  ) + kernels.WhiteKernel(0.1, (1e-5, 2.0))
  model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
  with warnings.catch_warnings():  # a column without effect: at its bound
    warnings.simplefilter("ignore", ConvergenceWarning)
    some = rng.permutation(len(y))[:_FEW]
    kernel = model.fit(x[some], y[some]).kernel_
  model = GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True)
  left = np.zeros(len(y))
  for part in parts:
    train = rng.permutation(np.delete(np.arange(len(y)), part))[:_MOST]
    left[part] = y[part] - model.fit(x[train], y[train]).predict(x[part])
  return left


def explained(
  runs: pd.DataFrame,
  columns: Sequence[str],
  response: str = "accuracy",
  *,
  context: Sequence[str] = (),
  seed: int = 0,
) -> float:
  """The R2 of the context and some columns, on runs held out.

  Arguments are those of ``residuals``. If what matters of lr and C is their
  product, "rate" explains as much as the two.
  """
  left = residuals(runs, columns, response, context=context, seed=seed)
  y = scaled(runs, response, context)
  return float(1 - np.mean(left**2) / y.var())


def gain(
  runs: pd.DataFrame,
  columns: Sequence[str],
  given: Sequence[str],
  response: str = "accuracy",
  *,
  context: Sequence[str] = (),
  num_bootstrap: int = 1000,
  seed: int = 0,
) -> Gain:
  """By how much columns raise the R2 of the context and given ones.

  Args:
    runs: see ``residuals``, like the other arguments.
    columns: that are added.
    given: that are known.
    response: as there.
    context: as there.
    num_bootstrap: resamplings of the runs.
    seed: of these, and of the folds.

  Returns:
    The gain with its 95 % interval. It is below 0 where the columns say
    nothing, for a regression with them has more to learn.
  """
  y = scaled(runs, response, context)
  one, more = (
    residuals(runs, names, response, context=context, seed=seed) ** 2
    for names in (given, [*given, *columns])
  )
  rng = np.random.default_rng(seed)

  def share(rows: np.ndarray) -> float:
    return (one[rows] - more[rows]).mean() / y[rows].var()

  draws = rng.integers(len(y), size=(num_bootstrap, len(y)))
  low, high = np.quantile([share(rows) for rows in draws], [0.025, 0.975])
  r2 = float(1 - more.mean() / y.var())
  return Gain(
    float(share(np.arange(len(y)))), float(low), float(high), r2, len(y)
  )
