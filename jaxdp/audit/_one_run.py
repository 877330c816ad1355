r"""Auditing one run, by many canaries at once.

A fair coin decides for each of m canaries whether it is in the data. After the
run, r of the coins are guessed from scores. If the run is epsilon-DP, a guess
is right with probability :math:`q = e^\varepsilon / (1 + e^\varepsilon)` at
most, whatever the others are, so that too many right ones, v, refute it. Delta
allows for a little more:

.. math:: P[\ge v \text{ right}] \le \beta + 2 m \delta \max_{1 \le i \le v}
          \frac{P[v > B \ge v - i]}{i}, \quad \beta = P[B \ge v]

with B a binomial number of r trials of probability q.

References:
  Steinke, Nasr, Jagielski 2023, arXiv:2305.08846, Theorem 5.2.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, special

from jaxdp.accounting import _validate

_MIN_CANARIES = 10
_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneRunBound:
  """A lower bound on epsilon from one run, and the guesses it comes from.

  Attributes:
    value: of epsilon, >= 0.
    confidence: with which the truth is at least ``value``.
    canaries: m, coins that were tossed.
    guesses: r, how many were guessed.
    correct: v, how many of the guesses were right.
  """

  value: float
  confidence: float
  canaries: int
  guesses: int
  correct: int


def one_run_p_value(
  canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> float:
  """The chance of so many right guesses, at most, if the claim is true.

  >>> round(one_run_p_value(10, 10, 10, epsilon=0.0, delta=0.0) * 2**10, 6)
  1.0
  """
  q = special.expit(epsilon)
  moved = np.arange(correct + 1)
  # P[B > k], which is 1 for k = -1.
  tails = special.bdtrc(correct - 1.0 - moved, guesses, q)
  beta, moved, mass = tails[0], moved[1:], tails[1:] - tails[0]
  alpha = np.max(mass / moved, initial=0.0)
  return float(min(beta + 2 * canaries * delta * alpha, 1.0))


def one_run_lower_bound(
  scores: Float[np.ndarray, " canaries"],
  included: Bool[np.ndarray, " canaries"],
  *,
  delta: float,
  confidence: float = 0.95,
  guesses: Sequence[int] | None = None,
) -> OneRunBound:
  """A lower bound on epsilon at delta, from one run with many canaries.

  The highest scores are guessed to be in, as many of the lowest to be out.

  Args:
    scores: after the run; larger for canaries that seem to be in.
    included: the coins, fair and independent of each other and of all else.
    delta: of the claim; 0 for pure differential privacy.
    confidence: in (0, 1).
    guesses: how many to guess; for several, the best bound counts, and each
      gets its share of what is not confident. None for 1/16, 1/8, ..., all.

  Guarantees:
    At most 1 - confidence of bounds exceed the truth.
  """
  scores, included = np.asarray(scores, np.float64), np.asarray(included)
  m = len(scores)
  if scores.ndim != 1 or included.shape != scores.shape or m < _MIN_CANARIES:
    raise ValueError(
      f"scores and included must be vectors of one length, at least "
      f"{_MIN_CANARIES}, got shapes {scores.shape} and {included.shape}."
    )
  if included.dtype != np.bool_ or np.isnan(scores).any():
    raise ValueError(
      "included must be bool and scores numbers, got "
      f"{included.dtype} and {int(np.isnan(scores).sum())} NaN."
    )
  if guesses is None:
    guesses = [int(share * m) for share in _SHARES]
  guesses = [g for g in guesses if g >= 1]
  if not guesses or max(guesses) > m:
    raise ValueError(
      f"guesses must be from 1 to the {m} canaries there are, got {guesses}."
    )
  alpha = (1 - _validate.probability("confidence", confidence)) / len(guesses)
  # In an order of its own, so that equal scores tell nothing.
  mixed = np.random.default_rng(0).permutation(m)
  order = mixed[np.argsort(-scores[mixed], kind="stable")]
  bounds = []
  for count in guesses:
    lowest = count // 2
    highest = count - lowest
    right = np.sum(included[order[:highest]])
    right += np.sum(~included[order[m - lowest :]])
    bounds.append(
      OneRunBound(
        value=_epsilon(m, count, int(right), delta, alpha),
        confidence=confidence,
        canaries=m,
        guesses=count,
        correct=int(right),
      )
    )
  return max(bounds, key=lambda bound: bound.value)


def _epsilon(
  canaries: int, guesses: int, correct: int, delta: float, alpha: float
) -> float:
  """The largest epsilon that is refuted, with all below it; 0 if none is."""

  def gap(epsilon: float) -> float:
    p = one_run_p_value(canaries, guesses, correct, epsilon, delta)
    return p - alpha

  if gap(0.0) > 0:
    return 0.0
  high = 1.0
  while gap(high) <= 0:
    high *= 2
  root = optimize.brentq(gap, 0.0, high, xtol=1e-9)
  return max(float(root) - 1e-8, 0.0)  # on the side that is refuted
