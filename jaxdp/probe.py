"""Checks of a loss or a gradient function before it is trusted with data.

They run it on a few examples and raise; what they say must stay with whoever
may see those examples. Public or made-up ones do as well.
"""

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
  aside, of_loss = jax.random.split(key)
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(aside, len(leaves))
  nearby = jax.tree.unflatten(
    treedef, [_step_aside(k, x) for k, x in zip(keys, leaves, strict=True)]
  )
  compute = per_example.per_example_grads(
    loss_fn, "stacked", trainable=trainable, has_aux=has_aux, has_key=has_key
  )
  out = compute(nearby, examples, key=of_loss if has_key else None)
  grads = (out[0] if has_aux else out).materialise()
  missing = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
    if not np.any(np.asarray(leaf))
  ]
  if missing:
    raise ValueError(
      f"No gradient reaches {missing} on any of "
      f"{per_example.num_units(examples)} examples. Freeze what the loss does "
      f"not use, with trainable=. {_REMEDY}."
    )


def _copy_row(batch: PyTree, source: int, target: int) -> PyTree:
  return jax.tree.map(
    lambda x: jnp.asarray(x).at[target].set(jnp.asarray(x)[source]), batch
  )


def _step_aside(key: Array, x: Any) -> Array:
  x = jnp.asarray(x)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return x
  return x + (0.1 * jax.random.normal(key, x.shape)).astype(x.dtype)
