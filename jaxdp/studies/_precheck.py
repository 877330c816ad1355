"""Whether every run of a study can be made, before one is and a file written.

What compiles or takes long (training, searching for noise) is left out, and so
are runs that are there: a study that is complete needs no data.
"""

import json
from collections.abc import Container, Iterable
from typing import Any

from jaxdp import experiment
from jaxdp.experiment import ExperimentConfig
from jaxdp.studies import _noise
from jaxdp.studies._design import Design, Run
from jaxdp.studies._survey import Survey
from jaxdp.studies._survey_plan import as_rows


def check_design(design: Design, runs: Iterable[Run]) -> None:
  """Builds the first of these runs of every arm in every setting.

  Raises:
    ValueError: an arm, setting or grid makes no experiment.
  """
  firsts: dict[str, Run] = {}
  for run in runs:
    key = json.dumps([run.setting, run.arm, run.overrides], default=str)
    firsts.setdefault(key, run)
  if next(iter(design.tuning()), None) is None:
    raise ValueError(
      "A study needs arms, settings, rates and tuning_seeds; some are empty."
    )
  configs = [
    ExperimentConfig.from_config_dict(design.config(run))
    for run in firsts.values()
  ]
  _check(configs, held_out=design.num_validation)


def check_survey(survey: Survey, made: Container[int]) -> None:
  """Builds every run that is to be made.

  Raises:
    ValueError: a run makes no experiment.
  """
  rows = as_rows(survey.table())
  _check(survey.config(row) for row in rows if row["run"] not in made)


def _check(configs: Iterable[ExperimentConfig], held_out: int = 0) -> None:
  rows: dict[str, experiment.Rows] = {}
  tasks = set()
  for config in configs:
    if config.make_rule() is None:
      raise ValueError("A study takes private arms; rule.name is 'none'.")
    config.make_optimizer()
    data = repr([config.data, config.model["num_classes"]])
    if data not in rows:
      rows[data] = experiment.load_train(config)
      experiment.load(config, "test")
      check_held_out(rows[data], held_out)
    private, public, _ = rows[data]
    num_examples = len(private["label"])
    _noise.without_rule(config, num_examples)
    sampler = config.make_sampler(num_examples)
    if config.training.get("inner_momentum") is not None:
      config.make_inner_momentum().check()
    experiment.make_public_batch(config, sampler, public)
    task = repr([data, {**config.model, "seed": 0}, config.sampler["name"]])
    if task not in tasks:
      tasks.add(task)
      experiment.make_task(config, private, public)


def check_held_out(rows: experiment.Rows, num_validation: Any) -> None:
  """Raises unless so many rows are left for validation."""
  left = 0 if rows.rest is None else len(rows.rest["label"])
  if left < num_validation:
    raise ValueError(
      f"num_validation={num_validation} rows are not left over, but {left}. "
      "Lower base.data.num_examples, or num_validation."
    )
