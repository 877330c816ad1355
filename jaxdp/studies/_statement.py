"""The privacy statement of one run of a study: of how many it is one."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxdp import accounting
from jaxdp.experiment import ExperimentConfig
from jaxdp.studies import _noise
from jaxdp.studies._design import Design, Run
from jaxdp.studies._survey import Survey
from jaxdp.studies._survey_run import read_runs
from jaxdp.studies._sweep import Results


def statement(
  study: Design | Survey,
  workdir: str | os.PathLike[str],
  run: Mapping[str, Any],
) -> accounting.PrivacyStatement:
  """What may be claimed of a run, which says how many others saw its data.

  Args:
    study: whose runs they are.
    workdir: that of ``run`` or ``run_survey``. All runs on file count, those
      that the design no longer has too.
    run: a row of ``results.jsonl`` or of ``runs.parquet``.
  """
  config, num_steps = _config(study, run)
  mechanism = config.make_mechanism(int(config.data["num_examples"]))
  assert mechanism is not None
  runs = _runs(study, pathlib.Path(workdir))
  data = config.data["name"]
  averaged = config.training.get("ema_decay") is not None
  facts = accounting.RunFacts(
    own_loop=False,
    params_given=False,
    preprocessed=False,
    part_frozen=False,
    held_out=True,
    public_batch=mechanism.rule.needs_public_norms,
    evaluated=True,
    release="average" if averaged else "last",
    num_runs=sum(_config(study, r)[0].data["name"] == data for r in runs),
  )
  return mechanism.privacy(
    num_steps, config.privacy["delta"], seed_policy="named", facts=facts
  )


def _runs(
  study: Design | Survey, workdir: pathlib.Path
) -> list[dict[str, Any]]:
  if isinstance(study, Design):
    return Results(workdir / "results.jsonl").rows
  rows: list[dict[str, Any]] = read_runs(workdir).to_dict("records")
  return rows


def _config(
  study: Design | Survey, run: Mapping[str, Any]
) -> tuple[ExperimentConfig, int]:
  """The experiment of a run with the noise that it had, and its steps."""
  if isinstance(study, Survey):
    return study.config(run), int(run["executed_steps"])
  one = Run(**{name: run[name] for name in Run.__dataclass_fields__})
  config = ExperimentConfig.from_config_dict(study.config(one))
  config = _noise.with_noise(config, run["noise_multiplier"])
  return config, config.training["num_steps"]
