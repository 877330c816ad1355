"""Runs a study: `study.py --config=configs/studies/psasc.py --workdir=runs/p`.

The same command goes on where it was stopped; `--minutes` makes it stop by
itself. `--list` names the studies there are; `--dry_run` shows what a survey
would run, its noise searched for, and runs nothing.
"""

import ast
import logging
import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Results and report.")
_MINUTES = flags.DEFINE_float("minutes", None, "Begin no run after so long.")
_LIST = flags.DEFINE_bool("list", False, "Name the studies there are.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Show a survey's groups.")
_STUDIES = pathlib.Path(__file__).parent.parent / "configs/studies"


def main(_: list[str]) -> None:
  if _LIST.value:
    for path in sorted(_STUDIES.glob("*.py")):
      text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
      print(f"{path.name:20} {text.splitlines()[0]}")
    return
  if _CONFIG.value is None or _WORKDIR.value is None:
    raise app.UsageError("Give --config and --workdir, or --list.")
  logging.getLogger("absl").setLevel(logging.WARNING)
  from jaxdp import studies

  workdir, minutes = pathlib.Path(_WORKDIR.value), _MINUTES.value
  if "law" in _CONFIG.value:
    survey = studies.Survey.from_config_dict(_CONFIG.value)
    if _DRY_RUN.value:
      print(studies.survey_groups(survey, workdir).to_string(index=False))
      return
    complete = studies.run_survey(survey, workdir, minutes=minutes)
    result = workdir / "runs.parquet"
  else:
    if _DRY_RUN.value:
      raise app.UsageError("--dry_run is for surveys; this one compares arms.")
    design = studies.Design.from_config_dict(_CONFIG.value)
    complete = studies.run(design, workdir, minutes=minutes)
    result = studies.report(design, workdir, "python " + " ".join(sys.argv))
  print(f"\n{'complete' if complete else 'not complete yet: run it again'}")
  print(f"result         {result}")


if __name__ == "__main__":
  app.run(main)
