"""Training, evaluating and planning what a config says."""

import pathlib
from typing import Any

import jax

from jaxdp import accounting, budget, training
from jaxdp.experiment._config import ExperimentConfig
from jaxdp.experiment._task import (
  Rows,
  load,
  load_train,
  make_public_batch,
  make_task,
)


def train(
  config: Any, workdir: str | pathlib.Path, *, progress: bool = True
) -> tuple[training.TrainState, training.History]:
  """Runs a config in a run directory, resuming what is there.

  Args:
    config: see ``ExperimentConfig``.
    workdir: gets everything a run leaves behind, see ``jaxdp.fit``.
    progress: show a progress bar.

  Returns:
    As ``jaxdp.fit``.
  """
  config = ExperimentConfig.from_config_dict(config)
  optimizer = config.make_optimizer()
  config.make_rule()
  rows = load_train(config)
  dataset, public, _ = rows
  test = load(config, "test")
  num_examples = len(next(iter(dataset.values())))
  mechanism = config.make_mechanism(num_examples)
  sampler = config.make_sampler(num_examples)
  task = make_task(config, dataset, public)

  def eval_fn(params: Any) -> dict[str, float]:
    return {f"test_{k}": v for k, v in task.evaluate(params, test).items()}

  devices = jax.devices()
  return training.fit(
    task.loss_fn,
    task.params,
    dataset,
    mechanism,
    optimizer,
    num_steps=config.training["num_steps"],
    sampler=None if mechanism else sampler,
    delta=config.privacy["delta"],
    max_epsilon=config.privacy["max_epsilon"] if mechanism else None,
    has_key=task.has_key,
    public_batch=make_public_batch(config, sampler, public),
    eval_fn=eval_fn,
    workdir=workdir,
    config=config.to_dict(),
    progress=progress,
    performance=training.PerformanceFlags(
      **config.performance,
      mesh=training.data_mesh(devices) if len(devices) > 1 else None,
    ),
    facts=facts(rows),
    **fit_options(config),
  )


def fit_options(config: ExperimentConfig) -> dict[str, Any]:
  """What the section ``training`` says to ``fit``, but the number of steps."""
  options = dict(config.training)
  options.pop("num_steps")
  options.pop("public_every", None)
  if options.get("inner_momentum") is not None:
    options["inner_momentum"] = config.make_inner_momentum()
  return options


def facts(rows: Rows) -> accounting.RunFacts:
  """Models start from a seed alone; data are scaled by constants, or hashed."""
  return accounting.RunFacts(
    params_given=False,
    preprocessed=False,
    held_out=not (rows.public is None and rows.rest is None),
  )


def evaluate(
  config: Any, workdir: str | pathlib.Path, split: str = "test"
) -> dict[str, float]:
  """Accuracy and loss of a run's released parameters.

  Args:
    config: that of the run.
    workdir: the run directory, or its ``release/`` folder.
    split: which data; on private data the numbers are *sensitive*.
  """
  config = ExperimentConfig.from_config_dict(config)
  dataset = load(config, split)
  task = make_task(config, dataset, load_train(config).public)
  params = training.load_release(workdir, task.params)
  return task.evaluate(params, dataset)


def plan(
  config: Any,
  num_examples: int | None = None,
  selection: accounting.Selection | None = None,
) -> budget.Budget:
  """What a config will cost; its noise is found if it names a target.

  Args:
    config: see ``ExperimentConfig``.
    num_examples: rows of the data set; None to load it and see.
    selection: of one among several runs, see ``budget.plan``.
  """
  config = ExperimentConfig.from_config_dict(config)
  if num_examples is None:
    num_examples = len(next(iter(load_train(config).private.values())))
  mechanism = config.make_mechanism(num_examples)
  if mechanism is None:
    raise ValueError(
      "config.rule.name is 'none': this training is not private, epsilon is "
      "infinite. Name a rule, such as 'flat'."
    )
  return budget.Budget.of(
    mechanism,
    config.training["num_steps"],
    config.privacy["delta"],
    None if config.privacy["target_epsilon"] is None else "noise_multiplier",
    selection,
  )
