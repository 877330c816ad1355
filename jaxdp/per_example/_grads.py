"""``PerExampleGrads``: what a rule and a sum need of a batch's gradients.

Every engine hands out one of these. A consumer asks it for norms by group and
for one weighted sum; it never indexes into it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jaxdp.per_example import _batch, _sums, _tied
from jaxdp.per_example._site import Factored
from jaxdp.per_example._wide import wide_type, widen


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerExampleGrads:
  """One gradient per unit, with the mask of padding rows inside.

  Attributes:
    stacked: a tree like the trained parameters; leaves ``[units, *shape]``, or
      ``Factored``; stacked ones are all finite. What is there of a unit that is
      padding or dropped means nothing. *Sensitive.*
    squares: the same tree with leaves ``[units]``: each row's sum of squares in
      float32 or wider, NaN or infinite where the unit is dropped. *Sensitive.*
    is_padding_example: bool ``[units]``, True for rows that are not real; None
      when nobody said, which samplers that pad refuse.
  """

  stacked: PyTree[Float[Array, "units ..."]]
  squares: PyTree[Float[Array, " units"]]
  is_padding_example: Bool[Array, " units"] | None = None

  @classmethod
  def from_stacked(
    cls,
    stacked: PyTree[Float[Array, "units ..."]],
    is_padding_example: Bool[Array, " units"] | None = None,
  ) -> "PerExampleGrads":
    """Wraps stacked gradients that were computed elsewhere.

    Guarantees:
      A row with a non-finite coordinate is dropped, whatever its other leaves
      hold. That every row depends on its own unit alone is the caller's word.
    """
    units = _batch.num_units(stacked)
    if is_padding_example is not None:
      _batch.check_mask(is_padding_example, units)
    squares = jax.tree.map(sum_of_squares, stacked)
    removed = ~jnp.isfinite(total(squares))
    if is_padding_example is not None:
      # Not left to the weight 0: it keeps the sign of what it multiplies.
      removed |= is_padding_example
    stacked = jax.tree.map(lambda g: _batch.zero_rows(removed, g), stacked)
    return cls(stacked, squares, is_padding_example)

  @property
  def num_units(self) -> int:
    """Rows of the batch, padding included."""
    return _batch.num_units(self.squares)

  @property
  def params_like(self) -> PyTree[jax.ShapeDtypeStruct]:
    """Structure, shapes and dtypes of one unit's gradient."""
    return jax.tree.map(
      lambda g: jax.ShapeDtypeStruct(g.shape[1:], g.dtype),
      self.stacked,
      is_leaf=_is_leaf,
    )

  def norms(self, groups: Sequence[int]) -> Float[Array, "groups units"]:
    """L2 norms of each unit's gradient, by group of leaves.

    Args:
      groups: for each leaf, in flattening order, the index of its group.

    Returns:
      float32 (or wider) ``[groups, units]``. Padding rows are 0; a unit that
      has a non-finite coordinate, or whose squares overflow, is not finite.
    """
    by_group: list[list[Array]] = [[] for _ in range(max(groups) + 1)]
    leaves = jax.tree.leaves(self.squares)
    for square, group in zip(leaves, groups, strict=True):
      by_group[group].append(square)
    norms = jnp.sqrt(jnp.stack([total(squares) for squares in by_group]))
    if self.is_padding_example is None:
      return norms
    return jnp.where(
      self.is_padding_example[None, :], jnp.zeros_like(norms), norms
    )

  def weighted_sum(
    self, weights: Float[Array, "groups units"], groups: Sequence[int]
  ) -> PyTree[Float[Array, "..."]]:
    """Sum over units of weight times gradient, in float32 or wider.

    A weight of 0 gives exactly 0; so does a unit that is dropped.
    """
    dropped = self._is_dropped
    weights = jnp.where(dropped[None, :], jnp.zeros_like(weights), weights)
    leaves, treedef = jax.tree.flatten(self.stacked, is_leaf=_is_leaf)
    return jax.tree.unflatten(
      treedef,
      [
        _sums.weighted_sum(leaf, weights[group], dropped)
        if isinstance(leaf, Factored)
        else _weighted_sum(leaf, weights[group])
        for leaf, group in zip(leaves, groups, strict=True)
      ],
    )

  def materialise(self) -> PyTree[Float[Array, "units ..."]]:
    """The stacked gradients, zeros where padded or dropped; *sensitive*.

    Their types are those in which they are summed: what is kept as factors
    comes out in float32 (or wider), whatever the type of its parameter.
    """
    removed = self._is_dropped
    if self.is_padding_example is not None:
      removed |= self.is_padding_example

    def rows(leaf: Any) -> Array:
      # Before the products, some of which mix units.
      leaf = jax.tree.map(lambda x: _batch.zero_rows(removed, x), leaf)
      return leaf.stacked() if isinstance(leaf, Factored) else leaf

    return jax.tree.map(rows, self.stacked, is_leaf=_is_leaf)

  @property
  def _is_dropped(self) -> Bool[Array, " units"]:
    return ~jnp.isfinite(total(self.squares))


def _is_leaf(x: Any) -> bool:
  return isinstance(x, Factored)


def total(squares: PyTree[Float[Array, "..."]]) -> Float[Array, "..."]:
  """Sum over the leaves of a tree of squared norms."""
  return jnp.sum(jnp.stack(jax.tree.leaves(squares)), axis=0)


def sum_of_squares(
  leaf: Float[Array, "units ..."] | Factored,
) -> Float[Array, " units"]:
  """Squared L2 norm of each row.

  The conversion comes first: a square in bfloat16 keeps 8 bits. XLA sums long
  rows as a tree; a test holds it to that, since a running sum in float32 would
  lose small terms and under-estimate the norm.
  """
  if isinstance(leaf, Factored):
    return _tied.squares(leaf)
  x = widen(leaf)
  return jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)))


def _weighted_sum(
  leaf: Float[Array, "units ..."], weights: Float[Array, " units"]
) -> Float[Array, "..."]:
  dtype = wide_type(leaf.dtype)
  weights = weights.astype(dtype)
  if leaf.dtype == dtype:
    # One matrix product is 5 to 60 times faster than scale-then-sum on a CPU.
    # HIGHEST: TF32 keeps 10 bits of the weight and would break the bound.
    return jnp.einsum(
      "u,u...->...", weights, leaf, precision=jax.lax.Precision.HIGHEST
    )
  # Narrow leaves: the conversion fuses with the product.
  scaled = widen(leaf) * jax.lax.broadcast_in_dim(weights, leaf.shape, (0,))
  return jnp.sum(scaled, axis=0)
