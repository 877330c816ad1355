"""Many trainings by few compiled programs.

Runs that differ in numbers alone (clip norm, noise, learning rate, seeds) share
a program, whose steps are one scan over rows that were drawn beforehand. The
step is that of ``jaxdp.fit``, by the same sampler.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxdp import experiment, noise, training
from jaxdp.experiment import ExperimentConfig
from jaxdp.mechanism import Mechanism
from jaxdp.studies import _noise
from jaxdp.studies._design import Design, Run
from jaxdp.studies._journal import Journal
from jaxdp.studies._precheck import check_held_out


class Results:
  """The runs that were made, see ``Journal``.

  Args:
    path: of the file.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self._journal = Journal(path)
    self.rows = [_read(line) for line in self._journal]
    self._keys = {row["key"] for row in self.rows}

  def __contains__(self, run: Run) -> bool:
    return run.key in self._keys

  def of(self, runs: Iterable[Run]) -> list[dict[str, Any]]:
    """The rows of these runs, as far as they were made."""
    keys = {run.key for run in runs}
    return [row for row in self.rows if row["key"] in keys]

  def add(self, run: Run, outcome: dict[str, float]) -> None:
    """Keeps a run, on disk before this returns."""
    line = self._journal.add({**dataclasses.asdict(run), "outcome": outcome})
    self.rows.append(_read(line))
    self._keys.add(run.key)


def _read(row: dict[str, Any]) -> dict[str, Any]:
  outcome = row.pop("outcome")
  values = {k: math.nan if v is None else v for k, v in outcome.items()}
  return {"key": Run(**row).key, **row, **values}


class Sweep:
  """Makes the runs of a design.

  Args:
    design: whose base and overrides make the configs.
  """

  def __init__(self, design: Design):
    self._design = design
    self._programs: dict[str, _Program] = {}

  def __call__(self, run: Run) -> dict[str, float]:
    """Trains and evaluates; what ``Results`` keeps of it."""
    values = self._design.config(run)
    config = ExperimentConfig.from_config_dict(values)
    program = self._program(values)
    mechanism = program.mechanism(config)
    begin = time.perf_counter()
    params = program.train(config, mechanism)
    validation, test = program.evaluate(params)
    num_steps = config.training["num_steps"]
    delta = config.privacy["delta"]
    return {
      "noise_multiplier": mechanism.sigma,
      "epsilon": _noise.epsilon(mechanism, num_steps, delta),
      "delta": delta,
      "learning_rate": config.optimizer["learning_rate"],
      "validation_accuracy": validation["accuracy"],
      "test_accuracy": test["accuracy"],
      "test_loss": test["loss"],
      "seconds": time.perf_counter() - begin,
    }

  def _program(self, values: dict[str, Any]) -> "_Program":
    structure = {
      **values,
      "rule": None,
      "privacy": None,
      "model": {**values["model"], "seed": 0},
      "optimizer": {**values["optimizer"], "learning_rate": 0.0},
      "training": {**values["training"], "seed": 0},
    }
    key = json.dumps(structure, sort_keys=True)
    if key not in self._programs:
      config = ExperimentConfig.from_config_dict(values)
      self._programs[key] = _Program(config, self._design.num_validation)
    return self._programs[key]


class _Program:
  """Data, model and compiled training of configs that differ in numbers."""

  def __init__(self, config: ExperimentConfig, num_validation: int):
    self._config = config
    rows = experiment.load_train(config)
    check_held_out(rows, num_validation)
    self._data, self._public, rest = rows
    assert rest is not None
    self._validation = {name: x[:num_validation] for name, x in rest.items()}
    self._test = experiment.load(config, "test")
    self._num_examples = len(self._data["label"])
    self._device_data = jax.device_put(dict(self._data))
    self._task = experiment.make_task(config, self._data, self._public)
    self._train = jax.jit(self._training)

  def mechanism(self, config: ExperimentConfig) -> Mechanism:
    """With the noise that the config names, or that meets its target."""
    privacy = config.privacy
    if config.rule["name"] == "none":
      raise ValueError("A study takes private arms; rule.name is 'none'.")
    if privacy["noise_multiplier"] is None:
      sigma = _noise.calibrated(
        _noise.without_rule(config, self._num_examples),
        privacy["target_epsilon"],
        privacy["delta"],
        config.training["num_steps"],
      )
      config = _noise.with_noise(config, sigma)
    mechanism = config.make_mechanism(self._num_examples)
    assert mechanism is not None
    return mechanism

  def train(self, config: ExperimentConfig, mechanism: Mechanism) -> PyTree:
    """The released parameters of one run."""
    seed = config.training["seed"]
    rows = mechanism.sampler.sample_many(seed, 0, config.training["num_steps"])
    params = experiment.make_task(config, self._data, self._public).params
    return self._train(
      mechanism,
      jnp.float32(config.optimizer["learning_rate"]),
      params,
      jax.random.key_data(noise.make_key(seed)),
      self._device_data,
      rows.indices,
      rows.is_padding_example,
    )

  def _training(
    self,
    mechanism: Mechanism,
    learning_rate: Array,
    params: PyTree,
    key: Array,
    data: PyTree,
    rows: Array,
    mask: Array,
  ) -> PyTree:
    config, task = self._config, self._task
    window = config.training.get("inner_momentum")
    step = training.make_train_step(
      task.loss_fn,
      mechanism,
      config.make_optimizer(learning_rate),
      method=config.performance.get("method", "auto"),
      microbatch_size=config.performance.get("microbatch_size"),
      has_key=task.has_key,
      public_batch=experiment.make_public_batch(
        config, mechanism.sampler, self._public
      )
      if mechanism.rule.needs_public_norms
      else None,
      inner_momentum=None if window is None else config.make_inner_momentum(),
      ema_decay=config.training.get("ema_decay"),
    )
    wrapped = jax.random.wrap_key_data(key, impl="threefry2x32")

    def body(state: Any, batch: Any) -> tuple[Any, None]:
      return step.run(state, data, *batch)[0], None

    state, _ = jax.lax.scan(body, step.init(params, wrapped), (rows, mask))
    return training.released_params(state)

  def evaluate(self, params: PyTree) -> tuple[dict[str, float], ...]:
    """On validation and on test data."""
    return tuple(
      self._task.evaluate(params, part)
      for part in (self._validation, self._test)
    )
