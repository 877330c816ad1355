"""Exact marginals of a forest from the boxes of its leaves.

A tree is constant on boxes. Its mean over all factors but some is therefore a
sum over leaves: value, times the probability of the box along the others, where
the box covers the point along these. Here points are cells of a grid, and a
leaf that covers part of a cell counts in part, so what comes out is the exact
mean of the forest over each cell. All leaves of all trees go through one matrix
product per set of factors: O(leaves * cells) for one factor, O(leaves *
cells^2) for two.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdp.studies.analysis._axes import Axis

_CHUNK = 1 << 13  # leaves at a time, for memory


class Boxes(NamedTuple):
  """The leaves of a forest, low < x <= high, whose values sum to its mean."""

  low: np.ndarray  # shape=(leaves, columns)
  high: np.ndarray  # shape=(leaves, columns)
  value: np.ndarray  # shape=(leaves,)


def boxes(forest: Any) -> Boxes:
  """All leaves of a fitted scikit-learn forest of regression trees."""
  trees = [tree.tree_ for tree in forest.estimators_]
  sizes = [tree.node_count for tree in trees]
  first = np.cumsum([0, *sizes[:-1]])
  shift = np.repeat(first, sizes)
  left = np.concatenate([tree.children_left for tree in trees])
  right = np.concatenate([tree.children_right for tree in trees])
  feature = np.concatenate([tree.feature for tree in trees])
  threshold = np.concatenate([tree.threshold for tree in trees])
  value = np.concatenate([tree.value[:, 0, 0] for tree in trees])
  is_leaf = left < 0
  low = np.full((len(left), forest.n_features_in_), -np.inf)
  high = -low
  nodes = first  # all nodes of one depth, of all trees
  while len(nodes := nodes[~is_leaf[nodes]]):
    at, cut = feature[nodes], threshold[nodes]
    down, up = (side[nodes] + shift[nodes] for side in (left, right))
    for child in (down, up):
      low[child], high[child] = low[nodes], high[nodes]
    high[down, at] = np.minimum(high[down, at], cut)
    low[up, at] = np.maximum(low[up, at], cut)
    nodes = np.concatenate([down, up])
  return Boxes(low[is_leaf], high[is_leaf], value[is_leaf] / len(trees))


def marginals(
  leaves: Boxes, axes: Sequence[Axis], subsets: Sequence[tuple[int, ...]]
) -> dict[tuple[int, ...], np.ndarray]:
  """The forest's mean over all axes but some, in every cell of these.

  Args:
    leaves: of ``boxes``.
    axes: whose columns, one axis after the other, are the forest's.
    subsets: the axes that stay, by index, each in rising order.

  Returns:
    By subset an array with one dimension for each of its axes.
  """
  shapes = [len(axis.probabilities) for axis in axes]
  total = {s: np.zeros([shapes[j] for j in s]) for s in subsets}
  ends = np.cumsum([axis.num_columns for axis in axes])[:-1]
  for start in range(0, len(leaves.value), _CHUNK):
    part = Boxes(*(x[start : start + _CHUNK] for x in leaves))
    lows = np.split(part.low, ends, axis=1)
    highs = np.split(part.high, ends, axis=1)
    covered = [
      axis.coverage(low, high)
      for axis, low, high in zip(axes, lows, highs, strict=True)
    ]
    width = np.stack(
      [c @ a.probabilities for c, a in zip(covered, axes, strict=True)], 1
    )
    for subset, cells in total.items():
      others = [j for j in range(len(axes)) if j not in subset]
      weight = part.value * width[:, others].prod(axis=1)
      *head, last = [covered[j] for j in subset]
      rows = functools.reduce(products, head, weight[:, None])
      cells += (rows.T @ last).reshape(cells.shape)
  return total


def products(rows: np.ndarray, more: np.ndarray) -> np.ndarray:
  """All products of two columns."""
  return (rows[:, :, None] * more[:, None, :]).reshape(len(rows), -1)


def component(
  marginal: np.ndarray, axes: Sequence[Axis], subset: tuple[int, ...]
) -> np.ndarray:
  """What a marginal holds beyond those of fewer axes: of mean 0 along each."""
  for place, j in enumerate(subset):
    mean = np.average(
      marginal, axis=place, weights=axes[j].probabilities, keepdims=True
    )
    marginal = marginal - mean
  return marginal


def variance(
  values: np.ndarray, axes: Sequence[Axis], subset: tuple[int, ...]
) -> float:
  """The mean square under the law."""
  square = values**2
  for j in reversed(subset):
    square = square @ axes[j].probabilities
  return float(square)


def project(
  values: np.ndarray,
  axes: Sequence[Axis],
  subset: tuple[int, ...],
  bases: Sequence[np.ndarray],
) -> np.ndarray:
  """The part of a component along products of the axes' basis functions."""
  for place, (j, basis) in enumerate(zip(subset, bases, strict=True)):
    onto = basis @ (basis * axes[j].probabilities[:, None]).T
    values = np.moveaxis(np.tensordot(onto, values, (1, place)), 0, place)
  return values
