"""Auditing one run: the theorem, its use, and a run on digits."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxdp import audit, experiment, sampling
from jaxdp.experiment._audit import mislabelled
from tests.test_experiment import config_of

DELTA = 1e-5


def p_value_of_the_paper(m, r, v, epsilon, delta):
  """Sum by sum, as Theorem 5.2 of arXiv:2305.08846 writes it."""
  q = math.exp(epsilon) / (math.exp(epsilon) + 1)
  chance = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
  beta = sum(chance[v:])
  alpha = max(
    (sum(chance[v - i : v]) / i for i in range(1, v + 1)), default=0.0
  )
  return min(beta + 2 * m * delta * alpha, 1.0)


def test_p_values_are_those_of_the_theorem():
  for m, r, v in ((10, 10, 10), (40, 20, 15), (30, 30, 0), (25, 12, 7)):
    for epsilon in (0.0, 0.5, 2.0):
      for delta in (0.0, 1e-5, 1e-3):
        actual = audit.one_run_p_value(m, r, v, epsilon, delta)
        expected = p_value_of_the_paper(m, r, v, epsilon, delta)
        assert actual == pytest.approx(expected, rel=1e-9, abs=1e-14)


def test_a_perfect_guesser_has_the_bound_in_closed_form():
  """All r right: q^r = 1 - confidence."""
  included = np.arange(100) % 2 == 0
  bound = audit.one_run_lower_bound(included, included, delta=0, guesses=[60])
  q = 0.05 ** (1 / 60)
  assert (bound.guesses, bound.correct) == (60, 60)
  assert bound.value == pytest.approx(math.log(q / (1 - q)), abs=1e-6)
  # Several choices share what is not confident, and delta costs a little.
  several = audit.one_run_lower_bound(
    included, included, delta=DELTA, guesses=[60, 30]
  )
  q = 0.025 ** (1 / 60)
  assert several.guesses == 60
  exact = math.log(q / (1 - q))
  assert exact - 0.2 < several.value < exact


@pytest.mark.parametrize("epsilon", [0.0, 2.0])
def test_one_run_bounds_exceed_the_truth_no_more_often_than_stated(epsilon):
  """Randomised response is where the theorem is tight."""
  rng, repetitions, values = np.random.default_rng(1), 100, []
  q = math.exp(epsilon) / (1 + math.exp(epsilon))
  for _ in range(repetitions):
    included = rng.random(400) < 0.5
    answers = included ^ (rng.random(400) > q)
    # Ties are broken without a look at the coins.
    bound = audit.one_run_lower_bound(answers, included, delta=DELTA)
    values.append(bound.value)
  assert np.sum(np.array(values) > epsilon) <= 5 + 3 * math.sqrt(5)
  assert np.median(values) >= 0.6 * epsilon


def test_coins_in_order_tell_nothing_if_scores_are_equal():
  included = np.arange(400) < 200
  bound = audit.one_run_lower_bound(np.zeros(400), included, delta=DELTA)
  assert bound.value == 0


@pytest.mark.parametrize(
  "scores, included, guesses, match",
  [
    (np.zeros(9), np.zeros(9, bool), None, "at least 10, got shapes"),
    (np.zeros(20), np.zeros(19, bool), None, r"\(20,\) and \(19,\)"),
    (np.zeros(20), np.zeros(20), None, "included must be bool"),
    (np.full(20, np.nan), np.zeros(20, bool), None, "20 NaN"),
    (np.zeros(20), np.zeros(20, bool), [21], "from 1 to the 20 canaries"),
  ],
)
def test_coins_that_cannot_be_counted_are_refused(
  scores, included, guesses, match
):
  with pytest.raises(ValueError, match=match):
    audit.one_run_lower_bound(scores, included, delta=0, guesses=guesses)


def test_scores_can_be_handed_to_the_auditor_of_jax_privacy():
  auditing = pytest.importorskip(
    "jax_privacy.auditing", reason="jax_privacy is not installed"
  )
  rng = np.random.default_rng(0)
  scores = rng.normal(1, 1, 4000), rng.normal(0, 1, 4000)
  ours = audit.epsilon_lower_bound(*scores, delta=DELTA)
  # On the scores that ours was counted on: 0 and 1, which err as often.
  false_positives, false_negatives = ours.false_positives, ours.false_negatives
  judged = auditing.CanaryScoreAuditor(
    np.arange(false_negatives.trials) >= false_negatives.count,
    np.arange(false_positives.trials) < false_positives.count,
  )
  theirs = judged.epsilon_clopper_pearson(
    0.05, DELTA, False, threshold_strategy=auditing.Explicit(0.5)
  )
  assert theirs == pytest.approx(ours.value, rel=1e-6)
  # And on all of them, with its own choice of a threshold.
  auditor = auditing.CanaryScoreAuditor(*scores)
  gdp = auditor.epsilon_from_gdp(0.05, DELTA)
  ours = audit.gdp_epsilon_lower_bound(*scores, delta=DELTA)
  assert gdp == pytest.approx(ours.value, rel=0.15)
  # And the p-value of one run, at its own count of right guesses.
  theirs = auditor.epsilon_one_run(
    0.05, DELTA, threshold_strategy=auditing.Explicit(2.0)
  )
  positives = [int(np.sum(x >= 2.0)) for x in scores]
  p = audit.one_run_p_value(8000, sum(positives), positives[0], theirs, DELTA)
  assert p == pytest.approx(0.05, rel=1e-3)


def test_blank_rows_are_in_no_batch_and_all_else_is_as_it_was():
  inner = sampling.Poisson(num_examples=20, expected_batch_size=8)
  blanked = audit.Blanked(inner, (0, 3))
  for step in range(20):
    there, left = inner.sample(5, step), blanked.sample(5, step)
    rows = there.indices[~there.is_padding_example]
    kept = left.indices[~left.is_padding_example]
    np.testing.assert_array_equal(kept, rows[~np.isin(rows, (0, 3))])
  many = blanked.sample_many(5, 0, 20)
  np.testing.assert_array_equal(many.indices[19], left.indices)
  assert blanked.to_dict() == inner.to_dict()
  assert hash(blanked) == hash(audit.Blanked(inner, (0, 3)))


def one_run_config(**changes):
  """Digits with canaries, in closed-form accounting."""
  sampler = {"name": "FullBatch"}
  return config_of("audit/digits", **{"sampler": sampler, **changes})


@pytest.mark.slow
def test_a_run_with_next_to_no_noise_is_seen_through():
  """The control of the next test: this claim is huge, and rightly so."""
  result = experiment.run_audit(
    one_run_config(
      audit__canaries=200,
      optimizer__learning_rate=20.0,
      privacy__target_epsilon=None,
      privacy__noise_multiplier=0.05,
      training__num_steps=60,
    )
  )
  assert 0.5 < result.epsilon_lower < result.epsilon_claimed


def test_a_run_with_much_noise_shows_nothing():
  result = experiment.run_audit(
    one_run_config(
      model__num_features=100,
      privacy__target_epsilon=0.1,
      training__num_steps=5,
    )
  )
  assert 0.099 < result.epsilon_claimed <= 0.1
  assert (result.epsilon_lower, result.mu_lower) == (0, None)
  assert (result.kind, result.trials, result.num_steps) == ("one run", 400, 5)
  assert "400 canaries" in str(result)


def test_canaries_of_a_run_are_mislabelled_for_sure():
  examples = {"label": np.arange(1000) % 10, "image": np.zeros((1000, 2))}
  where = np.arange(0, 1000, 2)
  rng = np.random.default_rng(0)
  changed = mislabelled(examples, where, 10, rng)
  wrong = changed["label"] != examples["label"]
  np.testing.assert_array_equal(np.flatnonzero(wrong), where)
  assert changed["label"].min() == 0
  assert changed["label"].max() == 9
  shift = (changed["label"] - examples["label"])[where] % 10
  assert stats.chisquare(np.bincount(shift, minlength=10)[1:]).pvalue > 1e-3


BAD = {
  "another relation": (
    {"privacy__neighboring_relation": None},
    "Set config.privacy.neighboring_relation='REPLACE_SPECIAL'",
  ),
  "no claim": ({"rule__name": "none"}, "no finite epsilon"),
  "too many canaries": (
    {"audit__canaries": 2000},
    "from 10 to the 1437 examples there are, got 2000",
  ),
  "buckets": (
    {
      "sampler": {
        "name": "Buckets", "expected_batch_size": 100, "num_buckets": 10,
      }
    },
    "Canaries are single examples",
  ),
  "a misspelt value": ({"audit__canary": 3}, "did you mean 'canaries'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_in_the_audit_of_a_run_is_named_before_it_trains(name):
  changes, match = BAD[name]
  with pytest.raises(ValueError, match=match):
    experiment.run_audit(one_run_config(**changes))
