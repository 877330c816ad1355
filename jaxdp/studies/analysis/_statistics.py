"""Differences of arms over seeds, and how much of a result is the seed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from jaxdp.studies._summary import paired
from jaxdp.studies.analysis._surrogate import scaled


def holm(p_values: Sequence[float]) -> np.ndarray:
  """P values corrected for their number: Holm's step-down.

  Guarantees:
    Rejecting those below alpha makes one false rejection or more with
    probability at most alpha, however the tests depend on each other.

  Example:
    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]

  References:
    Holm 1979, Scand. J. Statistics 6(2).
  """
  p = np.asarray(p_values, float)
  order = np.argsort(p)
  steps = p[order] * np.arange(len(p), 0, -1)
  corrected = np.empty_like(p)
  corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
  return corrected


def compare(
  runs: pd.DataFrame,
  arm: str,
  reference: object,
  response: str = "accuracy",
) -> pd.DataFrame:
  """Every arm against one, seed by seed, corrected for their number.

  Args:
    runs: with a column ``seed``, each once an arm.
    arm: the column that names the arms.
    reference: the arm that the others are compared with.
    response: what is compared.

  Returns:
    Rows of ``arm``, ``difference``, ``low``, ``high`` (Student's 95 % interval
    of one comparison), ``num_seeds``, ``p`` (two-sided paired t test), and
    ``p_holm``. One seed shows nothing: p is 1.
  """
  arms = {name: part.to_dict("records") for name, part in runs.groupby(arm)}
  if reference not in arms:
    raise ValueError(f"reference must be one of {list(arms)}, got {reference}.")
  theirs = arms.pop(reference)
  rows = []
  for name, mine in arms.items():
    value = paired(mine, theirs, response)
    p = 1.0
    if value.num_seeds > 1:
      half = (value.high - value.low) / 2
      scale = stats.t.ppf(0.975, value.num_seeds - 1)
      t = np.divide(value.mean * scale, half) if half else np.inf * value.mean
      # Equal in every seed: no difference.
      p = 2 * stats.t.sf(abs(t), value.num_seeds - 1) if value.mean else 1.0
    rows.append([name, *value, p])
  columns = [arm, "difference", "low", "high", "num_seeds", "p"]
  table = pd.DataFrame(rows, columns=columns)
  return table.assign(p_holm=holm(table.p))


class NoiseFloor(NamedTuple):
  """What repeated seeds say."""

  stddev: float  # of the response between seeds, pooled over points
  share: float  # of the variance of the scaled response that is seed noise
  low: float
  high: float
  num_points: int  # that were repeated
  num_runs: int  # of these


def noise_floor(
  runs: pd.DataFrame,
  response: str = "accuracy",
  *,
  context: Sequence[str] = (),
  num_bootstrap: int = 1000,
  seed: int = 0,
) -> NoiseFloor:
  """How much of the response is the seed, from points run repeatedly.

  Args:
    runs: with ``point``, equal for runs that differ in their seed alone.
    response: of which the variance is taken.
    context: within whose cells it is scaled to [0, 1] for ``share``, as in
      ``fanova``.
    num_bootstrap: resamplings of the points, for the interval of ``share``.
    seed: of these.
  """
  table = runs.assign(y=scaled(runs, response, context))
  groups = table.groupby("point")
  sizes = groups.size().to_numpy()
  if (sizes < 2).all():
    raise ValueError("No point was repeated: see design.repeat_seeds.")
  within, raw = (
    groups[name].var().fillna(0).to_numpy() * (sizes - 1)
    for name in ("y", response)
  )
  free = sizes - 1
  first = groups["y"].first().to_numpy()
  rng = np.random.default_rng(seed)
  repeated = np.flatnonzero(free)

  def share(rows: np.ndarray, points: np.ndarray) -> float:
    return within[rows].sum() / free[rows].sum() / first[points].var(ddof=1)

  again = [
    share(
      rng.choice(repeated, len(repeated)),
      rng.integers(len(first), size=len(first)),
    )
    for _ in range(num_bootstrap)
  ]
  low, high = np.quantile(again, [0.025, 0.975])
  return NoiseFloor(
    stddev=float(np.sqrt(raw.sum() / free.sum())),
    share=float(share(repeated, np.arange(len(first)))),
    low=float(low),
    high=float(high),
    num_points=len(repeated),
    num_runs=int(sizes[repeated].sum()),
  )
