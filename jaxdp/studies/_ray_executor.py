"""Groups of a survey as tasks of a Ray cluster, on one machine or several.

A task sends each run as it ends. If its worker dies, the runs that did not
arrive are another task; nothing but the driver writes.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxdp.studies._survey import Survey
from jaxdp.studies._survey_groups import Group, spread

_STORE_BYTES = 100_000_000  # of a local cluster; what it carries is tiny


@dataclasses.dataclass(frozen=True)
class RayExecutor:
  """Tasks of a Ray cluster, with a GPU each if it has any, else a CPU.

  Every node needs jaxdp and the data sets, which the tasks read themselves.

  Attributes:
    address: "local" for a cluster on this machine that ends with the survey;
      else as ``ray.init`` takes it, such as "auto" or "10.0.0.1:6379". A
      cluster that the process is connected to already is used as it is.
    num_cpus: of a cluster that is "local"; None for those of the machine.
    max_deaths: of workers, one after another, that a group survives without a
      run in between.

  Raises:
    ImportError: Ray is not installed.
  """

  address: str = "local"
  num_cpus: int | None = None
  max_deaths: int = 3

  def __post_init__(self) -> None:
    _import_ray()
    if self.num_cpus is not None and self.address != "local":
      raise ValueError(
        f"num_cpus={self.num_cpus} is for address='local'; the cluster at "
        f"{self.address!r} has the CPUs that its nodes were started with."
      )
    if self.max_deaths < 0:
      raise ValueError(f"max_deaths must be >= 0, got {self.max_deaths}.")

  def __call__(
    self, groups: Sequence[Group], seconds: float = math.inf
  ) -> Iterator[dict[str, Any]]:
    ray = _import_ray()
    deadline = time.time() + seconds  # of all machines
    with self._cluster(ray):
      cluster = ray.cluster_resources()
      num_gpus = int(cluster.get("GPU", 0))
      places = num_gpus or int(cluster.get("CPU", 1))
      task = ray.remote(
        num_cpus=1,
        num_gpus=min(num_gpus, 1),
        max_retries=0,  # Ray's own would begin the group anew
        num_returns="streaming",
      )(_runs)

      def submit(group: Group) -> Any:
        return task.remote(dict(vars(group.survey)), group.rows, deadline)

      tasks = {submit(group): (group, 0) for group in spread(groups, places)}
      try:
        while tasks:
          (stream,), _ = ray.wait([*tasks], num_returns=1)
          group, deaths = tasks.pop(stream)
          try:
            row = ray.get(next(stream))
          except StopIteration:
            continue
          except _deaths(ray) as error:
            if not group.rows:
              continue
            if deaths == self.max_deaths:
              raise RuntimeError(_GIVEN_UP.format(deaths + 1)) from error
            tasks[submit(group)] = group, deaths + 1
            continue
          # At the end of the line, so that no task keeps others waiting.
          tasks[stream] = group.without(row["run"]), 0
          yield row
      finally:
        for stream in tasks:
          ray.cancel(stream, force=True)

  @contextlib.contextmanager
  def _cluster(self, ray: Any) -> Iterator[None]:
    if ray.is_initialized():
      yield
      return
    options: dict[str, Any] = {}
    if self.address == "local":
      os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
      options = {
        "num_cpus": self.num_cpus,
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
      }
    ray.init(
      self.address, log_to_driver=False, logging_level="ERROR", **options
    )
    try:
      yield
    finally:
      ray.shutdown()


_GIVEN_UP = (
  "{} workers died one after another on the same runs, without an error of "
  "Python: too little memory is the most common cause. The runs that ended are "
  "kept. See the logs of Ray, then run the same command again."
)


def _import_ray() -> Any:
  try:
    import ray
  except ImportError as error:
    raise ImportError(
      "RayExecutor needs Ray: pip install 'jaxdp[ray]'."
    ) from error
  return ray


def _deaths(ray: Any) -> tuple[type[Exception], ...]:
  """What says that a worker is gone, rather than that a run failed."""
  errors = ray.exceptions
  return (
    errors.WorkerCrashedError,
    errors.NodeDiedError,
    errors.OutOfMemoryError,
    errors.ObjectLostError,
  )


def _runs(
  survey: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], deadline: float
) -> Iterator[dict[str, Any]]:
  """A task: what it needs is plain data."""
  yield from Group(Survey(**survey), rows)(deadline - time.time())
