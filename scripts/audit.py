"""Audits a mechanism or a run: `audit.py --config=configs/audit/digits.py`.

Or one of many by name, `--config=configs/audit/mechanisms.py:poisson`. The exit
status is 1 if the lower bound exceeds what is claimed.
"""

import logging
import sys

from absl import app, flags
from ml_collections import config_flags

from jaxdp import experiment

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead.")
flags.mark_flags_as_required(["config"])


def main(_: list[str]) -> None:
  logging.getLogger("absl").setLevel(logging.WARNING)
  try:
    result = experiment.run_audit(_CONFIG.value)
  except ValueError as error:
    sys.exit(f"error: {error}")
  print(result.to_json() if _JSON.value else result)
  if result.exceeds:
    sys.exit(1)


if __name__ == "__main__":
  app.run(main)
