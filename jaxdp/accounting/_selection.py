r"""Private selection: a random number of runs, of which the best is shown.

Tuning costs privacy. Where the number K of runs is drawn from a law beforehand,
and not fixed, the best of them costs little more than one:

.. math::
  \varepsilon'(\lambda) = \varepsilon(\lambda)
  + (1 + \eta)\Bigl(1 - \frac{1}{\hat\lambda}\Bigr) \varepsilon(\hat\lambda)
  + \frac{(1 + \eta) \ln(1 / \gamma)}{\hat\lambda}
  + \frac{\ln E K}{\lambda - 1}

in Renyi DP of order lambda, for every other order, if K follows the truncated
negative binomial law with shape eta and parameter gamma (Theorem 2), and

.. math::
  \varepsilon'(\lambda) = \varepsilon(\lambda) + E K \cdot \hat\delta
  + \frac{\ln E K}{\lambda - 1}

if K is Poisson and a run is :math:`(\ln(1 + 1/(\lambda - 1)), \hat\delta)`-DP
(Theorem 6). dp-accounting works both out.

References:
  Papernot and Steinke 2021, arXiv:2110.03620; Liu and Talwar 2019,
  arXiv:1811.07971.
"""

import dataclasses
import math
import secrets
from typing import Any, ClassVar

import dp_accounting
import numpy as np
from scipy import optimize, stats

from jaxdp.accounting import _events, _ledger, _statement, _validate
from jaxdp.accounting._assumptions import RunFacts

_SHAPES = {"poisson": math.inf, "geometric": 1.0, "logarithmic": 0.0}
# Of delta, for batches that are cut, when an error names a better cap.
_SMALL = 1e-2


