"""Squared norms of one site's gradients, without the products if cheaper.

With inputs X ``[T, k]`` and cotangents Y ``[T, o]`` of one unit,
``|| X' Y ||^2 = sum_ts (X X')_ts (Y Y')_ts``: T^2 (k + o) multiplications in
place of T k o. A Gram form can cancel, and a norm that is too small lets a unit
in that was not clipped; so the rounding bound is added to it. With T = 1 there
is nothing to cancel, and no bound.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdp.per_example._site import Term
from jaxdp.per_example._wide import widen

_HIGHEST = jax.lax.Precision.HIGHEST
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


def squares(term: Term) -> Float[Array, " units"] | None:
  """Squared norm of each unit's gradient, never under-estimated by rounding.

  None if nothing is known that is shorter than to make the products.
  """
  result = _NORMS[term.site.primitive.name](_by_layer(term))
  if result is None:
    return None
  return jnp.sum(result.reshape(term.cotangent.shape[0], -1), axis=1)


def _by_layer(term: Term) -> Term:
  """Units and layers as one axis: ``[units * layers, repeats, ...]``.

  Its site is that of the whole; of its shapes, only the operand's is for one.
  """
  layers = term.site.num_layer_axes

  def one(x: Array) -> Array:
    x = jnp.moveaxis(x, 1, 1 + layers)
    return x.reshape(-1, *x.shape[1 + layers :])

  if not layers:
    return term
  inputs, cotangent = jax.tree.map(one, (term.inputs, term.cotangent))
  return Term(inputs, cotangent, term.site)


def choice(term: Term) -> Choice | None:
  """How ``squares`` finds the norm; None if it makes the products whole."""
  units = term.cotangent.shape[0]
  term = jax.eval_shape(_by_layer, term)
  one = _choice(term)
  if one is None:
    return None
  layers = term.cotangent.shape[0] // units
  return Choice(one.method, layers * one.flops, layers * one.bytes)


def _choice(term: Term) -> Choice | None:
  site, params = term.site, dict(term.site.params)
  name, y = site.primitive.name, term.cotangent
  if name == "dot_general":
    of_x, of_y = jax.eval_shape(dot_factors, term)
    _, groups, positions, inputs = of_x.shape
    return choose(groups, positions, inputs, of_y.shape[3])
  if name == "conv_general_dilated":
    outputs, inputs, *kernel = (
      site.operand_shape[d] for d in params["dimension_numbers"].rhs_spec
    )
    groups = params["feature_group_count"]
    positions = math.prod(y.shape[1:]) // outputs
    return choose(
      groups, positions, inputs * math.prod(kernel), outputs // groups
    )
  if name == "gather":
    tokens = math.prod(term.inputs[0].shape[1:])
    flops = 2 * tokens * math.prod(y.shape[1:])
    return Choice("equal tokens", flops, tokens * tokens * _FLOAT_BYTES)
  return None


def sum_squares(x: Float[Array, "units ..."]) -> Float[Array, " units"]:
  """Sum of squares of each row."""
  return jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)))


def product_squares(
  x: Float[Array, "units groups positions inputs"],
  y: Float[Array, "units groups positions outputs"],
) -> Float[Array, " units"]:
  """Of sum_t x_t y_t', summed over ``groups``."""
  _, groups, positions, inputs = x.shape
  method = choose(groups, positions, inputs, y.shape[3]).method
  if method == "product":
    product = jnp.einsum("ubti,ubto->ubio", x, y, precision=_HIGHEST)
    return sum_squares(product)
  # Scaled, or a tiny x and a huge y would have a norm of 0 or infinity.
  (x, of_x), (y, of_y) = scaled(x), scaled(y)
  if method == "Gram":
    value = _guarded(_gram(x), _gram(y))
  else:
    norms = [jnp.sum(jnp.square(v), axis=(2, 3)) for v in (x, y)]
    value = jnp.sum(norms[0] * norms[1], axis=1)
  return value * jnp.square(of_x * of_y)


