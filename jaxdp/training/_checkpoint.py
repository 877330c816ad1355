"""Checkpoints with orbax, and the question whether a resume is a replay.

A checkpoint holds the noise key, and is *sensitive*. Steps after it that were
lost may be made again at no cost only if they come out bit for bit the same:
then they are the same release. ``fingerprint`` says what that takes.
"""

import hashlib
import logging
import os
import pathlib
import secrets
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from jaxdp.training import _files

_LOG = logging.getLogger("jaxdp")


class Checkpoints:
  """The last ``keep`` checkpoints of a run, written atomically."""

  def __init__(self, directory: pathlib.Path, keep: int):
    self._directory = directory.absolute()
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
    """Writes a checkpoint; ``meta`` is JSON-able."""
    meta = {**meta, "digest": digest(state)}
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
        ),
      )
    except OSError as error:
      raise _files.explain_os_error(error, self._directory) from error

  def restore(self, like: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
    """The newest checkpoint that is whole: (step, state, meta), or None.

    Damaged ones are set aside, with a warning that says so.

    Args:
      like: a state of the same structure, shapes, dtypes and sharding.

    Raises:
      ValueError: there are checkpoints, but none of them is whole.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      try:
        restored = self._manager.restore(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardRestore(_abstract(like)),
            meta=ocp.args.JsonRestore(),
          ),
        )
        if digest(restored.state) != restored.meta["digest"]:
          raise ValueError("its content does not match its digest")
        return step, restored.state, dict(restored.meta)
      except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        _LOG.warning(
          "The checkpoint at step %d is damaged (%s). The one before is used.",
          step,
          reason[:200],
        )
        aside = self._directory / f"damaged-{step}-{secrets.token_hex(4)}"
        shutil.move(self._directory / str(step), aside)
        self._manager.reload()
    if steps:
      raise ValueError(
        f"None of the checkpoints {sorted(steps)} in {self._directory} can be "
        "read; they were renamed to damaged-*. Start in a new workdir. The "
        "steps in ledger.json of the old one have been spent all the same."
      )
    return None

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


def _abstract(tree: PyTree) -> PyTree:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def fingerprint(**resolved: Any) -> dict[str, Any]:
  """What must be equal for lost steps to come out bit for bit the same.

  Args:
    **resolved: what the caller adds (mesh, microbatch, steps a call).
  """
  return {
    **_files.versions(),
    "platform": jax.default_backend(),
    "devices": jax.device_count(),
    "processes": jax.process_count(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "x64": jax.config.values["jax_enable_x64"],
    "matmul_precision": jax.config.values["jax_default_matmul_precision"],
    "determinism": _determinism(),
    **resolved,
  }


def _determinism() -> str:
  """Yes, or a nonce: what is not deterministic never equals itself."""
  if jax.default_backend() in ("cpu", "tpu"):
    return "yes"
  flags = os.environ.get("XLA_FLAGS", "")
  names = ("xla_gpu_deterministic_ops", "xla_gpu_exclude_nondeterministic_ops")
  if any(f"--{name}=true" in flags for name in names):
    return "yes"
  return f"no: {secrets.token_hex(8)}"
