"""Privacy loss distributions of Gaussian releases, by dp-accounting, quickly.

dp-accounting finds the loss of a sampled Gaussian bin by bin in Python, which
takes seconds where a batch is cut. Here the same formula is taken for all bins
at once and everything else (the discretisation, its rounding upwards, mixture
and composition) is dp-accounting's own. A test holds the two against each
other.

References:
  Doroshenko et al. 2022, arXiv:2207.04380 (the discretisation).
  arXiv:2508.15089 (truncated Poisson sampling).
"""

import functools
import math
from typing import Any

import dp_accounting
import numpy as np
from dp_accounting import NeighboringRelation
from dp_accounting.pld import (
  pld_pmf,
  privacy_loss_distribution,
  privacy_loss_mechanism,
)
from scipy import stats

from jaxdp.accounting import _events

_ADJACENCY = privacy_loss_mechanism.AdjacencyType
# Tails of a release beyond this log mass count as a loss of infinity; the
# value is dp-accounting's default.
_LOG_TAIL = -50.0


def supports(release: dp_accounting.DpEvent) -> bool:
  """Whether ``composed`` knows this release."""
  if isinstance(release, dp_accounting.GaussianDpEvent):
    return True
  if not getattr(release, "sampling_probability", 0) > 0:
    return False
  if isinstance(release, dp_accounting.PoissonSampledDpEvent):
    return isinstance(release.event, dp_accounting.GaussianDpEvent)
  return (
    isinstance(release, dp_accounting.TruncatedSubsampledGaussianDpEvent)
    and release.truncated_batch_size > 0
  )


def finest(
  releases: dict[dp_accounting.DpEvent, int], relation: NeighboringRelation
) -> float:
  """The finest bins that fit in memory: about a million for one step.

  Finer than 1e-4 wherever epsilon is below 100 or so, and then not felt.
  """
  span = 0.0
  for release in releases:
    sigma = getattr(release, "event", release).noise_multiplier
    if isinstance(release, dp_accounting.TruncatedSubsampledGaussianDpEvent):
      sigma = sigma / 2  # A cut sample moves by up to twice the bound.
    if not isinstance(release, dp_accounting.GaussianDpEvent):
      span = max(span, 0.5 / sigma**2 + 10 / sigma)
  return 1e-6 * max(span, _events.clt_mu(releases, relation))


@functools.lru_cache(maxsize=1024)
def epsilon(
  releases: tuple[tuple[dp_accounting.DpEvent, int], ...],
  relation: NeighboringRelation,
  discretization: float,
  delta: float,
) -> float:
  """The least epsilon at ``delta`` of all (release, count) together."""
  total = composed(releases, relation, discretization)
  return float(total.get_epsilon_for_delta(delta))


@functools.lru_cache(maxsize=4)
def composed(
  releases: tuple[tuple[dp_accounting.DpEvent, int], ...],
  relation: NeighboringRelation,
  discretization: float,
) -> Any:
  """The distribution of all (release, count) together."""
  total = None
  for release, count in releases:
    if isinstance(release, dp_accounting.GaussianDpEvent):
      # T Gaussian releases are one with noise / sqrt(T).
      release = dp_accounting.GaussianDpEvent(
        release.noise_multiplier / math.sqrt(count)
      )
      part = _single(release, relation, discretization)
    else:
      part = _single(release, relation, discretization).self_compose(count)
    total = part if total is None else total.compose(part)
  return total


@functools.lru_cache(maxsize=8)
def _single(
  release: dp_accounting.DpEvent,
  relation: NeighboringRelation,
  discretization: float,
) -> Any:
  if isinstance(release, dp_accounting.TruncatedSubsampledGaussianDpEvent):
    return _truncated(release, relation, discretization)
  if isinstance(release, dp_accounting.PoissonSampledDpEvent):
    q, sigma = release.sampling_probability, release.event.noise_multiplier
  else:
    q, sigma = 1.0, release.noise_multiplier
  return _sampled(sigma, q, relation, discretization)


