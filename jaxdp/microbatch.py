"""A batch in slices: the sum of what each gives, in memory for one slice.

Slicing moves time and memory. It never moves a result beyond rounding, since
every unit is clipped alone, and never epsilon.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

# Shares of the device's (or, on a CPU, the machine's) memory that one
# microbatch may take; the rest is for parameters, data and optimizer.
_DEVICE_SHARE = 0.6
_HOST_SHARE = 0.4


def check_size(size: Any) -> None:
  """Raises unless this may be a ``microbatch_size``."""
  if size not in (None, "auto") and (type(size) is not int or size < 1):
    raise ValueError(
      f"microbatch_size must be an integer >= 1, 'auto' or None, got {size!r}."
    )


def accumulate(
  fun: Callable[[PyTree, Array, PyTree], tuple[PyTree, Any]],
  size: int,
  batch: PyTree,
  is_padding_example: Bool[Array, " units"],
  keys: PyTree,
) -> tuple[PyTree, Any]:
  """``fun(batch, mask, keys) -> (summed, info)`` on slices, in a ``lax.scan``.

  Args:
    fun: what to do with a slice. Its first result is added up; the leaves of
      ``info`` have the units on their first axis.
    size: units a slice; the last one is filled up with padding.
    batch: leaves ``[units, ...]``.
    is_padding_example: bool ``[units]``.
    keys: a tree with leaves ``[units, ...]``, or None.

  Returns:
    The sum, and ``info`` for all units in their order. Slices of padding alone
    are skipped: zeros.
  """
  check_size(size)
  units = is_padding_example.shape[0]
  count = -(-units // size)
  missing = count * size - units

  def split(x: Array) -> Array:
    if missing:
      x = jnp.concatenate([x, jnp.repeat(x[:1], missing, axis=0)])
    return x.reshape(count, size, *x.shape[1:])

  mask = jnp.concatenate([is_padding_example, jnp.ones(missing, bool)])
  batch, keys = jax.tree.map(split, (jax.tree.map(jnp.asarray, batch), keys))
  slices = (batch, mask.reshape(count, size), keys)
  shapes = jax.eval_shape(fun, *jax.tree.map(lambda x: x[0], slices))

  def zeros(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)

  def body(total: PyTree, piece: tuple) -> tuple[PyTree, Any]:
    summed, info = jax.lax.cond(
      jnp.all(piece[1]), lambda: zeros(shapes), lambda: fun(*piece)
    )
    return jax.tree.map(jnp.add, total, summed), info

  summed, infos = jax.lax.scan(body, zeros(shapes[0]), slices)

  def join(x: Array) -> Array:
    return x.reshape(count * size, *x.shape[2:])[:units]

  return summed, jax.tree.map(join, infos)


def largest_that_fits(
  compute: Callable,
  units: int,
  params: PyTree,
  batch: PyTree,
  is_padding_example: Array | None,
  keys: PyTree,
  budget: int | None = None,
) -> int:
  """The largest microbatch whose gradients and sums fit in memory.

  Compiles gradients, norms and sum for the whole batch, reads the compiler's
  memory analysis, and takes smaller powers of two until one fits.

  Args:
    compute: ``(params, batch, mask, keys) -> (losses, aux, PerExampleGrads)``.
    units: rows of the batch.
    params: parameters; only shapes are read, here and below.
    batch: leaves ``[units, ...]``.
    is_padding_example: the mask, or None.
    keys: by unit, or None.
    budget: bytes; None for a share of the device's memory.

  Raises:
    ValueError: not even one unit fits.
  """
  if budget is None:
    budget = memory_budget()

  def probe(params: PyTree, batch: PyTree, mask: Any, keys: Any) -> PyTree:
    grads = compute(params, batch, mask, keys)[2]
    groups = [0] * len(jax.tree.leaves(grads.squares))
    return grads.weighted_sum(grads.norms(groups), groups)

  def abstract(size: int | None) -> Callable[[Any], Any]:
    def convert(x: Any) -> jax.ShapeDtypeStruct:
      shape = jnp.shape(x) if size is None else (size, *jnp.shape(x)[1:])
      return jax.ShapeDtypeStruct(shape, jax.dtypes.result_type(x))

    return convert

  whole = jax.tree.map(abstract(None), params)
  size = units
  while True:
    slices = (batch, is_padding_example, keys)
    args = jax.tree.map(abstract(size), slices)
    compiled = jax.jit(probe).lower(whole, *args).compile()
    analysis = compiled.memory_analysis()
    needed = 0 if analysis is None else int(analysis.temp_size_in_bytes)
    if needed <= budget:
      return size
    if size == 1:
      raise ValueError(
        f"One unit's gradients need {needed / 2**30:.2f} GiB, and "
        f"{budget / 2**30:.2f} GiB are free for them. Use a smaller model, "
        "fewer trainable leaves, or jax.checkpoint inside the loss."
      )
    # Memory grows linearly in the size, so the first guess is close.
    guess = max(1, int(size * budget / needed))
    size = min(1 << (guess.bit_length() - 1), -(-size // 2))


def memory_budget() -> int:
  """Bytes of the device (or the machine) that one program may take."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return int(stats["bytes_limit"] * _DEVICE_SHARE)
  physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return int(physical * _HOST_SHARE)
