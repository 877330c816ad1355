"""A site: one use of a parameter, whose gradient is a product of two factors.

An equation ``z = f(p, x)``, linear in the parameter, has the gradient
``x (dL/dz)`` in the parameter, by JAX's own transpose rule. A ``Term`` keeps
``x`` and ``y = dL/dz`` of every unit and never the products:

- the weighted sum over units is one ordinary gradient, with ``w y`` for ``y``;
- the norm comes from Gram matrices over positions, or from the products made
  and squared, whichever is cheaper (``_norms.py``).

A site may run more than once in a unit, in a ``scan`` over time or at several
places: its *repeats*, over which the gradient sums. In a ``scan`` over stacked
parameters it runs once for each *layer*, and so does the gradient.

All of it is in float32 or wider, whatever the model computes in, so that a
unit's contribution is rounded once, as its norm is.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdp.per_example import _batch
from jaxdp.per_example._wide import wide_type, widen

Params = tuple[tuple[str, Any], ...]  # of an equation, sorted by name
LAYERS: tuple[Any, Params] = (None, ())


@dataclasses.dataclass(frozen=True)
class Site:
  """What an equation does with a parameter; hashable, without any array.

  Attributes:
    primitive: of the equation.
    params: of the equation.
    position: of the parameter among the operands.
    views: (primitive, params) of what happened to the parameter before: only
      what keeps its entries, in another shape, order or type. ``LAYERS`` stands
      for a ``scan`` that slices it: what follows is done to each slice.
    shape: of the parameter.
    dtype: of the parameter.
  """

  primitive: Any
  params: Params
  position: int
  views: tuple[tuple[Any, Params], ...]
  shape: tuple[int, ...]
  dtype: Any

  @property
  def wide(self) -> Any:
    """The type of norms and sums."""
    return wide_type(self.dtype)

  @property
  def num_layer_axes(self) -> int:
    """Leading axes of the operand that are layers."""
    return self.views.count(LAYERS)

  def view(self, param: Array) -> Array:
    """The operands that the parameter becomes, in its own type, by layer."""
    return _view(param, self.views)

  @property
  def layers(self) -> tuple[int, ...]:
    """Lengths of the axes of layers."""
    return self._viewed_shape[: self.num_layer_axes]

  @property
  def operand_shape(self) -> tuple[int, ...]:
    """That of the parameter as the equation sees it."""
    return self._viewed_shape[self.num_layer_axes :]

  @property
  def _viewed_shape(self) -> tuple[int, ...]:
    param = jax.ShapeDtypeStruct(self.shape, self.wide)
    return tuple(jax.eval_shape(self.view, param).shape)

  def __call__(self, param: Array, inputs: tuple[Array, ...]) -> Array:
    """The equation for every layer, in ``wide``; linear in ``param``."""
    params = dict(self.params)
    if "precision" in params:
      # TF32 keeps 10 bits, and would break the bound.
      params["precision"] = (jax.lax.Precision.HIGHEST,) * 2
      params["preferred_element_type"] = jnp.dtype(self.wide)

    def equation(operand: Array, *inputs: Array) -> Array:
      operands = [widen(x) for x in inputs]
      operands.insert(self.position, operand)
      out: Array = self.primitive.bind(*operands, **params)
      return out

    for _ in range(self.num_layer_axes):
      equation = jax.vmap(equation)
    return equation(self.view(param), *inputs)


def _view(param: Array, views: tuple[tuple[Any, Params], ...]) -> Array:
  for i, view in enumerate(views):
    if view == LAYERS:
      return jax.vmap(functools.partial(_view, views=views[i + 1 :]))(param)
    primitive, params = view
    if primitive.name != "convert_element_type":
      param = primitive.bind(param, **dict(params))
  return param


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term:
  """What one site adds to the gradients of a parameter; *sensitive*.

  Attributes:
    inputs: the other operands, leaves ``[units, repeats, *layers, ...]``.
    cotangent: of the result, ``[units, repeats, *layers, ...]``.
    site: what it was.
  """

  inputs: tuple[Array, ...]
  cotangent: Array
  site: Site = dataclasses.field(metadata={"static": True})

  def weighted_sum(
    self, weights: Float[Array, " units"], is_dropped: Bool[Array, " units"]
  ) -> Float[Array, "..."]:
    """One gradient, of the whole batch; a dropped unit adds nothing."""
    # On both factors: 0 * NaN is NaN.
    inputs, y, weights = _batch.zero_few_rows(
      is_dropped, (self.inputs, widen(self.cotangent), weights)
    )
    y *= jax.lax.broadcast_in_dim(weights.astype(y.dtype), y.shape, (0,))
    rows = [x.reshape(-1, *x.shape[2:]) for x in (*inputs, y)]
    return self._transposed(tuple(rows[:-1]), rows[-1])

  def stacked(self) -> Float[Array, "units ..."]:
    """The products, in ``wide``."""
    return jax.vmap(self._transposed)(self.inputs, widen(self.cotangent))

  def _transposed(self, inputs: tuple[Array, ...], y: Array) -> Array:
    """The sum over the rows of inputs and cotangents of x'y."""

    def rows(param: Array) -> Array:
      return jax.vmap(functools.partial(self.site, param))(inputs)

    abstract = jax.ShapeDtypeStruct(self.site.shape, self.site.wide)
    (total,) = jax.linear_transpose(rows, abstract)(y)
    return total


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factored:
  """One parameter's gradients, as a sum over its sites; *sensitive*."""

  terms: tuple[Term, ...]  # one at least

  @property
  def shape(self) -> tuple[int, ...]:
    """That of the stacked gradient."""
    (first, *_) = self.terms
    return (first.cotangent.shape[0], *first.site.shape)

  @property
  def dtype(self) -> Any:
    return self.terms[0].site.dtype

  def stacked(self) -> Float[Array, "units ..."]:
    """The products, in ``wide``."""
    first, *others = (term.stacked() for term in self.terms)
    return sum(others, start=first)
