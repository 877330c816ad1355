"""Epsilon, delta and trade-off curves against closed forms and known values.

Reference values without a source were computed once with dp-accounting 0.6.0
on a grid of 1e-4, or in closed form; none comes from the code under test.
"""

import math

import dp_accounting
import numpy as np
import pytest
from scipy import integrate, stats

from jaxdp import accounting, clipping
from jaxdp.accounting import gdp
from jaxdp.mechanism import Mechanism
from jaxdp.sampling import (
  FixedSize,
  FullBatch,
  NeighboringRelation,
  Poisson,
  Shuffled,
)

ADD_OR_REMOVE_ONE = NeighboringRelation.ADD_OR_REMOVE_ONE
REPLACE_ONE = NeighboringRelation.REPLACE_ONE
ZERO_OUT = NeighboringRelation.REPLACE_SPECIAL


def mechanism(sampler, noise_multiplier, relation=None):
  return Mechanism(clipping.flat(1.0), sampler, noise_multiplier, relation)


def poisson(n, batch, cap=None):
  return Poisson(num_examples=n, expected_batch_size=batch, max_batch_size=cap)


def gaussian(noise_multiplier, count=1):
  return dp_accounting.SelfComposedDpEvent(
    dp_accounting.GaussianDpEvent(noise_multiplier), count
  )


def sampled(q, noise_multiplier, count=1):
  return dp_accounting.SelfComposedDpEvent(
    dp_accounting.PoissonSampledDpEvent(
      q, dp_accounting.GaussianDpEvent(noise_multiplier)
    ),
    count,
  )


# Gaussian differential privacy, in closed form.


@pytest.mark.parametrize(
  "mu, epsilon",
  [
    (0.25, 0.9263),
    (0.5, 1.9931),
    (1, 4.3772),
    (2, 9.9973),
    (3, 16.6755),
    (5, 33.1037),
  ],
)
def test_gdp_epsilon_of_mu_at_delta_1e_5(mu, epsilon):
  assert gdp.epsilon(mu, 1e-5) == pytest.approx(epsilon, abs=5.1e-5)


@pytest.mark.parametrize(
  "epsilon, mu",
  [
    (0.5, 0.14221),
    (1, 0.26805),
    (2, 0.50155),
    (3, 0.71912),
    (4, 0.92493),
    (7.5, 1.57916),
    (8, 1.66603),
  ],
)
def test_gdp_mu_of_epsilon_at_delta_1e_5(epsilon, mu):
  assert gdp.mu(epsilon, 1e-5) == pytest.approx(mu, abs=5.1e-6)


@pytest.mark.parametrize("delta", [1e-300, 1e-30, 1e-12, 1e-5, 1e-2, 0.3])
@pytest.mark.parametrize("mu", [1e-8, 1e-3, 0.1, 1.0, 30.0, 1e4])
def test_gdp_epsilon_delta_and_mu_are_inverses_at_all_scales(mu, delta):
  epsilon = gdp.epsilon(mu, delta)
  if epsilon == 0:
    assert gdp.delta(mu, 0.0) <= delta
    return
  assert gdp.log_delta(mu, epsilon) == pytest.approx(math.log(delta), rel=1e-9)
  assert gdp.mu(epsilon, delta) == pytest.approx(mu, rel=1e-9)


