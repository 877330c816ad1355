"""What ends a run from outside: SIGTERM, a lost process, a lost device."""

import contextlib
import logging
import re
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdp.training import _files

_LOG = logging.getLogger("jaxdp")

# What JAX says of collectives, barriers and heartbeats without an answer. It
# begins with a status code, also where JAX raises it as a ValueError.
_NO_ANSWER = re.compile(
  r"(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED): "
  r"|[A-Z_]+: .*(?i:gloo|nccl|heartbeat|barrier|coordination)",
  re.DOTALL,
)


class Terminated(SystemExit):
  """SIGTERM ended a run, after a checkpoint; the same call goes on from it.

  Where nothing catches it the process ends with status 143, as a shell says of
  SIGTERM.
  """

  def __init__(self, message: str):
    super().__init__(message)
    self.code = 128 + signal.SIGTERM


class LostProcessError(RuntimeError):
  """A process of ``jax.distributed`` no longer answers the others.

  What is on the disk is whole: all processes, started anew, go on from the last
  checkpoint. This one cannot take part in another computation, nor end
  ``jax.distributed`` in order, which waits for the lost one: leave by
  ``os._exit``, as ``scripts/train.py`` does.
  """


class Grace:
  """Whether SIGTERM has asked this run to end."""

  signalled = False

  def is_over(self) -> bool:
    """The same in all processes; to be asked by each before every call.

    JAX's own agreement (``reached_preemption_sync_point``) took 40 seconds in
    two processes on a CPU, more than many schedulers wait.
    """
    if jax.process_count() == 1:
      return self.signalled
    everyone = multihost_utils.process_allgather(np.asarray(self.signalled))
    return bool(np.any(everyone))

  def end(self, step: int, saved: bool) -> None:
    """Raises ``Terminated`` after SIGTERM; ``step`` is the last one made."""
    kept = (
      "There is a checkpoint of it: the same command goes on from there."
      if saved
      else "Without a workdir nothing of it is kept."
    )
    message = f"Ended by SIGTERM after step {step}. {kept}"
    _LOG.warning(message)
    raise Terminated(message)


@contextlib.contextmanager
def grace() -> Iterator[Grace]:
  """Lets SIGTERM end the run between two calls; a second one ends it at once.

  Signals belong to the main thread. In another one nothing is installed, and
  SIGTERM does what it did.
  """
  result = Grace()
  if threading.current_thread() is not threading.main_thread():
    yield result
    return
  before: Any = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL

  def handle(number: int, frame: FrameType | None) -> None:
    result.signalled = True
    signal.signal(signal.SIGTERM, before)

  signal.signal(signal.SIGTERM, handle)
  try:
    yield result
  finally:
    signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def explained_losses() -> Iterator[None]:
  """Errors of JAX while a run is under way say how it goes on.

  Raises:
    LostProcessError: another process no longer answers.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    if jax.process_count() > 1 and _NO_ANSWER.match(str(error)):
      raise LostProcessError(
        f"Process {jax.process_index()} of {jax.process_count()} gets no "
        f"answer from another one ({_files.first_line(error)}). Start "
        "all of them again with the same command: they go on from the last "
        "checkpoint."
      ) from error
    if isinstance(error, jax.errors.JaxRuntimeError):
      error.add_note(
        "What the run has on the disk is whole: the same command goes on from "
        "the last checkpoint, if there is a workdir."
      )
    raise
