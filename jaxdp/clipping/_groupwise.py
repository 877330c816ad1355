"""Rules with one weight a group of leaves: per layer, or by name.

With bounds R_l by group and noise shape gamma_l, the sensitivity in shaped
units is sqrt(sum (R_l / gamma_l)^2). Every allocation below is scaled so that
this is 1; mu is then 1 / noise_multiplier for each of them (METHODS: He et al.
2023).
"""

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdp.clipping import _rule
from jaxdp.clipping._groups import assign_groups

Allocation = Literal["global", "equal", "weighted"]


class GroupState(NamedTuple):
  """Public and constant over a run."""

  l2_clip_norms: Float[Array, " groups"]
  noise_shape: Float[Array, " groups"]


def group_state(
  l2_clip_norms: Float[Array, " groups"],
  dims: Sequence[int] | Float[Array, " groups"],
  allocation: Allocation,
) -> GroupState:
  """Noise shape of groups with these bounds and numbers of parameters."""
  radii = jnp.asarray(l2_clip_norms, jnp.float32)
  if allocation == "global":
    shape = jnp.ones_like(radii)
  elif allocation == "equal":
    shape = radii
  else:
    shape = radii / jnp.sqrt(jnp.asarray(dims, jnp.float32))
  return GroupState(radii, shape * jnp.linalg.norm(radii / shape))


def check_allocation(allocation: str) -> None:
  """Raises for a name that is no noise allocation."""
  if allocation not in get_args(Allocation):
    raise ValueError(
      f"noise_allocation must be one of {get_args(Allocation)}, got "
      f"{allocation!r}."
    )


class _GroupClipping(_rule.ClippingRule):
  def noise_shape(self, state: GroupState) -> Float[Array, " groups"]:
    return state.noise_shape

  def weights(
    self, norms: Float[Array, "groups units"], state: GroupState
  ) -> Float[Array, "groups units"]:
    radii = state.l2_clip_norms.astype(norms.dtype)[:, None]
    return radii / jnp.maximum(norms, radii)


@_rule.rule("noise_allocation", "by")
class PerLayer(_GroupClipping):
  """See ``per_layer``."""

  l2_clip_norm: float
  noise_allocation: Allocation = "global"
  by: Literal["layer", "tensor"] = "layer"

  def __post_init__(self) -> None:
    _rule.check_positive(l2_clip_norm=self.l2_clip_norm)
    check_allocation(self.noise_allocation)
    if self.by not in ("layer", "tensor"):
      raise ValueError(f"by must be 'layer' or 'tensor', got by={self.by!r}.")

  def group(self, path: str) -> Hashable:
    return path.rpartition("/")[0] if self.by == "layer" else path

  def init(self, params: PyTree) -> GroupState:
    groups = assign_groups(self, params)
    count = len(groups.names)
    clip = jnp.asarray(self.l2_clip_norm, jnp.float32)
    radii = jnp.broadcast_to(clip / math.sqrt(count), (count,))
    return group_state(radii, groups.dims, self.noise_allocation)


def per_layer(
  l2_clip_norm: float,
  *,
  noise_allocation: Allocation = "global",
  by: Literal["layer", "tensor"] = "layer",
) -> PerLayer:
  r"""Clips each layer at ``l2_clip_norm / sqrt(number of layers)``.

  .. math:: g_{i,l} \mapsto g_{i,l} \min(1, C_l / \|g_{i,l}\|_2),
            \quad C_l = C / \sqrt{L}

  Args:
    l2_clip_norm: C > 0, the bound of the whole gradient.
    noise_allocation: how the noise is shared: "global" (the same standard
      deviation everywhere), "equal" (proportional to C_l: the same here, since
      all C_l are equal) or "weighted" (C_l / sqrt(d_l), d_l parameters in the
      layer: noise energy proportional to C_l^2).
    by: what a group is: the leaves with one parent ("layer", a kernel with its
      bias) or each leaf alone ("tensor").

  Guarantees:
    Each layer's norm is <= C_l, so the whole norm is <= C (1 + 8 ulp). The
    privacy of a step does not depend on the allocation.

  Edge cases:
    As ``flat``; a unit with a non-finite coordinate in any layer contributes
    exactly zero to all.

  Example:
    >>> rule = per_layer(1.0)
    >>> params = {"a": {"kernel": jnp.ones(3)}, "b": {"kernel": jnp.ones(5)}}
    >>> print(rule.init(params).l2_clip_norms.round(4))
    [0.7071 0.7071]

  References:
    McMahan et al. 2018, arXiv:1710.06963; He et al. 2023, arXiv:2212.01539.
  """
  return PerLayer(l2_clip_norm, noise_allocation, by)