@pytest.mark.parametrize("mu", [0.01, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("epsilon", [0.0, 1e-4, 0.04, 0.5, 2.0, 9.0])
def test_gdp_delta_is_the_hockey_stick_divergence(mu, epsilon):
  # delta = integral of (phi(x - mu) - e^eps phi(x))_+, by quadrature.
  start = epsilon / mu + mu / 2
  end = max(start, mu) + 12

  def excess(x):
    return stats.norm.pdf(x - mu) - math.exp(epsilon) * stats.norm.pdf(x)

  middle = min(max(mu, start), end)
  expected = sum(
    integrate.quad(excess, low, high, epsabs=1e-16, epsrel=1e-10)[0]
    for low, high in [(start, middle), (middle, end)]
  )
  assert gdp.delta(mu, epsilon) == pytest.approx(expected, rel=1e-6, abs=1e-15)


def test_gdp_composes_by_squares_and_groups_by_size():
  assert gdp.compose([3.0, 4.0]) == 5.0
  assert gdp.compose([1 / 30] * 100) == pytest.approx(math.sqrt(100) / 30)
  assert gdp.compose([]) == 0.0
  assert gdp.group(0.3, 4) == pytest.approx(1.2)


def test_gdp_edges():
  assert gdp.delta(0.0, 0.0) == 0.0
  assert gdp.delta(math.inf, 5.0) == 1.0
  assert gdp.delta(1.0, math.inf) == 0.0
  assert gdp.epsilon(0.0, 1e-5) == 0.0
  assert gdp.epsilon(math.inf, 1e-5) == math.inf
  assert gdp.mu(math.inf, 1e-5) == math.inf


def test_gdp_true_positive_rates_at_mu_1():
  alpha = np.array([0.001, 0.01, 0.1, 0.5])
  expected = [0.018298, 0.092362, 0.389144, 0.841345]
  np.testing.assert_allclose(1 - gdp.tradeoff(1.0, alpha), expected, atol=6e-7)


@pytest.mark.parametrize(
  "sigma, groups, epochs, mu, epsilon",
  [
    (0.01875, 1, 1, 53.3, 1.65e3),
    (0.01875, 1, 50, 377, 7.3e4),
    (0.01875, 62, 1, 420, 9.0e4),
    (0.01875, 62, 50, 2970, 4.4e6),
    (0.0375, 1, 1, 26.7, 468),
    (0.075, 1, 1, 13.3, 145),
  ],
)
def test_shuffling_accounting_of_the_batch_clipping_setting(
  sigma, groups, epochs, mu, epsilon
):
  got = math.sqrt(groups * epochs) / sigma
  assert got == pytest.approx(mu, rel=6e-3)
  assert gdp.epsilon(got, 1e-5) == pytest.approx(epsilon, rel=1.5e-2)


# The table of accounting values, PLD and RDP.


@pytest.mark.parametrize(
  "sigma, n, batch, num_steps, delta, pld, rdp",
  [
    (1.3, 60000, 256, 3516, 1e-5, 0.8646, 0.9546),
    (1.1, 60000, 256, 14062, 1e-5, 2.3817, 2.5966),
    (0.7, 60000, 256, 10547, 1e-5, 5.6397, 6.3197),
    (4, 50000, 1024, 10000, 1e-5, 2.09245, 2.27535),
    (3, 50000, 4096, 2468, 1e-5, 6.5293, 7.0458),
    (8, 1000, 500, 200, 1e-5, 3.8379, 4.1570),
    (2, 1000, 80, 500, 1e-3, 3.0268, 3.4453),
  ],
)
def test_poisson_epsilon_by_pld_and_rdp(
  sigma, n, batch, num_steps, delta, pld, rdp
):
  made = mechanism(poisson(n, batch), sigma)
  assert made.accountant == "pld"
  assert made.epsilon(num_steps, delta) == pytest.approx(pld, rel=1e-4)
  by_rdp = accounting.epsilon(
    made.dp_event(num_steps), "rdp", ADD_OR_REMOVE_ONE, delta
  )
  assert by_rdp == pytest.approx(rdp, rel=5e-4)  # By integer orders.


@pytest.mark.parametrize(
  "sigma, num_steps, delta, exact, rdp",
  [(30, 100, 1e-5, 1.271088, 1.3863), (4, 1, 1e-6, 1.060702, 1.1432)],
)
def test_full_batch_epsilon_is_exact(sigma, num_steps, delta, exact, rdp):
  for relation in NeighboringRelation:
    made = mechanism(FullBatch(1000), sigma, relation)
    assert made.accountant == "gdp"
    assert made.epsilon(num_steps, delta) == pytest.approx(exact, rel=1e-6)
  event = gaussian(float(sigma), num_steps)
  args = (ADD_OR_REMOVE_ONE, delta)
  assert accounting.epsilon(event, "pld", *args) == pytest.approx(
    exact, rel=1e-4
  )
  assert accounting.epsilon(event, "rdp", *args) == pytest.approx(rdp, rel=1e-4)


def test_accountants_read_replace_one_differently_and_only_we_convert():
  # One Gaussian event, two conventions: std / C by PLD, std / 2C by RDP.
  event = gaussian(30.0, 100)
  pld = accounting.epsilon(event, "pld", REPLACE_ONE, 1e-5)
  rdp = accounting.epsilon(event, "rdp", REPLACE_ONE, 1e-5)
  assert pld == pytest.approx(2.7534, rel=1e-4)
  assert rdp == pytest.approx(1.3863, rel=1e-4)
  ours = mechanism(FullBatch(1000), 30.0, REPLACE_ONE).epsilon(100, 1e-5)
  assert ours == pytest.approx(1.271088, rel=1e-6)


def test_fixed_size_epsilon_by_rdp():
  made = mechanism(FixedSize(num_examples=60000, batch_size=256), 1.1)
  assert made.neighboring_relation == REPLACE_ONE
  assert made.accountant == "rdp"
  assert made.epsilon(14062, 1e-5) == pytest.approx(5.2433, rel=1e-4)


def test_shuffled_epsilon_is_the_square_root_of_epochs_over_sigma():
  sampler = Shuffled(num_examples=100, batch_size=10)
  for relation in (ZERO_OUT, REPLACE_ONE):
    made = mechanism(sampler, 5.0, relation)
    for num_steps, epochs in [(1, 1), (10, 1), (11, 2), (160, 16)]:
      assert made.epsilon(num_steps, 1e-5) == pytest.approx(
        gdp.epsilon(math.sqrt(epochs) / 5.0, 1e-5)
      )


# Truncated Poisson sampling.

TRUNCATED = [
  (60000, 256, 1.1, 2350, None, 0.9202),
  (60000, 256, 1.1, 2350, 272, 4.279),
  (60000, 256, 1.1, 2350, 288, 3.056),
  (60000, 256, 1.1, 2350, 304, 1.844),
  (60000, 256, 1.1, 2350, 320, 0.9453),
  (60000, 256, 1.1, 2350, 336, 0.9206),
  (60000, 256, 1.1, 2350, 352, 0.9202),
  (50000, 1024, 4.0, 10000, None, 2.09245),
  (50000, 1024, 4.0, 10000, 1024, 6.8745),
  (50000, 1024, 4.0, 10000, 1056, 4.0691),
  (50000, 1024, 4.0, 10000, 1088, 2.4538),
  (50000, 1024, 4.0, 10000, 1120, 2.1166),
  (50000, 1024, 4.0, 10000, 1152, 2.0931),
]
FAST_CAPS = (None, 320, 352, 1088)


@pytest.mark.parametrize(
  "n, batch, sigma, num_steps, cap, epsilon",
  [
    pytest.param(*row, marks=[] if row[4] in FAST_CAPS else [pytest.mark.slow])
    for row in TRUNCATED
  ],
)
def test_truncated_poisson_epsilon(n, batch, sigma, num_steps, cap, epsilon):
  made = mechanism(poisson(n, batch, cap), sigma)
  assert made.epsilon(num_steps, 1e-5) == pytest.approx(epsilon, rel=3e-4)


def test_zero_out_costs_what_add_or_remove_costs_for_truncated_poisson():
  sampler = poisson(1437, 256, "auto")
  one, other = (
    mechanism(sampler, 3.0, relation).epsilon(100, 1e-5)
    for relation in (ADD_OR_REMOVE_ONE, ZERO_OUT)
  )
  assert one == other


def test_a_coarse_grid_is_a_little_larger_and_never_smaller():
  event = sampled(256 / 60000, 1.1, 2350)
  args = (event, "pld", ADD_OR_REMOVE_ONE, 1e-5)
  fine = accounting.epsilon(*args)
  coarse = accounting.epsilon(*args, discretization=1e-3)
  assert fine < coarse == pytest.approx(0.9232, rel=1e-4)


# Noise multipliers that others published, at the rate that their loader had.

REPLAY = [
  (50000, 29472, 330, 17.96875, 3.0, 2, 2.9875),
  (50000, 18896, 450, 17.1484375, 3.0, 3, 2.985),
  (50000, 2432, 210, 4.4921875, 3.0, 21, 2.987),
  (25000, 16848, 400, 9.013671875, 7.5, 2, 7.4834),
  (25000, 7856, 280, 5.3759765625, 7.5, 4, 7.4866),
  (25000, 640, 425, 2.18994140625, 7.5, 40, 7.486),
  (50000, 46368, 285, 7.6220703125, 7.5, 2, 7.4839),
]


@pytest.mark.parametrize(
  "n, batch, epochs, sigma, target, batches, epsilon", REPLAY
)
def test_published_noise_meets_its_target_at_the_realised_rate(
  n, batch, epochs, sigma, target, batches, epsilon
):
  assert math.ceil(n / batch) == batches
  made = mechanism(poisson(n, n / batches), sigma)
  got = made.epsilon(epochs * batches, 1e-5)
  assert target - 0.02 <= got <= target
  assert got == pytest.approx(epsilon, rel=2e-4)


def test_published_noise_misses_its_target_at_the_nominal_rate():
  made = mechanism(poisson(50000, 29472), 17.96875)
  assert made.epsilon(660, 1e-5) == pytest.approx(3.60, abs=0.006)


# What holds for all events.


def test_our_losses_are_those_of_dp_accounting():
  # The same discretisation, taken for all bins at once.
  truncated = dp_accounting.TruncatedSubsampledGaussianDpEvent(
    200, 0.1, 35, 2.0
  )
  for release in (
    dp_accounting.PoissonSampledDpEvent(
      0.02, dp_accounting.GaussianDpEvent(0.9)
    ),
    dp_accounting.PoissonSampledDpEvent(
      1.0, dp_accounting.GaussianDpEvent(9.0)
    ),
    dp_accounting.GaussianDpEvent(9.0),
    truncated,
  ):
    for relation in NeighboringRelation:
      event = dp_accounting.SelfComposedDpEvent(release, 30)
      theirs = dp_accounting.pld.PLDAccountant(relation, 1e-3).compose(event)
      for delta in (1e-8, 1e-5, 1e-2):
        ours = accounting.epsilon(
          event, "pld", relation, delta, discretization=1e-3
        )
        assert ours == pytest.approx(theirs.get_epsilon(delta), rel=1e-7)
      assert accounting.delta(
        event, "pld", relation, 1.0, discretization=1e-3
      ) == pytest.approx(theirs.get_delta(1.0), rel=1e-6, abs=1e-13)


@pytest.mark.slow
def test_our_losses_are_those_of_dp_accounting_at_full_size():
  event = dp_accounting.SelfComposedDpEvent(
    dp_accounting.TruncatedSubsampledGaussianDpEvent(
      60000, 256 / 60000, 320, 0.8
    ),
    2350,
  )
  for relation in NeighboringRelation:
    theirs = dp_accounting.pld.PLDAccountant(relation, 1e-4).compose(event)
    ours = accounting.epsilon(event, "pld", relation, 1e-5)
    assert ours == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-7)


def test_pld_is_below_rdp_and_both_grow_with_steps_and_fall_with_noise():
  for accountant in ("pld", "rdp"):

    def cost(q, sigma, count, accountant=accountant):
      return accounting.epsilon(
        sampled(q, sigma, count), accountant, ADD_OR_REMOVE_ONE, 1e-5
      )

    base = cost(0.01, 1.5, 100)
    assert 0 < base < cost(0.01, 1.5, 101)
    assert base < cost(0.011, 1.5, 100)
    assert base < cost(0.01, 1.45, 100)
  assert accounting.epsilon(
    sampled(0.01, 1.5, 100), "pld", ADD_OR_REMOVE_ONE, 1e-5
  ) <= accounting.epsilon(
    sampled(0.01, 1.5, 100), "rdp", ADD_OR_REMOVE_ONE, 1e-5
  )


@pytest.mark.parametrize(
  "accountant, event",
  [
    ("pld", sampled(0.05, 1.2, 50)),
    ("rdp", sampled(0.05, 1.2, 50)),
    ("gdp", gaussian(8.0, 50)),
  ],
)
def test_delta_undoes_epsilon(accountant, event):
  epsilon = accounting.epsilon(event, accountant, ADD_OR_REMOVE_ONE, 1e-5)
  delta = accounting.delta(event, accountant, ADD_OR_REMOVE_ONE, epsilon)
  assert delta == pytest.approx(1e-5, rel=1e-6)


@pytest.mark.parametrize("accountant", ["pld", "rdp", "gdp"])
def test_what_is_not_private_has_infinite_epsilon_and_delta_one(accountant):
  non_private = dp_accounting.NonPrivateDpEvent()
  compose = dp_accounting.ComposedDpEvent
  for event in (
    non_private,
    dp_accounting.SelfComposedDpEvent(non_private, 3),
    compose([gaussian(5.0), non_private]),
    gaussian(0.0, 2),
    compose([gaussian(5.0), compose([gaussian(0.0)])]),
    sampled(0.1, 0.0),
    dp_accounting.TruncatedSubsampledGaussianDpEvent(100, 0.1, 20, 0.0),
  ):
    args = (event, accountant, ADD_OR_REMOVE_ONE)
    assert accounting.epsilon(*args, 1e-5) == math.inf
    assert accounting.delta(*args, 3.0) == 1.0
    assert np.all(accounting.tradeoff(*args).beta == 0)


def test_mechanisms_without_noise_or_bound_are_not_private():
  free = mechanism(poisson(1000, 10), 0.0)
  assert free.epsilon(10, 1e-5) == math.inf
  assert free.delta(10, 1.0) == 1.0
  unclipped = Mechanism(clipping.no_clipping(), poisson(1000, 10), 0.0)
  assert unclipped.epsilon(10, 1e-5) == math.inf


@pytest.mark.parametrize("accountant", ["pld", "rdp", "gdp"])
def test_nothing_released_costs_nothing(accountant):
  for event in (
    dp_accounting.NoOpDpEvent(),
    dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(1.0), 0),
    dp_accounting.SelfComposedDpEvent(dp_accounting.NonPrivateDpEvent(), 0),
    dp_accounting.ComposedDpEvent([]),
  ):
    args = (event, accountant, ADD_OR_REMOVE_ONE)
    assert accounting.epsilon(*args, 1e-5) == 0.0
    assert accounting.delta(*args, 0.0) == 0.0
    curve = accounting.tradeoff(*args)
    np.testing.assert_allclose(curve.beta, 1 - curve.alpha)


