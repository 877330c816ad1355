"""A mechanism's claim against what thousands of its runs show."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from jaxdp.accounting import TradeoffCurve, _validate
from jaxdp.audit import _bounds, _trials
from jaxdp.mechanism import Mechanism


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditResult:
  """What was claimed, and the least that it can be.

  Attributes:
    mechanism: a name, or the repr.
    kind: "gradient canary" or "one run".
    epsilon_claimed: by the mechanism's own accounting, at ``delta``.
    epsilon_lower: the lower bound; above the claim, the claim is wrong.
    delta: of both.
    mu_claimed: the mu of the claimed trade-off curve, at the false positive
      rate of the best test; with Gaussian DP the same everywhere. None where no
      such test was made.
    mu_lower: the lower bound on mu; above ``mu_claimed``, a point lies below
      the curve, and the claim is wrong.
    confidence: of each bound.
    trials: on each side; or canaries of one run.
    num_steps: of a trial or of the run.
    accountant: of the claim. For "gdp", epsilon_lower is that of mu_lower.
    neighboring_relation: of the claim.
    seed: of the trials.
  """

  mechanism: str
  kind: str
  epsilon_claimed: float
  epsilon_lower: float
  delta: float
  mu_claimed: float | None
  mu_lower: float | None
  confidence: float
  trials: int
  num_steps: int
  accountant: str
  neighboring_relation: str
  seed: int

  @property
  def exceeds(self) -> bool:
    """Whether the claim is refuted, at the confidence."""
    below_curve = (self.mu_lower or 0.0) > (self.mu_claimed or math.inf)
    return below_curve or self.epsilon_lower > self.epsilon_claimed

  def to_json(self) -> str:
    """One object, strict JSON; an infinite mu is null."""
    fields = dataclasses.asdict(self)
    if self.mu_claimed is not None and math.isinf(self.mu_claimed):
      fields["mu_claimed"] = None
    return json.dumps(fields, indent=2, allow_nan=False)

  def __str__(self) -> str:
    verdict = "REFUTES the claim" if self.exceeds else "is within the claim"
    noun = "canaries" if self.kind == "one run" else "trials a side"
    of_mu = ""
    if self.mu_lower is not None:
      of_mu = f" (μ >= {self.mu_lower:.4g} of {self.mu_claimed:.4g} there)"
    return (
      f"{self.mechanism}: claimed ε = {self.epsilon_claimed:.4g}, δ = "
      f"{self.delta:g} ({self.neighboring_relation}, {self.accountant}).\n"
      f"Audit ({self.kind}, {self.trials:,} {noun}, {self.num_steps} steps): "
      f"ε >= {self.epsilon_lower:.4g} at {self.confidence:.0%} confidence"
      f"{of_mu}, which {verdict}."
    )


def mechanism(
  mechanism: Mechanism,
  *,
  delta: float,
  num_steps: int = 1,
  trials: int = 20_000,
  confidence: float = 0.95,
  seed: int = 0,
  name: str | None = None,
  loss_fn: Callable | None = None,
  params: PyTree | None = None,
  **options: Any,
) -> AuditResult:
  """Audits a mechanism with a canary in gradient space: the worst case.

  Trials are short runs of ``make_train_step`` on neighbouring data sets, whose
  batches the mechanism's own sampler draws. The data set with the canary has
  one unit whose gradient exceeds any clip norm; the others contribute nothing
  (in buckets, they pull the other way). The adversary sees all releases, knows
  everything but noise and batches, and scores by likelihood.

  Args:
    mechanism: with a small sampler, as thousands of its batches are drawn.
    delta: of the claim.
    num_steps: of each trial.
    trials: on each side.
    confidence: of the bound.
    seed: of noise and batches.
    name: for the result.
    loss_fn: made of ``audit.linear_loss`` by a wrapper of units, such as
      ``units.mean_over_views``; None for ``linear_loss``.
    params: whose groups the rule clips; None for a few numbers in two layers.
    **options: of ``make_train_step``: engine, microbatch, inner momentum.

  Returns:
    The claim is that of ``mechanism.privacy(num_steps, delta)``. If it is one
    of Gaussian DP, epsilon_lower comes from mu, else from epsilon at delta. The
    best test's errors are held against ``mechanism.tradeoff(num_steps)`` too,
    which is the sharper of both where batches are sampled.

  Example:
    >>> import jaxdp
    >>> flat = jaxdp.Mechanism(
    ...   jaxdp.clipping.flat(1.0), jaxdp.sampling.FullBatch(3), 1.0
    ... )
    >>> result = mechanism(flat, delta=1e-5, trials=2000)
    >>> 3.0 < result.epsilon_lower < result.epsilon_claimed < 4.4
    True

  References:
    Nasr et al. 2023, arXiv:2302.07956; Steinke et al. 2023, arXiv:2305.08846,
    section 2 on canaries in gradient space.
  """
  trials = _validate.integer("trials", trials, minimum=_bounds.MIN_TRIALS)
  num_steps = _validate.integer("num_steps", num_steps, minimum=1)
  statement = mechanism.privacy(num_steps, delta)
  if not math.isfinite(statement.epsilon):
    raise ValueError(
      "This mechanism claims no finite epsilon, so there is nothing to audit. "
      "Give it noise and a rule that bounds gradients."
    )
  found = _trials.scores(
    mechanism,
    num_steps=num_steps,
    trials=trials,
    seed=seed,
    loss_fn=loss_fn,
    params=params,
    **options,
  )
  mu = _bounds.mu_lower_bound(*found, confidence=confidence)
  of_epsilon = (
    _bounds.gdp_epsilon_lower_bound
    if statement.accountant == "gdp"
    else _bounds.epsilon_lower_bound
  )
  epsilon = of_epsilon(*found, delta=delta, confidence=confidence)
  return AuditResult(
    mechanism=repr(mechanism) if name is None else name,
    kind="gradient canary",
    epsilon_claimed=statement.epsilon,
    epsilon_lower=epsilon.value,
    delta=delta,
    mu_claimed=_mu_claimed(mechanism.tradeoff(num_steps), mu),
    mu_lower=mu.value,
    confidence=confidence,
    trials=trials,
    num_steps=num_steps,
    accountant=statement.accountant,
    neighboring_relation=statement.neighboring_relation,
    seed=seed,
  )


def _mu_claimed(curve: TradeoffCurve, bound: _bounds.Bound) -> float:
  """What ``bound`` may be, at most, where its test is on the claimed curve."""
  (_, fpr), _ = bound.intervals
  if fpr == 1:
    return math.inf  # A test that always says "with" is bounded by nothing.
  return float(_bounds.mu_of(fpr, curve(fpr)))
