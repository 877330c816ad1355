"""Clip norms that follow a schedule."""

import math
import numbers
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxdp.clipping import _rule
from jaxdp.schedule import PiecewiseConstant


class ScheduledState(NamedTuple):
  """Public: a number of releases, and the state of the rule inside."""

  step: Int[Array, ""]
  base: _rule.State


@_rule.rule("levels")
class Scheduled(_rule.ClippingRule):
  """See ``scheduled``."""

  adaptive: ClassVar[bool] = True

  base: Any  # a ClippingRule, or what stands for it in a tree transformation
  levels: Any  # kept as pairs

  def __post_init__(self) -> None:
    object.__setattr__(self, "levels", self.schedule.levels)
    if not isinstance(self.base, _rule.ClippingRule):
      return
    follows_norms = self.base.adaptive and not self.base.needs_public_norms
    if follows_norms or math.isinf(self.base.bound):
      raise ValueError(
        f"{type(self.base).__name__} has no clip norm that a schedule could "
        "move. Use it as it is, or schedule clipping.flat(l2_clip_norm=...)."
      )
    alone = getattr(self.base, "l2_clip_norm", None)
    for norm in getattr(self.base, "l2_clip_norms", (alone,)):
      for _, factor in self.levels:
        if isinstance(norm, numbers.Real):
          _rule.check_positive(l2_clip_norm=float(norm) * factor)

  @property
  def schedule(self) -> PiecewiseConstant:
    """The factors by step."""
    return PiecewiseConstant(self.levels)

  @property
  def needs_public_norms(self) -> bool:  # type: ignore[override]
    return bool(self.base.needs_public_norms)

  def group(self, path: str) -> Hashable:
    return self.base.group(path)

  def init(self, params: PyTree) -> ScheduledState:
    return ScheduledState(jnp.zeros((), jnp.int32), self.base.init(params))

  def noise_shape(self, state: ScheduledState) -> Float[Array, " groups"]:
    shape = self.base.noise_shape(state.base)
    return shape if self.base.unitless else shape * self.schedule(state.step)

  def weights(
    self, norms: Float[Array, "groups units"], state: ScheduledState
  ) -> Float[Array, "groups units"]:
    factor = self.schedule(state.step).astype(norms.dtype)
    weights = self.base.weights(norms / factor, state.base)
    return weights / factor if self.base.unitless else weights

  def update(
    self, state: ScheduledState, noisy_statistic: Float[Array, " statistics"]
  ) -> ScheduledState:
    base = self.base.update(state.base, noisy_statistic)
    return ScheduledState(state.step + 1, base)

  def refresh(
    self, state: ScheduledState, public_norms: Float[Array, " groups"]
  ) -> ScheduledState:
    base = self.base.refresh(state.base, public_norms)
    return state._replace(base=base)

  def to_dict(self) -> dict[str, Any]:
    return {
      "rule": type(self).__name__,
      "base": self.base.to_dict(),
      "levels": self.levels,
    }


def scheduled(
  rule: _rule.ClippingRule,
  levels: Mapping[int, float] | Sequence[tuple[int, float]],
) -> Scheduled:
  r"""A rule whose clip norm is multiplied by a factor for each step.

  .. math:: g_i \mapsto \lambda_t \, \mathrm{rule}(g_i / \lambda_t)

  which for ``flat`` is clipping at :math:`\lambda_t C`. ``normalized`` goes on
  to divide by its clip norm. Noise moves with the bound, so that a schedule
  costs no privacy; it must not depend on the data.

  Args:
    rule: one with a clip norm that nothing else moves.
    levels: the factor by its first step, see ``jaxdp.PiecewiseConstant``.

  Guarantees:
    Those of the rule, at :math:`\lambda_t C`.

  Edge cases:
    As those of the rule. Constants such as the gamma of ``automatic`` are in
    units of the gradient, and move with the clip norm.

  Example:
    >>> from jaxdp.clipping import flat
    >>> rule = scheduled(flat(2.0), {0: 1.0, 1: 0.5})
    >>> state = rule.init({"w": jnp.ones(3)})
    >>> after = rule.update(state, jnp.zeros(0))
    >>> print(rule.noise_shape(state), rule.noise_shape(after))
    [2.] [1.]
  """
  return Scheduled(rule, levels)