def test_a_composed_event_costs_what_its_parts_cost_together():
  parts = dp_accounting.ComposedDpEvent(
    [sampled(0.02, 1.0, 20), gaussian(10.0, 4), sampled(0.02, 1.0, 30)]
  )
  theirs = dp_accounting.pld.PLDAccountant(ADD_OR_REMOVE_ONE, 1e-3)
  theirs.compose(parts)
  ours = accounting.epsilon(
    parts, "pld", ADD_OR_REMOVE_ONE, 1e-5, discretization=1e-3
  )
  assert ours == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-6)
  by_rdp = dp_accounting.rdp.RdpAccountant().compose(parts).get_epsilon(1e-5)
  ours = accounting.epsilon(parts, "rdp", ADD_OR_REMOVE_ONE, 1e-5)
  assert ours == pytest.approx(by_rdp, rel=1e-9)


def test_events_beyond_our_samplers_go_to_dp_accounting_as_they_are():
  laplace = dp_accounting.LaplaceDpEvent(2.0)
  nested = dp_accounting.PoissonSampledDpEvent(
    0.1, dp_accounting.ComposedDpEvent([dp_accounting.GaussianDpEvent(2.0)])
  )
  assert accounting.epsilon(
    laplace, "pld", ADD_OR_REMOVE_ONE, 1e-5
  ) == pytest.approx(0.5, rel=1e-3)
  theirs = dp_accounting.rdp.RdpAccountant().compose(nested).get_epsilon(1e-5)
  ours = accounting.epsilon(nested, "rdp", ADD_OR_REMOVE_ONE, 1e-5)
  assert ours == theirs
  never = sampled(0.0, 1.0, 5)
  assert accounting.epsilon(never, "pld", ADD_OR_REMOVE_ONE, 1e-5) == 0
  with pytest.raises(dp_accounting.UnsupportedEventError):
    accounting.epsilon(
      dp_accounting.UnsupportedDpEvent(), "pld", ADD_OR_REMOVE_ONE, 1e-5
    )


