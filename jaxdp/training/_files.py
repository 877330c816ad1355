"""Files of a run: written whole or not at all, also on a full disk."""

import errno
import json
import math
import os
import pathlib
import platform
import tempfile
from importlib import metadata
from typing import Any

import jax
import numpy as np

from jaxdp._version import __version__


def write_atomic(path: pathlib.Path, text: str) -> None:
  """Writes a text file: whole and on the disk, or not at all.

  Raises:
    OSError: the disk is full, with what to do.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  name = ""
  try:
    with tempfile.NamedTemporaryFile(
      "w", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
      name = file.name
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(name, path)
  except OSError as error:
    pathlib.Path(name).unlink(missing_ok=True) if name else None
    raise explain_os_error(error, path) from error


def explain_os_error(error: OSError, path: pathlib.Path) -> OSError:
  """The same error, saying what to do if the disk is full."""
  if error.errno not in (errno.ENOSPC, errno.EDQUOT):
    return error
  return OSError(
    error.errno,
    f"The disk is full: {path} could not be written. Nothing written before is "
    "damaged. Free some space and run the same command again: training goes on "
    "from the last checkpoint.",
  )


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
