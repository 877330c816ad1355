"""Which parameters train: splitting a tree in two and joining it again.

A frozen leaf has no gradient, no norm and no noise. It is therefore absent,
as ``None``, from every tree that a mechanism or an optimizer sees; masks around
per-example stages (``optax.masked``) would let it pass un-noised instead.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

# A tree of bools (or a prefix of one), a function of ("layers/0/kernel", leaf),
# or None for "every leaf".
Trainable: TypeAlias = Any


def path_string(path: tuple[Any, ...]) -> str:
  """The name of a leaf, as in ``layers/0/kernel``."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def partition_params(
  params: PyTree, trainable: Trainable = None
) -> tuple[PyTree, PyTree]:
  """Splits parameters into the trained part and the frozen rest.

  Args:
    params: a tree of arrays.
    trainable: a tree of bools with the structure of ``params`` (or a prefix of
      it), a function ``(name, leaf) -> bool`` with names like
      ``layers/0/kernel``, or None to train every leaf.

  Returns:
    ``(trained, frozen)``, both with the structure of ``params`` and ``None``
    where a leaf went to the other one.

  Raises:
    ValueError: no leaf trains, a leaf that trains is not a real float, or
      ``trainable`` does not fit ``params``.

  Example:
    >>> params = {"body": jnp.ones(2), "head": jnp.zeros(3)}
    >>> trained, frozen = partition_params(
    ...   params, lambda name, leaf: name.startswith("head")
    ... )
    >>> trained["body"], frozen["head"]
    (None, None)
  """
  leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
  if trainable is None:
    flags = [True] * len(leaves)
  elif callable(trainable):
    flags = [bool(trainable(path_string(path), x)) for path, x in leaves]
  else:
    flags = _broadcast_flags(trainable, params)
  if not any(flags):
    raise ValueError(
      "No parameter is trainable. Give params with at least one leaf, and a "
      "``trainable`` that is True for at least one of: "
      f"{[path_string(path) for path, _ in leaves]}."
    )
  for flag, (path, x) in zip(flags, leaves, strict=True):
    if flag and not jnp.issubdtype(jnp.result_type(x), jnp.floating):
      raise ValueError(
        f"Parameter {path_string(path)!r} has dtype {jnp.result_type(x)}; only "
        "real floating-point leaves have gradients that can be clipped. Freeze "
        "it: trainable=lambda name, leaf: jnp.issubdtype(leaf.dtype, "
        "jnp.floating)."
      )
  trained = [x if f else None for f, (_, x) in zip(flags, leaves, strict=True)]
  frozen = [None if f else x for f, (_, x) in zip(flags, leaves, strict=True)]
  return jax.tree.unflatten(treedef, trained), jax.tree.unflatten(
    treedef, frozen
  )


def _broadcast_flags(trainable: PyTree, params: PyTree) -> list[bool]:
  try:
    full = jax.tree.map(
      lambda flag, sub: jax.tree.map(lambda _: flag, sub), trainable, params
    )
  except ValueError as error:
    raise ValueError(
      "trainable must have the structure of params, or of a prefix of it. "
      f"{error}"
    ) from None
  flags = jax.tree.leaves(full)
  for flag in flags:
    if not isinstance(flag, bool | np.bool_):
      raise ValueError(
        f"trainable must be a tree of bools, got {flag!r} in it. Give True or "
        "False, or a function of (name, leaf)."
      )
  return flags


def combine_params(trained: PyTree, frozen: PyTree) -> PyTree:
  """Joins the two trees of ``partition_params`` again."""
  return jax.tree.map(
    lambda a, b: b if a is None else a,
    trained,
    frozen,
    is_leaf=lambda x: x is None,
  )
