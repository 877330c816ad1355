"""Whether a value, as configs hold them, fits an annotation.

Configs hold plain values: numbers, strings, None, lists and mappings of these.
An annotation that speaks of anything else takes whatever comes.
"""

import collections.abc
import difflib
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

_WORDS = {int: "an integer", float: "a finite number", bool: "True or False"}


def fits(value: Any, annotation: Any) -> bool:
  """Whether a value is of an annotated type; numbers must be finite.

  >>> fits(1, float), fits(True, int), fits(math.nan, float)
  (True, False, False)
  >>> fits([1, 2], tuple[int, ...]), fits("a", typing.Literal["b"] | None)
  (True, False)
  """
  origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
  if annotation is Any:
    return True
  if isinstance(value, float) and not math.isfinite(value):
    return False
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, argument) for argument in arguments)
  if origin is typing.Literal:
    return any(
      value == x and type(value) is type(x) for x in arguments
    )  # 1 is not True
  if annotation is None or annotation is type(None):
    return value is None
  if annotation is bool:
    return isinstance(value, bool)
  if annotation in (int, float):
    kind = numbers.Integral if annotation is int else numbers.Real
    return isinstance(value, kind) and not isinstance(value, bool)
  base = origin or annotation
  if not isinstance(base, type):
    return True
  if issubclass(base, str):
    return isinstance(value, str)
  if issubclass(base, collections.abc.Mapping):
    inner = arguments[1] if arguments else Any
    return isinstance(value, collections.abc.Mapping) and all(
      fits(x, inner) for x in value.values()
    )
  if issubclass(base, collections.abc.Sequence):
    inner = arguments[0] if arguments else Any
    fixed = base is tuple and arguments and arguments[-1] is not ...
    return (
      isinstance(value, list | tuple)
      and all(fits(x, inner) for x in value)
      and (not fixed or len(value) == len(arguments))
    )
  if base.__module__.partition(".")[0] in ("jax", "jaxlib", "numpy"):
    return isinstance(value, base)
  return True


def describe(annotation: Any) -> str:
  """An annotation in words.

  >>> describe(int | typing.Literal["auto"] | None)
  "an integer, 'auto' or None"
  """
  origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
  if origin in (typing.Union, types.UnionType):
    words = list(dict.fromkeys(map(describe, arguments)))
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
  if origin is typing.Literal:
    return " or ".join(map(repr, arguments))
  if annotation is type(None):
    return "None"
  if annotation in _WORDS:
    return _WORDS[annotation]
  if annotation is str:
    return "a string"
  base = origin or annotation
  if isinstance(base, type) and issubclass(base, collections.abc.Mapping):
    inner = f", each {describe(arguments[1])}" if arguments else ""
    return f"values by name{inner}"
  if isinstance(base, type) and issubclass(base, collections.abc.Sequence):
    return f"a list, each {describe(arguments[0])}" if arguments else "a list"
  return str(getattr(annotation, "__name__", annotation))


def check(name: str, value: Any, annotation: Any) -> None:
  """Raises unless the value fits.

  Raises:
    ValueError: with the name, what was given, and what is needed.
  """
  if not fits(value, annotation):
    raise ValueError(f"{name} must be {describe(annotation)}, got {value!r}.")


def check_names(
  place: str, values: Mapping[str, Any], needed: Collection[str],
  known: Collection[str],
) -> None:  # fmt: skip
  """Raises unless all of ``needed`` are there, and nothing that is unknown."""
  for name in values:
    if name not in known:
      raise ValueError(f"{place} has no {name!r}; {did_you_mean(name, known)}.")
  if missing := [name for name in needed if name not in values]:
    raise ValueError(
      f"{place} lacks {', '.join(missing)}. configs/digits.py shows them."
    )


def check_call(place: str, fun: Callable, values: Mapping[str, Any]) -> None:
  """Raises unless ``fun(**values)`` is a call as ``fun`` is annotated."""
  parameters = inspect.signature(fun).parameters
  needed = [n for n, p in parameters.items() if p.default is p.empty]
  check_names(place, values, needed, parameters)
  hints = annotations(fun)
  for name, value in values.items():
    check(f"{place}.{name}", value, hints.get(name, Any))


def annotations(fun: Callable) -> Mapping[str, Any]:
  """By argument; none if some of them cannot be read outside their module."""
  makers: list[Any] = [fun]
  if inspect.isclass(fun):
    makers.append(fun.__init__)
  try:
    return {k: v for f in makers for k, v in typing.get_type_hints(f).items()}
  except NameError:
    return {}


def did_you_mean(name: Any, names: Collection[str]) -> str:
  """A hint for a name that is none of these."""
  near = difflib.get_close_matches(str(name), list(names), n=1)
  known = f"there is {', '.join(map(str, names))}" if names else "it has none"
  return f"did you mean {near[0]!r}? {known}" if near else known
