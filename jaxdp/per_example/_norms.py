"""Squared norms of one site's gradients, without the products if cheaper.

With inputs X ``[T, k]`` and cotangents Y ``[T, o]`` of one unit,
``|| X' Y ||^2 = sum_ts (X X')_ts (Y Y')_ts``: T^2 (k + o) multiplications in
place of T k o. A Gram form can cancel, and a norm that is too small lets a unit
in that was not clipped; so the rounding bound is added to it, and a smaller one
to the norm of a product made. With T = 1 there is nothing to cancel.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdp.per_example import _kernel, _look_up, _products
from jaxdp.per_example._products import Product
from jaxdp.per_example._site import Term
from jaxdp.per_example._wide import (
  einsum,
  multiplies_narrow,
  wide_type,
  widen,
)

# Beyond, the rounding bound of a Gram form would clip by a tenth of a percent.
_MOST_GRAM_POSITIONS = 128
_FLOAT_BYTES = 4
_FEW_INPUTS = 64


class Choice(NamedTuple):
  """How a norm is found, and what that takes for one unit."""

  method: str
  flops: int
  bytes: int  # of what is written before it is summed


def choose(groups: int, positions: int, inputs: int, outputs: int) -> Choice:
  """The cheaper way to the norm of ``groups`` sums over positions.

  Args:
    groups: independent products, such as heads.
    positions: over which a product sums.
    inputs: rows of a product, the places of a convolution's kernel included.
    outputs: columns of a product.
  """
  if positions == 1:
    flops = 2 * groups * (inputs + outputs)
    return Choice("two norms", flops, 2 * groups * _FLOAT_BYTES)
  gram = 2 * groups * positions * positions * (inputs + outputs)
  product = 2 * groups * positions * inputs * outputs
  if positions <= _MOST_GRAM_POSITIONS and gram < product:
    size = 2 * groups * positions * positions
    return Choice("Gram", gram, size * _FLOAT_BYTES)
  size = groups * inputs * outputs
  return Choice("product", product, size * _FLOAT_BYTES)


def squares(term: Term) -> Float[Array, " units"]:
  """Squared norm of each unit's gradient, never under-estimated by rounding.

  Of a term that has a ``choice``.
  """
  by_layer = _products.by_layer(term)
  if term.site.primitive.name in _look_up.PRIMITIVES:
    result = _look_up_squares(by_layer)
  else:
    product = _products.of(by_layer)
    assert product is not None
    result = product_squares(product)
  return jnp.sum(result.reshape(term.cotangent.shape[0], -1), axis=1)


def choice(term: Term) -> Choice | None:
  """How ``squares`` finds the norm; None if it does not know how."""
  by_layer = jax.eval_shape(_products.by_layer, term)
  if term.site.primitive.name in _look_up.PRIMITIVES:
    found = jax.eval_shape(_look_up.rows_taken, by_layer)
    if found is None:
      return None
    tokens, y = found
    flops = 2 * tokens.shape[1] * math.prod(y.shape[1:])
    one = Choice("equal tokens", flops, tokens.shape[1] ** 2 * _FLOAT_BYTES)
  else:
    product = jax.eval_shape(_products.of, by_layer)
    if product is None:
      return None
    one = _choose(product)
  layers = by_layer.cotangent.shape[0] // term.cotangent.shape[0]
  return Choice(one.method, layers * one.flops, layers * one.bytes)


def _choose(product: Product) -> Choice:
  _, groups, _, features = product.x.shape
  inputs = product.window.places * features
  positions, outputs = product.y.shape[2:]
  found = choose(groups, positions, inputs, outputs)
  if found.method == "product" and _kernel.suits(product):
    return Choice("kernel", found.flops, 0)
  return found


def sum_squares(x: Float[Array, "units ..."]) -> Float[Array, " units"]:
  """Sum of squares of each row."""
  return jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)))


def product_squares(product: Product) -> Float[Array, " units"]:
  """Of the sum over positions, then summed over groups and places."""
  method, window = _choose(product).method, product.window
  if method == "kernel":
    value = _kernel.on_gpu(_kernel.squares, _made_squares, product)
    return _with_rounding(value, product)
  if method == "product":
    return _with_rounding(_made_squares(product), product)
  x, y = product.x, product.y
  if method == "Gram" and multiplies_narrow(x, y):
    return _narrow_gram_squares(product)
  # Scaled, or a tiny x and a huge y would have a norm of 0 or infinity.
  (x, of_x), (y, of_y) = scaled(widen(x)), scaled(widen(y))
  if method == "Gram":
    value = _guarded(_gram_of_met(Product(x, y, window)), _gram(y))
  else:
    x = jnp.concatenate(Product(x, y, window).met(), axis=3)
    norms = [jnp.sum(jnp.square(v), axis=(2, 3)) for v in (x, y)]
    value = jnp.sum(norms[0] * norms[1], axis=1)
  return value * jnp.square(of_x * of_y)


def _made_squares(product: Product) -> Float[Array, " units"]:
  """Each place's products made, squared and forgotten."""
  total = jnp.zeros(len(product.y), wide_type(product.y.dtype))
  for x in _thick(product):
    made = einsum("ugti,ugto->ugio", x, product.y)
    total = total + sum_squares(made)
  return total


