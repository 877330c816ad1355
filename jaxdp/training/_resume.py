"""Resuming: from which state, and whether the lost steps cost anything.

Steps that ran after the last checkpoint are lost, and charged. They may be made
again at no cost only if they come out bit for bit the same: then they are the
same releases. ``fingerprint`` says what that takes. If anything in it changed,
a new *incarnation* begins: a fresh noise key, fresh batches, another charge.
"""

import hashlib
import json
import logging
import os
import pathlib
import platform
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree

from jaxdp.accounting import Ledger
from jaxdp.mechanism import Mechanism
from jaxdp.training import _checkpoint, _files, _sharding
from jaxdp.training._seeds import Seeds

_LOG = logging.getLogger("jaxdp")


class Start(NamedTuple):
  """Where a run begins, or goes on. *Sensitive*: it holds the seeds."""

  step: int
  state: PyTree
  seeds: Seeds
  ledger: Ledger | None
  is_replay: bool = True  # the steps from here on have the noise of before
  rows_digest: str | None = None  # of the rows of metrics up to here


def resume(
  fresh: Start,
  checkpoints: _checkpoint.Checkpoints,
  path: pathlib.Path,
  mechanism: Mechanism | None,
  num_steps: int,
  fingerprint: Callable[[], dict[str, Any]],
) -> Start:
  """Where the last checkpoint leads to; ``fresh`` if there is none.

  Args:
    fresh: a first start.
    checkpoints: those of the run directory.
    path: of the run's ledger, which is written before steps run.
    mechanism: None without privacy.
    num_steps: at which the run ends.
    fingerprint: of this attempt; asked only if steps are to follow.

  Raises:
    ValueError: what was spent is unknown, or was spent on another mechanism.
  """
  restored = checkpoints.restore(fresh.state)
  text = _files.read(path)
  # Nobody charges before all have read.
  _sharding.wait_for_all_processes("the ledger was read")
  ledger = None
  if mechanism is not None and path.exists():
    try:
      ledger = Ledger.from_json(text)
    except ValueError as error:
      raise ValueError(f"{path}: {error}") from None
    ledger.check(mechanism)
  if restored is None:
    if ledger is not None and ledger.num_steps:
      raise ValueError(
        f"{path} says that {ledger.num_steps} steps were charged, but there is "
        "no checkpoint to go on from. Those steps have been spent; start in "
        "another workdir."
      )
    return fresh
  step, state, meta = restored
  seeds = Seeds.from_json(meta["seeds"])
  if mechanism is None:
    return Start(step, state, seeds, None, rows_digest=meta["rows"])
  if ledger is None or ledger.next_step < step:
    raise ValueError(
      f"{path} is missing or older than the checkpoint at step {step}, so that "
      "the cost of what ran since is unknown. Bring it back, or start in "
      "another workdir."
    )
  if step >= num_steps:
    return Start(step, state, seeds, ledger, rows_digest=meta["rows"])
  lost = ledger.next_step - step
  changed = _changed(meta["fingerprint"], fingerprint())
  if meta["incarnation"] != ledger.incarnation:
    changed.append("incarnation")
  if changed:
    # Also if no step was lost: a checkpoint's fingerprint must never stand for
    # steps that ran elsewhere.
    ledger.begin_incarnation(step)
    if lost:
      _LOG.warning(
        "Resuming at step %d, but not as before (changed: %s): %d lost steps "
        "are made with fresh randomness and charged again.",
        step,
        ", ".join(changed),
        lost,
      )
  return Start(step, state, seeds, ledger, not changed, meta["rows"])


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  return [name for name in {**old, **new} if old.get(name) != new.get(name)]


def reseed(state: PyTree, key: Array, init: Callable) -> PyTree:
  """The state with the noise and example keys that ``init`` makes of a key."""
  fresh = init(state.params, key)
  keys = fresh.mechanism_state.key, fresh.example_key
  sharding = state.mechanism_state.key.sharding, state.example_key.sharding
  noise_key, example_key = jax.device_put(keys, sharding)
  mechanism_state = state.mechanism_state._replace(key=noise_key)
  return state._replace(
    mechanism_state=mechanism_state, example_key=example_key
  )


def fingerprint(**resolved: Any) -> dict[str, Any]:
  """What must be equal for lost steps to come out bit for bit the same.

  Args:
    **resolved: what the caller adds: program, data, division into calls.
  """
  config = jax.config.values
  values = {
    **_files.versions(),
    "platform": jax.default_backend(),
    "devices": jax.device_count(),
    "processes": jax.process_count(),
    "host": _host(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "x64": config["jax_enable_x64"],
    "matmul_precision": config["jax_default_matmul_precision"],
    "determinism": _determinism(),
    **resolved,
  }
  plain: dict[str, Any] = _files.plain(values)
  if jax.process_count() == 1:
    return plain
  # One list for all, so that all processes decide alike.
  text = json.dumps(plain, sort_keys=True).encode()
  words = np.frombuffer(hashlib.sha256(text).digest(), np.uint32)
  everyone = multihost_utils.process_allgather(words)
  return {"processes": np.asarray(everyone).tolist()}


def _host() -> str:
  """The processor and how many of its cores; XLA's CPU code depends on them."""
  if hasattr(os, "sched_getaffinity"):
    cores = len(os.sched_getaffinity(0))
  else:
    cores = os.cpu_count() or 0
  features = ""
  info = pathlib.Path("/proc/cpuinfo")
  if info.exists():
    lines = info.read_text().splitlines()
    wanted = ("model name", "flags", "Features", "CPU part")
    kept = sorted({line for line in lines if line.startswith(wanted)})
    features = hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]
  return f"{platform.machine()} {features} {cores} cores"


def _determinism() -> str:
  """Yes, or a nonce: what is not deterministic never equals itself."""
  if jax.default_backend() in ("cpu", "tpu"):
    return "yes"
  flags = os.environ.get("XLA_FLAGS", "")
  names = ("xla_gpu_deterministic_ops", "xla_gpu_exclude_nondeterministic_ops")
  if any(f"--{name}=true" in flags for name in names):
    return "yes"
  return f"no: {secrets.token_hex(8)}"
