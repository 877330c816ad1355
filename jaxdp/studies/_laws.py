"""Laws of one factor: what designs draw from, and marginals are taken under."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np


class Law(Protocol):
  """A named law: what designs draw from and marginals are taken under."""

  @property
  def name(self) -> str: ...

  def at(self, quantiles: np.ndarray) -> np.ndarray:
    """The values at quantiles in [0, 1)."""
    ...


@dataclasses.dataclass(frozen=True)
class Factor:
  """A number, uniform on its scale.

  Attributes:
    name: of the column.
    low: the least value.
    high: the largest.
    scale: "linear" or "log".
    step: the values are low, low + step, .., up to high, each as likely; of
      whole numbers if low and step are. None: all values.
  """

  name: str
  low: float
  high: float
  scale: str = "linear"
  step: float | None = None

  def __post_init__(self) -> None:
    if not self.low < self.high:
      raise ValueError(
        f"{self.name}: low must be < high, got {self.low} and {self.high}. "
        "Leave out a factor that does not vary, or put it into the cells."
      )
    if self.scale not in ("linear", "log"):
      raise ValueError(
        f'{self.name}: scale must be "linear" or "log", got {self.scale!r}.'
      )
    if self.scale == "log" and (self.low <= 0 or self.step is not None):
      raise ValueError(
        f"{self.name}: a log scale needs low > 0 and no step. For a grid in "
        "equal ratios use Choice."
      )
    if self.step is not None and self.step <= 0:
      raise ValueError(f"{self.name}: step must be > 0, got {self.step}.")

  def at(self, quantiles: np.ndarray) -> np.ndarray:
    u = np.asarray(quantiles, float)
    if self.scale == "log":
      return np.exp(np.log(self.low) + u * np.log(self.high / self.low))
    if self.step is None:
      return self.low + u * (self.high - self.low)
    return self.low + self.step * np.minimum(
      np.floor(u * self.size).astype(int), self.size - 1
    )

  def quantile(self, values: np.ndarray, below: bool = False) -> np.ndarray:
    """The probability of at most this value, or (``below``) of less."""
    x = np.asarray(values, float)
    if self.scale == "log":
      x = np.maximum(x, np.finfo(float).tiny)
      u = np.log(x / self.low) / np.log(self.high / self.low)
    elif self.step is None:
      u = (x - self.low) / (self.high - self.low)
    else:
      place = (x - self.low) / self.step
      count = np.ceil(place - 1e-9) if below else np.floor(place + 1e-9) + 1
      u = count / self.size
    return np.clip(u, 0.0, 1.0)

  @property
  def size(self) -> int:
    """Number of values of a factor with a step."""
    if self.step is None:
      raise ValueError(f"{self.name} has no step, so it takes any value.")
    return math.floor((self.high - self.low) / self.step + 1e-9) + 1


@dataclasses.dataclass(frozen=True)
class Choice:
  """One of several values, each as likely; of any type, without an order."""

  name: str
  values: Sequence[Any]

  def __post_init__(self) -> None:
    object.__setattr__(self, "values", tuple(self.values))
    if len(set(self.values)) < max(2, len(self.values)):
      raise ValueError(
        f"{self.name}: needs two values or more, each once, got {self.values}."
      )

  def at(self, quantiles: np.ndarray) -> np.ndarray:
    size = len(self.values)
    index = np.floor(np.asarray(quantiles, float) * size).astype(int)
    return np.asarray(self.values)[np.minimum(index, size - 1)]


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
  """A number with the law of the values given: for marginals under the data."""

  name: str
  values: Sequence[float]

  def __post_init__(self) -> None:
    object.__setattr__(self, "values", np.sort(np.asarray(self.values, float)))
    if not len(self.values) or not np.isfinite(self.values).all():
      raise ValueError(f"{self.name}: needs values, all of them finite.")

  def at(self, quantiles: np.ndarray) -> np.ndarray:
    size = len(self.values)
    index = np.floor(np.asarray(quantiles, float) * size).astype(int)
    return np.asarray(self.values)[np.minimum(index, size - 1)]

  def quantile(self, values: np.ndarray, below: bool = False) -> np.ndarray:
    """The share of values that are at most this, or (``below``) less."""
    ordered = np.asarray(self.values)
    side: Literal["left", "right"] = "left" if below else "right"
    return np.searchsorted(ordered, values, side) / len(ordered)
