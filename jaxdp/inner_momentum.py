"""Momentum inside a unit: its gradients at the last released iterates, summed.

Past iterates are released, and a unit's gradients at them depend on that unit
alone. So their sum is one unit's contribution, clipped once, at no cost in
privacy; it costs one gradient for each iterate.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


class Window(NamedTuple):
  """The iterates of one step, as the loss needs them. Public."""

  offsets: PyTree  # leaves [past, *shape]: past iterates minus the current one
  weights: Float[Array, " iterates"]  # of the current one, then of past ones


class InnerMomentum(NamedTuple):
  r"""A window over iterates, for ``make_train_step`` and ``fit``.

  .. math:: v_i^t = \sum_{k=0}^{K-1} \gamma^k \nabla f(\theta_{t-k}; x_i)
            \Big/ \sum_k \gamma^k

  Then v is clipped in place of the gradient, once. In the first steps, while
  there are fewer iterates, the window is shorter and its weights sum to 1 too.

  Attributes:
    num_iterates: K >= 1; K gradients a step and K - 1 copies of the trained
      parameters. 1 is no momentum.
    decay: gamma in [0, 1].
    normalized: divide by the sum of weights. Without it the gradient grows by
      up to 1 / (1 - gamma) before it is clipped.

  Guarantees:
    The privacy of a step is that of the mechanism. Normalised, the window
    divides the variance of independent errors of a unit's gradients by
    (1 + g)(1 - g^K) / ((1 - g)(1 + g^K)), g the decay.

  References:
    arXiv:2411.03059, after Xiao et al. 2023, "A theory to instruct
    differentially-private learning via clipping bias reduction".
  """

  num_iterates: int
  decay: float = 0.9
  normalized: bool = True

  def check(self) -> None:
    """Raises for numbers that make no window."""
    if self.num_iterates < 1:
      raise ValueError(
        f"InnerMomentum.num_iterates must be >= 1, got {self.num_iterates}."
      )
    if not 0 <= self.decay <= 1:
      raise ValueError(
        f"InnerMomentum.decay must be in [0, 1], got {self.decay}."
      )

  def init(self, trained: PyTree) -> PyTree:
    """The past iterates before the first step: nothing but the first one."""
    past = self.num_iterates - 1
    return jax.tree.map(
      lambda x: jnp.broadcast_to(x[None], (past, *jnp.shape(x))), trained
    )

  def push(self, history: PyTree, trained: PyTree) -> PyTree:
    """The past iterates of the next step: those of this one, newest first."""
    return jax.tree.map(
      lambda old, x: jnp.concatenate([x[None], old])[: len(old)],
      history,
      trained,
    )

  def window(self, history: PyTree, trained: PyTree, step: Array) -> Window:
    """What the loss of this step needs."""
    age = jnp.arange(self.num_iterates)
    decayed = jnp.float32(self.decay) ** age.astype(jnp.float32)
    weights = jnp.where(age <= step, decayed, 0.0)
    if self.normalized:
      weights = weights / jnp.sum(weights)
    offsets = jax.tree.map(lambda old, x: old - x[None], history, trained)
    return Window(offsets, weights)


def over_iterates(
  loss_fn: Callable, window: Window, *, has_aux: bool = False
) -> Callable:
  """The loss whose gradient is the weighted sum over a window of iterates.

  Args:
    loss_fn: ``loss_fn(params, example)``, or with a key; ``(loss, aux)`` with
      ``has_aux``.
    window: from ``InnerMomentum.window``.
    has_aux: aux is that of the current iterate.

  Returns:
    A loss of the same arguments, differentiated at the current iterate.

  Example:
    >>> inner = InnerMomentum(num_iterates=2, decay=0.5, normalized=False)
    >>> history = inner.push(inner.init(jnp.array(1.0)), jnp.array(1.0))
    >>> window = inner.window(history, jnp.array(3.0), step=jnp.array(1))
    >>> loss = over_iterates(lambda w, x: x * w**2, window)
    >>> print(jax.grad(loss)(3.0, 1.0))  # 2 * 3 + 0.5 * 2 * 1
    7.0
  """

  def fn(params: PyTree, *args: Any) -> Any:
    def past_loss(total: Array, past: tuple[PyTree, Array]) -> Any:
      offset, weight = past
      moved = jax.tree.map(
        lambda d, p: p if d is None else p + d,
        offset,
        params,
        is_leaf=lambda d: d is None,
      )
      out = loss_fn(moved, *args)
      return total + weight * (out[0] if has_aux else out), None

    out = loss_fn(params, *args)
    loss, aux = out if has_aux else (out, None)
    weights = window.weights.astype(loss.dtype)
    loss = weights[0] * loss
    if len(weights) > 1:
      # A loop: kernels that differ by iterate would make grouped convolutions.
      loss, _ = jax.lax.scan(past_loss, loss, (window.offsets, weights[1:]))
    return (loss, aux) if has_aux else loss

  return fn