def _with_rounding(
  value: Float[Array, " units"], product: Product
) -> Float[Array, " units"]:
  """Squares, with what rounding may have taken from products that cancel.

  The sum of the batch adds the positions in another order, and may be larger
  than the norm says by as much.
  """
  # Each input is met at most once by every place of the kernel.
  size = math.sqrt(product.window.places) * _norm(product.x) * _norm(product.y)
  steps = 2 * math.sqrt(product.window.positions)
  bound = float(jnp.finfo(value.dtype).eps) * steps * size
  return jnp.square(jnp.sqrt(value) + bound)


def _norm(x: Float[Array, "units ..."]) -> Float[Array, " units"]:
  """Of entries of any size, in one pass."""
  x = widen(x)
  small, middle, large = (
    jnp.sqrt(sum_squares(x * factor)) / factor
    for factor in (2.0**64, 1.0, 2.0**-64)
  )
  norm = jnp.where(jnp.isfinite(middle), middle, large)
  return jnp.where(jnp.isfinite(small), small, norm)


def _gram_of_met(product: Product) -> Float[Array, "units groups t t"]:
  first, *others = (_gram(x) for x in _thick(product))
  return sum(others, start=first)


def _thick(product: Product) -> list[Array]:
  """The inputs met, with as many places together as a matrix product likes."""
  count = max(1, _FEW_INPUTS // product.x.shape[3])
  met = product.met()
  if count == 1:
    return met
  return [
    jnp.concatenate(met[i : i + count], axis=3)
    for i in range(0, len(met), count)
  ]


def _narrow_gram_squares(product: Product) -> Float[Array, " units"]:
  """Unscaled, which would write the factors again.

  bfloat16 has the range of float32, so that no entry is lost; what a product of
  two may lose, by being too small, is part of the bound.
  """
  _, _, positions, outputs = product.y.shape
  terms = max(product.x.shape[3] * product.window.places, outputs)
  lost = positions * terms * float(jnp.finfo(jnp.float32).smallest_normal)
  return _guarded(_gram_of_met(product), _gram(product.y), lost)


def _gram(x: Float[Array, "units groups positions features"]) -> Array:
  return einsum("ubti,ubsi->ubts", x, x)


def scaled(x: Float[Array, "units ..."]) -> tuple[Array, Array]:
  """Each unit over a power of two, so that its largest entry is about 1."""
  largest = jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)))
  _, exponent = jnp.frexp(largest)
  # Twice half of it: one step would leave the range of float32.
  half = jnp.ldexp(jnp.ones_like(largest), exponent // 2)
  rest = jnp.ldexp(jnp.ones_like(largest), exponent - exponent // 2)

  def over(x: Array, scale: Array) -> Array:
    return x / jax.lax.broadcast_in_dim(scale, x.shape, (0,))

  return over(over(x, half), rest), half * rest


def _guarded(
  gram_x: Float[Array, "units batch positions positions"],
  gram_y: Float[Array, "units batch positions positions"],
  lost: float = 0.0,
) -> Float[Array, " units"]:
  """A Gram form plus the most that rounding may have taken from it.

  Args:
    gram_x: of the inputs.
    gram_y: of the cotangents.
    lost: the most that a sum of positive terms may miss.
  """
  value = jnp.sum(gram_x * gram_y, axis=(1, 2, 3))
  positions = gram_x.shape[-1]
  of_x, of_y = (
    jnp.sum(jnp.trace(g, axis1=2, axis2=3), axis=1) for g in (gram_x, gram_y)
  )
  epsilon = float(jnp.finfo(value.dtype).eps)
  bound = epsilon * positions * of_x * of_y + lost * (of_x + of_y + lost)
  return jnp.maximum(value, 0) + bound


def _look_up_squares(term: Term) -> Float[Array, " units"]:
  """Rows of a table: tokens that are equal share a row of the gradient."""
  found = _look_up.rows_taken(term)
  assert found is not None
  tokens, y = found
  gram = einsum("uti,usi->uts", y, y)
  same: Bool[Array, "units tokens tokens"]
  same = tokens[:, :, None] == tokens[:, None, :]
  value = jnp.sum(jnp.where(same, gram, jnp.zeros_like(gram)), axis=(1, 2))
  counts = jnp.max(jnp.sum(same, axis=2), axis=1).astype(y.dtype)
  bound = float(jnp.finfo(y.dtype).eps) * counts * sum_squares(y)
  return jnp.maximum(value, 0) + bound * tokens.shape[1]
