"""The ledger charges what ran, once or again, and the statement says so."""

import dataclasses
import json
import math

import dp_accounting
import hypothesis
import pytest
from hypothesis import strategies as st

import jaxdp
from jaxdp import accounting, clipping
from jaxdp.accounting import Ledger, PrivacyStatement, gdp
from jaxdp.mechanism import Mechanism
from jaxdp.sampling import (
  FixedSize,
  FullBatch,
  Poisson,
  Shuffled,
)

FULL = Mechanism(clipping.flat(1.0), FullBatch(1000), 20.0)
# 4 batches in an epoch.
SHUFFLED = Mechanism(
  clipping.flat(1.0), Shuffled(num_examples=100, batch_size=30), 5.0
)
POISSON = Mechanism(
  clipping.flat(1.0),
  Poisson(num_examples=1000, expected_batch_size=50, max_batch_size=None),
  2.0,
)
FIXED = Mechanism(
  clipping.flat(1.0), FixedSize(num_examples=1000, batch_size=50), 2.0
)
FREE = Mechanism(clipping.no_clipping(), FullBatch(1000), 0.0)

every_mechanism = pytest.mark.parametrize(
  "mechanism",
  [FULL, SHUFFLED, POISSON, FIXED, FREE],
  ids=["full-batch", "shuffled", "poisson", "fixed-size", "not-private"],
)


@every_mechanism
def test_a_ledger_costs_what_its_mechanism_says_for_as_many_steps(mechanism):
  ledger = Ledger.for_mechanism(mechanism)
  assert ledger.num_steps == 0
  assert ledger.epsilon(1e-5) == 0.0
  assert ledger.delta(1.0) == 0.0
  for num_steps in (1, 4, 0, 5):
    ledger.charge(num_steps)
  assert ledger.num_steps == 10
  assert ledger.dp_event() == accounting.event_from_dict(
    accounting.event_to_dict(ledger.dp_event())
  )
  assert ledger.epsilon(1e-5) == mechanism.epsilon(10, 1e-5)
  assert ledger.delta(1.0) == mechanism.delta(10, 1.0)


def test_steps_in_a_row_are_one_segment():
  ledger = Ledger.for_mechanism(POISSON)
  for _ in range(50):
    ledger.charge(2)
  assert len(ledger.segments) == 1
  assert ledger.dp_event() == POISSON.dp_event(100)


def test_replayed_steps_are_not_charged_again():
  ledger = Ledger.for_mechanism(FULL)
  ledger.charge(100)
  ledger.charge(30, first_step=60)
  ledger.charge(10, first_step=90)
  assert ledger.num_steps == 100
  ledger.charge(15, first_step=95)  # 95..99 again, 100..109 new.
  assert ledger.num_steps == 110
  assert ledger.next_step == 110


def test_a_new_incarnation_is_charged_for_the_steps_that_it_repeats():
  ledger = Ledger.for_mechanism(FULL)
  ledger.charge(100)
  ledger.begin_incarnation(first_step=60)
  assert ledger.num_steps == 100  # What ran stays charged.
  ledger.charge(40)
  assert ledger.num_steps == 140
  assert ledger.epsilon(1e-5) == FULL.epsilon(140, 1e-5)
  ledger.charge(40, first_step=60)  # A replay within the incarnation.
  assert ledger.num_steps == 140


def test_shuffled_incarnations_are_charged_by_the_epochs_each_began():
  ledger = Ledger.for_mechanism(SHUFFLED)
  ledger.charge(6)  # Epochs 0 and 1.
  assert ledger.epsilon(1e-5) == gdp.epsilon(math.sqrt(2) / 5, 1e-5)
  ledger.charge(2)  # Epoch 1 is finished at no cost.
  assert ledger.epsilon(1e-5) == gdp.epsilon(math.sqrt(2) / 5, 1e-5)
  ledger.begin_incarnation(first_step=7)
  ledger.charge(1)  # The last batch of epoch 1, with another permutation.
  assert ledger.epsilon(1e-5) == gdp.epsilon(math.sqrt(3) / 5, 1e-5)
  ledger.charge(1)  # Epoch 2.
  assert ledger.epsilon(1e-5) == gdp.epsilon(math.sqrt(4) / 5, 1e-5)


