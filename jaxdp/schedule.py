"""Piecewise constant factors by step, for noise multipliers and clip norms."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Every level is one more event for the accountant to compose.
_MAX_LEVELS = 32


@dataclasses.dataclass(frozen=True)
class PiecewiseConstant:
  """A factor for every step, constant from each given step on.

  Args:
    levels: factor > 0 by its first step, steps rising from 0; at most 32. A
      mapping, or pairs (which is how it is kept).

  Raises:
    ValueError: for anything else.

  Example:
    >>> schedule = PiecewiseConstant({0: 1.0, 100: 0.5})
    >>> print(schedule(99), schedule(100))
    1.0 0.5
    >>> list(schedule.pieces(first_step=90, num_steps=20))
    [(90, 10, 1.0), (100, 10, 0.5)]
  """

  levels: Any  # tuple[tuple[int, float], ...] from here on

  def __post_init__(self) -> None:
    levels = self.levels
    pairs = levels.items() if isinstance(levels, Mapping) else levels
    try:
      kept = tuple((int(step), float(factor)) for step, factor in pairs)
    except (TypeError, ValueError):
      kept = ()
    steps = [step for step, _ in kept]
    if not kept or steps[0] != 0 or steps != sorted(set(steps)):
      raise ValueError(
        "levels must give a factor by its first step, in rising order from "
        f"step 0, such as {{0: 1.0, 500: 0.5}}; got {levels!r}."
      )
    if len(kept) > _MAX_LEVELS:
      raise ValueError(
        f"A schedule has at most {_MAX_LEVELS} levels, got {len(kept)}. Round "
        "a smooth one to a few: the accountant composes every level."
      )
    if not all(factor > 0 and math.isfinite(factor) for _, factor in kept):
      raise ValueError(f"Factors must be > 0 and finite, got {levels!r}.")
    object.__setattr__(self, "levels", kept)

  def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """The factor of a step, which may be traced."""
    first_steps, factors = zip(*self.levels, strict=True)
    if len(factors) == 1:
      return jnp.float32(factors[0])
    level = jnp.searchsorted(jnp.array(first_steps), step, side="right") - 1
    return jnp.array(factors, jnp.float32)[level]

  def pieces(
    self, first_step: int, num_steps: int
  ) -> Iterator[tuple[int, int, float]]:
    """``(first_step, num_steps, factor)`` of each level in a run of steps."""
    ends = [step for step, _ in self.levels[1:]]
    last = first_step + num_steps
    for (begin, factor), end in zip(self.levels, [*ends, last], strict=True):
      begin, end = max(begin, first_step), min(end, last)
      if begin < end:
        yield begin, end - begin, factor


CONSTANT = PiecewiseConstant({0: 1.0})
