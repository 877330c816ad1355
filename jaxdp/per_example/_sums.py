"""Weighted sums over units of gradients that are kept as factors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdp.per_example import _kernel, _products
from jaxdp.per_example._products import Product
from jaxdp.per_example._site import Factored, Term


def weighted_sum(
  leaf: Factored,
  weights: Float[Array, " units"],
  is_dropped: Bool[Array, " units"],
) -> Float[Array, "..."]:
  """One gradient, of the whole batch, in float32 or wider.

  Args:
    leaf: finite, but for units that are dropped.
    weights: 0 for those.
    is_dropped: which they are.
  """
  first, *others = (
    _of_term(term, weights, is_dropped) for term in leaf.terms
  )
  return sum(others, start=first)


def _of_term(
  term: Term,
  weights: Float[Array, " units"],
  is_dropped: Bool[Array, " units"],
) -> Array:
  product = _by_unit(term)
  if product is None or not _kernel.suits(product):
    return term.weighted_sum(weights, is_dropped)

  def kernel(term: Term, weights: Array, is_dropped: Array) -> Array:
    del is_dropped  # the weight says so
    product = _by_unit(term)
    assert product is not None
    return _products.gradient(
      term.site, _kernel.weighted_sum(product, weights.astype(jnp.float32))
    )

  portable = Term.weighted_sum
  return _kernel.on_gpu(kernel, portable, term, weights, is_dropped)


def _by_unit(term: Term) -> Product | None:
  """The term's products, with its layers among the groups."""
  product = _products.of(_products.by_layer(term))
  if product is None:
    return None
  units = term.cotangent.shape[0]

  def one(x: Array) -> Array:
    return x.reshape(units, -1, *x.shape[2:])

  return jax.tree.map(one, product)
