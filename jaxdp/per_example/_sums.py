"""Weighted sums and stacks of gradients that are kept as factors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdp.per_example import _kernel, _products
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
  first, *others = (_of_term(term, weights, is_dropped) for term in leaf.terms)
  return sum(others, start=first)


def _of_term(
  term: Term,
  weights: Float[Array, " units"],
  is_dropped: Bool[Array, " units"],
) -> Array:
  product = _products.by_unit(term)
  if product is None or not _kernel.suits(product):
    return term.weighted_sum(weights, is_dropped)

  def kernel(term: Term, weights: Array, is_dropped: Array) -> Array:
    del is_dropped  # the weight says so
    product = _products.by_unit(term)
    assert product is not None
    return _products.gradient(
      term.site, _kernel.weighted_sum(product, weights.astype(jnp.float32))
    )

  portable = Term.weighted_sum
  return _kernel.on_gpu(kernel, portable, term, weights, is_dropped)


def makes(leaf: Factored) -> bool:
  """Whether ``stacked`` is faster than JAX's own stacked gradients.

  On a CPU, XLA's gradient of a vmapped convolution is one in groups, 2 to 4
  times slower than matrix products.
  """
  names = {term.site.primitive.name for term in leaf.terms}
  if jax.default_backend() != "cpu" or names != {"conv_general_dilated"}:
    return False
  products = [jax.eval_shape(_products.by_unit, term) for term in leaf.terms]
  return None not in products


def stacked(leaf: Factored) -> Float[Array, "units ..."]:
  """The products of a leaf that ``makes`` says yes to, in its own type."""
  first, *others = map(_products.stacked, leaf.terms)
  return sum(others, start=first).astype(leaf.dtype)
