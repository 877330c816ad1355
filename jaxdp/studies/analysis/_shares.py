"""Shares from forests: debiased to the response's, or of the surrogate itself.

``_fanova`` says what they are.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import qmc

from jaxdp.studies.analysis import _axes, _boxes
from jaxdp.studies.analysis._boxes import component, variance

_NUM_WAVES = 64  # functions a component is corrected along
# The bootstrap holds the forests. Over 120 designs of known functions shares
# varied by 0.9 to 1.13 times what it says, so its intervals are widened.
_WIDER = 1.1

Subset = tuple[int, ...]


def _draw(
  axes: Sequence[_axes.Axis], rng: np.random.Generator, log2_size: int
) -> np.ndarray:
  """Sobol points of the law, as the forest sees them."""
  points = qmc.Sobol(len(axes), rng=rng).random(1 << log2_size)
  columns = zip(axes, points.T, strict=True)
  return np.concatenate([axis.draw(u) for axis, u in columns], axis=1)


def _components(
  forest: Any, axes: Sequence[_axes.Axis], subsets: Sequence[Subset]
) -> dict[Subset, np.ndarray]:
  found = _boxes.marginals(_boxes.boxes(forest), axes, subsets)
  return {s: component(g, axes, s) for s, g in found.items()}


def of_response(
  forests: Sequence[Any],
  axes: Sequence[_axes.Axis],
  subsets: Sequence[Subset],
  cells: Sequence[np.ndarray],
  parts: Sequence[np.ndarray],
  y: np.ndarray,
  residual: np.ndarray,
  num_bootstrap: int,
  rng: np.random.Generator,
) -> np.ndarray:
  """Rows of share, low, high, one a subset: see ``_fanova``."""
  count = len(forests)
  found = [_components(forest, axes, subsets) for forest in forests]
  # How often each row is drawn, less 1, in each resampling of its fold.
  draws = [
    rng.multinomial(len(p), np.full(len(p), 1 / len(p)), num_bootstrap) - 1.0
    for p in parts
  ]
  # Of the response: its forest's, exact but for 2^12 points, and the rest. So
  # chance in the runs moves it together with the shares' numerators.
  drawn = _draw(axes, rng, 12)
  predicted = [forest.predict(drawn) for forest in forests]
  square = (residual - 2 * residual.mean()) * residual
  for f, part in zip(predicted, parts, strict=True):
    square[part] += 2 * residual[part] * (y[part] - residual[part] - f.mean())
  total = np.mean([f.var() for f in predicted]) + square.mean()
  total = float(total + residual.mean() ** 2)
  totals = total + sum(
    draw @ square[part] for draw, part in zip(draws, parts, strict=True)
  ) / len(y)
  rows = []
  for subset in subsets:
    bases = [_axes.basis(axes[j], _num_waves(subset)) for j in subset]
    waves = functools.reduce(
      _boxes.products,
      [b[cells[j]] for b, j in zip(bases, subset, strict=True)],
    )
    slow = [_boxes.project(g[subset], axes, subset, bases) for g in found]
    fast = [g[subset] - part for g, part in zip(found, slow, strict=True)]
    # The slow part is too flat, the fast one mostly noise.
    stretched = [np.zeros_like(g) for g in slow]
    rest = residual.copy()  # y less the forest with its component stretched
    for one in (slow, fast):
      at = np.zeros(len(y))
      for g, part in zip(one, parts, strict=True):
        at[part] = g[tuple(cells[j][part] for j in subset)]
      power = sum(variance(g, axes, subset) for g in one) / count
      stretch = 1.0
      if power > 1e-9 * total:  # below there is rounding alone
        stretch = max(1 + float(np.mean(residual * at)) / power, 0.0)
      stretched = [a + stretch * g for a, g in zip(stretched, one, strict=True)]
      rest += (1 - stretch) * at
    power = sum(variance(g, axes, subset) for g in stretched)
    value = power
    moved, moved_pairs = np.zeros((2, num_bootstrap))
    for g, draw, part in zip(stretched, draws, parts, strict=True):
      at = g[tuple(cells[j][part] for j in subset)]
      linear = 2 * rest[part] * at
      wave = waves[part] * rest[part, None]
      pairs = len(part) * (len(part) - 1)
      own = (wave**2).sum(axis=1)
      value += (
        linear.mean() + ((wave.sum(axis=0) ** 2).sum() - own.sum()) / pairs
      )
      moved += draw @ linear / len(part)
      moved_pairs += (((draw @ wave) ** 2).sum(axis=1) - draw**2 @ own) / pairs
    # The first moves with the size of f_U, of which g has a part.
    moved = moved * np.sqrt(max(value / max(power, 1e-300), 1.0)) + moved_pairs
    share = value / count / total
    again = (value + moved) / count / totals
    # To both sides by the longer tail: which of the two is the long one is
    # what a bootstrap of a skewed statistic knows least.
    reach = _WIDER * np.abs(np.quantile(again, [0.025, 0.975]) - share).max()
    rows.append([max(x, 0.0) for x in (share, share - reach, share + reach)])
  return np.array(rows)


def _num_waves(subset: Subset) -> int:
  """Of each axis, so that all products are about as many for any order."""
  return int(_NUM_WAVES ** (1 / len(subset)) + 1e-9)


def of_surrogate(
  fit: Callable[[np.ndarray, np.ndarray], Any],
  axes: Sequence[_axes.Axis],
  subsets: Sequence[Subset],
  x: np.ndarray,
  y: np.ndarray,
  num_refits: int,
  rng: np.random.Generator,
) -> np.ndarray:
  """Rows of share, low, high, one a subset: see ``_fanova``."""
  drawn = _draw(axes, rng, 13)

  def shares(rows: np.ndarray) -> np.ndarray:
    forest = fit(x[rows], y[rows])
    found = _components(forest, axes, subsets)
    parts = np.array([variance(g, axes, s) for s, g in found.items()])
    return parts / forest.predict(drawn).var()

  share = shares(np.arange(len(y)))
  halves = [
    shares(rng.permutation(len(y))[: len(y) // 2]) for _ in range(num_refits)
  ]
  # Halves vary around their mean as the whole does (delete-half jackknife).
  spread = 1.96 * np.std(halves, axis=0, ddof=1)
  return np.maximum(np.stack([share, share - spread, share + spread], 1), 0)