@_rule.rule("patterns", "noise_allocation")
class Groupwise(_GroupClipping):
  """See ``groupwise``."""

  patterns: tuple[str, ...]
  l2_clip_norms: tuple[float, ...]
  noise_allocation: Allocation = "global"

  def __post_init__(self) -> None:
    # A plain JSON list must compare equal to what was written.
    object.__setattr__(self, "patterns", tuple(self.patterns))
    object.__setattr__(self, "l2_clip_norms", tuple(self.l2_clip_norms))
    check_allocation(self.noise_allocation)
    if not self.patterns:
      raise ValueError(
        "l2_clip_norms is empty. Give at least one pattern, such as "
        "{'head': 1.0, '.*': 0.1}."
      )
    for pattern in self.patterns:
      try:
        re.compile(pattern)
      except (re.error, TypeError) as error:
        raise ValueError(
          f"{pattern!r} is no regular expression: {error}. Patterns are "
          "searched for in names of leaves, such as 'layers/0/kernel'."
        ) from None
    for pattern, norm in zip(self.patterns, self.l2_clip_norms, strict=True):
      _rule.check_positive("", **{f"l2_clip_norms[{pattern!r}]": norm})

  def group(self, path: str) -> Hashable:
    for i, pattern in enumerate(self.patterns):
      if re.search(pattern, path):
        return i
    raise ValueError(
      f"No pattern of groupwise clipping matches the parameter {path!r}; the "
      f"patterns are {list(self.patterns)}. Add one that does; '.*' at the end "
      "catches the rest."
    )

  def init(self, params: PyTree) -> GroupState:
    groups = assign_groups(self, params)
    norms: list[Any] = [self.l2_clip_norms[int(str(i))] for i in groups.names]
    radii = jnp.stack([jnp.asarray(x, jnp.float32) for x in norms])
    return group_state(radii, groups.dims, self.noise_allocation)


def groupwise(
  l2_clip_norms: Mapping[str, float], *, noise_allocation: Allocation = "global"
) -> Groupwise:
  r"""Clips groups of leaves, chosen by name, each at its own norm.

  .. math:: g_{i,l} \mapsto g_{i,l} \min(1, C_l / \|g_{i,l}\|_2)

  Args:
    l2_clip_norms: C_l > 0 by regular expression; a leaf is in the group of the
      first expression found in its name (``layers/0/kernel``).
    noise_allocation: "global", "equal" (proportional to C_l) or "weighted"
      (proportional to C_l / sqrt(d_l)); see ``per_layer``.

  Guarantees:
    The whole norm is <= sqrt(sum of C_l^2 over groups that have a leaf). The
    privacy of a step does not depend on the allocation.

  Edge cases:
    As ``per_layer``. A leaf that no expression matches: ValueError.

  Example:
    >>> rule = groupwise({"head": 3.0, ".*": 4.0})
    >>> state = rule.init({"body": jnp.ones(2), "head": jnp.ones(2)})
    >>> print(state.l2_clip_norms, state.noise_shape)
    [3. 4.] [5. 5.]

  References:
    McMahan et al. 2018, arXiv:1812.06210, section 3; He et al. 2023,
    arXiv:2212.01539.
  """
  return Groupwise(
    tuple(l2_clip_norms), tuple(l2_clip_norms.values()), noise_allocation
  )
