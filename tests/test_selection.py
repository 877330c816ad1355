"""Private selection: its cost is that of the papers, and covers the truth."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import integrate, stats

import jaxdp
from jaxdp import clipping, sampling
from jaxdp.accounting import PrivacyStatement, RunFacts, Selection

DELTA = 1e-5
SIGMA = 2.0
RELATION = jaxdp.NeighboringRelation
SHAPES = ["poisson", "geometric", "logarithmic", 0.5, 3.0]
# Of one run; a Gaussian release with mu = 1 / SIGMA.
ONE = jaxdp.Mechanism(clipping.flat(1.0), sampling.FullBatch(1000), SIGMA)
ORDERS = np.concatenate([np.arange(1.1, 11, 0.1), np.arange(11, 64)])

every_shape = pytest.mark.parametrize("shape", SHAPES)


def mechanism(sampler, **options):
  return jaxdp.Mechanism(clipping.flat(1.0), sampler, SIGMA, **options)


def poisson(**options):
  return sampling.Poisson(num_examples=1000, expected_batch_size=50, **options)


def law(mean, shape):
  """Probabilities of 0, 1, .. runs, by the recursion of Definition 1."""
  if shape == "poisson":
    return stats.poisson.pmf(np.arange(2000), mean)
  eta = {"geometric": 1.0, "logarithmic": 0.0}.get(shape, shape)

  def probabilities(gamma):
    p = np.zeros(20_000)
    p[1] = 1.0
    k = np.arange(1, len(p) - 1)
    p[2:] = np.cumprod((1 - gamma) * (k + eta) / (k + 1))
    return p / p.sum()

  low, high = 1e-4, 1.0
  for _ in range(60):
    gamma = (low + high) / 2
    more = probabilities(gamma) @ np.arange(20_000) > mean
    low, high = (gamma, high) if more else (low, gamma)
  return probabilities(gamma)


def gamma_of(mean, shape):
  """From P(2) / P(1) = (1 - gamma) (1 + eta) / 2."""
  p = law(mean, shape)
  eta = {"geometric": 1.0, "logarithmic": 0.0}.get(shape, shape)
  return eta, 1 - 2 * p[2] / p[1] / (1 + eta)


def to_dp(rdp, delta):
  """Canonne et al. 2020, arXiv:2004.00010, Proposition 12."""
  epsilons = (
    rdp
    + np.log1p(-1 / ORDERS)
    - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1)
  )
  return epsilons.min()


@pytest.mark.parametrize("mean", [2.0, 10.0, 100.0])
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_theorem_2(mean, shape):
  eta, gamma = gamma_of(mean, shape)
  rdp = ORDERS / (2 * SIGMA**2)
  hat = ORDERS
  constant = (1 + eta) * np.min((1 - 1 / hat) * rdp - math.log(gamma) / hat)
  selected = rdp + constant + math.log(mean) / (ORDERS - 1)
  # An order's divergence is at most that of any larger order.
  selected = np.minimum.accumulate(selected[::-1])[::-1]
  expected = to_dp(selected, DELTA)
  got = Selection(mean, shape).epsilon(ONE, 1, DELTA)
  assert got == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("mean", [1.0, 2.0, 10.0])
def test_theorem_6(mean):
  """The delta of one run is dp-accounting's bound, or exact and smaller."""
  rdp = ORDERS / (2 * SIGMA**2)
  hat = np.log1p(1 / (ORDERS - 1))
  exact = np.array([jaxdp.accounting.gdp.delta(1 / SIGMA, e) for e in hat])
  exponents = (ORDERS - 1) * (rdp[None] - hat[:, None] + np.log1p(-1 / ORDERS))
  bound = np.exp(exponents - np.log(ORDERS)).min(axis=1)
  results = [
    to_dp(rdp + mean * delta + math.log(mean) / (ORDERS - 1), DELTA)
    for delta in (exact, np.minimum(bound, 1))
  ]
  got = Selection(mean).epsilon(ONE, 1, DELTA)
  assert results[0] <= got
  assert got == pytest.approx(results[1], rel=5e-3)


def delta_of_the_best(mean, shape, epsilon):
  """By quadrature: K normal values are drawn, and the largest is shown.

  Its density is f'(F(x)) p(x) for the generating function f of K.
  """
  p = law(mean, shape)
  p = p[: np.searchsorted(np.cumsum(p), 1 - 1e-13) + 1]
  derivative = np.polynomial.polynomial.polyder(p)
  f = np.polynomial.polynomial.Polynomial(derivative)
  worst = 0.0
  for shift in (1 / SIGMA, -1 / SIGMA):

    def excess(x, shift=shift):
      mine = f(stats.norm.cdf(x - shift)) * stats.norm.pdf(x - shift)
      other = f(stats.norm.cdf(x)) * stats.norm.pdf(x)
      return np.maximum(mine - math.exp(epsilon) * other, 0)

    x = np.linspace(-10, 10, 20_001)
    worst = max(worst, float(integrate.trapezoid(excess(x), x)))
  return worst


@every_shape
def test_what_is_charged_covers_the_best_of_random_many(shape):
  """And one run's epsilon does not, nor is the charge far too much."""
  selection = Selection(10.0, shape)
  epsilon = selection.epsilon(ONE, 1, DELTA)
  assert delta_of_the_best(10.0, shape, epsilon) <= DELTA
  assert delta_of_the_best(10.0, shape, ONE.epsilon(1, DELTA)) > 2 * DELTA


