"""Writes the report of a survey from the runs that are there.

Such as `report.py --config=configs/studies/rr_published.py --workdir=runs/rr`.
"""

import logging
import sys

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Results and report.")
_PUBLISHED = flags.DEFINE_string(
  "published_dir", None, "Published runs; else JAXDP_PUBLISHED_DIR."
)
flags.mark_flags_as_required(["config", "workdir"])


def main(_: list[str]) -> None:
  logging.getLogger("absl").setLevel(logging.WARNING)
  from jaxdp import studies

  page = studies.report_survey(
    _CONFIG.value,
    str(_WORKDIR.value),
    "python " + " ".join(sys.argv),
    _PUBLISHED.value,
  )
  print(f"report         {page}")


if __name__ == "__main__":
  app.run(main)
