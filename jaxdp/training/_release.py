"""What a run directory is, and the part of it that may leave the house.

``release/`` holds parameters and statement, and no seed. ``checkpoints/`` and
``ledger.json``'s neighbours stay: checkpoints hold the noise key.
"""

import json
import pathlib
from typing import Any

import dp_accounting
import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from jaxdp.accounting import PrivacyStatement, event_to_dict
from jaxdp.training import _files


def read_json(path: pathlib.Path) -> Any:
  """The JSON value of a file; None if there is no such file."""
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(
      f"{path} is damaged ({error}). Bring it back, or choose another workdir."
    ) from error


def check_run_directory(
  workdir: pathlib.Path, config: dict[str, Any]
) -> dict[str, Any]:
  """The config in JSON values, after a look whether it may run there.

  Raises:
    ValueError: the directory holds a run of another config, or is a file.
  """
  for path in (workdir, *workdir.parents):
    if path.exists() and not path.is_dir():
      raise ValueError(
        f"The workdir {workdir} cannot be made: {path} is a file. Choose "
        "another workdir."
      )
  new: dict[str, Any] = _files.plain(config)
  old = read_json(workdir / "config.json")
  if old is not None and old != new:
    changes = "; ".join(_differences(old, new, ""))
    raise ValueError(
      f"{workdir} holds a run of another config: {changes}. Choose another "
      "workdir, or go back to the config that is there."
    )
  return new


def open_run_directory(
  workdir: pathlib.Path, config: dict[str, Any], *, write: bool
) -> None:
  """Writes config and versions, or checks that they are of the same run.

  Raises:
    ValueError: as ``check_run_directory``.
  """
  new = check_run_directory(workdir, config)
  if write:
    _files.write_json(workdir / "config.json", new)
    _files.write_json(workdir / "versions.json", _files.versions())


def _differences(old: Any, new: Any, path: str) -> Any:
  if isinstance(old, dict) and isinstance(new, dict):
    for key in sorted({*old, *new}):
      inner = f"{path}.{key}" if path else key
      yield from _differences(old.get(key), new.get(key), inner)
  elif old != new:
    yield f"{path} was {old!r}, now {new!r}"


def write_release(
  workdir: pathlib.Path,
  params: PyTree,
  statement: PrivacyStatement | None,
  event: dp_accounting.DpEvent | None,
  *,
  is_main: bool,
) -> None:
  """Writes the statement, and ``release/``: parameters and statement alone."""
  release = workdir / "release"
  with (
    _files.explained_disk_errors(release),
    ocp.StandardCheckpointer() as checkpointer,
  ):
    checkpointer.save(release.absolute() / "params", params, force=True)
  if not is_main:
    return
  config = read_json(workdir / "config.json")
  _files.write_json(release / "config.json", _without_seeds(config))
  if statement is None:
    text = "This training is NOT private: ε = ∞."
    record = json.dumps({"epsilon": None, "warnings": [text]}, indent=2)
  else:
    record, text = statement.to_json(), str(statement)
  for directory in (workdir, release):
    _files.write_atomic(directory / "privacy_statement.json", f"{record}\n")
    _files.write_atomic(directory / "privacy_statement.txt", f"{text}\n")
  event = dp_accounting.NonPrivateDpEvent() if event is None else event
  _files.write_json(workdir / "dp_event.json", event_to_dict(event))


def _without_seeds(config: Any) -> Any:
  if not isinstance(config, dict):
    return config
  return {k: _without_seeds(v) for k, v in config.items() if k != "seed"}


def load_release(workdir: str | pathlib.Path, like: PyTree) -> PyTree:
  """The released parameters of a run.

  Args:
    workdir: a run directory, or its ``release/`` folder alone.
    like: parameters of the same structure, shapes and dtypes.

  Raises:
    FileNotFoundError: the run has not finished, or is not there.
  """
  workdir = pathlib.Path(workdir)
  for path in (workdir / "release" / "params", workdir / "params"):
    if path.exists():
      abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
      with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path.absolute(), abstract)
  raise FileNotFoundError(
    f"{workdir} has no released parameters. Finish the run first: "
    "python scripts/train.py with the same --config and --workdir."
  )
