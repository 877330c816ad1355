"""Who makes the groups of a survey: an executor, here the devices at hand.

``_ray_executor.py`` has the one for several machines.
"""

import dataclasses
import math
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax

from jaxdp.studies._survey_groups import Group, spread


class Executor(Protocol):
  """Makes runs; whoever takes them from it keeps them."""

  def __call__(
    self, groups: Sequence[Group], seconds: float = math.inf
  ) -> Iterator[dict[str, Any]]:
    """What is kept of each run, as it ends.

    Args:
      groups: of the runs.
      seconds: after so many no run begins; those begun are finished.

    Raises:
      Exception: of the first run that failed; others under way are lost.
    """


@dataclasses.dataclass(frozen=True)
class LocalExecutor:
  """This process: a thread a device, a group at a time on each.

  Attributes:
    devices: that take part; None for all that are local.
  """

  devices: Sequence[Any] | None = None

  def __call__(
    self, groups: Sequence[Group], seconds: float = math.inf
  ) -> Iterator[dict[str, Any]]:
    deadline = time.monotonic() + seconds
    devices = jax.local_devices() if self.devices is None else self.devices
    left = iter(spread(groups, len(devices)))
    lock, stop = threading.Lock(), threading.Event()
    made = queue.SimpleQueue[Any]()  # rows; the end of a thread: None, an error

    def take() -> Group | None:
      with lock:
        return next(left, None)

    def work(device: Any) -> None:
      try:
        with jax.default_device(device):
          while (group := take()) is not None:
            for row in group(deadline - time.monotonic()):
              made.put(row)
              if stop.is_set():
                return
        made.put(None)
      except BaseException as error:
        made.put(error)

    # Daemons: Ctrl-C need not wait for the runs under way.
    for device in devices:
      threading.Thread(target=work, args=(device,), daemon=True).start()
    try:
      for _ in devices:
        while (row := made.get()) is not None:
          if isinstance(row, BaseException):
            raise row
          yield row
    finally:
      stop.set()