def test_steps_cannot_be_skipped_uncharged():
  ledger = Ledger.for_mechanism(FULL)
  ledger.charge(10)
  with pytest.raises(
    ValueError, match="first_step=11 leaves the steps from 10"
  ):
    ledger.charge(5, first_step=11)
  with pytest.raises(ValueError, match="first_step=11"):
    ledger.begin_incarnation(11)
  assert ledger.num_steps == 10


@pytest.mark.parametrize("num_steps", [-1, 1.5, True, None])
def test_a_number_of_steps_that_is_none_is_refused(num_steps):
  with pytest.raises(ValueError, match="num_steps must be"):
    Ledger.for_mechanism(FULL).charge(num_steps)


def test_epsilon_can_be_asked_for_steps_that_did_not_run_yet():
  ledger = Ledger.for_mechanism(POISSON)
  ledger.charge(30)
  ahead = ledger.epsilon(1e-5, extra_steps=20)
  assert ahead == POISSON.epsilon(50, 1e-5)
  assert ledger.num_steps == 30
  coarse = ledger.epsilon(1e-5, discretization=1e-3)
  assert ledger.epsilon(1e-5) <= coarse <= 1.01 * ledger.epsilon(1e-5)


def test_a_noise_schedule_is_charged_step_by_step():
  """METHODS 1.4: a step costs what its own noise says, whenever it ran."""
  schedule = jaxdp.PiecewiseConstant({0: 1.0, 100: 0.5, 120: 1.0})
  ledger = Ledger.for_mechanism(FULL.replace(noise_schedule=schedule))
  ledger.charge(100)
  assert ledger.statement(1e-5).noise_multiplier == 20.0
  ledger.charge(25)
  mu = math.sqrt(105 / 20**2 + 20 / 10**2)
  assert ledger.epsilon(1e-5) == pytest.approx(gdp.epsilon(mu, 1e-5), rel=1e-12)
  ledger.begin_incarnation(first_step=110)  # 15 steps again, 10 at 0.5
  ledger.charge(15)
  mu = math.sqrt(110 / 20**2 + 30 / 10**2)
  assert ledger.epsilon(1e-5) == pytest.approx(gdp.epsilon(mu, 1e-5), rel=1e-12)
  statement = ledger.statement(1e-5)
  assert statement.noise_multiplier == (20.0, 10.0)
  assert "20, 10" in str(statement)


def test_a_level_that_begins_within_an_epoch_costs_no_less_than_its_noise():
  schedule = jaxdp.PiecewiseConstant({0: 1.0, 2: 3.0})
  ledger = Ledger.for_mechanism(SHUFFLED.replace(noise_schedule=schedule))
  ledger.charge(4)  # One epoch: a record is in it once, at either noise.
  assert ledger.epsilon(1e-5) >= SHUFFLED.epsilon(4, 1e-5)


def test_a_ledger_refuses_another_mechanism():
  ledger = Ledger.for_mechanism(POISSON)
  ledger.check(POISSON)
  with pytest.raises(ValueError, match=r"noise_multiplier=2\.0.*=2\.5"):
    ledger.check(POISSON.replace(noise_multiplier=2.5))


def test_a_mechanism_without_noise_multiplier_has_no_ledger():
  with pytest.raises(ValueError, match="calibrate_noise"):
    Ledger.for_mechanism(POISSON.replace(noise_multiplier=None))


@hypothesis.given(
  st.lists(
    st.tuples(
      st.sampled_from(["charge", "replay", "begin"]), st.integers(0, 20)
    ),
    max_size=12,
  ),
  st.floats(0.1, 50.0),
)
def test_a_ledger_survives_its_record_exactly(moves, factor):
  schedule = jaxdp.PiecewiseConstant({0: factor, 7: 1.0})
  ledger = Ledger.for_mechanism(SHUFFLED.replace(noise_schedule=schedule))
  for move, number in moves:
    if move == "charge":
      ledger.charge(number)
    elif move == "replay":
      ledger.charge(number, first_step=min(number, ledger.next_step))
    else:
      ledger.begin_incarnation(min(number, ledger.next_step))
  read = Ledger.from_json(ledger.to_json())
  assert read == ledger
  assert read.to_json() == ledger.to_json()
  assert read.dp_event() == ledger.dp_event()


