"""Samplers: pure, masked, and drawn from the distribution that is accounted."""

import concurrent.futures
import dataclasses
import math
from typing import Any

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from jaxdp import accounting, sampling
from jaxdp.sampling import (
  Buckets,
  FixedSize,
  FullBatch,
  NeighboringRelation,
  Poisson,
  Shuffled,
)

ADD_OR_REMOVE_ONE = NeighboringRelation.ADD_OR_REMOVE_ONE
REPLACE_ONE = NeighboringRelation.REPLACE_ONE
ZERO_OUT = NeighboringRelation.REPLACE_SPECIAL

SAMPLERS: dict[str, Any] = {
  "poisson": Poisson(num_examples=100, expected_batch_size=20),
  "poisson-cut": Poisson(
    num_examples=100, expected_batch_size=20, max_batch_size=20
  ),
  "poisson-uncut": Poisson(
    num_examples=100, expected_batch_size=12.5, max_batch_size=None
  ),
  "poisson-all": Poisson(num_examples=30, expected_batch_size=30),
  "poisson-wide": Poisson(
    num_examples=30, expected_batch_size=30, max_batch_size=32
  ),
  "fixed-size": FixedSize(num_examples=100, batch_size=20),
  "shuffled": Shuffled(num_examples=100, batch_size=30),
  "shuffled-even": Shuffled(num_examples=90, batch_size=30),
  "full-batch": FullBatch(num_examples=100),
  "buckets": Buckets(num_examples=100, expected_batch_size=20, num_buckets=4),
}
SEEDED = [
  "poisson",
  "poisson-cut",
  "poisson-uncut",
  "fixed-size",
  "shuffled",
  "buckets",
]

every_sampler = pytest.mark.parametrize(
  "sampler", SAMPLERS.values(), ids=SAMPLERS.keys()
)
every_seeded_sampler = pytest.mark.parametrize(
  "sampler", [SAMPLERS[name] for name in SEEDED], ids=SEEDED
)


def rows(batch):
  """The real rows of a batch."""
  return batch.indices[~batch.is_padding_example]


def inclusion(sampler, num_steps, seed=2024):
  """bool [steps, examples]: who was in which step."""
  included = np.zeros((num_steps, sampler.num_examples), bool)
  for step in range(num_steps):
    included[step, rows(sampler.sample(seed, step))] = True
  return included


# What every sampler does.


@every_sampler
def test_a_batch_has_the_static_shape_and_types(sampler):
  for step in range(5):
    batch = sampler.sample(3, step)
    shape = (sampler.batch_size, *sampler.unit_shape)
    assert batch.indices.shape == batch.is_padding_example.shape == shape
    assert batch.indices.dtype == np.int32
    assert batch.is_padding_example.dtype == np.bool_


@every_sampler
def test_real_rows_are_distinct_and_padding_is_masked_and_holds_zero(sampler):
  for step in range(200):
    batch = sampler.sample(3, step)
    real = rows(batch)
    assert len(set(real.tolist())) == len(real)
    assert np.all((real >= 0) & (real < sampler.num_examples))
    assert np.all(batch.indices[batch.is_padding_example] == 0)
    if not sampler.may_pad:
      assert not batch.is_padding_example.any()


@every_sampler
def test_sampling_again_gives_the_same_batch_in_any_order_of_steps(sampler):
  forward = [sampler.sample(11, step) for step in range(30)]
  order = np.random.default_rng(0).permutation(30)
  for step in order:
    again = sampler.sample(11, int(step))
    np.testing.assert_array_equal(again.indices, forward[step].indices)
    np.testing.assert_array_equal(
      again.is_padding_example, forward[step].is_padding_example
    )


@every_sampler
def test_sample_many_is_stacked_samples(sampler):
  many = sampler.sample_many(5, first_step=7, num_steps=4)
  for i in range(4):
    one = sampler.sample(5, 7 + i)
    np.testing.assert_array_equal(many.indices[i], one.indices)
    np.testing.assert_array_equal(
      many.is_padding_example[i], one.is_padding_example
    )


