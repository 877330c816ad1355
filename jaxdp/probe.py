"""Checks of a loss or a gradient function before it is trusted with data.

They run it on a few examples and raise; what they say must stay with whoever
may see those examples. Public or made-up ones do as well.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxdp import per_example

_REMEDY = (
  "BatchNorm makes one example's gradient depend on the batch, and is constant "
  "on a batch of one. Use GroupNorm or LayerNorm; or clip buckets "
  "(sampling.Buckets), whose loss may use statistics of its own bucket"
)


def check_isolation(
  grads_fn: Callable[[PyTree, PyTree], PyTree],
  params: PyTree,
  batch: PyTree,
  *,
  rtol: float = 1e-4,
) -> None:
  """Raises if a unit's gradient moves when another unit changes.

  For gradients that were not made by ``per_example_grads``, before they go into
  ``PerExampleGrads.from_stacked``: clipping bounds a unit only if it is alone
  in its row.

  Args:
    grads_fn: ``grads_fn(params, batch)``, a tree of leaves ``[units, *shape]``.
    params: where to look; not all zero.
    batch: at least two different units.
    rtol: how far rounding may move a row, over the row's norm.

  Raises:
    ValueError: with the first leaf that moved, and the two units.

  Example:
    >>> centred = lambda w, xs: w * (xs - xs.mean())
    >>> check_isolation(centred, 2.0, jnp.array([1.0, 5.0]))
    Traceback (most recent call last):
    ...
    ValueError: The gradient of unit 1 moves with unit 0 in leaf ''. ...
  """
  units = per_example.num_units(batch)
  if units < 2:
    raise ValueError(f"check_isolation needs at least two units, got {units}.")
  before = grads_fn(params, batch)
  for changed in range(units):
    other = (changed + 1) % units
    after = grads_fn(params, _copy_row(batch, other, changed))
    pairs = zip(
      jax.tree_util.tree_leaves_with_path(before),
      jax.tree.leaves(after),
      strict=True,
    )
    for (path, old), new in pairs:
      old, new = (
        np.asarray(x, np.float64).reshape(units, -1) for x in (old, new)
      )
      moved = np.linalg.norm(new - old, axis=1)
      moved[changed] = 0
      worst = int(np.argmax(moved - rtol * np.linalg.norm(old, axis=1)))
      if moved[worst] > rtol * np.linalg.norm(old[worst]) + 1e-12:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        raise ValueError(
          f"The gradient of unit {worst} moves with unit {changed} in leaf "
          f"{name!r}. {_REMEDY}."
        )


def check_gradients(
  loss_fn: Callable,
  params: PyTree,
  examples: PyTree,
  *,
  key: Array,
  trainable: per_example.Trainable = None,
  has_aux: bool = False,
  has_key: bool = False,
) -> None:
  """Raises if a trained leaf has no gradient on any of some examples.

  Such a leaf would receive noise and nothing else. It is either not used by the
  loss, or stands before a BatchNorm over one example.

  Args:
    loss_fn: for ONE example, as for ``per_example_grads``; so are the others.
    params: looked at a little beside their values, so that leaves behind a zero
      are not blamed.
    examples: a few, leaves ``[n, ...]``.
    key: of the step aside, and of losses that take one.
    trainable: which leaves train.
    has_aux: the loss returns ``(loss, aux)``.
    has_key: the loss takes a key.

  Raises:
    ValueError: with the names of the leaves.

  Example:
    >>> def loss_fn(params, x):
    ...   return x * params["used"]
    >>> params = {"used": jnp.ones(()), "spare": jnp.ones(())}
    >>> check_gradients(loss_fn, params, jnp.ones(2), key=jax.random.key(0))
    Traceback (most recent call last):
    ...
    ValueError: No gradient reaches ['spare'] on any of 2 examples. ...
  """
  rng = _generator(key)
  nearby = jax.tree.map(lambda x: _step_aside(rng, x), params)
  trained, frozen = per_example.partition_params(nearby, trainable)
  units = per_example.num_units(examples)
  of_units = jax.random.split(key, units) if has_key else None
  grads = _summed_grad(loss_fn, has_aux, trained, frozen, examples, of_units)
  missing = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
    if not np.any(np.asarray(leaf))
  ]
  if missing:
    raise ValueError(
      f"No gradient reaches {missing} on any of {units} examples. Freeze what "
      f"the loss does not use, with trainable=. {_REMEDY}."
    )


def check_aux(aux: PyTree) -> None:
  """Raises if what a loss hands out beside its value are batch statistics.

  Args:
    aux: of a loss with ``has_aux``, or its abstract value.

  Raises:
    ValueError: there is a collection ``batch_stats``, as Flax names it.

  Example:
    >>> check_aux({"batch_stats": {"mean": jnp.zeros(3)}})
    Traceback (most recent call last):
    ...
    ValueError: The loss hands out ['batch_stats/mean'], which are ...
  """
  found = [
    name
    for path, _ in jax.tree_util.tree_leaves_with_path(aux)
    if "batch_stats"
    in (name := jax.tree_util.keystr(path, simple=True, separator="/"))
  ]
  if found:
    raise ValueError(
      f"The loss hands out {found}, which are statistics of private examples "
      f"without noise. {_REMEDY}, and take the statistics for evaluation from "
      "public examples."
    )


def made_up_examples(like: PyTree, num_examples: int, key: Array) -> PyTree:
  """Random examples of the same shapes and types, without looking at values.

  Args:
    like: leaves ``[n, ...]``.
    num_examples: of the result.
    key: for all of them.

  Returns:
    Leaves ``[num_examples, ...]``: normal values, bytes, or zeros and ones as
    may serve as labels and token ids.
  """
  rng = _generator(key)

  def draw(x: Any) -> np.ndarray:
    shape, dtype = (num_examples, *jnp.shape(x)[1:]), jax.dtypes.result_type(x)
    if jnp.issubdtype(dtype, jnp.floating):
      return rng.standard_normal(shape, np.float32).astype(dtype)
    end = 256 if dtype == jnp.uint8 else 2
    return rng.integers(0, end, shape).astype(dtype)

  return jax.tree.map(draw, like)


def _generator(key: Array) -> np.random.Generator:
  """NumPy's, since JAX would compile a program for every shape."""
  return np.random.default_rng(np.asarray(jax.random.key_data(key)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _summed_grad(
  loss_fn: Callable,
  has_aux: bool,
  trained: PyTree,
  frozen: PyTree,
  examples: PyTree,
  keys: Array | None,
) -> PyTree:
  def total(trained: PyTree) -> Array:
    params = per_example.combine_params(trained, frozen)
    args = (params, examples) if keys is None else (params, examples, keys)
    axes = (None, *(0 for _ in args[1:]))
    out = jax.vmap(loss_fn, axes)(*args)
    return jnp.sum(out[0] if has_aux else out)

  return jax.grad(total)(trained)


def _copy_row(batch: PyTree, source: int, target: int) -> PyTree:
  return jax.tree.map(
    lambda x: jnp.asarray(x).at[target].set(jnp.asarray(x)[source]), batch
  )


def _step_aside(rng: np.random.Generator, x: Any) -> Any:
  if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
    return x
  aside = 0.1 * rng.standard_normal(np.shape(x), np.float32)
  return jnp.asarray(x) + aside.astype(jnp.result_type(x))
