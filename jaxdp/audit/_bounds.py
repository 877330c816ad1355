r"""Lower bounds on epsilon and mu from what an adversary's test gets wrong.

Scores of trials with a canary and of trials without it make a test: "with", if
the score is at least a threshold. A mechanism that keeps its promise bounds how
rarely any test errs, so the errors that were counted bound the promise:

.. math:: 1 - \mathrm{FNR} \le e^\varepsilon \mathrm{FPR} + \delta, \quad
          \Phi^{-1}(1 - \mathrm{FPR}) - \Phi^{-1}(\mathrm{FNR}) \le \mu

with both rates at their upper limits by Clopper and Pearson. The threshold is
chosen on a quarter of the trials, and the errors are counted on the others, so
that the confidence is what it says.

>>> import numpy as np
>>> noise = np.random.default_rng(0).standard_normal((2, 20_000))
>>> bound = mu_lower_bound(noise[0] + 1.0, noise[1])
>>> 0.9 < bound.value < 1.0
True
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from jaxdp.accounting import _validate, gdp

MIN_TRIALS = 100
_MAX_THRESHOLDS = 1000
_CHOICE_ALPHA = 1e-3
_Upper = np.ndarray | float
_Limits = Callable[[_Upper, _Upper], np.ndarray]


def _upper_limit(count: _Upper, trials: float, alpha: float) -> np.ndarray:
  """Clopper and Pearson's: exceeded by the truth with probability <= alpha."""
  rest = np.maximum(trials - np.asarray(count, np.float64), 0)
  limit = special.betaincinv(count + 1.0, np.maximum(rest, 1e-300), 1 - alpha)
  return np.where(rest == 0, 1.0, limit)


