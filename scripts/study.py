"""Runs a study: `study.py --config=configs/studies/psasc.py --workdir=runs/p`.

The same command goes on where it was stopped; `--minutes` makes it stop by
itself. The report is written from the runs that are there.
"""

import logging
import sys

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Results and report.")
_MINUTES = flags.DEFINE_float("minutes", None, "Begin no run after so long.")
flags.mark_flags_as_required(["config", "workdir"])


def main(_: list[str]) -> None:
  logging.getLogger("absl").setLevel(logging.WARNING)
  from jaxdp import studies

  design = studies.Design.from_config_dict(_CONFIG.value)
  workdir = str(_WORKDIR.value)
  complete = studies.run(design, workdir, minutes=_MINUTES.value)
  page = studies.report(design, workdir, "python " + " ".join(sys.argv))
  print(f"\n{'complete' if complete else 'not complete yet: run it again'}")
  print(f"report         {page}")


if __name__ == "__main__":
  app.run(main)
