"""Words and numbers of a survey's page: a single set needs no name."""

from collections.abc import Sequence
from typing import Any

Sets = Any  # Mapping[str, Findings], which words need not know


def names(sets: Sets) -> list[str]:
  """Heads of columns, one a set."""
  return list(sets) if len(sets) > 1 else [""]


def head(name: str, sets: Sets) -> str:
  """At the head of a sentence, which set it is about."""
  return f"{name}: " if len(sets) > 1 else ""


def of(name: str, sets: Sets) -> str:
  """Within a sentence, which set is meant."""
  return f" of {name}" if len(sets) > 1 else ""


def interval(value: Sequence[float] | None, digits: int = 2) -> str:
  """A number and its interval, such as of an ``Interval``.

  Example:
    >>> interval((0.5, -0.001, 0.75, 9))
    '0.50 [0.00, 0.75]'
  """
  if value is None:
    return ""
  # Without a minus sign at 0.
  mid, low, high = (round(float(x), digits) + 0.0 for x in value[:3])
  return f"{mid:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def whole(words: str) -> str:
  """Words that stay on one line."""
  return words.replace(" ", "\N{NO-BREAK SPACE}")


def minus(rows: list[list[str]]) -> list[list[str]]:
  """With a true minus sign in numbers."""
  return [
    rows[0],
    *([row[0], *(x.replace("-", "−") for x in row[1:])] for row in rows[1:]),
  ]
