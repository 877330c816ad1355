"""The f-DP trade-off curve: what any test for one record must pay."""

import dataclasses
import math
from collections.abc import Callable

import dp_accounting
import numpy as np
from dp_accounting import NeighboringRelation

from jaxdp.accounting import _epsilon, _gdp

_POINTS = 1001
_SMALLEST_DELTA = 1e-10


@dataclasses.dataclass(frozen=True, eq=False)
class TradeoffCurve:
  """beta(alpha): the least type II error of a test with type I error alpha.

  A test guesses from the output whether a record was in the data. Curves are
  lower bounds: no test does better than ``curve(alpha)``.

  Attributes:
    alpha: false positive rates from 0 to 1, ascending, for plots.
    beta: the curve there. The true positive rate is at most 1 - beta.
  """

  alpha: np.ndarray
  beta: np.ndarray
  _fun: Callable[[np.ndarray], np.ndarray] = dataclasses.field(repr=False)

  def __call__(self, alpha: np.ndarray | float) -> np.ndarray:
    """The curve at any alpha in [0, 1], an array of the shape of ``alpha``."""
    alpha = np.asarray(alpha, np.float64)
    if not np.all((alpha >= 0) & (alpha <= 1)):
      raise ValueError(
        "alpha is a false positive rate and must be in [0, 1], got "
        f"alpha={alpha}."
      )
    return np.clip(self._fun(alpha), 0.0, 1.0 - alpha)


def tradeoff(
  event: dp_accounting.DpEvent,
  accountant: str,
  relation: NeighboringRelation,
  *,
  discretization: float = 1e-3,
) -> TradeoffCurve:
  r"""The trade-off curve of an event; arguments as for ``epsilon``.

  .. math:: \beta(\alpha) = \sup_{\varepsilon \ge 0} \max\big(0,\;
            1 - \delta(\varepsilon) - e^\varepsilon \alpha,\;
            e^{-\varepsilon} (1 - \delta(\varepsilon) - \alpha)\big)

  "gdp" has the closed form instead. The supremum runs over a grid of epsilon,
  so the curve is a lower bound between its points too.

  Example:
    >>> import dp_accounting
    >>> curve = tradeoff(
    ...   dp_accounting.GaussianDpEvent(1.0),
    ...   "gdp",
    ...   dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    ... )
    >>> round(float(1 - curve(0.001)), 6)
    0.018298

  References:
    Dong, Roth, Su 2019, arXiv:1905.02383, Proposition 2.12.
    Wasserman, Zhou 2010 (tests of one epsilon and delta).
  """
  curve = _epsilon.privacy_curve(event, accountant, relation, discretization)
  if curve.mu is not None:
    mu = curve.mu
    return _sampled(lambda alpha: _gaussian(mu, alpha))
  largest = curve.epsilon(_SMALLEST_DELTA)
  if not math.isfinite(largest):  # Losses that happen with probability > 1e-10.
    largest = curve.epsilon(1e-6)
  largest = min(largest, 500.0) if math.isfinite(largest) else 50.0
  epsilons = np.linspace(0.0, largest, _POINTS)
  deltas = curve.deltas(epsilons)
  return _sampled(lambda alpha: _envelope(alpha, epsilons, deltas))


def _sampled(fun: Callable[[np.ndarray], np.ndarray]) -> TradeoffCurve:
  # Half of the points on a log scale, where attacks on few records are read.
  ends = np.array([0.0, 1.0])
  alpha = np.unique(
    np.concatenate([ends, np.geomspace(1e-8, 1, 200), np.linspace(0, 1, 201)])
  )
  curve = TradeoffCurve(alpha, alpha, fun)
  return dataclasses.replace(curve, beta=curve(alpha))


def _gaussian(mu: float, alpha: np.ndarray) -> np.ndarray:
  if math.isinf(mu):
    return np.zeros_like(alpha)
  return _gdp.tradeoff(mu, alpha)


def _envelope(
  alpha: np.ndarray, epsilons: np.ndarray, deltas: np.ndarray
) -> np.ndarray:
  best = np.zeros_like(alpha)
  for epsilon, delta in zip(epsilons, deltas, strict=True):
    best = np.maximum(best, 1 - delta - math.exp(epsilon) * alpha)
    best = np.maximum(best, math.exp(-epsilon) * (1 - delta - alpha))
  return best