@every_sampler
def test_sampling_is_the_same_in_every_thread(sampler):
  alone = [sampler.sample(1, step).indices for step in range(40)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    shared = list(pool.map(lambda s: sampler.sample(1, s).indices, range(40)))
  np.testing.assert_array_equal(alone, shared)


@every_seeded_sampler
def test_other_seeds_and_other_steps_give_other_batches(sampler):
  seeds = [0, 1, 2**64, 2**64 + 1, 2**128 - 1]
  batches = [
    sampler.sample(seed, step).indices.tobytes()
    for seed in seeds
    for step in (0, 1, 2, 2**40)
  ]
  assert len(set(batches)) == len(batches)


def test_samplers_of_other_kinds_do_not_share_random_numbers():
  # Same seed, same size: the rows must still be unrelated.
  fixed = FixedSize(num_examples=1000, batch_size=100)
  shuffled = Shuffled(num_examples=1000, batch_size=100)
  common = [
    len(
      set(fixed.sample(9, 10 * e).indices.tolist())
      & set(shuffled.sample(9, 10 * e).indices.tolist())
    )
    for e in range(200)
  ]
  # Hypergeometric: mean 10, variance 100 * .1 * .9 * 900 / 999.
  deviation = (np.mean(common) - 10) / math.sqrt(8.108 / len(common))
  assert abs(deviation) < 5


@every_sampler
def test_a_sampler_survives_its_record_and_is_hashable(sampler):
  assert sampling.from_dict(sampler.to_dict()) == sampler
  assert hash(sampling.from_dict(sampler.to_dict())) == hash(sampler)


@every_sampler
def test_data_of_another_length_is_refused(sampler):
  n = sampler.num_examples
  sampler.check(n)
  with pytest.raises(ValueError, match=rf"{n + 1} rows.*num_examples={n}"):
    sampler.check(n + 1)


# Poisson sampling: the distribution.


def rate_score(included, q):
  """How far, in standard deviations, the inclusion rate is from q."""
  total = included.size
  return abs(included.sum() - q * total) / math.sqrt(total * q * (1 - q))


def evenness_score(included, q, variance):
  """How unequal the examples' counts are, for their expected variance."""
  steps, examples = included.shape
  counts = included.sum(0)
  chi2 = np.sum((counts - q * steps) ** 2) / (steps * variance)
  return abs(chi2 - examples) / math.sqrt(2 * examples)


def size_variance_score(included, q):
  """Distance of the variance of the batch size from n q (1 - q)."""
  steps, examples = included.shape
  variance = examples * q * (1 - q)
  # The sizes are near normal, so their variance has this standard error.
  error = variance * math.sqrt(2 / (steps - 1))
  return abs(included.sum(1).var(ddof=1) - variance) / error


def correlation_score(a, b):
  """Largest correlation of a column of a with one of b, times sqrt(steps)."""
  a = (a - a.mean(0)) / a.std(0)
  b = (b - b.mean(0)) / b.std(0)
  scores = a.T @ b / math.sqrt(len(a))
  return np.abs(scores)


STEPS = 6000
UNCUT = Poisson(num_examples=80, expected_batch_size=20, max_batch_size=None)


@pytest.fixture(scope="module")
def uncut():
  return inclusion(UNCUT, STEPS)


def test_poisson_includes_each_example_with_probability_q(uncut):
  q = UNCUT.sampling_probability
  assert rate_score(uncut, q) < 5
  assert evenness_score(uncut, q, q * (1 - q)) < 5


def test_the_rate_test_sees_a_rate_that_is_two_percent_wrong():
  wrong = Poisson(
    num_examples=80, expected_batch_size=20.4, max_batch_size=None
  )
  included = inclusion(wrong, STEPS)
  assert rate_score(included, UNCUT.sampling_probability) > 5


def test_poisson_batch_sizes_are_binomial(uncut):
  assert size_variance_score(uncut, UNCUT.sampling_probability) < 5
  sizes = uncut.sum(1)
  q = UNCUT.sampling_probability
  edges = np.arange(13, 28)
  observed = np.bincount(np.digitize(sizes, edges), minlength=len(edges) + 1)
  cdf = stats.binom.cdf(edges - 1, 80, q)
  expected = np.diff(np.concatenate([[0], cdf, [1]])) * STEPS
  chi2 = np.sum((observed - expected) ** 2 / expected)
  assert stats.chi2.sf(chi2, len(edges)) > 1e-6


def test_the_size_test_rejects_batches_of_fixed_size():
  fixed = inclusion(FixedSize(num_examples=80, batch_size=20), STEPS)
  assert size_variance_score(fixed, 0.25) > 50


def test_poisson_includes_examples_independently_in_pairs(uncut):
  scores = correlation_score(uncut, uncut)[np.triu_indices(80, 1)]
  # 3160 standard normals: none beyond 5.5, mean square 1 +- 5 errors.
  assert scores.max() < 5.5
  error = math.sqrt(2 / len(scores))
  assert abs(np.mean(scores**2) - 1) < 5 * error


def test_the_pair_test_sees_neighbours_that_come_together(uncut):
  paired = uncut.copy()
  together = np.random.default_rng(0).random(STEPS) < 0.1
  paired[together, 1] = paired[together, 0]
  scores = correlation_score(paired, paired)[np.triu_indices(80, 1)]
  assert scores.max() > 5.5


def test_poisson_steps_are_independent(uncut):
  scores = correlation_score(uncut[:-1], uncut[1:])
  assert scores.max() < 5.5
  assert abs(np.mean(scores**2) - 1) < 5 * math.sqrt(2 / scores.size)


def test_other_seeds_are_independent(uncut):
  other = inclusion(UNCUT, STEPS, seed=2025)
  assert correlation_score(uncut, other).max() < 5.5


def test_the_step_test_sees_a_step_that_is_used_twice(uncut):
  repeated = np.repeat(uncut[: STEPS // 20], 20, axis=0)
  assert correlation_score(repeated[:-1], repeated[1:]).max() > 5.5


# Poisson sampling: the cap.

CUT = Poisson(num_examples=40, expected_batch_size=10, max_batch_size=11)


@pytest.fixture(scope="module")
def cut():
  return inclusion(CUT, STEPS)


def uniform_subset_score(included):
  """Unevenness of fixed-size subsets: their variance is p (1 - p)."""
  steps, examples = included.shape
  p = included.sum() / included.size
  # Counts add up to a constant: n - 1 degrees of freedom, n / (n - 1) more
  # variance for each.
  counts = included.sum(0)
  chi2 = np.sum((counts - p * steps) ** 2) / (steps * p * (1 - p))
  chi2 *= (examples - 1) / examples
  return abs(chi2 - (examples - 1)) / math.sqrt(2 * (examples - 1))


def test_the_cap_is_reached_as_often_as_the_sample_exceeds_it(cut):
  sizes = cut.sum(1)
  assert sizes.max() == 11 == CUT.batch_size
  p = stats.binom.sf(10, 40, 0.25)
  observed = np.mean(sizes == 11)
  assert abs(observed - p) < 5 * math.sqrt(p * (1 - p) / STEPS)


def test_a_cut_sample_is_a_uniformly_random_subset(cut):
  full = cut[cut.sum(1) == 11]
  assert len(full) > 1000
  assert uniform_subset_score(full) < 5
  # Pairs in a uniform subset of 11 of 40: P = 11 * 10 / (40 * 39).
  together = (full.T.astype(float) @ full)[np.triu_indices(40, 1)]
  p = 11 * 10 / (40 * 39)
  scores = (together - p * len(full)) / math.sqrt(len(full) * p * (1 - p))
  assert np.abs(scores).max() < 5.5


def test_the_subset_test_rejects_keeping_the_first_rows():
  uncut = Poisson(num_examples=40, expected_batch_size=10, max_batch_size=None)
  kept = np.zeros((STEPS, 40), bool)
  for step in range(STEPS):
    kept[step, np.sort(rows(uncut.sample(2024, step)))[:11]] = True
  full = kept[kept.sum(1) == 11]
  assert uniform_subset_score(full) > 5


def test_the_auto_cap_is_six_standard_deviations_above_the_mean():
  sampler = Poisson(num_examples=60_000, expected_batch_size=256)
  assert sampler.batch_size == 352
  assert Poisson(num_examples=300, expected_batch_size=256).batch_size == 300
  assert Poisson(num_examples=10**6, expected_batch_size=0.5).batch_size == 5


def test_an_empty_poisson_batch_is_all_padding():
  sampler = Poisson(num_examples=1000, expected_batch_size=0.01)
  batches = [sampler.sample(1, step) for step in range(200)]
  empty = [b for b in batches if b.is_padding_example.all()]
  assert len(empty) > 150
  assert all(b.indices.shape == (sampler.batch_size,) for b in batches)


# The other samplers.


def test_fixed_size_subsets_are_uniform_and_steps_independent():
  included = inclusion(FixedSize(num_examples=40, batch_size=11), STEPS)
  assert np.all(included.sum(1) == 11)
  assert uniform_subset_score(included) < 5
  assert correlation_score(included[:-1], included[1:]).max() < 5.5


def test_a_shuffled_epoch_holds_every_example_once_and_orders_differ():
  sampler = Shuffled(num_examples=100, batch_size=30)
  assert sampler.batches_per_epoch == 4
  orders = []
  for epoch in range(3):
    batches = [sampler.sample(1, 4 * epoch + i) for i in range(4)]
    assert [len(rows(b)) for b in batches] == [30, 30, 30, 10]
    orders.append(np.concatenate([rows(b) for b in batches]))
    assert sorted(orders[-1]) == list(range(100))
  assert not np.array_equal(orders[0], orders[1])


def test_shuffled_orders_are_uniform_and_epochs_independent():
  sampler = Shuffled(num_examples=40, batch_size=10)
  first = inclusion(sampler, 4 * 3000)[::4]
  assert uniform_subset_score(first) < 5
  assert correlation_score(first[:-1], first[1:]).max() < 5.5


def test_full_batch_takes_everything():
  batch = FullBatch(num_examples=5).sample(0, 3)
  assert batch.indices.tolist() == [0, 1, 2, 3, 4]
  assert not batch.is_padding_example.any()


# Relations, accountants and events.

TABLE = {
  "poisson": {
    ADD_OR_REMOVE_ONE: ("pld", 1),
    ZERO_OUT: ("pld", 1),
    REPLACE_ONE: ("pld", 2),
  },
  "buckets": {ADD_OR_REMOVE_ONE: ("pld", 2), ZERO_OUT: ("pld", 2)},
  "fixed-size": {REPLACE_ONE: ("rdp", 2)},
  "shuffled": {ZERO_OUT: ("gdp", 1), REPLACE_ONE: ("gdp", 2)},
  "full-batch": {
    ADD_OR_REMOVE_ONE: ("gdp", 1),
    ZERO_OUT: ("gdp", 1),
    REPLACE_ONE: ("gdp", 2),
  },
}


@pytest.mark.parametrize("relation", NeighboringRelation)
@pytest.mark.parametrize("name", TABLE)
def test_each_sampler_has_the_accountants_of_the_table(name, relation):
  sampler = SAMPLERS[name]
  if relation in TABLE[name]:
    accountant, factor = TABLE[name][relation]
    assert sampler.relations[relation] == accountant
    assert sampler.accountant(relation) == accountant
    assert sampler.sensitivity_factor(relation) == factor
    sampler.dp_event(1.0, 10, relation)
  else:
    assert relation not in sampler.relations
    for call in (
      lambda: sampler.accountant(relation),
      lambda: sampler.sensitivity_factor(relation),
      lambda: sampler.dp_event(1.0, 10, relation),
    ):
      with pytest.raises(ValueError, match=rf"{relation.name}.*works with"):
        call()


@every_sampler
def test_the_default_relation_is_a_supported_one(sampler):
  assert sampler.default_relation in sampler.relations


def test_poisson_is_accounted_truncated_only_if_the_cap_can_cut():
  capped = SAMPLERS["poisson"].dp_event(1.5, 7, ADD_OR_REMOVE_ONE)
  assert capped == dp_accounting.SelfComposedDpEvent(
    dp_accounting.TruncatedSubsampledGaussianDpEvent(
      dataset_size=100,
      sampling_probability=0.2,
      truncated_batch_size=47,
      noise_multiplier=1.5,
    ),
    7,
  )
  plain = dp_accounting.SelfComposedDpEvent(
    dp_accounting.PoissonSampledDpEvent(
      0.125, dp_accounting.GaussianDpEvent(1.5)
    ),
    7,
  )
  uncut = SAMPLERS["poisson-uncut"]
  assert uncut.dp_event(1.5, 7, ADD_OR_REMOVE_ONE) == plain
  wide = dataclasses.replace(uncut, max_batch_size=128)
  assert wide.batch_size == 128
  assert wide.dp_event(1.5, 7, ADD_OR_REMOVE_ONE) == plain


@pytest.mark.parametrize("name", ["poisson", "poisson-uncut"])
def test_poisson_doubles_the_multiplier_for_the_pld_of_replace_one(name):
  sampler = SAMPLERS[name]
  assert sampler.dp_event(1.5, 7, REPLACE_ONE) == sampler.dp_event(
    3.0, 7, ADD_OR_REMOVE_ONE
  )


def test_poisson_of_everything_costs_what_full_batch_costs():
  # q = 1 ties the PLD's convention under each relation to the closed form.
  sampler = SAMPLERS["poisson-all"]
  for relation in NeighboringRelation:
    poisson = accounting.epsilon(
      sampler.dp_event(20.0, 50, relation), "pld", relation, 1e-5
    )
    full = accounting.epsilon(
      FullBatch(num_examples=30).dp_event(20.0, 50, relation),
      "gdp",
      relation,
      1e-5,
    )
    assert poisson == pytest.approx(full, rel=1e-4)


def test_fixed_size_of_everything_costs_what_rdp_says_of_full_batch():
  # q = 1 ties RDP's convention, std / (2R), to ours.
  sampler = FixedSize(num_examples=30, batch_size=30)
  event = sampler.dp_event(20.0, 50, REPLACE_ONE)
  fixed = accounting.epsilon(event, "rdp", REPLACE_ONE, 1e-5)
  full = dp_accounting.SelfComposedDpEvent(
    dp_accounting.GaussianDpEvent(20.0), 50
  )
  assert fixed == pytest.approx(
    accounting.epsilon(full, "rdp", ADD_OR_REMOVE_ONE, 1e-5), rel=1e-9
  )


@pytest.mark.parametrize(
  "first_step, num_steps, epochs",
  [(0, 1, 1), (0, 4, 1), (0, 5, 2), (3, 1, 1), (3, 2, 2), (4, 8, 2), (5, 8, 3)],
)
def test_shuffled_charges_the_epochs_that_were_begun(
  first_step, num_steps, epochs
):
  sampler = SAMPLERS["shuffled"]  # 4 batches in an epoch.
  event = sampler.dp_event(2.0, num_steps, ZERO_OUT, first_step=first_step)
  assert event == dp_accounting.SelfComposedDpEvent(
    dp_accounting.GaussianDpEvent(2.0), epochs
  )


@every_sampler
def test_no_steps_and_no_noise_have_their_own_events(sampler):
  relation = sampler.default_relation
  no_steps = sampler.dp_event(1.0, 0, relation)
  assert isinstance(no_steps, dp_accounting.NoOpDpEvent)
  no_noise = sampler.dp_event(0.0, 3, relation)
  assert isinstance(no_noise, dp_accounting.NonPrivateDpEvent)


# Bad input names the value and the way out.


@pytest.mark.parametrize(
  "make, message",
  [
    (
      lambda: Poisson(num_examples=10, expected_batch_size=11),
      r"expected_batch_size=11 is larger than num_examples=10.*FullBatch",
    ),
    (
      lambda: Poisson(num_examples=10, expected_batch_size=0),
      r"> 0 and finite, got expected_batch_size=0",
    ),
    (
      lambda: Poisson(num_examples=10, expected_batch_size=-1.5),
      r"got expected_batch_size=-1.5",
    ),
    (
      lambda: Poisson(num_examples=10, expected_batch_size=math.nan),
      r"got expected_batch_size=nan",
    ),
    (
      lambda: Poisson(num_examples=10, expected_batch_size=math.inf),
      r"got expected_batch_size=inf",
    ),
    (
      lambda: Poisson(num_examples=10, expected_batch_size="5"),  # type: ignore[arg-type]
      r"must be a number, got expected_batch_size='5'",
    ),
    (
      lambda: Poisson(num_examples=10.0, expected_batch_size=5),  # type: ignore[arg-type]
      r"must be an integer, got num_examples=10.0",
    ),
    (
      lambda: Poisson(num_examples=0, expected_batch_size=5),
      r"num_examples must be >= 1, got num_examples=0",
    ),
    (
      lambda: Poisson(num_examples=2**31, expected_batch_size=5),
      r"num_examples must be <= 2147483647",
    ),
    (
      lambda: Poisson(
        num_examples=100, expected_batch_size=10, max_batch_size=9
      ),
      r'max_batch_size=9 is smaller.*"auto" \(29 here\).*at least 10',
    ),
    (
      lambda: Poisson(
        num_examples=100,
        expected_batch_size=10,
        max_batch_size="large",  # type: ignore[arg-type]
      ),
      r"must be an integer, got max_batch_size='large'",
    ),
    (
      lambda: FixedSize(num_examples=10, batch_size=11),
      r"batch_size=11 is larger than num_examples=10",
    ),
    (
      lambda: FixedSize(num_examples=10, batch_size=2.5),  # type: ignore[arg-type]
      r"must be an integer, got batch_size=2.5",
    ),
    (
      lambda: Shuffled(num_examples=10, batch_size=0),
      r"batch_size must be >= 1, got batch_size=0",
    ),
    (
      lambda: Shuffled(num_examples=10, batch_size=True),
      r"must be an integer, got batch_size=True",
    ),
    (
      lambda: FullBatch(num_examples=-1),
      r"num_examples must be >= 1, got num_examples=-1",
    ),
    (
      lambda: FullBatch(num_examples=10).with_batch_size(5),
      r"FullBatch takes all num_examples=10 rows.*use Poisson",
    ),
    (lambda: SAMPLERS["poisson"].sample(-1, 0), r"seed must be >= 0"),
    (lambda: SAMPLERS["poisson"].sample(2**128, 0), r"seed must be <= "),
    (lambda: SAMPLERS["full-batch"].sample(0, -1), r"step must be >= 0"),
    (lambda: SAMPLERS["shuffled"].sample(0, 1.5), r"got step=1.5"),
    (
      lambda: SAMPLERS["poisson"].dp_event(-1.0, 1, ADD_OR_REMOVE_ONE),
      r"noise_multiplier must be >= 0 and finite.*-1.0",
    ),
    (
      lambda: SAMPLERS["poisson"].dp_event(math.nan, 1, ADD_OR_REMOVE_ONE),
      r"noise_multiplier must be >= 0 and finite.*nan",
    ),
    (
      lambda: SAMPLERS["poisson"].dp_event(None, 1, ADD_OR_REMOVE_ONE),
      r"noise_multiplier is None.*calibrate_noise",
    ),
    (
      lambda: SAMPLERS["poisson"].dp_event(1.0, 1, "add"),
      r"must be a jaxdp.NeighboringRelation, got 'add'",
    ),
    (
      lambda: sampling.from_dict({"sampler": "Uniform"}),
      r"unknown sampler 'Uniform'; known are .*Poisson",
    ),
    (
      lambda: sampling.from_dict({"sampler": "FullBatch", "size": 3}),
      r"FullBatch cannot be made from",
    ),
  ],
)
def test_bad_input_is_named_with_its_remedy(make, message):
  with pytest.raises(ValueError, match=f"(?is){message}"):
    make()


def test_numpy_numbers_are_taken():
  sampler = Poisson(
    num_examples=np.int64(100), expected_batch_size=np.float32(12.5)
  )
  assert sampler == Poisson(num_examples=100, expected_batch_size=12.5)
  assert type(sampler.num_examples) is int
  sampler.sample(np.uint64(3), np.int32(4))
