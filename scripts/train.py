"""Trains a config: `train.py --config=configs/digits.py --workdir=runs/digits`.

Any value can be set, as in `--config.rule.l2_clip_norm=0.5`. The same command
again resumes a run that was stopped, or prints a finished one's statement.
SIGTERM ends a run after a checkpoint, with status 143.
"""

import logging
import os
import traceback

import jax
from absl import flags
from ml_collections import config_flags

from jaxdp import errors

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run directory.")
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0, for several processes."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is.")
flags.mark_flags_as_required(["config", "workdir"])


def main(_: list[str]) -> None:
  logging.getLogger("absl").setLevel(logging.WARNING)
  if _COORDINATOR.value:
    # It would swallow a SIGTERM that comes before training.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
      _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    )
  elif not (_NUM_PROCESSES.value is None and _PROCESS_ID.value is None):
    raise ValueError("Several processes need --coordinator=HOST:PORT.")
  # After jax.distributed: these imports may touch devices.
  from jaxdp import experiment, report, training

  workdir = str(_WORKDIR.value)
  try:
    history = experiment.train(_CONFIG.value, workdir)[1]
  except Exception as error:
    if jax.process_count() == 1:
      raise
    # In order, this process would wait minutes for the others, and they for it.
    traceback.print_exc()
    is_lost = isinstance(error, training.LostProcessError)
    os._exit(os.EX_TEMPFAIL if is_lost else 1)
  if jax.process_index() > 0:
    return
  print(f"\n{history.statement or 'This training is NOT private: ε = ∞.'}")
  print(f"\ntest accuracy  {history.metrics[-1]['test_accuracy']:.4f}")
  print(f"report         {report.write_report(workdir)}")


if __name__ == "__main__":
  errors.run(main)
