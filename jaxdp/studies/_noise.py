"""Noise and epsilon of a study's runs, each searched for or summed once."""

import dataclasses
import functools

import jaxdp
from jaxdp import accounting
from jaxdp.experiment import ExperimentConfig
from jaxdp.mechanism import Mechanism


def with_noise(config: ExperimentConfig, sigma: float) -> ExperimentConfig:
  """The config with this noise multiplier in place of a target."""
  privacy = {**config.privacy, "noise_multiplier": sigma}
  return dataclasses.replace(config, privacy=privacy | {"target_epsilon": None})


def without_rule(config: ExperimentConfig, num_examples: int) -> Mechanism:
  """The mechanism but for its rule, which noise multipliers do not depend on.

  So runs that differ in their rules share a search.
  """
  rule = {"name": "flat", "l2_clip_norm": 1.0}
  plain = with_noise(dataclasses.replace(config, rule=rule), 1.0)
  mechanism = plain.make_mechanism(num_examples)
  assert mechanism is not None
  return mechanism


@functools.lru_cache(maxsize=256)
def calibrated(
  mechanism: Mechanism, epsilon: float, delta: float, num_steps: int
) -> float:
  """The noise multiplier that meets a target."""
  return jaxdp.calibrate_noise(
    mechanism, target_epsilon=epsilon, target_delta=delta, num_steps=num_steps
  ).sigma


def epsilon(mechanism: Mechanism, num_steps: int, delta: float) -> float:
  """Epsilon of steps that were executed."""
  return _epsilon(accounting.Plan.of(mechanism), num_steps, delta)


@functools.lru_cache(maxsize=256)
def _epsilon(plan: accounting.Plan, num_steps: int, delta: float) -> float:
  return accounting.epsilon(
    plan.dp_event(0, num_steps),
    plan.accountant,
    plan.neighboring_relation,
    delta,
  )
