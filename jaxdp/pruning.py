"""Training some entries of the parameters, with the rest at 0 or as it is.

Multiplying a gradient by a mask would leave noise in the masked entries. Here
they are no parameters at all: what trains is a vector of the active entries of
each leaf, so that norms, noise and optimizer states know of no others.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pruned:
  """Parameters of which some entries train.

  Attributes:
    active: what trains; leaves ``[count]``.
    rest: all parameters, in their shapes; active entries have no meaning.
    places: of the active entries in each leaf, flat; leaves ``[count]``.
  """

  active: PyTree
  rest: PyTree
  places: PyTree

  def join(self) -> PyTree:
    """The parameters in their shapes."""

    def one(active: Array, rest: Array, places: Array) -> Array:
      flat = rest.reshape(-1).at[places].set(active, unique_indices=True)
      return flat.reshape(rest.shape)

    return jax.tree.map(one, self.active, self.rest, self.places)


def prune(
  params: PyTree,
  mask: PyTree,
  *,
  mask_source: Literal["public", "data_free", "dp"],
  rest: Literal["zero", "keep"] = "zero",
) -> Pruned:
  """Splits parameters by a mask.

  Args:
    params: a tree of real arrays.
    mask: of the same structure and shapes; True trains. It is not protected.
    mask_source: what the mask was made from. "public" data, which does not
      train; nothing ("data_free": random numbers, initial parameters); or a
      "dp" release, whose budget adds to that of the training. A mask from
      private data, few as they may be, is a release without noise.
    rest: where the others are held, at zero or as they are.

  Returns:
    Parameters for ``fit`` or ``make_train_step`` with ``trainable=is_active``
    and the loss from ``over_active``.

  Raises:
    ValueError: the mask has no sound source, other shapes or types, or trains
      nothing.

  Example:
    >>> mask = np.array([True, False, True])
    >>> pruned = prune(jnp.array([1.0, 2.0, 3.0]), mask, mask_source="public")
    >>> print(pruned.active, pruned.join())
    [1. 3.] [1. 0. 3.]

  References:
    arXiv:2311.06839.
  """
  if mask_source not in ("public", "data_free", "dp"):
    raise ValueError(
      "mask_source must be 'public', 'data_free' or 'dp', got "
      f"{mask_source!r}. A mask from private data would be a release without "
      "noise: take 5 % of the data out of training, call them public, and make "
      "the mask from these."
    )
  if rest not in ("zero", "keep"):
    raise ValueError(f"rest must be 'zero' or 'keep', got {rest!r}.")
  masks = jax.tree.map(np.asarray, mask)
  shapes = [jax.tree.map(np.shape, tree) for tree in (params, masks)]
  if shapes[0] != shapes[1]:
    raise ValueError(
      f"mask must have the structure and shapes of params, {shapes[0]}, got "
      f"{shapes[1]}."
    )
  if any(leaf.dtype != bool for leaf in jax.tree.leaves(masks)):
    raise ValueError("mask must hold bools: True trains, False does not.")
  if not any(leaf.any() for leaf in jax.tree.leaves(masks)):
    raise ValueError("mask is False everywhere: nothing would train.")

  def places(mask: Bool[np.ndarray, "..."]) -> Array:
    return jnp.asarray(np.flatnonzero(mask), jnp.int32)

  where = jax.tree.map(places, masks)
  active = jax.tree.map(lambda x, p: x.reshape(-1)[p], params, where)
  held = jax.tree.map(jnp.zeros_like if rest == "zero" else jnp.asarray, params)
  return Pruned(active, held, where)


def is_active(name: str, leaf: Any) -> bool:
  """For ``trainable=``: what trains in a ``Pruned``."""
  del leaf
  return name.split("/")[0] == "active"


def over_active(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
  """The loss of a ``Pruned``, from one of its parameters (and a key)."""

  def fn(pruned: Pruned, *args: Any) -> Float[Array, ""] | Any:
    return loss_fn(pruned.join(), *args)

  return fn
