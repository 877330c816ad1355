"""What an engine does with each parameter of a loss, as a table."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from jaxdp.per_example import _api, _norms, _tied, _trainable
from jaxdp.per_example._site import Factored

_NAMES = ("parameter", "shape", "use", "norm by", "MFLOP", "KiB")


def explain(
  loss_fn: Callable,
  params: PyTree,
  batch: PyTree,
  method: _api.Method = "auto",
  *,
  trainable: _trainable.Trainable = None,
  has_aux: bool = False,
  has_key: bool = False,
) -> str:
  """How norms are found, parameter by parameter.

  Args:
    loss_fn: as for ``per_example_grads``; so are the others.
    params: parameters; only shapes are looked at, here and in ``batch``.
    batch: leaves ``[units, ...]``.
    method: the engine; "auto" depends on the device that JAX runs on.
    trainable: which leaves train.
    has_aux: the loss returns ``(loss, aux)``.
    has_key: the loss takes a key.

  Returns:
    A table. *use* is the primitive that a parameter meets; "stacked" ones get a
    gradient for every unit. MFLOP and KiB are what the norm takes for one unit,
    beyond the backward pass: what it multiplies, and what it writes.

  Example:
    >>> loss_fn = lambda p, x: ((x @ p["w"] + p["b"][None]) ** 2).sum()
    >>> params = {"b": jax.numpy.zeros(50), "w": jax.numpy.ones((80, 50))}
    >>> print(explain(loss_fn, params, jax.numpy.ones((4, 9, 80))))
    parameter | shape   | use         | norm by | MFLOP  | KiB
    b         | (50,)   | stacked     | squares | 0.0001 | 0.195
    w         | (80, 50) | dot_general | Gram    | 0.0211 | 0.633
  """
  grads_fn = _api.per_example_grads(
    loss_fn, method, trainable=trainable, has_aux=has_aux, has_key=has_key
  )
  key = jax.random.key(0) if has_key else None
  out = jax.eval_shape(lambda p, b: grads_fn(p, b, key=key), params, batch)
  grads = out[0] if has_aux else out
  leaves = jax.tree_util.tree_leaves_with_path(
    grads.stacked, is_leaf=lambda x: isinstance(x, Factored)
  )
  rows = [_NAMES, *(_row(path, leaf) for path, leaf in leaves)]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    " | ".join(
      cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    ).rstrip()
    for row in rows
  )


def _row(path: Any, leaf: Any) -> tuple[str, ...]:
  shape = leaf.shape[1:]
  use, choice = "stacked", None
  if isinstance(leaf, Factored):
    names = [term.site.primitive.name for term in leaf.terms]
    use, choice = " + ".join(names), _tied.choice(leaf)
  if choice is None:
    size = math.prod(shape)
    choice = _norms.Choice("squares", 2 * size, 4 * size)
  return (
    _trainable.path_string(path),
    str(tuple(shape)),
    use,
    choice.method,
    f"{choice.flops / 1e6:.3g}",
    f"{choice.bytes / 1024:.3g}",
  )
