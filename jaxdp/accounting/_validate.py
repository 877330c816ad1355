"""Checks of the numbers that accounting takes; each error says what to do."""

import math
import numbers
import operator
from typing import Any


def _number(name: str, value: Any) -> float:
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    raise ValueError(f"{name} must be a number, got {name}={value!r}.")
  return float(value)


def probability(name: str, value: Any) -> float:
  """``value`` inside (0, 1)."""
  number = _number(name, value)
  if not 0 < number < 1:
    raise ValueError(
      f"{name} must be > 0 and < 1, got {name}={value}. A common choice is "
      "1e-5, and less than 1 / num_examples."
    )
  return number


def at_least_zero(name: str, value: Any) -> float:
  """``value`` >= 0, where infinity is allowed."""
  number = _number(name, value)
  if not number >= 0:
    raise ValueError(f"{name} must be >= 0, got {name}={value}.")
  return number


def target_epsilon(value: Any) -> float:
  """A target that a private mechanism can have: > 0 and finite."""
  number = _number("target_epsilon", value)
  if not (number > 0 and math.isfinite(number)):
    raise ValueError(
      f"target_epsilon must be > 0 and finite, got target_epsilon={value}. "
      "Epsilon 0 allows no use of the data; for training that is not private "
      "use noise_multiplier=0."
    )
  return number


def integer(name: str, value: Any, *, minimum: int) -> int:
  """``value`` as an int of at least ``minimum``."""
  try:
    if isinstance(value, bool):
      raise TypeError
    number = operator.index(value)
  except TypeError:
    raise ValueError(
      f"{name} must be an integer, got {name}={value!r}. Pass an int."
    ) from None
  if number < minimum:
    raise ValueError(f"{name} must be >= {minimum}, got {name}={number}.")
  return number
