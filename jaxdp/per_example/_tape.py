"""The tape: where a loss uses its parameters, found in its jaxpr.

``record`` reads the jaxpr of the loss of one unit and finds the *sites*: the
equations in which a parameter, or a reshape of it, meets something else in a
matrix product, a convolution or a look-up. A parameter that is used in any
other way has no sites. ``Tape.run`` evaluates the jaxpr with a *tap* added to
the result of every site, and hands out the site's other operands: the gradient
in a tap is the cotangent of that result, and with the operands it is all that
the parameter's gradient consists of. A tap inside a ``scan`` has one more axis
in front, as long as the loop, and so have the operands.

This file alone knows what a jaxpr looks like.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array

from jaxdp.per_example._site import LAYERS, Params, Site

# A parameter may be the operand at this position.
_POSITIONS = {
  "dot_general": (0, 1),
  "conv_general_dilated": (1,),
  "gather": (0,),
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
_INLINED = frozenset({"jit", "pjit", "closed_call", "core_call"})
_REMAT = frozenset({"checkpoint", "remat", "remat2"})

# Of an equation: its number in each jaxpr on the way, and that of the branch.
Place = tuple[int, ...]
# (operands, taps) -> (results, records)
_Body = Callable[[Sequence[Any], Sequence[Array]], tuple[list[Any], list[Any]]]
Lengths = tuple[int, ...]  # of the loops around an equation, outermost first


@dataclasses.dataclass(frozen=True)
class _View:
  """A parameter, or its entries in another shape, order or type.

  A constant may have been added to them.
  """

  index: int
  views: tuple[tuple[Any, Params], ...] = ()
  sliced: tuple[int, ...] = ()  # by which of the loops around it


class _Constant:
  """What depends on no parameter and no example."""


# None: what depends on an example, or on parameters in some other way.
_State: TypeAlias = _View | _Constant | None


@dataclasses.dataclass(frozen=True)
class Tape:
  """The jaxpr of a loss, and the sites of each parameter.

  Attributes:
    jaxpr: closed; its first inputs are the parameters.
    sites: by parameter; None where it is used in another way too.
    places: equation and tap of every site, by place.
    taps: shape and type of every tap.
    operands: by tap, shapes and types of the site's other operands.
    loops: by tap, whether each loop around it slices the parameter.
  """

  jaxpr: core.ClosedJaxpr
  sites: tuple[tuple[tuple[int, Site], ...] | None, ...]
  places: dict[Place, tuple[int, int]]  # the tap, the parameter's position
  taps: tuple[jax.ShapeDtypeStruct, ...]
  operands: tuple[tuple[jax.ShapeDtypeStruct, ...], ...]
  loops: tuple[tuple[bool, ...], ...]

  def without(self, params: Collection[int]) -> "Tape":
    """The same without the sites of these parameters."""
    sites = [None if i in params else some for i, some in enumerate(self.sites)]
    kept = sorted(t for some in sites if some is not None for t, _ in some)
    number = {tap: i for i, tap in enumerate(kept)}
    return Tape(
      self.jaxpr,
      tuple(
        some if some is None else tuple((number[t], site) for t, site in some)
        for some in sites
      ),
      {
        place: (number[t], position)
        for place, (t, position) in self.places.items()
        if t in number
      },
      tuple(self.taps[t] for t in kept),
      tuple(self.operands[t] for t in kept),
      tuple(self.loops[t] for t in kept),
    )

  def run(
    self, args: Sequence[Any], taps: Sequence[Array]
  ) -> tuple[list[Any], list[tuple[Array, ...]]]:
    """Results of the jaxpr, and the other operands of every site."""
    records: list[Any] = [None] * len(self.taps)
    out = self._run(
      self.jaxpr.jaxpr, self.jaxpr.consts, args, (), taps, records
    )
    return out, records

  def _run(
    self,
    jaxpr: core.Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    place: Place,
    taps: Sequence[Array],
    records: list[Any],
  ) -> list[Any]:
    values: dict[Any, Any] = dict(
      zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True)
    )

    def read(atom: Any) -> Any:
      return atom.val if isinstance(atom, core.Literal) else values[atom]

    for number, eqn in enumerate(jaxpr.eqns):
      here = (*place, number)
      operands = [read(atom) for atom in eqn.invars]
      if mine := self._taps_in(here):
        results = self._enter(eqn, operands, here, mine, taps, records)
      else:
        results = _bind(eqn, operands)
        if here in self.places:
          tap, position = self.places[here]
          results = [results[0] + taps[tap]]
          records[tap] = tuple(
            x for i, x in enumerate(operands) if i != position
          )
      values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]

  def _enter(
    self,
    eqn: Any,
    operands: Sequence[Any],
    here: Place,
    mine: list[int],
    taps: Sequence[Array],
    records: list[Any],
  ) -> list[Any]:
    """Results of an equation with sites inside, whose records it adds."""

    def body(
      branch: int, operands: Sequence[Any], some: Sequence[Array]
    ) -> tuple[list[Any], list[Any]]:
      inner = _inner(eqn)[branch]
      all_taps: list[Any] = list(taps)
      found: list[Any] = list(records)
      for index, tap in zip(mine, some, strict=True):
        all_taps[index] = tap
      place = (*here, branch)
      out = self._run(
        inner.jaxpr, inner.consts, operands, place, all_taps, found
      )
      return out, [found[index] for index in mine]

    name, params = eqn.primitive.name, eqn.params
    some = [taps[index] for index in mine]
    bodies: list[_Body] = [
      functools.partial(body, branch) for branch in range(len(_inner(eqn)))
    ]
    if name in _REMAT:
      (only,) = bodies
      policy, prevent_cse = params["policy"], params["prevent_cse"]
      bodies = [jax.checkpoint(only, policy=policy, prevent_cse=prevent_cse)]
    if name == "scan":
      out, found = _scan(params, bodies[0], operands, some)
    elif name == "cond":
      out, found = _cond(bodies, operands, some)
    else:
      out, found = bodies[0](operands, some)
    for index, record in zip(mine, found, strict=True):
      records[index] = record
    return out

  def _taps_in(self, here: Place) -> list[int]:
    """Those inside of an equation, which is no site itself."""
    length = len(here)
    return [
      t
      for p, (t, _) in self.places.items()
      if len(p) > length and p[:length] == here
    ]


def record(
  fun: Callable, params: Sequence[Any], *args: Any
) -> tuple[Tape, Any]:
  """The tape of ``fun(params, *args)``, and the structure of its result.

  Args:
    fun: of one unit; its first result is the loss.
    params: arrays, or their shapes.
    *args: shapes of the rest.
  """
  jaxpr, out = jax.make_jaxpr(fun, return_shape=True)(list(params), *args)
  finder = _Finder()
  states: list[_State] = [_View(i) for i in range(len(params))]
  states += [None] * (len(jaxpr.jaxpr.invars) - len(params))
  results = finder.walk(jaxpr.jaxpr, states, (), ())
  finder.leave(results)  # a parameter that is itself a result
  kept: dict[Place, tuple[int, int]] = {}
  taps: list[jax.ShapeDtypeStruct] = []
  operands: list[tuple[jax.ShapeDtypeStruct, ...]] = []
  loops: list[tuple[bool, ...]] = []
  sites: list[Any] = [[] for _ in params]
  for place, (view, eqn, position, lengths) in finder.sites.items():
    if view.index in finder.elsewhere:
      continue
    param = params[view.index]
    site = Site(
      eqn.primitive,
      _hashable(eqn.params),
      position,
      view.views,
      tuple(param.shape),
      jnp.dtype(param.dtype),
    )
    sites[view.index].append((len(taps), site))
    kept[place] = len(taps), position
    others = [x for i, x in enumerate(eqn.invars) if i != position]
    tap, *rest = (
      jax.ShapeDtypeStruct((*lengths, *x.aval.shape), x.aval.dtype)
      for x in (eqn.outvars[0], *others)
    )
    taps.append(tap)
    operands.append(tuple(rest))
    loops.append(tuple(i in view.sliced for i in range(len(lengths))))
  found = tuple(
    None if i in finder.elsewhere else tuple(some)
    for i, some in enumerate(sites)
  )
  tape = Tape(jaxpr, found, kept, tuple(taps), tuple(operands), tuple(loops))
  return tape, out


class _Finder:
  """Follows parameters through a jaxpr."""

  def __init__(self) -> None:
    self.sites: dict[Place, tuple[_View, Any, int, Lengths]] = {}
    self.elsewhere: set[int] = set()

  def leave(self, states: Sequence[_State]) -> None:
    """Notes that these go where no site is."""
    self.elsewhere |= {x.index for x in states if isinstance(x, _View)}

  def walk(
    self,
    jaxpr: core.Jaxpr,
    args: Sequence[_State],
    place: Place,
    lengths: Lengths,
  ) -> list[_State]:
    """Follows views to the results of a jaxpr inside loops of these lengths."""
    constant = _Constant()
    states: dict[Any, _State] = dict.fromkeys(jaxpr.constvars, constant)
    states.update(zip(jaxpr.invars, args, strict=True))

    def look(atom: Any) -> _State:
      return constant if isinstance(atom, core.Literal) else states[atom]

    for number, eqn in enumerate(jaxpr.eqns):
      here = (*place, number)
      operands = [look(atom) for atom in eqn.invars]
      name, inner = eqn.primitive.name, _inner(eqn)
      results: list[_State] = [None] * len(eqn.outvars)
      if not any(isinstance(x, _View) for x in operands):
        if all(isinstance(x, _Constant) for x in operands):
          results = [constant] * len(eqn.outvars)
      elif name == "scan":
        self._loop(eqn, inner[0].jaxpr, operands, here, lengths)
      elif name == "cond":
        self.leave(operands[:1])
        for i, one in enumerate(inner):
          place = (*here, i)
          self.leave(self.walk(one.jaxpr, operands[1:], place, lengths))
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
    operands: list[_State],
    here: Place,
    lengths: Lengths,
  ) -> None:
    """A parameter may be the same in every turn, or sliced by the loop."""
    constants, carry, slices = _split_scan(eqn.params, operands)
    self.leave(carry)
    level = len(lengths)
    sliced = [
      _View(x.index, (*x.views, LAYERS), (*x.sliced, level))
      if isinstance(x, _View)
      else x
      for x in slices
    ]
    states = [*constants, *[None] * len(carry), *sliced]
    lengths = (*lengths, eqn.params["length"])
    self.leave(self.walk(body, states, (*here, 0), lengths))

  def _meet(
    self, eqn: Any, operands: list[_State], here: Place, lengths: Lengths
  ) -> _View | None:
    """A view of a view, a site, or a use that is neither."""
    name = eqn.primitive.name
    there = [i for i, x in enumerate(operands) if isinstance(x, _View)]
    view = operands[there[0]]
    assert isinstance(view, _View)
    constants = sum(isinstance(x, _Constant) for x in operands)
    if _adds(eqn, there[0]) and len(there) == constants == 1:
      return view
    if _keeps_entries(eqn):
      step = (eqn.primitive, _hashable(eqn.params))
      return _View(view.index, (*view.views, step), view.sliced)
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


def _inner(eqn: Any) -> list[core.ClosedJaxpr]:
  """The jaxprs of an equation that only says when others run, closed."""
  name, params = eqn.primitive.name, eqn.params
  if name == "cond":
    return list(params["branches"])
  if name in _INLINED:
    jaxpr = params.get("jaxpr") or params.get("call_jaxpr")
  elif name in _REMAT or name == "scan":
    jaxpr = params["jaxpr"]
  else:
    return []
  if isinstance(jaxpr, core.Jaxpr):
    jaxpr = core.ClosedJaxpr(jaxpr, ())
  return [jaxpr]


def _split_scan(params: dict[str, Any], x: Sequence[Any]) -> tuple[list, ...]:
  """Constants, what is carried, and what is sliced."""
  start, stop = params["num_consts"], params["num_consts"] + params["num_carry"]
  return list(x[:start]), list(x[start:stop]), list(x[stop:])


def _scan(
  params: dict[str, Any],
  body: _Body,
  operands: Sequence[Any],
  taps: Sequence[Array],
) -> tuple[list[Any], list[Any]]:
  """``body``, which hands out records, over slices of operands and taps."""
  constants, carry, slices = _split_scan(params, operands)

  def turn(carry: list[Any], sliced: Any) -> tuple[list[Any], Any]:
    xs, some = sliced
    out, found = body([*constants, *carry, *xs], some)
    return out[: len(carry)], (out[len(carry) :], found)

  carry, (results, found) = jax.lax.scan(
    turn,
    carry,
    (slices, list(taps)),
    length=params["length"],
    reverse=params["reverse"],
    unroll=params["unroll"],
  )
  return [*carry, *results], found


def _cond(
  bodies: Sequence[_Body], operands: Sequence[Any], taps: Sequence[Array]
) -> tuple[list[Any], list[Any]]:
  """One of the bodies; records of the others are zeros, as their taps' are."""
  index, *rest = operands
  shapes: list[Any] = [None] * len(taps)
  for body in bodies:
    for i, record in enumerate(jax.eval_shape(body, rest, taps)[1]):
      shapes[i] = shapes[i] if record is None else record

  def whole(body: _Body) -> _Body:
    def fn(rest: Any, taps: Any) -> tuple[list[Any], list[Any]]:
      out, found = body(rest, taps)
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
      return out, [
        none if record is None else record
        for record, none in zip(found, zeros, strict=True)
      ]

    return fn

  branches = [whole(body) for body in bodies]
  out: tuple[list[Any], list[Any]]
  out = jax.lax.switch(index, branches, list(rest), list(taps))
  return out


def _bind(eqn: Any, operands: Sequence[Any]) -> list[Any]:
  bound = eqn.primitive.get_bind_params(eqn.params)
  # Versions of JAX before 0.10 put functions in front.
  functions, params = bound if isinstance(bound, tuple) else ((), bound)
  with eqn.ctx.manager:
    out = eqn.primitive.bind(*functions, *operands, **params)
  return list(out) if eqn.primitive.multiple_results else [out]


def _hashable(params: dict[str, Any]) -> Params:
  return tuple(sorted(params.items()))
