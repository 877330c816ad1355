"""Writes the report of a survey from the runs that are there.

Such as `report.py --config=configs/studies/rr_published.py --workdir=runs/rr`.
`--beside=runs/a,runs/b` compares with surveys that have their reports.
"""

import logging
import sys

from absl import flags
from ml_collections import config_flags

from jaxdp import errors

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Results and report.")
_PUBLISHED = flags.DEFINE_string(
  "published_dir", None, "Published runs; else JAXDP_PUBLISHED_DIR."
)
_BESIDE = flags.DEFINE_list("beside", [], "Workdirs to compare with.")
flags.mark_flags_as_required(["config", "workdir"])


def main(_: list[str]) -> None:
  logging.getLogger("absl").setLevel(logging.WARNING)
  from jaxdp import studies

  commands = ["python " + " ".join(sys.argv)]
  if "law" in _CONFIG.value:
    config = config_flags.get_config_filename(flags.FLAGS["config"])
    commands.insert(
      0, f"python scripts/study.py --config={config} --workdir={_WORKDIR.value}"
    )
  page = studies.report_survey(
    _CONFIG.value,
    str(_WORKDIR.value),
    "\n".join(commands),
    _PUBLISHED.value,
    _BESIDE.value,
  )
  print(f"report         {page}")


if __name__ == "__main__":
  errors.run(main)