@pytest.mark.slow
def test_an_absurdly_small_noise_is_answered_and_not_a_memory_error():
  event = sampled(0.01, 0.02, 10)
  epsilon = accounting.epsilon(event, "pld", ADD_OR_REMOVE_ONE, 1e-5)
  assert 1000 < epsilon < math.inf


# Trade-off curves.


def test_the_tradeoff_of_a_pld_is_that_of_gaussian_dp_where_both_exist():
  alpha = np.array([0.0, 1e-6, 1e-3, 0.01, 0.1, 0.5, 0.9, 1.0])
  exact = accounting.tradeoff(gaussian(1.0), "gdp", ADD_OR_REMOVE_ONE)
  np.testing.assert_allclose(exact(alpha), gdp.tradeoff(1.0, alpha))
  by_pld = accounting.tradeoff(gaussian(1.0), "pld", ADD_OR_REMOVE_ONE)
  assert np.all(by_pld(alpha) <= exact(alpha) + 1e-12)
  np.testing.assert_allclose(by_pld(alpha), exact(alpha), atol=1e-5)
  by_rdp = accounting.tradeoff(gaussian(1.0), "rdp", ADD_OR_REMOVE_ONE)
  assert np.all(by_rdp(alpha) <= by_pld(alpha) + 1e-9)


