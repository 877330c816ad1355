"""The contract of a clipping rule.

A rule sees the norms of a unit's gradient, by group of leaves, and answers with
weights. It states one bound, which is the only source of a sensitivity:

    for ALL norms n >= 0:  || (weights * n, statistic) / noise_shape ||_2 <=
    bound

Noise is then ``noise_multiplier * c * bound * noise_shape``, per group; c is
the unit's sensitivity factor and belongs to the sampler. Because a rule never
sees a gradient, it runs on any engine and its bound is tested without a model.

A rule is a frozen dataclass and a pytree: its numbers are data, its grouping is
metadata. So it crosses ``jit`` (one compile for all clip norms), stacks under
``vmap``, prints, and goes to JSON and back.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, TypeAlias, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

State: TypeAlias = Any  # a tree of arrays
_Rule = TypeVar("_Rule", bound="type[ClippingRule]")
_REGISTRY: dict[str, type["ClippingRule"]] = {}


class ClippingRule:
  """Base of every rule: flat grouping, no state, no statistic.

  Override ``weights`` and ``noise_shape``; the rest where the rule needs it.
  """

  # Static: no state and no data ever moves it. All units live in noise_shape,
  # so that it is 1, except for the rule that bounds nothing (infinity).
  bound: ClassVar[float] = 1.0
  # Whether the state moves: such rules need the mechanism's.
  adaptive: ClassVar[bool] = False
  # Whether ``refresh`` moves it: then a public batch is needed.
  needs_public_norms: ClassVar[bool] = False
  # Whether contributions do not grow with the clip norm.
  unitless: ClassVar[bool] = False

  def group(self, path: str) -> Hashable:
    """The group of the leaf with this name (``layers/0/kernel``)."""
    del path
    return "all"

  def init(self, params: PyTree) -> State:
    """The public state for these (trained) parameters; ``()`` if none."""
    del params
    return ()

  def noise_shape(self, state: State) -> Float[Array, " groups+statistics"]:
    """Gamma > 0: the scale of each group's noise. Public; may be traced."""
    raise NotImplementedError

  def weights(
    self, norms: Float[Array, "groups units"], state: State
  ) -> Float[Array, "groups units"]:
    """Weights for finite norms >= 0; the caller handles all others."""
    raise NotImplementedError

  def statistic(
    self, norms: Float[Array, "groups units"], state: State
  ) -> Float[Array, "statistics units"]:
    """Bounded function of the norms, released jointly with the gradient."""
    del state
    return jnp.zeros((0, norms.shape[1]), norms.dtype)

  def update(
    self, state: State, noisy_statistic: Float[Array, " statistics"]
  ) -> State:
    """The next state, from what was released (already noised, a mean)."""
    del noisy_statistic
    return state

  def refresh(
    self, state: State, public_norms: Float[Array, " groups"]
  ) -> State:
    """The next state, from mean norms by group over a public batch."""
    del public_norms
    return state

  def to_dict(self) -> dict[str, Any]:
    """The rule as JSON-able values; ``rule_from_dict`` reads it."""
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
    return {"rule": type(self).__name__, **jax.tree.map(_plain, fields)}


def _plain(x: Any) -> Any:
  return x if isinstance(x, str | bool | int | float | None) else float(x)


@dataclass_transform(frozen_default=True)
def rule(*metadata: str) -> Callable[[_Rule], _Rule]:
  """Makes a class a frozen dataclass and a pytree; named fields are static."""

  def decorate(cls: _Rule) -> _Rule:
    dataclasses.dataclass(frozen=True)(cls)  # in place
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    data = [n for n in names if n not in metadata]
    jax.tree_util.register_dataclass(cls, data, list(metadata))
    _REGISTRY[cls.__name__] = cls
    return cls

  return decorate


def rule_from_dict(values: dict[str, Any]) -> ClippingRule:
  """The rule that ``to_dict`` wrote."""
  values = {
    name: rule_from_dict(value) if isinstance(value, dict) else value
    for name, value in values.items()
  }
  return _REGISTRY[values.pop("rule")](**values)


def check_positive(hint: str = "", **values: Any) -> None:
  """Raises unless every concrete value is finite, > 0 and safe to square.

  A norm far below the smallest square of float32 would be under-estimated, and
  the bound with it. Traced values and array placeholders pass: a rule is
  rebuilt inside ``jit`` and ``vmap``, where its numbers were checked before.
  """
  for name, value in values.items():
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
      continue
    number = float(value)
    if not (number > 0 and math.isfinite(number)):
      raise ValueError(
        f"{name} must be > 0 and finite, got {name}={value}. {hint}".strip()
      )
    if not 1e-12 <= number <= 1e18:
      raise ValueError(
        f"{name} must be between 1e-12 and 1e18, where float32 can square "
        f"norms like it, got {name}={value}. Scale the loss."
      )