@dataclasses.dataclass(frozen=True)
class Selection:
  """Draws how often to run, before the first run, and charges the choice.

  Run as often as ``draw()`` says, each time with settings drawn anew from a law
  that was fixed beforehand, and show the run with the best score and nothing
  else, not even how many there were. A score may be computed from what the run
  released and from public data. From private data it is a release of its own,
  and needs noise that is part of the mechanism. All runs cost the same.

  Args:
    mean: of the number of runs, at least 1.
    shape: "poisson", "geometric", "logarithmic", or eta >= 0 of the truncated
      negative binomial law; 1 is geometric, 0 logarithmic. A Poisson number may
      be 0: then show what does not depend on the data. It stays near its mean;
      the others cost less where the mean is large, and spread wider.

  Example:
    >>> import jaxdp
    >>> mechanism = jaxdp.Mechanism(
    ...   jaxdp.clipping.flat(1.0), jaxdp.sampling.FullBatch(1000), 30.0
    ... )
    >>> round(mechanism.epsilon(100, 1e-5), 2)
    1.27
    >>> round(Selection(10).epsilon(mechanism, 100, 1e-5), 1)
    3.2
  """

  mean: float
  shape: str | float = "poisson"

  SHAPES: ClassVar[tuple[str, ...]] = tuple(_SHAPES)

  def __post_init__(self) -> None:
    mean = _validate.at_least_zero("mean", self.mean)
    if not 1 <= mean < math.inf:
      raise ValueError(
        f"mean must be >= 1 and finite, got mean={self.mean}: it is how many "
        "runs to expect."
      )
    if isinstance(self.shape, str):
      if self.shape not in _SHAPES:
        raise ValueError(
          f"shape must be one of {self.SHAPES}, or a number >= 0, got "
          f"{self.shape!r}."
        )
    else:
      _validate.at_least_zero("shape", self.shape)

  @property
  def eta(self) -> float:
    """The shape as a number; infinite for Poisson."""
    shape = self.shape
    return _SHAPES[shape] if isinstance(shape, str) else float(shape)

  def __str__(self) -> str:
    law = self.shape
    if not isinstance(law, str):
      law = f"truncated negative binomial (eta = {law:g})"
    return f"the number of runs was drawn, {law} with mean {self.mean:g}"

  def draw(self) -> int:
    """How often to run, by the operating system's randomness. *Sensitive*."""
    return int(self.quantile((secrets.randbits(53) + 0.5) / 2**53))

  def quantile(self, u: Any) -> np.ndarray:
    """The smallest number of runs that has probability u of not more."""
    eta = self.eta
    if math.isinf(eta):
      return np.asarray(stats.poisson.ppf(u, self.mean))
    if self.mean == 1:
      return np.ones_like(u)
    gamma = _gamma(self.mean, eta)
    if eta == 0:
      return np.asarray(stats.logser.ppf(u, 1 - gamma))
    none = gamma**eta  # what is cut off: the probability of 0
    return np.maximum(stats.nbinom.ppf(none + (1 - none) * u, eta, gamma), 1)

  def dp_event(self, event: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
    """The event of the selection, from that of one run."""
    return dp_accounting.dp_event.RepeatAndSelectDpEvent(
      event, float(self.mean), self.eta
    )

  def epsilon(
    self, mechanism: _ledger.PlannedMechanism, num_steps: int, delta: float
  ) -> float:
    """Epsilon of the selected run.

    By Renyi DP, whatever the mechanism's accountant is: with a mean of 1 it is
    still more than ``mechanism.epsilon``.

    Args:
      mechanism: of every run.
      num_steps: of every run.
      delta: inside (0, 1).

    Raises:
      ValueError: sampled batches under a relation that has no Renyi accountant,
        or batches that are cut so often that delta does not cover it.
    """
    delta = _validate.probability("delta", delta)
    plan = _ledger.Plan.of(mechanism)
    event = plan.dp_event(0, num_steps)
    if not _events.is_private(event):
      return math.inf
    whole, cut = _without_cut(event, self.mean, delta)
    accountant = dp_accounting.rdp.RdpAccountant(
      neighboring_relation=plan.neighboring_relation
    )
    if not accountant.supports(whole):
      raise ValueError(
        f"{type(plan.sampler).__name__} has no Renyi accountant under "
        f"{plan.neighboring_relation.name}, and selection needs one. Use "
        "ADD_OR_REMOVE_ONE, or FixedSize for REPLACE_ONE."
      )
    accountant.compose(self.dp_event(whole))
    return max(0.0, float(accountant.get_epsilon(delta - cut)))

  def privacy(
    self,
    mechanism: Any,
    num_steps: int,
    delta: float,
    *,
    seed_policy: str = "os",
    facts: RunFacts | None = None,
  ) -> _statement.PrivacyStatement:
    """The statement of the selected run; see ``Mechanism.privacy``."""
    facts = facts or RunFacts(public_batch=mechanism.rule.needs_public_norms)
    facts = dataclasses.replace(facts, selection=str(self), num_runs=None)
    one = mechanism.privacy(
      num_steps, delta, seed_policy=seed_policy, facts=facts
    )
    return dataclasses.replace(
      one,
      epsilon=self.epsilon(mechanism, num_steps, delta),
      accountant="rdp",
      dp_event=repr(self.dp_event(mechanism.dp_event(num_steps))),
    )


def _gamma(mean: float, eta: float) -> float:
  """The parameter of the truncated negative binomial law with this mean."""

  def excess(log_gamma: float) -> float:
    odds = math.expm1(-log_gamma)  # 1/gamma - 1
    if eta == 0:
      return -odds / log_gamma - mean
    return -eta * odds / math.expm1(eta * log_gamma) - mean

  return math.exp(optimize.brentq(excess, -700 / max(eta, 1), -1e-12))


def _without_cut(
  event: dp_accounting.DpEvent, mean: float, delta: float
) -> tuple[dp_accounting.DpEvent, float]:
  """The event as if no batch were cut, and the delta that this takes.

  Whether the others fill a batch does not depend on the record. So all runs in
  which it happens, at any step, can be given up for their probability; the rest
  are plain Poisson sampling, and their number follows the same law with a
  smaller mean.
  """
  parts, cut = [], 0.0
  for release, count in _events.leaves(event).items():
    if isinstance(release, dp_accounting.TruncatedSubsampledGaussianDpEvent):
      n, q = release.dataset_size - 1, release.sampling_probability
      cap = release.truncated_batch_size
      steps = count * mean
      mine = steps * float(stats.binom.sf(cap - 1, n, q))
      if mine >= delta:
        better = int(stats.binom.isf(_SMALL * delta / steps, n, q)) + 1
        raise ValueError(
          f"Batches are cut at {cap} rows, which over {count:,} steps of "
          f"{mean:g} runs happens with probability {mine:.2g}, more than delta "
          f"= {delta:g}. Use max_batch_size={better}."
        )
      cut += mine
      release = dp_accounting.PoissonSampledDpEvent(
        q, dp_accounting.GaussianDpEvent(release.noise_multiplier)
      )
    parts.append(dp_accounting.SelfComposedDpEvent(release, count))
  if cut >= delta:
    raise ValueError(
      f"Batches are cut with probability {cut:.2g} in all, more than delta = "
      f"{delta:g}. Use a larger max_batch_size."
    )
  return dp_accounting.ComposedDpEvent(parts), cut