def test_a_tradeoff_curve_is_convex_falling_and_consistent_with_epsilon():
  made = mechanism(poisson(1437, 128, "auto"), 2.0)
  curve = made.tradeoff(100)
  assert curve.alpha[0] == 0
  assert curve.alpha[-1] == 1
  assert np.all(np.diff(curve.beta) <= 1e-12)
  assert np.all(curve.beta <= 1 - curve.alpha)
  slopes = np.diff(curve.beta) / np.diff(curve.alpha)
  assert np.all(np.diff(slopes) >= -1e-6)
  # The test line of (epsilon, delta) is below the curve and touches it.
  epsilon = made.epsilon(100, 1e-3)
  line = 1 - 1e-3 - math.exp(epsilon) * curve.alpha
  gap = curve.beta - line
  assert np.all(gap >= -1e-3)
  assert gap.min() < 2e-3


def test_a_false_positive_rate_outside_0_and_1_is_refused():
  curve = accounting.tradeoff(gaussian(1.0), "gdp", ADD_OR_REMOVE_ONE)
  with pytest.raises(ValueError, match=r"must be in \[0, 1\], got alpha=1.5"):
    curve(1.5)
  with pytest.raises(ValueError, match="got alpha=nan"):
    curve(math.nan)


# Bad input.


