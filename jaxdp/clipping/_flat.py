"""Rules with one weight a unit, from the norm of its whole gradient."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp.clipping import _rule


@_rule.rule()
class Flat(_rule.ClippingRule):
  """See ``flat``."""

  l2_clip_norm: float

  def __post_init__(self) -> None:
    _rule.check_positive(
      "For non-private training use clipping.no_clipping().",
      l2_clip_norm=self.l2_clip_norm,
    )

  def noise_shape(self, state: _rule.State) -> Float[Array, " groups"]:
    del state
    return jnp.asarray(self.l2_clip_norm, jnp.float32).reshape(1)

  def weights(
    self, norms: Float[Array, "groups units"], state: _rule.State
  ) -> Float[Array, "groups units"]:
    del state
    clip = jnp.asarray(self.l2_clip_norm, norms.dtype)
    # Exactly 1 up to the clip norm, and no division by a zero norm.
    return clip / jnp.maximum(norms, clip)


def flat(l2_clip_norm: float) -> Flat:
  r"""Scales each unit's gradient to L2 norm at most ``l2_clip_norm``.

  .. math:: g_i \mapsto g_i \cdot \min(1, C / \|g_i\|_2)

  Args:
    l2_clip_norm: C > 0, in units of the gradient.

  Guarantees:
    Per unit, the norm over the whole tree is <= C (1 + 8 ulp) in float32.

  Edge cases:
    ====================  ==============================================
    zero gradient         stays zero
    non-finite gradient   contributes exactly zero
    C = 0, negative, inf  ValueError
    ====================  ==============================================

  Example:
    >>> print(flat(1.0).weights(jnp.array([[0.5, 1.0, 4.0]]), ()))
    [[1.   1.   0.25]]

  References:
    Abadi et al. 2016, arXiv:1607.00133, Algorithm 1.
  """
  return Flat(l2_clip_norm)


@_rule.rule()
class Normalized(_rule.ClippingRule):
  """See ``normalized``."""

  unitless: ClassVar[bool] = True

  l2_clip_norm: float

  def __post_init__(self) -> None:
    _rule.check_positive(l2_clip_norm=self.l2_clip_norm)

  def noise_shape(self, state: _rule.State) -> Float[Array, " groups"]:
    del state
    return jnp.ones(1, jnp.float32)

  def weights(
    self, norms: Float[Array, "groups units"], state: _rule.State
  ) -> Float[Array, "groups units"]:
    del state
    return 1 / jnp.maximum(norms, jnp.asarray(self.l2_clip_norm, norms.dtype))


def normalized(l2_clip_norm: float) -> Normalized:
  r"""Clips at ``l2_clip_norm`` and divides by it: contributions have norm <= 1.

  .. math:: g_i \mapsto g_i \cdot \min(1/C, 1 / \|g_i\|_2)

  Equals ``flat(C)`` divided by C, so that the best learning rate stays put when
  C moves.

  Args:
    l2_clip_norm: C > 0, in units of the gradient.

  Guarantees:
    Per unit, the norm over the whole tree is <= 1 (1 + 8 ulp) in float32. When
    every norm is >= C the result does not depend on C.

  Edge cases:
    As ``flat``.

  Example:
    >>> print(normalized(2.0).weights(jnp.array([[0.5, 2.0, 4.0]]), ()))
    [[0.5  0.5  0.25]]

  References:
    De et al. 2022, arXiv:2204.13650, section 2.
  """
  return Normalized(l2_clip_norm)


@_rule.rule()
class NoClipping(_rule.ClippingRule):
  """See ``no_clipping``."""

  bound: ClassVar[float] = float("inf")

  def noise_shape(self, state: _rule.State) -> Float[Array, " groups"]:
    del state
    return jnp.ones(1, jnp.float32)

  def weights(
    self, norms: Float[Array, "groups units"], state: _rule.State
  ) -> Float[Array, "groups units"]:
    del state
    return jnp.ones_like(norms)


def no_clipping() -> NoClipping:
  """Leaves every gradient as it is: not private, epsilon is infinite.

  A mechanism takes it with ``noise_multiplier=0`` only, since no amount of
  noise is a multiple of an infinite sensitivity.

  Guarantees:
    None. Units with a non-finite gradient still contribute zero.

  Example:
    >>> no_clipping().bound
    inf
  """
  return NoClipping()