@every_mechanism
def test_a_ledger_goes_on_after_being_read(mechanism):
  ledger = Ledger.for_mechanism(mechanism)
  ledger.charge(7)
  read = Ledger.from_json(ledger.to_json())
  for one in (ledger, read):
    one.charge(3)
  assert read == ledger
  assert read.epsilon(1e-5) == mechanism.epsilon(10, 1e-5)


@pytest.mark.parametrize(
  "text", ["", "{", "[]", "{}", '{"format": 3}', '{"format": 2, "plan": []}']
)
def test_a_damaged_ledger_is_refused(text):
  with pytest.raises(ValueError, match="not a ledger that can be read"):
    Ledger.from_json(text)


# The statement.


def test_a_statement_holds_the_claim_and_everything_around_it():
  statement = POISSON.privacy(100, 1e-5)
  assert statement.epsilon == POISSON.epsilon(100, 1e-5)
  assert statement.delta == 1e-5
  assert statement.neighboring_relation == "ADD_OR_REMOVE_ONE"
  assert statement.privacy_unit == "example"
  assert statement.accountant == "pld"
  assert statement.num_steps == 100
  assert statement.noise_multiplier == 2.0
  assert statement.sampler == POISSON.sampler.to_dict()
  assert "l2_clip_norm=1.0" in statement.rule
  assert statement.seed_policy == "os"
  assert statement.warnings == ()
  event = eval(statement.dp_event, vars(dp_accounting))
  assert event == POISSON.dp_event(100)


@every_mechanism
def test_a_statement_survives_its_record_exactly(mechanism):
  statement = mechanism.privacy(100, 1e-5)
  text = statement.to_json()
  assert PrivacyStatement.from_json(text) == statement
  strict = json.loads(text, parse_constant=pytest.fail)
  assert (strict["epsilon"] is None) == math.isinf(statement.epsilon)


@every_mechanism
def test_a_statement_prints_for_a_person(mechanism):
  text = str(mechanism.privacy(100, 1e-5))
  assert all(len(line) <= 100 for line in text.splitlines())
  assert text.startswith("This training is ")
  assert "example" in text
  if mechanism is FREE:
    assert "NOT private" in text
    assert "∞" in text
  else:
    assert "δ = 1e-05" in text
    assert "Assumptions" in text


def test_a_printed_epsilon_is_never_below_the_true_one():
  for epsilon in (0.0, 1.23e-5, 0.99999, 1.00001, 2.38169, 123.456789):
    statement = dataclasses.replace(FULL.privacy(10, 1e-5), epsilon=epsilon)
    shown = float(str(statement).split("ε = ")[1].split(",")[0])
    assert epsilon <= shown <= epsilon * 1.001 + 1e-12


def test_a_statement_warns_of_a_large_delta_a_named_seed_and_repeated_steps():
  (warning,) = FULL.privacy(10, 1e-3).warnings
  assert "1/N" in warning
  (warning,) = FULL.privacy(10, 1e-5, seed_policy="named").warnings
  assert "whoever knows the seed can subtract the noise" in warning
  ledger = FULL.ledger()
  ledger.charge(10)
  ledger.begin_incarnation(6)
  ledger.charge(4)
  (warning,) = ledger.statement(1e-5).warnings
  assert warning.startswith("4 steps ran again")
  (warning,) = POISSON.privacy(1, 1e-13).warnings
  assert "rounding of the accountant" in warning
  with pytest.raises(ValueError, match="seed_policy must be one of"):
    FULL.privacy(10, 1e-5, seed_policy="fixed")


def test_a_statement_before_the_first_step_claims_that_nothing_happened():
  statement = FULL.ledger().statement(1e-5)
  assert statement.epsilon == 0.0
  assert statement.num_steps == 0
