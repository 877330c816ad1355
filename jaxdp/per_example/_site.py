"""A site: one use of a parameter, whose gradient is a product of two factors.

An equation ``z = f(p, x)``, linear in the parameter, has the gradient
``x (dL/dz)`` in the parameter, by JAX's own transpose rule. ``Factored`` keeps
``x`` and ``y = dL/dz`` of every unit and never the products:

- the weighted sum over units is one ordinary gradient, with ``w y`` for ``y``;
- the norm comes from Gram matrices over positions, or from the products made
  and squared, whichever is cheaper (``_norms.py``).

All of it is in float32 or wider, whatever the model computes in, so that a
unit's contribution is rounded once, as its norm is.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp.per_example._wide import wide_type, widen

Params = tuple[tuple[str, Any], ...]  # of an equation, sorted by name


@dataclasses.dataclass(frozen=True)
class Site:
  """What an equation does with a parameter; hashable, without any array.

  Attributes:
    primitive: of the equation.
    params: of the equation.
    position: of the parameter among the operands.
    views: (primitive, params) of what happened to the parameter before: only
      what keeps its entries, in another shape, order or type.
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

  def view(self, param: Array) -> Array:
    """The operand that the parameter becomes, in its own type."""
    for primitive, params in self.views:
      if primitive.name != "convert_element_type":
        param = primitive.bind(param, **dict(params))
    return param

  @property
  def operand_shape(self) -> tuple[int, ...]:
    """That of the parameter as the equation sees it."""
    param = jax.ShapeDtypeStruct(self.shape, self.wide)
    return jax.eval_shape(self.view, param).shape

  def __call__(self, param: Array, inputs: tuple[Array, ...]) -> Array:
    """The equation, in ``wide``; linear in ``param``."""
    operands = [widen(x) for x in inputs]
    operands.insert(self.position, self.view(param))
    params = dict(self.params)
    if "precision" in params:
      # TF32 keeps 10 bits, and would break the bound.
      params["precision"] = (jax.lax.Precision.HIGHEST,) * 2
      params["preferred_element_type"] = jnp.dtype(self.wide)
    out: Array = self.primitive.bind(*operands, **params)
    return out


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factored:
  """One parameter's gradients as factors; *sensitive*.

  Attributes:
    inputs: the other operands of the site, leaves ``[units, ...]``.
    cotangent: of its result, ``[units, ...]``.
    site: what it was.
  """

  inputs: tuple[Array, ...]
  cotangent: Array
  site: Site = dataclasses.field(metadata={"static": True})

  @property
  def shape(self) -> tuple[int, ...]:
    """That of the stacked gradient."""
    return (self.cotangent.shape[0], *self.site.shape)

  @property
  def dtype(self) -> Any:
    return self.site.dtype

  def weighted_sum(
    self, weights: Float[Array, " units"]
  ) -> Float[Array, "..."]:
    """One gradient, of the whole batch."""
    y = widen(self.cotangent)
    y *= jax.lax.broadcast_in_dim(weights.astype(y.dtype), y.shape, (0,))

    def whole(param: Array) -> Array:
      apply = functools.partial(self.site, param)
      return jax.vmap(lambda *inputs: apply(inputs))(*self.inputs)

    (total,) = jax.linear_transpose(whole, self._abstract)(y)
    return total

  def stacked(self) -> Float[Array, "units ..."]:
    """The products, in ``wide``."""

    def one(inputs: tuple[Array, ...], y: Array) -> Array:
      (product,) = jax.linear_transpose(
        lambda param: self.site(param, inputs), self._abstract
      )(widen(y))
      return product

    return jax.vmap(one)(self.inputs, self.cotangent)

  @property
  def _abstract(self) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(self.site.shape, self.site.wide)
