"""How a model's response moves with a factor: ICE, partial dependence, ALE.

``ice`` and ``pdp`` change a factor and hold the others as they are in each run,
whether or not such runs exist: with correlated factors they read the model
where it never saw data. ``ale`` (accumulated local effects) changes it within
the runs' own small interval only, and adds the differences up, so it stays
where data is and gives an additive function's effect whatever the correlation.

A model is a fitted scikit-learn regressor or any function of a table, such as
``surrogate``'s. Intervals are 95 % bootstraps over runs. With the model held
(the default) they cover that model's effect in the law of the runs; with
``refit`` they also hold what another draw of runs would have taught it. Neither
knows of a bias that the model always has.

References:
  Goldstein et al. 2015, J. Comp. Graph. Stat. 24(1), for ICE.
  Friedman 2001, Annals of Statistics 29(5), for partial dependence.
  Apley and Zhu 2020, J. R. Stat. Soc. B 82(4), for ALE; equations 15 and 16.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage

Refit = Callable[[pd.DataFrame], Any]  # runs -> model


class Curves(NamedTuple):
  """One curve a run."""

  grid: np.ndarray  # shape=(points,)
  values: np.ndarray  # shape=(curves, points)
  runs: pd.DataFrame  # whose curves they are, such as to colour them


def ice(
  model: Any,
  runs: pd.DataFrame,
  factor: str,
  *,
  kind: str = "plain",
  num_points: int = 50,
  num_curves: int = 250,
  seed: int = 0,
) -> Curves:
  """Individual conditional expectations: the factor moves, the rest stays.

  Args:
    model: of tables like ``runs``.
    runs: with all columns that the model reads.
    factor: a column of numbers.
    kind: "plain"; "centred", less each curve's first value; or "derivative",
      the slope from point to point (the grid is then of midpoints).
    num_points: of the grid, at equally likely quantiles of the runs.
    num_curves: of as many runs, drawn without replacement.
    seed: determines the draw.
  """
  if kind not in ("plain", "centred", "derivative"):
    raise ValueError(
      f'kind must be "plain", "centred" or "derivative", got {kind!r}.'
    )
  rng = np.random.default_rng(seed)
  rows = rng.permutation(len(runs))[:num_curves]
  drawn = runs.iloc[np.sort(rows)].reset_index(drop=True)
  grid = _edges(runs[factor], num_points - 1)
  predict = _predictor(model)
  values = np.stack(
    [predict(drawn.assign(**{factor: value})) for value in grid], axis=1
  )
  if kind == "centred":
    values = values - values[:, :1]
  elif kind == "derivative":
    values = np.diff(values) / np.diff(grid)
    grid = (grid[1:] + grid[:-1]) / 2
  return Curves(grid, values, drawn)


def pdp(
  model: Any,
  runs: pd.DataFrame,
  factor: str,
  *,
  num_points: int = 50,
  num_curves: int = 250,
  num_bootstrap: int = 200,
  refit: Refit | None = None,
  seed: int = 0,
) -> pd.DataFrame:
  """Partial dependence: the mean of the ICE curves, with its interval.

  Args:
    model: see ``ice``, like the other arguments.
    runs: as there.
    factor: as there.
    num_points: as there.
    num_curves: as there.
    num_bootstrap: resamplings.
    refit: fits a model to resampled runs; None holds the model.
    seed: determines all.

  Returns:
    Rows of ``value``, ``effect``, ``low``, ``high``.
  """
  grid, values, drawn = ice(
    model, runs, factor, num_points=num_points, num_curves=num_curves, seed=seed
  )
  rng = np.random.default_rng([seed, 1])
  again = []
  for _ in range(num_bootstrap):
    if refit is None:
      rows = rng.integers(len(drawn), size=len(drawn))
      again.append(values[rows].mean(axis=0))
    else:
      sample = runs.iloc[rng.integers(len(runs), size=len(runs))]
      predict = _predictor(refit(sample))
      some = sample.iloc[:num_curves]
      again.append([predict(some.assign(**{factor: x})).mean() for x in grid])
  return _with_interval({"value": grid}, values.mean(axis=0), again)


def pdp_surface(
  model: Any,
  runs: pd.DataFrame,
  factors: tuple[str, str],
  *,
  num_points: int = 20,
  num_curves: int = 250,
  seed: int = 0,
) -> pd.DataFrame:
  """Partial dependence on two factors, for a heat map.

  Args:
    model: of tables like ``runs``.
    runs: with all columns that the model reads.
    factors: two columns of numbers.
    num_points: of each factor, at equally likely quantiles of the runs.
    num_curves: runs, drawn without replacement, that the mean is over.
    seed: determines the draw.

  Returns:
    One row a point of the grid: the factors' values and ``effect``.
  """
  rng = np.random.default_rng(seed)
  drawn = runs.iloc[np.sort(rng.permutation(len(runs))[:num_curves])]
  grids = [_edges(runs[name], num_points - 1) for name in factors]
  points = np.stack([x.ravel() for x in np.meshgrid(*grids, indexing="ij")], 1)
  predict = _predictor(model)
  effect = [
    predict(drawn.assign(**dict(zip(factors, point, strict=True)))).mean()
    for point in points
  ]
  return pd.DataFrame(points, columns=list(factors)).assign(effect=effect)


def ale(
  model: Any,
  runs: pd.DataFrame,
  factor: str,
  *,
  num_bins: int = 50,
  num_bootstrap: int = 200,
  refit: Refit | None = None,
  seed: int = 0,
) -> pd.DataFrame:
  """First-order accumulated local effects, of mean 0 over the runs.

  Args:
    model: of tables like ``runs``.
    runs: with all columns that the model reads.
    factor: a column of numbers.
    num_bins: of equally many runs, fewer where values repeat.
    num_bootstrap: resamplings of the runs.
    refit: fits a model to resampled runs; None holds the model.
    seed: determines the resamplings.

  Returns:
    Rows of ``value`` (a bin's upper edge, the least value first), ``effect``,
    ``low``, ``high``, and ``runs``, how many support the bin below the value.
  """
  edges = _edges(runs[factor], num_bins)
  bins = _bins(runs[factor], edges)

  def steps(model: Any, runs: pd.DataFrame, bins: np.ndarray) -> np.ndarray:
    predict = _predictor(model)
    up, down = (
      predict(runs.assign(**{factor: edges[bins + side]})) for side in (1, 0)
    )
    return up - down

  def curve(steps: np.ndarray, bins: np.ndarray) -> np.ndarray:
    counts = np.bincount(bins, minlength=len(edges) - 1)
    sums = np.bincount(bins, steps, minlength=len(edges) - 1)
    # A resampling may leave a bin empty; no other way to say "no step there".
    path = np.append(0.0, np.cumsum(sums / np.maximum(counts, 1)))
    middle = (path[1:] + path[:-1]) / 2
    return path - np.average(middle, weights=counts)

  step = steps(model, runs, bins)
  rng = np.random.default_rng(seed)
  again = []
  for _ in range(num_bootstrap):
    rows = rng.integers(len(runs), size=len(runs))
    drawn = step[rows]
    if refit is not None:
      sample = runs.iloc[rows]
      drawn = steps(refit(sample), sample, bins[rows])
    again.append(curve(drawn, bins[rows]))
  table = _with_interval({"value": edges}, curve(step, bins), again)
  counts = np.bincount(bins, minlength=len(edges) - 1)
  return table.assign(runs=np.append(counts[:1], counts))


def ale_interaction(
  model: Any,
  runs: pd.DataFrame,
  factors: tuple[str, str],
  *,
  num_bins: int = 10,
  num_bootstrap: int = 200,
  refit: Refit | None = None,
  seed: int = 0,
) -> pd.DataFrame:
  """Second-order accumulated local effects: without the two main effects.

  Args:
    model: of tables like ``runs``.
    runs: with all columns that the model reads.
    factors: two columns of numbers.
    num_bins: of each, of equally many runs.
    num_bootstrap: resamplings of the runs.
    refit: fits a model to resampled runs; None holds the model.
    seed: determines the resamplings.

  Returns:
    One row a corner of the grid: the factors' values, ``effect``, ``low``,
    ``high``, and ``runs``, the number in the cells that touch it. Where that is
    0 there is no support: the effect there goes on from the nearest cell with
    runs, and should not be read or drawn.
  """
  edges = [_edges(runs[name], num_bins) for name in factors]
  bins = np.stack(
    [_bins(runs[f], e) for f, e in zip(factors, edges, strict=True)]
  )
  shape = (len(edges[0]) - 1, len(edges[1]) - 1)

  def steps(model: Any, runs: pd.DataFrame, bins: np.ndarray) -> np.ndarray:
    predict = _predictor(model)

    def at(i: int, j: int) -> np.ndarray:
      ends = (edges[0][bins[0] + i], edges[1][bins[1] + j])
      return predict(runs.assign(**dict(zip(factors, ends, strict=True))))

    return at(1, 1) - at(1, 0) - at(0, 1) + at(0, 0)

  def surface(steps: np.ndarray, bins: np.ndarray) -> np.ndarray:
    flat = np.ravel_multi_index(tuple(bins), shape)
    counts = np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)
    sums = np.bincount(flat, steps, minlength=counts.size).reshape(shape)
    nearest = ndimage.distance_transform_edt(
      counts == 0, return_distances=False, return_indices=True
    )
    mean = (sums / np.maximum(counts, 1))[tuple(nearest)]
    path = np.pad(mean.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    for axis in (0, 1):
      path = path - _main(path, counts, axis)
    middle = (path[1:, 1:] + path[1:, :-1] + path[:-1, 1:] + path[:-1, :-1]) / 4
    return path - np.average(middle, weights=counts)

  step = steps(model, runs, bins)
  rng = np.random.default_rng(seed)
  again = []
  for _ in range(num_bootstrap):
    rows = rng.integers(len(runs), size=len(runs))
    drawn = step[rows]
    if refit is not None:
      sample = runs.iloc[rows]
      drawn = steps(refit(sample), sample, bins[:, rows])
    again.append(surface(drawn, bins[:, rows]).ravel())
  x, y = np.meshgrid(*edges, indexing="ij")
  counts = np.zeros(shape, int)
  np.add.at(counts, tuple(bins), 1)
  around = np.pad(counts, 1)
  touching = around[1:, 1:] + around[1:, :-1] + around[:-1, 1:]
  touching = touching + around[:-1, :-1]
  columns = {factors[0]: x.ravel(), factors[1]: y.ravel()}
  table = _with_interval(columns, surface(step, bins).ravel(), again)
  return table.assign(runs=touching.ravel())


def _main(path: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
  """The first-order effect of a surface along an axis, over the runs."""
  path, counts = np.moveaxis(path, axis, 0), np.moveaxis(counts, axis, 0)
  rise = np.diff(path, axis=0)
  rise = (rise[:, 1:] + rise[:, :-1]) / 2
  total = np.maximum(counts.sum(axis=1), 1)
  effect = np.append(0, np.cumsum((rise * counts).sum(axis=1) / total))
  return effect[:, None] if axis == 0 else effect[None, :]


def _predictor(model: Any) -> Callable[[pd.DataFrame], np.ndarray]:
  if not hasattr(model, "predict"):
    return lambda table: np.asarray(model(table), float)
  if hasattr(model, "feature_names_in_"):
    names = list(model.feature_names_in_)
    return lambda table: model.predict(table[names])
  return lambda table: model.predict(table.to_numpy())


def _edges(values: pd.Series, num_bins: int) -> np.ndarray:
  """Quantiles of the values, each once."""
  if num_bins < 1:
    raise ValueError("There must be one bin, or two points, at least.")
  quantiles = np.linspace(0, 1, num_bins + 1)
  edges = np.unique(np.quantile(values.to_numpy(float), quantiles))
  if len(edges) < 2:
    raise ValueError(f"{values.name} takes one value only: it has no effect.")
  return edges


def _bins(values: pd.Series, edges: np.ndarray) -> np.ndarray:
  """Which interval (low, high] a value lies in; the least in the first."""
  place = np.searchsorted(edges, values.to_numpy(float), "left") - 1
  return np.clip(place, 0, len(edges) - 2)


def _with_interval(
  columns: dict[str, np.ndarray], effect: np.ndarray, again: list
) -> pd.DataFrame:
  """The effect with the bootstrap's 95 % interval of each point."""
  low, high = 2 * effect - np.quantile(again, [0.975, 0.025], axis=0)
  return pd.DataFrame({**columns, "effect": effect, "low": low, "high": high})
