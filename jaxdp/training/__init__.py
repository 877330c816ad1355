"""Training: one step, and ``fit``, which adds ledger, checkpoints and reports.

Read ``_step.py`` first, then ``_fit.py`` and ``_run.py``.
"""

from jaxdp.training._faults import LostProcessError, Terminated
from jaxdp.training._feed import Reader
from jaxdp.training._fit import fit
from jaxdp.training._release import load_release
from jaxdp.training._run import History, PerformanceFlags, released_params
from jaxdp.training._sharding import data_mesh
from jaxdp.training._step import (
  SensitiveInfo,
  StepInfo,
  TrainState,
  TrainStep,
  make_train_step,
)

__all__ = [
  "History",
  "LostProcessError",
  "PerformanceFlags",
  "Reader",
  "SensitiveInfo",
  "StepInfo",
  "Terminated",
  "TrainState",
  "TrainStep",
  "data_mesh",
  "fit",
  "load_release",
  "make_train_step",
  "released_params",
]
