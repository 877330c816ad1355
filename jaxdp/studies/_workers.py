"""Runs on all local devices at once, each of which keeps to its arms.

An arm is a program, whose compilation may take as long as several runs: so a
device goes on with the arms that it has compiled, and takes over another's only
if much is left of it.
"""

import collections
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from jaxdp.studies._design import Design, Run
from jaxdp.studies._sweep import Sweep

_WORTH_COMPILING = 16  # runs


class Workers:
  """One for each device; they share nothing but what is left to do."""

  def __init__(self, design: Design, devices: Sequence[Any]):
    self._sweeps = [(device, Sweep(design), set[str]()) for device in devices]
    self._lock = threading.Lock()

  def __call__(
    self,
    runs: Sequence[Run],
    done: Callable[[Run, dict[str, float]], None],
    is_late: Callable[[], bool],
  ) -> bool:
    """Makes the runs.

    Args:
      runs: in any order.
      done: called with each and its outcome, by one thread at a time.
      is_late: whether no further run should begin.

    Returns:
      Whether all were made.

    Raises:
      Exception: of the first run that failed; those under way are finished.
    """
    left, stop = list(runs), threading.Event()

    def work(device: Any, sweep: Sweep, mine: set[str]) -> None:
      try:
        while not stop.is_set() and not is_late():
          with self._lock:
            run = self._take(left, mine)
          if run is None:
            return
          with jax.default_device(device):
            outcome = sweep(run)
          with self._lock:
            done(run, outcome)
      except BaseException:
        stop.set()
        raise

    with ThreadPoolExecutor(len(self._sweeps)) as pool:
      futures = [pool.submit(work, *one) for one in self._sweeps]
      try:
        for future in futures:
          future.result()
      finally:
        stop.set()
    return not left

  def _take(self, left: list[Run], mine: set[str]) -> Run | None:
    """Removes the run to be made next by who compiled ``mine``."""
    theirs = set[str]().union(*(arms for _, _, arms in self._sweeps)) - mine
    count = collections.Counter(run.arm for run in left)
    arms = [
      arm for arm, n in count.items()
      if arm not in theirs or n >= _WORTH_COMPILING
    ]  # fmt: skip
    if not arms:
      return None
    arm = max(arms, key=lambda a: (a in mine, a not in theirs, count[a]))
    mine.add(arm)
    place = next(i for i, run in enumerate(left) if run.arm == arm)
    return left.pop(place)
