"""Lines that are kept whatever happens: one JSON object each, in a file."""

import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any


class Journal:
  """Appends objects to a file, each on disk before ``add`` returns.

  A line that a crash cut short is not read, and is dropped before the first
  line is added. What is not finite is null in the file.

  Args:
    path: of the file, made when the first object comes.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self._path = pathlib.Path(path)
    self._is_whole = False

  def __iter__(self) -> Iterator[dict[str, Any]]:
    yield from map(json.loads, self._whole_lines().splitlines())

  def _whole_lines(self) -> bytes:
    data = self._path.read_bytes() if self._path.exists() else b""
    return data[: data.rfind(b"\n") + 1]

  def add(self, value: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps an object, and returns it as it will be read."""
    if not self._is_whole and self._path.exists():
      # Cut, never written anew: a crash in between would lose all lines.
      os.truncate(self._path, len(self._whole_lines()))
    self._is_whole = True
    line = json.dumps(_finite(value), allow_nan=False, ensure_ascii=False)
    with self._path.open("a", encoding="utf-8") as file:
      file.write(line + "\n")
      file.flush()
      os.fsync(file.fileno())
    kept: dict[str, Any] = json.loads(line)
    return kept


def _finite(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _finite(x) for key, x in value.items()}
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
