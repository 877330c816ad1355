"""Which leaf is in which group: the partition that a rule makes of a tree."""

import math
from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxdp.clipping._rule import ClippingRule


class Groups(NamedTuple):
  """A partition of the leaves of a tree, groups in order of their names.

  The order does not depend on which other leaves there are: a state that was
  made for all parameters must not swap groups when only some of them train.
  """

  names: tuple[Hashable, ...]
  of_leaf: tuple[int, ...]  # for each leaf, in flattening order
  dims: tuple[int, ...]  # for each group, how many parameters it has


def assign_groups(rule: ClippingRule, params: PyTree) -> Groups:
  """The groups of a rule over the leaves of (trained) parameters."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  by_leaf = [
    rule.group(jax.tree_util.keystr(path, simple=True, separator="/"))
    for path, _ in leaves
  ]
  names = sorted(set(by_leaf), key=str)
  of_leaf = [names.index(name) for name in by_leaf]
  dims = [0] * len(names)
  for group, (_, leaf) in zip(of_leaf, leaves, strict=True):
    dims[group] += math.prod(jnp.shape(leaf))
  return Groups(tuple(names), tuple(of_leaf), tuple(dims))
