r"""Gaussian differential privacy: one number, mu, in closed form.

A mechanism is mu-GDP if telling neighbours apart is no easier than telling
N(0, 1) from N(mu, 1) by one draw. One release with noise multiplier sigma has
mu = 1/sigma. Composition adds squares, and for Gaussian releases without
sampling all of this is exact.

>>> from jaxdp.accounting import gdp
>>> mu = gdp.compose([1 / 30.0] * 100)
>>> round(gdp.epsilon(mu, delta=1e-5), 6)
1.271088

References:
  Dong, Roth, Su 2019, "Gaussian differential privacy", arXiv:1905.02383.
  Balle, Wang 2018, arXiv:1805.06530, Theorem 8 (delta of epsilon).
"""

import math
from collections.abc import Iterable

import numpy as np
from scipy import optimize, special

from jaxdp.accounting import _validate

_SQRT_2 = math.sqrt(2)
_TWO_OVER_SQRT_PI = 2 / math.sqrt(math.pi)


def compose(mus: Iterable[float]) -> float:
  r"""The mu of several releases: :math:`\sqrt{\sum_i \mu_i^2}`.

  >>> compose([3.0, 4.0])
  5.0
  """
  return math.hypot(*mus)


def group(mu: float, size: int) -> float:
  """The mu that protects ``size`` records at once: ``size * mu``."""
  return size * mu


def delta(mu: float, epsilon: float) -> float:
  r"""The smallest delta at ``epsilon``.

  .. math:: \delta(\varepsilon) = \Phi(-\varepsilon/\mu + \mu/2)
            - e^\varepsilon \Phi(-\varepsilon/\mu - \mu/2)

  Edge cases:
    mu = 0 gives 0; mu = inf gives 1.

  >>> round(delta(mu=1.0, epsilon=4.3772), 8)
  1e-05
  """
  return math.exp(log_delta(mu, epsilon))


def log_delta(mu: float, epsilon: float) -> float:
  """The logarithm of ``delta``, exact where ``delta`` itself underflows."""
  mu = _validate.at_least_zero("mu", mu)
  epsilon = _validate.at_least_zero("epsilon", epsilon)
  if mu == 0 or math.isinf(epsilon):
    return -math.inf
  if math.isinf(mu):
    return 0.0
  # With a = eps/mu - mu/2 and b = eps/mu + mu/2 we have b^2 - a^2 = 2 eps, so
  # e^eps Phi(-b) = e^(-a^2/2) erfcx(b/sqrt2) / 2 without overflow.
  a = epsilon / mu - mu / 2
  b = epsilon / mu + mu / 2
  if a > 0:
    if a > 1e100:
      return -math.inf
    return float(
      -a * a / 2 + math.log(_erfcx_fall(a / _SQRT_2, mu / _SQRT_2) / 2)
    )
  if epsilon > 1:
    second = math.exp(-a * a / 2) * special.erfcx(b / _SQRT_2) / 2
    return float(math.log(special.ndtr(-a) - second))
  # Phi(-a) - Phi(-b) - (e^eps - 1) Phi(-b): the first two do not cancel, as
  # a <= 0 <= b, and the third is smaller by a factor of mu.
  between = (special.erf(b / _SQRT_2) + special.erf(-a / _SQRT_2)) / 2
  return float(math.log(between - math.expm1(epsilon) * special.ndtr(-b)))


def _erfcx_fall(x: float, width: float) -> float:
  """How much erfcx(x) = e^(x^2) erfc(x) falls over ``width``, for x > 0."""
  fall = special.erfcx(x) - special.erfcx(x + width)
  if fall > 1e-6 * special.erfcx(x):
    return float(fall)
  # All digits cancel. erfcx is convex, so its slope at x bounds the fall.
  if x < 1e3:
    slope = _TWO_OVER_SQRT_PI - 2 * x * special.erfcx(x)
  else:
    slope = _TWO_OVER_SQRT_PI / (2 * x * x)
  return float(width * slope)


def epsilon(mu: float, delta: float) -> float:
  """The smallest epsilon at ``delta``, by solving ``delta`` above.

  Edge cases:
    0 where ``delta`` is at least ``delta(mu, 0)``; mu = inf gives inf.

  >>> round(epsilon(mu=1.0, delta=1e-5), 4)
  4.3772
  """
  mu = _validate.at_least_zero("mu", mu)
  delta = _validate.probability("delta", delta)
  if math.isinf(mu):
    return math.inf
  goal = math.log(delta)
  if log_delta(mu, 0.0) <= goal:
    return 0.0
  # The first term alone bounds delta: Phi(-a) <= delta at this end.
  high = mu * (mu / 2 - special.ndtri(delta)) + mu
  return float(
    optimize.brentq(
      lambda x: log_delta(mu, x) - goal, 0.0, high, xtol=1e-300, rtol=1e-14
    )
  )


def mu(epsilon: float, delta: float) -> float:
  """The largest mu that is (epsilon, delta)-DP: the inverse of ``epsilon``.

  >>> round(mu(epsilon=1.0, delta=1e-5), 5)
  0.26805
  """
  epsilon = _validate.at_least_zero("epsilon", epsilon)
  delta = _validate.probability("delta", delta)
  if math.isinf(epsilon):
    return math.inf
  goal = math.log(delta)
  high = 1.0
  while log_delta(high, epsilon) <= goal:
    high *= 2
  low = high / 2
  while log_delta(low, epsilon) > goal:
    low /= 2
  return float(
    optimize.brentq(
      lambda x: log_delta(x, epsilon) - goal, low, high, xtol=1e-300, rtol=1e-14
    )
  )


def tradeoff(mu: float, alpha: np.ndarray | float) -> np.ndarray:
  r"""The type II error of the best test of level ``alpha``.

  .. math:: \beta(\alpha) = \Phi(\Phi^{-1}(1 - \alpha) - \mu)

  >>> round(float(1 - tradeoff(1.0, 0.1)), 6)
  0.389144
  """
  mu = _validate.at_least_zero("mu", mu)
  # -ndtri(alpha) is Phi^{-1}(1 - alpha) without the rounding of 1 - alpha.
  return np.asarray(special.ndtr(-special.ndtri(np.asarray(alpha)) - mu))


def poisson_clt_mu(
  sampling_probability: float, noise_multiplier: float, num_steps: int
) -> float:
  r"""What Poisson-sampled releases tend to, for plots and first guesses only.

  .. math:: \mu \approx q \sqrt{T (e^{1/\sigma^2} - 1)}

  It may under-state epsilon, so no guarantee may be read from it.

  References:
    Bu, Dong, Long, Su 2019, arXiv:1911.11607, Corollary 4.
  """
  exponent = min(noise_multiplier**-2, 700.0) if noise_multiplier else 700.0
  return sampling_probability * math.sqrt(num_steps * math.expm1(exponent))
