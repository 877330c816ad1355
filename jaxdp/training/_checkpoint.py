"""Checkpoints with orbax: atomic, the last few kept, damaged ones set aside.

A checkpoint holds the noise key, and is *sensitive*.
"""

import hashlib
import logging
import pathlib
import secrets
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from jaxdp import _digest
from jaxdp.training import _files, _sharding

_LOG = logging.getLogger("jaxdp")


class Checkpoints:
  """The last ``keep`` checkpoints of a run, written atomically."""

  def __init__(self, directory: pathlib.Path, keep: int):
    self._directory = directory.absolute()
    with _files.explained_disk_errors(self._directory):
      _files.make_directory(self._directory)
      if jax.process_index() == 0:
        self._directory.chmod(0o700)
      self._manager = ocp.CheckpointManager(
        self._directory,
        options=ocp.CheckpointManagerOptions(
          max_to_keep=keep,
          # Synchronous: when ``save`` returns, the checkpoint is there.
          enable_async_checkpointing=False,
          cleanup_tmp_directories=True,
        ),
      )

  def save(self, step: int, state: PyTree, meta: dict[str, Any]) -> None:
    """Writes a checkpoint, unless there is one; ``meta`` is JSON-able."""
    if step in self._manager.all_steps():
      return
    meta = {**meta, "structure": _structure(state), "digest": digest(state)}
    # The state's digest says nothing of the seeds beside it.
    meta["meta_digest"] = _digest.of_json(meta)
    with _files.explained_disk_errors(self._directory):
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
        ),
      )
      if jax.process_index() == 0:
        _files.owner_only(self._directory / str(step))

  def restore(self, like: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
    """The newest checkpoint that is whole: (step, state, meta), or None.

    Damaged ones are set aside, with a warning that says so.

    Args:
      like: a state of the same structure, shapes, dtypes and sharding.

    Raises:
      ValueError: there are checkpoints, but none of them is whole; or one is of
        another model or optimizer.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      try:
        meta = dict(self._read(step, meta=ocp.args.JsonRestore()).meta)
        if meta.pop("meta_digest") != _digest.of_json(meta):
          raise ValueError("its meta data do not match their digest")
        same = meta["structure"] == _structure(like)
        if same:
          abstract = ocp.args.StandardRestore(_abstract(like))
          state = self._read(step, state=abstract).state
          if digest(state) != meta["digest"]:
            raise ValueError("its content does not match its digest")
      except Exception as error:
        self._set_aside(step, error)
        continue
      if not same:
        changes = _changes(meta["structure"], _structure(like))
        raise ValueError(
          f"The checkpoint in {self._directory} is of another model or "
          f"optimizer: {changes}. Choose another workdir, or go back to those "
          "of the run that is there."
        )
      return step, state, meta
    if steps:
      raise ValueError(
        f"None of the checkpoints {sorted(steps)} in {self._directory} can be "
        "read; they were renamed to damaged-*. Start in a new workdir. The "
        "steps in ledger.json of the old one have been spent all the same."
      )
    return None

  def _read(self, step: int, **items: Any) -> Any:
    return self._manager.restore(step, args=ocp.args.Composite(**items))

  def _set_aside(self, step: int, error: Exception) -> None:
    _LOG.warning(
      "The checkpoint at step %d is damaged (%s). The one before is used.",
      step,
      _files.first_line(error),
    )
    if jax.process_index() == 0:
      aside = self._directory / f"damaged-{step}-{secrets.token_hex(4)}"
      with _files.explained_disk_errors(aside):
        shutil.move(self._directory / str(step), aside)
    _sharding.wait_for_all_processes("a damaged checkpoint was set aside")
    self._manager.reload()

  def close(self) -> None:
    """Lets go of orbax's threads."""
    self._manager.close()


def digest(tree: PyTree) -> str:
  """SHA-256 over the values of all leaves, in order."""
  sha = hashlib.sha256()
  for leaf in jax.tree.leaves(tree):
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      leaf = leaf.addressable_data(0)  # replicated over processes
    sha.update(np.ascontiguousarray(leaf).tobytes())
  return sha.hexdigest()


def _structure(tree: PyTree) -> dict[str, str]:
  """Name, dtype and shape of every leaf."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): (
      f"{x.dtype}{list(x.shape)}"
    )
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def _changes(old: dict[str, str], new: dict[str, str]) -> str:
  names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
  shown = [
    f"{name} was {old.get(name, 'not there')}, now {new.get(name, 'not there')}"
    for name in names[:3]
  ]
  return "; ".join(shown) + ("; ..." if len(names) > 3 else "")


def _abstract(tree: PyTree) -> PyTree:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )
