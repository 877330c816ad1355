"""Look-ups: sites that take rows of a table, by an index or several."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdp.per_example._site import Term
from jaxdp.per_example._wide import widen

PRIMITIVES = frozenset({"gather", "dynamic_slice"})


def rows_taken(
  term: Term,
) -> tuple[Int[Array, "units tokens"], Float[Array, "units tokens row"]] | None:
  """Which rows, and their cotangents; None if other parts were taken."""
  site = term.site
  is_gather = site.primitive.name == "gather"
  params = dict(site.params)
  y, table = widen(term.cotangent), site.operand_shape
  if tuple(params["slice_sizes"]) != (1, *table[1:]):
    return None
  if is_gather and not _by_first_axis(params, y.ndim - 2, len(table)):
    return None
  units = y.shape[0]
  tokens = term.inputs[0].reshape(units, -1)
  y = y.reshape(units, tokens.shape[1], -1)
  last = table[0] - 1
  if not is_gather or params["mode"] == jax.lax.GatherScatterMode.CLIP:
    return jnp.clip(tokens, 0, last), y
  # A token outside of the table has no row, and no gradient.
  there = (tokens >= 0) & (tokens <= last)
  return tokens, jnp.where(there[..., None], y, jnp.zeros_like(y))


def _by_first_axis(params: dict, result_axes: int, table_axes: int) -> bool:
  numbers = params["dimension_numbers"]
  row = range(result_axes + 1 - table_axes, result_axes)
  return (
    numbers.collapsed_slice_dims == (0,)
    and numbers.start_index_map == (0,)
    and not numbers.operand_batching_dims
    and tuple(numbers.offset_dims) == tuple(row)
  )
