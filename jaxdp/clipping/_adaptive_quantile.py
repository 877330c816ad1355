"""Clip norms that follow a quantile of the norms, in the same release."""

import math
from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdp.clipping import _rule
from jaxdp.clipping._groups import assign_groups
from jaxdp.clipping._groupwise import (
  Allocation,
  check_allocation,
  group_state,
)

# Clip norms stay within this factor of the initial one, whatever the noise.
_RANGE = 1e6


class QuantileState(NamedTuple):
  """Public: a function of what was released."""

  l2_clip_norms: Float[Array, " groups"]
  dims: Float[Array, " groups"]


@_rule.rule("by", "noise_allocation")
class AdaptiveQuantile(_rule.ClippingRule):
  """See ``adaptive_quantile``."""

  adaptive: ClassVar[bool] = True

  initial_clip_norm: float
  quantile: float = 0.5
  learning_rate: float = 0.2
  budget_fraction: float = 0.01
  by: Literal["model", "layer"] = "model"
  noise_allocation: Allocation = "global"

  def __post_init__(self) -> None:
    _rule.check_positive(
      initial_clip_norm=self.initial_clip_norm,
      learning_rate=self.learning_rate,
    )
    for name in ("quantile", "budget_fraction"):
      value = getattr(self, name)
      if isinstance(value, int | float) and not 0 < value < 1:
        raise ValueError(f"{name} must be in (0, 1), got {name}={value}.")
    check_allocation(self.noise_allocation)
    if self.by not in ("model", "layer"):
      raise ValueError(f"by must be 'model' or 'layer', got by={self.by!r}.")

  def group(self, path: str) -> str:
    return "all" if self.by == "model" else path.rpartition("/")[0]

  def init(self, params: PyTree) -> QuantileState:
    dims = jnp.asarray(assign_groups(self, params).dims, jnp.float32)
    norm = jnp.asarray(self.initial_clip_norm, jnp.float32)
    return QuantileState(norm / math.sqrt(len(dims)) + 0 * dims, dims)

  def noise_shape(
    self, state: QuantileState
  ) -> Float[Array, " groups+statistics"]:
    share = jnp.asarray(self.budget_fraction, jnp.float32)
    groups = group_state(state.l2_clip_norms, state.dims, self.noise_allocation)
    # Gradient and bits have norms <= 1 and sqrt(groups) / 2; together, in units
    # of this shape, sqrt((1 - share) + share) = 1.
    bits = 0.5 * jnp.sqrt(len(state.dims) / share) * jnp.ones_like(state.dims)
    return jnp.concatenate([groups.noise_shape / jnp.sqrt(1 - share), bits])

  def weights(
    self, norms: Float[Array, "groups units"], state: QuantileState
  ) -> Float[Array, "groups units"]:
    radii = state.l2_clip_norms.astype(norms.dtype)[:, None]
    return radii / jnp.maximum(norms, radii)

  def statistic(
    self, norms: Float[Array, "groups units"], state: QuantileState
  ) -> Float[Array, "statistics units"]:
    radii = state.l2_clip_norms.astype(norms.dtype)[:, None]
    # Centred: a unit moves the sum by 1/2, not by 1.
    return jnp.where(norms <= radii, 0.5, -0.5).astype(norms.dtype)

  def update(
    self, state: QuantileState, noisy_statistic: Float[Array, " statistics"]
  ) -> QuantileState:
    below = noisy_statistic + 0.5
    step = jnp.asarray(self.learning_rate, jnp.float32) * (
      below - jnp.asarray(self.quantile, jnp.float32)
    )
    first = jnp.asarray(self.initial_clip_norm, jnp.float32)
    moved = state.l2_clip_norms * jnp.exp(-jnp.clip(step, -10, 10))
    return state._replace(
      l2_clip_norms=jnp.clip(moved, first / _RANGE, first * _RANGE)
    )


def adaptive_quantile(
  initial_clip_norm: float,
  *,
  quantile: float = 0.5,
  learning_rate: float = 0.2,
  budget_fraction: float = 0.01,
  by: Literal["model", "layer"] = "model",
  noise_allocation: Allocation = "global",
) -> AdaptiveQuantile:
  r"""Flat clipping at a norm that follows a quantile of the units' norms.

  .. math:: C_{t+1} = C_t \exp(-\eta (\tilde b - \gamma)), \quad
            \tilde b = \frac{\sum_i (1[\|g_i\| \le C_t] - 1/2)
            + \text{noise}}{q N} + 1/2

  The bits are one more coordinate of the same release: with K groups, noise
  multiplier z and budget fraction f, the gradient is noised at
  z_g = z / sqrt(1 - f) and a sum of bits with standard deviation
  s_b = z sqrt(K / f) / 2, so that z^-2 = z_g^-2 + K (2 s_b)^-2. The accountant
  sees z.

  Args:
    initial_clip_norm: C_0 > 0, in units of the gradient; each of K layers
      begins at C_0 / sqrt(K).
    quantile: gamma in (0, 1), the fraction of units to leave unclipped.
    learning_rate: eta > 0, of log C.
    budget_fraction: f in (0, 1), what the bits take of 1 / z^2. 0.01 at z = 1
      gives s_b = 5, which is the published B/20 for a batch of 100.
    by: "model" for one clip norm, "layer" for one a layer.
    noise_allocation: among layers, see ``per_layer``.

  Guarantees:
    Per unit, the norm over the whole tree is <= C_t (1 + 8 ulp) ("layer": each
    layer's is). C_t is a function of what was released.

  Edge cases:
    ====================  ===================================================
    non-finite gradient   contributes zero, and counts as above C_t
    padding               no bit at all
    C_t                   stays within a factor 1e6 of C_0
    ====================  ===================================================

  Example:
    >>> rule = adaptive_quantile(1.0)
    >>> state = rule.init({"w": jnp.ones(3)})
    >>> print(rule.noise_shape(state).round(3))  # gradient, bit
    [1.005 5.   ]

  References:
    Andrew et al. 2021, arXiv:1905.03871, Algorithm 1.
  """
  return AdaptiveQuantile(
    initial_clip_norm,
    quantile,
    learning_rate,
    budget_fraction,
    by,
    noise_allocation,
  )