def _gram(x: Float[Array, "units groups positions features"]) -> Array:
  return jnp.einsum("ubti,ubsi->ubts", x, x, precision=_HIGHEST)


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
) -> Float[Array, " units"]:
  """A Gram form plus the most that rounding may have taken from it."""
  value = jnp.sum(gram_x * gram_y, axis=(1, 2, 3))
  positions = gram_x.shape[-1]
  of_x, of_y = (
    jnp.sum(jnp.trace(g, axis1=2, axis2=3), axis=1) for g in (gram_x, gram_y)
  )
  epsilon = float(jnp.finfo(value.dtype).eps)
  return jnp.maximum(value, 0) + epsilon * positions * of_x * of_y


def _dot_general(term: Term) -> Float[Array, " units"]:
  return product_squares(*dot_factors(term))


def dot_factors(term: Term) -> tuple[Array, Array]:
  """Inputs and cotangents as ``[units, groups, positions, features]``."""
  site = term.site
  params = dict(site.params)
  contracting, batch = params["dimension_numbers"]
  # Of the input, which is the other operand; units and repeats are in front.
  mine = 1 - site.position
  (x,), y = (widen(v) for v in term.inputs), term.cotangent
  y = widen(y)
  shared = [2 + d for d in batch[mine]]
  summed = [2 + d for d in contracting[mine]]
  free = [d for d in range(2, x.ndim) if d not in (*shared, *summed)]
  x = jnp.transpose(x, (0, *shared, 1, *free, *summed))
  units, num_shared, num_free = x.shape[0], len(shared), len(free)
  groups = math.prod(x.shape[1 : 1 + num_shared])
  positions = math.prod(x.shape[1 + num_shared : 2 + num_shared + num_free])
  x = x.reshape(units, groups, positions, -1)
  # The result has shared axes, free ones of the left, free ones of the right.
  start = 2 + num_shared
  split = y.ndim - num_free if mine == 1 else start
  order = (
    0, *range(2, start), 1, *range(split, y.ndim), *range(start, split)
  )  # fmt: skip
  y = jnp.transpose(y, order).reshape(units, groups, positions, -1)
  return x, y


