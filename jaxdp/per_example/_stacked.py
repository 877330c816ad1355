"""The stacked engine: ``jax.vmap(jax.grad(loss_fn))``, with units kept apart.

The reference for every other engine; it works for every loss. Read
``compute`` first, then ``_try_again``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jaxdp.per_example import _batch, _grads

# (trained, frozen, example, key) -> (loss, aux)
UnitLoss = Callable[[PyTree, PyTree, PyTree, Any], tuple[Array, Any]]


def compute(
  loss_fn: UnitLoss,
  params: tuple[PyTree, PyTree],
  batch: PyTree,
  is_padding_example: Bool[Array, " units"] | None,
  keys: Array | None,
) -> tuple[Float[Array, " units"], Any, _grads.PerExampleGrads]:
  """Losses, auxiliary outputs and gradients of every unit of a batch."""
  trained, frozen = params
  nonfinite = _batch.has_nonfinite_input(batch)
  padding = is_padding_example
  removed = nonfinite if padding is None else nonfinite | padding
  batch = jax.tree.map(lambda x: _batch.zero_rows(removed, x), batch)

  def one(example: PyTree, key: Any) -> Any:
    (loss, aux), grad = jax.value_and_grad(loss_fn, has_aux=True)(
      trained, frozen, example, key
    )
    return loss, aux, grad

  losses, aux, stacked = jax.vmap(one)(batch, keys)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (batch, keys)
  )
  if grouped_convolutions(jax.make_jaxpr(one)(*abstract)):

    def again(i: Array) -> PyTree:
      example, key = jax.tree.map(lambda x: x[i], (batch, keys))
      return one(example, key)[2]

    stacked = _try_again(stacked, removed, again)
  stacked, squares = finite_rows(stacked, jnp.zeros(losses.shape, bool))
  # A removed row was computed from zeros: its gradient is finite but not its
  # own. NaN squares say "dropped"; padding is masked by the norms anyway.
  squares = jax.tree.map(
    lambda s: jnp.where(nonfinite, jnp.full_like(s, jnp.nan), s), squares
  )
  return losses, aux, _grads.PerExampleGrads(stacked, squares, padding)


def finite_rows(
  stacked: PyTree[Float[Array, "units ..."]], bad: Bool[Array, " units"]
) -> tuple[PyTree, PyTree]:
  """The gradients, zeros in rows that are not finite, and sums of squares.

  Args:
    stacked: gradients, one leaf at least.
    bad: rows that are not finite in leaves that are not here.
  """
  rows: tuple[PyTree, PyTree] = jax.lax.platform_dependent(
    stacked, bad, cpu=_squares_by_row, default=_squares_by_leaf
  )
  return rows


def _squares_by_leaf(
  stacked: PyTree, bad: Bool[Array, " units"]
) -> tuple[PyTree, PyTree]:
  """On a GPU the selection fuses into what follows."""
  squares = jax.tree.map(_grads.sum_of_squares, stacked)
  bad = bad | ~jnp.isfinite(_grads.total(squares))
  return jax.tree.map(lambda g: _batch.zero_rows(bad, g), stacked), squares


def _squares_by_row(
  stacked: PyTree, bad: Bool[Array, " units"]
) -> tuple[PyTree, PyTree]:
  """The same for a CPU, where writing a gradient is what takes the time.

  Norms and sum read flat rows, or XLA would write a gradient once for each of
  the two shapes.
  """
  rows = jax.tree.map(lambda g: g.reshape(g.shape[0], -1), stacked)
  squares = jax.tree.map(_grads.sum_of_squares, rows)
  bad = bad | ~jnp.isfinite(_grads.total(squares))
  rows = _batch.zero_rows_in_turn(bad, rows)
  return jax.tree.map(lambda r, g: r.reshape(g.shape), rows, stacked), squares


def _try_again(
  stacked: PyTree,
  removed: Bool[Array, " units"],
  again: Callable[[Array], PyTree],
) -> PyTree:
  """Computes the units that are not finite once more, each alone.

  XLA computes the kernel gradients of a vmapped grouped convolution as one
  dense convolution with zeros in it, which spreads a NaN of one unit over all.
  The loop has no turn in an ordinary step, and stays cheap under ``vmap``.
  """

  def body(carry: tuple) -> tuple:
    todo, stacked = carry
    i = jnp.argmax(todo)
    row = jnp.arange(todo.shape[0]) == i
    # ``select``, not an indexed write: it keeps the units' sharding.
    stacked = jax.tree.map(
      lambda g, new: _set_row(row, g, new), stacked, again(i)
    )
    return todo & ~row, stacked

  squares = jax.tree.map(_grads.sum_of_squares, stacked)
  # Removed rows were computed from zeros, and count for nothing.
  todo = ~jnp.isfinite(_grads.total(squares)) & ~removed
  carry = (todo, stacked)
  return jax.lax.while_loop(lambda carry: jnp.any(carry[0]), body, carry)[1]


def _set_row(row: Bool[Array, " units"], x: Array, new: Array) -> Array:
  mask = jax.lax.broadcast_in_dim(row, x.shape, (0,))
  return jnp.where(mask, new[None], x)


def has_groups(params: Mapping[str, Any]) -> bool:
  """Whether these are of a convolution in groups."""
  counts = ("feature_group_count", "batch_group_count")
  return any(params.get(name, 1) > 1 for name in counts)


def grouped_convolutions(jaxpr: Any) -> int:
  """How many convolutions in groups a jaxpr has."""
  return sum(has_groups(eqn.params) for eqn in _walk(jaxpr))


def _walk(jaxpr: Any) -> Any:
  for eqn in jaxpr.eqns:
    yield eqn
    for value in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
      if hasattr(value, "eqns"):
        yield from _walk(value)
