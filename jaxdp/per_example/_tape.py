"""The tape: a loss that hands out what its gradients consist of.

``record`` reads the jaxpr of the loss of one unit and finds its sites
(``_find.py``). ``Tape.run`` evaluates the jaxpr with a *tap* added to the
result of every site, and hands out the site's other operands: the gradient in a
tap is the cotangent of that result, and with the operands it is all that the
parameter's gradient consists of. A tap inside a ``scan`` has one more axis in
front, as long as the loop, and so have the operands.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array

from jaxdp.per_example import _find, _jaxpr
from jaxdp.per_example._site import Site

# (operands, taps) -> (results, records)
_Body: TypeAlias = Callable[
  [Sequence[Any], Sequence[Array]], tuple[list[Any], list[Any]]
]


@dataclasses.dataclass(frozen=True)
class Tap:
  """Where something is added to the result of a site.

  Attributes:
    place: of the site's equation.
    param: the parameter that the site uses, by its number.
    site: what it does.
    loops: whether each loop around it slices the parameter.
    result: shape and type of the tap, the loops' lengths in front.
    operands: those of the site's other operands.
  """

  place: _find.Place
  param: int
  site: Site
  loops: tuple[bool, ...]
  result: jax.ShapeDtypeStruct
  operands: tuple[jax.ShapeDtypeStruct, ...]


@dataclasses.dataclass(frozen=True)
class Tape:
  """The jaxpr of a loss, and where it is tapped.

  Attributes:
    jaxpr: closed; its first inputs are the parameters.
    taps: one for each site.
    elsewhere: parameters that have no sites, since not all uses would be.
  """

  jaxpr: core.ClosedJaxpr
  taps: tuple[Tap, ...]
  elsewhere: frozenset[int]

  def without(self, params: Collection[int]) -> "Tape":
    """The same without the sites of these parameters."""
    taps = tuple(tap for tap in self.taps if tap.param not in params)
    return Tape(self.jaxpr, taps, self.elsewhere | set(params))

  @functools.cached_property
  def _numbers(self) -> dict[_find.Place, int]:
    return {tap.place: i for i, tap in enumerate(self.taps)}

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
    place: _find.Place,
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
        results = _jaxpr.bind(eqn, operands)
        if (index := self._numbers.get(here)) is not None:
          results = [results[0] + taps[index]]
          operands.pop(self.taps[index].site.position)
          records[index] = tuple(operands)
      values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]

  def _enter(
    self,
    eqn: Any,
    operands: Sequence[Any],
    here: _find.Place,
    mine: list[int],
    taps: Sequence[Array],
    records: list[Any],
  ) -> list[Any]:
    """Results of an equation with sites inside, whose records it adds."""

    def body(
      branch: int, operands: Sequence[Any], some: Sequence[Array]
    ) -> tuple[list[Any], list[Any]]:
      inner = _jaxpr.inner(eqn)[branch]
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
    branches = range(len(_jaxpr.inner(eqn)))
    bodies: list[_Body] = [functools.partial(body, i) for i in branches]
    if name in _jaxpr.REMAT:
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

  def _taps_in(self, here: _find.Place) -> list[int]:
    """Those inside of an equation, which is no site itself."""
    length = len(here)
    return [
      i
      for i, tap in enumerate(self.taps)
      if len(tap.place) > length and tap.place[:length] == here
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
  finder = _find.Finder()
  states: list[_find.State] = [_find.View(i) for i in range(len(params))]
  states += [None] * (len(jaxpr.jaxpr.invars) - len(params))
  results = finder.walk(jaxpr.jaxpr, states, (), ())
  finder.leave(results)  # a parameter that is itself a result
  taps = []
  for place, (view, eqn, position, lengths) in finder.sites.items():
    if view.index in finder.elsewhere:
      continue
    param = params[view.index]
    site = Site(
      eqn.primitive,
      _jaxpr.hashable(eqn.params),
      position,
      view.views,
      tuple(param.shape),
      jnp.dtype(param.dtype),
    )
    others = [x for i, x in enumerate(eqn.invars) if i != position]
    result, *operands = (
      jax.ShapeDtypeStruct((*lengths, *x.aval.shape), x.aval.dtype)
      for x in (eqn.outvars[0], *others)
    )
    loops = tuple(i in view.sliced for i in range(len(lengths)))
    taps.append(Tap(place, view.index, site, loops, result, tuple(operands)))
  return Tape(jaxpr, tuple(taps), frozenset(finder.elsewhere)), out


def _scan(
  params: dict[str, Any],
  body: _Body,
  operands: Sequence[Any],
  taps: Sequence[Array],
) -> tuple[list[Any], list[Any]]:
  """``body``, which hands out records, over slices of operands and taps."""
  constants, carry, slices = _jaxpr.split_scan(params, operands)

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
