"""What an adversary sees of a training step: all that was released, exactly.

A rule and an optimizer that add nothing and keep a copy: the noisy statistic,
which a rule's next state holds only a function of, and the noisy mean.
"""

import dataclasses
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxdp.clipping import ClippingRule, assign_groups


class RecordedState(NamedTuple):
  """The state of the rule inside, and its last noisy statistic."""

  base: Any
  statistic: Float[Array, " statistics"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recorded(ClippingRule):
  """Another rule, which keeps the statistic that it is told."""

  base: ClippingRule

  @property
  def bound(self) -> float:  # type: ignore[override]
    return self.base.bound

  @property
  def adaptive(self) -> bool:  # type: ignore[override]
    return self.base.adaptive

  @property
  def needs_public_norms(self) -> bool:  # type: ignore[override]
    return self.base.needs_public_norms

  def group(self, path: str) -> Hashable:
    return self.base.group(path)

  def init(self, params: PyTree) -> RecordedState:
    state = self.base.init(params)
    groups = assign_groups(self.base, params)
    count = len(self.base.noise_shape(state)) - len(groups.names)
    return RecordedState(state, jnp.zeros(count))

  def noise_shape(
    self, state: RecordedState
  ) -> Float[Array, " groups+statistics"]:
    return self.base.noise_shape(state.base)

  def weights(
    self, norms: Float[Array, "groups units"], state: RecordedState
  ) -> Float[Array, "groups units"]:
    return self.base.weights(norms, state.base)

  def statistic(
    self, norms: Float[Array, "groups units"], state: RecordedState
  ) -> Float[Array, "statistics units"]:
    return self.base.statistic(norms, state.base)

  def update(
    self, state: RecordedState, noisy_statistic: Float[Array, " statistics"]
  ) -> RecordedState:
    base = self.base.update(state.base, noisy_statistic)
    return RecordedState(base, noisy_statistic)

  def refresh(
    self, state: RecordedState, public_norms: Float[Array, " groups"]
  ) -> RecordedState:
    return state._replace(base=self.base.refresh(state.base, public_norms))


def record_mean() -> optax.GradientTransformation:
  """An optimizer that moves nothing; its state is the last released mean."""

  def update_fn(updates: PyTree, state: PyTree, params: PyTree = None) -> Any:
    del state, params
    return jax.tree.map(jnp.zeros_like, updates), updates

  return optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params), update_fn
  )
