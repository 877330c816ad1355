"""Where a loss uses its parameters: a walk through its jaxpr.

A *site* is an equation in which a parameter, or its entries in another shape,
meets something else in a matrix product, a convolution or a look-up. A
parameter that is also used in any other way is *elsewhere*.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax.extend import core

from jaxdp.per_example import _jaxpr
from jaxdp.per_example._site import LAYERS, Params

# A parameter may be the operand at this position.
_POSITIONS = {
  "dot_general": (0, 1),
  "conv_general_dilated": (1,),
  "gather": (0,),
  "dynamic_slice": (0,),
}
_VIEWS = frozenset(
  {
    "broadcast_in_dim",  # that adds axes of length 1
    "convert_element_type",
    "reshape",
    "squeeze",
    "transpose",
  }
)

# Of an equation: its number in each jaxpr on the way, and that of the branch.
Place: TypeAlias = tuple[int, ...]
Lengths: TypeAlias = tuple[int, ...]  # of the loops around it, outermost first


@dataclasses.dataclass(frozen=True)
class View:
  """A parameter, or its entries in another shape, order or type.

  A constant may have been added to them.
  """

  index: int
  views: tuple[tuple[Any, Params], ...] = ()
  sliced: tuple[int, ...] = ()  # by which of the loops around it


class Constant:
  """What depends on no parameter and no example."""


# None: what depends on an example, or on parameters in some other way.
State: TypeAlias = View | Constant | None


class Finder:
  """Follows parameters through a jaxpr."""

  def __init__(self) -> None:
    self.sites: dict[Place, tuple[View, Any, int, Lengths]] = {}
    self.elsewhere: set[int] = set()

  def leave(self, states: Sequence[State]) -> None:
    """Notes that these go where no site is."""
    self.elsewhere |= {x.index for x in states if isinstance(x, View)}

  def walk(
    self,
    jaxpr: core.Jaxpr,
    args: Sequence[State],
    place: Place,
    lengths: Lengths,
  ) -> list[State]:
    """Follows views to the results of a jaxpr inside loops of these lengths."""
    constant = Constant()
    states: dict[Any, State] = dict.fromkeys(jaxpr.constvars, constant)
    states.update(zip(jaxpr.invars, args, strict=True))

    def look(atom: Any) -> State:
      return constant if isinstance(atom, core.Literal) else states[atom]

    for number, eqn in enumerate(jaxpr.eqns):
      here = (*place, number)
      operands = [look(atom) for atom in eqn.invars]
      name, inner = eqn.primitive.name, _jaxpr.inner(eqn)
      results: list[State] = [None] * len(eqn.outvars)
      if not any(isinstance(x, View) for x in operands):
        if all(isinstance(x, Constant) for x in operands):
          results = [constant] * len(eqn.outvars)
      elif name == "scan":
        self._loop(eqn, inner[0].jaxpr, operands, here, lengths)
      elif name == "cond":
        self.leave(operands[:1])
        for i, one in enumerate(inner):
          there = (*here, i)
          self.leave(self.walk(one.jaxpr, operands[1:], there, lengths))
      elif inner:
        results = self.walk(inner[0].jaxpr, operands, (*here, 0), lengths)
      else:
        results[0] = self._meet(eqn, operands, here, lengths)
      states.update(zip(eqn.outvars, results, strict=True))
    return [look(atom) for atom in jaxpr.outvars]

  def _loop(
    self,
    eqn: Any,
    body: core.Jaxpr,
    operands: list[State],
    here: Place,
    lengths: Lengths,
  ) -> None:
    """A parameter may be the same in every turn, or sliced by the loop."""
    constants, carry, slices = _jaxpr.split_scan(eqn.params, operands)
    self.leave(carry)
    level = len(lengths)
    sliced = [
      View(x.index, (*x.views, LAYERS), (*x.sliced, level))
      if isinstance(x, View)
      else x
      for x in slices
    ]
    states = [*constants, *[None] * len(carry), *sliced]
    lengths = (*lengths, eqn.params["length"])
    self.leave(self.walk(body, states, (*here, 0), lengths))

  def _meet(
    self, eqn: Any, operands: list[State], here: Place, lengths: Lengths
  ) -> View | None:
    """A view of a view, a site, or a use that is neither."""
    name = eqn.primitive.name
    there = [i for i, x in enumerate(operands) if isinstance(x, View)]
    view = operands[there[0]]
    assert isinstance(view, View)
    constants = sum(isinstance(x, Constant) for x in operands)
    if _adds(eqn, there[0]) and len(there) == constants == 1:
      return view
    if _keeps_entries(eqn):
      step = (eqn.primitive, _jaxpr.hashable(eqn.params))
      return View(view.index, (*view.views, step), view.sliced)
    if len(there) == 1 and there[0] in _POSITIONS.get(name, ()):
      self.sites[here] = view, eqn, there[0], lengths
      return None
    self.leave(operands)
    return None


def _adds(eqn: Any, position: int) -> bool:
  """Whether something is added to the operand: its gradient is the result's."""
  name = eqn.primitive.name
  before, after = eqn.invars[position].aval, eqn.outvars[0].aval
  return (
    name in ("add", "add_any") or (name == "sub" and position == 0)
  ) and before.shape == after.shape


def _keeps_entries(eqn: Any) -> bool:
  """Whether every entry of the one operand is there once, as a real number."""
  before, after = eqn.invars[0].aval, eqn.outvars[0].aval
  return (
    eqn.primitive.name in _VIEWS
    and len(eqn.invars) == 1
    and math.prod(before.shape) == math.prod(after.shape)
    and jnp.issubdtype(after.dtype, jnp.floating)
  )