class ErrorRate(NamedTuple):
  """How many of the trials a test got wrong."""

  count: int  # type: ignore[assignment]  # in place of the tuple's method
  trials: int

  @property
  def rate(self) -> float:
    """The estimate."""
    return self.count / self.trials

  def interval(self, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's two-sided interval.

    >>> ErrorRate(0, 100).interval()[0]
    0.0
    """
    alpha = (1 - _validate.probability("confidence", confidence)) / 2
    right = self.trials - self.count
    return (
      1 - float(_upper_limit(right, self.trials, alpha)),
      float(_upper_limit(self.count, self.trials, alpha)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
  """A lower bound, and the test that it comes from.

  With ``fpr, fnr`` the upper ends of the two ``intervals``, the mechanism's
  trade-off curve f has f(fpr) <= fnr at this confidence: a point of f-DP.

  Attributes:
    value: of epsilon or mu, >= 0.
    confidence: with which the truth is at least ``value``.
    threshold: scores of at least this say "with".
    false_positives: among trials without the canary that were counted.
    false_negatives: among those with it.
  """

  value: float
  confidence: float
  threshold: float
  false_positives: ErrorRate
  false_negatives: ErrorRate

  @property
  def intervals(self) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of the two rates; both upper ends hold at once at ``confidence``."""
    return (
      self.false_positives.interval(self.confidence),
      self.false_negatives.interval(self.confidence),
    )


def mu_of(fpr: _Upper, fnr: _Upper) -> np.ndarray:
  """The least mu for which a test may err so rarely; 0 if it is no better.

  >>> print(mu_of(0.5, 0.5), mu_of(0.1, 0.1).round(4))
  0.0 2.5631
  """
  return np.maximum(-special.ndtri(fpr) - special.ndtri(fnr), 0.0)


def epsilon_of(fpr: _Upper, fnr: _Upper, delta: float) -> np.ndarray:
  """The least epsilon at delta for which a test may err so rarely.

  >>> print(epsilon_of(0.1, 0.2, delta=0.0).round(4))  # log(0.8 / 0.1)
  2.0794
  """
  fpr, fnr = np.asarray(fpr, np.float64), np.asarray(fnr, np.float64)
  with np.errstate(divide="ignore"):
    forth = np.log(np.maximum(1 - fnr - delta, 0)) - np.log(fpr)
    back = np.log(np.maximum(1 - fpr - delta, 0)) - np.log(fnr)
  return np.maximum(np.maximum(forth, back), 0.0)


def mu_lower_bound(
  with_canary: Float[np.ndarray, " trials"],
  without_canary: Float[np.ndarray, " trials"],
  *,
  confidence: float = 0.95,
) -> Bound:
  """A lower bound on the mu of Gaussian differential privacy.

  ``accounting.gdp.epsilon`` makes an epsilon of it, for mechanisms whose claim
  is Gaussian DP. Others have tails of their own: ``epsilon_lower_bound``.

  Args:
    with_canary: independent scores of trials with the canary, which tend to be
      larger than those without. At least 100, in any order.
    without_canary: of trials on the neighbouring data set.
    confidence: in (0, 1).

  Guarantees:
    At most 1 - confidence of bounds exceed the truth, in both directions of
    the test and whatever the scores are.

  References:
    Dong et al. 2019, arXiv:1905.02383; Nasr et al. 2023, arXiv:2302.07956.
  """
  return _bound(with_canary, without_canary, confidence, mu_of)


def epsilon_lower_bound(
  with_canary: Float[np.ndarray, " trials"],
  without_canary: Float[np.ndarray, " trials"],
  *,
  delta: float,
  confidence: float = 0.95,
) -> Bound:
  """A lower bound on epsilon at delta, of any mechanism.

  Args:
    with_canary: see ``mu_lower_bound``.
    without_canary: " .
    delta: of the claim, in (0, 1).
    confidence: in (0, 1).

  Guarantees:
    As ``mu_lower_bound``.

  Example:
    >>> rng = np.random.default_rng(0)
    >>> truth = rng.integers(2, size=(2, 20_000))  # randomised response
    >>> answers = np.where(rng.random(truth.shape) < 0.9, truth, 1 - truth)
    >>> yes, no = answers[truth == 1], answers[truth == 0]
    >>> bound = epsilon_lower_bound(yes, no, delta=1e-5)
    >>> print(round(bound.value, 1), bound.threshold)  # the truth is log(9)
    2.2 1.0

  References:
    Kairouz et al. 2015, arXiv:1311.0776; Nasr et al. 2021, arXiv:2101.04535.
  """
  delta = _validate.probability("delta", delta)
  return _bound(
    with_canary,
    without_canary,
    confidence,
    lambda fpr, fnr: epsilon_of(fpr, fnr, delta),
  )


def gdp_epsilon_lower_bound(
  with_canary: Float[np.ndarray, " trials"],
  without_canary: Float[np.ndarray, " trials"],
  *,
  delta: float,
  confidence: float = 0.95,
) -> Bound:
  """``mu_lower_bound`` as an epsilon at delta, for claims of Gaussian DP."""
  bound = mu_lower_bound(with_canary, without_canary, confidence=confidence)
  return dataclasses.replace(bound, value=gdp.epsilon(bound.value, delta))


def _bound(
  with_canary: np.ndarray,
  without_canary: np.ndarray,
  confidence: float,
  value_of: _Limits,
) -> Bound:
  # Both limits hold at once with the confidence, by the union bound.
  alpha = (1 - _validate.probability("confidence", confidence)) / 2
  choose_with, count_with = _split(with_canary, "with_canary")
  choose_without, count_without = _split(without_canary, "without_canary")
  threshold = _best_threshold(
    choose_with,
    choose_without,
    value_of,
  )
  positives = int(np.sum(count_without >= threshold))
  negatives = int(np.sum(count_with < threshold))
  value = value_of(
    _upper_limit(positives, len(count_without), alpha),
    _upper_limit(negatives, len(count_with), alpha),
  )
  return Bound(
    value=float(value),
    confidence=confidence,
    threshold=threshold,
    false_positives=ErrorRate(positives, len(count_without)),
    false_negatives=ErrorRate(negatives, len(count_with)),
  )


def _split(scores: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
  """A quarter to choose by, and the rest, whatever order they came in."""
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 1 or len(scores) < MIN_TRIALS:
    raise ValueError(
      f"{name} must be a vector of at least {MIN_TRIALS} scores, got shape "
      f"{scores.shape}. Run more trials."
    )
  if np.isnan(scores).any():
    raise ValueError(
      f"{name} holds {int(np.isnan(scores).sum())} NaN of {len(scores)} "
      "scores. A score must be a number; give such trials the lowest one."
    )
  scores = np.random.default_rng(0).permutation(scores)
  quarter = math.ceil(len(scores) / 4)
  return scores[:quarter], scores[quarter:]


def _best_threshold(
  with_canary: np.ndarray,
  without_canary: np.ndarray,
  value_of: _Limits,
) -> float:
  values = np.unique(np.concatenate([with_canary, without_canary]))
  if len(values) > _MAX_THRESHOLDS:
    # Dense at both ends, where the best tests of small deltas are.
    at = special.expit(np.linspace(-12, 12, _MAX_THRESHOLDS)) * len(values)
    values = values[np.unique(np.minimum(at.astype(int), len(values) - 1))]
  negatives = np.searchsorted(np.sort(with_canary), values)
  positives = len(without_canary) - np.searchsorted(
    np.sort(without_canary), values
  )
  # The best of many is the luckiest: strict limits keep chance from winning.
  bounds = value_of(
    _upper_limit(positives, len(without_canary), _CHOICE_ALPHA),
    _upper_limit(negatives, len(with_canary), _CHOICE_ALPHA),
  )
  # Where all come to nothing, the one in the middle may yet come to something.
  best = np.argmax(bounds) if np.any(bounds > 0) else len(values) // 2
  return float(values[best])
