"""Files of a run: written whole or not at all, also on a full disk."""

import contextlib
import errno
import json
import math
import os
import pathlib
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax
import numpy as np

from jaxdp._version import __version__


def make_directory(path: pathlib.Path) -> None:
  """Makes a directory that its owner alone may read, unless there is one."""
  path.mkdir(mode=0o700, parents=True, exist_ok=True)


def owner_only(directory: pathlib.Path) -> None:
  """Takes all that a directory holds away from everyone but its owner."""
  for folder, _, names in os.walk(directory):
    os.chmod(folder, 0o700)
    for name in names:
      os.chmod(os.path.join(folder, name), 0o600)


def _for_owner(path: str | os.PathLike[str], flags: int) -> int:
  return os.open(path, flags, 0o600)


def write_atomic(path: pathlib.Path, text: str) -> None:
  """Writes a text file: whole and on the disk, or not at all.

  Its owner alone may read it.

  Raises:
    OSError: the disk is full, with what to do.
  """
  # A fixed name: what a crash leaves behind is overwritten, not collected.
  partial = path.with_name(f".{path.name}.partial")
  with explained_disk_errors(path):
    make_directory(path.parent)
    with open(partial, "w", encoding="utf-8", opener=_for_owner) as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)
    # The name is on the disk once its directory is.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
      os.fsync(directory)
    finally:
      os.close(directory)


def append(path: pathlib.Path, text: str) -> None:
  """Appends to a text file.

  Raises:
    OSError: the disk is full, with what to do; a part may have been written.
  """
  data = text.encode()
  with explained_disk_errors(path), path.open("ab", buffering=0) as file:
    if file.write(data) != len(data):
      raise OSError(errno.ENOSPC, "short write", str(path))


@contextlib.contextmanager
def explained_disk_errors(path: pathlib.Path) -> Iterator[None]:
  """Errors of a full disk say what to do; all others pass."""
  try:
    yield
  except Exception as error:
    if not _is_disk_full(error):
      raise
    raise OSError(
      errno.ENOSPC,
      f"The disk is full: {path} could not be written. Nothing written before "
      "is damaged. Free some space and run the same command again: training "
      "goes on from the last checkpoint.",
    ) from error


def first_line(error: Exception) -> str:
  """What an error says, in short."""
  lines = str(error).splitlines() or [repr(error)]
  return lines[0][:200]


def _is_disk_full(error: Exception) -> bool:
  codes = (errno.ENOSPC, errno.EDQUOT)
  if isinstance(error, OSError):
    return error.errno in codes
  # TensorStore, under orbax, says it in the text of a ValueError.
  return any(os.strerror(code) in str(error) for code in codes)


def read(path: pathlib.Path) -> str:
  """The text of a file; empty if there is none. Damage may not be UTF-8."""
  return path.read_text("utf-8", errors="replace") if path.exists() else ""


def read_json(path: pathlib.Path) -> Any:
  """The JSON value of a file; None if there is no such file.

  Raises:
    ValueError: it is not JSON.
  """
  if not path.exists():
    return None
  try:
    return json.loads(read(path))
  except ValueError as error:
    raise ValueError(
      f"{path} is damaged ({error}). Bring it back, or choose another workdir."
    ) from None


def write_json(path: pathlib.Path, value: Any) -> None:
  """``write_atomic`` of readable JSON; infinities become null."""
  write_atomic(path, json.dumps(plain(value), indent=2) + "\n")


def plain(value: Any) -> Any:
  """NumPy and JAX scalars, paths and enums as JSON values."""
  if isinstance(value, dict):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if isinstance(value, np.ndarray | jax.Array):
    return plain(np.asarray(value).tolist())
  if isinstance(value, np.generic):
    return plain(value.item())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if value is None or isinstance(value, str | bool | int | float):
    return value
  return str(value)


def versions() -> dict[str, str]:
  """What ran: versions of everything that moves a result, and the device."""
  packages = ("jax", "jaxlib", "optax", "numpy", "dp-accounting")
  return {
    "jaxdp": __version__,
    **{name: metadata.version(name) for name in packages},
    "python": platform.python_version(),
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
  }