@pytest.mark.parametrize("delta", [0, 1, -1e-5, 2.0, math.nan, "1e-5", None])
def test_a_delta_outside_0_and_1_is_refused(delta):
  with pytest.raises(ValueError, match="delta must be"):
    accounting.epsilon(gaussian(1.0), "gdp", ADD_OR_REMOVE_ONE, delta)


@pytest.mark.parametrize("epsilon", [-1, math.nan, "1"])
def test_a_negative_epsilon_is_refused(epsilon):
  with pytest.raises(ValueError, match="epsilon must be"):
    accounting.delta(gaussian(1.0), "gdp", ADD_OR_REMOVE_ONE, epsilon)


def test_an_unknown_accountant_and_a_sampled_event_for_gdp_are_refused():
  with pytest.raises(ValueError, match=r"unknown accountant 'prv'; use one"):
    accounting.epsilon(gaussian(1.0), "prv", ADD_OR_REMOVE_ONE, 1e-5)
  with pytest.raises(ValueError, match="without sampling only"):
    accounting.epsilon(sampled(0.1, 1.0), "gdp", ADD_OR_REMOVE_ONE, 1e-5)


def test_events_survive_their_record():
  for event in (
    mechanism(poisson(100, 10, "auto"), 1.5).dp_event(7),
    mechanism(FixedSize(num_examples=100, batch_size=3), 1.5).dp_event(7),
    dp_accounting.ComposedDpEvent([gaussian(1.0, 2), sampled(0.1, 2.0, 3)]),
    dp_accounting.NonPrivateDpEvent(),
  ):
    record = accounting.event_to_dict(event)
    assert accounting.event_from_dict(record) == event
  with pytest.raises(ValueError, match="unknown DpEvent 'os'"):
    accounting.event_from_dict({"type": "os"})