def _truncated(
  release: dp_accounting.DpEvent,
  relation: NeighboringRelation,
  discretization: float,
) -> Any:
  n, cap = release.dataset_size, release.truncated_batch_size
  q, sigma = release.sampling_probability, release.noise_multiplier
  whole = _sampled(sigma, q, relation, discretization)
  # If the others alone fill the batch, the record takes the place of another
  # one with this probability, and then the sum moves by twice the bound.
  full = float(stats.binom.sf(cap - 1, n - 1, q))
  if full == 0:
    return whole
  takes_place = float(stats.binom.sf(cap, n, q)) * cap / full / n
  # The rarer this is, the more of its tails is as rare as _LOG_TAIL.
  log_tail = min(_LOG_TAIL - math.log(full), -10.0)
  cut = _sampled(
    sigma / 2,
    takes_place,
    NeighboringRelation.REPLACE_ONE,
    discretization,
    log_tail,
  )
  return cut.compute_mixture(whole, full)


def _sampled(
  sigma: float,
  q: float,
  relation: NeighboringRelation,
  discretization: float,
  log_tail: float = _LOG_TAIL,
) -> Any:
  def pmf(adjacency: Any) -> Any:
    loss = _GaussianLoss(
      sigma,
      log_mass_truncation_bound=log_tail,
      sampling_prob=q,
      adjacency_type=adjacency,
    )
    bounds = loss.connect_dots_bounds()
    low = math.floor(bounds.epsilon_lower / discretization)
    high = math.ceil(bounds.epsilon_upper / discretization)
    deltas = loss.get_delta_for_epsilon(
      np.arange(low, high + 1) * discretization
    )
    return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(
      discretization, low, high, deltas
    )

  if relation == NeighboringRelation.REPLACE_ONE:
    return privacy_loss_distribution.PrivacyLossDistribution(
      pmf(_ADJACENCY.REPLACE)
    )
  if q == 1:
    return privacy_loss_distribution.PrivacyLossDistribution(
      pmf(_ADJACENCY.REMOVE)
    )
  return privacy_loss_distribution.PrivacyLossDistribution(
    pmf(_ADJACENCY.REMOVE), pmf(_ADJACENCY.ADD)
  )


class _GaussianLoss(privacy_loss_mechanism.GaussianPrivacyLoss):
  """dp-accounting's loss, whose delta takes all epsilons at once."""

  def get_delta_for_epsilon(self, epsilon: np.ndarray) -> np.ndarray:
    """The hockey-stick divergence at each epsilon of an array."""
    q = self.sampling_prob
    deltas = np.zeros_like(epsilon)
    reached = np.ones_like(epsilon, dtype=np.bool_)
    if q < 1 and self.adjacency_type == _ADJACENCY.ADD:
      reached = epsilon < -math.log1p(-q)  # No loss is larger: delta is 0.
    if q < 1 and self.adjacency_type == _ADJACENCY.REMOVE:
      reached = epsilon > math.log1p(-q)  # All losses are larger.
      deltas[~reached] = -np.expm1(epsilon[~reached])
    x = self._outputs(epsilon[reached])
    lower = np.exp(epsilon[reached] + self.mu_lower_log_cdf(x))
    deltas[reached] = self.mu_upper_cdf(x) - lower
    return np.clip(deltas, 0, 1)

  def _outputs(self, loss: np.ndarray) -> np.ndarray:
    """The largest output whose privacy loss is at least ``loss``."""
    q, width, variance = (
      self.sampling_prob,
      self.sensitivity,
      self.standard_deviation**2,
    )
    if self.adjacency_type == _ADJACENCY.REPLACE:
      if q == 1:
        return -loss * variance / width / 2
      log_alpha = 0.5 * width**2 / variance + math.log1p(-q) - math.log(q)
      with np.errstate(divide="ignore"):
        half = np.abs(loss) / 2
        log_sinh = half + np.log1p(-np.exp(-2 * half)) - math.log(2)
      log_argument = log_alpha + log_sinh
      asinh = np.logaddexp(
        0.5 * np.logaddexp(0, 2 * log_argument), log_argument
      )
      x = variance / width * (-np.sign(loss) * asinh - loss / 2)
      return np.where(loss == 0, 0.0, x)
    if self.adjacency_type == _ADJACENCY.ADD:
      return width / 2 + _without_sampling(-loss, q) * variance / width
    return -width / 2 - _without_sampling(loss, q) * variance / width


def _without_sampling(loss: np.ndarray, q: float) -> np.ndarray:
  """log(1 + (e^loss - 1) / q): the loss if the record were there for sure."""
  if q == 1:
    return loss
  with np.errstate(divide="ignore"):
    small = np.log1p(np.maximum(np.expm1(np.minimum(loss, 1.0)) / q, -1.0))
    large = loss - math.log(q) + np.log1p((q - 1) * np.exp(-np.abs(loss)))
  return np.where(loss < 1, small, large)