def test_a_fixed_number_of_runs_is_not_what_the_theorem_speaks_of():
  """Control: the largest of always 100 values leaks more than by chance."""
  epsilon = ONE.epsilon(1, DELTA)
  f = np.zeros(100)
  f[-1] = 100.0
  fixed = np.polynomial.polynomial.Polynomial(f)
  x = np.linspace(-10, 10, 20_001)
  mine = fixed(stats.norm.cdf(x - 1 / SIGMA)) * stats.norm.pdf(x - 1 / SIGMA)
  other = fixed(stats.norm.cdf(x)) * stats.norm.pdf(x)
  leak = integrate.trapezoid(np.maximum(mine - math.exp(epsilon) * other, 0), x)
  assert leak > 10 * DELTA


@every_shape
def test_one_run_is_the_renyi_epsilon_and_more_runs_cost_more(shape):
  plain = to_dp(ORDERS / (2 * SIGMA**2), DELTA)
  costs = [
    Selection(mean, shape).epsilon(ONE, 1, DELTA)
    for mean in (1.0, 1.01, 2.0, 10.0, 50.0)
  ]
  assert costs == sorted(costs)
  assert plain <= costs[0] <= 1.15 * plain
  assert costs[1] <= 1.05 * costs[0]
  assert costs[0] > ONE.epsilon(1, DELTA)
  assert costs[-1] < 50 * plain


@every_shape
def test_draws_follow_the_law(shape):
  selection = Selection(6.0, shape)
  u = (np.arange(2000) + 0.5) / 2000
  drawn = selection.quantile(u)
  p = law(6.0, shape)[:40]
  seen = np.array([(drawn == k).mean() for k in range(len(p))])
  assert np.abs(seen - p).max() <= 1.5 / len(u)
  assert (drawn.min() == 0) == (shape == "poisson")
  assert isinstance(selection.draw(), int)
  assert len({selection.draw() for _ in range(50)}) > 1
  if shape != "poisson":
    assert {Selection(1, shape).draw() for _ in range(20)} == {1}


@pytest.mark.parametrize(
  "sampler",
  [
    poisson(max_batch_size=None),
    sampling.FixedSize(num_examples=1000, batch_size=50),
    sampling.Shuffled(num_examples=1000, batch_size=50),
    sampling.Buckets(num_examples=1000, expected_batch_size=60, num_buckets=6),
  ],
  ids=lambda sampler: type(sampler).__name__,
)
def test_every_sampler_has_a_selection(sampler):
  one = mechanism(sampler)
  epsilon = Selection(5, "geometric").epsilon(one, 20, DELTA)
  assert one.epsilon(20, DELTA) < epsilon < math.inf


def test_batches_that_are_cut_take_their_part_of_delta():
  whole = mechanism(poisson(max_batch_size=None))
  cut = mechanism(poisson(max_batch_size=110))
  selection = Selection(5)
  expected = selection.epsilon(whole, 20, DELTA)
  assert expected < selection.epsilon(cut, 20, DELTA) < 1.01 * expected
  # Of 20 steps and 5 runs, 999 others fill some batch as often as this.
  often = 100 * stats.binom.sf(79, 999, 0.05)
  tight = mechanism(poisson(max_batch_size=80))
  loose = selection.epsilon(tight, 20, 2 * often)
  assert loose == pytest.approx(selection.epsilon(whole, 20, often), rel=1e-6)
  with pytest.raises(
    ValueError, match=r"Batches are cut at 80.*max_batch_size=\d+"
  ):
    selection.epsilon(tight, 20, DELTA)


def test_a_cap_that_the_error_names_is_enough():
  selection = Selection(5)
  with pytest.raises(ValueError) as error:
    selection.epsilon(mechanism(poisson(max_batch_size=60)), 20, DELTA)
  cap = int(str(error.value).rpartition("=")[2].rstrip("."))
  assert selection.epsilon(mechanism(poisson(max_batch_size=cap)), 20, DELTA)


def test_what_has_no_renyi_accountant_is_refused():
  one = mechanism(
    poisson(max_batch_size=None), neighboring_relation=RELATION.REPLACE_ONE
  )
  with pytest.raises(ValueError, match="Poisson has no Renyi accountant"):
    Selection(5).epsilon(one, 20, DELTA)


def test_what_is_not_private_stays_so():
  free = ONE.replace(noise_multiplier=0.0)
  assert Selection(5).epsilon(free, 1, DELTA) == math.inf
  assert Selection(5).privacy(free, 1, DELTA).assumptions == ()


@pytest.mark.parametrize("mean", [0, 0.5, -1, math.inf, math.nan, True, "ten"])
def test_a_mean_that_is_none_is_refused(mean):
  with pytest.raises(ValueError, match="mean must be"):
    Selection(mean)


@pytest.mark.parametrize("shape", ["binomial", -1.0, math.nan])
def test_a_law_that_is_not_known_is_refused(shape):
  with pytest.raises(ValueError, match="shape must be"):
    Selection(10, shape)


def test_the_statement_says_that_selection_is_charged():
  selection = Selection(10, "geometric")
  facts = RunFacts(own_loop=False, num_runs=12)
  statement = selection.privacy(ONE, 1, DELTA, facts=facts)
  assert statement.epsilon == selection.epsilon(ONE, 1, DELTA)
  assert statement.accountant == "rdp"
  assert "RepeatAndSelect" in statement.dp_event
  text = " ".join(statement.assumptions)
  assert "Selection is charged: the number of runs was drawn, geometric" in text
  assert "Tuning is not charged" not in text
  one = ONE.privacy(1, DELTA, facts=dataclasses.replace(facts, num_runs=None))
  assert len(one.assumptions) == len(statement.assumptions)
  assert PrivacyStatement.from_json(statement.to_json()) == statement
