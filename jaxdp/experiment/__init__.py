"""From a config to a run: the one place that reads a ConfigDict.

``train``, ``evaluate``, ``plan`` and ``run_audit`` are what the scripts call. A
config names a data set, a model, a clipping rule, a sampler, an optimizer and a
budget; ``ExperimentConfig`` checks all of it before anything is loaded or
compiled.
"""

from jaxdp.experiment._audit import run_audit
from jaxdp.experiment._config import (
  ExperimentConfig,
  check_sections,
  set_value,
)
from jaxdp.experiment._run import evaluate, plan, train
from jaxdp.experiment._task import (
  Rows,
  Task,
  load,
  load_train,
  make_public_batch,
  make_task,
)

__all__ = [
  "ExperimentConfig",
  "Rows",
  "Task",
  "check_sections",
  "evaluate",
  "load",
  "load_train",
  "make_public_batch",
  "make_task",
  "plan",
  "run_audit",
  "set_value",
  "train",
]
