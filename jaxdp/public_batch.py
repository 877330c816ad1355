"""What a batch of public data may tell a rule: norms by layer, at no cost."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdp import per_example
from jaxdp.clipping import ClippingRule, assign_groups


class PublicBatch(NamedTuple):
  """Examples that need no protection, and how often to look at them.

  Attributes:
    examples: a batch, leaves ``[n, ...]``. It must hold no record of the
      private data set: what it tells is released without noise.
    every: steps between looks; the first is before step 0.
  """

  examples: PyTree
  every: int


def public_norms(
  loss_fn: Callable,
  rule: ClippingRule,
  *,
  method: per_example.Method = "auto",
  trainable: per_example.Trainable = None,
  has_aux: bool = False,
  has_key: bool = False,
) -> Callable[..., Float[Array, " groups"]]:
  """Mean norms by group over a public batch, for ``Mechanism.refresh``.

  Args:
    loss_fn: for ONE example, as for ``per_example_grads``; so are the others.
    rule: whose groups they are.
    method: engine.
    trainable: which leaves train.
    has_aux: the loss returns ``(loss, aux)``.
    has_key: the loss takes a key.

  Returns:
    ``fn(params, batch, key=None)``, float32 ``[groups]``. Units whose gradient
    is not finite are left out.

  Example:
    >>> import jaxdp
    >>> rule = jaxdp.clipping.adaptive_layerwise(1.0)
    >>> fn = public_norms(lambda w, x: x @ w["a"] + 2 * x @ w["b"], rule)
    >>> fn({"a": jnp.ones(2), "b": jnp.ones(2)}, jnp.array([[3.0, 4.0]]))
    Array([11.18034], dtype=float32)

  References:
    arXiv:2307.11939 (e_l of adaptive layerwise clipping).
  """
  compute = per_example.value_and_per_example_grads(
    loss_fn, method, trainable=trainable, has_aux=has_aux, has_key=has_key
  )

  def fn(
    params: PyTree, batch: PyTree, key: Array | None = None
  ) -> Float[Array, " groups"]:
    keys = None
    if has_key:
      keys = per_example.unit_keys(key, per_example.num_units(batch))
    _, _, grads = compute(params, batch, None, keys)
    norms = grads.norms(assign_groups(rule, grads.params_like).of_leaf)
    finite = jnp.all(jnp.isfinite(norms), axis=0, keepdims=True)
    total = jnp.sum(jnp.where(finite, norms, jnp.zeros_like(norms)), axis=1)
    return total / jnp.maximum(jnp.sum(finite), 1).astype(total.dtype)

  return fn
