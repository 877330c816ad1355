"""What the runs of a study say: choices, means and differences, with intervals.

Intervals are Student's, at 95 %, over seeds. A difference of arms is taken seed
by seed: both drew the same batches, noise and initial parameters.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jaxdp.studies._design import Run

Rows = Sequence[Mapping[str, Any]]  # of ``Results``


class Interval(NamedTuple):
  """A mean and its 95 % interval; infinitely wide for one value."""

  mean: float
  low: float
  high: float
  num_seeds: int


def interval(values: Iterable[float]) -> Interval:
  """Student's interval of a mean.

  Example:
    >>> [round(float(x), 3) for x in interval([0.7, 0.8, 0.9])]
    [0.8, 0.552, 1.048, 3.0]
  """
  x = np.asarray(list(values), float)
  if not len(x):
    raise ValueError("There is no run to take a mean of.")
  mean = float(x.mean())
  if len(x) == 1:
    return Interval(mean, -np.inf, np.inf, 1)
  half = stats.t.ppf(0.975, len(x) - 1) * stats.sem(x)
  return Interval(mean, float(mean - half), float(mean + half), len(x))


def difference(one: Interval, other: Interval) -> Interval:
  """By how much a number exceeds that of other, independent runs.

  Its interval is made from the two (Zou and Donner's MOVER).

  Example:
    >>> difference(Interval(5, 2, 9, 10), Interval(1, -3, 4, 10))
    Interval(mean=4.0, low=-0.242..., high=9.656..., num_seeds=20)
  """
  down = np.hypot(one.mean - one.low, other.high - other.mean)
  up = np.hypot(one.high - one.mean, other.mean - other.low)
  mean = float(one.mean - other.mean)
  count = one.num_seeds + other.num_seeds
  return Interval(mean, float(mean - down), float(mean + up), count)


def select(rows: Rows, **fields: Any) -> list[Mapping[str, Any]]:
  """The rows with these values."""
  return [
    row
    for row in rows
    if all(row[name] == value for name, value in fields.items())
  ]


def paired(rows: Rows, others: Rows, metric: str = "test_accuracy") -> Interval:
  """By how much ``rows`` exceed ``others``, seed by seed.

  Raises:
    ValueError: they share no seed, or one of them has a seed twice.
  """
  by_seed = [
    {row["seed"]: row[metric] for row in part} for part in (rows, others)
  ]
  if any(
    len(table) != len(part)
    for table, part in zip(by_seed, (rows, others), strict=True)
  ):
    raise ValueError("A seed is there twice: give the runs of one arm.")
  shared = sorted(by_seed[0].keys() & by_seed[1].keys())
  if not shared:
    raise ValueError("The arms share no seed.")
  return interval(by_seed[0][seed] - by_seed[1][seed] for seed in shared)


def chosen(rows: Rows) -> dict[tuple[str, str], Run]:
  """The best tuning run of every (setting, arm), by validation accuracy.

  The mean over tuning seeds decides; a run that diverged to NaN is the worst.
  """
  values: dict[tuple, list[float]] = {}
  runs: dict[tuple, Run] = {}
  for row in select(rows, stage="tuning"):
    run = Run(**{name: row[name] for name in Run.__dataclass_fields__})
    place = (run.setting, run.arm, run.rate, str(sorted(run.overrides.items())))
    values.setdefault(place, []).append(row["validation_accuracy"])
    runs[place] = run
  best: dict[tuple[str, str], tuple[float, Run]] = {}
  for place, run in runs.items():
    score = float(np.mean(np.nan_to_num(values[place], nan=-1.0)))
    arm = place[:2]
    if arm not in best or score > best[arm][0]:
      best[arm] = score, run
  return {arm: run for arm, (_, run) in best.items()}


class Summary(NamedTuple):
  """What one arm came to in one setting."""

  rate: float
  overrides: Mapping[str, Any]
  accuracy: Interval
  difference: Interval | None  # to the reference; None for itself


def summarize(
  rows: Rows, setting: str, arm: str, reference: str
) -> Summary | None:
  """Accuracy of an arm, and its difference to another; None without runs.

  Args:
    rows: of ``Results``.
    setting: in which both are.
    arm: whose evaluation is looked at.
    reference: the arm that others are compared with.
  """
  mine, theirs = (
    select(rows, stage="evaluation", setting=setting, arm=name)
    for name in (arm, reference)
  )
  if not mine:
    return None
  return Summary(
    mine[0]["rate"],
    mine[0]["overrides"],
    interval(row["test_accuracy"] for row in mine),
    paired(mine, theirs) if theirs and arm != reference else None,
  )
