"""Black-box audits: bounds that are true, and mechanisms that keep below."""

import json

import numpy as np
import pytest
from scipy import stats

import jaxdp
from jaxdp import audit, clipping, sampling
from jaxdp.accounting import gdp

DELTA = 1e-5
BOUNDS = {
  "mu": audit.mu_lower_bound,
  "epsilon": lambda *x, **k: audit.epsilon_lower_bound(*x, delta=DELTA, **k),
}


def gaussian_scores(mu, trials, repetitions, seed=0):
  """Of the Gaussian mechanism's best adversary, with and without."""
  rng = np.random.default_rng(seed)
  scores = rng.standard_normal((repetitions, 2, trials))
  scores[:, 0] += mu
  return scores


def test_error_rates_have_the_intervals_of_clopper_and_pearson():
  for count in (0, 3, 50, 100):
    expected = stats.binomtest(count, 100).proportion_ci(0.9, "exact")
    interval = audit.ErrorRate(count, 100).interval(0.9)
    np.testing.assert_allclose(interval, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_canary_that_shows_nothing_gives_zero(name):
  values = [
    BOUNDS[name](*scores).value for scores in gaussian_scores(0, 400, 400)
  ]
  # At 95 % no more than 5 % may be above 0: 20 of 400, and 3 deviations.
  assert np.sum(np.array(values) > 0) <= 20 + 3 * np.sqrt(400 * 0.05 * 0.95)
  assert np.median(values) == 0


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_bounds_exceed_the_truth_no_more_often_than_stated(confidence):
  mu, repetitions = 1.0, 400
  values = {name: [] for name in BOUNDS}
  for scores in gaussian_scores(mu, 1000, repetitions):
    for name, bound in BOUNDS.items():
      values[name].append(bound(*scores, confidence=confidence).value)
  allowed = (1 - confidence) * repetitions
  allowed += 3 * np.sqrt(allowed * confidence)
  assert np.sum(np.array(values["mu"]) > mu) <= allowed
  assert np.sum(np.array(values["epsilon"]) > gdp.epsilon(mu, DELTA)) <= allowed
  # And are worth having: a bound of 0 would pass all of the above.
  assert np.median(values["mu"]) > 0.75 * mu
  assert np.median(values["epsilon"]) > 0.2 * gdp.epsilon(mu, DELTA)


def test_a_threshold_is_not_judged_by_the_trials_that_chose_it():
  """Where it is, the luckiest of many beats the truth far too often."""
  mu, repetitions = 1.0, 50
  lucky = 0
  for with_canary, without in gaussian_scores(mu, 200, repetitions):
    best = 0.0
    for threshold in np.linspace(-3, 4, 50):
      errors = (without >= threshold).sum(), (with_canary < threshold).sum()
      tails = [audit.ErrorRate(int(k), 200).interval(0.5)[1] for k in errors]
      best = max(best, float(-np.sum(stats.norm.ppf(tails))))
    lucky += best > mu
  assert lucky > 0.6 * repetitions  # at a confidence of 50 %


def test_bounds_do_not_depend_on_the_order_of_scores():
  with_canary, without = np.sort(gaussian_scores(2.0, 20_000, 1)[0])
  bound = audit.mu_lower_bound(with_canary, without)
  assert 1.9 < bound.value < 2.0
  (_, fpr), (_, fnr) = bound.intervals
  # What the bound says as a point of f-DP: f(fpr) <= fnr.
  assert gdp.tradeoff(bound.value, fpr) == pytest.approx(fnr)
  assert bound.false_positives.trials == 15_000


def test_mu_becomes_an_epsilon_in_closed_form():
  scores = gaussian_scores(1.0, 1000, 1)[0]
  mu = audit.mu_lower_bound(*scores)
  epsilon = audit.gdp_epsilon_lower_bound(*scores, delta=DELTA)
  assert epsilon.value == gdp.epsilon(mu.value, DELTA)
  assert epsilon.threshold == mu.threshold


def test_perfect_tests_give_finite_bounds():
  zeros, ones = np.zeros(1000), np.ones(1000)
  bound = audit.epsilon_lower_bound(ones, zeros, delta=DELTA)
  # 750 trials of each, no error: the limit of both rates is 0.0049.
  upper = 1 - 0.025 ** (1 / 750)
  assert bound.value == pytest.approx(np.log((1 - upper - DELTA) / upper))
  assert audit.mu_lower_bound(zeros, ones).value == 0  # the wrong way round


@pytest.mark.parametrize(
  "scores, match",
  [
    (np.zeros(99), "at least 100 scores, got shape"),
    (np.zeros((100, 2)), "must be a vector"),
    (np.full(100, np.nan), "holds 100 NaN of 100"),
  ],
)
def test_scores_that_cannot_be_counted_are_refused(scores, match):
  with pytest.raises(ValueError, match=match):
    audit.mu_lower_bound(np.zeros(100), scores)


def test_confidence_and_delta_are_probabilities():
  zeros = np.zeros(100)
  with pytest.raises(ValueError, match="confidence must be > 0 and < 1"):
    audit.mu_lower_bound(zeros, zeros, confidence=95)
  with pytest.raises(ValueError, match="delta must be > 0"):
    audit.epsilon_lower_bound(zeros, zeros, delta=0.0)


def mechanism_of(rule=None, sampler=None, **options):
  return jaxdp.Mechanism(
    clipping.flat(1.0) if rule is None else rule,
    sampling.FullBatch(3) if sampler is None else sampler,
    **{"noise_multiplier": 1.0, **options},
  )


@pytest.mark.parametrize(
  "target, trials",
  [pytest.param(1.0, 100_000, marks=pytest.mark.slow), (4.0, 20_000)],
)
def test_an_audit_of_flat_clipping_reaches_its_claim(target, trials):
  mechanism = jaxdp.calibrate_noise(
    mechanism_of(), target_epsilon=target, target_delta=DELTA, num_steps=1
  )
  result = audit.mechanism(mechanism, delta=DELTA, trials=trials)
  assert result.epsilon_claimed == mechanism.privacy(1, DELTA).epsilon
  assert 0.999 * target < result.epsilon_claimed <= target
  assert 0.8 * target <= result.epsilon_lower <= result.epsilon_claimed
  assert result.confidence == 0.95
  assert "is within the claim" in str(result)


def test_both_sides_alike_show_nothing():
  sampler = sampling.Poisson(num_examples=6, expected_batch_size=3)
  found = audit.scores(
    mechanism_of(sampler=sampler),
    num_steps=1,
    trials=2000,
    seed=0,
    with_canary=(True, True),
  )
  assert not np.array_equal(*found)
  assert audit.mu_lower_bound(*found).value == 0
  assert audit.epsilon_lower_bound(*found, delta=DELTA).value == 0


def test_scores_of_a_full_batch_are_those_of_one_gaussian():
  """N(mu^2 / 2, mu^2) with the canary and N(-mu^2 / 2, mu^2) without."""
  mu, trials = 1.5, 2000
  found = audit.scores(
    mechanism_of(noise_multiplier=1 / mu), num_steps=1, trials=trials, seed=0
  )
  for sign, scores in zip((1, -1), found, strict=True):
    exact = stats.norm(sign * mu**2 / 2, mu)
    assert stats.kstest(scores, exact.cdf).pvalue > 1e-3
    assert stats.kstest(
      scores, stats.norm(exact.mean(), 0.8 * mu).cdf
    ).pvalue < (1e-6)


class HalfTheNoise(jaxdp.Mechanism):
  """What an audit is for: the claim is that of twice the noise."""

  def stddev(self, rule_state, step=0):
    return super().stddev(rule_state, step) / 2


@pytest.mark.parametrize(
  "sampler",
  [
    sampling.FullBatch(3),
    # In the curve, long before it could be seen in epsilon.
    sampling.Poisson(num_examples=6, expected_batch_size=3),
  ],
  ids=["FullBatch", "Poisson"],
)
def test_a_mechanism_that_adds_half_its_noise_is_refuted(sampler):
  broken = HalfTheNoise(clipping.flat(1.0), sampler, 2.0)
  result = audit.mechanism(broken, delta=DELTA, trials=2000)
  assert result.exceeds
  assert result.mu_lower > 1.1 * result.mu_claimed
  assert "REFUTES the claim" in str(result)


def test_results_are_strict_json_whatever_is_claimed():
  result = audit.AuditResult(
    mechanism="flat",
    kind="gradient canary",
    epsilon_claimed=1.5,
    epsilon_lower=0.5,
    delta=DELTA,
    mu_claimed=np.inf,
    mu_lower=0.1,
    confidence=0.95,
    trials=100,
    num_steps=1,
    accountant="pld",
    neighboring_relation="ADD_OR_REMOVE_ONE",
    seed=0,
  )
  fields = json.loads(result.to_json())
  assert fields.pop("mu_claimed") is None
  assert fields == {name: getattr(result, name) for name in fields}
  assert not result.exceeds
