"""Runs a study: `study.py --config=configs/studies/psasc.py --workdir=runs/p`.

The same command goes on where it was stopped, or killed; `--minutes` makes it
stop by itself. `--list` names the studies there are; `--dry_run` shows what a
survey would run, its noise searched for, and runs nothing.
"""

import logging
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from jaxdp import errors

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Results and report.")
_MINUTES = flags.DEFINE_float("minutes", None, "Begin no run after so long.")
_RESUME = flags.DEFINE_bool("resume", True, "Go on with the runs in workdir.")
_EXECUTOR = flags.DEFINE_enum(
  "executor", "local", ["local", "ray"], "What makes a survey's runs."
)
_ADDRESS = flags.DEFINE_string("ray_address", "local", "Of a Ray cluster.")
_LIST = flags.DEFINE_bool("list", False, "Name the studies there are.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Show a survey's groups.")
_STUDIES = pathlib.Path(__file__).parent.parent / "configs/studies"


def main(_: list[str]) -> None:
  from jaxdp import studies

  if _LIST.value:
    print(studies.catalogue(_STUDIES))
    return
  if _CONFIG.value is None or _WORKDIR.value is None:
    raise ValueError("Give --config and --workdir, or --list.")
  logging.getLogger("absl").setLevel(logging.WARNING)
  workdir, ray = pathlib.Path(_WORKDIR.value), _EXECUTOR.value == "ray"
  options: dict = {"minutes": _MINUTES.value, "resume": _RESUME.value}
  if "law" in _CONFIG.value:
    survey = studies.Survey.from_config_dict(_CONFIG.value)
    if _DRY_RUN.value:
      print(studies.survey_groups(survey, workdir).to_string(index=False))
      return
    executor = studies.RayExecutor(_ADDRESS.value) if ray else None
    complete = studies.run_survey(survey, workdir, executor=executor, **options)
    result = workdir / "runs.parquet"
  else:
    if _DRY_RUN.value or ray:
      raise ValueError("--dry_run and --executor=ray are for surveys.")
    design = studies.Design.from_config_dict(_CONFIG.value)
    complete = studies.run(design, workdir, **options)
    result = studies.report(design, workdir, "python " + " ".join(sys.argv))
  print(f"\n{'complete' if complete else 'not complete yet: run it again'}")
  print(f"result         {result}")


if __name__ == "__main__":
  errors.run(main)
