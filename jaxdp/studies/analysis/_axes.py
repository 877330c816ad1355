"""The space that a surrogate lives on: one axis a factor, cut into cells.

A forest sees a factor as one column, its position on its scale, or as several,
the dummies of a category. Either way a leaf covers a part of every cell of the
factor's axis, and that is all that exact marginals need.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from jaxdp.studies._laws import Choice, Factor, Sample


class Axis(Protocol):
  """One factor, as the forest and as the marginals see it."""

  @property
  def name(self) -> str: ...

  @property
  def num_columns(self) -> int:
    """Of what the forest sees."""
    ...

  @property
  def probabilities(self) -> np.ndarray:
    """Of the cells, under the input law."""
    ...

  def encode(self, runs: pd.DataFrame) -> np.ndarray:
    """What the forest sees: floats [runs, columns]."""
    ...

  def cells(self, runs: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """In which cell each run lies."""
    ...

  def coverage(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The part of each cell with low < x <= high: [leaves, cells].

    Args:
      low: bounds on the encoded columns, [leaves, columns].
      high: the upper ones.
    """
    ...

  def draw(self, quantiles: np.ndarray) -> np.ndarray:
    """Encoded points of the input law: [quantiles, columns]."""
    ...


@dataclasses.dataclass(frozen=True)
class Number:
  """A number, in cells of equal probability under its law."""

  law: Factor | Sample
  num_cells: int

  @property
  def name(self) -> str:
    return self.law.name

  @property
  def num_columns(self) -> int:
    return 1

  @property
  def probabilities(self) -> np.ndarray:
    return np.full(self.num_cells, 1 / self.num_cells)

  @property
  def _is_log(self) -> bool:
    return isinstance(self.law, Factor) and self.law.scale == "log"

  def _position(self, values: np.ndarray) -> np.ndarray:
    # Extra trees draw thresholds uniformly: on the factor's scale, not another.
    x = np.asarray(values, float)[:, None]
    return np.log(x) if self._is_log else x

  def encode(self, runs: pd.DataFrame) -> np.ndarray:
    return self._position(runs[self.name].to_numpy())

  def cells(self, runs: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    values = runs[self.name].to_numpy()
    below = self.law.quantile(values, below=True)
    # A value of probability p takes p of the axis; where in it is left to
    # chance, so that quantiles are uniform for laws with atoms too.
    u = below + rng.random(len(values)) * (self.law.quantile(values) - below)
    return np.minimum((u * self.num_cells).astype(int), self.num_cells - 1)

  def coverage(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    edges = np.linspace(0, 1, self.num_cells + 1)
    bounds = (np.exp(x) if self._is_log else x for x in (low, high))
    start, stop = (self.law.quantile(x) for x in bounds)
    return np.diff(np.clip(edges, start, stop)) * self.num_cells

  def draw(self, quantiles: np.ndarray) -> np.ndarray:
    return self._position(self.law.at(quantiles))


@dataclasses.dataclass(frozen=True)
class Category:
  """A combination of categories; a cell is one combination.

  Each column becomes dummies, as in the published protocol. Their order does
  not matter, and leaves of dummies cover whole levels, so marginals stay exact.
  Codes 0, 1, 2, .. would make neighbours of levels that have nothing in common.
  """

  name: str
  levels: pd.DataFrame  # one row a level
  frequencies: np.ndarray

  @classmethod
  def of(
    cls,
    name: str,
    columns: Sequence[str],
    runs: pd.DataFrame,
    choice: Choice | None = None,
  ) -> "Category":
    """Levels at their frequency in the runs, or uniform ones of a choice."""
    if choice is not None:
      values = pd.DataFrame({name: list(choice.values)})
      return cls(name, values, np.full(len(values), 1 / len(values)))
    counts = runs.groupby(list(columns)).size().reset_index(name="runs")
    return cls(
      name, counts[list(columns)], (counts.runs / len(runs)).to_numpy()
    )

  @property
  def num_columns(self) -> int:
    return self._codes.shape[1]

  @property
  def probabilities(self) -> np.ndarray:
    return self.frequencies

  @functools.cached_property
  def _codes(self) -> np.ndarray:
    codes = [pd.factorize(column)[0] for _, column in self.levels.items()]
    return np.hstack([np.eye(k.max() + 1)[k] for k in codes if k.any()])

  def encode(self, runs: pd.DataFrame) -> np.ndarray:
    return self._codes[self._index(runs)]

  def cells(self, runs: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    del rng
    return self._index(runs)

  def _index(self, runs: pd.DataFrame) -> np.ndarray:
    index = pd.MultiIndex.from_frame(self.levels)
    place = index.get_indexer(pd.MultiIndex.from_frame(runs[index.names]))
    if (place < 0).any():
      row = runs[index.names].iloc[int(np.argmin(place))].to_dict()
      raise ValueError(f"{row} is no level of {self.name}.")
    return place

  def coverage(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    inside = np.ones((len(low), len(self.levels)), bool)
    for code, least, most in zip(self._codes.T, low.T, high.T, strict=True):
      inside &= (least[:, None] < code) & (code <= most[:, None])
    return inside.astype(float)

  def draw(self, quantiles: np.ndarray) -> np.ndarray:
    steps = np.cumsum(self.frequencies)[:-1]
    return self._codes[np.searchsorted(steps, quantiles, "right")]


def basis(axis: Axis, size: int) -> np.ndarray:
  """Functions of mean 0, orthonormal under the law: [cells, functions].

  Cosines of rising frequency; of a category at most all its contrasts.
  """
  p = axis.probabilities
  size = min(size, len(p) - 1)
  middle = np.cumsum(p) - p / 2
  waves = np.cos(np.pi * middle[:, None] * np.arange(size + 1))
  columns, _ = np.linalg.qr(np.sqrt(p)[:, None] * waves)
  return (columns / np.sqrt(p)[:, None])[:, 1:]
