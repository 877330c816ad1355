"""Equations of a jaxpr: what is inside of them, and how one is run.

What JAX does not document of them is here, and in the names of primitives and
of their parameters in ``_find.py``, ``_site.py`` and ``_norms.py``.
"""

from collections.abc import Sequence
from typing import Any

from jax.extend import core

from jaxdp.per_example._site import Params

_INLINED = frozenset({"jit", "pjit", "closed_call", "core_call"})
REMAT = frozenset({"checkpoint", "remat", "remat2"})


def inner(eqn: Any) -> list[core.ClosedJaxpr]:
  """The jaxprs of an equation that only says when others run, closed."""
  name, params = eqn.primitive.name, eqn.params
  if name == "cond":
    return list(params["branches"])
  if name in _INLINED:
    jaxpr = params.get("jaxpr") or params.get("call_jaxpr")
  elif name in REMAT or name == "scan":
    jaxpr = params["jaxpr"]
  else:
    return []
  if isinstance(jaxpr, core.Jaxpr):
    jaxpr = core.ClosedJaxpr(jaxpr, ())
  return [jaxpr]


def split_scan(params: dict[str, Any], x: Sequence[Any]) -> tuple[list, ...]:
  """Constants, what is carried, and what is sliced."""
  if "ft_in" in params:  # since JAX 0.11
    parts = params["ft_in"].update(range(len(x))).unpack()
    return tuple([x[i] for i in part] for part in parts)
  start, stop = params["num_consts"], params["num_consts"] + params["num_carry"]
  return list(x[:start]), list(x[start:stop]), list(x[stop:])


def bind(eqn: Any, operands: Sequence[Any]) -> list[Any]:
  """The results of an equation."""
  bound = eqn.primitive.get_bind_params(eqn.params)
  # Versions of JAX before 0.10 put functions in front.
  functions, params = bound if isinstance(bound, tuple) else ((), bound)
  with eqn.ctx.manager:
    out = eqn.primitive.bind(*functions, *operands, **params)
  return list(out) if eqn.primitive.multiple_results else [out]


def hashable(params: dict[str, Any]) -> Params:
  """The parameters of an equation, in an order of their own."""
  return tuple(sorted(params.items()))
