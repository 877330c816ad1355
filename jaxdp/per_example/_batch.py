"""What a batch must look like, and how rows that must not count are removed.

Padding rows and rows with a non-finite input become zeros *before* the forward
pass: some batched gradients mix examples (XLA may compute the gradient of a
vmapped convolution as one dense convolution with zeros in it), and 0 * NaN is
NaN.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree


def num_units(batch: PyTree) -> int:
  """The leading axis that every leaf of a batch shares.

  Raises:
    ValueError: the batch has no rows, or its leaves disagree.
  """
  leaves = jax.tree.leaves(batch)
  shapes = jax.tree.map(jnp.shape, batch)
  if not leaves:
    raise ValueError(f"The batch has no arrays in it: {batch!r}.")
  sizes = {jnp.shape(x)[:1] for x in leaves}
  if len(sizes) != 1 or () in sizes:
    raise ValueError(
      "Every leaf of a batch needs the same leading axis (one row a unit), got "
      f"shapes {shapes}. Broadcast what all examples share inside the loss."
    )
  (units,) = sizes.pop()
  if not units:
    raise ValueError(
      f"The batch has no rows: shapes {shapes}. A step without a unit is a "
      "batch of padding, with is_padding_example all True."
    )
  return units


def check_mask(mask: Array, units: int) -> None:
  """Raises unless ``mask`` is a bool vector with one entry a unit."""
  if jnp.shape(mask) != (units,) or jnp.result_type(mask) != jnp.bool_:
    raise ValueError(
      f"is_padding_example must be bool with shape ({units},), True for rows "
      f"that are not real, got {jnp.result_type(mask)} with shape "
      f"{jnp.shape(mask)}."
    )


def _rows(mask: Bool[Array, " units"], x: Array) -> Bool[Array, "units ..."]:
  return jax.lax.broadcast_in_dim(mask, jnp.shape(x), (0,))


def zero_rows(mask: Bool[Array, " units"], x: Array) -> Array:
  """Zeros in the rows where the mask is True, by ``select``."""
  return jnp.where(_rows(mask, x), jnp.zeros_like(x), x)


def zero_few_rows(mask: Bool[Array, " units"], tree: PyTree) -> PyTree:
  """The same for rows that an ordinary step has none of.

  On a GPU the selection fuses into what reads the rows. On a CPU it would be
  made again for every entry read, with all that the mask is computed from.
  """
  result: PyTree = jax.lax.platform_dependent(
    mask, tree, cpu=zero_rows_in_turn, default=_zero_rows_at_once
  )
  return result


def zero_rows_in_turn(mask: Bool[Array, " units"], tree: PyTree) -> PyTree:
  """One row a turn: an ordinary step has no turn, and XLA fuses no loop."""

  def body(carry: tuple) -> tuple:
    todo, tree = carry
    row = jnp.arange(todo.shape[0]) == jnp.argmax(todo)
    return todo & ~row, _zero_rows_at_once(row, tree)

  return jax.lax.while_loop(
    lambda carry: jnp.any(carry[0]), body, (mask, tree)
  )[1]


def _zero_rows_at_once(mask: Bool[Array, " units"], tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: zero_rows(mask, x), tree)


def has_nonfinite_input(batch: PyTree) -> Bool[Array, " units"]:
  """Which units hold a NaN or an infinity in any floating-point leaf."""
  bad = jnp.zeros(num_units(batch), bool)
  for x in jax.tree.leaves(batch):
    if jnp.issubdtype(jnp.result_type(x), jnp.inexact):
      # A maximum keeps NaN, and is faster than to ask every number.
      axes = tuple(range(1, jnp.ndim(x)))
      bad = bad | ~jnp.isfinite(jnp.max(jnp.abs(x), axis=axes, initial=0))
  return bad
