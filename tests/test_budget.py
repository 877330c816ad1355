"""Plans: what they cost, and finding the one value that is left open."""

import json
import math

import pytest

import jaxdp
from jaxdp import budget

FULL = {"sampler": "FullBatch", "num_examples": 1000, "delta": 1e-5}
SHUFFLED = {"sampler": "Shuffled", "num_examples": 1000, "delta": 1e-5}


def test_a_plan_costs_what_its_mechanism_costs():
  plan = budget.plan(
    num_examples=1000,
    batch_size=50,
    noise_multiplier=2.0,
    num_steps=40,
    delta=1e-5,
    max_batch_size=None,
  )
  sampler = jaxdp.sampling.Poisson(
    num_examples=1000, expected_batch_size=50, max_batch_size=None
  )
  mechanism = jaxdp.Mechanism(jaxdp.clipping.flat(0.3), sampler, 2.0)
  assert plan.epsilon == mechanism.epsilon(40, 1e-5)
  assert plan.epochs == 2.0
  assert plan.rows_per_batch == 1000
  assert plan.accountant == "pld"
  assert plan.found is None


def test_noise_is_found_for_a_target():
  plan = budget.plan(**FULL, num_steps=100, target_epsilon=2.0)
  assert plan.found == "noise_multiplier"
  assert 0.999 * 2.0 <= plan.epsilon <= 2.0
  again = budget.plan(
    **FULL, num_steps=100, noise_multiplier=plan.noise_multiplier
  )
  assert again.epsilon == plan.epsilon


def test_steps_are_found_for_a_target():
  plan = budget.plan(**FULL, noise_multiplier=20.0, target_epsilon=2.0)
  assert (plan.found, plan.num_steps) == ("num_steps", 100)
  more = budget.plan(**FULL, noise_multiplier=20.0, num_steps=101)
  assert plan.epsilon <= 2.0 < more.epsilon


def test_a_batch_size_is_found_for_a_target():
  arguments = {**SHUFFLED, "noise_multiplier": 3.0, "num_steps": 100}
  plan = budget.plan(**arguments, target_epsilon=4.0)
  assert plan.found == "batch_size"
  more = budget.plan(**arguments, batch_size=plan.batch_size + 1)
  assert plan.epsilon <= 4.0 < more.epsilon


def test_the_relation_can_be_chosen():
  one, other = (
    budget.plan(
      **FULL,
      noise_multiplier=30.0,
      num_steps=100,
      neighboring_relation=relation,
    )
    for relation in (None, jaxdp.NeighboringRelation.REPLACE_ONE)
  )
  assert one.neighboring_relation == "ADD_OR_REMOVE_ONE"
  assert other.neighboring_relation == "REPLACE_ONE"
  # The noise is in units of the sensitivity, which is twice as large.
  assert one.epsilon == other.epsilon


def test_the_table_marks_what_was_found_and_never_understates_epsilon():
  plan = budget.plan(**FULL, num_steps=100, target_epsilon=2.0)
  lines = str(plan).splitlines()
  (marked,) = [line for line in lines if "found" in line]
  assert marked.startswith("noise multiplier")
  assert float(lines[0].split()[1]) >= plan.epsilon
  assert "num steps             100" in lines


def test_json_is_strict_and_says_the_same():
  plan = budget.plan(**FULL, num_steps=100, target_epsilon=2.0)
  fields = json.loads(plan.to_json())
  assert budget.Budget(**{**fields, "warnings": ()}) == plan


def test_a_plan_without_noise_costs_infinity():
  plan = budget.plan(**FULL, num_steps=1, noise_multiplier=0.0)
  assert math.isinf(plan.epsilon)
  assert json.loads(plan.to_json())["epsilon"] is None
  assert "inf" in str(plan)
  assert any("Not private" in text for text in plan.warnings)


def test_a_large_delta_is_warned_of():
  plan = budget.plan(**{**FULL, "delta": 0.01}, num_steps=1, noise_multiplier=9)
  assert "! delta = 0.01 is at least 1/N" in str(plan)


@pytest.mark.parametrize(
  "changes, match",
  [
    ({}, "noise_multiplier, num_steps not given"),
    ({"target_epsilon": 2.0}, "open are: noise_multiplier, num_steps"),
    (
      {"target_epsilon": 2.0, "noise_multiplier": 1.0, "num_steps": 1},
      "open are: none",
    ),
    (
      {"batch_size": 10, "noise_multiplier": 1.0, "num_steps": 1},
      "FullBatch takes all num_examples=1000 .* batch_size=10",
    ),
    (
      {"sampler": "Coin", "noise_multiplier": 1, "num_steps": 1},
      "batch_size not given",
    ),
    (
      {
        "sampler": "Coin",
        "batch_size": 1,
        "noise_multiplier": 1,
        "num_steps": 1,
      },
      "sampler must be one of .* got 'Coin'",
    ),
    (
      {
        "sampler": "FixedSize",
        "batch_size": 10.5,
        "noise_multiplier": 1.0,
        "num_steps": 1,
      },
      "whole number of rows, got batch_size=10.5",
    ),
    (
      {"noise_multiplier": -1.0, "num_steps": 1},
      "noise_multiplier must be >= 0",
    ),
  ],
)
def test_a_plan_that_does_not_fit_together_is_refused(changes, match):
  with pytest.raises(ValueError, match=match):
    budget.plan(**{**FULL, **changes})