def _conv(term: Term) -> Float[Array, " units"] | None:
  site = term.site
  params = dict(site.params)
  if site.position != 1 or params["batch_group_count"] != 1:
    return None
  numbers = params["dimension_numbers"]
  kernel = site.operand_shape
  sizes = [kernel[d] for d in numbers.rhs_spec[2:]]
  x, y = (widen(v) for v in (*term.inputs, term.cotangent))
  x = _canonical(x, numbers.lhs_spec)
  y = _canonical(y, numbers.out_spec)
  units, rows, *where, outputs = y.shape
  # Zeros between (lhs dilation) and around (padding), as the convolution sees.
  widths = [(0, 0, 0)] * 2
  for (low, high), step in zip(
    params["padding"], params["lhs_dilation"], strict=True
  ):
    widths.append((low, high, step - 1))
  x = jax.lax.pad(x, jnp.zeros((), x.dtype), [*widths, (0, 0, 0)])
  groups = params["feature_group_count"]

  def shifted(offset: tuple[int, ...]) -> Array:
    """The inputs that one place of the kernel meets, by position."""
    start = [o * d for o, d in zip(offset, params["rhs_dilation"], strict=True)]
    strides = params["window_strides"]
    stop = [
      s + (n - 1) * t + 1 for s, n, t in zip(start, where, strides, strict=True)
    ]
    piece = jax.lax.slice(
      x,
      (0, 0, *start, 0),
      (units, rows, *stop, x.shape[-1]),
      (1, 1, *strides, 1),
    )
    return _by_group(piece, groups)

  y = _by_group(y, groups)
  offsets = list(_grid(sizes))
  positions, inputs = y.shape[2], x.shape[-1] // groups
  # One place of the kernel is too thin for a matrix product if inputs are few.
  count = max(1, _FEW_INPUTS // inputs)
  pieces = [offsets[i : i + count] for i in range(0, len(offsets), count)]

  def together(some: list[tuple[int, ...]]) -> Array:
    return jnp.concatenate([shifted(offset) for offset in some], axis=3)

  rows_of = inputs * len(offsets)
  if choose(groups, positions, rows_of, outputs // groups).method == "Gram":
    (x, of_x), (y, of_y) = scaled(x), scaled(y)
    first, *others = (_gram(together(piece)) for piece in pieces)
    value = _guarded(sum(others, start=first), _gram(y))
    return value * jnp.square(of_x * of_y)
  total = jnp.zeros(units, x.dtype)
  for piece in pieces:
    product = jnp.einsum(
      "ugti,ugto->ugio", together(piece), y, precision=_HIGHEST
    )
    total = total + sum_squares(product)
  return total


def _canonical(x: Array, spec: tuple[int, ...]) -> Array:
  """To ``[units, rows, *where, features]``; spec is (rows, features, where)."""
  rows, features, *where = (2 + d for d in spec)
  x = jnp.transpose(x, (0, 1, rows, *where, features))
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def _by_group(x: Array, groups: int) -> Array:
  """To ``[units, groups, positions, features]``."""
  units, features = x.shape[0], x.shape[-1]
  x = x.reshape(units, -1, groups, features // groups)
  return jnp.swapaxes(x, 1, 2)


def _grid(sizes: list[int]) -> list[tuple[int, ...]]:
  offsets: list[tuple[int, ...]] = [()]
  for size in sizes:
    offsets = [(*o, i) for o in offsets for i in range(size)]
  return offsets


def look_up(
  term: Term,
) -> tuple[Int[Array, "units tokens"], Float[Array, "units tokens row"]] | None:
  """Which rows of a table were taken, and their cotangents; None if others."""
  site = term.site
  params = dict(site.params)
  numbers = params["dimension_numbers"]
  (indices,), y = term.inputs, widen(term.cotangent)
  table = site.operand_shape
  simple = (
    numbers.collapsed_slice_dims == (0,)
    and numbers.start_index_map == (0,)
    and not numbers.operand_batching_dims
    and tuple(params["slice_sizes"]) == (1, *table[1:])
    and tuple(numbers.offset_dims)
    == tuple(range(y.ndim - len(table) - 1, y.ndim - 2))
  )
  if not simple:
    return None
  units = y.shape[0]
  tokens = indices.reshape(units, -1)
  y = y.reshape(units, tokens.shape[1], -1)
  last = table[0] - 1
  there = (tokens >= 0) & (tokens <= last)
  if params["mode"] == jax.lax.GatherScatterMode.CLIP:
    tokens, there = jnp.clip(tokens, 0, last), jnp.ones_like(there)
  # A token outside of the table has no row, and no gradient.
  return tokens, jnp.where(there[..., None], y, jnp.zeros_like(y))


def _gather(term: Term) -> Float[Array, " units"] | None:
  """Rows of a table: tokens that are equal share a row of the gradient."""
  found = look_up(term)
  if found is None:
    return None
  tokens, y = found
  gram = jnp.einsum("uti,usi->uts", y, y, precision=_HIGHEST)
  same: Bool[Array, "units tokens tokens"]
  same = tokens[:, :, None] == tokens[:, None, :]
  value = jnp.sum(jnp.where(same, gram, jnp.zeros_like(gram)), axis=(1, 2))
  counts = jnp.max(jnp.sum(same, axis=2), axis=1).astype(y.dtype)
  bound = float(jnp.finfo(y.dtype).eps) * counts * sum_squares(y)
  return jnp.maximum(value, 0) + bound * tokens.shape[1]


_NORMS: dict[str, Callable[[Term], Float[Array, " units"] | None]] = {
  "dot_general": _dot_general,
  "conv_general_dilated": _conv,
  "gather": _gather,
}
