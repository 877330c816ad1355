"""Squared norms of a parameter with one site or several.

Of several, in matrix products and look-ups of one matrix, the gradient is
``sum_a L_a' R_a`` with rows in the parameter's own orientation, and so

  || sum_a L_a' R_a ||^2 = sum_ab sum_ts (L_a L_b')_ts (R_a R_b')_ts.

A look-up's L is the one-hot matrix of its tokens, which is never made.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp.per_example import _look_up, _norms, _products
from jaxdp.per_example._site import Factored, Site, Term
from jaxdp.per_example._wide import einsum, widen


def squares(leaf: Factored) -> Float[Array, " units"]:
  """Squared norm of each unit's gradient, never under-estimated by rounding.

  Of a parameter that has a ``choice``.
  """
  alone = len(leaf.terms) == 1
  return _norms.squares(leaf.terms[0]) if alone else _cross_squares(leaf)


def choice(leaf: Factored) -> _norms.Choice | None:
  """How ``squares`` finds the norm; None if it does not know how."""
  if len(leaf.terms) == 1:
    return _norms.choice(leaf.terms[0])
  rows = jax.eval_shape(_all_rows, leaf)
  if rows is None:
    return None
  positions = sum(row.right.shape[1] for row in rows)
  found = _norms.choose(1, positions, *leaf.shape[1:])
  return found if found.method == "Gram" else None


class _Rows(NamedTuple):
  """Rows of L and R at the positions of one site."""

  left: Array  # [units, positions, inputs], or tokens [units, positions]
  right: Float[Array, "units positions outputs"]

  @property
  def is_look_up(self) -> bool:
    return self.left.ndim == 2


def _all_rows(leaf: Factored) -> list[_Rows] | None:
  """Of all terms; None if one of them has none."""
  rows = [row for row in map(_rows, leaf.terms) if row is not None]
  return rows if len(rows) == len(leaf.terms) else None


def _rows(term: Term) -> _Rows | None:
  """None if the term is no product or look-up of the matrix itself."""
  site = term.site
  turned = _is_turned(site)
  if turned is None or len(site.operand_shape) != 2:
    return None
  if site.primitive.name in _look_up.PRIMITIVES:
    found = None if turned else _look_up.rows_taken(term)
    return None if found is None else _Rows(*found)
  if site.primitive.name != "dot_general":
    return None
  contracting, batch = dict(site.params)["dimension_numbers"]
  summed = contracting[site.position]
  if batch[0] or len(summed) != 1:
    return None
  product = _products.of(term)
  assert product is not None
  x, y = (widen(v[:, 0]) for v in (product.x, product.y))
  return _Rows(x, y) if (summed[0] == 0) != turned else _Rows(y, x)


def _is_turned(site: Site) -> bool | None:
  """Whether the operand is the matrix transposed; None for other views."""
  turned = False
  for primitive, params in site.views:
    if primitive is None or primitive.name not in (
      "convert_element_type",
      "transpose",
    ):
      return None
    turned ^= dict(params).get("permutation") == (1, 0)
  return turned


def _cross_squares(leaf: Factored) -> Float[Array, " units"]:
  rows = _all_rows(leaf)
  assert rows is not None
  units = rows[0].right.shape[0]
  parts, scales = [], []
  for row in rows:
    left, of_left = row.left, jnp.ones(units, row.right.dtype)
    if not row.is_look_up:
      left, of_left = _norms.scaled(left)
    right, of_right = _norms.scaled(row.right)
    parts.append(_Rows(left, right))
    scales.append(of_left * of_right)
  largest = jnp.max(jnp.stack(scales), axis=0)
  scales = [scale / largest for scale in scales]
  value = jnp.zeros(units, largest.dtype)
  for (a, of_a), (b, of_b) in itertools.product(
    zip(parts, scales, strict=True), repeat=2
  ):
    right = einsum("uti,usi->uts", a.right, b.right)
    value += of_a * of_b * jnp.sum(_lefts(a, b) * right, axis=(1, 2))
  # The most that rounding may have taken: see ``_norms``.
  bound = sum(
    scale * jnp.sqrt(_left_squares(part) * _norms.sum_squares(part.right))
    for part, scale in zip(parts, scales, strict=True)
  )
  positions = sum(row.right.shape[1] for row in rows)
  epsilon = float(jnp.finfo(value.dtype).eps)
  value = jnp.maximum(value, 0) + epsilon * positions * jnp.square(bound)
  return value * jnp.square(largest)


def _lefts(a: _Rows, b: _Rows) -> Float[Array, "units positions others"]:
  """``L_a L_b'``."""
  if a.is_look_up and b.is_look_up:
    return (a.left[:, :, None] == b.left[:, None, :]).astype(a.right.dtype)
  if a.is_look_up:
    return jnp.swapaxes(_lefts(b, a), 1, 2)
  if b.is_look_up:
    # A token outside of the table has no cotangent: any row does for it.
    tokens = jnp.clip(b.left, 0, a.left.shape[2] - 1)
    return jnp.take_along_axis(a.left, tokens[:, None, :], axis=2)
  return einsum("uti,usi->uts", a.left, b.left)


def _left_squares(rows: _Rows) -> Float[Array, " units"]:
  if rows.is_look_up:
    units, positions = rows.left.shape
    return jnp.full(units, float(positions), rows.right.dtype)
  return _norms.sum_squares(rows.left)
