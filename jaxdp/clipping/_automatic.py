"""Rules that scale every gradient, small ones too: AUTO-V, AUTO-S, PSAC, PSASC.

Each weight is linear in C, so that (learning rate / k, k C) is the same
training. All are bounded for every norm, and say how small ones are weighed.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp.clipping import _rule

# Norms below may be under-estimated, since their squares underflow; a weight
# that grows as they shrink would then break the bound.
_SMALLEST_NORM = 1e-12


def _is_zero(value: Any) -> bool:
  return isinstance(value, int | float) and value == 0


@_rule.rule()
class Automatic(_rule.ClippingRule):
  """See ``automatic``."""

  l2_clip_norm: float
  gamma: float = 0.01

  def __post_init__(self) -> None:
    _rule.check_positive(l2_clip_norm=self.l2_clip_norm)
    if not _is_zero(self.gamma):
      _rule.check_positive("gamma = 0 is AUTO-V.", gamma=self.gamma)

  def noise_shape(self, state: _rule.State) -> Float[Array, " groups"]:
    del state
    return jnp.asarray(self.l2_clip_norm, jnp.float32).reshape(1)

  def weights(
    self, norms: Float[Array, "groups units"], state: _rule.State
  ) -> Float[Array, "groups units"]:
    del state
    clip = jnp.asarray(self.l2_clip_norm, norms.dtype)
    gamma = jnp.asarray(self.gamma, norms.dtype)
    # Only AUTO-V divides by what may be 0; its zero gradients stay zero.
    usable = (gamma > 0) | (norms >= _SMALLEST_NORM)
    weights = clip / jnp.where(usable, norms + gamma, jnp.ones_like(norms))
    return jnp.where(usable, weights, jnp.zeros_like(norms))


def automatic(l2_clip_norm: float = 1.0, *, gamma: float = 0.01) -> Automatic:
  r"""Normalises each unit's gradient: AUTO-S, or AUTO-V with ``gamma=0``.

  .. math:: g_i \mapsto g_i \cdot \frac{C}{\|g_i\|_2 + \gamma}

  C only scales the learning rate, so that there is no clip norm to choose.
  AUTO-S is also known as NSGD.

  Args:
    l2_clip_norm: C > 0, in units of the gradient.
    gamma: >= 0, in units of the gradient; keeps small gradients small.

  Guarantees:
    Per unit, the norm over the whole tree is <= C (1 + 8 ulp) in float32; below
    C for every gradient if gamma > 0, and C for every nonzero one if it is 0.

  Edge cases:
    ====================  ==================================================
    zero gradient         stays zero
    norm below 1e-12      counts as zero if gamma = 0: float32 cannot measure it
    non-finite gradient   contributes exactly zero
    ====================  ==================================================

  Example:
    >>> print(automatic(gamma=1.0).weights(jnp.array([[0.0, 1.0, 3.0]]), ()))
    [[1.   0.5  0.25]]

  References:
    Bu et al. 2023, arXiv:2206.07136 (both); Yang et al. 2022, arXiv:2206.13033
    (NSGD).
  """
  return Automatic(l2_clip_norm, gamma)


@_rule.rule()
class PSASC(_rule.ClippingRule):
  """See ``psasc``."""

  l2_clip_norm: float
  r: float
  s: float

  def __post_init__(self) -> None:
    _rule.check_positive(l2_clip_norm=self.l2_clip_norm, r=self.r, s=self.s)

  def noise_shape(self, state: _rule.State) -> Float[Array, " groups"]:
    del state
    return jnp.asarray(self.l2_clip_norm / self.s, jnp.float32).reshape(1)

  def weights(
    self, norms: Float[Array, "groups units"], state: _rule.State
  ) -> Float[Array, "groups units"]:
    del state
    clip, r, s = (
      jnp.asarray(x, norms.dtype) for x in (self.l2_clip_norm, self.r, self.s)
    )
    # Not as one fraction, which overflows where norms are large.
    return clip / (s * norms + r / (norms + r))


def psac(l2_clip_norm: float = 1.0, *, r: float = 0.1) -> PSASC:
  r"""Per-sample adaptive clipping: normalises, but lifts small gradients less.

  .. math:: g_i \mapsto g_i \cdot \frac{C}{\|g_i\| + r / (\|g_i\| + r)}

  The weight of a zero gradient is C, not C/gamma as that of ``automatic``. For
  r < 1 the largest weight is that of norm sqrt(r) - r. It is ``psasc`` with
  s = 1.

  Args:
    l2_clip_norm: C > 0, in units of the gradient.
    r: > 0, in units of the gradient; published with 0.1 and 0.01.

  Guarantees:
    Per unit, the norm over the whole tree is below C (1 + 8 ulp) in float32.

  Edge cases:
    As ``flat``.

  Example:
    >>> print(psac(r=0.5).weights(jnp.array([[0.0, 0.5]]), ()))
    [[1. 1.]]

  References:
    Xia et al. 2023, AAAI, arXiv:2212.00328.
  """
  return PSASC(l2_clip_norm, r, 1.0)


def psasc(
  l2_clip_norm: float = 1.0, *, r: float = 0.1, s: float = 1.0
) -> PSASC:
  r"""Per-sample adaptive scaling: PSAC with a slope s, bounded by C/s.

  .. math:: g_i \mapsto g_i \cdot \frac{C}{s \|g_i\| + r / (\|g_i\| + r)}

  (C, s) is a factor C/s of the learning rate times PSAC with r/s for r in the
  numerator, at the same noise in relative terms: s < 1 buys no privacy. For
  r s < 1 the largest weight, C / (2 sqrt(r s) - r s), is that of norm
  sqrt(r/s) - r; otherwise weights fall from C.

  Args:
    l2_clip_norm: C > 0, in units of the gradient.
    r: > 0, in units of the gradient.
    s: > 0, without unit.

  Guarantees:
    Per unit, the norm over the whole tree is below C/s (1 + 8 ulp) in float32.
    Noise is scaled to C/s.

  Edge cases:
    As ``flat``.

  Example:
    >>> rule = psasc(1.0, r=0.1, s=0.5)
    >>> print(rule.noise_shape(()), rule.weights(jnp.zeros((1, 1)), ()))
    [2.] [[1.]]

  References:
    arXiv:2411.03059.
  """
  return PSASC(l2_clip_norm, r, s)
