"""What a run directory is, and the part of it that may leave the house.

``release/`` holds parameters and statement, and no seed. ``checkpoints/`` and
``ledger.json``'s neighbours stay: checkpoints hold the noise key.
"""

import contextlib
import errno
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import dp_accounting
import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from jaxdp import _lock
from jaxdp.accounting import PrivacyStatement, event_to_dict
from jaxdp.training import _checkpoint, _files, _sharding

_DIGEST = "params.sha256"


@contextlib.contextmanager
def alone(workdir: pathlib.Path | None) -> Iterator[None]:
  """Holds a run directory; process 0 does so for all of its run.

  Raises:
    BlockingIOError: another run does.
  """
  refused = None
  with contextlib.ExitStack() as stack:
    if workdir is not None and jax.process_index() == 0:
      try:
        with _files.explained_disk_errors(workdir):
          _files.make_directory(workdir)
          stack.enter_context(_lock.only_process(workdir))
      except OSError as error:
        refused = error
    if _sharding.as_process_0_says(refused is not None):
      raise refused or BlockingIOError(
        errno.EWOULDBLOCK,
        f"Process 0 could not take {workdir}: see what it says.",
      )
    yield


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
  old = _files.read_json(workdir / "config.json")
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
    # Synchronous: the other one gives up when the clock jumps ahead.
    ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer,
  ):
    _files.make_directory(release)
    checkpointer.save(
      release.absolute() / "params", ocp.args.StandardSave(params), force=True
    )
  if not is_main:
    return
  _files.owner_only(release)
  _files.write_atomic(release / _DIGEST, _checkpoint.digest(params) + "\n")
  config = _files.read_json(workdir / "config.json")
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
    ValueError: its files are damaged.
  """
  workdir = pathlib.Path(workdir)
  for folder in (workdir / "release", workdir):
    path = folder / "params"
    if path.exists():
      return _read_params(path, folder / _DIGEST, like)
  raise FileNotFoundError(
    f"{workdir} has no released parameters. Finish the run first: "
    "python scripts/train.py with the same --config and --workdir."
  )


def _read_params(
  path: pathlib.Path, digest: pathlib.Path, like: PyTree
) -> PyTree:
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      params = checkpointer.restore(path.absolute(), abstract)
    if _checkpoint.digest(params) != _files.read(digest).strip():
      raise ValueError(f"they do not match {digest}")
  except Exception as error:
    raise ValueError(
      f"The parameters in {path} cannot be read: {_files.first_line(error)}. "
      "They are of another model than asked for, or damaged; then take another "
      "copy, or run the command of the run again, which writes them anew."
    ) from error
  return params
