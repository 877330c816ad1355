"""Epsilon and delta of an event, by the accountant that its sampler names.

"pld" and "rdp" are dp-accounting's; "gdp" is the closed form for Gaussian
releases without sampling. What is added here is speed where it is asked often:
the event of a single step is worked out once and then composed as often as
there are steps.

>>> import dp_accounting
>>> event = dp_accounting.SelfComposedDpEvent(
...   dp_accounting.GaussianDpEvent(30.0), count=100
... )
>>> relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
>>> round(epsilon(event, "gdp", relation, delta=1e-5), 4)
1.2711
"""

import functools
import math
from collections.abc import Callable

import dp_accounting
import numpy as np
from dp_accounting import NeighboringRelation

from jaxdp.accounting import _events, _gdp, _pld, _validate

_RDP = dp_accounting.rdp.rdp_privacy_accountant
_ORDERS = _RDP.RdpAccountant().orders
ACCOUNTANTS = ("pld", "rdp", "gdp")
# Bins of the privacy loss. Coarser is faster and epsilon is larger, never
# smaller: dp-accounting rounds losses up.
DISCRETIZATION = 1e-4


def epsilon(
  event: dp_accounting.DpEvent,
  accountant: str,
  relation: NeighboringRelation,
  delta: float,
  *,
  discretization: float = DISCRETIZATION,
) -> float:
  """The smallest epsilon that the accountant can show at ``delta``.

  Args:
    event: what was or will be released; see ``Mechanism.dp_event``.
    accountant: "pld", "rdp" or "gdp"; see ``Mechanism.accountant``.
    relation: what counts as a neighbour.
    delta: inside (0, 1).
    discretization: bin width of the PLD. 1e-3 is some ten times faster and
      some thousandths larger (a hundredth after 10,000 steps): good for a
      progress bar.

  Edge cases:
    | event | epsilon |
    |---|---|
    | nothing released | 0 |
    | ``NonPrivateDpEvent`` or zero noise anywhere | inf |
  """
  delta = _validate.probability("delta", delta)
  return privacy_curve(event, accountant, relation, discretization).epsilon(
    delta
  )


def delta(
  event: dp_accounting.DpEvent,
  accountant: str,
  relation: NeighboringRelation,
  epsilon: float,
  *,
  discretization: float = DISCRETIZATION,
) -> float:
  """The smallest delta that the accountant can show at ``epsilon``.

  Arguments as for ``epsilon``, which is >= 0 here. An event that is not private
  has delta 1, and nothing released has delta 0.
  """
  epsilon = _validate.at_least_zero("epsilon", epsilon)
  return privacy_curve(event, accountant, relation, discretization).delta(
    epsilon
  )


class PrivacyCurve:
  """Delta as a function of epsilon and back."""

  def __init__(
    self,
    epsilon: Callable[[float], float],
    delta: Callable[[float], float],
    mu: float | None = None,
    deltas: Callable[[np.ndarray], np.ndarray] | None = None,
  ):
    self._epsilon, self._delta, self._deltas = epsilon, delta, deltas
    self.mu = mu  # If this is the curve of Gaussian DP, its parameter.

  def epsilon(self, delta: float) -> float:
    return max(0.0, float(self._epsilon(delta)))

  def delta(self, epsilon: float) -> float:
    return min(1.0, max(0.0, float(self._delta(epsilon))))

  def deltas(self, epsilons: np.ndarray) -> np.ndarray:
    """Delta at many ascending epsilons, in one pass where there is one."""
    if self._deltas is None:
      return np.array([self.delta(epsilon) for epsilon in epsilons])
    return np.clip(self._deltas(epsilons), 0.0, 1.0)


def privacy_curve(
  event: dp_accounting.DpEvent,
  accountant: str,
  relation: NeighboringRelation,
  discretization: float,
) -> PrivacyCurve:
  if accountant not in ACCOUNTANTS:
    raise ValueError(
      f"unknown accountant {accountant!r}; use one of {ACCOUNTANTS}. "
      "mechanism.accountant names the right one."
    )
  if not _events.is_private(event):
    return PrivacyCurve(lambda _: math.inf, lambda _: 1.0, mu=math.inf)
  try:
    releases = _events.leaves(event)
  except TypeError:  # An event that holds a list, and so cannot be a key.
    return _by_dp_accounting(event, accountant, relation, discretization)
  if not releases:
    return PrivacyCurve(lambda _: 0.0, lambda _: 0.0, mu=0.0)
  if accountant == "gdp":
    return _gaussian(releases)
  if accountant == "rdp":
    return _renyi(releases, relation)
  if all(map(_pld.supports, releases)):
    bins = max(discretization, _pld.finest(releases, relation))
    key = tuple(releases.items()), relation, bins
    return PrivacyCurve(
      lambda delta: _pld.epsilon(*key, delta),
      lambda epsilon: _pld.composed(*key).get_delta_for_epsilon(epsilon),
      deltas=lambda epsilons: _pld.composed(*key).get_delta_for_epsilon(
        epsilons
      ),
    )
  return _by_dp_accounting(event, accountant, relation, discretization)


# The three accountants, and dp-accounting's own walk for every other event.


def _gaussian(releases: dict[dp_accounting.DpEvent, int]) -> PrivacyCurve:
  for release in releases:
    if not isinstance(release, dp_accounting.GaussianDpEvent):
      raise ValueError(
        'accountant "gdp" is exact for Gaussian releases without sampling '
        f'only, got {release}. Use "pld" or "rdp".'
      )
  mu = _gdp.compose(
    math.sqrt(n) / r.noise_multiplier for r, n in releases.items()
  )
  return PrivacyCurve(
    lambda delta: _gdp.epsilon(mu, delta),
    lambda epsilon: _gdp.delta(mu, epsilon),
    mu=mu,
  )


def _renyi(
  releases: dict[dp_accounting.DpEvent, int],
  relation: NeighboringRelation,
) -> PrivacyCurve:
  divergences = [
    n * _renyi_divergences(r, relation) for r, n in releases.items()
  ]
  total = np.sum(divergences, axis=0)
  return PrivacyCurve(
    lambda delta: _RDP.compute_epsilon(_ORDERS, total, delta)[0],
    lambda epsilon: _RDP.compute_delta(_ORDERS, total, epsilon)[0],
  )


@functools.lru_cache(maxsize=128)
def _renyi_divergences(
  release: dp_accounting.DpEvent, relation: NeighboringRelation
) -> np.ndarray:
  accountant = dp_accounting.rdp.RdpAccountant(neighboring_relation=relation)
  return accountant.compose(release).rdp


def _by_dp_accounting(
  event: dp_accounting.DpEvent,
  accountant: str,
  relation: NeighboringRelation,
  discretization: float,
) -> PrivacyCurve:
  if accountant == "gdp":
    raise ValueError(
      f'accountant "gdp" cannot take {event}; use "pld" or "rdp".'
    )
  if accountant == "rdp":
    made = dp_accounting.rdp.RdpAccountant(neighboring_relation=relation)
  else:
    made = dp_accounting.pld.PLDAccountant(relation, discretization)
  made.compose(event)
  return PrivacyCurve(made.get_epsilon, made.get_delta)
