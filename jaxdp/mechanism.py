"""``Mechanism``: rule + sampler + noise, as one release and its DpEvent.

The same object makes the training step and the event that is accounted, so that
what runs and what is claimed cannot differ. ``release`` is the only door
through which a gradient leaves: sum, then noise, then division by a public
constant.
"""

import dataclasses
import math
import numbers
from typing import Any, NamedTuple

import dp_accounting
import jax
import jax.numpy as jnp
import optax
from dp_accounting import NeighboringRelation
from jaxtyping import Array, Float, Int, PyTree

from jaxdp import accounting, aggregation, noise
from jaxdp.aggregation import ClippedSum
from jaxdp.clipping import ClippingRule, assign_groups
from jaxdp.sampling import Sampler
from jaxdp.schedule import CONSTANT, PiecewiseConstant


class MechanismState(NamedTuple):
  """State of a release. *Sensitive*: who has the key can subtract the noise."""

  # As optax names it.
  count: Array  # type: ignore[assignment]  # shape=(), dtype=int32
  key: Array  # shape=(2,), dtype=uint32; threefry key data
  rule_state: Any  # public
  stddev: Float[Array, " groups+statistics"]  # of the last sum; public


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mechanism:
  r"""A clipping rule, a sampler and a noise multiplier: one private release.

  .. math:: \frac{1}{B}\Big(\sum_i w_i g_i + \mathcal N(0, s^2)\Big), \quad
            s_l = \sigma \, c \, R \, \gamma_l

  with R and gamma the rule's bound and noise shape, c the sampler's sensitivity
  factor and B its public, expected number of units.

  Args:
    rule: see ``jaxdp.clipping``.
    sampler: see ``jaxdp.sampling``.
    noise_multiplier: sigma >= 0, the noise's standard deviation over the
      sensitivity of the sum under ``neighboring_relation``. None until
      ``calibrate_noise`` has chosen it. 0 is not private.
    neighboring_relation: what epsilon speaks about; None for the sampler's own.
    noise_schedule: factors of sigma, by step. (``clipping.scheduled`` moves a
      clip norm, at no cost.)

  Raises:
    ValueError: negative or NaN noise, a relation that the sampler has no sound
      accountant for, noise on a rule that bounds nothing.

  Example:
    >>> import jaxdp
    >>> mechanism = Mechanism(
    ...   jaxdp.clipping.flat(1.0), jaxdp.sampling.FullBatch(1000), 30.0
    ... )
    >>> round(mechanism.epsilon(num_steps=100, delta=1e-5), 4)
    1.2711

  References:
    Abadi et al. 2016, arXiv:1607.00133, Algorithm 1.
  """

  rule: ClippingRule
  sampler: Sampler = dataclasses.field(metadata={"static": True})
  noise_multiplier: Any = None
  neighboring_relation: NeighboringRelation | None = dataclasses.field(
    default=None, metadata={"static": True}
  )
  noise_schedule: PiecewiseConstant = dataclasses.field(
    default=CONSTANT, metadata={"static": True}
  )

  def __post_init__(self) -> None:
    if self.neighboring_relation is None:
      relation = self.sampler.default_relation
      object.__setattr__(self, "neighboring_relation", relation)
    self.sampler.sensitivity_factor(self.relation)  # raises if unsupported
    if not isinstance(self.noise_multiplier, numbers.Real):
      return  # None, traced, or an axis of a study
    sigma = float(self.noise_multiplier)
    if not (sigma >= 0 and math.isfinite(sigma)):
      raise ValueError(
        "noise_multiplier must be >= 0 and finite, got noise_multiplier="
        f"{sigma}. Use jaxdp.calibrate_noise to find it for a target epsilon."
      )
    if sigma > 0 and math.isinf(self.rule.bound):
      raise ValueError(
        f"{type(self.rule).__name__} bounds nothing, so noise_multiplier="
        f"{sigma} has no scale. Use clipping.flat(l2_clip_norm=...), or "
        "noise_multiplier=0 for training that is not private."
      )

  def replace(self, **changes: Any) -> "Mechanism":
    """A copy with some fields changed."""
    return dataclasses.replace(self, **changes)

  @property
  def relation(self) -> NeighboringRelation:
    """The neighbouring relation, never None."""
    assert self.neighboring_relation is not None
    return self.neighboring_relation

  # Accounting: post-construction, on the host, in Python numbers.

  @property
  def sigma(self) -> float:
    """The noise multiplier as a Python number.

    Raises:
      ValueError: it was not chosen yet.
    """
    if self.noise_multiplier is None:
      raise ValueError(
        "This mechanism has no noise_multiplier yet. Give one, or call "
        "jaxdp.calibrate_noise(mechanism, target_epsilon=..., "
        "target_delta=..., num_steps=...)."
      )
    return float(self.noise_multiplier)

  @property
  def is_private(self) -> bool:
    """Whether a finite epsilon exists: some noise and a finite bound."""
    return self.sigma > 0 and math.isfinite(self.rule.bound)

  @property
  def accountant(self) -> str:
    """Name of the accountant that is right for the sampler and relation."""
    return self.sampler.accountant(self.relation)

  def dp_event(self, num_steps: int) -> dp_accounting.DpEvent:
    """What ``num_steps`` releases are, in the accountant's convention."""
    return accounting.Plan.of(self).dp_event(0, num_steps)

  def epsilon(self, num_steps: int, delta: float) -> float:
    """Epsilon of ``num_steps`` releases at ``delta``; inf if not private."""
    return accounting.epsilon(
      self.dp_event(num_steps), self.accountant, self.relation, delta
    )

  def delta(self, num_steps: int, epsilon: float) -> float:
    """Delta of ``num_steps`` releases at ``epsilon``; 1 if not private."""
    return accounting.delta(
      self.dp_event(num_steps), self.accountant, self.relation, epsilon
    )

  def tradeoff(self, num_steps: int) -> accounting.TradeoffCurve:
    """The f-DP curve of ``num_steps`` releases: alpha -> beta."""
    return accounting.tradeoff(
      self.dp_event(num_steps), self.accountant, self.relation
    )

  def ledger(self) -> accounting.Ledger:
    """An empty ledger of this mechanism's executed steps."""
    return accounting.Ledger.for_mechanism(self)

  def privacy(
    self,
    num_steps: int,
    delta: float,
    *,
    seed_policy: str = "os",
    facts: accounting.RunFacts | None = None,
  ) -> accounting.PrivacyStatement:
    """Everything a reader of ``num_steps`` releases must know."""
    ledger = self.ledger()
    ledger.charge(num_steps)
    if facts is None:
      facts = accounting.RunFacts(public_batch=self.rule.needs_public_norms)
    return ledger.statement(
      delta, rule=repr(self.rule), seed_policy=seed_policy, facts=facts
    )

  def to_dict(self) -> dict[str, Any]:
    """The mechanism as JSON-able values."""
    sigma = self.noise_multiplier
    return {
      "rule": self.rule.to_dict(),
      "sampler": self.sampler.to_dict(),
      "noise_multiplier": None if sigma is None else float(sigma),
      "neighboring_relation": self.relation.name,
      "noise_schedule": self.noise_schedule.levels,
    }

  # The release: pure functions of arrays.

  def stddev(
    self, rule_state: Any, step: Int[Array, ""] | int = 0
  ) -> Float[Array, " groups+statistics"]:
    """Standard deviation of the noise on the sum of a step, by group."""
    if self.noise_multiplier is None:
      self.sigma  # noqa: B018  raises with the remedy
    shape = self.rule.noise_shape(rule_state)
    if math.isinf(self.rule.bound):
      return jnp.zeros_like(shape)
    c = self.sampler.sensitivity_factor(self.relation)
    sigma = self.noise_multiplier * self.noise_schedule(step)
    return sigma * c * self.rule.bound * shape

  def init(self, params: PyTree, key: Array) -> MechanismState:
    """State before the first release.

    Args:
      params: the trained parameters (see ``partition_params``).
      key: a threefry key for all noise of the run, used nowhere else.
    """
    rule_state = self.rule.init(params)
    return MechanismState(
      jnp.zeros((), jnp.int32),
      jnp.array(noise.key_data(key)),  # a copy, as steps may donate the state
      rule_state,
      self.stddev(rule_state),
    )

  def refresh(
    self, state: MechanismState, public_norms: Float[Array, " groups"]
  ) -> MechanismState:
    """The state with the rule's scales moved to those of a public batch.

    Args:
      state: of this mechanism.
      public_norms: from ``jaxdp.public_norms``, at the current parameters. They
        must come from data that needs no protection.
    """
    rule_state = self.rule.refresh(state.rule_state, public_norms)
    stddev = self.stddev(rule_state, state.count)
    return state._replace(rule_state=rule_state, stddev=stddev)

  def release(
    self,
    summed: ClippedSum,
    state: MechanismState,
    *,
    expected_num_units: Any = None,
  ) -> tuple[PyTree, MechanismState]:
    """Adds noise to a clipped sum and divides by the expected number of units.

    Args:
      summed: from ``clipped_sum`` or ``sum_examples``, clipped by this rule,
        of a batch of this sampler.
      state: from ``init`` or the release before.
      expected_num_units: public; None for the sampler's. For programs that
        samplers of several batch sizes share.

    Returns:
      ``(noisy_mean, state)``: the first values that may be released, in the
      parameters' dtypes.

    Raises:
      ValueError: the sum is of another rule, of other groups than the state, of
        another number of rows, or of a batch that may hold padding and came
        without its mask.
    """
    self._check(summed)
    step_key = noise.fold_in(state.key, state.count)
    stddev = self.stddev(state.rule_state, state.count)
    groups = assign_groups(self.rule, summed.grads)
    treedef = jax.tree.structure(summed.grads)
    if len(stddev) != len(groups.names) + len(summed.statistic):
      raise ValueError(
        f"The mechanism's state has {len(stddev)} noise scales, but the sum "
        f"has {len(groups.names)} groups and {len(summed.statistic)} "
        "statistics. "
        "Make the state with mechanism.init(trained, key), where trained, _ = "
        "partition_params(params, trainable) as for the gradients."
      )
    stddevs = (
      jax.tree.unflatten(treedef, [stddev[group] for group in groups.of_leaf]),
      stddev[len(groups.names) :],
    )
    noisy_sum, noisy_statistic = noise.add_gaussian_noise(
      step_key, (summed.grads, summed.statistic), stddevs
    )
    units = expected_num_units
    if units is None:
      units = self.sampler.expected_num_units
    noisy_mean = jax.tree.map(
      lambda x, dtype: (x / units).astype(dtype),
      noisy_sum,
      jax.tree.unflatten(treedef, summed.dtypes),
    )
    rule_state = self.rule.update(state.rule_state, noisy_statistic / units)
    new_state = MechanismState(state.count + 1, state.key, rule_state, stddev)
    return noisy_mean, new_state

  def _check(self, summed: ClippedSum) -> None:
    if not isinstance(summed, ClippedSum):
      raise ValueError(
        "release takes the ClippedSum of clipped_sum or sum_examples, got "
        f"{type(summed).__name__}. In an optax chain, mechanism.aggregate(key) "
        "takes per-example gradients."
      )
    if summed.tag != aggregation.rule_tag(self.rule):
      raise ValueError(
        f"The gradients were clipped by {summed.tag}, but this mechanism's "
        f"rule is {self.rule}: its noise would not fit. Use one rule for both; "
        "inside jit, close over it or pass the mechanism in."
      )
    if self.sampler.may_pad and not summed.masked:
      raise ValueError(
        f"Batches of {type(self.sampler).__name__} may hold padding, and this "
        "sum was made without its mask. Pass is_padding_example=batch"
        ".is_padding_example, or wrap stacked gradients with "
        "PerExampleGrads.from_stacked(tree, is_padding_example)."
      )
    if summed.num_units != self.sampler.batch_size:
      raise ValueError(
        f"The sum is over {summed.num_units} rows, but batches of "
        f"{self.sampler} have {self.sampler.batch_size}. Feed what "
        "sampler.sample(seed, step) names, all of it, once."
      )

  def noise_stddev(self, state: MechanismState, params: PyTree) -> PyTree:
    """Standard deviation of the noise on the last released mean, by leaf.

    Public. Scalars in a tree like ``params`` (the trained ones), for optimizers
    that correct for the noise (``jaxdp.optimizers.adam_bc``).
    """
    groups = assign_groups(self.rule, params)
    treedef = jax.tree.structure(params)
    mean = state.stddev / self.sampler.expected_num_units
    return jax.tree.unflatten(
      treedef, [mean[group] for group in groups.of_leaf]
    )

  # The optax way.

  @aggregation.refuse_inject_hyperparams
  def privatize(self, key: Array) -> optax.GradientTransformation:
    """Optax stage: ``release``, on what ``sum_examples`` hands on.

    The key goes into the state at ``init``, as data: it is never a constant of
    a compiled program.
    """

    def init_fn(params: PyTree) -> MechanismState:
      aggregation.check_not_masked(params)
      return self.init(params, key)

    def update_fn(
      updates: Any, state: MechanismState, params: Any = None
    ) -> tuple[PyTree, MechanismState]:
      del params
      return self.release(updates, state)

    return optax.GradientTransformation(init_fn, update_fn)

  @aggregation.refuse_inject_hyperparams
  def aggregate(self, key: Array) -> optax.GradientTransformation:
    """Optax stage: clip, sum and release, from per-example gradients.

    Equals ``chain(clip_per_example(rule), sum_examples(), privatize(key))``,
    and keeps the state of adaptive rules too.

    Args:
      key: goes into the state at ``init``, see ``privatize``.

    Example:
      >>> import jaxdp
      >>> mechanism = Mechanism(
      ...   jaxdp.clipping.flat(1.0), jaxdp.sampling.FullBatch(2), 0.0
      ... )
      >>> tx = optax.chain(
      ...   mechanism.aggregate(jax.random.key(0)), optax.sgd(1.0)
      ... )
      >>> stacked = {"w": jnp.array([[3.0, 4.0], [0.0, 0.0]])}
      >>> state = tx.init({"w": jnp.zeros(2)})
      >>> updates, state = tx.update(stacked, state)
      >>> print(updates["w"])
      [-0.3 -0.4]
    """
    privatize = self.privatize(key)

    def update_fn(
      updates: Any, state: MechanismState, params: Any = None
    ) -> tuple[PyTree, MechanismState]:
      del params
      grads = aggregation.as_per_example_grads(updates)
      clipped, _ = aggregation.clip(self.rule, grads, state.rule_state)
      return self.release(aggregation.sum_clipped(clipped), state)

    return optax.GradientTransformation(privatize.init, update_fn)
