"""Linear mode connectivity: is there a barrier between two trained models?

References:
  Frankle et al. 2020, arXiv:1912.05671; for private training, arXiv:2311.06839.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


class Path(NamedTuple):
  """A loss or error on the way from one model to another.

  Attributes:
    positions: of the models, from 0 to 1.
    values: the loss or error at each.
  """

  positions: Float[Array, " points"]
  values: Float[Array, " points"]

  @property
  def excess(self) -> Float[Array, " points"]:
    """By how much each value exceeds the line between both ends."""
    a = self.positions
    return self.values - ((1 - a) * self.values[0] + a * self.values[-1])

  @property
  def barrier(self) -> Float[Array, ""]:
    """The largest excess; 0 at least, since the ends have none."""
    return jnp.max(self.excess)


def linear_path(
  fun: Callable[[PyTree], Float[Array, ""]],
  first: PyTree,
  last: PyTree,
  num_points: int = 30,
) -> Path:
  """Evaluates the models (1 - a) first + a last, one after the other.

  Args:
    fun: loss or error of a model on fixed data. A model with BatchNorm needs
      statistics of its own at every point: recompute them here.
    first: parameters; all leaves real.
    last: parameters of the same structure and shapes.
    num_points: >= 2, both ends included.

  Returns:
    The path; its privacy is that of both models and of the data of ``fun``.

  Raises:
    ValueError: fewer than two points, or models of different structure.

  Example:
    >>> path = linear_path(lambda w: (w**2 - 1) ** 2, -1.0, 1.0, num_points=3)
    >>> print(path.values, path.barrier)
    [0. 1. 0.] 1.0
  """
  if num_points < 2:
    raise ValueError(f"num_points must be >= 2, got {num_points}.")
  shapes = [jax.tree.map(jnp.shape, model) for model in (first, last)]
  if shapes[0] != shapes[1]:
    raise ValueError(
      "first and last are models of different structure or shapes: "
      f"{shapes[0]} and {shapes[1]}."
    )
  positions = jnp.linspace(0.0, 1.0, num_points)

  def value(a: Float[Array, ""]) -> Float[Array, ""]:
    # Exact at both ends, and the same path from either.
    return fun(jax.tree.map(lambda x, y: (1 - a) * x + a * y, first, last))

  return Path(positions, jax.lax.map(value, positions))
